// Number formats: exact decoding to double and correctly rounded encoding from it.
//
// Every format here is a set of dyadic rationals that binary64 holds exactly, so decode() never
// rounds. Definitions: IEEE 754-2019 (f64, f32, f16), bfloat16 (f32 with 8 bits of precision), OCP
// 8-bit Floating Point Specification 1.0 (E4M3, E5M2), OCP Microscaling Formats 1.0 (E2M1, E8M0).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "problem/names.h"

namespace assay {

enum class Dtype : std::uint8_t { f64, f32, f16, bf16, f8e4m3, f8e5m2, f4e2m1, e8m0 };

struct Format {
  Dtype value;
  std::string_view name;
  int bits;          // width of a code
  int precision;     // significant bits, the implicit one included
  int min_exponent;  // exponent of the smallest normal number
  double max_finite;
  bool has_infinity;
  bool saturates;  // on overflow encode() gives the largest finite number, not infinity
  // These describe the codes of the positive numbers. f64 and f32 do not need them, because the
  // machine converts those formats.
  std::uint64_t max_finite_code = 0;
  std::optional<std::uint64_t> nan_code{};
};
template <>
inline constexpr auto table_of<Dtype> = complete<Format>({
    {Dtype::f64, "f64", 64, 53, -1022, 0x1.fffffffffffffp1023, true, false},
    {Dtype::f32, "f32", 32, 24, -126, 0x1.fffffep127, true, false},
    {Dtype::f16, "f16", 16, 11, -14, 65504.0, true, false, 0x7BFF, 0x7E00},
    {Dtype::bf16, "bf16", 16, 8, -126, 0x1.fep127, true, false, 0x7F7F, 0x7FC0},
    {Dtype::f8e4m3, "f8e4m3", 8, 4, -6, 448.0, false, true, 0x7E, 0x7F},
    {Dtype::f8e5m2, "f8e5m2", 8, 3, -14, 57344.0, true, true, 0x7B, 0x7E},
    {Dtype::f4e2m1, "f4e2m1", 4, 2, 0, 6.0, false, true, 0x7},
    {Dtype::e8m0, "e8m0", 8, 1, -127, 0x1p127, false, false, 0xFE, 0xFF},
});

constexpr const Format& format(Dtype dtype) { return row_of(dtype); }

// The value of a code; bits above format().bits must be zero.
double decode(Dtype dtype, std::uint64_t code);

// The code nearest to `value`; ties go to even. f32, f16 and bf16 overflow to infinity; f8e4m3,
// f8e5m2 and f4e2m1 saturate, for infinities too. NaN gives the quiet NaN of the format. Throws
// std::domain_error for NaN or infinity into f4e2m1, which has neither. Into e8m0, it throws for
// anything but NaN or a power of two in range, because the caller has to declare how a scale is
// rounded (see encode_scale).
std::uint64_t encode(Dtype dtype, double value);

// Equals decode(encode(value)), and computes no code of a finite number.
double round_to(Dtype dtype, double value);

// How a positive magnitude is rounded to a power-of-two scale (E8M0).
enum class ScaleRule { floor, ceil, nearest_even };
// Throws std::domain_error unless 0 < value <= 2^127 (after rounding). Values below 2^-127 give
// code 0.
std::uint64_t encode_scale(double value, ScaleRule rule);

// The unit roundoff of rounding to nearest: 2^-precision.
double unit_roundoff(Dtype dtype);
// Half the smallest subnormal: the largest absolute rounding error near zero.
double half_min_subnormal(Dtype dtype);
// Half an ulp in the binade of |value|, which is the largest rounding error of any number of that
// magnitude or less. Infinity and NaN give infinity.
double half_ulp(Dtype dtype, double value);
// The least magnitude that rounding to nearest turns into infinity, or that saturates.
double overflow_threshold(Dtype dtype);

}  // namespace assay
