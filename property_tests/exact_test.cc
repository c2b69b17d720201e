// The tier without tolerance: the weights are exactly 0 or equal, and the sums do not round in any
// order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "harness/candidates/candidate.h"
#include "harness/judging/outputs.h"
#include "oracle/verdict.h"
#include "testing/contract_of.h"
#include "testing/matchers.h"

namespace assay {
namespace {

Verdict judge_host(Outputs& out, Inputs& in) {
  const auto host = make_candidate("host");
  EXPECT_TRUE(host->run({ForwardCall{in.problem, out.view()}}).ok());
  JudgeOptions options;
  options.power = false;
  return judge(in.problem, out.view(), contract_of(*host, in.problem), options);
}

TEST(Exact, EveryElementOfSubsetAndGatherInputs) {
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* rest :
         {"scores=gather", "scores=gather causal", "scores=subset values=integers causal",
          "scores=equal values=balanced", "scores=subset values=balanced"})
      for (const char* shape : {"l=70x130 d=64", "l=33x200 d=80/24", "l=20x513 d=128"}) {
        const Case c = parse_case(std::string("attention b=1 h=2/1 ") + shape + " dtype=" + dtype +
                                  " " + rest);
        Inputs in(c);
        Outputs out(c);
        const Verdict v = judge_host(out, in);
        EXPECT_THAT(v, Passes()) << print_case(c);
        EXPECT_EQ(v.exact, v.compared(Output::o)) << print_case(c);
      }
}

// An error of one unit in the last place of one element is a failure, at any length.
TEST(Exact, OneUlpFails) {
  const Case c = parse_case("attention b=1 h=1 l=20x3000 d=64 scores=gather");
  Inputs in(c);
  Outputs out(c);
  ASSERT_THAT(judge_host(out, in), Passes());
  const TensorView& o = out.o.view();
  const Index at = o.at(0, 0, 11, 7);
  const float x = static_cast<float>(load(o, at));
  store(o, at, std::nextafter(x, 10.0f));
  const auto host = make_candidate("host");
  const Verdict v = judge(in.problem, out.view(), contract_of(*host, in.problem));
  EXPECT_THAT(v, FailsWith("O is not the exact value: O[b=0, h=0, row=11, column=7]"));
  EXPECT_EQ(v.failures.at("O is not the exact value"), 1);
}

// The count divides exactly, so the mean of balanced columns is 0, bit for bit.
TEST(Exact, BalancedSumsAreZeroBitForBit) {
  const Case c = parse_case("attention b=1 h=1 l=4x1000 d=16 scores=equal values=balanced");
  Inputs in(c);
  Outputs out(c);
  ASSERT_THAT(judge_host(out, in), Passes());
  for (Index i = 0; i < 4; ++i)
    for (Index d = 0; d < 16; ++d) EXPECT_EQ(load(out.o.view(), out.o.view().at(0, 0, i, d)), 0);
}

}  // namespace
}  // namespace assay
