// The production forward kernel: every SIMD target that this machine runs, bitwise promises, and
// refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "harness/cases/suites.h"
#include "kernels/attention/attention.h"
#include "kernels/simd/targets.h"
#include "testing/matchers.h"

namespace assay {
namespace {

using kernels::StatusCode;
using testing::AnyOf;
using testing::HasSubstr;

class OnTarget : public testing::TestWithParam<std::string> {};

// Judges every case of the smoke suite by the contract of the target.
TEST_P(OnTarget, PassesTheSmokeSuite) {
  const auto host = make_candidate("host");
  std::size_t judged = 0;
  for (Case c : make_suite("smoke", 77).cases) {
    c.target = GetParam();
    ExecuteOptions options;
    options.power = false;
    const CaseResult r = execute(c, *host, options);
    EXPECT_THAT(r, AnyOf(Passes(), IsInconclusive()));
    judged += r.outcome == Outcome::pass;
  }
  EXPECT_GT(judged, 60u);
}

INSTANTIATE_TEST_SUITE_P(Targets, OnTarget, testing::ValuesIn(kernels::runnable_targets()),
                         [](const auto& test) { return test.param; });

TEST(Targets, WhatThisMachineDoesNotRunIsCounted) {
  const auto compiled = kernels::compiled_targets(), runnable = kernels::runnable_targets();
  for (const std::string& t : runnable) EXPECT_THAT(compiled, testing::Contains(t));
  std::size_t not_run = 0;
  for (const std::string& t : compiled)
    if (std::find(runnable.begin(), runnable.end(), t) == runnable.end()) {
      printf("compiled, not run on this machine: %s\n", t.c_str());
      ++not_run;
    }
  printf("%zu SIMD targets compiled, %zu run, %zu not run\n", compiled.size(), runnable.size(),
         not_run);
  EXPECT_EQ(runnable.size() + not_run, compiled.size());
  for (const std::string& t : runnable) {
    const std::optional<kernels::Target> target = kernels::Target::named(t);
    ASSERT_TRUE(target);
    EXPECT_EQ(target->name(), t);
    EXPECT_EQ(kernels::attention_forward_target(*target), t);  // the code of the target itself runs
  }
  for (const std::string& t : compiled)
    EXPECT_EQ(kernels::Target::named(t).has_value(), std::ranges::count(runnable, t) == 1) << t;
  EXPECT_FALSE(kernels::Target::named("NO_SUCH_TARGET"));
  EXPECT_EQ(kernels::Target().name(), runnable[0]);
  EXPECT_EQ(kernels::Target::named(""), kernels::Target());
}

// The bits of a row do not depend on what else is in the call.
TEST(Forward, RowsAreTheSameInAnyBatchAndChunk) {
  const Case whole = parse_case("attention b=3 h=6/2 l=150x260 d=64 causal offset=end seed=5");
  const Inputs in(whole);
  const Outputs out(whole);
  ASSERT_TRUE(kernels::attention_forward(in.problem, out.view(), 2).ok());
  for (Index b = 0; b < 3; ++b)
    for (Index first : {0, 1, 95, 96, 149}) {
      // The call has rows [first, first + 7) of one batch, with the offset changed accordingly.
      const Index rows = std::min<Index>(7, 150 - first);
      Attention part = in.problem;
      part.shape.batch = 1;
      part.shape.rows = rows;
      part.offset = {in.problem.offset[0] + first};
      part.q.origin = part.q.at(b, 0, first, 0);
      part.k.origin = part.k.at(b, 0, 0, 0);
      part.v.origin = part.v.at(b, 0, 0, 0);
      Case small = whole;
      small.shape.batch = 1;
      small.shape.rows = rows;
      const Outputs some(small);
      ASSERT_TRUE(kernels::attention_forward(part, some.view(), 1).ok());
      for (Index h = 0; h < 6; ++h)
        for (Index i = 0; i < rows; ++i) {
          ASSERT_EQ(load(some.lse.view(), some.lse.view().at(0, h, i, 0)),
                    load(out.lse.view(), out.lse.view().at(b, h, first + i, 0)));
          for (Index c = 0; c < 64; ++c)
            ASSERT_EQ(load(some.o.view(), some.o.view().at(0, h, i, c)),
                      load(out.o.view(), out.o.view().at(b, h, first + i, c)));
        }
    }
}

TEST(Forward, EmptyProblemsGiveEmptyOrZeroOutputs) {
  for (const char* line : {"attention b=0 h=1 l=4 d=4", "attention b=1 h=1 l=0x4 d=4"}) {
    const Case c = parse_case(line);
    const Inputs in(c);
    const Outputs out(c);
    EXPECT_TRUE(kernels::attention_forward(in.problem, out.view()).ok()) << line;
  }
  const Case c = parse_case("attention b=1 h=2 l=3x0 d=4");
  const Inputs in(c);
  const Outputs out(c);
  poison(out.o, Poison::nan);
  ASSERT_TRUE(kernels::attention_forward(in.problem, out.view()).ok());
  for (Index i = 0; i < 3; ++i) {
    EXPECT_EQ(load(out.o.view(), out.o.view().at(0, 1, i, 3)), 0);
    EXPECT_EQ(load(out.lse.view(), out.lse.view().at(0, 1, i, 0)), -INFINITY);
  }
}

TEST(Forward, LseMayBeAbsent) {
  const Case c = parse_case("attention b=1 h=2 l=3x5 d=4");
  const Inputs in(c);
  const Outputs with(c), without(c);
  ASSERT_TRUE(kernels::attention_forward(in.problem, with.view()).ok());
  ASSERT_TRUE(kernels::attention_forward(in.problem, {without.o.view(), {}}).ok());
  EXPECT_EQ(load(with.o.view(), 7), load(without.o.view(), 7));
}

// Every refusal names the argument, its value and the limit, and writes nothing.
TEST(Forward, RefusesWhatCannotBe) {
  const Case c = parse_case("attention b=2 h=4/2 l=3x5 d=8 bias=normal");
  const Inputs in(c);
  auto expect = [&](auto change, StatusCode code, const char* words) {
    Attention p = in.problem;
    const Outputs out(c);
    AttentionOutput view = out.view();
    poison(out.o, Poison::nan);
    poison(out.lse, Poison::nan);
    change(p, view);
    const kernels::Status status = kernels::attention_forward(p, view);
    EXPECT_EQ(status.code, code) << words << ": " << status.detail;
    EXPECT_THAT(status.detail, HasSubstr(words));
    for (Index e = 0; e < 2 * 4 * 3 * 8; ++e)
      ASSERT_TRUE(holds_poison(out.o.view(), e, Poison::nan));
    for (Index e = 0; e < 2 * 4 * 3; ++e) ASSERT_TRUE(holds_poison(out.lse.view(), e, Poison::nan));
  };
  const auto bad = StatusCode::invalid_arguments;
  expect([](Attention& p, AttentionOutput&) { p.shape.dim = 1025; }, bad,
         "dim = 1025 is outside [1, 1024]");
  expect([](Attention& p, AttentionOutput&) { p.shape.dim = 65600; }, bad, "dim = 65600");
  expect([](Attention& p, AttentionOutput&) { p.shape.value_dim = 0; }, bad, "value_dim = 0");
  expect([](Attention& p, AttentionOutput&) { p.shape.batch = -1; }, bad, "batch = -1");
  expect([](Attention& p, AttentionOutput&) { p.shape.kv_heads = 3; }, bad,
         "query_heads = 4 is not a positive multiple of kv_heads = 3");
  expect([](Attention& p, AttentionOutput&) { p.shape.kv_heads = 0; }, bad, "kv_heads = 0");
  expect([](Attention& p, AttentionOutput&) { p.scale = NAN; }, bad, "scale = nan");
  expect([](Attention& p, AttentionOutput&) { p.scale = -INFINITY; }, bad, "scale = -inf");
  expect([](Attention& p, AttentionOutput&) { p.softcap = INFINITY; }, bad, "softcap = inf");
  expect([](Attention& p, AttentionOutput&) { p.dropout = 1; }, bad,
         "dropout = 1 is outside [0, 1)");
  expect([](Attention& p, AttentionOutput&) { p.q.data = nullptr; }, bad, "q is null");
  expect([](Attention& p, AttentionOutput&) { p.v.data = nullptr; }, bad, "v is null");
  expect([](Attention& p, AttentionOutput&) { p.k.dtype = Dtype::bf16; }, bad, "they must agree");
  expect([](Attention& p, AttentionOutput&) { p.q.dtype = Dtype::f64; }, StatusCode::unsupported,
         "q is f64");
  expect([](Attention&, AttentionOutput& o) { o.lse.dtype = Dtype::f16; }, bad, "lse is f16");
  expect([](Attention& p, AttentionOutput&) { p.key_lengths = {1}; }, bad,
         "key_lengths has 1 entries, not 2");
  expect([](Attention& p, AttentionOutput&) { p.key_lengths = {1, 6}; }, bad,
         "6 is outside [0, 5]");
  expect([](Attention& p, AttentionOutput&) { p.alibi_slopes = {1}; }, bad,
         "alibi_slopes has 1 entries, not 4");
  expect([](Attention& p, AttentionOutput&) { p.sink = {1, 2}; }, bad, "sink has 2 entries, not 4");
  expect([](Attention&, AttentionOutput& o) { o.o.stride[0] = 0; }, bad,
         "o overlaps itself: shape 2, 4, 3, 8, strides 0, 24, 8, 1");
  expect([](Attention& p, AttentionOutput& o) { p.v.data = o.o.data; }, bad, "o overlaps v");
  expect(
      [](Attention& p, AttentionOutput& o) {
        p.keep = {static_cast<const std::uint8_t*>(o.lse.data) + 95, {0, 0, 0, 0}};
      },
      bad, "lse overlaps keep");
  expect([](Attention&, AttentionOutput& o) { o.lse.data = static_cast<float*>(o.o.data) + 191; },
         bad, "o overlaps lse");
  expect([](Attention& p, AttentionOutput&) { p.k.stride[0] = Index{1} << 60; }, bad,
         "k with strides 1152921504606846976");
}

}  // namespace
}  // namespace assay
