// Inside oracle/: vectors of doubles or floats, in the vector extension of gcc and clang. They
// serve the sums of a bound that are not matrix products: sums of absolute values of differences,
// and of partial sums.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __FMA__
#include <immintrin.h>
#endif

namespace assay {

// A vector fills a register. gcc takes wider ones apart, and moves their elements one by one.
#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

using Doubles = double __attribute__((vector_size(vector_bytes)));
using Floats = float __attribute__((vector_size(vector_bytes)));

template <class T>
using LanesOf = std::conditional_t<std::is_same_v<T, float>, Floats, Doubles>;
template <class T>
inline constexpr int lanes_of = vector_bytes / sizeof(T);
inline constexpr int lane_count = lanes_of<double>;

template <class T>
inline LanesOf<T> load_lanes(const T* p) {
  LanesOf<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_lanes(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }
inline void store_lanes(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline Doubles absolute(Doubles v) {
  using Bits = std::int64_t __attribute__((vector_size(vector_bytes)));
  return (Doubles)((Bits)v & INT64_C(0x7FFFFFFFFFFFFFFF));
}
inline Floats absolute(Floats v) {
  using Bits = std::int32_t __attribute__((vector_size(vector_bytes)));
  return (Floats)((Bits)v & INT32_C(0x7FFFFFFF));
}
inline Doubles larger(Doubles a, Doubles b) { return a > b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }
inline Doubles smaller(Doubles a, Doubles b) { return a < b ? a : b; }
inline double smaller(double a, double b) { return a < b ? a : b; }
inline double absolute(double x) { return __builtin_fabs(x); }

// Computes a b + c, with one rounding or two.
inline Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline double sum_of(Doubles v) {
  double sum = 0;
  for (int l = 0; l < lane_count; ++l) sum += v[l];
  return sum;
}
inline double largest_of(Doubles v) {
  double most = v[0];
  for (int l = 1; l < lane_count; ++l) most = v[l] > most ? v[l] : most;
  return most;
}

// Calls body(j, lanes) for each whole vector of indices of [first, last), and then for each of the
// remaining indices. `lanes` is a Doubles or a double.
template <class Body>
inline void for_lanes(std::int64_t first, std::int64_t last, const Body& body) {
  std::int64_t j = first;
  for (; j + lane_count <= last; j += lane_count) body(j, Doubles{});
  for (; j < last; ++j) body(j, 0.0);
}
template <class L>
inline L load_as(const double* p) {
  if constexpr (std::is_same_v<L, double>) return *p;
  else return load_lanes(p);
}
inline void store_lanes(double* p, double x) { *p = x; }

// A running sum of vectors and of single numbers.
struct LaneSum {
  Doubles lanes{};
  double rest = 0;
  void add(Doubles v) { lanes += v; }
  void add(double x) { rest += x; }
  double total() const { return sum_of(lanes) + rest; }
};
struct LaneMax {
  Doubles lanes;
  double rest;
  explicit LaneMax(double least) : lanes(least - Doubles{}), rest(least) {}
  void add(Doubles v) { lanes = larger(v, lanes); }
  void add(double x) { rest = larger(x, rest); }
  double total() const { return larger(largest_of(lanes), rest); }
};

}  // namespace assay
