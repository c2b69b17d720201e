// Diagnoses: each known fault is named first where it is planted, right outputs with noise are
// like none, and a diagnosis is read back whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "harness/faults/fault_table.h"
#include "harness/judging/behaviour.h"
#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "harness/results/common_causes.h"
#include "harness/results/schema.h"
#include "oracle/diagnosis.h"
#include "oracle/weight_map.h"
#include "problem/generate.h"
#include "problem/random.h"
#include "testing/emulated_kernel.h"

namespace assay {
namespace {

Diagnosis diagnosis_of(const char* line, const std::string& candidate) {
  const CaseResult r = execute(parse_case(line), *make_candidate(candidate), {.relations = false});
  EXPECT_EQ(r.outcome, Outcome::fail) << candidate << " on " << line << ": " << r.reason;
  return r.diagnosis;
}

// A planted fault and a small case that shows it.
struct Planted {
  const char* fault;
  const char* line;
};

const std::vector<Planted> planted = {
    {"causal-off-by-one", "attention b=1 h=2 l=24x40 d=16 causal offset=end"},
    {"causal-anchor-top-left", "attention b=1 h=2 l=24x40 d=16 causal offset=end"},
    {"causal-dropped-with-mask", "attention b=1 h=2 l=24x40 d=16 causal bias=normal"},
    {"causal-by-last-row-of-four", "attention b=1 h=2 l=24x40 d=16 causal"},
    {"window-off-by-one", "attention b=1 h=2 l=24x40 d=16 window=5,9"},
    {"last-partial-tile-skipped", "attention b=1 h=2 l=9x150 d=16"},
    {"padding-key-leaks", "attention b=1 h=2 l=9x50 d=16 lengths=33"},
    {"kv-head-modulo", "attention b=1 h=4/2 l=9x50 d=16"},
    {"scale-off-by-one-percent", "attention b=1 h=2 l=9x50 d=16"},
    {"scale-hard-wired", "attention b=1 h=2 l=9x50 d=16 scale=0.4"},
    {"scale-sign-dropped", "attention b=1 h=2 l=9x50 d=16 scale=-0.4"},
    {"zero-at-tail-enters-sum", "attention b=1 h=2 l=9x50 d=16"},
    {"accumulator-not-rescaled", "attention b=1 h=2 l=9x300 d=16"},
    {"sum-not-rescaled", "attention b=1 h=2 l=9x300 d=16"},
    {"lse-in-base-two", "attention b=1 h=2 l=9x50 d=16"},
    {"second-batch-not-computed", "attention b=2 h=2 l=9x50 d=16"},
    {"mask-of-head-zero", "attention b=1 h=2 l=9x50 d=16 bias=normal"},
    {"mask-batch-stride-dropped", "attention b=2 h=2 l=9x50 d=16 bias=normal"},
    {"bias-scaled-like-scores", "attention b=1 h=2 l=9x50 d=16 bias=normal"},
    {"bias-ignored", "attention b=1 h=2 l=9x50 d=16 bias=normal"},
    {"bool-mask-ignored", "attention b=1 h=2 l=9x50 d=16 bool=random"},
    {"bool-mask-inverted", "attention b=1 h=2 l=9x50 d=16 bool=random"},
    {"alibi-slope-of-head-before", "attention b=1 h=2 l=9x50 d=16 alibi"},
    {"alibi-distance-from-key-zero", "attention b=1 h=2 l=9x50 d=16 alibi offset=end"},
    {"softcap-dropped", "attention b=1 h=2 l=9x50 d=16 softcap=1"},
    {"softcap-after-mask", "attention b=1 h=2 l=9x50 d=16 softcap=1 bool=random"},
    {"sink-dropped", "attention b=1 h=2 l=9x50 d=16 sink=2"},
    {"lse-without-sink", "attention b=1 h=2 l=9x50 d=16 sink=2"},
    {"document-boundary-off-by-one", "attention b=1 h=2 l=50 d=16 docs=17,33"},
    {"values-replaced-by-keys", "attention b=1 h=2 l=9x50 d=16"},
    {"output-truncated", "attention b=1 h=2 l=9x50 d=16"},
    {"dim-tail-dropped", "attention b=1 h=2 l=9x50 d=20"},
    {"delta-omitted", "backward b=1 h=2 l=20x30 d=16"},
    {"dlse-ignored", "backward b=1 h=2 l=20x30 d=16 dlse=normal"},
    {"query-gradient-scaled-twice", "backward b=1 h=2 l=20x30 d=16"},
    {"key-gradient-unscaled", "backward b=1 h=2 l=20x30 d=16"},
    {"softcap-slope-omitted", "backward b=1 h=2 l=20x30 d=16 softcap=1"},
    {"key-gradients-of-last-head-only", "backward b=1 h=4/2 l=20x30 d=16"},
    {"backward-head-modulo", "backward b=1 h=4/2 l=20x30 d=16"},
    {"backward-causal-off-by-one", "backward b=1 h=2 l=20x30 d=16 causal"},
    {"backward-without-bias", "backward b=1 h=2 l=20x30 d=16 bias=normal"},
    {"backward-draws-anew", "backward b=1 h=2 l=20x30 d=16 dropout=0.3:5"},
    {"weight-gradients-without-dropout-scale", "backward b=1 h=2 l=20x30 d=16 dropout=0.3:5"},
    {"backward-lse-in-base-two", "backward b=1 h=2 l=20x30 d=16"},
    {"backward-lse-without-sink", "backward b=1 h=2 l=20x30 d=16 sink=2"},
    {"key-gradients-with-inverted-triangle", "backward b=1 h=2 l=20x30 d=16 causal"},
    {"weight-nibbles-swapped", "product m=3 n=20 k=64 w=mxfp4"},
    {"scale-group-of-tail", "product m=3 n=20 k=72 w=mxfp4"},
    {"scale-applied-twice", "product m=3 n=20 k=64 w=mxfp4"},
    {"scale-dropped", "product m=3 n=20 k=64 w=mxfp4"},
    {"tensor-scale-dropped", "product m=3 n=20 k=64 w=nvfp4"},
    {"zero-point-off-by-one", "product m=3 n=20 k=128 w=int4"},
    {"half-read-as-quarter", "product m=3 n=20 k=64 w=mxfp4"},
    {"kept-positions-mirrored", "product m=3 n=20 k=128 w=fp4-sparse"},
    {"depth-tail-dropped", "product m=3 n=20 k=68 w=mxfp4"},
    {"masked-values-reach-product", "attention b=1 h=2 l=24x40 d=16 causal poke=v:0:0:30:3=nan"},
    {"output-of-16-bits-written-as-f32", "attention b=1 h=2 l=9x50 d=16 dtype=bf16"},
    {"output-of-16-bits-written-as-f32", "attention b=1 h=2 l=9x50 d=16 dtype=f16"},
    {"output-written-packed", "attention b=1 h=2 l=9x50 d=16 layout=o:padded"},
    {"lse-of-all-heads-in-one", "attention b=1 h=3 l=9x50 d=16"},
    {"max-of-tile-only", "attention b=1 h=2 l=40x300 d=16 causal offset=100"},
    {"row-max-scaled-twice", "attention b=1 h=2 l=9x50 d=16 poke=q:0:0:3:0=3000"},
    {"last-lane-missing-from-row-sum", "attention b=1 h=4/2 l=1x50 d=16"},
    {"merged-max-stale", "attention b=1 h=8 l=2x1200 d=64 causal offset=end alibi"},
    {"empty-split-gives-nan", "attention b=1 h=2 l=2x1200 d=64 causal offset=end starts=700"},
    {"partial-sums-alias-maxima", "attention b=1 h=2 l=2x1200 d=64"},
    {"bias-gradient-overwritten", "backward b=2 h=2 l=20x30 d=16 bias=normal@ij"},
    {"sink-gradient-sign", "backward b=1 h=2 l=20x30 d=16 sink=2"},
    {"slot-past-length-read", "attention b=2 h=2 l=5x37 d=16 offset=end cache=paged:16"},
    {"page-table-off-by-one", "attention b=1 h=2 l=4x64 d=16 offset=end cache=paged:16"},
    {"page-table-off-by-one", "attention b=1 h=2 l=4x64 d=16 offset=end cache=latent:16:32+8"},
    {"pages-taken-as-consecutive",
     "attention b=2 h=2 l=4x61 d=16 causal offset=end cache=paged:16"},
    {"written-past-the-new-length",
     "attention b=1 h=2 l=6x40 d=16 causal offset=end cache=paged:16 chunks=3"},
    {"scale-of-neighbour-group",
     "attention b=1 h=2 l=4x40 d=32 offset=end cache=paged:16 store=f8e4m3/16"},
    {"scale-of-first-token",
     "attention b=1 h=2 l=4x40 d=32 offset=end cache=paged:16 store=f8e4m3"},
    {"offset-code-read-as-e2m1",
     "attention b=1 h=2 l=4x40 d=32 offset=end cache=paged:16 store=f4e2m1/16"},
    {"uniform-code-read-as-e4m3",
     "attention b=1 h=2 l=4x40 d=32 offset=end cache=paged:16 store=f8e4m3/16"},
    {"f4-saturates-at-four",
     "attention b=1 h=2 l=4x40 d=32 offset=end cache=paged:16 store=f4e2m1/16"},
    {"totals-in-half-precision", "product m=3 n=20 k=128 w=mxfp4"},
    {"added-to-the-output", "product m=3 n=20 k=64 w=mxfp4"},
    {"row-beyond-the-last-stored", "product m=3 n=20 k=64 w=mxfp4"},
};

// A fault, a case that shows it, and what it is not.
struct Confusable {
  const char* fault;
  const char* line;
  const char* other;
};

const std::vector<Confusable> confusable = {
    {"padding-key-leaks", "attention b=1 h=2 l=9x50 d=16 lengths=33", "slot-behind-read"},
    {"slot-past-length-read", "attention b=2 h=2 l=5x37 d=16 offset=end cache=paged:16",
     "last-key-dropped"},
    {"page-table-off-by-one", "attention b=2 h=2 l=4x64 d=16 offset=end cache=paged:16",
     "pages-in-a-row"},
    {"pages-taken-as-consecutive", "attention b=2 h=2 l=4x61 d=16 causal offset=end cache=paged:16",
     "kv-batch-zero"},
    {"scale-of-neighbour-group",
     "attention b=1 h=2 l=4x40 d=32 offset=end cache=paged:16 store=f8e4m3/16",
     "stored-scale-of-first-token"},
    {"f4-saturates-at-four",
     "attention b=1 h=2 l=4x40 d=32 offset=end cache=paged:16 store=f4e2m1/16",
     "stored-offset-code"},
    {"merged-sum-not-corrected", "attention b=1 h=2 l=2x1200 d=64", "merged-sum-for-maximum"},
    {"empty-split-gives-nan", "attention b=2 h=2 l=2x1200 d=64 causal offset=end starts=700,0",
     "all-nan"},
    {"sink-gradient-sign", "backward b=2 h=2 l=20x30 d=16 sink=2", "dsink-of-last-batch"},
    {"bias-gradient-overwritten", "backward b=2 h=2 l=20x30 d=16 bias=normal@ij", "dbias-zero"},
    {"totals-in-half-precision", "product m=3 n=20 k=128 w=mxfp4", "totals-in-bf16"},
    {"padding-of-rows-not-zeroed", "product m=3 n=20 k=68 w=mxfp4", "adds-to-output"},
    {"output-truncated", "attention b=1 h=2 l=9x50 d=16", "output-in-binary32"},
    {"scale-off-by-one-percent", "attention b=1 h=4 l=9x50 d=16 alibi", "maximum-scaled-again"},
};

TEST(Diagnosis, PlantedFaultsAreNamedFirst) {
  for (const auto& [name, line] : planted) {
    const auto* fault = std::ranges::find(planted_faults, name, &PlantedFault::name);
    ASSERT_NE(fault, planted_faults.end()) << name;
    ASSERT_FALSE(fault->cause.empty()) << name;
    const Diagnosis d = diagnosis_of(line, std::string("fault:") + name);
    EXPECT_EQ(rank_of(d, fault->cause), 1) << name << " on " << line << ": " << sentence_on(d);
  }
}

TEST(Diagnosis, OthersAreNotNamed) {
  for (const auto& [name, line, other] : confusable) {
    const Diagnosis d = diagnosis_of(line, std::string("fault:") + name);
    EXPECT_EQ(rank_of(d, other), 0) << name << " on " << line << ": " << sentence_on(d);
  }
}

// Where two faults have the same outputs, both are told: of one row, the newest key is the last.
TEST(Diagnosis, WhatCannotBeToldApartIsListed) {
  const Diagnosis d =
      diagnosis_of("attention b=1 h=2 l=1x33 d=16 offset=end cache=contiguous store=f32",
                   "fault:newest-token-not-seen");
  EXPECT_EQ(rank_of(d, "newest-key-dropped"), 1) << sentence_on(d);
  EXPECT_EQ(rank_of(d, "last-key-dropped"), 1) << sentence_on(d);
}

// What the behaviour tells takes the place of what errors look like, and is read back.
TEST(Diagnosis, BehaviourIsRead) {
  const CaseResult r =
      execute(parse_case("product m=3 n=20 k=64 w=mxfp4"),
              *make_candidate("fault:row-beyond-the-last-stored"), {.relations = false});
  ASSERT_EQ(r.outcome, Outcome::fail);
  EXPECT_FALSE(r.was_compared());
  EXPECT_EQ(sentence_on(r.diagnosis),
            "looks like: the outputs are right, and other memory was overwritten");
  CaseResult back;
  read_json(to_json(r), "result", back);
  EXPECT_EQ(rank_of(back.diagnosis, "writes-beside"), 1);
}

TEST(Diagnosis, WhatACallLeavesBehindIsNamed) {
  ExecuteOptions options;
  options.power = false;
  const CaseResult r = execute(parse_case("attention b=1 h=2 l=9x50 d=16 causal"),
                               *make_candidate("fault:window-of-previous-call"), options);
  ASSERT_EQ(r.outcome, Outcome::fail) << r.reason;
  EXPECT_EQ(rank_of(r.diagnosis, "call-before-kept"), 1) << sentence_on(r.diagnosis);
}

// The outputs of a kernel that rounds to 16 bits are diagnosed without a contract as well.
TEST(Diagnosis, UndeclaredKernelsAreNamed) {
  const Case c = parse_case("attention b=1 h=2 l=16x40 d=32 dtype=bf16 causal offset=end seed=3");
  const Inputs in(c);
  Attention altered = in.problem;
  altered.causal = false;
  altered.window_right = 1;
  const Outputs out(c, true, Surroundings::bands);
  run_emulated(emulations(c.dtype).front(), altered, out.view());
  const Verdict v = judge_by_ladder(in.problem, out.view(), 64);
  ASSERT_EQ(v.outcome, Outcome::fail);
  const Diagnosis d = diagnose(in.problem, out.view(), nullptr, v, {});
  ASSERT_FALSE(d.explanations.empty()) << sentence_on(d);
  EXPECT_EQ(d.explanations.front().hypothesis, "causal-late");
  EXPECT_FALSE(d.explanations.front().arithmetic.empty());
  EXPECT_THAT(sentence_on(d),
              testing::StartsWith("looks like: the causal diagonal is one key late"));
}

// A planted fault in a kernel that declares nothing is found and named as well.
TEST(Diagnosis, UndeclaredFaultsAreNamed) {
  for (const auto& [name, line] : std::vector<Planted>{
           {"kv-head-modulo", "attention b=1 h=4/2 l=9x50 d=16 dtype=f16"},
           {"scale-off-by-one-percent", "attention b=1 h=2 l=9x50 d=16 dtype=bf16"},
           {"delta-omitted", "backward b=1 h=2 l=20x30 d=16 dtype=bf16"},
           {"scale-dropped", "product m=3 n=20 k=64 w=mxfp4 dtype=f16"}}) {
    const auto* fault = std::ranges::find(planted_faults, name, &PlantedFault::name);
    ASSERT_NE(fault, planted_faults.end()) << name;
    const Diagnosis d = diagnosis_of(line, std::string("fault-undeclared:") + name);
    EXPECT_EQ(rank_of(d, fault->cause), 1) << name << " on " << line << ": " << sentence_on(d);
  }
}

TEST(Diagnosis, NoiseIsLikeNoFault) {
  for (const char* line : {"attention b=1 h=2 l=16x40 d=32 causal offset=end bias=normal seed=3",
                           "attention b=2 h=4/2 l=16x150 d=32 dtype=f16 softcap=5 sink=1"}) {
    const Case c = parse_case(line);
    const Inputs in(c);
    const Outputs out(c, true, Surroundings::bands);
    run_emulated(emulations(c.dtype).front(), in.problem, out.view());
    SplitMix64 random(7);
    const TensorView o = out.view().o;
    for_each_index(o.shape, [&](Index b, Index h, Index i, Index d) {
      const double x = load(o, o.at(b, h, i, d));
      const double noise = static_cast<double>(random() >> 11) * 0x1p-53 - 0.5;
      store(o, o.at(b, h, i, d), round_to(o.dtype, x + 0.1 * noise));
    });
    JudgeOptions options;
    options.evidence = EvidenceRule::fail;
    const Verdict v = judge_by_ladder(in.problem, out.view(), 64, options);
    ASSERT_EQ(v.outcome, Outcome::fail) << line;
    const Diagnosis d = diagnose(in.problem, out.view(), nullptr, v, {});
    EXPECT_TRUE(d.explanations.empty()) << line << ": " << sentence_on(d);
    EXPECT_GT(d.tried, 20) << line;
    EXPECT_THAT(sentence_on(d), testing::HasSubstr("looks like none of"));
  }
}

TEST(Diagnosis, NothingIsTriedOnAPass) {
  const CaseResult r = execute(parse_case("attention b=1 h=2 l=9x40 d=16 causal"),
                               *make_candidate("host"), {.relations = false});
  EXPECT_EQ(r.outcome, Outcome::pass);
  EXPECT_FALSE(r.diagnosis.was_asked());
  EXPECT_EQ(sentence_on(r.diagnosis), "");
  EXPECT_FALSE(to_json(r).contains("diagnosis"));
}

TEST(Diagnosis, IsReadBackWhole) {
  CaseResult r = execute(parse_case("attention b=1 h=1 l=9x20 d=8 causal"),
                         *make_candidate("fault:causal-off-by-one"), {.relations = false});
  ASSERT_TRUE(r.diagnosis.was_asked());
  r.diagnosis.explanations.resize(2);
  r.diagnosis.explanations[1] = {
      "causal-ignored", "causality is ignored", {"other"}, "fp32", 1, 2, 3};
  const Json written = Json::parse(to_json(r).dump());
  EXPECT_EQ(written["diagnosis"]["explanations"].size(), 2u);
  const auto read = from_json<CaseResult>(written, "result");
  EXPECT_EQ(to_json(read), written);
  EXPECT_EQ(rank_of(read.diagnosis, "other"), 2);
  EXPECT_EQ(rank_of(read.diagnosis, "no such"), 0);
}

// A cause in the table of faults is the name of a hypothesis, or of a behaviour.
TEST(Diagnosis, CausesAreHypotheses) {
  std::vector<std::string_view> names = hypothesis_names();
  for (const Behaviour& b : behaviours) names.push_back(b.name);
  for (const PlantedFault& f : planted_faults)
    if (!f.cause.empty())
      EXPECT_NE(std::ranges::find(names, f.cause), names.end())
          << f.name << " has the cause " << f.cause << ", which is no hypothesis";
}

Explanation named(const char* name, std::vector<std::string> same = {}) {
  return {name, name, std::move(same), "", 1, 1, 3};
}

TEST(Diagnosis, CommonCausesExplainMostCases) {
  CommonCauses causes;
  EXPECT_EQ(causes.rank_of("a"), 0);
  Diagnosis first, second;
  first.explanations = {named("b", {"a"}), named("c")};
  second.explanations = {named("a")};
  causes.add(first);
  EXPECT_EQ(causes.rank_of("a"), 1);
  EXPECT_EQ(causes.rank_of("b"), 1);
  EXPECT_FALSE(causes.is_alone("a"));
  causes.add(second);
  EXPECT_EQ(causes.rank_of("a"), 1);
  EXPECT_TRUE(causes.is_alone("a"));
  EXPECT_EQ(causes.rank_of("b"), 2);
  EXPECT_EQ(causes.rank_of("c"), 3);
  EXPECT_EQ(causes.rank_of("d"), 0);
  EXPECT_EQ(causes.ranking().front(), "a");
}

CaseResult drawn(const char* line, const std::string& candidate) {
  ExecuteOptions options;
  options.pictures = true;
  options.power = options.diagnosis = options.relations = false;
  CaseResult r = execute(parse_case(line), *make_candidate(candidate), options);
  EXPECT_EQ(r.outcome, Outcome::fail) << line << ": " << candidate;
  EXPECT_TRUE(r.pictures.has_value());
  return r;
}

// Which share of its weight each key lacks, by row and key. Rows without shares are skipped.
using Lacks = std::function<double(Index row, Index key)>;
void expect_weights(const LackingWeights& w, Index told, const Lacks& lacks) {
  ASSERT_EQ(w.row_step * w.key_step, 1);
  Index rows = 0;
  for (std::size_t i = 0; i < w.cells.size(); ++i) {
    rows += w.cells[i].front() ? 1 : 0;
    for (std::size_t j = 0; w.cells[i].front() && j < w.cells[i].size(); ++j)
      EXPECT_NEAR(*w.cells[i][j], lacks(static_cast<Index>(i), static_cast<Index>(j)), 0.05)
          << "row " << i << ", key " << j;
  }
  EXPECT_GE(rows, told);
}

TEST(WeightMap, ShowsTheKeysThatAreMissing) {
  const CaseResult window =
      drawn("attention b=1 h=1 l=24 d=64 causal window=6,-1", "fault:window-off-by-one");
  ASSERT_TRUE(window.pictures->weights.has_value());
  expect_weights(*window.pictures->weights, 24,
                 [](Index i, Index j) { return j == i - 6 ? 1 : 0; });
  const CaseResult tile =
      drawn("attention b=1 h=1 l=9x140 d=64", "fault:last-partial-tile-skipped");
  ASSERT_TRUE(tile.pictures->weights.has_value());
  const LackingWeights& w = *tile.pictures->weights;
  EXPECT_EQ(w.key_step, 3);
  for (const OptionalRatios& row : w.cells) {
    EXPECT_NEAR(row.front().value_or(9), 0, 0.05);
    EXPECT_NEAR(row.back().value_or(9), 1, 0.05);
  }
  CaseResult back;
  read_json(to_json(tile), "result", back);
  EXPECT_EQ(back.pictures->weights, tile.pictures->weights);
}

TEST(WeightMap, ShowsKeysThatARowMustNotSee) {
  const CaseResult late = drawn("attention b=1 h=1 l=24 d=64 causal", "fault:causal-off-by-one");
  ASSERT_TRUE(late.pictures->weights.has_value());
  expect_weights(*late.pictures->weights, 23, [](Index i, Index j) { return j == i + 1 ? -1 : 0; });
}

// Without a declaration, and with weights that are rounded.
TEST(WeightMap, RoundingHidesNoKey) {
  const Case c = parse_case("attention b=1 h=1 l=24x40 d=64 dtype=bf16");
  const Inputs in(c);
  Attention altered = in.problem;
  altered.key_starts = {1};
  const Outputs out(c, true, Surroundings::bands);
  run_emulated(emulations(c.dtype).back(), altered, out.view());
  const Verdict v = judge_by_ladder(in.problem, out.view(), 64);
  ASSERT_EQ(v.outcome, Outcome::fail);
  const std::optional<WeightMap> weights =
      map_weights(in.problem, out.view(), contract_ladder(c.dtype, 64).front(), v, 64, 1);
  ASSERT_TRUE(weights.has_value());
  EXPECT_EQ(std::ssize(weights->sampled), 24);
  for (const WeightMap::Row& row : weights->sampled) {
    ASSERT_TRUE(row.explained) << row.index;
    EXPECT_NEAR(row.shares.front(), 1, 0.2) << row.index;
  }
}

TEST(WeightMap, IsSmallAndOnlyThereWhereWeightsExplain) {
  const CaseResult heads = drawn("attention b=1 h=4/2 l=9x50 d=64", "fault:kv-head-modulo");
  EXPECT_FALSE(heads.pictures->weights.has_value());
  const CaseResult lse = drawn("attention b=1 h=1 l=9x50 d=64", "fault:lse-in-base-two");
  EXPECT_FALSE(lse.pictures->weights.has_value());
  const CaseResult large = drawn("attention b=1 h=1 l=300x1000 d=64 causal offset=end window=6,-1",
                                 "fault:window-off-by-one");
  ASSERT_TRUE(large.pictures->weights.has_value());
  const LackingWeights& w = *large.pictures->weights;
  EXPECT_EQ(w.row_step, 5);
  EXPECT_EQ(w.key_step, 16);
  EXPECT_LE(std::ssize(w.cells), 64);
  EXPECT_LE(std::ssize(w.cells.front()), 64);
  const std::unique_ptr<Candidate> host = make_candidate("host");
  ExecuteOptions options;
  options.pictures = true;
  const CaseResult right = execute(parse_case("attention b=1 h=1 l=9x50 d=64"), *host, options);
  ASSERT_TRUE(right.pictures.has_value());
  EXPECT_FALSE(right.pictures->weights.has_value());
}

}  // namespace
}  // namespace assay
