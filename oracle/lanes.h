// Inside oracle/: vectors of eight doubles or sixteen floats, in the vector extension of gcc and
// clang. They serve the sums of a bound that are not matrix products: sums of absolute values of
// differences, and of partial sums.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace assay {

using Lanes8 = double __attribute__((vector_size(64)));
using Lanes16 = float __attribute__((vector_size(64)));
inline constexpr int lane_count = 8;

template <class T>
using LanesOf = std::conditional_t<std::is_same_v<T, float>, Lanes16, Lanes8>;
template <class T>
inline constexpr int lanes_of = 64 / sizeof(T);

inline Lanes8 load_lanes(const double* p) {
  Lanes8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Lanes16 load_lanes(const float* p) {
  Lanes16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_lanes(double* p, Lanes8 v) { std::memcpy(p, &v, sizeof v); }
inline void store_lanes(float* p, Lanes16 v) { std::memcpy(p, &v, sizeof v); }

inline Lanes8 absolute(Lanes8 v) {
  using Bits = std::int64_t __attribute__((vector_size(64)));
  return (Lanes8)((Bits)v & INT64_C(0x7FFFFFFFFFFFFFFF));
}
inline Lanes16 absolute(Lanes16 v) {
  using Bits = std::int32_t __attribute__((vector_size(64)));
  return (Lanes16)((Bits)v & INT32_C(0x7FFFFFFF));
}
inline Lanes8 larger(Lanes8 a, Lanes8 b) { return a > b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }
inline Lanes8 smaller(Lanes8 a, Lanes8 b) { return a < b ? a : b; }
inline double smaller(double a, double b) { return a < b ? a : b; }
inline double absolute(double x) { return __builtin_fabs(x); }

// Computes a b + c, with one rounding or two.
inline Lanes8 multiply_add(Lanes8 a, Lanes8 b, Lanes8 c) {
#ifdef __AVX512F__
  return (Lanes8)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#else
  return a * b + c;
#endif
}
inline Lanes16 multiply_add(Lanes16 a, Lanes16 b, Lanes16 c) {
#ifdef __AVX512F__
  return (Lanes16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

inline double sum_of(Lanes8 v) {
  double sum = 0;
  for (int l = 0; l < lane_count; ++l) sum += v[l];
  return sum;
}
inline double largest_of(Lanes8 v) {
  double most = v[0];
  for (int l = 1; l < lane_count; ++l) most = v[l] > most ? v[l] : most;
  return most;
}

// Calls body(j, lanes) for each eight indices of [first, last), and then for each of the remaining
// indices. `lanes` is a Lanes8 or a double.
template <class Body>
inline void for_lanes(std::int64_t first, std::int64_t last, const Body& body) {
  std::int64_t j = first;
  for (; j + lane_count <= last; j += lane_count) body(j, Lanes8{});
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
  Lanes8 lanes{};
  double rest = 0;
  void add(Lanes8 v) { lanes += v; }
  void add(double x) { rest += x; }
  double total() const { return sum_of(lanes) + rest; }
};
struct LaneMax {
  Lanes8 lanes;
  double rest;
  explicit LaneMax(double least) : lanes(least - Lanes8{}), rest(least) {}
  void add(Lanes8 v) { lanes = larger(v, lanes); }
  void add(double x) { rest = larger(x, rest); }
  double total() const { return larger(largest_of(lanes), rest); }
};

}  // namespace assay
