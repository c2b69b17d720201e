// Formats of low-bit matrices: bytes written by hand, encoders on every midpoint and its
// neighbours, and all codes and scales.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>

#include "kernels/product/product.h"
#include "kernels/simd/targets.h"
#include "oracle/low_bit_operands.h"
#include "oracle/product.h"
#include "problem/generate.h"
#include "problem/weight_sets.h"
#include "testing/matchers.h"

namespace assay {
namespace {

std::vector<unsigned> bytes_of(const Tensor& t) {
  std::vector<unsigned> list;
  for (std::size_t i = 0; i < t.size_in_bytes(); ++i)
    list.push_back(static_cast<unsigned>(t.bytes()[i]));
  return list;
}

using testing::ElementsAre;

// ---- Golden bytes, from the definitions in problem/low_bit.h ----

// There are two columns of K = 3: 0.5, -1.5, 6 under the scale 2^3, and -0, 2, 4 under NaN.
TEST(LowBitBytes, Mxfp4) {
  const unsigned char codes[] = {0xB1, 0x07, 0x48, 0x06}, scales[] = {130, 255};
  LowBitView w{LowBit::mxfp4,
               3,
               2,
               32,
               reinterpret_cast<const std::byte*>(codes),
               reinterpret_cast<const std::byte*>(scales),
               nullptr,
               1};
  const std::vector<double> values = decode_weights(w);
  EXPECT_EQ(values[0], 4);
  EXPECT_EQ(values[2], -12);
  EXPECT_EQ(values[4], 48);
  for (std::size_t at : {1u, 3u, 5u}) EXPECT_TRUE(std::isnan(values[at]));
  LowBitMatrix m(LowBit::mxfp4, 3, 2, 32);
  for (auto [k, n, code] :
       {std::tuple{0, 0, 1u}, {1, 0, 11u}, {2, 0, 7u}, {0, 1, 8u}, {1, 1, 4u}, {2, 1, 6u}})
    m.set_code(k, n, code);
  m.set_scale(0, 0, 130);
  m.set_scale(0, 1, 255);
  // The reference packer fills the nibble behind K with ones. It has no meaning.
  EXPECT_THAT(bytes_of(m.codes()), ElementsAre(0xB1, 0xF7, 0x48, 0xF6));
  EXPECT_THAT(bytes_of(m.scales()), ElementsAre(130, 255));
}

TEST(LowBitBytes, Nvfp4) {
  // K = 18 has two groups. The scales are 1.125 (0x39) and 448 (0x7E), and the tensor scale is 0.5.
  unsigned char codes[9] = {0x21}, scales[] = {0x39, 0x7E};
  codes[8] = 0x9F;  // k = 16: -6; k = 17: -0.5
  LowBitView w{LowBit::nvfp4,
               18,
               1,
               16,
               reinterpret_cast<const std::byte*>(codes),
               reinterpret_cast<const std::byte*>(scales),
               nullptr,
               0.5f};
  const std::vector<double> values = decode_weights(w);
  EXPECT_EQ(values[0], 0.5 * 1.125 * 0.5);
  EXPECT_EQ(values[1], 1 * 1.125 * 0.5);
  EXPECT_EQ(values[2], 0);
  EXPECT_EQ(values[16], -6 * 448 * 0.5);
  EXPECT_EQ(values[17], -0.5 * 448 * 0.5);
}

// A word holds eight nibbles along k, the least significant first. The words are [K / 8][N] and the
// scales [K / G][N].
TEST(LowBitBytes, GroupedFp4) {
  const std::uint32_t codes[] = {0x76543210, 0xFEDCBA98, 0x00000003, 0x00000005};  // K = 9, N = 2
  const std::uint16_t scales[] = {0x3C00, 0x4000, 0x0001, 0x3800};  // 1, 2; 2^-24, 0.5
  LowBitView w{LowBit::fp4,
               9,
               2,
               8,
               reinterpret_cast<const std::byte*>(codes),
               reinterpret_cast<const std::byte*>(scales),
               nullptr,
               1};
  const std::vector<double> values = decode_weights(w);
  const double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (std::size_t k = 0; k < 8; ++k) {
    EXPECT_EQ(values[2 * k], magnitudes[k]);
    EXPECT_EQ(values[2 * k + 1], -2 * magnitudes[k]);
  }
  EXPECT_EQ(values[16], 1.5 * 0x1p-24);
  EXPECT_EQ(values[17], 3 * 0.5);
}

// Of k = 0..3 the positions 1 and 3 are kept (3 * 4 + 1 = 13), with codes 2 (1.0) and 12 (-2). Of k
// = 4..7 the positions 0 and 2 are kept (8), with codes 7 (6) and 1 (0.5).
TEST(LowBitBytes, SparseFp4) {
  const std::uint32_t codes[] = {0x000017C2}, kept[] = {0x0000008D};
  const std::uint16_t scales[] = {0x3C00};
  LowBitView w{LowBit::fp4_sparse,
               8,
               1,
               128,
               reinterpret_cast<const std::byte*>(codes),
               reinterpret_cast<const std::byte*>(scales),
               reinterpret_cast<const std::byte*>(kept),
               1};
  EXPECT_THAT(decode_weights(w), ElementsAre(0, 1, 0, -2, 6, 0, 0.5, 0));
}

TEST(LowBitBytes, Integers) {
  {
    const unsigned char codes[] = {0x80, 0x7F, 0x00, 0xFF};  // [K][N]: -128, 127; 0, -1
    const signed char zeros[] = {-128, 3};
    const std::uint16_t scales[] = {0x3800, 0x3C00};
    LowBitView w{LowBit::int8,
                 2,
                 2,
                 8,
                 reinterpret_cast<const std::byte*>(codes),
                 reinterpret_cast<const std::byte*>(scales),
                 reinterpret_cast<const std::byte*>(zeros),
                 1};
    EXPECT_THAT(decode_weights(w), ElementsAre(0, 124, 64, -4));
  }
  {
    const std::uint32_t codes[] = {0x000000F0};  // q = 0, 15
    const unsigned char zeros[] = {15};
    const std::uint16_t scales[] = {0x4000};
    LowBitView w{LowBit::int4,
                 2,
                 1,
                 8,
                 reinterpret_cast<const std::byte*>(codes),
                 reinterpret_cast<const std::byte*>(scales),
                 reinterpret_cast<const std::byte*>(zeros),
                 1};
    EXPECT_THAT(decode_weights(w), ElementsAre(-30, 0));
  }
}

TEST(LowBitBytes, Fp8WithAndWithoutScales) {
  const unsigned char codes[] = {0x7E, 0x01, 0x7F};  // 448, 2^-9, NaN
  LowBitView w{LowBit::f8e4m3, 3,       1, 0, reinterpret_cast<const std::byte*>(codes),
               nullptr,        nullptr, 1};
  std::vector<double> values = decode_weights(w);
  EXPECT_EQ(values[0], 448);
  EXPECT_EQ(values[1], 0x1p-9);
  EXPECT_TRUE(std::isnan(values[2]));
  const unsigned char fives[] = {0x7B, 0x7C, 0x01},
                      scales[] = {0};  // 57344, infinity, 2^-16; 2^-127
  w = {LowBit::f8e5m2,
       3,
       1,
       32,
       reinterpret_cast<const std::byte*>(fives),
       reinterpret_cast<const std::byte*>(scales),
       nullptr,
       1};
  values = decode_weights(w);
  EXPECT_EQ(values[0], 57344 * 0x1p-127);
  EXPECT_EQ(values[1], std::numeric_limits<double>::infinity());
  EXPECT_EQ(values[2], 0x1p-143);
}

// ---- Encoders ----

// The reference encoder and the encoder of the kernels agree, element by element. Both give the
// nearest code, and ties go to the even code.
void expect_nearest(LowBit format, Index group, const std::vector<float>& column) {
  const Index k = std::ssize(column);
  const LowBitMatrix reference =
      quantize(format, k, 1, group, [&](Index i, Index) { return column[usize(i)]; });
  const TensorView w{const_cast<float*>(column.data()), Dtype::f32, {1, 1, k, 1}, {0, 0, 1, 1}, 0};
  for (const std::string& target : kernels::runnable_targets()) {
    SCOPED_TRACE(target);
    kernels::LowBitBytes bytes;
    const kernels::Status status = kernels::quantize_weights(
        w, format, {.group = group, .target = *kernels::Target::named(target)}, bytes);
    ASSERT_TRUE(status.ok()) << status.detail;
    EXPECT_EQ(bytes.tensor_scale, reference.view().tensor_scale);
    EXPECT_EQ(decode_weights(bytes.view()), decode_weights(reference.view()));
    ASSERT_EQ(bytes.scales.size(), reference.scales().size_in_bytes());
    EXPECT_EQ(std::memcmp(bytes.scales.data(), reference.scales().bytes(), bytes.scales.size()), 0);
  }
}

// Whole tiles and tails of columns and rows, in every layout of W: the same numbers as the
// reference encoder gives.
TEST(LowBitEncoders, AgreeOnEveryTileAndTail) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (const Index k : {8, 100, 264})
    for (const Index n : {1, 63, 130}) {
      std::vector<float> rows(usize(k * n)), columns(usize(k * n));
      for (Index i = 0; i < k; ++i)
        for (Index j = 0; j < n; ++j)
          rows[usize(i * n + j)] = columns[usize(j * k + i)] =
              std::ldexp(normal(random), static_cast<int>(i % 7) - 3);
      for (const LowBit format : values_of<LowBit>) {
        const Index group = traits(format).group;
        const LowBitMatrix reference =
            quantize(format, k, n, group, [&](Index i, Index j) { return rows[usize(i * n + j)]; });
        for (const auto& [data, stride] :
             {std::pair{&rows, std::array<Index, 2>{n, 1}}, {&columns, {1, k}}}) {
          const TensorView w{
              data->data(), Dtype::f32, {1, 1, k, n}, {0, 0, stride[0], stride[1]}, 0};
          for (const std::string& target : kernels::runnable_targets()) {
            kernels::LowBitBytes bytes;
            ASSERT_TRUE(kernels::quantize_weights(
                            w, format, {.target = *kernels::Target::named(target)}, bytes)
                            .ok());
            EXPECT_EQ(decode_weights(bytes.view()), decode_weights(reference.view()))
                << traits(format).name << " " << k << "x" << n << " " << target;
          }
        }
      }
    }
}

// Weights in 16 bits are quantized like the same numbers in f32.
TEST(LowBitEncoders, ReadWeightsOfSixteenBits) {
  constexpr Index k = 96, n = 9;
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    const Tensor narrow(dtype, {1, 1, k, n}, {{0, 0, n, 1}, 0, k * n}),
        wide(Dtype::f32, {1, 1, k, n}, {{0, 0, n, 1}, 0, k * n});
    for (Index at = 0; at < k * n; ++at) {
      const double x = std::ldexp(static_cast<double>((at * 37) % 129 - 64),
                                  static_cast<int>(at % 5) - 6);  // a number of either sign
      store(narrow.view(), at, x);
      store(wide.view(), at, x);
    }
    for (int format = 0; format < count_of<LowBit>; ++format) {
      kernels::LowBitBytes of_narrow, of_wide;
      ASSERT_TRUE(
          kernels::quantize_weights(narrow.view(), static_cast<LowBit>(format), {}, of_narrow)
              .ok());
      ASSERT_TRUE(
          kernels::quantize_weights(wide.view(), static_cast<LowBit>(format), {}, of_wide).ok());
      EXPECT_EQ(of_narrow.codes, of_wide.codes);
      EXPECT_EQ(of_narrow.scales, of_wide.scales);
      EXPECT_EQ(of_narrow.tensor_scale, of_wide.tensor_scale);
    }
  }
}

// In each group the largest element makes the scale 1. The others are every midpoint between
// neighbouring codes, one float below it and one above it.
TEST(LowBitEncoders, RoundMidpointsToEvenAndTheirNeighboursToTheNearest) {
  struct Rule {
    LowBit format;
    Dtype element;
    float largest;  // the element that makes the scale 1
  };
  for (const Rule& rule : {Rule{LowBit::mxfp4, Dtype::f4e2m1, 6},
                           {LowBit::fp4, Dtype::f4e2m1, 6},
                           {LowBit::f8e4m3, Dtype::f8e4m3, 448},
                           {LowBit::f8e5m2, Dtype::f8e5m2, 57344}}) {
    const Index group = rule.format == LowBit::fp4 ? 8 : 32;
    const int codes = rule.element == Dtype::f4e2m1 ? 8 : 128;
    int checked = 0;
    for (int code = 0; code + 1 < codes; ++code) {
      const double low = decode(rule.element, static_cast<std::uint64_t>(code)),
                   high = decode(rule.element, static_cast<std::uint64_t>(code + 1));
      if (!std::isfinite(high)) break;
      const auto middle = static_cast<float>((low + high) / 2);
      for (float sign : {1.0f, -1.0f}) {
        const std::vector<float> column = {rule.largest,
                                           sign * middle,
                                           sign * std::nextafter(middle, 0.0f),
                                           sign * std::nextafter(middle, 1e30f),
                                           0,
                                           -0.0f,
                                           0,
                                           0};
        const LowBitMatrix m =
            quantize(rule.format, 8, 1, group, [&](Index i, Index) { return column[usize(i)]; });
        const std::vector<double> values = decode_weights(m.view());
        const double s = static_cast<double>(sign);
        EXPECT_EQ(values[1], s * (code % 2 == 0 ? low : high)) << code;
        EXPECT_EQ(values[2], s * low) << code;
        EXPECT_EQ(values[3], s * high) << code;
        expect_nearest(rule.format, group, column);
        ++checked;
      }
    }
    EXPECT_EQ(checked, rule.element == Dtype::f4e2m1   ? 14
                       : rule.element == Dtype::f8e4m3 ? 252
                                                       : 246);
  }
}

TEST(LowBitEncoders, AgreeOnEveryScaleAndBeside) {
  const LowBit all[] = {LowBit::mxfp4,  LowBit::nvfp4,  LowBit::fp4,  LowBit::fp4_sparse,
                        LowBit::f8e4m3, LowBit::f8e5m2, LowBit::int8, LowBit::int4};
  for (LowBit format : all) {
    const bool has_f16_scales = traits(format).scale == Dtype::f16;
    for (int e = -149; e <= 127; ++e) {
      const float power = std::ldexp(1.0f, e);
      for (float largest :
           {power, std::nextafter(power, 0.0f), std::nextafter(power, 1e38f), 1.5f * power}) {
        if (!std::isfinite(largest) || (has_f16_scales && largest > 65504)) continue;
        // The largest element is negative, so a maximum without absolute values would miss it.
        expect_nearest(format, traits(format).group,
                       {0.3f * largest, -largest, largest / 6, 0.25f * largest, -0.75f * largest,
                        largest / 7, 0.9f * largest, 0});
      }
    }
    expect_nearest(format, traits(format).group, std::vector<float>(40, 0.0f));
    expect_nearest(format, traits(format).group, std::vector<float>(40, -3.0f));
  }
}

// ---- Rules of scales ----

TEST(GroupScales, AreThoseOfTheirRule) {
  struct Scales {
    LowBit format;
    double largest;
    int floor, ceil, rceil, even;  // exponents
  };
  for (const Scales& s : {Scales{LowBit::mxfp4, 4, 0, 0, 0, 0},
                          {LowBit::mxfp4, 4.0001, 0, 1, 0, 0},
                          {LowBit::mxfp4, 6, 0, 1, 0, 0},
                          {LowBit::mxfp4, 6.0001, 0, 1, 1, 0},
                          {LowBit::mxfp4, 7, 0, 1, 1, 1},  // between 6 and 8, to the even one
                          {LowBit::mxfp4, 7.9999, 0, 1, 1, 1},
                          {LowBit::f8e4m3, 448, 0, 1, 0, 0},
                          {LowBit::f8e4m3, 480, 0, 1, 1, 0},
                          {LowBit::f8e4m3, 496, 0, 1, 1, 1},
                          {LowBit::f8e5m2, 57344, 0, 1, 0, 0},
                          {LowBit::f8e5m2, 61440, 0, 1, 1, 1},
                          {LowBit::mxfp4, 0, -127, -127, -127, -127},
                          {LowBit::mxfp4, 0x1p-149, -127, -127, -127, -127}}) {
    for (const auto& [rule, wanted] : {std::pair{GroupScale::floor, s.floor},
                                       {GroupScale::ceil, s.ceil},
                                       {GroupScale::rceil, s.rceil},
                                       {GroupScale::even, s.even}}) {
      const LowBitMatrix made = quantize_by(rule, s.format, 32, 1, 32, [&](Index k, Index) {
        return k == 5 ? -round_to(Dtype::f32, s.largest) : 0;
      });
      EXPECT_EQ(static_cast<int>(bytes_of(made.scales()).at(0)) - 127, wanted)
          << traits(s.format).name << ' ' << s.largest << ' ' << name_of(rule);
    }
  }
}

// What a quantizer divides takes every code and every tie between two codes, under both scales that
// its rule may choose.
TEST(WeightSets, HaveEveryCodeAndEveryTie) {
  for (const LowBit format : values_of<LowBit>) {
    const LowBitTraits& t = traits(format);
    if (t.layout == CodeLayout::sparse) continue;  // keeps two of four
    const WeightSet set = ties_of(format, t.group);
    for (const GroupScale rule : {GroupScale::floor, GroupScale::rceil}) {
      const LowBitMatrix stored = quantize_by(rule, format, set.k, set.n, t.group,
                                              [&](Index k, Index n) { return set.at(k, n); });
      const ProductColumns decoded(stored.view(), 0, set.n);
      std::set<double> quotients;
      for (Index k = 0; k < set.k; ++k)
        for (Index n = 0; n < set.n; ++n)
          if (const double scale = decoded.scale_at(k / decoded.step, n); scale > 0)
            quotients.insert(set.at(k, n) /
                             (scale * static_cast<double>(stored.view().tensor_scale)));
      if (t.integer) {
        for (double q = 0.5; q < (t.bits == 8 ? 127 : 7); q += 0.5)
          EXPECT_TRUE(quotients.contains(q) && quotients.contains(-q)) << t.name << ' ' << q;
        continue;
      }
      const auto last = encode(t.element, assay::format(t.element).max_finite);
      for (std::uint64_t code = 1; code <= last; ++code) {
        const double x = decode(t.element, code), tie = (x + decode(t.element, code - 1)) / 2;
        EXPECT_TRUE(quotients.contains(x) && quotients.contains(-x)) << t.name << ' ' << x;
        EXPECT_TRUE(quotients.contains(tie) && quotients.contains(-tie)) << t.name << ' ' << tie;
      }
    }
  }
}

// The matrix of a dequantizer has every code in every column, and scales over their whole range.
TEST(WeightSets, HaveEveryCodeUnderManyScales) {
  for (const LowBit format : values_of<LowBit>) {
    const LowBitTraits& t = traits(format);
    if (t.layout == CodeLayout::sparse) continue;
    const LowBitMatrix all = codes_of(format, t.group);
    const ProductColumns decoded(all.view(), 0, all.view().n);
    std::set<double> scales;
    for (Index n = 0; n < decoded.count; ++n) {
      scales.insert(decoded.scale_at(0, n));
      std::set<double> codes;
      for (Index k = 0; k < all.view().k; ++k)
        if (const double x = decoded.code_at(k, n); !std::isnan(x)) codes.insert(x);
      // 0 and -0 are one number, and a NaN is none.
      const std::size_t apart = t.integer                  ? 0
                                : format == LowBit::f8e4m3 ? 3
                                : format == LowBit::f8e5m2 ? 7
                                                           : 1;
      EXPECT_GE(codes.size(), (std::size_t{1} << (t.integer ? t.bits - 1 : t.bits)) - apart)
          << t.name;
    }
    EXPECT_GE(scales.size(), t.scale == Dtype::f8e4m3 ? 120u : 250u) << t.name;
  }
}

// Keeps two of four by magnitude. A tie goes to the lower index.
TEST(LowBitEncoders, KeepTheTwoLargestOfFour) {
  const std::vector<float> column = {1, -3, 3, 3, 0, 0, 0, 0, 2, 4, -6, 1, 6, 5, 5, -6};
  for (int which = 0; which < 2; ++which) {
    kernels::LowBitBytes bytes;
    const LowBitMatrix reference =
        quantize(LowBit::fp4_sparse, 16, 1, 128, [&](Index i, Index) { return column[usize(i)]; });
    const TensorView w{
        const_cast<float*>(column.data()), Dtype::f32, {1, 1, 16, 1}, {0, 0, 1, 1}, 0};
    ASSERT_TRUE(kernels::quantize_weights(w, LowBit::fp4_sparse, {}, bytes).ok());
    EXPECT_THAT(decode_weights(which == 0 ? reference.view() : bytes.view()),
                ElementsAre(0, -3, 3, 0, 0, 0, 0, 0, 0, 4, -6, 0, 6, 0, 0, -6));
  }
  for (const std::vector<float>& ties : {std::vector<float>{3, 3, 5, 3},
                                         {1, 5, 5, 5},
                                         {0, 0, 0, 0},
                                         {-2, 2, -2, 2},
                                         {1, 2, 3, 4},
                                         {4, 3, 2, 1}})
    expect_nearest(LowBit::fp4_sparse, 128, ties);
}

TEST(LowBitEncoders, RefuseWhatHasNoCode) {
  auto quantize_one = [](LowBit format, float x, kernels::QuantizeOptions options = {},
                         Index k = 32) {
    const std::vector<float> column(usize(k), x);
    kernels::LowBitBytes bytes;
    bytes.codes.resize(3, std::byte{9});
    const TensorView w{
        const_cast<float*>(column.data()), Dtype::f32, {1, 1, k, 1}, {0, 0, 1, 1}, 0};
    const kernels::Status status = kernels::quantize_weights(w, format, options, bytes);
    // The result is never half written.
    EXPECT_TRUE(status.ok() || bytes.codes.size() == 3);
    return status.ok() ? "" : fmt::format("{}: {}", static_cast<int>(status.code), status.detail);
  };
  const float inf = std::numeric_limits<float>::infinity();
  for (LowBit format : {LowBit::mxfp4, LowBit::nvfp4, LowBit::fp4, LowBit::f8e4m3, LowBit::int8}) {
    EXPECT_EQ(quantize_one(format, std::nanf("")),
              "1: w[0, 0] = nan is not finite, and has no code");
    EXPECT_EQ(quantize_one(format, -inf), "1: w[0, 0] = -inf is not finite, and has no code");
  }
  EXPECT_EQ(quantize_one(LowBit::fp4, 65520.0f * 6),
            "1: the scale 65520 of group 0 of column 0 is above 65504, the largest of f16");
  EXPECT_EQ(quantize_one(LowBit::fp4, 393000), "");
  EXPECT_EQ(quantize_one(LowBit::fp4, 1, {128, false}),
            "1: k = 32 is not whole groups of 128, and pad_k is off");
  EXPECT_EQ(quantize_one(LowBit::mxfp4, 1, {0, false}, 33),
            "1: k = 33 is not whole groups of 32, and pad_k is off");
  EXPECT_EQ(quantize_one(LowBit::mxfp4, 1, {16}), "1: group = 16: groups of mxfp4 have 32");
  EXPECT_EQ(quantize_one(LowBit::int4, 1, {12}), "1: group = 12 is not a positive multiple of 8");
  EXPECT_EQ(quantize_one(LowBit::int4, 1, {-1}), "1: group = -1 is not a positive multiple of 8");
  EXPECT_EQ(quantize_one(LowBit::fp4_sparse, 1, {}, 30),
            "1: k = 30 is not a multiple of 4, of which two are kept");
  EXPECT_THROW(quantize(LowBit::fp4, 8, 1, 8, [](Index, Index) { return 1e6; }), std::domain_error);
  EXPECT_THROW(quantize(LowBit::mxfp4, 8, 1, 32, [](Index, Index) { return std::nan(""); }),
               std::domain_error);
}

// ---- Exhaustive ----

// Every pair of codes of every pair of formats. With K = 1, C is the product itself, and the exact
// result is a double.
TEST(LowBitExhaustive, EveryPairOfCodesIsExact) {
  const LowBit columns[] = {LowBit::mxfp4, LowBit::f8e4m3, LowBit::f8e5m2};
  std::int64_t pairs = 0;
  for (LowBit a_format : columns)
    for (LowBit w_format : columns) {
      const Index ma = traits(a_format).bits == 8 ? 256 : 16,
                  nw = traits(w_format).bits == 8 ? 256 : 16;
      LowBitMatrix a(a_format, 1, ma, traits(a_format).group),
          w(w_format, 1, nw, traits(w_format).group);
      for (Index c = 0; c < ma; ++c)
        a.set_code(0, c, static_cast<std::uint32_t>(c)), a.set_scale(0, c, 127);
      for (Index c = 0; c < nw; ++c)
        w.set_code(0, c, static_cast<std::uint32_t>(c)), w.set_scale(0, c, 127);
      Product p;
      p.m = ma;
      p.n = nw;
      p.k = 1;
      p.a_low = a.view();
      p.w = w.view();
      std::vector<float> c(usize(ma * nw));
      const TensorView out{c.data(), Dtype::f32, {1, 1, ma, nw}, {0, 0, nw, 1}, 0};
      std::shared_ptr<const kernels::PackedWeights> packed;
      ASSERT_TRUE(kernels::PackedWeights::pack(p.w, packed).ok());
      ASSERT_TRUE(kernels::product(p.a_low, *packed, out).ok());
      for (Index i = 0; i < ma; ++i)
        for (Index j = 0; j < nw; ++j) {
          const double wanted = decode(traits(a_format).element, static_cast<std::uint64_t>(i)) *
                                decode(traits(w_format).element, static_cast<std::uint64_t>(j));
          const ExactSum exact = exact_product(p, i, j);
          const double got = static_cast<double>(c[usize(i * nw + j)]);
          if (std::isnan(wanted)) {
            ASSERT_TRUE(std::isnan(exact.high) && std::isnan(got)) << i << " " << j;
          } else {
            ASSERT_EQ(exact.high, wanted) << i << " " << j;
            ASSERT_EQ(got, wanted) << i << " " << j;
            ASSERT_EQ(exact.low, 0);
          }
          ++pairs;
        }
    }
  EXPECT_EQ(pairs, (16 + 256 + 256) * (16 + 256 + 256));
}

// Every scale code of every kind with every code of the elements. The subnormal, the smallest and
// the largest scale and NaN are among them.
TEST(LowBitExhaustive, EveryScaleCodeUnderEveryCode) {
  std::int64_t checked = 0;
  for (LowBit format : {LowBit::mxfp4, LowBit::nvfp4, LowBit::fp4, LowBit::f8e4m3, LowBit::f8e5m2,
                        LowBit::int8, LowBit::int4}) {
    const LowBitTraits& t = traits(format);
    // f16 has 31,744 allowed scales. Every 7th of them is tried, and NaN.
    std::vector<std::uint32_t> scales;
    for (std::uint32_t s = 0; s < (t.scale == Dtype::e8m0     ? 256u
                                   : t.scale == Dtype::f8e4m3 ? 128u
                                                              : 0x7C00u);
         s += t.scale == Dtype::f16 ? 7 : 1)
      scales.push_back(s);
    if (t.scale == Dtype::f16) scales.insert(scales.end(), {0x7BFF, 0x7E00});
    const Index n = std::ssize(scales), k = std::min<Index>(t.group, t.bits == 8 ? 256 : 16),
                codes = t.bits == 8 ? 256 : 16;
    for (Index first = 0; first < codes; first += k) {
      LowBitMatrix w(format, k, n, t.group);
      for (Index c = 0; c < n; ++c) {
        w.set_scale(0, c, scales[usize(c)]);
        if (t.integer) w.set_zero(0, c, static_cast<int>(c % 16));
        for (Index d = 0; d < k; ++d) w.set_code(d, c, static_cast<std::uint32_t>(first + d));
      }
      // A is the identity, so C lists the weights.
      std::vector<float> a(usize(k * k), 0), out(usize(k * n));
      for (Index d = 0; d < k; ++d) a[usize(d * k + d)] = 1;
      std::shared_ptr<const kernels::PackedWeights> packed;
      ASSERT_TRUE(kernels::PackedWeights::pack(w.view(), packed).ok());
      const TensorView identity{a.data(), Dtype::f32, {1, 1, k, k}, {0, 0, k, 1}, 0},
          c{out.data(), Dtype::f32, {1, 1, k, n}, {0, 0, n, 1}, 0};
      ASSERT_TRUE(kernels::product(identity, *packed, c).ok());
      Product p;
      p.m = p.k = k;
      p.n = n;
      p.a = identity;
      p.w = w.view();
      JudgeOptions options;
      options.power = false;
      ProductContract contract;
      contract.order = ProductOrder::groups_in_order;
      const Verdict v = judge_product(p, c, contract, options);
      ASSERT_THAT(v, Passes()) << t.name;
      checked += v.inside;
      // Only what leaves the range of fp32 under the largest powers of two is excused.
      for (const auto& [why, excused] : v.excused)
        EXPECT_TRUE(t.scale == Dtype::e8m0 && excused < k * 24)
            << t.name << ": " << excused << " " << why;
      // By hand: NaN if the scale or the code is NaN, otherwise the product.
      const std::vector<double> weights = decode_weights(w.view());
      for (Index d = 0; d < k; ++d)
        for (Index j = 0; j < n; ++j) {
          bool tainted = false;
          for (Index e = 0; e < k; ++e) tainted |= !std::isfinite(weights[usize(e * n + j)]);
          const double got = static_cast<double>(out[usize(d * n + j)]),
                       wanted = weights[usize(d * n + j)];
          if (!tainted && std::fabs(wanted) < 0x1p127)
            ASSERT_EQ(got, wanted) << t.name << " " << d << " " << j;
          if (!tainted) continue;
          double sum = 0;  // the row of the identity times a column that holds NaN or infinities: 0
                           // * infinity is NaN
          for (Index e = 0; e < k; ++e) sum += (e == d ? 1 : 0) * weights[usize(e * n + j)];
          ASSERT_FALSE(std::isfinite(sum));
          if (std::isnan(sum)) ASSERT_TRUE(std::isnan(got)) << t.name << " " << d << " " << j;
          else ASSERT_EQ(got, sum) << t.name << " " << d << " " << j;
        }
    }
  }
  EXPECT_GT(checked, 1000000);
}

}  // namespace
}  // namespace assay
