// The fallback kernel: it is judged by its own contract on every SIMD target, its bits do not
// depend on what else is in the call, and it meets closed forms.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "harness/cases/suites.h"
#include "kernels/simd/targets.h"
#include "kernels/attention/unfused.h"
#include "testing/matchers.h"

namespace assay {
namespace {

using kernels::attention_unfused;
using testing::AnyOf;

class UnfusedOnTarget : public testing::TestWithParam<std::string> {};

TEST_P(UnfusedOnTarget, PassesTheSmokeSuite) {
  const auto unfused = make_candidate("unfused");
  ExecuteOptions options;
  options.power = false;
  std::size_t judged = 0;
  for (Case c : make_suite("smoke", 78).cases) {
    c.target = GetParam();
    const CaseResult r = execute(c, *unfused, options);
    EXPECT_THAT(r, AnyOf(Passes(), IsInconclusive()));
    judged += r.outcome == Outcome::pass;
  }
  EXPECT_GT(judged, 60u);
}

INSTANTIATE_TEST_SUITE_P(Targets, UnfusedOnTarget, testing::ValuesIn(kernels::runnable_targets()),
                         [](const auto& test) { return test.param; });

// Blocks of rows cross query heads. A row alone, of any head, has the same bits as in the whole
// call.
TEST(Unfused, RowsAreTheSameAlone) {
  const Case whole = parse_case(
      "attention b=2 h=6/2 l=13x70 d=24/20 causal offset=end bool=random sink=1 alibi seed=5");
  const Inputs in(whole);
  const Outputs out(whole);
  ASSERT_TRUE(attention_unfused(in.problem, out.view(), 3).ok());
  ASSERT_TRUE(attention_unfused(in.problem, out.view(), 2).ok());
  Case small = whole;
  small.shape.rows = 1;
  for (Index i = 0; i < 13; ++i) {
    Attention part = in.problem;
    const Outputs some(small);
    part.shape.rows = 1;
    for (Index& offset : part.offset) offset += i;
    part.q.origin = part.q.at(0, 0, i, 0);
    part.keep.data += i * part.keep.stride[2];
    ASSERT_TRUE(attention_unfused(part, some.view(), 1).ok());
    for (Index b = 0; b < 2; ++b)
      for (Index h = 0; h < 6; ++h) {
        ASSERT_EQ(load(some.lse.view(), some.lse.view().at(b, h, 0, 0)),
                  load(out.lse.view(), out.lse.view().at(b, h, i, 0)));
        for (Index c = 0; c < 20; ++c)
          ASSERT_EQ(load(some.o.view(), some.o.view().at(b, h, 0, c)),
                    load(out.o.view(), out.o.view().at(b, h, i, c)));
      }
  }
}

TEST(Unfused, TheSameBitsForAnyNumberOfThreads) {
  const Case c = parse_case(
      "attention b=3 h=5/5 l=37x90 d=17/33 dtype=bf16 softcap=5 window=20,3 dropout=0.3:9 seed=8");
  const Inputs in(c);
  const Outputs one(c), many(c);
  ASSERT_TRUE(attention_unfused(in.problem, one.view(), 1).ok());
  for (int threads : {0, 2, 3, 7, 200}) {
    ASSERT_TRUE(attention_unfused(in.problem, many.view(), threads).ok());
    EXPECT_EQ(first_difference(one, many), "") << threads;
  }
}

TEST(Unfused, ClosedForms) {
  {  // Equal scores give the mean of V, and LSE = log n.
    const Case c =
        parse_case("attention b=1 h=1 l=3x100 d=8/6 scores=equal values=constant seed=4");
    const Inputs in(c);
    const Outputs out(c);
    ASSERT_TRUE(attention_unfused(in.problem, out.view(), 1).ok());
    EXPECT_NEAR(load(out.o.view(), 0), load(in.v.view(), 0), 1e-6);
  }
  {  // A row without keys gives 0 and -inf. With a sink, LSE is the sink's logit.
    const Case c = parse_case("attention b=1 h=2 l=3x0 d=4 sink=0.75");
    Inputs in(c);
    const Outputs out(c);
    poison(out.o, Poison::nan);
    ASSERT_TRUE(attention_unfused(in.problem, out.view(), 2).ok());
    EXPECT_EQ(load(out.o.view(), 11), 0);
    EXPECT_EQ(load(out.lse.view(), 0), 0.75);
    in.problem.sink.clear();
    ASSERT_TRUE(attention_unfused(in.problem, out.view(), 2).ok());
    EXPECT_EQ(load(out.o.view(), 11), 0);
    EXPECT_EQ(load(out.lse.view(), 0), -INFINITY);
  }
}

}  // namespace
}  // namespace assay
