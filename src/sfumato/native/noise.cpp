// numpy's standard normal numbers of many Philox generators at once, to the last bit. Its ziggurat
// (libnpyrandom, which numpy ships to be linked) takes 99 of 100 numbers from one draw and a table:
// these are taken here, by tables that are asked of it, and the rest are its own.

#include <cstdint>
#include <cstring>

#include <numpy/random/bitgen.h>

extern "C" double random_standard_normal(bitgen_t *);

static const int BLOCKS = 16;  // drawn at once: one waits for its own products, others need not

// Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
struct Philox {
    uint64_t counter[4], key[2], drawn[4 * BLOCKS];
    int next;
};

static void draw(Philox &s) {
    for (int block = 0; block < BLOCKS; block++) {
        for (int i = 0; i < 4 && ++s.counter[i] == 0; i++) {}
        uint64_t c[4] = {s.counter[0], s.counter[1], s.counter[2], s.counter[3]}, k[2] = {s.key[0], s.key[1]};
        for (int round = 0; round < 10; round++) {
            const unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93u * c[0];
            const unsigned __int128 b = (unsigned __int128)0xCA5A826395121157u * c[2];
            c[0] = (uint64_t)(b >> 64) ^ c[1] ^ k[0], c[1] = (uint64_t)b;
            c[2] = (uint64_t)(a >> 64) ^ c[3] ^ k[1], c[3] = (uint64_t)a;
            k[0] += 0x9E3779B97F4A7C15u, k[1] += 0xBB67AE8584CAA73Bu;
        }
        for (int i = 0; i < 4; i++) s.drawn[4 * block + i] = c[i];
    }
    s.next = 0;
}

static uint64_t next64(void *state) {
    Philox &s = *(Philox *)state;
    if (s.next == 4 * BLOCKS) draw(s);
    return s.drawn[s.next++];
}
static double next_double(void *state) { return (next64(state) >> 11) * (1.0 / 9007199254740992.0); }

// A draw's lowest 8 bits choose a layer, the next is the sign, and 52 more, u, make u width[layer] a
// number where u is below inside[layer].
struct Tables { double width[256]; uint64_t inside[256]; };

struct Asked { uint64_t first; int draws; };
static uint64_t told64(void *state) {
    Asked &a = *(Asked *)state;
    return a.draws++ ? 1 << 9 : a.first;  // Whatever comes after the first: inside, and not 0.
}
static double told_double(void *state) { return ((Asked *)state)->draws++, 0.5; }

static bool is_inside(uint64_t layer, uint64_t u, double *number) {
    Asked asked = {layer | u << 9, 0};
    bitgen_t bits = {&asked, told64, nullptr, told_double, told64};
    *number = random_standard_normal(&bits);
    return asked.draws == 1;
}

// x, negated where the lowest bit is set: without a branch, which would be mistaken every other time.
static inline double signed_by(double x, uint64_t bit) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    bits ^= bit << 63;
    memcpy(&x, &bits, 8);
    return x;
}

extern "C" void noise_tables(Tables *tables) {
    for (uint64_t layer = 0; layer < 256; layer++) {
        uint64_t low = 0, high = 1ull << 52;  // What is inside is below high; low is inside, if anything.
        double number;
        while (high - low > 1) {
            const uint64_t middle = low + (high - low) / 2;
            (is_inside(layer, middle, &number) ? low : high) = middle;
        }
        tables->inside[layer] = low ? high : 0;
        tables->width[layer] = is_inside(layer, 1, &number) ? number : 0;
    }
}

// out [n, each] of float32 or float64: image i's numbers are those of key seeds[i] from the counter
// (0, cell, purpose, number) on, times signs[i].
extern "C" void noise_fill(const Tables *tables, void *out, int single, long n, long each, const uint64_t *seeds, const double *signs,
                          uint64_t cell, uint64_t purpose, uint64_t number, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n; i++) {
        Philox state = {{0, cell, purpose, number}, {seeds[i], 0}, {}, 4 * BLOCKS};
        bitgen_t bits = {&state, next64, nullptr, next_double, next64};
        for (long j = i * each; j < (i + 1) * each; j++) {
            const uint64_t r = next64(&state), layer = r & 255, u = r >> 9 & (1ull << 52) - 1;
            double x = u * tables->width[layer];
            x = signed_by(x, r >> 8);
            if (__builtin_expect(u >= tables->inside[layer], 0)) {
                state.next--;  // numpy draws it again.
                x = random_standard_normal(&bits);
            }
            if (single) ((float *)out)[j] = (float)(signs[i] * x);
            else ((double *)out)[j] = signs[i] * x;
        }
    }
}
