// The bounds themselves: no kernel that keeps its contract may violate one, on any family of
// inputs. A bound that no kernel could ever violate would prove nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "harness/candidates/candidate.h"
#include "harness/judging/outputs.h"
#include "oracle/bound.h"
#include "oracle/verdict.h"
#include "problem/parallel.h"
#include "testing/contract_of.h"
#include "testing/emulated_kernel.h"
#include "testing/matchers.h"

namespace assay {
namespace {

// The extensions of docs/bounds.md, section 7, each alone and all together.
const char* const features[] = {
    "",
    " causal offset=end",
    " softcap=1.5",
    " softcap=30 causal",
    " sink=2",
    " alibi causal offset=end",
    " alibi bias=normal@hij",
    " bias=large@ij",
    " dropout=0.4:9",
    " softcap=20 alibi bias=normal@bhij sink=6 dropout=0.2:3 causal offset=end"};

struct Tightness {
  double o = 0, lse = 0;
  std::int64_t elements = 0, hull_only = 0, excused = 0;
};

class EmulatedKernels : public testing::TestWithParam<Dtype> {};

TEST_P(EmulatedKernels, NeverViolateTheBoundOfTheirContract) {
  const Dtype dtype = GetParam();
  for (const Emulation& e : emulations(dtype)) {
    std::vector<Case> cases;
    std::uint64_t seed = 1;
    for (int s = 0; s < count_of<Scores>; ++s)
      for (const char* feature : features) {
        const auto values = static_cast<Values>((s + static_cast<int>(seed)) % count_of<Values>);
        // The extremes of the dtype overflow an fp16 accumulator by design. The verdict then
        // decides nothing.
        Case c = parse_case("attention b=1 h=2/1 l=9x" + std::to_string(seed % 2 ? 150 : 67) +
                            " d=" + std::to_string(seed % 3 ? 40 : 64) + "/12" + feature);
        c.dtype = dtype;
        c.scores = static_cast<Scores>(s);
        c.values = values;
        c.seed = seed++;
        cases.push_back(c);
      }
    std::mutex mutex;
    Tightness tight;
    parallel_for(static_cast<Index>(cases.size()), 0, [&](Index k) {
      const Case& c = cases[usize(k)];
      const Inputs inputs(c);
      const Outputs out(c);
      run_emulated(e, inputs.problem, out.view());
      JudgeOptions options;
      options.power = false;
      const Verdict v = judge(inputs.problem, out.view(), e.contract, options);
      const std::lock_guard lock(mutex);
      EXPECT_THAT(v, HasNothingOutside()) << print_case(c);
      tight.o = std::max(tight.o, v.worst_ratio(Output::o));
      tight.lse = std::max(tight.lse, v.worst_ratio(Output::lse));
      tight.elements += v.compared();
      tight.hull_only += v.hull_only;
      for (const auto& [reason, n] : v.excused) tight.excused += n;
    });
    printf(
        "%-8s %-42s %8ld elements, largest error/bound O %.3f LSE %.3f, hull only %ld, excused "
        "%ld\n",
        std::string(format(dtype).name).c_str(), e.contract.name.c_str(),
        static_cast<long>(tight.elements), tight.o, tight.lse, static_cast<long>(tight.hull_only),
        static_cast<long>(tight.excused));
    EXPECT_GT(tight.elements, 10000);
    // Most of the compared elements must be judged by their bounds, or the run tells little about
    // the bound.
    EXPECT_LT(tight.hull_only + tight.excused, tight.elements / 2) << e.contract.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, EmulatedKernels,
                         testing::Values(Dtype::f32, Dtype::f16, Dtype::bf16),
                         [](const auto& test) { return std::string(format(test.param).name); });

// An element of K that is a sum of products errs too, and may take a score out of the range that
// q.k alone leaves in it.
TEST(Bound, SumsThatGiveKeysCountWhereScoresMayOverflow) {
  const Contract c;
  BoundContext x;
  x.dim = 64;
  const double absolute = c.largest * (1 - 1e-5);
  EXPECT_TRUE(excludes_overflow(c, x, absolute, 0));
  x.projection = 512;
  EXPECT_FALSE(excludes_overflow(c, x, absolute, 0));
}

// With the bound divided by four, correct kernels must fall outside it. Otherwise the bound is
// loose by more than that factor.
TEST(Bound, OrderedFp32BoundDividedByFourIsViolatedOnSmallShapes) {
  const auto host = make_candidate("host");
  double o = 0, lse = 0;
  std::string line;
  for (Index rows : {4, 8})
    for (Index keys = 1; keys <= 8; ++keys)
      for (Index dim = 1; dim <= 4; ++dim)
        for (std::uint64_t seed = 1; seed <= 6; ++seed) {
          Case c;
          c.shape.rows = rows;
          c.shape.keys = keys;
          c.shape.dim = c.shape.value_dim = dim;
          c.seed = seed;
          const Inputs inputs(c);
          const Outputs out(c);
          ASSERT_TRUE(host->run({ForwardCall{inputs.problem, out.view()}}).ok());
          const Verdict v = judge(inputs.problem, out.view(), contract_of(*host, inputs.problem));
          ASSERT_THAT(v, Passes()) << print_case(c);
          if (v.worst_ratio(Output::o) > o) line = print_case(c);
          o = std::max(o, v.worst_ratio(Output::o));
          lse = std::max(lse, v.worst_ratio(Output::lse));
        }
  printf("largest error/bound at L <= 8, D <= 4: O %.3f (%s), LSE %.3f\n", o, line.c_str(), lse);
  EXPECT_GT(o, 0.25);
  EXPECT_GT(lse, 0.25);
}

// The same for merges, which such short cases have only with splits of one or two keys. Values of
// both signs let the roundings of the merges dominate.
TEST(Bound, OfKeySplitsDividedByFourIsViolatedOnSmallShapes) {
  double o = 0, lse = 0;
  std::string line;
  for (Index split_keys : {1, 2})
    for (Index keys : {2, 3, 5, 8, 24})
      for (Index dim : {1, 4})
        for (std::uint64_t seed = 1; seed <= 40; ++seed) {
          Emulation e;
          e.contract.tile = 1;
          e.contract.split_keys = split_keys;
          e.contract.ordered = true;
          e.contract.products_rounded = seed % 2 == 0;
          e.accumulation = seed % 2 ? Accumulation::fma : Accumulation::rounded_products;
          Case c;
          c.shape.rows = 4;
          c.shape.keys = keys;
          c.shape.dim = c.shape.value_dim = dim;
          c.scores = seed % 4 < 2 ? Scores::equal : Scores::normal;
          c.seed = seed;
          const Inputs inputs(c);
          const Outputs out(c);
          run_emulated(e, inputs.problem, out.view());
          const Verdict v = judge(inputs.problem, out.view(), e.contract);
          ASSERT_THAT(v, Passes()) << print_case(c);
          if (v.worst_ratio(Output::o) > o) line = print_case(c);
          o = std::max(o, v.worst_ratio(Output::o));
          lse = std::max(lse, v.worst_ratio(Output::lse));
        }
  printf("largest error/bound with splits of one or two keys: O %.3f (%s), LSE %.3f\n", o,
         line.c_str(), lse);
  EXPECT_GT(o, 0.25);
  EXPECT_GT(lse, 0.15);  // exp and log are rounded correctly here, but the contract allows an ulp
}

// Every merge but the last rounds up. The bound must contain the sum of these roundings.
TEST(Bound, RoundingsOfMergesAddUp) {
  const Case c = parse_case("attention b=1 h=1 l=1x64 d=1 scores=equal");
  const Inputs inputs(c);
  const Outputs out(c);
  for (Index j = 0; j < 64; ++j)
    store(inputs.problem.v, inputs.problem.v.at(0, 0, j, 0), j == 0 ? 1 : j == 63 ? -1 : 0x1.2p-24);
  Emulation e;
  e.contract.tile = e.contract.split_keys = 1;
  e.contract.exp_ulp = 0x1p-10;  // the only exponential is e^0
  e.contract.ordered = true;
  run_emulated(e, inputs.problem, out.view());
  const Verdict v = judge(inputs.problem, out.view(), e.contract);
  EXPECT_THAT(v, Passes());
  EXPECT_GT(v.worst_ratio(Output::o), 0.15);
}

// If the order is declared, the bound is never larger, and it is smaller on long sums whose partial
// sums change their sign.
TEST(Bound, OrderSharpensIt) {
  const Case c = parse_case("attention b=1 h=1 l=8x3000 d=64 seed=5");
  const Inputs inputs(c);
  const Outputs out(c);
  const auto host = make_candidate("host");
  ASSERT_TRUE(host->run({ForwardCall{inputs.problem, out.view()}}).ok());
  Contract ordered = contract_of(*host, inputs.problem), any_order = ordered;
  any_order.ordered = false;
  const Verdict sharp = judge(inputs.problem, out.view(), ordered),
                blunt = judge(inputs.problem, out.view(), any_order);
  EXPECT_THAT(sharp, Passes());
  EXPECT_THAT(blunt, Passes());
  EXPECT_LT(sharp.worst(Output::o)->bound * 3, blunt.worst(Output::o)->bound);
  EXPECT_GT(sharp.power.by_output[0], blunt.power.by_output[0]);
}

TEST(Ladder, ReportsTheStrictestContractNotRefuted) {
  const Case c = parse_case("attention b=1 h=2 l=40x150 d=64 dtype=f16 seed=3");
  const Inputs inputs(c);
  const Outputs out(c);
  for (const Emulation& e : emulations(Dtype::f16)) {
    run_emulated(e, inputs.problem, out.view());
    JudgeOptions options;
    options.evidence = EvidenceRule::warn;
    const Verdict v = judge_by_ladder(inputs.problem, out.view(), 64, options);
    if (e.contract.name == "fp32, fma")
      EXPECT_EQ(v.contract, "fp32 accumulation, fp32 weights") << v.reason;
    if (e.contract.name == "weights in the dtype")
      EXPECT_EQ(v.contract, "fp32 accumulation, weights in f16") << v.reason;
    // Here the bound of a stored query holds stored scores as well. Their errors tell.
    if (e.contract.name == "scores stored in the dtype")
      EXPECT_EQ(v.evidence.arithmetic,
                "truncating 16-wide block FMA, scores and weights stored in f16")
          << v.reason;
    EXPECT_THAT(v, Passes()) << e.contract.name;
  }
}

// A scale that is no power of two rounds the query.
TEST(Ladder, AStoredQueryIsARungOfTheLadder) {
  const Case c = parse_case("attention b=1 h=2 l=40x150 d=64 dtype=f16 scale=0.3 seed=3");
  const Inputs inputs(c);
  const Outputs out(c);
  Index tried = 0;
  for (const Emulation& e : emulations(c.dtype)) {
    if (!e.contract.query_dtype) continue;
    run_emulated(e, inputs.problem, out.view());
    const Verdict v = judge_by_ladder(inputs.problem, out.view(), 64);
    EXPECT_EQ(v.contract,
              "truncating 16-wide block FMA, weights in f16, scaled query stored in it");
    EXPECT_THAT(v, Passes());
    ++tried;
  }
  EXPECT_EQ(tried, 1);
}

// A softmax that is stored before it multiplies V rounds weights that would otherwise be exactly 1,
// so no row of such a kernel is exact.
TEST(EmulatedLadder, AStoredSoftmaxIsARungOfTheLadder) {
  for (const char* line :
       {"attention b=1 h=1 l=2x131 d=4/6 scores=equal values=signed-zeros seed=147",
        "attention b=1 h=1 l=3x7 d=4/6 scores=subset values=integers",
        "attention b=1 h=1 l=1x6 d=1/7 scores=equal values=constant",
        "attention b=1 h=2 l=9x67 d=40/12"})
    for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
      Case c = parse_case(line);
      c.dtype = dtype;
      const Inputs inputs(c);
      const Outputs out(c);
      for (const Emulation& e : emulations(dtype)) {
        if (!e.contract.divides_first) continue;
        run_emulated(e, inputs.problem, out.view());
        EXPECT_THAT(judge_by_ladder(inputs.problem, out.view(), 64), Passes())
            << line << ", " << e.contract.name;
      }
    }
}

// Scores of hundreds, whose LSE is rounded by more than the sums are.
TEST(EmulatedLadder, WeightsFromLseAreARungOfTheLadder) {
  for (const char* line : {"attention b=2 h=6/2 l=97x64 d=32 causal offset=-3 scores=negative",
                           "attention b=1 h=2 l=9x200 d=64 scores=negative values=ones",
                           "attention b=1 h=2 l=9x200 d=64 scores=large-scores sink=0.5",
                           "attention b=1 h=2 l=20x70 d=64 scores=huge alibi dropout=0.3:11"}) {
    const Case c = parse_case(line);
    const Inputs inputs(c);
    const Outputs out(c);
    Index tried = 0;
    for (const Emulation& e : emulations(c.dtype)) {
      if (!e.contract.weights_from_lse) continue;
      run_emulated(e, inputs.problem, out.view());
      EXPECT_THAT(judge_by_ladder(inputs.problem, out.view(), 64), Passes()) << line;
      ++tried;
    }
    EXPECT_EQ(tried, 1);
  }
}

// Eager frameworks store q.k, its product with the scale, and what biases add to that.
TEST(EmulatedLadder, StoredPartsOfScoresAreARungOfTheLadder) {
  for (const char* line : {"attention b=2 h=3/1 l=96 d=24 causal scores=tile-peaks seed=15",
                           "attention b=1 h=2 l=40x60 d=32 scores=tile-peaks bias=normal seed=15"})
    for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
      Case c = parse_case(line);
      c.dtype = dtype;
      const Inputs inputs(c);
      const Outputs out(c);
      for (const Emulation& e : emulations(dtype)) {
        if (!e.contract.stores_score_parts) continue;
        run_emulated(e, inputs.problem, out.view());
        EXPECT_THAT(judge_by_ladder(inputs.problem, out.view(), 64), Passes())
            << line << ", " << e.contract.name;
      }
    }
}

// Autograd stores dP and dS between operations.
TEST(EmulatedLadder, StoredGradientsOfWeightsAreARungOfTheLadder) {
  for (const char* line :
       {"backward b=1 h=2 l=77 d=80/48 causal window=16,0 scores=negative values=ones grad=ramp",
        "backward b=1 h=2 l=60x97 d=32 causal offset=end scores=signed-zeros grad=signed-zeros",
        "backward b=1 h=4/2 l=33x50 d=32 values=ones"})
    for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
      Case c = parse_case(line);
      c.dtype = dtype;
      const Inputs inputs(c);
      const Outputs out(c);
      const GradientOutputs gradients(c, inputs);
      for (const Emulation& e : emulations(dtype)) {
        if (!e.contract.dp_dtype) continue;
        run_emulated(e, inputs.problem, out.view());
        const AttentionBackwardInput input{out.o.view(), out.lse.view(), inputs.d_o.view()};
        run_emulated_backward(e, inputs.problem, input, gradients.view());
        EXPECT_THAT(
            judge_backward_by_ladder(inputs.problem, input, gradients.view(), JudgeOptions{}),
            Passes())
            << line << ", " << e.contract.name;
      }
    }
}

}  // namespace
}  // namespace assay
