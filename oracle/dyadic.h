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
// number. highest_bit(x) is that of the highest one.
constexpr int no_bit = 1 << 20;

// A finite number as an integer below 2^53, times 2^exponent, with its sign. Verdicts ask for those
// of every operand, so no function of the C library is called.
struct IntegerTimesPower {
  std::uint64_t integer;
  int exponent;
  bool negative;
};
inline IntegerTimesPower integer_of(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  const int field = static_cast<int>(bits >> 52 & 0x7FF);
  const bool negative = bits >> 63 != 0;
  if (field == 0) return {fraction, -1074, negative};
  return {fraction | std::uint64_t{1} << 52, field - 1075, negative};
}
inline int lowest_bit(double x) {
  const auto [integer, exponent, negative] = integer_of(x);
  return integer == 0 ? no_bit : exponent + std::countr_zero(integer);
}
inline int highest_bit(double x) {
  const auto [integer, exponent, negative] = integer_of(x);
  return integer == 0 ? -no_bit : exponent + static_cast<int>(std::bit_width(integer)) - 1;
}

// The finite x as a multiple of 2^quantum, which it is.
inline std::int64_t multiple_of(double x, int quantum) {
  const auto [integer, exponent, negative] = integer_of(x);
  if (integer == 0) return 0;
  const int shift = exponent - quantum;
  const auto magnitude =
      static_cast<std::int64_t>(shift >= 0 ? integer << shift : integer >> -shift);
  return negative ? -magnitude : magnitude;
}

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
  for (Index i = 0; i < count; ++i) x.value[usize(i)] = multiple_of(at(i), low);
  return x;
}

}  // namespace assay
