// numpy's standard normal numbers of many Philox generators at once, to the last bit: its own
// ziggurat (libnpyrandom, which numpy ships to be linked) on counters that are set, not consumed.

#include <cstdint>
#include <cstdlib>

#include <numpy/random/bitgen.h>

extern "C" void random_standard_normal_fill(bitgen_t *, intptr_t, double *);

// Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
struct Philox {
    uint64_t counter[4], key[2], drawn[4];
    int next;
};

static void draw(Philox &s) {
    for (int i = 0; i < 4 && ++s.counter[i] == 0; i++) {}
    uint64_t c[4] = {s.counter[0], s.counter[1], s.counter[2], s.counter[3]}, k[2] = {s.key[0], s.key[1]};
    for (int round = 0; round < 10; round++) {
        if (round) k[0] += 0x9E3779B97F4A7C15u, k[1] += 0xBB67AE8584CAA73Bu;
        const unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93u * c[0];
        const unsigned __int128 b = (unsigned __int128)0xCA5A826395121157u * c[2];
        const uint64_t one = c[1], three = c[3];
        c[0] = (uint64_t)(b >> 64) ^ one ^ k[0], c[1] = (uint64_t)b;
        c[2] = (uint64_t)(a >> 64) ^ three ^ k[1], c[3] = (uint64_t)a;
    }
    for (int i = 0; i < 4; i++) s.drawn[i] = c[i];
    s.next = 0;
}

static uint64_t next64(void *state) {
    Philox &s = *(Philox *)state;
    if (s.next == 4) draw(s);
    return s.drawn[s.next++];
}
static uint32_t next32(void *state) { return (uint32_t)next64(state); }  // The ziggurat asks for none.
static double next_double(void *state) { return (next64(state) >> 11) * (1.0 / 9007199254740992.0); }

// out [n, each] of float32 or float64: image i's numbers are those of key seeds[i] from the counter
// (0, cell, purpose, number) on, times signs[i]. Returns 1 without memory.
extern "C" int noise_fill(void *out, int single, long n, long each, const uint64_t *seeds, const double *signs,
                          uint64_t cell, uint64_t purpose, uint64_t number, int threads) {
    bool fine = true;
#pragma omp parallel num_threads(threads) reduction(&& : fine)
    {
        double *line = single ? (double *)malloc(sizeof(double) * each) : nullptr;
        fine = line || !single;
#pragma omp for schedule(static)
        for (long i = 0; i < n; i++) {
            if (!fine) continue;
            Philox state = {{0, cell, purpose, number}, {seeds[i], 0}, {}, 4};
            bitgen_t bits = {&state, next64, next32, next_double, next64};
            double *to = single ? line : (double *)out + i * each;
            random_standard_normal_fill(&bits, each, to);
            for (long j = 0; j < each; j++)
                if (single) ((float *)out)[i * each + j] = (float)(signs[i] * to[j]);
                else to[j] *= signs[i];
        }
        free(line);
    }
    return fine ? 0 : 1;
}
