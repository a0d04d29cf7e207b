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
struct Image { long B, H, W, C, K; Kind kind; };

static INLINE bool adds_nothing(const Image &s, int position) {
    return s.kind != PLAIN && (position / 4 == 2 || position % 4 == 2);
}

static INLINE __m512 load16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static INLINE __m256i rounded(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
static INLINE __m512i side_by_side(__m256i low, __m256i high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// The pixels of a tile: 4 x 4 of an image, 2 x 2 of a gradient; null outside.
struct Tile { const uint16_t *at[16]; };

template <bool GRADIENT>
static Tile found(const uint16_t *x, const Image &s, long C, long tile, bool there) {
    const long tw = (s.W + 1) / 2, th = (s.H + 1) / 2, b = tile / (th * tw);
    const long y = tile / tw % th * 2 - !GRADIENT, z = tile % tw * 2 - !GRADIENT, side = GRADIENT ? 2 : 4;
    const int half = !GRADIENT && s.kind == DOUBLED;
    Tile pixels = {};
    for (long r = 0; r < side; r++)
        for (long q = 0; q < side; q++)
            if (there && y + r >= 0 && y + r < s.H && z + q >= 0 && z + q < s.W)
                pixels.at[4 * r + q] = x + ((b * (s.H >> half) + ((y + r) >> half)) * (s.W >> half) + ((z + q) >> half)) * C;
    return pixels;
}

// 16 channels of it: B^T d B of an image, A d A^T of a gradient.
template <bool GRADIENT> static INLINE void transformed(const Tile &pixels, long c, __m512 *d) {
    const int side = GRADIENT ? 2 : 4;
#pragma GCC unroll 4
    for (int r = 0; r < side; r++)
#pragma GCC unroll 4
        for (int q = 0; q < side; q++) {
            const uint16_t *at = pixels.at[4 * r + q];
            d[4 * r + q] = at ? load16(at + c) : _mm512_setzero_ps();
        }
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
    for (long i = 0; i < tiles; i++) {
        const Tile tile = found<false>(x, s, s.C, from + i, true);
        for (long c = 0; c < s.C; c += 16) {
            __m512 d[16];
            transformed<false>(tile, c, d);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) _mm256_storeu_si256((__m256i *)(V + (j * T + i) * s.C + c), rounded(d[j]));
        }
    }
}

// A block of tiles, in pairs as sums over tiles take them: [position][tile / 2][C][2], zeros past the
// last. `sums` [C], where given, gains every pixel of a gradient.
template <bool GRADIENT>
static void in_pairs(const uint16_t *x, const Image &s, long C, long from, long tiles, long T, uint16_t *to, float *sums) {
    for (long i = 0; i < (tiles + 1) / 2; i++) {
        const Tile first = found<GRADIENT>(x, s, C, from + 2 * i, true);
        const Tile second = found<GRADIENT>(x, s, C, from + 2 * i + 1, 2 * i + 1 < tiles);
        for (long c = 0; c < C; c += 16) {
            __m512 d[16];
            __m256i low[16];
            transformed<GRADIENT>(first, c, d);
            __m512 sum = d[5];  // Of a gradient: its four pixels.
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) low[j] = rounded(d[j]);
            transformed<GRADIENT>(second, c, d);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++)
                _mm512_storeu_si512(to + ((j * T / 2 + i) * C + c) * 2, side_by_side(low[j], rounded(d[j])));
            if (sums) _mm512_storeu_ps(sums + c, _mm512_loadu_ps(sums + c) + sum + d[5]);
        }
    }
}
