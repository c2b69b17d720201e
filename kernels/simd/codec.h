// Codes of single elements in the narrow formats of caches and weights: E4M3 and E5M2 (OCP 8-bit
// Floating Point 1.0), E2M1 and E8M0 (OCP Microscaling Formats 1.0).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "problem/dtype.h"

namespace assay::kernels {

// A format with a sign, exponent bits and mantissa bits. The exponent field 1 stands for
// 2^min_exponent.
struct NarrowFormat {
  int bits, mantissa_bits, min_exponent;
  std::uint32_t max_code;  // the code of the largest finite number
  std::uint32_t nan_code;  // 0 if the format has no NaN
  bool has_infinity;       // if so, its code follows max_code
};

constexpr NarrowFormat narrow_format(Dtype dtype) {
  return dtype == Dtype::f8e4m3   ? NarrowFormat{8, 3, -6, 0x7E, 0x7F, false}
         : dtype == Dtype::f8e5m2 ? NarrowFormat{8, 2, -14, 0x7B, 0x7E, true}
                                  : NarrowFormat{4, 1, 0, 0x7, 0, false};
}

// 2^e for -149 <= e <= 127.
constexpr float power_of_two(int e) {
  return std::bit_cast<float>(e >= -126 ? static_cast<std::uint32_t>(e + 127) << 23
                                        : std::uint32_t{1} << (e + 149));
}

constexpr float decode_narrow(const NarrowFormat& f, std::uint32_t code) {
  const std::uint32_t sign = code >> (f.bits - 1), magnitude = code & ((1u << (f.bits - 1)) - 1),
                      field = magnitude >> f.mantissa_bits;
  float value;
  if (magnitude > f.max_code)
    value = f.has_infinity && magnitude == f.max_code + 1 ? std::numeric_limits<float>::infinity()
                                                          : std::numeric_limits<float>::quiet_NaN();
  else
    value = static_cast<float>((magnitude & ((1u << f.mantissa_bits) - 1)) |
                               (field > 0 ? 1u << f.mantissa_bits : 0u)) *
            power_of_two(f.min_exponent + (field > 0 ? static_cast<int>(field) - 1 : 0) -
                         f.mantissa_bits);
  return sign != 0 ? -value : value;
}

template <Dtype dtype>
inline constexpr auto decoded_table = [] {
  std::array<float, 256> values{};
  for (std::uint32_t code = 0; code < 1u << narrow_format(dtype).bits; ++code)
    values[code] = decode_narrow(narrow_format(dtype), code);
  return values;
}();

// Returns a table with the value of every code.
inline const float* decoded_values(Dtype dtype) {
  return (dtype == Dtype::f8e4m3   ? decoded_table<Dtype::f8e4m3>
          : dtype == Dtype::f8e5m2 ? decoded_table<Dtype::f8e5m2>
                                   : decoded_table<Dtype::f4e2m1>)
      .data();
}

inline float from_e8m0(std::uint8_t code) {
  return code == 0xFF ? std::numeric_limits<float>::quiet_NaN() : power_of_two(code - 127);
}

// Rounds to nearest, ties to even, and saturates, infinities included. NaN gives the NaN of the
// format, which must have one.
inline std::uint8_t encode_narrow(const NarrowFormat& f, float value) {
  const std::uint32_t sign = std::bit_cast<std::uint32_t>(value) >> 31 << (f.bits - 1);
  std::uint32_t bits = std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFF;
  if (bits > 0x7F800000) return static_cast<std::uint8_t>(f.nan_code);
  const int dropped = 23 - f.mantissa_bits;
  if (bits < std::bit_cast<std::uint32_t>(power_of_two(f.min_exponent))) {
    // The quantum of subnormals is the ulp of `shift`, so adding it rounds, with ties to even.
    const float shift = power_of_two(f.min_exponent + dropped);
    return static_cast<std::uint8_t>(
        sign | (std::bit_cast<std::uint32_t>(std::bit_cast<float>(bits) + shift) -
                std::bit_cast<std::uint32_t>(shift)));
  }
  bits += (1u << (dropped - 1)) - 1 + (bits >> dropped & 1);
  const std::uint32_t code =
      (bits >> dropped) - (static_cast<std::uint32_t>(f.min_exponent - 1 + 127) << f.mantissa_bits);
  return static_cast<std::uint8_t>(sign | std::min(code, f.max_code));
}

// Writes code `at` of a row of codes: a row of a cache, a column, or a word of weights. Two nibbles
// share a byte, the low one first. The bytes must be 0 before.
inline void put_code(int bits, std::byte* row, std::int64_t at, std::uint32_t code) {
  if (bits == 8) row[at] = static_cast<std::byte>(code);
  else row[at / 2] |= static_cast<std::byte>(code << (at % 2 * 4));
}

// Returns the code nearest to a finite number, with ties to even; saturates.
inline std::uint32_t encode_exact(const NarrowFormat& f, double value) {
  const std::uint32_t sign = std::signbit(value) ? 1u << (f.bits - 1) : 0;
  if (value == 0) return sign;
  const int exponent = std::max(std::ilogb(value), f.min_exponent);
  const double quanta = std::nearbyint(std::ldexp(std::fabs(value), f.mantissa_bits - exponent));
  // 2^(mantissa_bits + 1) quanta carry into the exponent field by themselves. Subnormals have the
  // field 0.
  const double code =
      std::ldexp(static_cast<double>(exponent - f.min_exponent), f.mantissa_bits) + quanta;
  return sign | static_cast<std::uint32_t>(std::min(code, static_cast<double>(f.max_code)));
}

// Returns the exponent e of a group's scale: the least e >= -127 with absmax <= 2^e * (largest
// finite number).
inline int scale_exponent(const NarrowFormat& f, float absmax) {
  if (absmax == 0) return -127;
  int absmax_exponent, largest_exponent;
  const float m = std::frexp(absmax, &absmax_exponent),
              largest = std::frexp(decode_narrow(f, f.max_code), &largest_exponent);
  return std::max(absmax_exponent - largest_exponent + (m > largest ? 1 : 0), -127);
}

// Returns the largest code whose value under the scale 2^e is a finite f32. Stored codes are read
// as f32, and close to 2^128 such a value would round up to infinity.
inline std::uint32_t max_code_under(const NarrowFormat& f, int e) {
  std::uint32_t code = f.max_code;
  while (std::isinf(decode_narrow(f, code) * power_of_two(e))) --code;
  return code;
}

}  // namespace assay::kernels
