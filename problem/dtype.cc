#include "problem/dtype.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double quiet_nan = std::numeric_limits<double>::quiet_NaN();

// Computes 2^e without a call of the library's ldexp or frexp, because verdicts ask for the ulp of
// every element, and every element of an input is encoded.
double power_of_two(int e) {
  return e >= -1022 && e <= 1023 ? std::bit_cast<double>(static_cast<std::uint64_t>(e + 1023) << 52)
                                 : std::ldexp(1.0, e);
}

// The exponent of the binade that holds |x| (x finite, not zero).
int exponent_of(double x) {
  if (const auto field = static_cast<int>(std::bit_cast<std::uint64_t>(x) >> 52 & 0x7FF); field > 0)
    return field - 1023;
  int e;
  std::frexp(x, &e);
  return e - 1;
}

// Rounds a magnitude below 2^(q + 52) to a multiple of 2^q, ties to even, and returns the multiple.
// The scaling is exact, so there is one rounding, by the sum, whose ulp is 1.
double round_magnitude(double magnitude, int q) {
  return (magnitude * power_of_two(-q) + 0x1p52) - 0x1p52;
}

int quantum_of_subnormals(const Format& f) { return f.min_exponent - (f.precision - 1); }

// The bits of a magnitude from 2^min_exponent on, plus what rounds them to nearest, ties to even,
// when the last `dropped_bits` are cut off. The sum carries into the exponent, which is the next
// field in every format.
int dropped_bits(const Format& f) { return 53 - f.precision; }
std::uint64_t rounded_bits(const Format& f, double magnitude) {
  const int dropped = dropped_bits(f);
  const auto bits = std::bit_cast<std::uint64_t>(magnitude);
  return bits + (std::uint64_t{1} << (dropped - 1)) - 1 + (bits >> dropped & 1);
}

std::uint64_t sign_bit(const Format& f, double value) {
  return std::signbit(value) ? std::uint64_t{1} << (f.bits - 1) : 0;
}

std::uint64_t nan_code(const Format& f) {
  if (!f.nan_code) throw std::domain_error(fmt::format("NaN has no code in {}", f.name));
  return *f.nan_code;
}

std::uint64_t overflow_code(const Format& f) {
  return f.saturates ? f.max_finite_code : f.max_finite_code + 1;
}

// The value of a code of sign, exponent and mantissa. The format is a constant here, because inputs
// are read element by element.
template <Dtype dtype>
double decode_fields(std::uint64_t code) {
  constexpr Format f = format(dtype);
  constexpr int mantissa_bits = f.precision - 1;
  const std::uint64_t magnitude = code & ((std::uint64_t{1} << (f.bits - 1)) - 1);
  const bool negative = (code >> (f.bits - 1)) != 0;
  double value;
  if (dtype != Dtype::f4e2m1 && magnitude > f.max_finite_code) {
    value = f.has_infinity && magnitude == f.max_finite_code + 1 ? inf : quiet_nan;
  } else {
    const int exponent = static_cast<int>(magnitude >> mantissa_bits);
    const std::uint64_t mantissa = magnitude & ((std::uint64_t{1} << mantissa_bits) - 1);
    const std::uint64_t significand =
        exponent == 0 ? mantissa : mantissa | (std::uint64_t{1} << mantissa_bits);
    value = static_cast<double>(significand) *
            power_of_two(f.min_exponent + (exponent == 0 ? 0 : exponent - 1) - mantissa_bits);
  }
  return negative ? -value : value;
}

}  // namespace

double decode(Dtype dtype, std::uint64_t code) {
  switch (dtype) {
    case Dtype::f64: return std::bit_cast<double>(code);
    case Dtype::f32: return std::bit_cast<float>(static_cast<std::uint32_t>(code));
    case Dtype::bf16: return std::bit_cast<float>(static_cast<std::uint32_t>(code << 16));
    case Dtype::f16: return decode_fields<Dtype::f16>(code);
    case Dtype::f8e4m3: return decode_fields<Dtype::f8e4m3>(code);
    case Dtype::f8e5m2: return decode_fields<Dtype::f8e5m2>(code);
    case Dtype::f4e2m1: return decode_fields<Dtype::f4e2m1>(code);
    case Dtype::e8m0: return code == 0xFF ? quiet_nan : power_of_two(static_cast<int>(code) - 127);
  }
  return quiet_nan;
}

std::uint64_t encode(Dtype dtype, double value) {
  if (dtype == Dtype::f64) return std::bit_cast<std::uint64_t>(value);
  if (dtype == Dtype::f32) return std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const Format& f = format(dtype);
  if (std::isnan(value)) return nan_code(f);
  if (dtype == Dtype::e8m0) {
    int e;
    if (!(value > 0) || std::isinf(value) || std::frexp(value, &e) != 0.5 || e - 1 < -127 ||
        e - 1 > 127)
      throw std::domain_error(fmt::format(
          "{} is not a power of two from 2^-127 to 2^127, so it has no code in e8m0", value));
    return static_cast<std::uint64_t>(e - 1 + 127);
  }
  if (std::isinf(value)) {
    if (dtype == Dtype::f4e2m1) throw std::domain_error("infinity has no code in f4e2m1");
    return sign_bit(f, value) | overflow_code(f);
  }
  if (value == 0) return sign_bit(f, value);
  const double magnitude = std::fabs(value);
  // A subnormal has 0 in the exponent field; what is rounded up to 2^min_exponent carries into it.
  if (magnitude < power_of_two(f.min_exponent))
    return sign_bit(f, value) |
           static_cast<std::uint64_t>(round_magnitude(magnitude, quantum_of_subnormals(f)));
  const std::uint64_t code =
      (rounded_bits(f, magnitude) >> dropped_bits(f)) -
      (static_cast<std::uint64_t>(f.min_exponent + 1022) << (f.precision - 1));
  return sign_bit(f, value) | (code > f.max_finite_code ? overflow_code(f) : code);
}

double round_to(Dtype dtype, double value) {
  if (dtype == Dtype::f64) return value;
  if (dtype == Dtype::f32) return static_cast<double>(static_cast<float>(value));
  const Format& f = format(dtype);
  if (!std::isfinite(value) || dtype == Dtype::e8m0) return decode(dtype, encode(dtype, value));
  const double magnitude = std::fabs(value);
  double rounded;
  if (magnitude < power_of_two(f.min_exponent)) {
    const int quantum = quantum_of_subnormals(f);
    rounded = round_magnitude(magnitude, quantum) * power_of_two(quantum);
  } else {
    const int dropped = dropped_bits(f);
    rounded = std::bit_cast<double>(rounded_bits(f, magnitude) >> dropped << dropped);
  }
  if (rounded > f.max_finite) rounded = f.saturates ? f.max_finite : inf;
  return std::copysign(rounded, value);
}

std::uint64_t encode_scale(double value, ScaleRule rule) {
  if (std::isnan(value)) return 0xFF;
  if (!(value > 0) || std::isinf(value))
    throw std::domain_error(fmt::format("scale {} is not a positive finite number", value));
  int e;
  const double fraction = std::frexp(value, &e);  // value = fraction * 2^e, fraction in [0.5, 1)
  int exponent = e - 1;
  if (rule == ScaleRule::ceil && fraction != 0.5) ++exponent;
  // The midpoint between 2^k and 2^(k+1) is 1.5 * 2^k. A tie goes to the even code.
  if (rule == ScaleRule::nearest_even &&
      (fraction > 0.75 || (fraction == 0.75 && ((exponent + 127) & 1))))
    ++exponent;
  if (exponent > 127)
    throw std::domain_error(fmt::format("scale {} is above 2^127, the largest of e8m0", value));
  return static_cast<std::uint64_t>(std::max(exponent, -127) + 127);
}

double unit_roundoff(Dtype dtype) { return power_of_two(-format(dtype).precision); }

double half_min_subnormal(Dtype dtype) {
  // For f64 this would be 2^-1075, which is not a double. It is rounded up, because it is used as a
  // bound.
  return std::max(std::ldexp(1.0, format(dtype).min_exponent - format(dtype).precision), 0x1p-1074);
}

double half_ulp(Dtype dtype, double value) {
  const Format& f = format(dtype);
  if (!std::isfinite(value)) return inf;
  const int exponent = value == 0 ? f.min_exponent : std::max(exponent_of(value), f.min_exponent);
  return std::max(power_of_two(exponent - f.precision), 0x1p-1074);
}

double overflow_threshold(Dtype dtype) {
  const Format& f = format(dtype);
  if (f.bits == 64) return inf;  // 2^1024 - 2^970 is not a double
  return f.max_finite + half_ulp(dtype, f.max_finite);
}

}  // namespace assay
