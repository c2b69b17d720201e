// Typed results and their documents: what is written is read back completely, and what does not
// belong in a document is refused with its place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "harness/judging/execute.h"
#include "harness/results/faults_score.h"
#include "harness/results/fuzz_summary.h"
#include "harness/results/run.h"
#include "harness/results/schema.h"
#include "reports/stored_run.h"

namespace assay {
namespace {

using testing::HasSubstr;

CaseResult judged(const char* line, const char* candidate = "host", bool pictures = false) {
  ExecuteOptions options;
  options.pictures = pictures;
  return execute(parse_case(line), *make_candidate(candidate), options);
}

// Everything that a result can hold: passes, failures, samples, gradients, products, their
// pictures, relations of every outcome, and results without a verdict.
std::vector<CaseResult> results_of_every_kind() {
  std::vector<CaseResult> all = {
      judged("attention b=2 h=4/2 l=9x70 d=8 causal offset=end", "host", true),
      judged("attention b=1 h=2 l=40 d=8 rows=4"),
      judged("attention b=1 h=1 l=9x20 d=8 causal", "fault:causal-off-by-one", true),
      judged("attention b=1 h=1 l=4 d=4 poke=v:0:0:1:2=nan"),
      judged("attention b=1 h=2 l=9x20 d=8 causal offset=end cache=paged:4"),
      judged("backward b=1 h=2 l=9x20 d=8 causal sink=1 bias=normal@hj", "host", true),
      judged("backward b=1 h=1 l=4 d=4", "unfused"),
      judged("product m=3 n=20 k=40 w=nvfp4", "host", true),
      judged("product m=3 n=20 k=40 w=fp4-sparse"),
      failed_result("attention", "host", Outcome::error, "out of memory", Surroundings::bands),
  };
  all[2].shrunk = "attention b=1 h=1 l=2 d=1 causal";
  all.back().bad_input = true;
  return all;
}

TEST(Results, AreReadBackWhole) {
  for (const CaseResult& r : results_of_every_kind()) {
    const Json written = to_json(r);
    const auto read = from_json<CaseResult>(Json::parse(written.dump()), "result");
    EXPECT_EQ(to_json(read), written) << r.line;
    EXPECT_EQ(read.outcome, r.outcome);
    EXPECT_EQ(read.verdict.outcome, r.was_compared() ? r.verdict.outcome : r.outcome);
    EXPECT_EQ(read.relations, r.relations);
    EXPECT_EQ(read.pictures.has_value(), r.pictures.has_value());
    EXPECT_EQ(read.elements_compared(), r.elements_compared());
    EXPECT_EQ(read.tail_step, r.was_compared() ? r.tail_step : 1);
    EXPECT_EQ(read.verdict.power.lanes, r.verdict.power.lanes);
    EXPECT_EQ(worst_ratio(read), worst_ratio(r));
  }
}

// The numbers of an arithmetic are fields, for attention, for gradients and for products.
TEST(Results, TheArithmeticHasItsNumbers) {
  const Json host = to_json(judged("attention b=1 h=2 l=9x20 d=8"))["arithmetic"];
  EXPECT_EQ(host["declared"], true);
  EXPECT_EQ(host["attention"]["ordered"], true);
  EXPECT_EQ(host["attention"]["exp_ulp"], 1.5);
  EXPECT_EQ(host["attention"]["dot_roundoff"], 0x1p-24);
  const Json rung =
      to_json(judged("attention b=1 h=2 l=9x20 d=8 dtype=bf16", "host-undeclared"))["arithmetic"];
  EXPECT_EQ(rung["declared"], false);
  EXPECT_EQ(rung["attention"]["ordered"], false);
  const CaseResult r = judged("product m=3 n=20 k=40 w=nvfp4");
  const Json product = to_json(r)["arithmetic"];
  EXPECT_EQ(product["product"]["order"], "groups-in-order");
  EXPECT_EQ(product["product"]["roundoff"], 0x1p-24);
  const auto read = from_json<CaseResult>(to_json(r), "result");
  EXPECT_EQ(std::get<ProductContract>(read.verdict.arithmetic.value()).order,
            ProductOrder::groups_in_order);
  // A document from before has no such field.
  Json older = to_json(r);
  older.erase("arithmetic");
  EXPECT_FALSE(from_json<CaseResult>(older, "result").verdict.arithmetic.has_value());
}

TEST(Results, NumbersThatJsonLacksComeBack) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  CaseResult r = judged("attention b=1 h=1 l=4 d=4");
  r.verdict.mean_ratio = -inf;
  r.verdict.slope_t = std::nan("");
  r.verdict.outputs.at(Output::o).worst.ratio = inf;
  const Json written = Json::parse(to_json(r).dump());
  EXPECT_EQ(written["bias"]["mean_ratio"], "-inf");
  EXPECT_EQ(written["bias"]["slope_t"], "nan");
  const auto read = from_json<CaseResult>(written, "result");
  EXPECT_EQ(read.verdict.mean_ratio, -inf);
  EXPECT_TRUE(std::isnan(read.verdict.slope_t));
  EXPECT_EQ(worst_ratio(read)->second, inf);
  EXPECT_LT(worst_finite_ratio(read), inf);
}

assay::Run some_run() {
  assay::Run run{"smoke", "host", 7, {}, {}, results_of_every_kind()};
  run.machine.cpu = "a processor";
  Adequacy adequacy;
  for (const CaseResult& r : run.results) adequacy.add(r);
  run.summary.adequacy = adequacy.summary();
  run.summary.counts = count_outcomes(run.results);
  return run;
}

// A suite that is repeated for days is counted to the end, and held in bounded memory.
TEST(Results, ATallyKeepsTheFirstOfEachOutcomeAndCountsAll) {
  const CaseResult pass = judged("attention b=1 h=1 l=4 d=4"),
                   fail = failed_result("attention", "host", Outcome::fail, "wrong",
                                        Surroundings::bands);
  ASSERT_EQ(pass.outcome, Outcome::pass);
  constexpr std::size_t most = RunTally::kept_of_an_outcome;
  RunTally tally;
  tally.add(std::vector(most + 5, pass));  // a suite that runs once is kept as a whole
  EXPECT_EQ(tally.kept.size(), most + 5);
  tally.add({pass, fail, pass});
  EXPECT_EQ(tally.kept.size(), most + 6);
  EXPECT_EQ(tally.kept.back().outcome, Outcome::fail);
  EXPECT_EQ(tally.cases(), most + 8);
  RunSummary s;
  tally.write_to(s);
  EXPECT_EQ(s.counts.pass, most + 7);
  EXPECT_EQ(s.counts.fail, 1u);
  EXPECT_EQ(s.untold, 2u);
  EXPECT_EQ(s.elements, static_cast<std::int64_t>(most + 7) * pass.elements_compared());
  EXPECT_FALSE(s.adequacy.empty());
  tally.add(std::vector(most, fail));
  EXPECT_EQ(tally.kept.size(), 2 * most + 5);

  assay::Run run{"smoke", "host", 7, {}, s, {pass, fail}};
  const Json written = to_json(run);
  EXPECT_EQ(written["summary"]["cases"], 4);
  EXPECT_EQ(written["summary"]["untold"], 2);
  EXPECT_EQ(to_json(from_json<assay::Run>(written, "run")), written);
}

TEST(Results, DocumentsAreReadBackWhole) {
  const assay::Run run = some_run();
  EXPECT_FALSE(run.summary.adequacy.empty());
  EXPECT_EQ(to_json(from_json<assay::Run>(to_json(run), "run")), to_json(run));
  FaultsScore score;
  score.faults = {{"a", "F01", "smoke", true, 4, 0.5, "attention", "outside"}};
  score.equivalent = {{"b", "F02", "it cannot be seen"}};
  score.unplanted = {{"smoke", 9, 1, false, "", ""}};
  EXPECT_EQ(to_json(from_json<FaultsScore>(to_json(score), "score")), to_json(score));
  const FuzzSummary fuzz{
      9, 1, {{"case", 9, 10, 1, 2, 3, 1}}, {{"case", "crash-1", "why", "attention", "", "kept"}}};
  EXPECT_EQ(to_json(from_json<FuzzSummary>(to_json(fuzz), "fuzz")), to_json(fuzz));
  StoredRun stored;
  stored.results.emplace_back().worst_ratio = 0.5;
  EXPECT_EQ(to_json(from_json<StoredRun>(to_json(stored), "stored")), to_json(stored));
}

// A document with one error, and the words that tell which error it is.
TEST(Results, WhatDoesNotBelongIsRefusedByItsPlace) {
  const Json whole = to_json(some_run());
  const std::pair<std::function<void(Json&)>, const char*> breaches[] = {
      {[](Json& j) { j["colour"] = 1; }, "run: unknown field \"colour\""},
      {[](Json& j) { j["results"][0]["reson"] = ""; }, "run.results[0]: unknown field \"reson\""},
      {[](Json& j) { j["results"][0]["elements"]["out"] = 1; },
       "run.results[0].elements: unknown field \"out\""},
      {[](Json& j) { j["results"][1].erase("reason"); }, "run.results[1]: no field \"reason\""},
      {[](Json& j) { j["results"][1]["outcome"] = "passed"; },
       "run.results[1].outcome: unknown name \"passed\""},
      {[](Json& j) { j["results"][1]["rows"]["judged"] = "3"; },
       "run.results[1].rows.judged: no integer"},
      {[](Json& j) { j["results"][1]["elements"]["compared"]["Q"] = 1; },
       "run.results[1].elements.compared: unknown name \"Q\""},
      {[](Json& j) { j["results"][1]["bias"]["slope_t"] = "steep"; },
       "run.results[1].bias.slope_t: no number"},
      {[](Json& j) { j["results"][1] = 3; }, "run.results[1]: no JSON object"},
      {[](Json& j) { j["results"] = 3; }, "run.results: no list"},
      {[](Json& j) { j["seed"] = -1; }, "run.seed: no integer from 0 on"},
      {[](Json& j) { j["format"] = 1; }, "run.format: not 2"},
  };
  for (const auto& [breach, words] : breaches) {
    Json wrong = whole;
    breach(wrong);
    try {
      from_json<assay::Run>(wrong, "run");
      ADD_FAILURE() << "accepted: " << words;
    } catch (const SchemaError& e) {
      EXPECT_THAT(e.what(), HasSubstr(words));
    }
  }
}

TEST(Results, RelationsSayWhatCameOfThem) {
  EXPECT_EQ(text_of(Relation::held()), "held");
  EXPECT_EQ(text_of(Relation::violated("why")), "violated: why");
  EXPECT_EQ(text_of(Relation::not_applicable("why")), "not applicable: why");
  EXPECT_EQ(Relation::unless(""), Relation::held());
  EXPECT_EQ(Relation::unless("differs"), Relation::violated("differs"));
}

}  // namespace
}  // namespace assay
