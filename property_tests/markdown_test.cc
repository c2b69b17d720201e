// Summaries for pull requests: their contents, and that no case line or reason breaks their tables.
#include "reports/markdown.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "reports/junit.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::Not;

Run run_of(std::vector<CaseResult> results) {
  Run run{"smoke", "host", 7, {}, {}, std::move(results)};
  run.machine.cpu = "a_b";
  run.machine.commit = "0123456789abcdef";
  run.summary.sentence = "so many cases";
  return run;
}
CaseResult result(Outcome outcome, const std::string& line, const std::string& reason,
                  double ratio) {
  CaseResult r;
  r.line = line;
  r.candidate = "host";
  r.outcome = outcome;
  r.reason = reason;
  r.reproduce = "assay check --case '" + line + "'";
  Compared& o = r.verdict.outputs[Output::o];
  o.elements = 1;
  o.worst.bound = 1;
  o.worst.ratio = ratio;
  return r;
}

// Counts the bars of a line that no backslash precedes.
int bars(const std::string& line) {
  int n = 0;
  for (std::size_t k = 0; k < line.size(); ++k)
    n += line[k] == '|' && (k == 0 || line[k - 1] != '\\');
  return n;
}

TEST(Markdown, FailuresFirstThenTheNearestPasses) {
  std::vector<CaseResult> results;
  for (int k = 0; k < 30; ++k)
    results.push_back(
        result(Outcome::fail, "attention l=" + std::to_string(k), "is <b>wrong</b>", 3));
  for (int k = 0; k < 8; ++k)
    results.push_back(result(Outcome::pass, "attention d=" + std::to_string(k), "", 0.1 * k));
  const std::string text = markdown_summary(run_of(results));
  EXPECT_THAT(text, HasSubstr("so many cases"));
  EXPECT_THAT(
      text,
      HasSubstr("| fail | is &lt;b&gt;wrong&lt;/b&gt; | `assay check --case 'attention l=0'` |"));
  EXPECT_THAT(text, HasSubstr("10 more in the report."));
  EXPECT_THAT(text, HasSubstr("(8 in all)"));
  EXPECT_LT(text.find("| 0.700 | `attention d=7` |"), text.find("| 0.600 | `attention d=6` |"));
  EXPECT_THAT(text, Not(HasSubstr("attention d=2")));
  EXPECT_THAT(text, HasSubstr("a\\_b"));
}

TEST(Markdown, NothingBreaksATable) {
  const std::string hostile = "a | b `c` ``d`` \\| \n| e | <script> [x](y) *z* ";
  const std::string text = markdown_summary(run_of(
      {result(Outcome::fail, hostile, hostile, 1), result(Outcome::pass, hostile, hostile, 0.5)}));
  std::istringstream lines(text);
  int rows = 0;
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("| fail") || line.starts_with("| 0.5")) {
      ++rows;
      EXPECT_EQ(bars(line), line.starts_with("| fail") ? 4 : 3) << line;
    }
  EXPECT_EQ(rows, 2);
  EXPECT_THAT(text, Not(HasSubstr("<script>")));
  EXPECT_THAT(text, HasSubstr("<code>a &#124; b &#96;c&#96; "));
}

TEST(Markdown, TwoRuns) {
  const auto stored = [](double ratio) {
    StoredResult r;
    r.name = "a";
    r.outcome = ratio > 1 ? "fail" : "pass";
    r.worst_ratio = ratio;
    r.seconds = 1.0;
    StoredRun run;
    run.candidate = "host";
    run.title = "smoke";
    run.commit = "0123456789abcdef";
    run.results.push_back(r);
    return run;
  };
  const StoredRun a = stored(0.5), b = stored(2);
  const std::string text = markdown_comparison(a, b, compare_runs(a, b), 5, 10);
  EXPECT_THAT(
      text,
      HasSubstr(
          "| largest error/bound | × 4 \\[4, 4\\] over 1 case, **beyond the margin of 5%** |"));
  EXPECT_THAT(text, HasSubstr("| time | × 1 \\[1, 1\\] over 1 case |"));
  EXPECT_THAT(text, HasSubstr("`pass -> fail: a`"));
}

// On a machine of half the speed, the time of a benchmark doubled, but its fraction of the
// machine's limit did not change.
TEST(Markdown, BenchmarksAreComparedByFractions) {
  const auto stored = [](double seconds, double fraction) {
    StoredRun run;
    StoredResult& r = run.results.emplace_back();
    r.name = "a";
    r.seconds = seconds;
    r.counters = {{"fraction", fraction}};
    return run;
  };
  EXPECT_DOUBLE_EQ(compare_runs(stored(1, 0.5), stored(2, 0.5)).seconds.mean, 1);
  EXPECT_DOUBLE_EQ(compare_runs(stored(1, 0.5), stored(1, 0.25)).seconds.mean, 2);
}

TEST(Junit, BytesThatAreNoTextAreReplaced) {
  const std::string xml =
      junit_xml(run_of({result(Outcome::fail, "attention", "bad \xff\x01 byte", 2)}));
  EXPECT_THAT(xml, HasSubstr("bad \xef\xbf\xbd byte"));
}

}  // namespace
}  // namespace assay
