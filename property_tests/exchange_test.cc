// Formats of other programs, each against a small literal document, and with texts that must break
// none of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "harness/results/schema.h"
#include "reports/bencher.h"
#include "reports/github.h"
#include "reports/open_metrics.h"
#include "reports/otava.h"
#include "reports/sarif.h"

namespace assay {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

const std::string hostile = "a \"b\" \\ 100% ::error::x, \x1b[2J\r\n\xff";

CaseResult result(Outcome outcome, const std::string& line, const std::string& reason) {
  CaseResult r;
  r.line = line;
  r.candidate = "lib:my kernels/mine.so";
  r.outcome = outcome;
  r.reason = reason;
  r.reproduce = "assay check --case '" + line + "'";
  r.verdict.outside = outcome == Outcome::fail;
  return r;
}

Run run_of(std::vector<CaseResult> results) {
  Run run{"smoke", "lib:my kernels/mine.so", 7, {}, {}, std::move(results)};
  run.machine.release = "0.1.0";
  run.summary.sentence = "2 cases: 1 passed, 1 failed";
  run.summary.counts = count_outcomes(run.results);
  run.summary.causes = causes_of(run.results);
  run.summary.shared = shared_features(run.results);
  return run;
}

StoredRun stored_run(const std::string& started, double ratio, const std::string& title = "smoke") {
  StoredRun run;
  run.kind = "check";
  run.started = started;
  run.title = title;
  run.candidate = "host";
  run.commit = "0123456789";
  StoredResult& r = run.results.emplace_back();
  r.name = "attention b=1";
  r.dtype = "f32";
  r.outcome = ratio > 1 ? "fail" : "pass";
  r.worst_ratio = ratio;
  r.seconds = 0.25;
  r.compared = 374;
  return run;
}

TEST(Sarif, IsThisDocument) {
  const Json log = Json::parse(sarif_log(
      run_of({result(Outcome::pass, "attention b=1", "every element is inside its bound"),
              result(Outcome::fail, "attention b=2", "O is outside its bound: O[b=0] = 1")})));
  const Json expected = Json::parse(R"({
    "ruleId": "proved", "ruleIndex": 0, "level": "error",
    "message": {"text": "fail, proved: O is outside its bound: O[b=0] = 1\nattention b=2\nreproduce: assay check --case 'attention b=2'"},
    "locations": [{
      "logicalLocations": [{"name": "attention b=2", "fullyQualifiedName": "lib:my kernels/mine.so/attention b=2"}],
      "physicalLocation": {"artifactLocation": {"uri": "my%20kernels/mine.so"}, "region": {"startLine": 1}}}],
    "partialFingerprints": {"case/v1": "lib:my kernels/mine.so/attention b=2"}})");
  EXPECT_EQ(log["version"], "2.1.0");
  ASSERT_THAT(log["runs"], SizeIs(1));
  const Json& run = log["runs"][0];
  EXPECT_THAT(run["results"], ElementsAre(expected));
  EXPECT_EQ(run["tool"]["driver"]["name"], "Assay");
  EXPECT_EQ(run["tool"]["driver"]["rules"][0]["id"], "proved");
  EXPECT_EQ(run["invocations"], Json::parse(R"([{"executionSuccessful": true}])"));
  EXPECT_EQ(run["properties"],
            Json::parse(R"({"summary": "2 cases: 1 passed, 1 failed", "seed": 7})"));
}

TEST(Sarif, HasAtMostAThousandResultsTheWorstFirst) {
  std::vector<CaseResult> results;
  for (int k = 0; k < 1003; ++k)
    results.push_back(result(k < 1000 ? Outcome::error : Outcome::fail,
                             "attention seed=" + std::to_string(k), hostile));
  results.back().verdict.outside = 0;
  results.back().verdict.by_evidence = true;
  const Json run = Json::parse(sarif_log(run_of(results)))["runs"][0];
  ASSERT_THAT(run["results"], SizeIs(1000));
  EXPECT_EQ(run["results"][0]["ruleId"], "proved");
  EXPECT_EQ(run["results"][2]["ruleId"], "by-evidence");
  EXPECT_EQ(run["results"][3]["ruleId"], "not-judged");
  EXPECT_EQ(run["results"][3]["level"], "warning");
  EXPECT_EQ(run["invocations"][0]["executionSuccessful"], false);
  EXPECT_EQ(run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"],
            "3 further results left out");
}

TEST(OpenMetrics, OneRunIsThisText) {
  EXPECT_EQ(open_metrics(stored_run("2026-11-26T06:32:08Z", 0.5)),
            "# TYPE assay_results gauge\n"
            "# HELP assay_results Results of the run by outcome.\n"
            "assay_results{kind=\"check\",candidate=\"host\",suite=\"smoke\",outcome=\"pass\"} 1\n"
            "# TYPE assay_compared_elements gauge\n"
            "# HELP assay_compared_elements Elements that were compared.\n"
            "assay_compared_elements{kind=\"check\",candidate=\"host\",suite=\"smoke\"} 374\n"
            "# TYPE assay_error_bound_ratio gauge\n"
            "# HELP assay_error_bound_ratio The largest error divided by its proved bound.\n"
            "assay_error_bound_ratio{kind=\"check\",candidate=\"host\",suite=\"smoke\","
            "dtype=\"f32\"} 0.5\n"
            "# TYPE assay_candidate_seconds gauge\n"
            "# UNIT assay_candidate_seconds seconds\n"
            "# HELP assay_candidate_seconds Time of the candidate, over all results.\n"
            "assay_candidate_seconds{kind=\"check\",candidate=\"host\",suite=\"smoke\"} 0.25\n"
            "# EOF\n");
}

// The points of a series stand together, in the order of their times, one for each second.
TEST(OpenMetrics, AStoreIsSeriesOverTime) {
  const std::string text = open_metrics(std::vector{
      stored_run("2026-11-26T06:32:09Z", 0.5), stored_run("2026-11-26T06:32:08Z", 0.25, "plain"),
      stored_run("2026-11-26T06:32:08Z", 0.75), stored_run("2026-11-26T06:32:09Z", 2)});
  const std::string series = "assay_error_bound_ratio{kind=\"check\",candidate=\"host\",suite=";
  EXPECT_THAT(text, HasSubstr("\n" + series + "\"plain\",dtype=\"f32\"} 0.25 1795674728\n" +
                              series + "\"smoke\",dtype=\"f32\"} 0.75 1795674728\n" + series +
                              "\"smoke\",dtype=\"f32\"} 2 1795674729\n#"));
  EXPECT_TRUE(text.ends_with("\n# EOF\n"));
}

TEST(OpenMetrics, LabelsAndNumbersAreEscaped) {
  StoredRun run = stored_run("2026-11-26T06:32:08Z", std::numeric_limits<double>::infinity());
  run.candidate = hostile;
  const std::string text = open_metrics(run);
  EXPECT_THAT(text, HasSubstr("candidate=\"a \\\"b\\\" "));
  EXPECT_THAT(text, HasSubstr("dtype=\"f32\"} +Inf\n"));
  for (const char c : text) EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~'));
  EXPECT_EQ(std::ranges::count(text, '\n'), 14);
}

TEST(OpenMetrics, TimesAreReadWhole) {
  EXPECT_EQ(seconds_of_time("1970-01-02T00:00:01Z"), 86401);
  EXPECT_EQ(seconds_of_time("2026-11-26T06:32:08Z"), 1795674728);
  for (const char* wrong :
       {"", "2026-11-26", "2026-11-26T06:32:08", "2026-13-26T06:32:08Z", "2026-02-30T06:32:08Z",
        "2026-11-26T24:32:08Z", "2026-11-26T06:32:08ZZ", "26-11-2026T06:32:08+1"})
    EXPECT_THROW(seconds_of_time(wrong), std::invalid_argument) << wrong;
}

TEST(Github, FailuresAreThisAnnotation) {
  EXPECT_THAT(
      github_annotations(
          run_of({result(Outcome::pass, "attention b=1", ""),
                  result(Outcome::fail, "attention b=2", "O is outside its bound: O[b=0] = 1")})),
      ElementsAre("::error title=lib%3Amy kernels/mine.so%3A 1 x fail%2C proved::O is outside "
                  "its bound%0Athe first: attention b=2%0Areproduce: assay check --case "
                  "'attention b=2'",
                  "::notice title=lib%3Amy kernels/mine.so on smoke::2 cases: 1 passed, 1 "
                  "failed"));
}

TEST(Github, NoTextEndsACommand) {
  std::vector<CaseResult> results;
  for (int k = 0; k < 30; ++k)
    results.push_back(result(Outcome::fail, hostile, std::to_string(k) + hostile));
  assay::Run run = run_of(results);
  run.candidate = hostile;
  const std::vector<std::string> lines = github_annotations(run);
  ASSERT_THAT(lines, SizeIs(11));
  EXPECT_THAT(lines, Each(testing::StartsWith("::")));
  EXPECT_THAT(lines[9], HasSubstr("::21 further causes in the report"));
  for (const std::string& line : lines) {
    for (const char c : line) EXPECT_TRUE(c >= ' ' && c <= '~') << line;
    EXPECT_THAT(line, HasSubstr("100%25"));
    // The title has no colon, so the first one behind it begins the message.
    const auto message = line.find("::", 2);
    EXPECT_THAT(line.substr(2, message - 2), Not(HasSubstr(":")));
  }
}

TEST(Bencher, IsThisDocument) {
  StoredRun run = stored_run("2026-11-26T06:32:08Z", 0.5);
  StoredResult& bench = run.results.emplace_back();
  bench.name = "forward/host";
  bench.counters = {{"fraction", 0.75}, {"fraction_low", 0.7}, {"fraction_high", 0.8}};
  StoredResult& infinite = run.results.emplace_back();
  infinite.name = "left out";
  infinite.worst_ratio = std::numeric_limits<double>::infinity();
  EXPECT_EQ(Json::parse(bencher_metrics(run)), Json::parse(R"({
    "attention b=1": {"latency": {"value": 250000000.0}, "error-bound": {"value": 0.5}},
    "forward/host": {"fraction-of-limit": {"value": 0.75, "lower_value": 0.7, "upper_value": 0.8}}})"));
  run.results = {infinite};
  EXPECT_THROW(bencher_metrics(run), std::invalid_argument);
}

TEST(Otava, IsThisDocument) {
  const Json one = Json::parse(R"({
    "timestamp": 1795674728,
    "metrics": [{"name": "attention b=1: error/bound", "value": 2.0},
                {"name": "attention b=1: seconds", "value": 0.25},
                {"name": "run: error/bound", "value": 2.0},
                {"name": "run: seconds", "value": 0.25},
                {"name": "run: failures", "value": 1.0}],
    "attributes": {"commit": "0123456789", "kind": "check", "candidate": "host", "suite": "smoke"}})");
  const Json history = Json::parse(otava_history(
      {stored_run("2026-11-26T06:32:09Z", 0.5), stored_run("2026-11-26T06:32:08Z", 2)}));
  ASSERT_THAT(history, SizeIs(2));
  EXPECT_EQ(history[0], one);
  EXPECT_EQ(history[1]["timestamp"], 1795674729);
  EXPECT_EQ(history[1]["metrics"][4]["value"], 0.0);
}

}  // namespace
}  // namespace assay
