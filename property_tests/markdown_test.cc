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
  run.summary.shared = shared_features(run.results);
  run.summary.causes = causes_of(run.results);
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
        result(Outcome::fail, "attention l=" + std::to_string(k),
               (k < 5 ? "is <b>wrong</b>" : "is wrong " + std::to_string(k)) + ": here", 3));
  for (int k = 0; k < 8; ++k)
    results.push_back(result(Outcome::pass, "attention d=" + std::to_string(k), "", 0.1 * k));
  const std::string text = markdown_summary(run_of(results));
  EXPECT_THAT(text, HasSubstr("so many cases"));
  EXPECT_THAT(
      text,
      HasSubstr(
          "| 5 | fail: is &lt;b&gt;wrong&lt;/b&gt; |  | `assay check --case 'attention l=0'` |"));
  EXPECT_THAT(text, HasSubstr("6 more in the report."));
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
    if (line.starts_with("| 1 |") || line.starts_with("| 0.5")) {
      ++rows;
      EXPECT_EQ(bars(line), line.starts_with("| 1 |") ? 5 : 3) << line;
    }
  EXPECT_EQ(rows, 2);
  EXPECT_THAT(text, Not(HasSubstr("<script>")));
  EXPECT_THAT(text, HasSubstr("<code>a &#124; b &#96;c&#96; "));
}

// A failure inside its bounds, as real ones are.
CaseResult failure_by_evidence() {
  CaseResult r = result(Outcome::fail, "attention b=1", "by evidence: inside <every> bound", 0.5);
  r.verdict.by_evidence = true;
  Evidence& e = r.verdict.evidence;
  e.arithmetic = "fp32 accumulation";
  e.fits = false;
  e.rows[Output::o] = {.s = 21, .median = 1.04, .limit = 3.75, .b = 0, .h = 1, .row = 65};
  e.filters = {{"the newest key of each row is <missing>", 0.998, 451.2, 0}};
  e.z_limit = 8.1;
  return r;
}

TEST(Markdown, EvidenceIsShownWithItsRowsAndFilters) {
  const std::string text = markdown_summary(run_of({failure_by_evidence()}));
  EXPECT_THAT(text, HasSubstr("| 1 | fail, by evidence: the newest key of each row is "
                              "&lt;missing&gt; |"));
  EXPECT_THAT(text, HasSubstr("| `attention b=1` | s of O 21 at b=0, h=1, row 65; limit 3.75, "
                              "median 1<br>z of \"the newest key of each row is &lt;missing&gt;\" "
                              "451, limit 8.1; share 0.998 |"));
  EXPECT_THAT(markdown_summary(run_of({result(Outcome::fail, "a", "wrong", 3)})),
              Not(HasSubstr("By evidence")));
}

TEST(Markdown, WhatFailingCasesShareIsTold) {
  std::vector<CaseResult> results;
  for (int k = 1; k <= 40; ++k) {
    const std::string size = "attention b=1 h=1 l=8 d=8 seed=" + std::to_string(k);
    results.push_back(result(Outcome::pass, size, "", 0.5));
    results.push_back(result(Outcome::fail, size + " causal", "O is outside: 3", 3));
  }
  const std::string text = markdown_summary(run_of(results));
  EXPECT_THAT(text, HasSubstr("**all 40 failing cases have causal; none of 40 passing ones has "
                              "it**"));
  EXPECT_THAT(text, HasSubstr("| 40 | fail: O is outside | causal | `assay check"));
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

TEST(Junit, FailuresByEvidenceHaveTheirRowsAndFilters) {
  const std::string xml = junit_xml(run_of({failure_by_evidence()}));
  EXPECT_THAT(xml, HasSubstr("<failure type=\"fail, by evidence\" message=\"by evidence: inside "
                             "&lt;every&gt; bound\">assay check --case 'attention b=1'\n"
                             "s of O 21 at b=0, h=1, row 65; limit 3.75, median 1\n"
                             "z of &quot;the newest key of each row is &lt;missing&gt;&quot; 451, "
                             "limit 8.1; share 0.998</failure>"));
}

}  // namespace
}  // namespace assay
