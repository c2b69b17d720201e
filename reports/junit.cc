#include "reports/junit.h"

#include <fmt/format.h>

#include "harness/results/schema.h"
#include "harness/results/told_outcome.h"
#include "reports/case_text.h"

namespace assay {
namespace {

// Turns any bytes into XML 1.0 in UTF-8. The name is not `escape`, because newer versions of the
// JSON library have a function of that name, which a Json argument would find.
std::string escape_xml(const std::string& bytes) {
  const std::string text =
      Json::parse(Json(bytes).dump(-1, ' ', false, Json::error_handler_t::replace))
          .get<std::string>();
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t')
          out += c;  // XML 1.0 has no other control characters
    }
  }
  return out;
}

// The command that runs the case again, what the failure looks like and, where it is one by
// evidence, what it was seen by.
std::string text_of_failure(const CaseResult& r) {
  std::string text = r.reproduce;
  if (const std::string cause = sentence_on(r.diagnosis); !cause.empty()) text += "\n" + cause;
  if (r.verdict.by_evidence)
    for (const std::string& line : listed_evidence(r.verdict.evidence)) text += "\n" + line;
  return text;
}

std::string test_case(const CaseResult& r, bool differs_and_fails) {
  const std::string reason = escape_xml(r.reason);
  std::string inner;
  switch (r.outcome) {
    case Outcome::fail:
      inner = fmt::format("<failure type=\"{}\" message=\"{}\">{}</failure>", outcome_words(r),
                          reason, escape_xml(text_of_failure(r)));
      break;
    case Outcome::error: inner = fmt::format("<error message=\"{}\"/>", reason); break;
    case Outcome::unsupported:
    case Outcome::inconclusive:
      inner = fmt::format("<skipped message=\"{}: {}\"/>", name_of(r.outcome), reason);
      break;
    case Outcome::suspect:
      inner = fmt::format("<system-out>suspect: {}</system-out>", reason);
      break;
    case Outcome::convention:
      inner = differs_and_fails
                  ? fmt::format("<failure type=\"convention\" message=\"{}\">{}</failure>", reason,
                                escape_xml(r.reproduce))
                  : fmt::format("<system-out>{}</system-out>", reason);
      break;
    case Outcome::pass: break;
  }
  return fmt::format("    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3f}\"{}\n",
                     escape_xml(r.candidate), escape_xml(r.line), r.seconds.sum(),
                     inner.empty() ? "/>" : fmt::format(">{}</testcase>", inner));
}

}  // namespace

std::string junit_xml(const Run& run) {
  double total = 0;
  std::string cases;
  for (const CaseResult& r : run.results) {
    total += r.seconds.sum();
    cases += test_case(r, fails_by_convention(r, run.summary.conventions));
  }
  const OutcomeCounts n = count_outcomes(run.results);
  const std::size_t differ = failing_by_convention(run.results, run.summary.conventions);
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
      "  <testsuite name=\"assay {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" "
      "time=\"{:.3f}\">\n{}  </testsuite>\n</testsuites>\n",
      escape_xml(run.suite), run.results.size(), n.fail + differ, n.error,
      n.unsupported + n.inconclusive, total, cases);
}

}  // namespace assay
