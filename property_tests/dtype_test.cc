#include "problem/dtype.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

namespace assay {
namespace {

using Code = std::uint64_t;
constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr std::array all_dtypes = {Dtype::f64,    Dtype::f32,    Dtype::f16,    Dtype::bf16,
                                   Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1, Dtype::e8m0};

std::uint64_t bits_of(double x) { return std::bit_cast<std::uint64_t>(x); }

// The numbers are equal with the same sign of zero, or both are NaN.
bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || bits_of(a) == bits_of(b);
}

// The definitions again, as whole numbers of the smallest subnormal: an exponent field e > 0 shifts
// the significand left by e - 1 and does nothing else. (dtype.cc scales by powers of two instead.)
double from_units(Code code, int bits, int mantissa_bits, double unit) {
  const Code magnitude = code & ((Code{1} << (bits - 1)) - 1), e = magnitude >> mantissa_bits,
             m = magnitude & ((Code{1} << mantissa_bits) - 1);
  const double value =
      static_cast<double>(e == 0 ? m : (m + (Code{1} << mantissa_bits)) << (e - 1)) * unit;
  return code >> (bits - 1) ? -value : value;
}

double defined(Dtype dtype, Code code) {
  switch (dtype) {
    case Dtype::f4e2m1: return from_units(code, 4, 1, 0.5);
    case Dtype::f8e4m3: return (code & 0x7F) == 0x7F ? nan : from_units(code, 8, 3, 0x1p-9);
    // E5M2 is binary16 cut to its upper byte.
    case Dtype::f8e5m2: return defined(Dtype::f16, code << 8);
    case Dtype::f16:
      if ((code & 0x7C00) != 0x7C00) return from_units(code, 16, 10, 0x1p-24);
      return code & 0x3FF ? nan : code >> 15 ? -inf : inf;
    // bfloat16 is binary32 cut to its upper half.
    case Dtype::bf16:
      return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(code << 16)));
    case Dtype::e8m0: return code == 255 ? nan : std::bit_cast<double>((code + 1023 - 127) << 52);
    default: ADD_FAILURE() << "no definition here"; return nan;
  }
}

struct Narrow {
  Dtype dtype;
  int bits;
  Code max_finite, nan_code;  // nan_code 0 means that there is none
};
constexpr std::array narrow = {
    Narrow{Dtype::f4e2m1, 4, 0x7, 0}, Narrow{Dtype::f8e4m3, 8, 0x7E, 0x7F},
    Narrow{Dtype::f8e5m2, 8, 0x7B, 0x7E}, Narrow{Dtype::f16, 16, 0x7BFF, 0x7E00},
    Narrow{Dtype::bf16, 16, 0x7F7F, 0x7FC0}};

struct Landmark {
  Code code;
  double value;
};

void expect_landmarks(Dtype dtype, const std::vector<Landmark>& table) {
  for (const auto& [code, value] : table) {
    EXPECT_TRUE(same(decode(dtype, code), value))
        << format(dtype).name << " " << code << ": " << decode(dtype, code) << ", not " << value;
    EXPECT_TRUE(std::isnan(value) || encode(dtype, value) == code)
        << format(dtype).name << " " << value << ": " << encode(dtype, value);
  }
}

TEST(DtypeDecode, E2M1AllCodes) {
  expect_landmarks(Dtype::f4e2m1, {{0, 0.0},
                                   {1, 0.5},
                                   {2, 1.0},
                                   {3, 1.5},
                                   {4, 2.0},
                                   {5, 3.0},
                                   {6, 4.0},
                                   {7, 6.0},
                                   {8, -0.0},
                                   {9, -0.5},
                                   {10, -1.0},
                                   {11, -1.5},
                                   {12, -2.0},
                                   {13, -3.0},
                                   {14, -4.0},
                                   {15, -6.0}});
}

TEST(DtypeDecode, Landmarks) {
  expect_landmarks(Dtype::f8e4m3, {{0x00, 0.0},
                                   {0x80, -0.0},
                                   {0x01, 0.001953125},
                                   {0x07, 0.013671875},
                                   {0x08, 0.015625},
                                   {0x09, 0.017578125},
                                   {0x30, 0.5},
                                   {0x38, 1.0},
                                   {0x39, 1.125},
                                   {0xB8, -1.0},
                                   {0x40, 2.0},
                                   {0x44, 3.0},
                                   {0x77, 240.0},
                                   {0x78, 256.0},
                                   {0x7D, 416.0},
                                   {0x7E, 448.0},
                                   {0xFE, -448.0},
                                   {0x7F, nan},
                                   {0xFF, nan}});
  expect_landmarks(
      Dtype::f8e5m2,
      {{0x00, 0.0},     {0x80, -0.0}, {0x01, 0x1p-16}, {0x03, 0x3p-16}, {0x04, 0x1p-14},
       {0x05, 0x5p-16}, {0x38, 0.5},  {0x3C, 1.0},     {0x3D, 1.25},    {0xBC, -1.0},
       {0x40, 2.0},     {0x42, 3.0},  {0x7A, 49152.0}, {0x7B, 57344.0}, {0xFB, -57344.0},
       {0x7D, nan},     {0x7E, nan},  {0x7F, nan},     {0xFD, nan},     {0xFF, nan}});
  EXPECT_EQ(decode(Dtype::f8e5m2, 0x7C),
            inf);  // it has a code, but encode() saturates and never gives it
  EXPECT_EQ(decode(Dtype::f8e5m2, 0xFC), -inf);
  expect_landmarks(Dtype::f16, {{0x0000, 0.0},
                                {0x8000, -0.0},
                                {0x0001, 0x1p-24},
                                {0x03FF, 0x3FFp-24},
                                {0x0400, 0x1p-14},
                                {0x3555, 0.333251953125},
                                {0x3C00, 1.0},
                                {0x3C01, 1.0009765625},
                                {0xC000, -2.0},
                                {0x7BFF, 65504.0},
                                {0xFBFF, -65504.0},
                                {0x7C00, inf},
                                {0xFC00, -inf},
                                {0x7C01, nan},
                                {0x7E00, nan},
                                {0xFFFF, nan}});
  expect_landmarks(Dtype::bf16, {{0x0000, 0.0},
                                 {0x8000, -0.0},
                                 {0x0001, 0x1p-133},
                                 {0x007F, 0x7Fp-133},
                                 {0x0080, 0x1p-126},
                                 {0x3F80, 1.0},
                                 {0x3F81, 1.0078125},
                                 {0x4049, 3.140625},
                                 {0xC000, -2.0},
                                 {0x7F7F, 0xFFp120},
                                 {0xFF7F, -0xFFp120},
                                 {0x7F80, inf},
                                 {0xFF80, -inf},
                                 {0x7F81, nan},
                                 {0x7FC0, nan},
                                 {0xFFFF, nan}});
  expect_landmarks(Dtype::f32, {{0x00000000, 0.0},
                                {0x80000000, -0.0},
                                {0x00000001, 0x1p-149},
                                {0x007FFFFF, 0x7FFFFFp-149},
                                {0x00800000, 0x1p-126},
                                {0x3DCCCCCD, 0.100000001490116119384765625},
                                {0x3F800000, 1.0},
                                {0x3F800001, 1.00000011920928955078125},
                                {0x40490FDB, 3.1415927410125732421875},
                                {0xC0000000, -2.0},
                                {0x4B800000, 16777216.0},
                                {0x7F7FFFFF, 0xFFFFFFp104},
                                {0xFF7FFFFF, -0xFFFFFFp104},
                                {0x7F800000, inf},
                                {0xFF800000, -inf},
                                {0x7F800001, nan},
                                {0x7FC00000, nan}});
  expect_landmarks(Dtype::e8m0, {{0, 0x1p-127},
                                 {1, 0x1p-126},
                                 {126, 0.5},
                                 {127, 1.0},
                                 {128, 2.0},
                                 {254, 0x1p127},
                                 {255, nan}});
  expect_landmarks(Dtype::f64, {{0x3FF0000000000000, 1.0},
                                {0x8000000000000000, -0.0},
                                {1, 0x1p-1074},
                                {0x7FF0000000000000, inf}});
}

TEST(DtypeDecode, EveryCodeOfTheNarrowFormats) {
  for (Dtype dtype :
       {Dtype::f4e2m1, Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f16, Dtype::bf16, Dtype::e8m0})
    for (Code code = 0; code < Code{1} << format(dtype).bits; ++code)
      ASSERT_TRUE(same(decode(dtype, code), defined(dtype, code)))
          << format(dtype).name << " code " << code << ": " << decode(dtype, code);
}

TEST(DtypeEncode, EveryCodeRoundTripsAndNanIsCanonical) {
  for (const Narrow& f : narrow)
    for (Code code = 0; code < Code{1} << f.bits; ++code) {
      const double value = defined(f.dtype, code);
      // This is the only format that has infinities and never produces them.
      const bool saturated = f.dtype == Dtype::f8e5m2 && std::isinf(value);
      const Code expected = std::isnan(value) ? f.nan_code : saturated ? code - 1 : code;
      ASSERT_EQ(encode(f.dtype, value), expected) << format(f.dtype).name << " " << value;
    }
  for (Code code = 0; code < 256; ++code)
    EXPECT_EQ(encode(Dtype::e8m0, defined(Dtype::e8m0, code)), code);
}

TEST(DtypeEncode, EveryMidpointGoesToTheEvenCode) {
  for (const Narrow& f : narrow)
    for (Code lower = 0; lower < f.max_finite; ++lower) {
      const double a = defined(f.dtype, lower), b = defined(f.dtype, lower + 1), mid = (a + b) / 2;
      const Code even = lower + lower % 2, sign = Code{1} << (f.bits - 1);
      ASSERT_EQ(encode(f.dtype, mid), even) << format(f.dtype).name << " " << mid;
      ASSERT_EQ(encode(f.dtype, -mid), even | sign) << format(f.dtype).name << " " << -mid;
      ASSERT_EQ(encode(f.dtype, std::nextafter(mid, 0)), lower)
          << format(f.dtype).name << " below " << mid;
      ASSERT_EQ(encode(f.dtype, -std::nextafter(mid, 0)), lower | sign)
          << format(f.dtype).name << " above " << -mid;
      ASSERT_EQ(encode(f.dtype, std::nextafter(mid, inf)), lower + 1)
          << format(f.dtype).name << " above " << mid;
      ASSERT_EQ(encode(f.dtype, -std::nextafter(mid, inf)), (lower + 1) | sign)
          << format(f.dtype).name << " below " << -mid;
    }
}

TEST(DtypeEncode, F32MidpointsOfRandomNeighbours) {
  std::mt19937_64 random(20240611);
  std::vector<std::uint32_t> codes = {0,          1,          0x007FFFFE, 0x007FFFFF,
                                      0x00800000, 0x3F7FFFFF, 0x3F800000, 0x7F7FFFFE};
  for (int i = 0; i < 20000; ++i)
    codes.push_back(static_cast<std::uint32_t>(random() % 0x7F7FFFFF));
  for (std::uint32_t lower : codes) {
    const double mid = (static_cast<double>(std::bit_cast<float>(lower)) +
                        static_cast<double>(std::bit_cast<float>(lower + 1))) /
                       2;
    const Code sign = 0x80000000;
    ASSERT_EQ(encode(Dtype::f32, mid), lower + lower % 2);
    ASSERT_EQ(encode(Dtype::f32, -mid), (lower + lower % 2) | sign);
    ASSERT_EQ(encode(Dtype::f32, std::nextafter(mid, 0)), lower);
    ASSERT_EQ(encode(Dtype::f32, std::nextafter(mid, inf)), lower + 1);
    ASSERT_EQ(encode(Dtype::f32, -std::nextafter(mid, inf)), (lower + 1) | sign);
  }
}

TEST(DtypeEncode, OverflowsExactlyAtTheThreshold) {
  struct Row {
    Dtype dtype;
    double threshold;  // half an ulp past the largest finite number
    Code max_finite, at_threshold;
  };
  for (const Row& r :
       {Row{Dtype::f16, 65520.0, 0x7BFF, 0x7C00}, Row{Dtype::bf16, 0x1FFp119, 0x7F7F, 0x7F80},
        Row{Dtype::f32, 0x1FFFFFFp103, 0x7F7FFFFF, 0x7F800000},
        Row{Dtype::f8e4m3, 464.0, 0x7E, 0x7E}, Row{Dtype::f8e5m2, 61440.0, 0x7B, 0x7B},
        Row{Dtype::f4e2m1, 7.0, 0x7, 0x7}}) {
    const Code sign = Code{1} << (format(r.dtype).bits - 1);
    EXPECT_EQ(overflow_threshold(r.dtype), r.threshold) << format(r.dtype).name;
    EXPECT_EQ(encode(r.dtype, std::nextafter(r.threshold, 0)), r.max_finite)
        << format(r.dtype).name;
    EXPECT_EQ(encode(r.dtype, -std::nextafter(r.threshold, 0)), r.max_finite | sign)
        << format(r.dtype).name;
    for (double x : {r.threshold, std::nextafter(r.threshold, inf), 2 * r.threshold, 0x1p200,
                     std::numeric_limits<double>::max()}) {
      EXPECT_EQ(encode(r.dtype, x), r.at_threshold) << format(r.dtype).name << " " << x;
      EXPECT_EQ(encode(r.dtype, -x), r.at_threshold | sign) << format(r.dtype).name << " " << -x;
    }
    if (r.dtype != Dtype::f4e2m1) {
      EXPECT_EQ(encode(r.dtype, inf), r.at_threshold) << format(r.dtype).name;
      EXPECT_EQ(encode(r.dtype, -inf), r.at_threshold | sign) << format(r.dtype).name;
    }
  }
  EXPECT_EQ(overflow_threshold(Dtype::f64), inf);
}

TEST(DtypeEncode, UnderflowKeepsTheSign) {
  for (const Narrow& f : narrow)
    for (double x : {0.0, 0x1p-1074, 0x1p-1022, 0x1p-300}) {
      EXPECT_EQ(encode(f.dtype, x), 0u) << format(f.dtype).name << " " << x;
      EXPECT_EQ(encode(f.dtype, -x), Code{1} << (f.bits - 1)) << format(f.dtype).name << " " << -x;
    }
  EXPECT_EQ(encode(Dtype::f32, -0x1p-1074), 0x80000000u);
}

TEST(DtypeEncode, NanAndDomain) {
  for (const Narrow& f : narrow) {
    if (f.nan_code == 0) continue;
    EXPECT_EQ(encode(f.dtype, nan), f.nan_code) << format(f.dtype).name;
    EXPECT_EQ(encode(f.dtype, -nan), f.nan_code) << format(f.dtype).name;
  }
  EXPECT_EQ(encode(Dtype::f32, nan), 0x7FC00000u);
  EXPECT_EQ(encode(Dtype::f64, nan), 0x7FF8000000000000u);
  EXPECT_EQ(encode(Dtype::e8m0, nan), 0xFFu);
  // A signalling NaN becomes a quiet NaN, never an infinity.
  for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8e4m3, Dtype::f8e5m2})
    EXPECT_TRUE(
        std::isnan(decode(dtype, encode(dtype, std::numeric_limits<double>::signaling_NaN()))))
        << format(dtype).name;
  for (double x : {nan, inf, -inf}) EXPECT_THROW(encode(Dtype::f4e2m1, x), std::domain_error) << x;
  for (double x : {0.0, -0.0, -1.0, 3.0, 1.5, std::nextafter(1.0, 2.0), 0x1p128, 0x1p-128,
                   0x1p-1074, inf, -inf})
    EXPECT_THROW(encode(Dtype::e8m0, x), std::domain_error) << x;
}

TEST(DtypeScale, FloorCeilNearest) {
  struct Row {
    double value;
    int floor, ceil, nearest;  // exponents
  };
  const double above = std::nextafter(1.0, 2.0), below = std::nextafter(1.0, 0.0);
  for (const Row& r : {Row{1, 0, 0, 0}, Row{above, 0, 1, 0}, Row{below, -1, 0, 0}, Row{2, 1, 1, 1},
                       Row{3.75, 1, 2, 2}, Row{0.3, -2, -1, -2}, Row{448, 8, 9, 9},
                       Row{0x1p-126, -126, -126, -126}, Row{0x1.8p-126, -126, -125, -125},
                       // Ties at 1.5 * 2^k go to the even code k + 127, so to an odd exponent.
                       Row{1.5, 0, 1, 1}, Row{3, 1, 2, 1}, Row{6, 2, 3, 3}, Row{12, 3, 4, 3},
                       Row{0.75, -1, 0, -1}, Row{0.375, -2, -1, -1}, Row{1.5 * below, 0, 1, 0},
                       Row{1.5 * above, 0, 1, 1}, Row{3 * below, 1, 2, 1}, Row{3 * above, 1, 2, 2},
                       Row{0x1.8p126, 126, 127, 127}, Row{0x1p127, 127, 127, 127},
                       // Below the range: code 0.
                       Row{0x1p-127, -127, -127, -127}, Row{0x1.8p-127, -127, -126, -127},
                       Row{0x1.8p-128, -127, -127, -127}, Row{0x1p-128, -127, -127, -127},
                       Row{0x1p-1074, -127, -127, -127}}) {
    EXPECT_EQ(encode_scale(r.value, ScaleRule::floor), static_cast<Code>(r.floor + 127)) << r.value;
    EXPECT_EQ(encode_scale(r.value, ScaleRule::ceil), static_cast<Code>(r.ceil + 127)) << r.value;
    EXPECT_EQ(encode_scale(r.value, ScaleRule::nearest_even), static_cast<Code>(r.nearest + 127))
        << r.value;
  }
  // The upper bound applies to the rounded scale: 1.5 * 2^127 is a tie that goes down to code 254.
  EXPECT_EQ(encode_scale(0x1.fffffffffffffp127, ScaleRule::floor), 254u);
  EXPECT_EQ(encode_scale(0x1.8p127, ScaleRule::nearest_even), 254u);
  EXPECT_THROW(encode_scale(0x1.8000000000001p127, ScaleRule::nearest_even), std::domain_error);
  EXPECT_THROW(encode_scale(0x1.0000000000001p127, ScaleRule::ceil), std::domain_error);
  for (ScaleRule rule : {ScaleRule::floor, ScaleRule::ceil, ScaleRule::nearest_even})
    for (double x :
         {0.0, -0.0, -1.0, -0x1p-1074, inf, -inf, 0x1p128, std::numeric_limits<double>::max()})
      EXPECT_THROW(encode_scale(x, rule), std::domain_error) << x;
}

TEST(DtypeScale, EveryPowerOfTwoIsExactUnderEveryRule) {
  for (Code code = 0; code < 255; ++code)
    for (ScaleRule rule : {ScaleRule::floor, ScaleRule::ceil, ScaleRule::nearest_even})
      EXPECT_EQ(encode_scale(defined(Dtype::e8m0, code), rule), code);
}

TEST(DtypeErrors, HandCheckedUnits) {
  struct Row {
    Dtype dtype;
    double unit_roundoff, half_min_subnormal, half_ulp_of_one, half_ulp_below_two, half_ulp_of_100;
  };
  for (const Row& r : {Row{Dtype::f32, 0x1p-24, 0x1p-150, 0x1p-24, 0x1p-24, 0x1p-18},
                       Row{Dtype::f16, 0x1p-11, 0x1p-25, 0x1p-11, 0x1p-11, 0x1p-5},
                       Row{Dtype::bf16, 0x1p-8, 0x1p-134, 0x1p-8, 0x1p-8, 0x1p-2},
                       Row{Dtype::f8e4m3, 0x1p-4, 0x1p-10, 0x1p-4, 0x1p-4, 4},
                       Row{Dtype::f8e5m2, 0x1p-3, 0x1p-17, 0x1p-3, 0x1p-3, 8},
                       Row{Dtype::f4e2m1, 0x1p-2, 0x1p-2, 0x1p-2, 0x1p-2, 16}}) {
    EXPECT_EQ(unit_roundoff(r.dtype), r.unit_roundoff) << format(r.dtype).name;
    EXPECT_EQ(half_min_subnormal(r.dtype), r.half_min_subnormal) << format(r.dtype).name;
    EXPECT_EQ(half_ulp(r.dtype, 0), r.half_min_subnormal) << format(r.dtype).name;
    EXPECT_EQ(half_ulp(r.dtype, -0x1p-1074), r.half_min_subnormal) << format(r.dtype).name;
    EXPECT_EQ(half_ulp(r.dtype, 1), r.half_ulp_of_one) << format(r.dtype).name;
    EXPECT_EQ(half_ulp(r.dtype, -std::nextafter(2.0, 0.0)), r.half_ulp_below_two)
        << format(r.dtype).name;
    EXPECT_EQ(half_ulp(r.dtype, 100), r.half_ulp_of_100) << format(r.dtype).name;
    EXPECT_EQ(half_ulp(r.dtype, nan), inf);
    EXPECT_EQ(half_ulp(r.dtype, -inf), inf);
  }
  EXPECT_EQ(unit_roundoff(Dtype::f64), 0x1p-53);
  EXPECT_EQ(half_ulp(Dtype::f64, 1), 0x1p-53);
}

// 2^-1075 is no double. Zero would mean that f64 has no error near zero, so the bound has to round
// up.
TEST(DtypeErrors, HalfMinSubnormalOfF64IsNotZero) {
  EXPECT_GE(half_min_subnormal(Dtype::f64), 0x1p-1074);
  EXPECT_GE(half_ulp(Dtype::f64, 0), 0x1p-1074);
  EXPECT_GE(half_ulp(Dtype::f64, 0x1p-1022), 0x1p-1074);
}

TEST(DtypeNames, RoundTrip) {
  for (Dtype dtype : all_dtypes) EXPECT_EQ(value_named<Dtype>(format(dtype).name), dtype);
  for (const char* name : {"", "F32", "f33", "f3", "float", "f32 "})
    EXPECT_FALSE(value_named<Dtype>(name)) << name;
}

// A double made of any bits, or one in the range of the narrow formats, where the rounding happens.
double arbitrary_double() {
  const auto bits = *rc::gen::arbitrary<std::uint64_t>();
  if (*rc::gen::arbitrary<bool>()) return std::bit_cast<double>(bits);
  const auto exponent = static_cast<std::uint64_t>(*rc::gen::inRange(1023 - 160, 1023 + 140));
  return std::bit_cast<double>((bits & 0x800FFFFFFFFFFFFF) | exponent << 52);
}

RC_GTEST_PROP(DtypeProperty, RoundToIsDecodeOfEncode, ()) {
  const double x = arbitrary_double();
  for (Dtype dtype : all_dtypes) {
    if (dtype == Dtype::e8m0 || (dtype == Dtype::f4e2m1 && !std::isfinite(x))) continue;
    RC_ASSERT(same(round_to(dtype, x), decode(dtype, encode(dtype, x))));
  }
}

// Compares with all codes, not only with the neighbours.
RC_GTEST_PROP(DtypeProperty, EncodeGivesTheNearestOfAllCodes, ()) {
  const double x = arbitrary_double();
  RC_PRE(std::isfinite(x));
  for (const Narrow& f : narrow) {
    if (f.bits > 8) continue;
    const double error = std::fabs(defined(f.dtype, encode(f.dtype, x)) - x);
    for (Code code = 0; code < Code{1} << f.bits; ++code) {
      const double value = defined(f.dtype, code);
      if (std::isfinite(value)) RC_ASSERT(error <= std::fabs(value - x));
    }
  }
}

RC_GTEST_PROP(DtypeProperty, RoundingErrorIsAtMostHalfAnUlp, ()) {
  const double x = arbitrary_double();
  for (Dtype dtype :
       {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1}) {
    if (!(std::fabs(x) < overflow_threshold(dtype))) continue;
    const double rounded = round_to(dtype, x),
                 error = std::fabs(rounded - x);  // exact: both lie in one binade or next to zero
    RC_ASSERT(error <= half_ulp(dtype, x));
    RC_ASSERT(error <= std::fmax(unit_roundoff(dtype) * std::fabs(x), half_min_subnormal(dtype)));
    RC_ASSERT(round_to(dtype, -x) == -rounded);
    RC_ASSERT(round_to(dtype, rounded) == rounded);
  }
}

}  // namespace
}  // namespace assay
