// Tiles of Winograd's F(2x2, 3x3): where they lie in an image, and what of them is multiplied.

#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#define INLINE inline __attribute__((always_inline))

// The convolution's own H and W. An image that is doubled before comes with half of both; of a
// gradient that is halved after, by sums over 2 x 2, half of both is written. Either way a tile's
// third row and column of 4 add nothing, and 9 products do.
enum Kind { PLAIN, DOUBLED, HALVED };
struct Image { long B, H, W, C, K; Kind kind; const uint16_t *nothing; };

static INLINE bool adds_nothing(const Image &s, int position) {
    return s.kind != PLAIN && (position / 4 == 2 || position % 4 == 2);
}

static INLINE __m512 load16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static INLINE __m512 evens(const uint16_t *p) {  // of 32, which needs no shuffles
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
static INLINE __m512 odds(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(0xffff0000)));
}
static INLINE __m256i rounded(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
static INLINE __m512i side_by_side(__m512 low, __m512 high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// Which tile comes next, by image and upper left pixel of the result.
struct Place {
    long b, row, col;
    Place(const Image &s, long tile) {
        const long tw = (s.W + 1) / 2, th = (s.H + 1) / 2;
        b = tile / (th * tw), row = tile / tw % th * 2, col = tile % tw * 2;
    }
    void next(const Image &s) {
        if ((col += 2) < s.W) return;
        col = 0;
        if ((row += 2) < s.H) return;
        row = 0, b++;
    }
};

// The pixels of one tile, or of two side by side: 4 x 4 of an image, 2 x 2 of a gradient; outside, a line of zeros.
struct Tiles { const uint16_t *at[4][8]; };

template <bool GRADIENT>
static INLINE void found(const uint16_t *x, const Image &s, long C, const Place &place, int column, Tiles &pixels) {
    const int side = GRADIENT ? 2 : 4, half = !GRADIENT && s.kind == DOUBLED;
    const uint16_t *rows[4];
    long cols[4];
    for (int i = 0; i < side; i++) {
        const long y = place.row + i - !GRADIENT, z = place.col + i - !GRADIENT;
        const bool in = place.b < s.B && y >= 0 && y < s.H;
        rows[i] = in ? x + (place.b * (s.H >> half) + (y >> half)) * (s.W >> half) * C : nullptr;
        cols[i] = z >= 0 && z < s.W ? (z >> half) * C : -1;
    }
    for (int r = 0; r < side; r++)
        for (int q = 0; q < side; q++)
            pixels.at[r][column + q] = rows[r] && cols[q] >= 0 ? rows[r] + cols[q] : s.nothing;
}

// 32 channels come as the 16 of even number, then the 16 of odd number. This comes at place c of C:
static INLINE long channel_at(long c, long C) {
    return c / 32 * 32 + 32 > C ? c : c / 32 * 32 + c % 16 * 2 + c / 16 % 2;
}

// 16 channels of N columns of pixels, at place c of C, by rows: of B^T d for an image, of A d for a gradient. A's last
// row and column are 1 here, not -1.
template <bool GRADIENT, int N> struct Columns {
    __m512 d[4][N];

    INLINE Columns(const Tiles &pixels, long c, long C) {
        if (c / 32 * 32 + 32 > C) take(pixels, c, load16);
        else if (c % 32 == 0) take(pixels, c, evens);
        else take(pixels, c - 16, odds);
    }
    template <class Load> INLINE void take(const Tiles &pixels, long c, Load load) {
#pragma GCC unroll 8
        for (int q = 0; q < N; q++) {
            const __m512 a = load(pixels.at[0][q] + c), e = load(pixels.at[1][q] + c);
            if (GRADIENT) {
                d[0][q] = a, d[1][q] = a + e, d[2][q] = a - e, d[3][q] = e;
                continue;
            }
            const __m512 f = load(pixels.at[2][q] + c), g = load(pixels.at[3][q] + c);
            d[0][q] = a - f, d[1][q] = e + f, d[2][q] = f - e, d[3][q] = e - g;
        }
    }
    // Four positions of the tile that begins at a column: a row times B or A^T.
    INLINE void row(int r, int column, __m512 *to) const {
        const __m512 a = d[r][column], e = d[r][column + 1];
        if (GRADIENT) {
            to[0] = a, to[1] = a + e, to[2] = a - e, to[3] = e;
            return;
        }
        const __m512 f = d[r][column + 2], g = d[r][column + 3];
        to[0] = a - f, to[1] = e + f, to[2] = f - e, to[3] = e - g;
    }
};

// From one of 16 positions to the next, of n numbers each: a line between them keeps them apart in the cache.
template <class T> constexpr long apart(long n) { return n + 64 / sizeof(T); }

// A block of tiles, V[position][tile][C].
static void in_rows(const uint16_t *x, const Image &s, long from, long tiles, long T, uint16_t *V) {
    const long step = apart<uint16_t>(T * s.C);
    Place place(s, from);
    Tiles tile;
    for (long i = 0; i < tiles; i++, place.next(s)) {
        found<false>(x, s, s.C, place, 0, tile);
        uint16_t *to = V + i * s.C;
        __m512 d[4], e[4];
        for (long c = 0; c + 32 <= s.C; c += 32) {
            const Columns<false, 4> even(tile, c, s.C), odd(tile, c + 16, s.C);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                even.row(r, 0, d), odd.row(r, 0, e);
#pragma GCC unroll 4
                for (int q = 0; q < 4; q++)
                    _mm512_storeu_si512(to + (4 * r + q) * step + c, (__m512i)_mm512_cvtne2ps_pbh(e[q], d[q]));
            }
        }
        if (s.C % 32 == 0) continue;
        const long c = s.C - 16;
        const Columns<false, 4> last(tile, c, s.C);
        for (int r = 0; r < 4; r++) {
            last.row(r, 0, d);
            for (int q = 0; q < 4; q++) _mm256_storeu_si256((__m256i *)(to + (4 * r + q) * step + c), rounded(d[q]));
        }
    }
}

// What sums over tiles take, of up to 64 channels of a few pairs of tiles: [position][panel][pair][wide][2],
// panels of `wide` channels.
static const long PAIRS = 32, POSITION = apart<uint16_t>(2 * PAIRS * 64);

// 16 channels of a pair, whose second tile begins at column N - side.
template <bool GRADIENT, int N>
static INLINE void in_pair(const Tiles &pixels, long c, long C, uint16_t *to, float *sums) {
    const Columns<GRADIENT, N> columns(pixels, c, C);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        __m512 d[4], e[4];
        columns.row(r, 0, d), columns.row(r, N - (GRADIENT ? 2 : 4), e);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) _mm512_storeu_si512(to + (4 * r + q) * POSITION, side_by_side(d[q], e[q]));
        if (sums && r == 1) _mm512_storeu_ps(sums, _mm512_loadu_ps(sums) + (d[1] + e[1]));
    }
}

// Places c to c + n of C channels, zeros past the last tile. `sums` [n], where given, gains a gradient's pixels.
template <bool GRADIENT>
static void in_pairs(const uint16_t *x, const Image &s, long C, long c, long n, long from, long tiles, long wide,
                     uint16_t *to, float *sums) {
    Place place(s, from);
    Tiles pixels;
    for (long i = 0; i < tiles; i += 2) {
        found<GRADIENT>(x, s, C, place, 0, pixels);
        const long col = place.col;
        place.next(s);
        const bool beside = place.col == col + 2;  // Then the tiles of an image share two columns.
        found<GRADIENT>(x, s, C, place, GRADIENT || beside ? 2 : 4, pixels);
        place.next(s);
        for (long q = 0; q < n; q += 16) {
            uint16_t *at = to + 2 * ((q / wide * PAIRS + i / 2) * wide + q % wide);
            if (GRADIENT) in_pair<true, 4>(pixels, c + q, C, at, sums ? sums + q : nullptr);
            else if (beside) in_pair<false, 6>(pixels, c + q, C, at, nullptr);
            else in_pair<false, 8>(pixels, c + q, C, at, nullptr);
        }
    }
}
