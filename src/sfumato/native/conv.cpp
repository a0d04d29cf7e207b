// 3x3 convolutions of bfloat16 images with a border of zeros, by Winograd's F(2x2, 3x3): 16 products
// for 2 x 2 pixels in place of 36. Transforms and sums are float32; what is multiplied is rounded to
// bfloat16, as by any such convolution. (Lavin & Gray 2016, "Fast algorithms for convolutional
// neural networks".)
//
// Images are [B, H, W, C], C and K multiples of 16. Weights come transformed, [16, K / 64, C / 2, 64,
// 2]: 16 positions of a tile, panels of 64 outputs (the last may be narrower), and pairs of inputs in the
// order of `channel_at`.

#include "tiles.h"

#include <cstdlib>

static const int ROWS = 6;  // of tiles in registers at once, beside 4 vectors of outputs

// R tiles times N vectors of outputs, over all inputs.
template <int R, int N>
static INLINE void product(const uint16_t *V, const uint16_t *U, float *M, long C, long ldm) {
    __m512 sum[R][N] = {};
    for (long c = 0; c < C / 2; c++) {
        __m512bh u[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) u[n] = (__m512bh)_mm512_loadu_si512(U + (c * N + n) * 32);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            int pair;
            memcpy(&pair, V + r * C + 2 * c, 4);
            const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], v, u[n]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) _mm512_storeu_ps(M + r * ldm + 16 * n, sum[r][n]);
}

template <int N> static void products(const uint16_t *V, const uint16_t *U, float *M, long tiles, long C) {
    long i = 0;
    for (; i + ROWS <= tiles; i += ROWS) product<ROWS, N>(V + i * C, U, M + i * 16 * N, C, 16 * N);
    for (; i + 3 <= tiles; i += 3) product<3, N>(V + i * C, U, M + i * 16 * N, C, 16 * N);
    for (; i < tiles; i++) product<1, N>(V + i * C, U, M + i * 16 * N, C, 16 * N);
}

// A^T m A: the 2 x 2 pixels of every tile, or their sum, for 16 N outputs from k on.
template <int N>
static void restored(const float *M, long T, const float *bias, const uint16_t *plus, float weight, const Image &s,
                     long from, long tiles, long k, uint16_t *y) {
    const long step = apart<float>(T * 64);
    Place place(s, from);
    for (long i = 0; i < tiles; i++, place.next(s)) {
        const long tile = from + i, b = place.b, row = place.row, col = place.col;
        for (int n = 0; n < N; n++) {
            __m512 m[16], out[4], up[8];
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) m[j] = _mm512_loadu_ps(M + j * step + (i * N + n) * 16);
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                up[q] = m[q] + m[4 + q] + m[8 + q];
                up[4 + q] = m[4 + q] - m[8 + q] - m[12 + q];
            }
            const __m512 add = _mm512_loadu_ps(bias + k + 16 * n);
#pragma GCC unroll 2
            for (int r = 0; r < 2; r++) {
                out[2 * r] = up[4 * r] + up[4 * r + 1] + up[4 * r + 2] + add;
                out[2 * r + 1] = up[4 * r + 1] - up[4 * r + 2] - up[4 * r + 3] + add;
            }
            if (s.kind == HALVED) {
                const __m512 sum = (out[0] + out[1]) + (out[2] + out[3]);
                _mm256_storeu_si256((__m256i *)(y + tile * s.K + k + 16 * n), rounded(sum));
                continue;
            }
            for (int j = 0; j < 4; j++) {
                const long r = row + j / 2, c = col + j % 2;
                if (r >= s.H || c >= s.W) continue;
                const long at = ((b * s.H + r) * s.W + c) * s.K + k + 16 * n;
                if (plus) out[j] += weight * load16(plus + at);
                _mm256_storeu_si256((__m256i *)(y + at), rounded(out[j]));
            }
        }
    }
}

template <int N>
static void panel(const uint16_t *V, const uint16_t *U, float *M, long T, const float *bias, const uint16_t *plus,
                  float weight, const Image &s, long from, long tiles, long k, uint16_t *y) {
    const long v = apart<uint16_t>(T * s.C), u = s.C * s.K, m = apart<float>(T * 64);
    for (int j = 0; j < 16; j++)
        if (!adds_nothing(s, j)) products<N>(V + j * v, U + j * u + k * s.C, M + j * m, tiles, s.C);
    restored<N>(M, T, bias, plus, weight, s, from, tiles, k, y);
}

static INLINE long least(long a, long b) { return a < b ? a : b; }
static INLINE long upwards(long a, long b) { return (a + b - 1) / b; }

// Tiles at once: what is transformed stays in the cache, and every thread has some.
static long block_of(long C, long all, int threads) {
    const long groups = 1024 / C, most = ROWS * (groups < 2 ? 2 : least(groups, 8));
    return least(most, upwards(upwards(all, threads), 3) * 3);
}

// y [B, H, W, K] = conv(x) + bias + weight plus, which may be null; U as told above. `kind`: x may be
// doubled before, or y halved after (then H and W are even, and `plus` is null). Returns 1 without
// memory.
extern "C" int conv_bfloat16(const uint16_t *x, const uint16_t *U, const float *bias, const uint16_t *plus,
                             float weight, uint16_t *y, long B, long H, long W, long C, long K, int kind,
                             int threads) {
    uint16_t *nothing = (uint16_t *)calloc(C + K, 2);
    const Image s = {B, H, W, C, K, (Kind)kind, nothing};
    const long all = B * ((H + 1) / 2) * ((W + 1) / 2), T = block_of(C, all, threads), blocks = upwards(all, T);
    bool fine = true;
#pragma omp parallel num_threads(threads) reduction(&& : fine)
    {
        const long results = 16 * 4 * apart<float>(T * 64);
        uint16_t *V = (uint16_t *)aligned_alloc(64, 16 * 2 * apart<uint16_t>(T * C));
        float *M = (float *)aligned_alloc(64, results);
        fine = nothing && V && M;
        if (fine) memset(M, 0, results);  // What adds nothing is never written.
#pragma omp for schedule(dynamic)
        for (long block = 0; block < blocks; block++) {
            if (!fine) continue;
            const long from = block * T, tiles = least(all - from, T);
            in_rows(x, s, from, tiles, T, V);
            for (long k = 0; k < K; k += 64) {
                const long left = least(K - k, 64) / 16;
                (left == 4 ? panel<4> : left == 3 ? panel<3> : left == 2 ? panel<2> : panel<1>)(
                    V, U, M, T, bias, plus, weight, s, from, tiles, k, y);
            }
        }
        free(V), free(M);
    }
    free(nothing);
    return fine ? 0 : 1;
}

// U of weights w[k out + c in + tap] times gain; taps in reverse order for the gradient of x.
extern "C" void conv_weights(const float *w, long out, long in, int reverse, float gain, long C, long K, uint16_t *U,
                             int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long c = 0; c < C; c += 2)
        for (long k = 0; k < K; k += 16) {
            __m512 u[2][16];
            for (int i = 0; i < 2; i++) {
                __m512 g[9], h[12];
                float taps[9][16];
                for (int n = 0; n < 16; n++) {
                    const float *from = w + (k + n) * out + channel_at(c + i, C) * in;
                    for (int t = 0; t < 9; t++) taps[t][n] = from[reverse ? 8 - t : t];
                }
                for (int t = 0; t < 9; t++) g[t] = gain * _mm512_loadu_ps(taps[t]);
                for (int q = 0; q < 3; q++) {
                    __m512 ends = g[q] + g[6 + q];
                    h[q] = g[q], h[3 + q] = 0.5f * (ends + g[3 + q]), h[6 + q] = 0.5f * (ends - g[3 + q]), h[9 + q] = g[6 + q];
                }
                for (int r = 0; r < 4; r++) {
                    __m512 ends = h[3 * r] + h[3 * r + 2];
                    u[i][4 * r] = h[3 * r], u[i][4 * r + 1] = 0.5f * (ends + h[3 * r + 1]);
                    u[i][4 * r + 2] = 0.5f * (ends - h[3 * r + 1]), u[i][4 * r + 3] = h[3 * r + 2];
                }
            }
            const long from = k / 64 * 64, wide = least(K - from, 64);
            for (int j = 0; j < 16; j++) {
                uint16_t *to = U + j * C * K + from * C + c * wide + (k - from) * 2;
                _mm512_storeu_si512(to, side_by_side(u[0][j], u[1][j]));
            }
        }
}

static const long TASKS = 16;  // at least, to share out

// dU [4, 16 N] gains products over pairs of tiles.
template <int N> static INLINE void gained(const uint16_t *V, const uint16_t *D, long pairs, float *dU) {
    __m512 sum[4][N];
    for (int r = 0; r < 4; r++)
        for (int n = 0; n < N; n++) sum[r][n] = _mm512_loadu_ps(dU + 16 * (r * N + n));
    for (long i = 0; i < pairs; i++) {
        __m512bh d[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) d[n] = (__m512bh)_mm512_loadu_si512(D + (i * N + n) * 32);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            int pair;
            memcpy(&pair, V + (i * 16 + r) * 2, 4);
            const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], v, d[n]);
        }
    }
    for (int r = 0; r < 4; r++)
        for (int n = 0; n < N; n++) _mm512_storeu_ps(dU + 16 * (r * N + n), sum[r][n]);
}

// dU [16, inputs, 16 N] gains the products of a block.
template <int N>
static void gains(const Image &s, const uint16_t *V, const uint16_t *D, long pairs, long inputs, float *dU) {
    for (int j = 0; j < 16; j++)
        if (!adds_nothing(s, j))
            for (long c = 0; c < inputs; c += 4)
                gained<N>(V + j * POSITION + 2 * (c / 16 * PAIRS * 16 + c % 16), D + j * POSITION, pairs,
                          dU + (j * inputs + c) * 16 * N);
}

// G^T dU G: the 9 taps [9, size] of [16, size].
static void taps(const float *dU, long size, float *dw) {
    for (long i = 0; i < size; i += 16) {
        __m512 u[16], h[12];
        for (int j = 0; j < 16; j++) u[j] = _mm512_loadu_ps(dU + j * size + i);
        for (int q = 0; q < 4; q++) {
            const __m512 both = 0.5f * (u[4 + q] + u[8 + q]);
            h[q] = u[q] + both, h[4 + q] = 0.5f * (u[4 + q] - u[8 + q]), h[8 + q] = both - u[12 + q];
        }
        for (int r = 0; r < 3; r++) {
            const __m512 both = 0.5f * (h[4 * r + 1] + h[4 * r + 2]);
            float *to = dw + 3 * r * size + i;
            _mm512_storeu_ps(to, h[4 * r] + both);
            _mm512_storeu_ps(to + size, 0.5f * (h[4 * r + 1] - h[4 * r + 2]));
            _mm512_storeu_ps(to + 2 * size, both - h[4 * r + 3]);
        }
    }
}

// dw [K, C, 3, 3] and dbias [K] of dy [B, H, W, K], where x may be doubled. Returns 1 without memory.
// A task is 64 inputs by 64 outputs and a run of the tiles: what it sums stays in a core's own cache. There are
// as many whatever the number of threads.
extern "C" int conv_gradient(const uint16_t *x, const uint16_t *dy, float *dw, float *dbias, long B, long H, long W,
                             long C, long K, int kind, int threads) {
    uint16_t *nothing = (uint16_t *)calloc(C + K, 2);
    const Image s = {B, H, W, C, K, (Kind)kind, nothing};
    const long all = B * ((H + 1) / 2) * ((W + 1) / 2), T = 2 * PAIRS, blocks = upwards(all, T);
    const long parts = upwards(C, 64), panels = upwards(K, 64), runs = least(blocks, upwards(TASKS, parts * panels));
    float *made = (float *)aligned_alloc(64, 36 * C * K * runs), *sums = (float *)calloc(blocks * K, 4);
    bool fine = nothing && made && sums;
    if (fine) {
#pragma omp parallel num_threads(threads) reduction(&& : fine)
        {
            uint16_t *V = (uint16_t *)aligned_alloc(64, 32 * POSITION), *D = (uint16_t *)aligned_alloc(64, 32 * POSITION);
            float *dU = (float *)aligned_alloc(64, 64 * 64 * 64);
            fine = V && D && dU;
#pragma omp for schedule(dynamic)
            for (long task = 0; task < runs * parts * panels; task++) {
                if (!fine) continue;
                const long run = task / (parts * panels), k = task / parts % panels * 64, c = task % parts * 64;
                const long inputs = least(C - c, 64), outputs = least(K - k, 64);
                memset(dU, 0, 64 * inputs * outputs);
                for (long block = blocks * run / runs; block < blocks * (run + 1) / runs; block++) {
                    const long from = block * T, tiles = least(all - from, T), N = outputs / 16;
                    in_pairs<false>(x, s, C, c, inputs, from, tiles, 16, V, nullptr);
                    in_pairs<true>(dy, s, K, k, outputs, from, tiles, outputs, D, c ? nullptr : sums + block * K + k);
                    (N == 4 ? gains<4> : N == 3 ? gains<3> : N == 2 ? gains<2> : gains<1>)(
                        s, V, D, upwards(tiles, 2), inputs, dU);
                }
                taps(dU, inputs * outputs, made + 9 * (run * C * K + k * C + c * outputs));
            }
            free(V), free(D), free(dU);
        }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long c = 0; c < C; c++)
            for (long k = 0; k < K; k += 16) {
                const long part = c / 64 * 64, inputs = least(C - part, 64);
                const long panel = k / 64 * 64, outputs = least(K - panel, 64);
                const float *from = made + 9 * (panel * C + part * outputs) + (c - part) * outputs + k - panel;
                __m512 sum[9] = {};
                for (long run = 0; run < runs; run++)
                    for (int t = 0; t < 9; t++) sum[t] += _mm512_loadu_ps(from + 9 * run * C * K + t * inputs * outputs);
                for (int n = 0; n < 16; n++)
                    for (int t = 0; t < 9; t++) dw[(channel_at(k + n, K) * C + channel_at(c, C)) * 9 + t] = sum[t][n];
            }
        for (long k = 0; k < K; k++) {
            double sum = 0;
            for (long block = 0; block < blocks; block++) sum += sums[block * K + k];
            dbias[channel_at(k, K)] = sum;
        }
    }
    free(nothing), free(made), free(sums);
    return fine ? 0 : 1;
}
