// Evidence: right outputs of kernels that nobody here wrote pass, wrong ones that stay inside every
// bound fail, and emulated kernels of every rung raise no alarm.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "harness/records/record.h"
#include "oracle/product.h"
#include "problem/generate.h"
#include "problem/round_all.h"
#include "testing/emulated_verdict.h"
#include "testing/matchers.h"

namespace assay {
namespace {

std::string records(const char* name) {
  return std::string(ASSAY_SOURCE_DIR) + "/property_tests/records/" + name + ".safetensors";
}

TEST(Evidence, RecordedOutputsOfRightKernelsPass) {
  const RecordFile file(records("right"));
  ASSERT_EQ(file.names().size(), 4u);
  for (const std::string& name : file.names()) {
    const CaseResult r = verify(file, file.read(name));
    EXPECT_THAT(r, Passes()) << name;
    EXPECT_FALSE(r.verdict.evidence.arithmetic.empty()) << name;
  }
}

TEST(Evidence, FaultsInsideEveryBoundFail) {
  const RecordFile file(records("wrong"));
  ASSERT_EQ(file.names().size(), 5u);
  for (const std::string& name : file.names()) {
    const Record record = file.read(name);
    EXPECT_THAT(verify(file, record), FailsWith("by evidence")) << name;
    EXPECT_THAT(verify(file, record, {.evidence = EvidenceRule::off}), Passes()) << name;
    const CaseResult warned = verify(file, record, {.evidence = EvidenceRule::warn});
    EXPECT_THAT(warned, Passes()) << name;
    EXPECT_NE(warned.reason.find("but by evidence"), std::string::npos) << warned.reason;
  }
}

TEST(Evidence, TheMissingKeyIsNamed) {
  const RecordFile file(records("wrong"));
  const CaseResult r = verify(file, file.read("last-key-dropped-0-f16"));
  ASSERT_FALSE(r.verdict.evidence.filters.empty());
  const FilterAnswer& best = r.verdict.evidence.filters.front();
  EXPECT_NE(best.fault.find("missing"), std::string::npos) << best.fault;
  EXPECT_GT(best.share, 0.5) << best.fault;
  EXPECT_LT(best.share, 1.5) << best.fault;
  ASSERT_FALSE(r.diagnosis.explanations.empty());
  EXPECT_EQ(r.diagnosis.explanations.front().hypothesis, "last-key-dropped");
}

TEST(Evidence, EmulatedKernelsRaiseNoAlarm) {
  Index downgrades = 0;
  for (const char* line : {"attention b=1 h=2/1 l=24x70 d=32 dtype=bf16",
                           "attention b=1 h=2 l=40 d=16/24 dtype=f16 causal scores=heavy-tail"}) {
    const Case c = parse_case(line);
    for (const Emulation& e : emulations(c.dtype)) {
      const Verdict declared = emulated_verdict(c, e, true);
      EXPECT_FALSE(declared.by_evidence)
          << line << ", " << e.contract.name << ": " << declared.reason;
      EXPECT_FALSE(declared.evidence.arithmetic.empty()) << declared.evidence.not_asked;
      const Verdict undeclared = emulated_verdict(c, e, false);
      if (e.contract.weight_dtype == Dtype::f8e4m3) {
        downgrades += undeclared.outcome == Outcome::fail;
        continue;
      }
      EXPECT_FALSE(undeclared.by_evidence)
          << line << ", " << e.contract.name << ": " << undeclared.reason;
    }
  }
  EXPECT_GT(downgrades, 0);
}

// Each of these failed once, declared or not (false_alarms.cc found them).
TEST(Evidence, EmulatedKernelsRaiseNoAlarmWhereTheyOnceDid) {
  struct Right {
    const char *line, *arithmetic;
  };
  for (const auto& [line, arithmetic] : {
           // Some kernels round weights after they are divided: far larger errors, if one key has
           // nearly all of the weight.
           Right{"attention b=1 h=1 l=97x64 d=128/96 dtype=bf16 out=f32 scale=0.25 causal "
                 "offset=-3 scores=heavy-tail values=constant seed=227",
                 "weights in the dtype, splits"},
           // The argument of 2^x is a multiply-add, which is not 0 for the largest score.
           Right{"attention b=1 h=71/1 l=20x84 d=64 dtype=bf16 out=f32 causal offset=14 "
                 "bool=tiles@ij sink=0.5 scores=large-scores seed=30038",
                 "weights in the dtype, splits"},
           Right{"attention b=1 h=1 l=96 d=192/128 dtype=f16 scale=0.25 causal offset=-3 "
                 "scores=far-positive values=constant seed=267",
                 "scores stored in the dtype"},
           // q.k is rounded, and again after it is scaled.
           Right{"attention b=2 h=3/1 l=63x128 d=17/33 dtype=bf16 causal offset=-3 bias=normal "
                 "starts=51,0 docs=7,19,11 alibi dropout=0.3:11 scores=near-overflow "
                 "values=head-number hidden=nan seed=293",
                 "scores stored in the dtype, and before the scale"},
           // Subnormal numbers of K are read as 0.
           Right{"attention b=2 h=3/1 l=97x64 d=128/96 dtype=f32 scale=0.25 softcap=50 "
                 "window=16,0 starts=25,0 scores=near-overflow values=ramp seed=421",
                 "fp32, sums that flush"},
           // dP is stored, and scores are not: they are beyond what f16 holds.
           Right{"backward b=1 h=2 l=20x84 d=64 dtype=f16 offset=37 bool=random@ij alibi "
                 "scores=far-negative values=offset seed=30059",
                 "dP stored in the dtype"},
           // The scale is folded into 2^x, and its product with a maximum near -200,000 is rounded.
           Right{"attention b=3 h=5 l=2x5 d=80/48 dtype=f16 causal scores=far-negative "
                 "values=uniform seed=173",
                 "weights in the dtype, splits"},
           // Weights are rounded relative to the maximum of their split.
           Right{"attention b=2 h=3/1 l=37x53 d=128/96 dtype=bf16 out=f32 scale=0.25 softcap=50 "
                 "causal offset=end bool=empty-rows@ij bias=minus-infinity@hij lengths=47,37 "
                 "starts=10,26 alibi sink=0.5 dropout=0.3:11 scores=cancel values=head-number "
                 "seed=19 layout=bshd",
                 "weights in the dtype, splits"},
           // dS is scaled before it is rounded to f16, where it underflows.
           Right{"backward b=3 h=5 l=63x128 d=40/72 dtype=f16 scale=0.25 causal window=16,0 "
                 "bool=random@bj bias=minus-infinity@hij starts=51,0,102 docs=7,19,11 alibi "
                 "scores=falling values=tiny grad=ramp hidden=huge seed=203 "
                 "layout=q:reversed,k:padded,v:shared-batch,o:strided threads=2",
                 "weights in the dtype, dS from them and scaled"},
           // q.k is beyond what f16 holds, and is stored in it before the scale.
           Right{"attention b=1 h=1 l=96 d=192/128 dtype=f16 scale=0.25 causal offset=-3 "
                 "scores=far-positive values=constant seed=291",
                 "scores stored in the dtype, and before the scale"},
           // K is read as 0, and bounds are so wide that they hold what follows from it.
           Right{"attention b=1 h=1 l=12x191 d=17/33 dtype=bf16 out=f32 scale=0.25 causal "
                 "offset=end window=-1,3 bool=random@bj bias=minimum alibi sink=0.5 "
                 "scores=near-overflow values=biased hidden=inf seed=10254 "
                 "layout=q:reversed,k:padded,v:shared-batch,o:strided",
                 "fp32, sums that flush"},
       }) {
    const Case c = parse_case(line);
    const std::vector<Emulation> all = emulations(c.dtype);
    const auto e = std::ranges::find(all, arithmetic,
                                     [](const Emulation& each) { return each.contract.name; });
    ASSERT_NE(e, all.end()) << arithmetic;
    for (const bool declared : {true, false}) {
      const Verdict v = emulated_verdict(c, *e, declared);
      EXPECT_NE(v.outcome, Outcome::fail) << line << ": " << v.reason;
      EXPECT_NE(v.outcome, Outcome::error) << line << ": " << v.reason;
      if (e->contract.operand_floor > 0 && !declared) {
        EXPECT_EQ(v.differs.of<Subnormals>(), Subnormals::flushed) << v.reason;
      }
    }
  }
}

// Roundings that no emulation has would be taken for fp32's, and a right kernel for a wrong one.
TEST(Evidence, RoundingsWithoutAnEmulationAreNotAsked) {
  const Case c = parse_case("attention b=1 h=2 l=40 d=64 dtype=f16 seed=3");
  std::vector<Emulation> all = emulations(c.dtype);
  const auto half = std::ranges::find(all, "fp16 accumulator",
                                      [](const Emulation& e) { return e.contract.name; });
  ASSERT_NE(half, all.end());
  EXPECT_THAT(emulated_verdict(c, *half, true).evidence.not_asked, "");
  for (void (*const coarser)(Contract&) : {
           +[](Contract& x) { x.dot_roundoff = 0x1p-10; },
           +[](Contract& x) { x.roundoff = 0x1p-11; },
           +[](Contract& x) { x.argument_roundings = 3; },
           +[](Contract& x) { x.division_roundings = 3; },
           +[](Contract& x) { x.largest = 1e6; },
       }) {
    Emulation declared = *half;
    coarser(declared.contract);
    const Verdict v = emulated_verdict(c, declared, true);
    EXPECT_EQ(v.outcome, Outcome::pass) << v.reason;
    EXPECT_EQ(v.evidence.not_asked, "no run of attention has such roundings");
  }
}

// Scores of 200,000 are rounded by so much that this rounding alone decides what errors are
// typical. A kernel that declares its order adds the terms of q.k one after the other; sums in
// parts round less.
TEST(Evidence, DeclaredChainsOfLargeScoresRaiseNoAlarm) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  ExecuteOptions options;
  options.relations = options.power = false;
  for (const char* line :
       {"attention b=2 h=3/1 l=96 d=32 dtype=f16 causal scores=far-positive values=cancel seed=9",
        "attention b=2 h=3/1 l=64 d=64 dtype=f16 causal scores=far-negative values=cancel seed=33",
        "attention b=2 h=3/1 l=64 d=64 dtype=f16 causal scores=far-negative values=cancel seed=43",
        "attention b=2 h=3/1 l=96 d=32 dtype=f16 causal scores=far-negative seed=46",
        "attention b=2 h=3/1 l=64 d=64 dtype=f16 causal scores=far-positive values=cancel seed=51",
        "attention b=1 h=5 l=4x2 d=64/13 dtype=f16 bias=normal dropout=0.3:11 scores=far-positive "
        "values=near-overflow seed=47",
        "backward b=2 h=3/1 l=130 d=128 dtype=f16 causal scores=far-negative seed=6"}) {
    const CaseResult r = execute(parse_case(line), *host, options);
    EXPECT_THAT(r, Passes()) << line;
    EXPECT_FALSE(r.verdict.evidence.arithmetic.empty()) << line;
  }
}

// The sink takes all of the weight but about e^-87, and a device that flushes subnormal numbers
// loses some of what is left.
TEST(Evidence, FlushedWeightsRaiseNoAlarm) {
  const Case c = parse_case("attention b=1 h=1 l=15x19 d=38/11 sink=88 values=ones seed=356");
  const Inputs in(c);
  const Outputs out(c);
  const Attention& p = in.problem;
  Index flushed = 0, kept = 0;
  for (Index i = 0; i < c.shape.rows; ++i) {
    double o = 0;
    for (Index j = 0; j < c.shape.keys; ++j) {
      double dot = 0;
      for (Index d = 0; d < c.shape.dim; ++d)
        dot += load(p.q, p.q.at(0, 0, i, d)) * load(p.k, p.k.at(0, 0, j, d));
      const double weight = std::exp(static_cast<double>(p.scale) * dot - 88);
      ++(weight < 0x1p-126 ? flushed : kept);
      if (weight >= 0x1p-126) o += weight;
    }
    const AttentionOutput view = out.view();
    for (Index d = 0; d < c.shape.value_dim; ++d) store(view.o, view.o.at(0, 0, i, d), o);
    store(view.lse, view.lse.at(0, 0, i, 0), 88);
  }
  EXPECT_GT(flushed, 0);
  EXPECT_GT(kept, 0);
  Contract contract = contract_ladder(c.dtype, 64).front();
  contract.exp_floor = 0x1p-125;  // as kernels declare it for such devices
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  const Verdict v = judge(p, out.view(), contract, options);
  EXPECT_EQ(v.outcome, Outcome::pass) << v.reason;
  EXPECT_EQ(v.evidence.rows_asked, 0);
  EXPECT_NE(v.evidence.not_asked.find("underflow"), std::string::npos) << v.evidence.not_asked;
}

// C in fp32 by the order of the terms. `lanes` partial sums are added in order at the end.
void sum_in_order(const Product& p, const TensorView& c, const std::vector<Index>& order,
                  Index lanes) {
  const std::vector<double> a = decode_activations(p), w = decode_weights(p.w);
  for (Index m = 0; m < p.m; ++m)
    for (Index n = 0; n < p.n; ++n) {
      std::vector<float> sums(usize(lanes), 0.0f);
      for (std::size_t t = 0; t < order.size(); ++t) {
        const auto at = usize(order[t]);
        float& sum = sums[t % usize(lanes)];
        sum = std::fma(static_cast<float>(a[usize(m * p.k) + at]),
                       static_cast<float>(w[at * usize(p.n) + usize(n)]), sum);
      }
      float sum = 0;
      for (const float part : sums) sum += part;
      store(c, c.at(0, 0, m, n), static_cast<double>(sum));
    }
}

// A term that is far larger than all others makes every later rounding as large as its own, so that
// errors depend on where it stands in the order of a sum. Our kernel declares its order, so that
// one arithmetic has to fit.
TEST(Evidence, ALargeTermRaisesNoAlarmInAnyOrder) {
  for (const char* line :
       {"product m=19 n=1 k=64 dtype=f32 w=int8 weights=codes poke=a:0:0:18:16=30000",
        "product m=1 n=19 k=64 dtype=f32 w=int8 weights=codes poke=a:0:0:0:3=30000",
        "product m=1 n=1 k=64 dtype=f32 w=int8 weights=codes poke=a:0:0:0:60=30000",
        "product m=20 n=30 k=128 dtype=f32 w=int8 weights=codes poke=a:0:0:7:1=1e6",
        "product m=3 n=3 k=512 dtype=f32 w=mxfp4 poke=a:0:0:0:500=1e5;a:0:0:1:5=1e5"}) {
    for (int seed = 0; seed < 12; ++seed) {
      Case c = parse_case(line);
      c.seed = static_cast<std::uint64_t>(seed);
      const ProductInputs in(c);
      const Product& p = in.problem;
      std::vector<Index> order(usize(p.k));
      std::iota(order.begin(), order.end(), Index{0});
      const std::vector<Index> ascending = order;
      std::ranges::reverse(order);
      const std::vector<Index> descending = order;
      std::ranges::shuffle(order, std::mt19937_64(c.seed));
      for (const auto& [terms, lanes] : {std::pair{ascending, Index{1}},
                                         {descending, 1},
                                         {order, 1},
                                         {ascending, 8},
                                         {order, 32}}) {
        const Tensor out(Dtype::f32, {1, 1, p.m, p.n}, {{0, 0, p.n, 1}, 0, p.m * p.n});
        sum_in_order(p, out.view(), terms, lanes);
        JudgeOptions options;
        options.evidence = EvidenceRule::fail;
        options.seed = c.seed;
        EXPECT_THAT(judge_product_by_ladder(p, out.view(), options), Passes())
            << line << ", seed " << seed << ", " << lanes << " lanes";
      }
      EXPECT_THAT(execute(c, *make_candidate("host")), Passes()) << line << ", seed " << seed;
    }
  }
}

// Every number is rounded as encode() rounds it.
TEST(Evidence, EmulationRoundsAsTheFormatsDo) {
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::f8e4m3, Dtype::f8e5m2}) {
    std::vector<float> numbers;
    // All exponents, and the bits of the significand that make ties and their neighbours.
    for (std::uint32_t high = 0; high < 1u << 16; ++high)
      for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
        numbers.push_back(std::bit_cast<float>(high << 16 | low));
    const std::vector<float> before = numbers;
    round_all(dtype, numbers);
    for (std::size_t k = 0; k < numbers.size(); ++k) {
      const auto x = static_cast<double>(before[k]);
      if (std::isnan(x)) continue;
      ASSERT_EQ(static_cast<double>(numbers[k]), round_to(dtype, x))
          << format(dtype).name << " " << x;
    }
  }
}

// Where tiles begin decides relative to which maximum weights are rounded. Few keys and equal
// scores leave nothing to chance.
TEST(Evidence, DeclaredTilesBeginAtTheirMultiples) {
  Emulation e = emulations(Dtype::bf16).front();
  e.contract.ordered = true;
  e.contract.products_rounded = false;
  e.contract.weight_dtype = Dtype::bf16;
  e.contract.tile = 64;
  const Case c = parse_case(
      "attention b=1 h=3/1 l=126x251 d=20/1 dtype=bf16 out=f32 causal offset=end window=5,-1 "
      "bool=random bias=minus-infinity alibi scores=ties values=uniform seed=10015");
  const Inputs in(c);
  const Outputs out(c);
  run_emulated(e, in.problem, out.view());
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  const Verdict v = judge(in.problem, out.view(), e.contract, options);
  EXPECT_EQ(v.outcome, Outcome::pass) << v.reason;
}

}  // namespace
}  // namespace assay
