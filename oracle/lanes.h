// Eight doubles at a time, in the vector extension of gcc and clang: for the two sums of a bound that are no
// matrix products, those of absolute values of differences and of partial sums.
#pragma once

#include <cstdint>
#include <cstring>

namespace assay {

using Lanes8 = double __attribute__((vector_size(64)));
inline constexpr int lane_count = 8;

inline Lanes8 load_lanes(const double* p) {
  Lanes8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_lanes(double* p, Lanes8 v) { std::memcpy(p, &v, sizeof v); }
inline Lanes8 absolute(Lanes8 v) {
  using Bits = std::int64_t __attribute__((vector_size(64)));
  return (Lanes8)((Bits)v & INT64_C(0x7FFFFFFFFFFFFFFF));
}
inline Lanes8 larger(Lanes8 a, Lanes8 b) { return a > b ? a : b; }

}  // namespace assay
