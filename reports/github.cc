#include "reports/github.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "harness/text.h"

namespace assay {
namespace {

constexpr std::size_t most_errors = 9;

// Workflow commands are read by lines; in a property, a colon or comma would end it.
std::string escaped(std::string_view text, bool property) {
  std::string out;
  for (const char c : text) switch (c) {
      case '%': out += "%25"; break;
      case '\r': out += "%0D"; break;
      case '\n': out += "%0A"; break;
      case ':': out += property ? "%3A" : ":"; break;
      case ',': out += property ? "%2C" : ","; break;
      default: out += c;
    }
  return out;
}

std::string command(const char* what, const std::string& title, const std::string& message) {
  return fmt::format("::{} title={}::{}", what, escaped(title, true), escaped(message, false));
}

}  // namespace

std::vector<std::string> github_annotations(const Run& run) {
  std::vector<std::string> lines;
  const std::vector<Cause>& causes = run.summary.causes;
  for (std::size_t k = 0; k < std::min(causes.size(), most_errors); ++k) {
    const Cause& c = causes[k];
    std::string message = visible(c.reason);
    if (!c.looks_like.empty()) message += "\nlooks like: " + visible(c.looks_like);
    if (!c.features.empty()) message += fmt::format("\nwith {}", fmt::join(c.features, ", "));
    message += fmt::format("\nthe first: {}\nreproduce: {}", visible(c.line), visible(c.reproduce));
    lines.push_back(command(
        "error", fmt::format("{}: {} x {}", visible(run.candidate), c.cases, c.outcome), message));
  }
  if (causes.size() > most_errors)
    lines.push_back(command(
        "error", visible(run.candidate),
        fmt::format("{} in the report", counted(causes.size() - most_errors, "further cause"))));
  for (const ConventionSeen& s : run.summary.conventions)
    if (s.rule != ConventionRule::accept)
      lines.push_back(command(s.rule == ConventionRule::fail ? "error" : "warning",
                              visible(run.candidate),
                              visible(s.sentence()) + "\nthe first: " + visible(s.line)));
  const std::string shared = run.summary.shared.sentence();
  lines.push_back(command("notice", visible(fmt::format("{} on {}", run.candidate, run.suite)),
                          visible(run.summary.sentence) + (shared.empty() ? "" : "\n" + shared)));
  return lines;
}

}  // namespace assay
