// Group norm, SiLU and dropout in one, and their gradient.
//
// Images are [B, P, C]: B images of P pixels of C channels, C a multiple of 16, in bfloat16 or
// float32; arithmetic is float32, and sums over a group are float64. Sums go over pieces of a fixed
// number of pixels and are joined in order, so that results depend neither on threads nor on batch.

#include "vectors.h"

#include <cstdlib>

// One image's arrays, [C] each, and what is done to all images alike.
struct Lines { const float *factor, *shift; };
struct Act { bool silu; Mask mask; };

static const long RUN = 64;  // pixels whose sums are float32, of differences from their first

// Sums over pixels of x and of its square, [2, C].
template <class T, int N>
static void moments(const T *x, long pixels, long C, double *sums) {
    for (long c = 0; c < C; c += 16 * N) {
        for (int l = 0; l < 16 * N; l++) sums[c + l] = sums[C + c + l] = 0;
        for (long p = 0; p < pixels; p += RUN) {
            const long end = p + RUN < pixels ? p + RUN : pixels;
            vec k[N], s[N] = {}, q[N] = {};
            for (int j = 0; j < N; j++) k[j] = load(x + p * C + c + 16 * j);
            for (long i = p; i < end; i++)
                for (int j = 0; j < N; j++) {
                    vec v = load(x + i * C + c + 16 * j) - k[j];
                    s[j] += v;
                    q[j] += v * v;
                }
            for (int j = 0; j < N; j++)
                for (int l = 0; l < 16; l++) {
                    const double first = k[j][l], sum = s[j][l];
                    sums[c + 16 * j + l] += sum + (end - p) * first;
                    sums[C + c + 16 * j + l] += q[j][l] + first * (2 * sum + (end - p) * first);
                }
        }
    }
}

// y = dropout(act(x factor + shift)); `at` is the batch's element that x starts with.
template <class T, int N>
static void apply(const T *x, T *y, long pixels, long C, Lines lines, const Act &act, uint64_t at) {
    for (long c = 0; c < C; c += 16 * N) {
        vec f[N], d[N];
        for (int j = 0; j < N; j++) f[j] = load(lines.factor + c + 16 * j), d[j] = load(lines.shift + c + 16 * j);
        for (long p = 0; p < pixels; p++) {
            vec v[N];
            for (int j = 0; j < N; j++) {
                v[j] = load(x + p * C + c + 16 * j) * f[j] + d[j];
                if (act.silu) v[j] = silu_for<T>(v[j]);
            }
            if (act.mask.kept < 65536) drop<N>(v, act.mask, at + p * C + c);
            for (int j = 0; j < N; j++) store(y + p * C + c + 16 * j, v[j]);
        }
    }
}

// The gradient where the activation begins, dy act'(z) with z = x factor + shift.
template <class T, int N>
static INLINE void inner(const vec *x, const T *dy, const vec *f, const vec *d, const Act &act, uint64_t at, vec *g) {
    for (int j = 0; j < N; j++) g[j] = load(dy + 16 * j);
    if (act.mask.kept < 65536) drop<N>(g, act.mask, at);
    if (act.silu)
        for (int j = 0; j < N; j++) {
            vec z = x[j] * f[j] + d[j], s = sigmoid_for<T>(z);
            g[j] *= s * (1.0f + z * (1.0f - s));
        }
}

// Sums over pixels of that gradient g, of g (x - centre) and of x - centre.
template <class T, int N>
static void back_moments(const T *x, const float *centre, const T *dy, long pixels, long C, Lines lines, const Act &act,
                         uint64_t at, float *sums) {
    for (long c = 0; c < C; c += 16 * N) {
        vec k[N], f[N], d[N], s[N] = {}, q[N] = {}, w[N] = {};
        for (int j = 0; j < N; j++) {
            k[j] = load(centre + c + 16 * j);
            f[j] = load(lines.factor + c + 16 * j), d[j] = load(lines.shift + c + 16 * j);
        }
        for (long p = 0; p < pixels; p++) {
            vec v[N], g[N];
            for (int j = 0; j < N; j++) v[j] = load(x + p * C + c + 16 * j);
            inner<T, N>(v, dy + p * C + c, f, d, act, at + p * C + c, g);
            for (int j = 0; j < N; j++) {
                v[j] -= k[j];
                s[j] += g[j];
                q[j] += g[j] * v[j];
                w[j] += v[j];
            }
        }
        for (int j = 0; j < N; j++) {
            store(sums + c + 16 * j, s[j]);
            store(sums + C + c + 16 * j, q[j]);
            store(sums + 2 * C + c + 16 * j, w[j]);
        }
    }
}

// dx = g factor + x slope + level.
template <class T, int N>
static void back_apply(const T *x, const T *dy, T *dx, long pixels, long C, Lines lines, const float *slope,
                       const float *level, const Act &act, uint64_t at) {
    for (long c = 0; c < C; c += 16 * N) {
        vec f[N], d[N], a[N], b[N];
        for (int j = 0; j < N; j++) {
            f[j] = load(lines.factor + c + 16 * j), d[j] = load(lines.shift + c + 16 * j);
            a[j] = load(slope + c + 16 * j), b[j] = load(level + c + 16 * j);
        }
        for (long p = 0; p < pixels; p++) {
            vec v[N], g[N];
            for (int j = 0; j < N; j++) v[j] = load(x + p * C + c + 16 * j);
            inner<T, N>(v, dy + p * C + c, f, d, act, at + p * C + c, g);
            for (int j = 0; j < N; j++) store(dx + p * C + c + 16 * j, g[j] * f[j] + v[j] * a[j] + b[j]);
        }
    }
}

struct Shape { long B, P, C, G; };

// Sums of n pieces, [n, width], added in order to [width] of float64.
template <class S>
static void joined(const S *sums, long n, long width, double *out) {
    for (long i = 0; i < width; i++) out[i] = 0;
    for (long t = 0; t < n; t++)
        for (long i = 0; i < width; i++) out[i] += sums[t * width + i];
}

// A group's mean and 1 / deviation of x + offset; factor and shift of `apply`. work: [2, C].
static void lines_of(const float *offset, const double *sums, long n, const float *scale, const float *shift,
                     const Shape &s, double eps, float *moments, float *lines, double *work) {
    const long D = s.C / s.G;
    joined(sums, n, 2 * s.C, work);
    for (long g = 0; g < s.G; g++) {
        double mean = 0, square = 0;
        for (long c = g * D; c < g * D + D; c++) mean += work[c] / s.P + (offset ? offset[c] : 0);
        mean /= D;
        for (long c = g * D; c < g * D + D; c++) {
            const double m = work[c] / s.P, from = m + (offset ? offset[c] : 0) - mean;
            square += work[s.C + c] / s.P - m * m + from * from;
        }
        const double deviation = 1 / __builtin_sqrt(square / D + eps);
        moments[g] = mean, moments[s.G + g] = deviation;
        for (long c = g * D; c < g * D + D; c++) {
            double f = scale[c] * deviation;
            lines[c] = f;
            lines[s.C + c] = shift[c] + ((offset ? offset[c] : 0) - mean) * f;
        }
    }
}

// Gradients of one image's scale, shift and offset, and slope and level of `back_apply`. `centre` [C]
// is what was taken off x in the sums, the group's mean less the offset to float32.
static void back_lines(const float *offset, const float *centre, const float *sums, long n, const float *scale,
                       const Shape &s, const float *moments, float *slope, float *level, float *dscale,
                       float *dshift, float *doffset, double *work) {
    const long D = s.C / s.G, C = s.C;
    joined(sums, n, 3 * C, work);
    for (long g = 0; g < s.G; g++) {
        const double mean = moments[g], deviation = moments[s.G + g];
        double m0 = 0, m1 = 0;
        for (long c = g * D; c < g * D + D; c++) {
            const double k = centre[c] + (offset ? offset[c] : 0) - mean;  // xhat = (x - centre + k) deviation
            const double along = (work[C + c] + k * work[c]) * deviation;
            dshift[c] = work[c], dscale[c] = along;
            m0 += scale[c] * work[c], m1 += scale[c] * along;
        }
        m0 /= (double)s.P * D, m1 /= (double)s.P * D;
        for (long c = g * D; c < g * D + D; c++) {
            const double o = offset ? offset[c] : 0, k = centre[c] + o - mean;
            slope[c] = -deviation * deviation * m1;
            level[c] = -deviation * (m0 + (o - mean) * deviation * m1);
            doffset[c] = deviation * (scale[c] * work[c] - s.P * m0 - m1 * deviation * (work[2 * C + c] + s.P * k));
        }
    }
}

static long piece_of(const Shape &s) { return 65536 / s.C > 1 ? 65536 / s.C : 1; }

// Whether a thread does whole images, which then come from memory once and from its cache again.
static bool by_images(const Shape &s, int threads) { return s.P * s.C <= 65536 || (s.B >= threads && s.P * s.C <= 262144); }
static INLINE long least(long a, long b) { return a < b ? a : b; }

// `before` and `middle` of every image, `pieces` and `rest` of each of its n pieces, in this order.
template <class Before, class Pieces, class Middle, class Rest>
static void in_parts(const Shape &s, long n, int threads, Before before, Pieces pieces, Middle middle, Rest rest) {
    if (by_images(s, threads)) {
#pragma omp parallel for num_threads(threads)
        for (long b = 0; b < s.B; b++) {
            before(b);
            for (long t = b * n; t < b * n + n; t++) pieces(t);
            middle(b);
            for (long t = b * n; t < b * n + n; t++) rest(t);
        }
        return;
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long b = 0; b < s.B; b++) before(b);
#pragma omp for
        for (long t = 0; t < s.B * n; t++) pieces(t);
#pragma omp for
        for (long b = 0; b < s.B; b++) middle(b);
#pragma omp for
        for (long t = 0; t < s.B * n; t++) rest(t);
    }
}

template <class T, int N>
static int forward(const T *x, const float *offset, const float *scale, const float *shift, long rows, T *y,
                   float *group, const Shape &s, double eps, const Act &act, int threads) {
    const long piece = piece_of(s), n = (s.P + piece - 1) / piece, C = s.C, size = s.P * C;
    double *sums = (double *)malloc(sizeof(double) * s.B * n * 2 * C), *work = (double *)malloc(sizeof(double) * s.B * 2 * C);
    float *lines = (float *)malloc(sizeof(float) * s.B * 2 * C);
    const bool fine = sums && lines && work;
    auto pieces = [&](long t) {
        const long b = t / n, from = t % n * piece;
        moments<T, N>(x + b * size + from * C, least(piece, s.P - from), C, sums + t * 2 * C);
    };
    auto middle = [&](long b) {
        lines_of(offset ? offset + b * C : nullptr, sums + b * n * 2 * C, n, scale + b * rows,
                 shift + b * rows, s, eps, group + b * 2 * s.G, lines + b * 2 * C, work + b * 2 * C);
    };
    auto rest = [&](long t) {
        const long b = t / n, from = t % n * piece, at = b * size + from * C;
        const float *line = lines + b * 2 * C;
        apply<T, N>(x + at, y + at, least(piece, s.P - from), C, Lines{line, line + C}, act, at);
    };
    if (fine) in_parts(s, n, threads, [](long) {}, pieces, middle, rest);
    free(sums), free(lines), free(work);
    return fine ? 0 : 1;
}

template <class T, int N>
static int backward(const T *x, const float *offset, const float *scale, const float *shift, long rows, const T *dy,
                    const float *group, T *dx, float *dscale, float *dshift, float *doffset, const Shape &s,
                    const Act &act, int threads) {
    const long piece = piece_of(s), n = (s.P + piece - 1) / piece, C = s.C, size = s.P * C;
    float *sums = (float *)malloc(sizeof(float) * s.B * n * 3 * C), *lines = (float *)malloc(sizeof(float) * s.B * 5 * C);
    double *work = (double *)malloc(sizeof(double) * s.B * 3 * C);
    const bool fine = sums && lines && work;
    auto before = [&](long b) {  // The lines of the forward pass again.
        const float *moments = group + b * 2 * s.G, *o = offset ? offset + b * C : nullptr;
        float *line = lines + b * 5 * C;
        for (long c = 0; c < C; c++) {
            const long g = c / (C / s.G);
            double f = (double)scale[b * rows + c] * moments[s.G + g];
            line[c] = f;
            line[C + c] = shift[b * rows + c] + ((o ? o[c] : 0) - (double)moments[g]) * f;
            line[4 * C + c] = moments[g] - (o ? o[c] : 0);
        }
    };
    auto pieces = [&](long t) {
        const long b = t / n, from = t % n * piece, at = b * size + from * C;
        const float *line = lines + b * 5 * C;
        back_moments<T, N>(x + at, line + 4 * C, dy + at, least(piece, s.P - from), C, Lines{line, line + C}, act, at,
                           sums + t * 3 * C);
    };
    auto middle = [&](long b) {
        float *line = lines + b * 5 * C;
        back_lines(offset ? offset + b * C : nullptr, line + 4 * C, sums + b * n * 3 * C, n, scale + b * rows, s,
                   group + b * 2 * s.G, line + 2 * C, line + 3 * C, dscale + b * C, dshift + b * C,
                   doffset + b * C, work + b * 3 * C);
    };
    auto rest = [&](long t) {
        const long b = t / n, from = t % n * piece, at = b * size + from * C;
        const float *line = lines + b * 5 * C;
        back_apply<T, N>(x + at, dy + at, dx + at, least(piece, s.P - from), C, Lines{line, line + C}, line + 2 * C,
                         line + 3 * C, act, at);
    };
    if (fine) in_parts(s, n, threads, before, pieces, middle, rest);
    free(sums), free(lines), free(work);
    return fine ? 0 : 1;
}

// y = dropout(act(norm(x + offset) scale + shift)); `group` [B, 2, G] is given the mean and 1 /
// deviation. offset is [B, C] or null; scale and shift are [C] (rows = 0) or [B, C]
// (rows = C). Returns 0, or 1 where memory ran out.
#define FORWARD(NAME, T)                                                                                             \
    extern "C" int NAME(const T *x, const float *offset, const float *scale, const float *shift, long rows, T *y,    \
                        float *group, long B, long P, long C, long G, double eps, int silu, uint32_t kept,           \
                        uint64_t seed, int threads) {                                                                \
        const Act act = {silu != 0, {kept, seed}};                                                                   \
        return (C % 32 ? forward<T, 1> : forward<T, 2>)(x, offset, scale, shift, rows, y, group, Shape{B, P, C, G},  \
                                                        eps, act, threads);                                          \
    }

// The gradients of x, and of every image's scale, shift and offset, [B, C] each.
#define BACKWARD(NAME, T)                                                                                            \
    extern "C" int NAME(const T *x, const float *offset, const float *scale, const float *shift, long rows,          \
                        const T *dy, const float *group, T *dx, float *dscale, float *dshift, float *doffset,        \
                        long B, long P, long C, long G, int silu, uint32_t kept, uint64_t seed, int threads) {       \
        const Act act = {silu != 0, {kept, seed}};                                                                   \
        return (C % 32 ? backward<T, 1> : backward<T, 2>)(x, offset, scale, shift, rows, dy, group, dx, dscale,      \
                                                          dshift, doffset, Shape{B, P, C, G}, act, threads);         \
    }

FORWARD(norm_forward_bfloat16, bfloat16)
FORWARD(norm_forward_float32, float)
BACKWARD(norm_backward_bfloat16, bfloat16)
BACKWARD(norm_backward_float32, float)
