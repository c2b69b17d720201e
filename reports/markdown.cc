#include "reports/markdown.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "harness/text.h"
#include "reports/case_text.h"

namespace assay {
namespace {

constexpr std::size_t most_causes = 20, most_changes = 20, most_passes = 5;

// Escapes any text for a cell of a table. A bar would end the cell; a line end, which would end the
// row, is no longer there when the text is visible.
std::string prose(const std::string& text) {
  std::string out;
  for (const char c : visible(text)) switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '|':
      case '\\':
      case '`':
      case '*':
      case '_':
      case '[':
      case ']':
      case '~':
      case '#': out += '\\', out += c; break;
      default: out += c;
    }
  return out;
}
// Writes code in a cell. Characters that a code span cannot hold there are written as entities.
std::string code(const std::string& raw) {
  const std::string text = visible(raw);
  if (text.find_first_of("|`\\\n") == std::string::npos) return '`' + text + '`';
  std::string out = "<code>";
  for (const char c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) || c == ' ' ||
        static_cast<unsigned char>(c) >= 0x80)
      out += c;
    else out += fmt::format("&#{};", static_cast<int>(c));
  return out + "</code>";
}

std::string effect(const Effect& e, double margin) {
  if (e.cases == 0) return "not in both";
  const bool beyond = e.low > 1 + margin / 100;
  return fmt::format("× {:.4g} \\[{:.4g}, {:.4g}\\] over {}{}", e.mean, e.low, e.high,
                     counted(e.cases, "case"),
                     beyond ? fmt::format(", **beyond the margin of {}%**", margin) : "");
}

// Failures of one cause are one row.
std::string cause_table(const RunSummary& s) {
  std::string text;
  if (const std::string shared = s.shared.sentence(); !shared.empty())
    text += fmt::format("\n**{}**\n", prose(shared));
  text += "\n| cases | what is wrong | what they have | reproduce |\n| ---: | --- | --- | --- |\n";
  for (std::size_t k = 0; k < std::min(s.causes.size(), most_causes); ++k) {
    const Cause& c = s.causes[k];
    const std::string looks = c.looks_like.empty() ? "" : "; looks like: " + c.looks_like;
    text += fmt::format("| {} | {}: {} | {} | {} |\n", c.cases, prose(c.outcome),
                        prose(c.reason + looks),
                        prose(fmt::format("{}", fmt::join(c.features, ", "))), code(c.reproduce));
  }
  if (s.causes.size() > most_causes)
    text += fmt::format("\n{} more in the report.\n", s.causes.size() - most_causes);
  return text;
}

// The rows and filters by which failures inside their bounds were seen.
std::string evidence_table(const std::vector<CaseResult>& results) {
  std::vector<const CaseResult*> seen;
  for (const CaseResult& r : results)
    if (r.outcome == Outcome::fail && r.verdict.by_evidence) seen.push_back(&r);
  if (seen.empty()) return "";
  std::string text = fmt::format(
      "\n<details><summary>By evidence: inside every bound, but no arithmetic makes such errors "
      "({})</summary>\n\n| case | evidence |\n| --- | --- |\n",
      counted(seen.size(), "case"));
  for (std::size_t k = 0; k < std::min(seen.size(), most_causes); ++k) {
    std::vector<std::string> lines;
    for (const std::string& line : listed_evidence(seen[k]->verdict.evidence))
      lines.push_back(prose(line));
    text += fmt::format("| {} | {} |\n", code(seen[k]->line), fmt::join(lines, "<br>"));
  }
  if (seen.size() > most_causes)
    text += fmt::format("\n{} more in the report.\n", seen.size() - most_causes);
  return text + "\n</details>\n";
}

// What the bits of a row do not depend on, if it was asked.
std::string invariance_table(const std::vector<Invariance>& all) {
  if (all.empty()) return "";
  std::string text =
      "\n<details><summary>What the bits of a row do not depend on</summary>\n\n"
      "| invariant to | answer | cases | why |\n| --- | --- | ---: | --- |\n";
  for (const Invariance& x : all)
    text += fmt::format("| {} | {} | {} | {}{} |\n", name_of(x.to), name_of(x.answer), x.cases,
                        prose(x.why), x.line.empty() ? "" : ": " + code(x.line));
  return text + "\n</details>\n";
}

// Lists the passes nearest to their bounds. It sorts `passed`.
std::string nearest_passes(std::vector<const CaseResult*>& passed) {
  std::ranges::sort(
      passed, {}, [](const CaseResult* r) { return std::pair(-worst_finite_ratio(*r), r->line); });
  std::string text = fmt::format(
      "\n<details><summary>The passes nearest to their bounds ({} in all)</summary>\n\n"
      "| error / bound | case |\n| ---: | --- |\n",
      passed.size());
  for (std::size_t k = 0; k < std::min(passed.size(), most_passes); ++k)
    text += fmt::format("| {:.3f} | {} |\n", worst_finite_ratio(*passed[k]), code(passed[k]->line));
  return text + "\n</details>\n";
}

}  // namespace

std::string markdown_summary(const Run& run) {
  std::vector<const CaseResult*> passed;
  for (const CaseResult& r : run.results)
    if (r.outcome != Outcome::fail && r.outcome != Outcome::error && worst_finite_ratio(r) >= 0)
      passed.push_back(&r);
  const std::vector<ConventionSeen>& conventions = run.summary.conventions;
  const bool right =
      run.summary.causes.empty() && failing_by_convention(run.results, conventions) == 0;
  std::string text =
      fmt::format("### Assay: {} on {}\n\n{} {}\n", prose(run.candidate), prose(run.suite),
                  right ? "✅" : "❌", prose(run.summary.sentence));
  if (!run.summary.causes.empty()) text += cause_table(run.summary);
  for (const ConventionSeen& s : conventions)
    text += fmt::format("\n- {}; the first: {}\n", prose(s.sentence()), code(s.line));
  text += evidence_table(run.results);
  text += invariance_table(run.summary.invariances);
  if (!passed.empty()) text += nearest_passes(passed);
  const Machine& m = run.machine;
  return text + fmt::format("\n<sub>{}, {}, {}; commit {}; seed {}</sub>\n", prose(m.cpu),
                            prose(m.simd_target), prose(m.compiler), prose(m.commit), run.seed);
}

std::string markdown_comparison(const StoredRun& a, const StoredRun& b, const Comparison& c,
                                double accuracy_margin, double time_margin) {
  const auto name = [](const StoredRun& r) {
    return fmt::format("{} on {}, commit {}", prose(r.candidate), prose(r.title),
                       prose(r.commit.substr(0, 10)));
  };
  std::string text = fmt::format(
      "### Assay: two runs\n\nFrom {} to {}: {} in both, {} in the first alone, {} in the "
      "second alone.\n\n| | second over first, 95% interval |\n| --- | --- |\n",
      name(a), name(b), counted(c.shared, "case"), c.only_a, c.only_b);
  text += fmt::format("| largest error/bound | {} |\n| time | {} |\n",
                      effect(c.accuracy, accuracy_margin), effect(c.seconds, time_margin));
  if (!c.changed.empty()) {
    text += "\n| outcome changed |\n| --- |\n";
    for (std::size_t k = 0; k < std::min(c.changed.size(), most_changes); ++k)
      text += fmt::format("| {} |\n", code(c.changed[k]));
    if (c.changed.size() > most_changes)
      text += fmt::format("\n{} more.\n", c.changed.size() - most_changes);
  }
  return text;
}

}  // namespace assay
