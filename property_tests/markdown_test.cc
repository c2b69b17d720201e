// Summaries for pull requests: what they say, and that no case line or reason breaks their tables.
#include "reports/markdown.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "reports/junit.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::Not;

Json run_of(std::vector<Json> results) {
  return {{"suite", "smoke"},
          {"candidate", "host"},
          {"seed", 7},
          {"machine", {{"cpu", "a_b"}, {"commit", "0123456789abcdef"}}},
          {"summary", {{"sentence", "so many cases"}}},
          {"results", std::move(results)}};
}
Json result(const char* outcome, const std::string& line, const std::string& reason, double ratio) {
  return {{"case", line}, {"candidate", "host"}, {"outcome", outcome}, {"reason", reason}, {"reproduce", "assay check --case '" + line + "'"}, {"worst", {{"O", {{"ratio", ratio}}}}}};
}

// Bars of a line that no backslash precedes.
int bars(const std::string& line) {
  int n = 0;
  for (std::size_t k = 0; k < line.size(); ++k) n += line[k] == '|' && (k == 0 || line[k - 1] != '\\');
  return n;
}

TEST(Markdown, FailuresFirstThenTheNearestPasses) {
  std::vector<Json> results;
  for (int k = 0; k < 30; ++k) results.push_back(result("fail", "attention l=" + std::to_string(k), "is <b>wrong</b>", 3));
  for (int k = 0; k < 8; ++k) results.push_back(result("pass", "attention d=" + std::to_string(k), "", 0.1 * k));
  const std::string text = markdown_summary(run_of(results));
  EXPECT_THAT(text, HasSubstr("so many cases"));
  EXPECT_THAT(text, HasSubstr("| fail | is &lt;b&gt;wrong&lt;/b&gt; | `assay check --case 'attention l=0'` |"));
  EXPECT_THAT(text, HasSubstr("10 more are in the report."));
  EXPECT_THAT(text, HasSubstr("(8 in all)"));
  EXPECT_LT(text.find("| 0.700 | `attention d=7` |"), text.find("| 0.600 | `attention d=6` |"));
  EXPECT_THAT(text, Not(HasSubstr("attention d=2")));
  EXPECT_THAT(text, HasSubstr("a\\_b"));
}

TEST(Markdown, NothingBreaksATable) {
  const std::string hostile = "a | b `c` ``d`` \\| \n| e | <script> [x](y) *z* ";
  const std::string text = markdown_summary(run_of({result("fail", hostile, hostile, 1), result("pass", hostile, hostile, 0.5)}));
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
    return Json{{"candidate", "host"}, {"title", "smoke"}, {"commit", "0123456789abcdef"}, {"results", {{{"name", "a"}, {"outcome", ratio > 1 ? "fail" : "pass"}, {"worst_ratio", ratio}, {"seconds", 1.0}}}}};
  };
  const Json a = stored(0.5), b = stored(2);
  const std::string text = markdown_comparison(a, b, compare_runs(a, b), 5, 10);
  EXPECT_THAT(text, HasSubstr("| largest error/bound | × 4 \\[4, 4\\] over 1 cases, **beyond the margin of 5%** |"));
  EXPECT_THAT(text, HasSubstr("| time | × 1 \\[1, 1\\] over 1 cases |"));
  EXPECT_THAT(text, HasSubstr("`pass -> fail: a`"));
}

// A benchmark on a machine of half the speed: its time doubled, its fraction of the machine's limit did not change.
TEST(Markdown, BenchmarksAreComparedByFractions) {
  const auto stored = [](double seconds, double fraction) { return Json{{"results", {{{"name", "a"}, {"seconds", seconds}, {"counters", {{"fraction", fraction}}}}}}}; };
  EXPECT_DOUBLE_EQ(compare_runs(stored(1, 0.5), stored(2, 0.5)).seconds.mean, 1);
  EXPECT_DOUBLE_EQ(compare_runs(stored(1, 0.5), stored(1, 0.25)).seconds.mean, 2);
}

TEST(Junit, BytesThatAreNoTextAreReplaced) {
  const std::string xml = junit_xml(run_of({result("fail", "attention", "bad \xff\x01 byte", 2)}));
  EXPECT_THAT(xml, HasSubstr("bad \xef\xbf\xbd byte"));
}

}  // namespace
}  // namespace assay
