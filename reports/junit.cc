#include "reports/junit.h"

#include <fmt/format.h>

namespace assay {
namespace {

// Of any bytes, as XML 1.0 in UTF-8 that says as much.
// Not `escape`: newer versions of the JSON library have one, which a Json argument would find.
std::string escape_xml(const std::string& bytes) {
  const std::string text = Json::parse(Json(bytes).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') out += c;  // XML 1.0 has no other controls
    }
  }
  return out;
}

double seconds_of(const Json& r) {
  double total = 0;
  if (r.contains("seconds"))
    for (const auto& [stage, seconds] : r["seconds"].items()) total += seconds.get<double>();
  return total;
}

}  // namespace

std::string junit_xml(const Json& run) {
  int failures = 0, errors = 0, skipped = 0;
  double total = 0;
  std::string cases;
  for (const Json& r : run["results"]) {
    const std::string outcome = r["outcome"], reason = escape_xml(r["reason"]), line = escape_xml(r["case"]);
    const double seconds = seconds_of(r);
    total += seconds;
    cases += fmt::format("    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3f}\"", escape_xml(r["candidate"]), line, seconds);
    std::string inner;
    if (outcome == "fail") {
      ++failures;
      inner = fmt::format("<failure message=\"{}\">{}</failure>", reason, escape_xml(r["reproduce"]));
    } else if (outcome == "error") {
      ++errors;
      inner = fmt::format("<error message=\"{}\"/>", reason);
    } else if (outcome == "unsupported" || outcome == "inconclusive") {
      ++skipped;
      inner = fmt::format("<skipped message=\"{}: {}\"/>", outcome, reason);
    } else if (outcome == "suspect") {
      inner = fmt::format("<system-out>suspect: {}</system-out>", reason);
    }
    cases += inner.empty() ? "/>\n" : fmt::format(">{}</testcase>\n", inner);
  }
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
      "  <testsuite name=\"assay {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3f}\">\n{}  </testsuite>\n</testsuites>\n",
      escape_xml(run["suite"]), run["results"].size(), failures, errors, skipped, total, cases);
}

}  // namespace assay
