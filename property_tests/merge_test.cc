// Compares attention_merge with binary64, and with attention over all keys at once.
#include "kernels/attention/merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "problem/generate.h"
#include "testing/same_bits.h"

namespace assay {
namespace {

using kernels::LogBase;
using kernels::StatusCode;

Tensor tensor_of(Dtype dtype, const Extents& s) {
  return Tensor(dtype, s, {{s[1] * s[2] * s[3], s[2] * s[3], s[3], 1}, 0, element_count(s)});
}

struct Parts {
  Parts(std::size_t count, const Extents& shape, Dtype dtype, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (std::size_t s = 0; s < count; ++s) {
      o.push_back(tensor_of(dtype, shape));
      lse.push_back(tensor_of(Dtype::f32, {shape[0], shape[1], shape[2], 1}));
      for (Index e = 0; e < element_count(shape); ++e) store(o[s].view(), e, normal(random));
      for (Index e = 0; e < element_count(lse[s].view().shape); ++e)
        store(lse[s].view(), e, random() % 5 == 0 ? -INFINITY : 8 * normal(random));
      views.push_back({o[s].view(), lse[s].view()});
    }
  }
  std::vector<Tensor> o, lse;
  std::vector<AttentionOutput> views;
};

TEST(Merge, IsExactToOneRounding) {
  const Extents shape{2, 3, 11, 7};
  for (std::size_t count : {0u, 1u, 2u, 9u})
    for (LogBase base : {LogBase::natural, LogBase::two})
      for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
        const Parts parts(count, shape, dtype, 5 + count);
        const Tensor o = tensor_of(dtype, shape), lse = tensor_of(Dtype::f32, {2, 3, 11, 1});
        ASSERT_TRUE(kernels::attention_merge(parts.views, base, {o.view(), lse.view()}, 2).ok());
        for (Index row = 0; row < 2 * 3 * 11; ++row) {
          const auto exp = [&](double x) {
            return base == LogBase::two ? std::exp2(x) : std::exp(x);
          };
          double sum = 0, m = -INFINITY;
          for (const Tensor& t : parts.lse) m = std::max(m, load(t.view(), row));
          for (const Tensor& t : parts.lse)
            sum += m == -INFINITY ? 0 : exp(load(t.view(), row) - m);
          const double expected = sum == 0
                                      ? -INFINITY
                                      : m + (base == LogBase::two ? std::log2(sum) : std::log(sum)),
                       got = load(lse.view(), row);
          if (sum == 0) ASSERT_EQ(got, -INFINITY);
          else
            ASSERT_TRUE(std::fabs(got - expected) <= 1.0001 * half_ulp(Dtype::f32, expected))
                << got << " " << expected;
          for (Index c = 0; c < 7; ++c) {
            double value = 0, magnitude = 0;
            for (std::size_t s = 0; s < count && sum > 0; ++s) {
              const double term = exp(load(parts.lse[s].view(), row) - m) / sum *
                                  load(parts.o[s].view(), row * 7 + c);
              value += term;
              magnitude += std::fabs(term);
            }
            ASSERT_TRUE(std::fabs(load(o.view(), row * 7 + c) - value) <=
                        half_ulp(dtype, value) + 1e-14 * magnitude);
          }
        }
      }
}

// (1 + 2^-8) + 2^-24 lies above the midpoint of 1 and its successor in bf16. Rounded to f32 first,
// it would become that midpoint and go down.
TEST(Merge, RoundsOnceToNarrowOutputs) {
  const Parts parts(2, {1, 1, 1, 1}, Dtype::f32, 1);
  for (std::size_t s = 0; s < 2; ++s) store(parts.lse[s].view(), 0, 3);
  for (auto [dtype, step] : {std::pair{Dtype::bf16, 0x1p-8}, {Dtype::f16, 0x1p-11}})
    for (double sign : {1.0, -1.0}) {
      store(parts.o[0].view(), 0, sign * (1 + step));
      store(parts.o[1].view(), 0, sign * (1 + step + 0x1p-23));
      const Tensor o = tensor_of(dtype, {1, 1, 1, 1});
      ASSERT_TRUE(kernels::attention_merge(parts.views, LogBase::natural, {o.view(), {}}).ok());
      EXPECT_EQ(load(o.view(), 0), sign * (1 + 2 * step));
    }
}

// The keys are in three uneven parts, of which some rows do not see one. The merge is compared with
// one call over all keys.
TEST(Merge, PartsOfTheKeysGiveTheWhole) {
  const Case c = parse_case("attention b=2 h=4/2 l=9x300 d=32 causal offset=120 seed=4");
  const Inputs in(c);
  const Outputs whole(c);
  ASSERT_TRUE(kernels::attention_forward(in.problem, whole.view()).ok());
  std::vector<Outputs> outputs;
  std::vector<AttentionOutput> parts;
  for (auto [begin, end] : {std::pair<Index, Index>{0, 7}, {7, 125}, {125, 300}}) {
    Attention p = in.problem;
    p.shape.keys = end - begin;
    p.k.origin = p.k.at(0, 0, begin, 0);
    p.v.origin = p.v.at(0, 0, begin, 0);
    for (Index& offset : p.offset) offset -= begin;
    outputs.emplace_back(c);
    ASSERT_TRUE(kernels::attention_forward(p, outputs.back().view()).ok());
  }
  for (const Outputs& o : outputs) parts.push_back(o.view());
  const Outputs merged(c);
  ASSERT_TRUE(kernels::attention_merge(parts, LogBase::natural, merged.view()).ok());
  for (Index e = 0; e < 2 * 4 * 9 * 32; ++e)
    ASSERT_NEAR(load(merged.o.view(), e), load(whole.o.view(), e), 4e-6);
  for (Index e = 0; e < 2 * 4 * 9; ++e)
    ASSERT_NEAR(load(merged.lse.view(), e), load(whole.lse.view(), e), 4e-6);
}

// The O of an empty part is not read. NaN and +inf in an LSE change their own row and no other.
TEST(Merge, EmptyPartsAndSpecialValues) {
  const Extents shape{1, 1, 5, 2};
  const Parts parts(2, shape, Dtype::f32, 1);
  const double inf = INFINITY, nan = NAN;
  const double lse[5][2] = {{-inf, 3}, {-inf, -inf}, {nan, 1}, {1, inf}, {2, 2}};
  for (Index row = 0; row < 5; ++row)
    for (std::size_t s = 0; s < 2; ++s) store(parts.lse[s].view(), row, lse[row][s]);
  for (Index e = 0; e < 4; ++e) store(parts.o[0].view(), e, nan);
  const Tensor o = tensor_of(Dtype::f32, shape), out_lse = tensor_of(Dtype::f32, {1, 1, 5, 1});
  ASSERT_TRUE(kernels::attention_merge(parts.views, LogBase::two, {o.view(), out_lse.view()}).ok());
  EXPECT_EQ(load(o.view(), 1), load(parts.o[1].view(), 1));
  EXPECT_EQ(load(out_lse.view(), 0), 3);
  EXPECT_EQ(load(o.view(), 3), 0);
  EXPECT_EQ(load(out_lse.view(), 1), -inf);
  for (Index row : {2, 3}) {
    EXPECT_TRUE(std::isnan(load(o.view(), 2 * row)));
    EXPECT_TRUE(std::isnan(load(out_lse.view(), row)));
  }
  EXPECT_EQ(load(out_lse.view(), 4), 3);  // 2 + log2(2)
  ASSERT_TRUE(kernels::attention_merge(parts.views, LogBase::natural, {o.view(), {}}).ok());
}

TEST(Merge, RefusesWhatCannotBe) {
  const Extents shape{1, 2, 3, 4};
  const auto expect = [&](auto change, const char* words) {
    Parts parts(3, shape, Dtype::f16, 1);
    const Tensor o = tensor_of(Dtype::f32, shape), lse = tensor_of(Dtype::f32, {1, 2, 3, 1});
    poison(o, Poison::nan);
    AttentionOutput out{o.view(), lse.view()};
    change(parts.views, out);
    const kernels::Status status = kernels::attention_merge(parts.views, LogBase::natural, out);
    EXPECT_EQ(status.code, StatusCode::invalid_arguments);
    EXPECT_THAT(status.detail, testing::HasSubstr(words));
    for (Index e = 0; e < 24; ++e) ASSERT_TRUE(holds_poison(o.view(), e, Poison::nan));
  };
  using Views = std::vector<AttentionOutput>;
  expect([](Views& v, AttentionOutput&) { v[2].lse.data = nullptr; }, "parts[2].lse is null");
  expect([](Views& v, AttentionOutput&) { v[1].o.shape[2] = 4; },
         "parts[1].o has shape [1, 2, 4, 4], not [1, 2, 3, 4]");
  expect([](Views& v, AttentionOutput&) { v[0].lse.dtype = Dtype::f16; },
         "parts[0].lse is f16; it must be f32");
  expect([](Views&, AttentionOutput& o) { o.o.dtype = Dtype::f64; }, "o is f64");
  expect([](Views&, AttentionOutput& o) { o.o.data = nullptr; }, "o is null");
  expect([](Views&, AttentionOutput& o) { o.lse.shape[3] = 2; },
         "lse has shape [1, 2, 3, 2], not [1, 2, 3, 1]");
}

}  // namespace
}  // namespace assay
