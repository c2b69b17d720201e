#include "bench/machine.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "problem/clock.h"
#include "problem/parallel.h"

namespace assay::bench {

namespace {

// These loops use a vector extension or intrinsics and never rely on the vectoriser. The
// multiply-add has to be an intrinsic: contraction is off, so a * b + c on vectors would be two
// instructions. step(a, x, y) is a chain of multiply-adds through a.
#if defined(__AVX512F__)
struct Single {
  using Lanes = __m512;
  static Lanes broadcast(float x) { return _mm512_set1_ps(x); }
  static Lanes step(Lanes a, Lanes x, Lanes y) { return _mm512_fmadd_ps(a, x, y); }
  static constexpr int flops = 32;
};
struct Double {
  using Lanes = __m512d;
  static Lanes broadcast(float x) { return _mm512_set1_pd(static_cast<double>(x)); }
  static Lanes step(Lanes a, Lanes x, Lanes y) { return _mm512_fmadd_pd(a, x, y); }
  static constexpr int flops = 16;
};
constexpr const char* extension = "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
struct Single {
  using Lanes = __m256;
  static Lanes broadcast(float x) { return _mm256_set1_ps(x); }
  static Lanes step(Lanes a, Lanes x, Lanes y) { return _mm256_fmadd_ps(a, x, y); }
  static constexpr int flops = 16;
};
struct Double {
  using Lanes = __m256d;
  static Lanes broadcast(float x) { return _mm256_set1_pd(static_cast<double>(x)); }
  static Lanes step(Lanes a, Lanes x, Lanes y) { return _mm256_fmadd_pd(a, x, y); }
  static constexpr int flops = 8;
};
constexpr const char* extension = "AVX2";
#else
template <class T>
struct Short {
  using Lanes = T __attribute__((vector_size(16)));
  static constexpr int lanes = 16 / sizeof(T), flops = 2 * lanes;
  static Lanes broadcast(float x) { return Lanes{} + static_cast<T>(x); }
  static Lanes step(Lanes a, Lanes x, Lanes y) {
#ifdef __FP_FAST_FMAF
    for (int l = 0; l < lanes; ++l) a[l] = std::fma(a[l], x[l], y[l]);
    return a;
#else
    return a * x + y;
#endif
  }
};
using Single = Short<float>;
using Double = Short<double>;
constexpr const char* extension = "128-bit vectors";
#endif

#ifdef __AVX512FP16__
struct Half {
  using Lanes = __m512h;
  static Lanes broadcast(float x) { return _mm512_set1_ph(static_cast<_Float16>(x)); }
  static Lanes step(Lanes a, Lanes x, Lanes y) { return _mm512_fmadd_ph(a, x, y); }
  static constexpr int flops = 64;
};
#endif
#if defined(__AVX512BF16__) && defined(__AVX512F__)
struct Brain {
  using Lanes = __m512;
  static Lanes broadcast(float x) { return _mm512_set1_ps(x); }
  // Any bits will do: the two halves of such a float are numbers of moderate size.
  static Lanes step(Lanes a, Lanes x, Lanes y) {
    return _mm512_dpbf16_ps(a, std::bit_cast<__m512bh>(x), std::bit_cast<__m512bh>(y));
  }
  static constexpr int flops = 64;
};
#endif

volatile float float_sink;
// volatile, because clang would find that an accumulator of constants stays 1, and would drop it
volatile float factor = 0.999f, addend = 0.001f;
volatile std::uint64_t word_sink;

// two units with latency four need eight; more than twelve may spill on AVX2
constexpr int accumulators = 12;

// Returns the number of floating-point operations done. The accumulators have names, because gcc 12
// would keep an array of them on the stack.
template <class Ops>
double fma_burst(int rounds) {
  using Lanes = typename Ops::Lanes;
  const Lanes x = Ops::broadcast(factor), y = Ops::broadcast(addend);
  Lanes a0 = Ops::broadcast(0), a1 = Ops::broadcast(1), a2 = Ops::broadcast(2),
        a3 = Ops::broadcast(3);
  Lanes a4 = Ops::broadcast(4), a5 = Ops::broadcast(5), a6 = Ops::broadcast(6),
        a7 = Ops::broadcast(7);
  Lanes a8 = Ops::broadcast(8), a9 = Ops::broadcast(9), a10 = Ops::broadcast(10),
        a11 = Ops::broadcast(11);
  for (int i = 0; i < rounds; ++i) {
    a0 = Ops::step(a0, x, y), a1 = Ops::step(a1, x, y), a2 = Ops::step(a2, x, y),
    a3 = Ops::step(a3, x, y);
    a4 = Ops::step(a4, x, y), a5 = Ops::step(a5, x, y), a6 = Ops::step(a6, x, y),
    a7 = Ops::step(a7, x, y);
    a8 = Ops::step(a8, x, y), a9 = Ops::step(a9, x, y), a10 = Ops::step(a10, x, y),
    a11 = Ops::step(a11, x, y);
  }
  const Lanes sum = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7)) + ((a8 + a9) + (a10 + a11));
  float first;
  std::memcpy(&first, &sum, sizeof first);
  float_sink = first;
  return static_cast<double>(accumulators) * Ops::flops * rounds;
}

// a cache line; narrower registers take several loads
using Words = std::uint64_t __attribute__((vector_size(64)));

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

// Returns the work that all threads do until the time is up, divided by the wall time that they
// took. `step` returns its work.
template <class Step>
double rate(int threads, double seconds, const Step& step) {
  std::atomic<double> total{0};
  const auto start = Clock::now();
  const auto deadline = seconds_from_now(seconds);
  parallel_for(threads, threads, [&](Index t) {
    double done = 0;
    while (Clock::now() < deadline) done += step(t);
    total += done;
  });
  return total / seconds_since(start);
}

}  // namespace

double fma_gflops(int threads, double seconds, Dtype dtype) {
  auto measure = [&](double (*burst)(int)) {
    return rate(threads, seconds, [burst](Index) { return burst(5000); }) * 1e-9;
  };
  switch (dtype) {
    case Dtype::f32: return measure(fma_burst<Single>);
    case Dtype::f64: return measure(fma_burst<Double>);
#ifdef __AVX512FP16__
    case Dtype::f16: return measure(fma_burst<Half>);
#endif
#if defined(__AVX512BF16__) && defined(__AVX512F__)
    case Dtype::bf16: return measure(fma_burst<Brain>);
#endif
    default: return 0;
  }
}

Reader::Reader(const void* data, std::size_t bytes, int threads)
    : data_(data),
      share_(bytes / usize(threads) / sizeof(Words) / 8 * 8 * sizeof(Words)),
      at_line_(usize(threads)) {}

double Reader::gigabytes_per_second(double seconds) {
  // the clock is read once in each MiB
  constexpr std::size_t piece = (std::size_t{1} << 20) / sizeof(Words);
  const std::size_t lines = share_ / sizeof(Words);
  if (lines == 0) return 0;
  return rate(static_cast<int>(at_line_.size()), seconds,
              [&](Index thread) {
                const auto t = usize(thread);
                const auto* const mine = static_cast<const Words*>(data_) + t * lines;
                const std::size_t count = std::min(piece, lines - at_line_[t]),
                                  passes = lines < piece ? piece / lines : 1;
                read_block(mine + at_line_[t], count, passes);
                at_line_[t] = (at_line_[t] + count) % lines;
                return static_cast<double>(passes * count * sizeof(Words));
              }) *
         1e-9;
}

double read_gigabytes_per_second(std::size_t bytes, int threads, double seconds) {
  const std::size_t lines = (bytes / sizeof(Words) + 7) / 8 * 8 * usize(threads);
  const std::unique_ptr<Words[]> block(new Words[lines]);
  // pages that were never written would all be the same page of zeros
  std::memset(block.get(), 1, lines * sizeof(Words));
  return Reader(block.get(), lines * sizeof(Words), threads).gigabytes_per_second(seconds);
}

const char* measured_with() { return extension; }

}  // namespace assay::bench
