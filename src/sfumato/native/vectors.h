// 16 numbers at a time, in whatever registers there are: bfloat16 and float32 in and out, SiLU's
// sigmoid, dropout's mask.

#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(64)));  // 16 channels
typedef uint32_t bits __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));
struct bfloat16 { uint16_t bits; };

static INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

static INLINE vec load(const bfloat16 *p) {
    halves h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, bits) << 16);
}

static INLINE void store(bfloat16 *p, vec v) {  // To the nearest, ties to even; NaN stays NaN.
#ifdef __AVX512BF16__
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &rounded, sizeof rounded);
#else
    bits b = (bits)v;
    bits rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    bits odd = (bits)(v != v);
    halves h = __builtin_convertvector((rounded & ~odd) | (0x7fc0 & odd), halves);
    memcpy(p, &h, sizeof h);
#endif
}

// 1 / (1 + exp(-z)). exp is 2^n times a polynomial of the rest (Cephes' expf).
static INLINE vec sigmoid(vec z) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    vec x = -z;
    x = x > 89.0f ? (vec{} + 89.0f) : x;  // 2^128 is infinity, and the result 0
    x = x < -87.0f ? (vec{} - 87.0f) : x;
    vec shifted = x * 1.44269504f + magic;
    vec n = shifted - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    bits power = ((bits)shifted + 127) << 23;  // The sum's last bits are n.
    return 1.0f / (1.0f + p * (vec)power);
}

// The same, and z times it, for numbers of type T, from which results of its precision are made. To
// bfloat16: within 2^-17 and 2^-14 of it. 2^f is a polynomial of least relative error on [-1/2, 1/2].
template <class T> static INLINE vec sigmoid_for(vec z) { return sigmoid(z); }
template <class T> static INLINE vec silu_for(vec z) { return z * sigmoid(z); }
#ifdef __AVX512F__
static INLINE vec one_and_exp(vec z) {  // infinite from 2^128 on
    __m512 t = (__m512)(z * 1.44269504f), n = _mm512_roundscale_ps(t, 0);
    vec f = (vec)(t - n);
    vec p = (((0.00957010173f * f + 0.0559178606f) * f + 0.240247448f) * f + 0.693121815f) * f + 0.999999261f;
    return 1.0f + (vec)_mm512_scalef_ps((__m512)p, n);
}
template <> INLINE vec sigmoid_for<bfloat16>(vec z) {
    vec below = one_and_exp(-z), r = (vec)_mm512_rcp14_ps((__m512)below);
    vec near = (vec)_mm512_min_ps((__m512)(below * r), _mm512_set1_ps(2.0f));  // infinity by 0: 2
    return r * (2.0f - near);
}
template <> INLINE vec silu_for<bfloat16>(vec z) { return z * (vec)_mm512_rcp14_ps((__m512)one_and_exp(-z)); }
#endif

// Which elements are dropped: element i of the seed's sequence, whoever asks and in what order.
struct Mask {
    uint32_t kept;  // of 65536; all of them: no dropout
    uint64_t seed;
};

static INLINE bits mixed(bits h) {
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    return h ^ (h >> 16);
}

// Zeroes or scales N vectors, the first of which starts at element `at` of the batch.
template <int N> static INLINE void drop(vec *v, const Mask &mask, uint64_t at) {
    const bits lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const uint32_t low = (uint32_t)mask.seed, high = (uint32_t)(mask.seed >> 32);
    bits h = mixed(lane + (uint32_t)at + low);
    h = mixed(h + high + (uint32_t)(at >> 32) * 0x9e3779b9u);
    const float gain = 65536.0f / mask.kept;
    for (int j = 0; j < N; j++) {
        bits draw = j ? h >> 16 : h & 0xffff;
        v[j] = (vec)((bits)(v[j] * gain) & (bits)(draw < mask.kept));
    }
}
