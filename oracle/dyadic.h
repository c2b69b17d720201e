// Dyadic numbers, which are integers times a power of two.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "problem/tensor.h"

namespace assay {

// lowest_bit(x) is the exponent of the lowest set bit of a finite x. For 0 it is `no_bit`, a large
// number.
constexpr int no_bit = 1 << 20;
inline int lowest_bit(double x) {
  if (x == 0) return no_bit;
  int e;
  const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(x, &e), 53));
  return e - 53 + std::countr_zero(static_cast<std::uint64_t>(mantissa));
}
inline int highest_bit(double x) { return x == 0 ? -no_bit : std::ilogb(x); }

inline bool is_power_of_two(double x) {
  return x != 0 && std::isfinite(x) && lowest_bit(x) == highest_bit(x);
}

// A vector of numbers, written as integers times 2^exponent. There are no integers where they would
// need more than 62 bits.
struct Integers {
  std::vector<std::int64_t> value;
  int exponent = 0, bits = 0;
  bool fits = true, finite = true;
};

template <class At>
Integers to_integers(Index count, const At& at) {
  Integers x;
  int low = no_bit, high = -no_bit;
  for (Index i = 0; i < count; ++i) {
    if (!std::isfinite(at(i))) {
      x.finite = x.fits = false;
      return x;
    }
    low = std::min(low, lowest_bit(at(i)));
    high = std::max(high, highest_bit(at(i)));
  }
  if (low == no_bit) low = high = 0;
  x.exponent = low;
  x.bits = high - low + 1;
  x.fits = x.bits <= 62;
  if (!x.fits) return x;
  x.value.resize(usize(count));
  for (Index i = 0; i < count; ++i)
    x.value[usize(i)] = static_cast<std::int64_t>(std::ldexp(at(i), -low));
  return x;
}

}  // namespace assay
