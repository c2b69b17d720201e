#include "bench/machine.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "problem/parallel.h"

namespace assay::bench {

namespace {

using Clock = std::chrono::steady_clock;

// Written through a vector extension or intrinsics, never left to the vectoriser. The multiply-add has to be an
// intrinsic: with contraction off, a * b + c on vectors is two instructions.
#if defined(__AVX512F__)
using Lanes = __m512;
Lanes broadcast(float x) { return _mm512_set1_ps(x); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
constexpr const char* extension = "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
using Lanes = __m256;
Lanes broadcast(float x) { return _mm256_set1_ps(x); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
constexpr const char* extension = "AVX2";
#else
using Lanes = float __attribute__((vector_size(16)));
Lanes broadcast(float x) { return Lanes{x, x, x, x}; }
#ifdef __FP_FAST_FMAF
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return Lanes{std::fma(a[0], b[0], c[0]), std::fma(a[1], b[1], c[1]), std::fma(a[2], b[2], c[2]), std::fma(a[3], b[3], c[3])};
}
#else
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return a * b + c; }
#endif
constexpr const char* extension = "128-bit vectors";
#endif

volatile float float_sink;
volatile float factor = 0.999f, addend = 0.001f;  // as constants, clang finds an accumulator that stays 1 and drops it
volatile std::uint64_t word_sink;

constexpr int accumulators = 12;  // two units of latency four need eight; more than twelve may spill on AVX2

// Returns the floating-point operations done. The accumulators have names because gcc 12 keeps an array of them
// on the stack.
double fma_burst(int rounds) {
  const Lanes x = broadcast(factor), y = broadcast(addend);
  Lanes a0 = broadcast(0), a1 = broadcast(1), a2 = broadcast(2), a3 = broadcast(3), a4 = broadcast(4), a5 = broadcast(5);
  Lanes a6 = broadcast(6), a7 = broadcast(7), a8 = broadcast(8), a9 = broadcast(9), a10 = broadcast(10), a11 = broadcast(11);
  for (int i = 0; i < rounds; ++i) {
    a0 = multiply_add(a0, x, y), a1 = multiply_add(a1, x, y), a2 = multiply_add(a2, x, y), a3 = multiply_add(a3, x, y);
    a4 = multiply_add(a4, x, y), a5 = multiply_add(a5, x, y), a6 = multiply_add(a6, x, y), a7 = multiply_add(a7, x, y);
    a8 = multiply_add(a8, x, y), a9 = multiply_add(a9, x, y), a10 = multiply_add(a10, x, y), a11 = multiply_add(a11, x, y);
  }
  const Lanes sum = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7)) + ((a8 + a9) + (a10 + a11));
  float first;
  std::memcpy(&first, &sum, sizeof first);
  float_sink = first;
  return 2.0 * accumulators * (sizeof(Lanes) / sizeof(float)) * rounds;
}

using Words = std::uint64_t __attribute__((vector_size(64)));  // a cache line; narrower registers take several loads

void read_block(const Words* p, std::size_t lines, std::size_t passes) {
  Words a{}, b{}, c{}, d{};
  for (std::size_t pass = 0; pass < passes; ++pass)
    for (std::size_t i = 0; i + 8 <= lines; i += 8) {
      a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3];
      a += p[i + 4], b += p[i + 5], c += p[i + 6], d += p[i + 7];
    }
  const Words all = (a + b) + (c + d);
  word_sink = all[0] + all[1] + all[2] + all[3] + all[4] + all[5] + all[6] + all[7];
}

// Work done by all threads until the time is up, over the wall time that they took. `step` returns its work.
template <class Step>
double rate(int threads, double seconds, const Step& step) {
  std::atomic<double> total{0};
  const auto start = Clock::now();
  const auto deadline = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  parallel_for(threads, threads, [&](Index t) {
    double done = 0;
    while (Clock::now() < deadline) done += step(t);
    total += done;
  });
  return total / std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double fma_gflops(int threads, double seconds) {
  return rate(threads, seconds, [](Index) { return fma_burst(5000); }) * 1e-9;
}

double read_gigabytes_per_second(std::size_t bytes, int threads, double seconds) {
  const std::size_t lines = std::max<std::size_t>(8, bytes / sizeof(Words)) / 8 * 8;
  std::vector<std::unique_ptr<Words[]>> blocks;
  for (int t = 0; t < threads; ++t) {
    blocks.emplace_back(new Words[lines]);
    std::memset(blocks.back().get(), t + 1, lines * sizeof(Words));  // untouched pages would all be the zero page
  }
  const std::size_t passes = 1 + (std::size_t{1} << 20) / (lines * sizeof(Words));  // look at the clock once a MiB
  return rate(threads, seconds,
              [&](Index t) {
                read_block(blocks[static_cast<std::size_t>(t)].get(), lines, passes);
                return static_cast<double>(passes * lines * sizeof(Words));
              }) *
         1e-9;
}

const char* measured_with() { return extension; }

}  // namespace assay::bench
