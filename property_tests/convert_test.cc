// Compares the kernels' own conversions with those of problem/, which golden tables prove.
#include "kernels/simd/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/simd/codec.h"
#include "kernels/attention/dropout.h"
#include "oracle/visibility.h"
#include "problem/dtype.h"

namespace assay {
namespace {

TEST(Convert, DecodesEveryCode) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const auto c = static_cast<std::uint16_t>(code);
    const double f16 = decode(Dtype::f16, code), bf16 = decode(Dtype::bf16, code);
    if (std::isnan(f16)) EXPECT_TRUE(std::isnan(kernels::from_f16(c)));
    else EXPECT_EQ(kernels::from_f16(c), f16) << code;
    if (std::isnan(bf16)) EXPECT_TRUE(std::isnan(kernels::from_bf16(c)));
    else EXPECT_EQ(kernels::from_bf16(c), bf16) << code;
    EXPECT_EQ(std::signbit(kernels::from_f16(c)), code >> 15 != 0);
  }
}

// Tries every midpoint between neighbouring codes, the floats beside it, and a stride through all
// floats.
TEST(Convert, EncodesToNearestEven) {
  auto check = [](float x) {
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(decode(Dtype::f16, kernels::to_f16(x))));
      EXPECT_TRUE(std::isnan(decode(Dtype::bf16, kernels::to_bf16(x))));
      return;
    }
    ASSERT_EQ(kernels::to_f16(x), encode(Dtype::f16, x)) << x;
    ASSERT_EQ(kernels::to_bf16(x), encode(Dtype::bf16, x)) << x;
  };
  for (Dtype dtype : {Dtype::f16, Dtype::bf16})
    for (std::uint32_t code = 0; code + 1 < 0x7C00; ++code) {
      const float middle = static_cast<float>((decode(dtype, code) + decode(dtype, code + 1)) / 2);
      for (float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)})
        check(x), check(-x);
    }
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4093)
    check(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  for (float x :
       {65519.99f, 65520.0f, 65504.0f, INFINITY, 3.4e38f, 3.39e38f, 0x1.ffp127f, 0x1.fep127f})
    check(x), check(-x);
}

TEST(Codec, DecodesEveryCode) {
  for (Dtype dtype : {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1})
    for (std::uint64_t code = 0; code < std::uint64_t{1} << format(dtype).bits; ++code) {
      const double exact = decode(dtype, code);
      const float value = kernels::decoded_values(dtype)[code];
      if (std::isnan(exact)) EXPECT_TRUE(std::isnan(value)) << code;
      else EXPECT_EQ(value, exact) << code;
      EXPECT_EQ(std::signbit(value), std::signbit(exact)) << code;
    }
  for (std::uint64_t code = 0; code < 255; ++code)
    EXPECT_EQ(kernels::from_e8m0(static_cast<std::uint8_t>(code)), decode(Dtype::e8m0, code));
  EXPECT_TRUE(std::isnan(kernels::from_e8m0(0xFF)));
}

TEST(Codec, EncodesToNearestEven) {
  for (Dtype dtype : {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1}) {
    const kernels::NarrowFormat f = kernels::narrow_format(dtype);
    const auto check = [&](float x) {
      for (float y : {x, std::nextafter(x, 0.0f), std::nextafter(x, INFINITY)})
        for (float z : {y, -y})
          if (dtype != Dtype::f4e2m1 || std::isfinite(z))
            ASSERT_EQ(kernels::encode_narrow(f, z), encode(dtype, static_cast<double>(z))) << z;
    };
    for (std::uint64_t code = 0; code < f.max_code; ++code) {
      check(static_cast<float>(decode(dtype, code)));
      check(static_cast<float>((decode(dtype, code) + decode(dtype, code + 1)) / 2));
    }
    const auto largest = static_cast<float>(format(dtype).max_finite);
    for (float x : {largest, 1.01f * largest, 1.2f * largest, 1e30f, 3.4e38f, INFINITY, 1e-30f,
                    1e-40f, 1e-45f})
      check(x);
    if (dtype != Dtype::f4e2m1) EXPECT_EQ(kernels::encode_narrow(f, NAN), encode(dtype, NAN));
    for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 31; bits += 65521)
      check(std::bit_cast<float>(
          static_cast<std::uint32_t>(std::min<std::uint64_t>(bits, 0x7F7FFFFF))));
  }
}

// The scale is the least power of two that brings the largest element into range.
TEST(Codec, ScalesAreTheLeastThatFit) {
  for (Dtype dtype : {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1})
    for (int e = -149; e <= 127; ++e)
      for (double m : {1.0, 1.25, 1.5, 1.75, 1.875}) {
        const auto absmax = static_cast<float>(std::ldexp(m, e));
        for (float x : {absmax, std::nextafter(absmax, INFINITY), std::nextafter(absmax, 0.0f)}) {
          if (!std::isfinite(x)) continue;
          int expected = -127;
          while (static_cast<double>(x) > std::ldexp(format(dtype).max_finite, expected))
            ++expected;
          ASSERT_EQ(kernels::scale_exponent(kernels::narrow_format(dtype), x), expected) << x;
        }
      }
}

// Under its scale a number beside 2^128 would round up to 2^128, and would be read as infinity.
TEST(Codec, WhatIsStoredUnderAScaleIsFinite) {
  constexpr float most = std::numeric_limits<float>::max();
  for (Dtype dtype : {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1}) {
    const kernels::NarrowFormat f = kernels::narrow_format(dtype);
    EXPECT_EQ(kernels::max_code_under(f, kernels::scale_exponent(f, 1e38f)), f.max_code);
    const int e = kernels::scale_exponent(f, most);
    const std::uint32_t limit = kernels::max_code_under(f, e);
    ASSERT_LT(limit, f.max_code);
    EXPECT_LE(std::ldexp(decode(dtype, limit), e), static_cast<double>(most));
    EXPECT_GT(std::ldexp(decode(dtype, limit + 1), e), static_cast<double>(most));
  }
}

// The kernel's Philox and the oracle's library agree, although they share no code.
TEST(Dropout, KeepsWhatTheOracleKeeps) {
  Attention p;
  for (float dropout : {0.1f, 0.5f, 0.99f})
    for (std::uint64_t seed :
         {std::uint64_t{0}, std::uint64_t{7}, std::uint64_t{0x123456789ABCDEF0}}) {
      p.dropout = dropout;
      p.dropout_seed = seed;
      for (Index b : {0, 3})
        for (Index h : {0, 5})
          for (Index i = 0; i < 20; ++i)
            for (Index j = 0; j < 50; ++j)
              ASSERT_EQ(
                  kernels::dropout_word(seed, b, h, i, j) >= kernels::dropout_threshold(dropout),
                  keeps_weight(p, b, h, i, j));
    }
}

}  // namespace
}  // namespace assay
