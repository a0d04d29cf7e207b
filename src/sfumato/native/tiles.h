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

// The pixels of a tile: 4 x 4 of an image, 2 x 2 of a gradient; outside, a line of zeros.
struct Tile { const uint16_t *at[16]; };

template <bool GRADIENT>
static INLINE Tile found(const uint16_t *x, const Image &s, long C, const Place &place) {
    const int side = GRADIENT ? 2 : 4, half = !GRADIENT && s.kind == DOUBLED;
    const uint16_t *rows[4];
    long cols[4];
    for (int i = 0; i < side; i++) {
        const long y = place.row + i - !GRADIENT, z = place.col + i - !GRADIENT;
        const bool in = place.b < s.B && y >= 0 && y < s.H;
        rows[i] = in ? x + (place.b * (s.H >> half) + (y >> half)) * (s.W >> half) * C : nullptr;
        cols[i] = z >= 0 && z < s.W ? (z >> half) * C : -1;
    }
    Tile pixels;
    for (int r = 0; r < side; r++)
        for (int q = 0; q < side; q++) pixels.at[4 * r + q] = rows[r] && cols[q] >= 0 ? rows[r] + cols[q] : s.nothing;
    return pixels;
}

// 16 channels of it: B^T d B of an image, A d A^T of a gradient.
template <bool GRADIENT> static INLINE void transformed(const Tile &pixels, long c, __m512 *d) {
    const int side = GRADIENT ? 2 : 4;
#pragma GCC unroll 4
    for (int r = 0; r < side; r++)
#pragma GCC unroll 4
        for (int q = 0; q < side; q++) d[4 * r + q] = load16(pixels.at[4 * r + q] + c);
    if (GRADIENT) {
#pragma GCC unroll 2
        for (int q = 0; q < 2; q++) {
            __m512 a = d[q], e = d[4 + q];
            d[4 + q] = a + e, d[8 + q] = a - e, d[12 + q] = -e;
        }
#pragma GCC unroll 4
        for (int r = 0; r < 16; r += 4) {
            __m512 a = d[r], e = d[r + 1];
            d[r + 1] = a + e, d[r + 2] = a - e, d[r + 3] = -e;
        }
    } else {
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512 a = d[q], e = d[4 + q], f = d[8 + q], g = d[12 + q];
            d[q] = a - f, d[4 + q] = e + f, d[8 + q] = f - e, d[12 + q] = e - g;
        }
#pragma GCC unroll 4
        for (int r = 0; r < 16; r += 4) {
            __m512 a = d[r], e = d[r + 1], f = d[r + 2], g = d[r + 3];
            d[r] = a - f, d[r + 1] = e + f, d[r + 2] = f - e, d[r + 3] = e - g;
        }
    }
}

// A block of tiles, V[position][tile][C].
static void in_rows(const uint16_t *x, const Image &s, long from, long tiles, long T, uint16_t *V) {
    Place place(s, from);
    for (long i = 0; i < tiles; i++, place.next(s)) {
        const Tile tile = found<false>(x, s, s.C, place);
        for (long c = 0; c < s.C; c += 16) {
            __m512 d[16];
            transformed<false>(tile, c, d);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) _mm256_storeu_si256((__m256i *)(V + (j * T + i) * s.C + c), rounded(d[j]));
        }
    }
}

// What sums over tiles take, of up to 64 channels of a few pairs of tiles: [position][panel][pair][wide][2],
// panels of `wide` channels. The line between positions keeps them apart in the cache.
static const long PAIRS = 32, POSITION = 2 * PAIRS * 64 + 32;

// Channels c to c + n of C, zeros past the last tile. `sums` [n], where given, gains a gradient's pixels.
template <bool GRADIENT>
static void in_pairs(const uint16_t *x, const Image &s, long C, long c, long n, long from, long tiles, long wide,
                     uint16_t *to, float *sums) {
    Place place(s, from);
    for (long i = 0; i < tiles; i += 2) {
        const Tile first = found<GRADIENT>(x, s, C, place);
        place.next(s);
        const Tile second = found<GRADIENT>(x, s, C, place);
        place.next(s);
        for (long q = 0; q < n; q += 16) {
            __m512 d[16], e[16];
            transformed<GRADIENT>(first, c + q, d);
            transformed<GRADIENT>(second, c + q, e);
            uint16_t *at = to + 2 * ((q / wide * PAIRS + i / 2) * wide + q % wide);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) _mm512_storeu_si512(at + j * POSITION, side_by_side(d[j], e[j]));
            if (sums) _mm512_storeu_ps(sums + q, _mm512_loadu_ps(sums + q) + (d[5] + e[5]));
        }
    }
}
