// Tests the judge: outputs that must fail do so with the right words, and outputs that must pass
// do.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "harness/candidates/contracts.h"
#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/simd/bf16_dots.h"
#include "oracle/ball.h"
#include "oracle/reference.h"
#include "oracle/verdict.h"
#include "testing/matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

// A case with its correctly rounded outputs, which ball arithmetic computes.
class VerdictTest : public testing::Test {
 protected:
  void prepare(const char* line) {
    case_ = parse_case(line);
    inputs_ = std::make_unique<Inputs>(case_);
    out_ = std::make_unique<Outputs>(case_);
    contract_ = host_contract(inputs_->problem, "AVX2");
    const AttentionShape& s = case_.shape;
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.query_heads; ++h)
        for (Index i = 0; i < s.rows; ++i) {
          RowVisibility row;
          evaluate_visibility(inputs_->problem, b, h, i, row);
          const BallRow ball(inputs_->problem, b, h, i, 128);
          store(lse(), lse().at(b, h, i, 0), row.visible ? ball.lse() : -inf);
          for (Index c = 0; c < s.value_dim; ++c)
            store(o(), o().at(b, h, i, c), row.visible ? ball.o(c) : 0);
        }
  }
  const TensorView& o() const { return out_->o.view(); }
  const TensorView& lse() const { return out_->lse.view(); }
  Verdict verdict() const { return judge(inputs_->problem, out_->view(), contract_); }
  void set_o(Index b, Index h, Index i, Index c, double x) { store(o(), o().at(b, h, i, c), x); }
  double get_o(Index b, Index h, Index i, Index c) const { return load(o(), o().at(b, h, i, c)); }

  Case case_;
  std::unique_ptr<Inputs> inputs_;
  std::unique_ptr<Outputs> out_;
  Contract contract_;
};

constexpr const char* plain = "attention b=2 h=4/2 l=9x13 d=8/6 causal offset=end seed=2";

// Values near the largest fp64 number leave the range in the oracle's own fp64 sums.
TEST_F(VerdictTest, CorrectlyRoundedOutputsInFp64Pass) {
  for (const char* line :
       {"l=2 d=1 dtype=f64 values=near-overflow", "l=9 d=4 dtype=f64 values=huge",
        "l=9 d=4 dtype=f64 values=near-overflow", "l=9x40 d=4 dtype=f64 causal"})
    for (int seed = 1; seed <= 4; ++seed) {
      const std::string whole = fmt::format("attention b=1 h=1 {} seed={}", line, seed);
      prepare(whole.c_str());
      EXPECT_THAT(judge_by_ladder(inputs_->problem, out_->view(), 64), Passes()) << whole;
      store(lse(), lse().at(0, 0, 1, 0), nan);
      EXPECT_THAT(judge_by_ladder(inputs_->problem, out_->view(), 64), testing::Not(Passes()))
          << whole;
    }
}

TEST_F(VerdictTest, CorrectlyRoundedOutputsPass) {
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* rest : {"", " causal", " scores=huge values=cancel", " values=near-overflow",
                             " values=subnormal scores=subnormal", " sink=3 softcap=5 alibi",
                             " bool=empty-rows lengths=7,0"}) {
      prepare((std::string("attention b=2 h=4/2 l=9x13 d=8/6 dtype=") + dtype + rest).c_str());
      const Verdict v = verdict();
      EXPECT_THAT(v, Passes()) << print_case(case_);
      EXPECT_EQ(v.compared(Output::o), 2 * 4 * 9 * 6);
      EXPECT_EQ(v.compared(Output::lse), 2 * 4 * 9);
      EXPECT_EQ(v.inside, v.compared()) << print_case(case_);
    }
}

TEST_F(VerdictTest, NanFails) {
  prepare(plain);
  set_o(1, 2, 3, 4, nan);
  EXPECT_THAT(verdict(), FailsWith("O is NaN: O[b=1, h=2, row=3, column=4]"));
}

TEST_F(VerdictTest, InfinityFails) {
  prepare(plain);
  set_o(0, 0, 8, 5, -inf);
  EXPECT_THAT(verdict(), FailsWith("O is infinite: O[b=0, h=0, row=8, column=5]"));
}

TEST_F(VerdictTest, NanInLseOnlyFails) {
  prepare(plain);
  store(lse(), lse().at(1, 3, 8, 0), nan);
  EXPECT_THAT(verdict(), FailsWith("LSE is NaN: LSE[b=1, h=3, row=8]"));
}

TEST_F(VerdictTest, InfiniteLseFails) {
  prepare(plain);
  store(lse(), lse().at(0, 1, 0, 0), -inf);
  EXPECT_THAT(verdict(), FailsWith("LSE is infinite"));
}

TEST_F(VerdictTest, AllNanFails) {
  prepare(plain);
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 4; ++h)
      for (Index i = 0; i < 9; ++i) {
        store(lse(), lse().at(b, h, i, 0), nan);
        for (Index c = 0; c < 6; ++c) set_o(b, h, i, c, nan);
      }
  const Verdict v = verdict();
  EXPECT_THAT(v, Fails());
  EXPECT_EQ(v.outside, v.compared());
  EXPECT_EQ(v.nan_found, v.outside);
}

TEST_F(VerdictTest, ConstantsFail) {
  for (double constant : {0.0, 1.0, 0.25}) {
    prepare(plain);
    for (Index h = 0; h < 4; ++h)
      for (Index i = 0; i < 9; ++i)
        for (Index c = 0; c < 6; ++c) set_o(0, h, i, c, constant);
    EXPECT_THAT(verdict(), FailsWith("O is outside its bound"));
  }
}

TEST_F(VerdictTest, SwappedRowsHeadsAndTransposedFail) {
  prepare(plain);
  for (Index c = 0; c < 6; ++c) {
    const double x = get_o(0, 1, 2, c);
    set_o(0, 1, 2, c, get_o(0, 1, 3, c));
    set_o(0, 1, 3, c, x);
  }
  EXPECT_THAT(verdict(), FailsWith("O[b=0, h=1, row=2"));
  prepare(plain);
  for (Index i = 0; i < 9; ++i)
    for (Index c = 0; c < 6; ++c) {
      const double x = get_o(1, 0, i, c);
      set_o(1, 0, i, c, get_o(1, 1, i, c));
      set_o(1, 1, i, c, x);
    }
  EXPECT_THAT(verdict(), FailsWith("O[b=1, h=0, row=0"));
  prepare("attention b=1 h=1 l=6x9 d=8/6 seed=2");
  for (Index i = 0; i < 6; ++i)
    for (Index c = 0; c < i; ++c) {
      const double x = get_o(0, 0, i, c);
      set_o(0, 0, i, c, get_o(0, 0, c, i));
      set_o(0, 0, c, i, x);
    }
  EXPECT_THAT(verdict(), FailsWith("O is outside its bound"));
}

// The last representable output inside the bound passes, and the next one fails. This holds in both
// directions, for O and for LSE.
TEST_F(VerdictTest, TheEdgeOfTheBoundIsSharp) {
  for (const char* line :
       {"attention b=1 h=1 l=3x13 d=8/6 seed=2", "attention b=1 h=1 l=3x13 d=8/6 dtype=bf16 seed=2",
        "attention b=1 h=1 l=3x40 d=8/6 dtype=f16 scores=huge seed=2"}) {
    prepare(line);
    const Reference reference(inputs_->problem, contract_);
    const KeyValuesPointer kv = reference.load_head(0, 0);
    const Index row = 1;
    const Block block = reference.evaluate(*kv, 0, {&row, 1});
    for (double direction : {-inf, inf}) {
      double x = get_o(0, 0, 1, 2);
      const double correct = x;
      // Takes steps of the dtype away from the exact value as long as the verdict passes.
      auto next = [&](double from) {
        const double far = from + std::copysign(1.5 * half_ulp(case_.out_dtype(), from), direction);
        return round_to(case_.out_dtype(), far) == from
                   ? from + std::copysign(2 * half_ulp(case_.out_dtype(), from), direction)
                   : round_to(case_.out_dtype(), far);
      };
      int steps = 0;
      while (set_o(0, 0, 1, 2, x), verdict().outcome == Outcome::pass) x = next(x), ++steps;
      const double half = case_.out_dtype() == Dtype::f32 ? 0 : half_ulp(case_.out_dtype(), x);
      const double distance = std::fabs(x - block.o[2].value);
      EXPECT_GT(distance, block.o[2].bound) << line;
      EXPECT_LT(distance, block.o[2].bound + 2 * half + 4 * half_ulp(case_.out_dtype(), x)) << line;
      EXPECT_GE(steps, 1) << line;
      EXPECT_THAT(verdict(), FailsWith("O is outside its bound"));
      set_o(0, 0, 1, 2, correct);
    }
    const Index at = lse().at(0, 0, 1, 0);
    const double correct = load(lse(), at);
    float x = static_cast<float>(correct);
    while (store(lse(), at, x), verdict().outcome == Outcome::pass) x = std::nextafter(x, INFINITY);
    const Certified& exact = block.row(0).lse;
    EXPECT_GT(std::fabs(x - exact.value), exact.bound);
    EXPECT_LT(std::fabs(std::nextafter(x, -INFINITY) - exact.value), exact.bound * (1 + 1e-6));
    EXPECT_THAT(verdict(), FailsWith("LSE is outside its bound"));
  }
}

TEST_F(VerdictTest, NumbersWhereNanBelongsFail) {
  prepare("attention b=1 h=2 l=5x7 d=4 poke=v:0:0:3:1=nan");
  // Column 1 of every row that sees key 3 must be NaN. The balls took the NaN for 0, so it is a
  // number now.
  EXPECT_THAT(verdict(),
              FailsWith("O is a number where NaN belongs: O[b=0, h=0, row=0, column=1]"));
  for (Index i = 0; i < 5; ++i) set_o(0, 0, i, 1, nan);
  EXPECT_THAT(verdict(), Passes());
  // One column too many is NaN.
  set_o(0, 0, 4, 2, nan);
  EXPECT_THAT(verdict(), FailsWith("O is NaN: O[b=0, h=0, row=4, column=2]"));
}

TEST_F(VerdictTest, NanInAQueryReachesItsRowAlone) {
  prepare("attention b=1 h=2 l=5x7 d=4 poke=q:0:1:3:2=nan");
  EXPECT_THAT(verdict(), FailsWith("LSE is a number where NaN belongs: LSE[b=0, h=1, row=3]"));
  store(lse(), lse().at(0, 1, 3, 0), nan);
  EXPECT_THAT(verdict(),
              FailsWith("O is a number where NaN belongs: O[b=0, h=1, row=3, column=0]"));
  for (Index c = 0; c < 4; ++c) set_o(0, 1, 3, c, nan);
  EXPECT_THAT(verdict(), Passes());
}

TEST_F(VerdictTest, NanBehindAMaskBelongsNowhere) {
  prepare("attention b=1 h=1 l=5x7 d=4 causal poke=k:0:0:6:1=nan;v:0:0:5:2=nan");
  EXPECT_THAT(verdict(), Passes());
  EXPECT_EQ(verdict().nan_expected, 0);
}

TEST_F(VerdictTest, InfinitiesFollowTheExtendedReals) {
  prepare("attention b=1 h=1 l=3x4 d=2 poke=v:0:0:1:0=inf");
  EXPECT_THAT(verdict(), FailsWith("O is not the infinity that belongs there"));
  for (Index i = 0; i < 3; ++i) set_o(0, 0, i, 0, inf);
  EXPECT_THAT(verdict(), Passes());
  // Both signs are in one column, which gives Inf - Inf.
  prepare("attention b=1 h=1 l=1x4 d=2 poke=v:0:0:1:0=inf;v:0:0:2:0=-inf");
  set_o(0, 0, 0, 0, inf);
  EXPECT_THAT(verdict(), FailsWith("O is a number where NaN belongs"));
  // One score is +Inf.
  prepare("attention b=1 h=1 l=1x4 d=1 poke=q:0:0:0:0=1;k:0:0:2:0=inf");
  EXPECT_THAT(verdict(), FailsWith("LSE is a number where NaN belongs"));
  // A score of -Inf leaves its key without weight.
  prepare("attention b=1 h=1 l=1x2 d=1 scale=1 poke=q:0:0:0:0=1;k:0:0:1:0=-inf;k:0:0:0:0=0.5");
  store(lse(), lse().at(0, 0, 0, 0), 0.5);
  set_o(0, 0, 0, 0, load(inputs_->problem.v, inputs_->problem.v.at(0, 0, 0, 0)));
  EXPECT_THAT(verdict(), Passes());
}

TEST_F(VerdictTest, FullyMaskedRowsAreZeroAndMinusInfinity) {
  prepare("attention b=1 h=1 l=4x6 d=4 causal offset=-2");
  EXPECT_THAT(verdict(), Passes());
  set_o(0, 0, 0, 3, 1e-30);
  EXPECT_THAT(verdict(), FailsWith("a fully masked row of O is not 0"));
  prepare("attention b=1 h=1 l=4x6 d=4 causal offset=-2");
  store(lse(), lse().at(0, 0, 1, 0), -1e30);
  EXPECT_THAT(verdict(), FailsWith("LSE of a row without weight is not -inf"));
}

TEST_F(VerdictTest, UntouchedOutputsAreNamed) {
  prepare(plain);
  poison(out_->o, Poison::nan);
  JudgeOptions options;
  options.untouched = [](const TensorView& t, Index at) {
    return holds_poison(t, at, Poison::nan);
  };
  const Verdict v = judge(inputs_->problem, out_->view(), contract_, options);
  EXPECT_EQ(v.failures.at("O was not written"), v.compared(Output::o));
}

TEST_F(VerdictTest, MissingLseFails) {
  prepare(plain);
  EXPECT_THAT(judge(inputs_->problem, {out_->o.view(), {}}, contract_), FailsWith("no LSE"));
}

TEST_F(VerdictTest, NothingComparedIsNeverAPass) {
  prepare("attention b=0 h=1 l=4 d=4");
  EXPECT_THAT(verdict(), IsInconclusive("no output element"));
}

// No fp32 kernel can tell these scores apart. The output only has to lie in the hull of V and be
// finite, and that is no pass.
TEST_F(VerdictTest, VacuousRowsAreJudgedByTheHull) {
  prepare(
      "attention b=1 h=1 l=2x5 d=4 bias=minimum-rows@j "
      "poke=m:0:0:0:0=-3e38;m:0:0:0:1=-3e38;m:0:0:0:2=-3e38;m:0:0:0:3=-3e38;m:0:0:0:4=-3e38");
  for (Index i = 0; i < 2; ++i)
    for (Index c = 0; c < 4; ++c) {
      double mean = 0;
      for (Index j = 0; j < 5; ++j)
        mean += load(inputs_->problem.v, inputs_->problem.v.at(0, 0, j, c)) / 5;
      set_o(0, 0, i, c, mean);
    }
  const Verdict v = verdict();
  EXPECT_THAT(v, IsInconclusive());
  EXPECT_EQ(v.hull_only, 2 * 4 + 2);
  set_o(0, 0, 1, 2, 100);
  EXPECT_THAT(verdict(), FailsWith("O is outside the hull of V"));
  set_o(0, 0, 1, 2, nan);
  EXPECT_THAT(verdict(), FailsWith("O is NaN"));
}

TEST_F(VerdictTest, SampledRowsAreCounted) {
  prepare("attention b=1 h=2 l=40x13 d=4");
  JudgeOptions options;
  options.sample_rows = 5;
  const Verdict v = judge(inputs_->problem, out_->view(), contract_, options);
  EXPECT_EQ(v.rows_judged, 10);
  EXPECT_EQ(v.rows_total, 80);
  EXPECT_EQ(v.compared(Output::lse), 10);
}

TEST_F(VerdictTest, ASampleSaysWhatItTook) {
  prepare("attention b=1 h=2 l=40x13 d=4");
  EXPECT_TRUE(verdict().sampled.empty());
  EXPECT_THAT(verdict().reason, testing::Not(HasSubstr("of each head")));
  JudgeOptions options;
  options.sample_rows = 5;
  options.seed = 77;
  const Verdict v = judge(inputs_->problem, out_->view(), contract_, options);
  EXPECT_THAT(
      v.reason,
      HasSubstr("5 of 40 rows of each head were judged: one of each equal stretch, seed 77"));
  ASSERT_EQ(v.sampled.size(), 5u);
  for (std::size_t k = 0; k < 5; ++k) EXPECT_EQ(v.sampled[k] / 8, static_cast<Index>(k));
  // The rows that the sample names were judged, and no others.
  const Index judged = v.sampled[2], other = judged == 16 ? 17 : 16;
  set_o(0, 1, other, 0, nan);
  EXPECT_THAT(out_->view(), IsWithinBoundOf(inputs_->problem, contract_, options));
  set_o(0, 1, judged, 0, nan);
  EXPECT_THAT(judge(inputs_->problem, out_->view(), contract_, options), Fails());
}

TEST_F(VerdictTest, UntouchedOutputsFail) {
  prepare(plain);
  JudgeOptions options;
  const Index at = o().at(1, 2, 3, 4), lse_at = lse().at(0, 1, 2, 0);
  options.untouched = [&](const TensorView& t, Index position) {
    return t.data == o().data && position == at;
  };
  Verdict v = judge(inputs_->problem, out_->view(), contract_, options);
  EXPECT_THAT(v, FailsWith("O was not written: O[b=1, h=2, row=3, column=4]"));
  EXPECT_EQ(v.outside, 1);
  options.untouched = [&](const TensorView& t, Index position) {
    return t.data == lse().data && position == lse_at;
  };
  v = judge(inputs_->problem, out_->view(), contract_, options);
  EXPECT_THAT(v, FailsWith("LSE was not written: LSE[b=0, h=1, row=2]"));
}

TEST_F(VerdictTest, ZerosInLseAndSwappedLseFail) {
  prepare(plain);
  store(lse(), lse().at(1, 0, 5, 0), 0);
  EXPECT_THAT(verdict(), FailsWith("LSE is outside its bound: LSE[b=1, h=0, row=5]"));
  prepare(plain);
  const double x = load(lse(), lse().at(0, 2, 7, 0));
  store(lse(), lse().at(0, 2, 7, 0), load(lse(), lse().at(0, 3, 7, 0)));
  store(lse(), lse().at(0, 3, 7, 0), x);
  EXPECT_THAT(verdict(), FailsWith("LSE is outside its bound: LSE[b=0, h=2, row=7]"));
}

// The splits are far apart: fp32 sums start anew, and the bound has merge terms. Every element is
// judged at the edge of its bound.
TEST_F(VerdictTest, TheEdgeOfTheBoundIsSharpForEveryElement) {
  prepare("attention b=1 h=1 l=3x300 d=8/6 seed=2 causal offset=end");
  contract_.tile = 16;
  contract_.split_keys = 32;
  const Reference reference(inputs_->problem, contract_);
  const KeyValuesPointer kv = reference.load_head(0, 0);
  const std::vector<Index> rows = {0, 1, 2};
  const Block block = reference.evaluate(*kv, 0, rows);
  for (double side : {-1.0, 1.0})
    for (bool outside : {false, true})
      for (std::size_t e = 0; e < block.o.size(); ++e) {
        const double edge = block.o[e].value + side * block.o[e].bound;
        float x = static_cast<float>(edge);
        const bool beyond = side * (static_cast<double>(x) - edge) > 0;
        if (beyond != outside)
          x = std::nextafter(x, static_cast<float>(outside ? side : -side) * INFINITY);
        const auto row = static_cast<Index>(e / 6), column = static_cast<Index>(e % 6);
        const double correct = get_o(0, 0, row, column);
        set_o(0, 0, row, column, x);
        EXPECT_EQ(verdict().outside, outside) << row << " " << column;
        set_o(0, 0, row, column, correct);
      }
}

// Every output is too small by a few units of 2^-24, which is far below the bound.
TEST_F(VerdictTest, ErrorsThatLeanRaiseSuspicionOnly) {
  prepare("attention b=1 h=4 l=40x64 d=16 seed=3");
  for (Index h = 0; h < 4; ++h)
    for (Index i = 0; i < 40; ++i)
      for (Index c = 0; c < 16; ++c) set_o(0, h, i, c, get_o(0, h, i, c) * (1 - 0x1p-22));
  JudgeOptions options;
  options.statistics = true;
  const Verdict v = judge(inputs_->problem, out_->view(), contract_, options);
  EXPECT_EQ(v.outside, 0);
  EXPECT_EQ(v.outcome, Outcome::suspect) << v.slope_t;
  EXPECT_LT(v.slope_t, -8);
}

// An infinite bound decides nothing: an accumulator of 11 bits over 2,000 keys proves nothing about
// any kernel.
TEST_F(VerdictTest, AnInfiniteBoundIsNoPass) {
  prepare("attention b=1 h=1 l=2x2000 d=4/2 dtype=f16 values=uniform");
  contract_ = contract_ladder(Dtype::f16, 64).back();
  ASSERT_EQ(contract_.name, "fp16 accumulation");
  for (Index i = 0; i < 2; ++i)
    for (Index c = 0; c < 2; ++c) set_o(0, 0, i, c, -1234);
  EXPECT_THAT(verdict(), testing::Not(Passes()));
}

// One column of V could overflow its sum. Nothing else is excused.
TEST_F(VerdictTest, OverflowInOneColumnExcusesThatColumnAlone) {
  prepare("attention b=1 h=1 l=1x3 d=4/2 poke=v:0:0:0:0=3e38;v:0:0:1:0=3e38;v:0:0:2:0=3e38");
  EXPECT_THAT(verdict(), Passes());
  set_o(0, 0, 0, 0, inf);
  EXPECT_THAT(verdict(), Passes());
  EXPECT_EQ(verdict().excused.at("sums may leave the range"), 1);
  set_o(0, 0, 0, 1, nan);
  EXPECT_THAT(verdict(), FailsWith("O is NaN: O[b=0, h=0, row=0, column=1]"));
  prepare("attention b=1 h=1 l=1x3 d=4/2 poke=v:0:0:0:0=3e38;v:0:0:1:0=3e38;v:0:0:2:0=3e38");
  store(lse(), lse().at(0, 0, 0, 0), nan);
  EXPECT_THAT(verdict(), FailsWith("LSE is NaN"));
}

// The kernel cannot tell the scores apart, and one column could overflow. Still only the hull is
// checked, and that is no pass.
TEST_F(VerdictTest, OverflowDoesNotHideAVacuousRow) {
  prepare(
      "attention b=1 h=1 l=2x5 d=4/2 alibi offset=1000000000000 values=uniform "
      "poke=v:0:0:0:0=1e38");
  EXPECT_THAT(verdict(), IsInconclusive());
}

TEST_F(VerdictTest, AnInfinityUnderATinyWeightExcusesNoNumber) {
  prepare(
      "attention b=1 h=1 l=1x2 d=1/1 scale=1 "
      "poke=q:0:0:0:0=1;k:0:0:0:0=0;k:0:0:1:0=-86;v:0:0:1:0=inf");
  set_o(0, 0, 0, 0, inf);
  EXPECT_EQ(verdict().failures.size(), 0u) << verdict().reason;
  set_o(0, 0, 0, 0, nan);
  EXPECT_EQ(verdict().excused.size(), 1u) << verdict().reason;
  set_o(0, 0, 0, 0, 12345);
  EXPECT_THAT(verdict(), FailsWith("O is not the infinity that belongs there"));
}

// The certificate does not claim what no key can change.
TEST_F(VerdictTest, PowerClaimsNothingForDroppedKeys) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    prepare(("attention b=1 h=1 l=1x2 d=2 dropout=0.9:" + std::to_string(seed)).c_str());
    if (keeps_weight(inputs_->problem, 0, 0, 0, 0) || keeps_weight(inputs_->problem, 0, 0, 0, 1))
      continue;
    const Verdict v = verdict();
    EXPECT_EQ(v.power.by_output, (std::array<std::int64_t, change_count>{})) << seed;
    EXPECT_GT(v.power.by_lse[0], 0);
    return;
  }
  FAIL() << "no seed drops both keys";
}

// Without LSE nothing shows through LSE, and no lane counts for it.
TEST_F(VerdictTest, PowerIsThatOfWhatWasCompared) {
  // Equal values: no key moves O, and every key moves LSE.
  prepare("attention b=1 h=2 l=5x9 d=4 values=ones");
  const Verdict both = verdict();
  EXPECT_THAT(both, Passes());
  EXPECT_GT(both.power.by_lse[0], 0);
  EXPECT_EQ(both.power.by_output[0], 0);
  AttentionOutput o_alone = out_->view();
  o_alone.lse = {};
  JudgeOptions options;
  options.without_lse = true;
  const Verdict o_only = judge(inputs_->problem, o_alone, contract_, options);
  EXPECT_THAT(o_only, Passes());
  EXPECT_EQ(o_only.power.pairs, both.power.pairs);
  EXPECT_EQ(o_only.power.by_output, both.power.by_output);
  EXPECT_EQ(o_only.power.by_lse, (std::array<std::int64_t, change_count>{}));
  EXPECT_EQ(o_only.power.by_either, o_only.power.by_output);
  for (const auto& of_kind : o_only.power.lanes)
    for (const auto& lanes : of_kind) EXPECT_TRUE(lanes.none());
}

// An earlier oracle failed a right kernel or passed a wrong one on these lines. None of them may
// fail now.
TEST(Regression, RightKernelsAreNotFailed) {
  for (const char* line :
       {"attention b=1 h=1 l=1x3 d=2/1 scores=equal values=subnormal",
        "attention b=1 h=1 l=1x8 d=8/1 dtype=bf16 scale=1e10 scores=subset values=near-overflow",
        "attention b=1 h=1 l=1x1 d=1 scale=0 poke=q:0:0:0:0=1e30;k:0:0:0:0=1e30",
        "attention b=1 h=1 l=1x2 d=2/1 softcap=1e-40 scores=equal",
        "attention b=2 h=3/1 l=41x383 d=17/33 dtype=bf16 out=f32 causal bias=minimum starts=153,0 "
        "alibi scores=negative values=ones hidden=inf",
        "attention b=1 h=2 l=5x9 d=4 scale=1e-45 scores=gather",
        "attention b=1 h=2 l=40x60 d=16 dtype=bf16 sink=89 seed=2"}) {
    const Case c = parse_case(line);
    const Inputs in(c);
    const Outputs out(c);
    const kernels::Target best, floats = kernels::without_bf16_dots(best);
    ASSERT_TRUE(kernels::attention_forward(in.problem, out.view(), {0, floats}).ok());
    EXPECT_THAT(judge(in.problem, out.view(), host_contract(in.problem, "AVX2")),
                HasNothingOutside())
        << line;
    ASSERT_TRUE(kernels::attention_forward(in.problem, out.view(), {0, best}).ok());
    EXPECT_THAT(judge(in.problem, out.view(), host_forward_contract(in.problem, c.dtype, best)),
                HasNothingOutside())
        << line;
  }
}

}  // namespace
}  // namespace assay
