// What failing cases have and passing ones have not: made-up runs that must give a sentence, and
// runs that must give none.
#include "harness/results/shared_features.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "harness/cases/suites.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

using Fails = std::function<bool(const Case&)>;

// By pointer: gcc 14 takes a reference for one into the name.
const std::vector<Case>* cases_of(const std::string& suite) {
  static std::map<std::string, std::vector<Case>> made;
  const auto [at, fresh] = made.try_emplace(suite);
  if (fresh) at->second = make_suite(suite, 1).cases;
  return &at->second;
}

// A suite of which the cases fail that `fails` says.
std::vector<CaseResult> run_of(const Fails& fails, const char* suite = "plain") {
  std::vector<CaseResult> results;
  for (const Case& c : *cases_of(suite)) {
    CaseResult r;
    r.line = print_case(c);
    r.outcome = fails(c) ? Outcome::fail : Outcome::pass;
    r.reason = fails(c) ? "O is outside its bound: O[b=0] = 1, exact 2, bound 0.1" : "";
    r.reproduce = "assay check --case '" + r.line + "'";
    results.push_back(std::move(r));
  }
  return results;
}

TEST(SharedFeatures, OneFeatureIsNamed) {
  const auto results = run_of([](const Case& c) { return c.softcap != 0; }, "smoke");
  const SharedFeatures s = shared_features(results);
  EXPECT_THAT(s.features, ElementsAre("softcap"));
  EXPECT_EQ(s.others, 0u);
  EXPECT_EQ(s.failing + s.passing, results.size());
  EXPECT_EQ(s.sentence(), "all " + std::to_string(s.failing) +
                              " failing cases have softcap; none of " + std::to_string(s.passing) +
                              " passing ones has it");
}

TEST(SharedFeatures, TwoAreNamedTogether) {
  const SharedFeatures s =
      shared_features(run_of([](const Case& c) { return c.causal && c.dtype == Dtype::bf16; }));
  EXPECT_THAT(s.features, ElementsAre("causal", "dtype=bf16"));
  EXPECT_THAT(s.sentence(), HasSubstr(" failing cases have causal and dtype=bf16; none of "));
  EXPECT_THAT(s.sentence(), HasSubstr(" passing ones has both"));
}

TEST(SharedFeatures, LengthsAndTailsAreFeatures) {
  const SharedFeatures s =
      shared_features(run_of([](const Case& c) { return c.shape.keys > 128; }));
  ASSERT_EQ(s.features.size(), 1u);
  EXPECT_THAT(s.features[0],
              testing::MatchesRegex("at least 1[2-9][0-9] keys|at least [2-9][0-9]* keys"));
  EXPECT_THAT(
      shared_features(run_of([](const Case& c) { return c.shape.value_dim % 16 != 0; })).features,
      ElementsAre("a tail of columns beyond tiles of 16"));
}

// A cause that is no small set of features, one failing case alone, cases that fail at random, all
// cases, none, and lines that are none of a case.
TEST(SharedFeatures, NothingIsClaimedWithoutASmallSet) {
  const auto nothing = [](const std::vector<CaseResult>& results) {
    const SharedFeatures s = shared_features(results);
    EXPECT_THAT(s.features, IsEmpty()) << s.sentence();
    EXPECT_EQ(s.sentence(), "");
  };
  nothing(run_of([](const Case& c) { return c.causal || c.dtype == Dtype::bf16; }));
  nothing(run_of([](const Case&) { return true; }));
  nothing(run_of([](const Case&) { return false; }));
  int seen = 0;
  nothing(run_of([&](const Case&) { return seen++ / 2 == 7; }));
  for (unsigned seed = 1; seed <= 50; ++seed) {
    std::mt19937 draw(seed);
    std::vector<CaseResult> results = run_of([](const Case&) { return false; });
    for (unsigned k = 0; k < 1 + seed % 7; ++k)
      results[draw() % results.size()].outcome = Outcome::fail;
    nothing(results);
  }
  auto foreign = run_of([](const Case& c) { return c.causal; });
  foreign[0].line = "dump.safetensors, o of 1x2x3x4";
  nothing(foreign);
  nothing({});
}

TEST(SharedFeatures, OtherSetsAreCounted) {
  std::vector<std::string> failing, passing;
  for (int k = 1; k <= 40; ++k) {
    failing.push_back("attention b=1 h=1 l=8 d=8 dtype=f16 causal softcap=" + std::to_string(k));
    passing.push_back("attention b=1 h=1 l=8 d=8 seed=" + std::to_string(k));
  }
  const SharedFeatures s = shared_features(failing, passing);
  EXPECT_THAT(s.features, ElementsAre("causal"));
  EXPECT_EQ(s.others, 2u);
  EXPECT_THAT(s.sentence(), HasSubstr("(2 other sets of as few do so, too)"));
}

TEST(SharedFeatures, FailuresOfOneCauseAreToldOnce) {
  std::vector<CaseResult> results = run_of([](const Case& c) { return c.causal; });
  const auto failing =
      static_cast<std::size_t>(std::ranges::count(results, Outcome::fail, &CaseResult::outcome));
  std::size_t changed = 0;
  for (CaseResult& r : results) {
    if (r.outcome != Outcome::fail) continue;
    r.verdict.outside = 1;
    if (changed > 3)
      r.diagnosis.explanations.emplace_back().words = changed % 5 == 0 ? "one thing" : "another";
    if (changed == 1) r.shrunk = "attention b=1 h=1 l=1 d=1", r.reproduce = "the small one";
    if (++changed > 3) continue;
    r.reason = "O is outside its bound: O[b=" + std::to_string(changed) + "] = 3";
  }
  results.back().outcome = Outcome::error;
  results.back().reason = "out of memory";
  CaseResult& by_evidence = results[results.size() - 2];
  by_evidence.outcome = Outcome::fail;
  by_evidence.diagnosis = {};
  by_evidence.verdict.by_evidence = true;
  by_evidence.verdict.evidence.filters = {{"lane 31 of 32 is missing", 1, 90, 0}};
  by_evidence.verdict.evidence.z_limit = 8;
  const std::vector<Cause> causes = causes_of(results);
  ASSERT_EQ(causes.size(), 3u);
  EXPECT_EQ(causes[0].outcome, "fail, proved");
  EXPECT_EQ(causes[0].reason, "O is outside its bound");
  EXPECT_NEAR(static_cast<double>(causes[0].cases), static_cast<double>(failing), 2);
  EXPECT_THAT(causes[0].features, ElementsAre("causal"));
  EXPECT_EQ(causes[0].reproduce, "the small one");
  EXPECT_THAT(causes[0].looks_like, StartsWith("another ("));
  EXPECT_THAT(causes[0].looks_like, EndsWith(" of " + std::to_string(causes[0].cases) + ")"));
  EXPECT_EQ(causes[1].looks_like, "");
  EXPECT_EQ(causes[1].outcome, "fail, by evidence");
  EXPECT_EQ(causes[1].reason, "lane 31 of 32 is missing");
  EXPECT_THAT(causes[1].features, IsEmpty());
  EXPECT_EQ(causes[2].outcome, "error");
  EXPECT_EQ(causes[2].reason, "out of memory");
}

}  // namespace
}  // namespace assay
