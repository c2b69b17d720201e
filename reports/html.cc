#include "reports/html.h"

#include <map>
#include <string_view>
#include <utility>

namespace assay {

// The build makes these from reports/web, bundled.
extern const std::string_view report_page, dashboard_page;

namespace {

std::string filled(std::string_view page, const Json& data) {
  constexpr std::string_view mark = "@DATA@";
  const auto at = page.find(mark);
  std::string text(page.substr(0, at));
  // Inside a script element only "<" could end the data.
  for (const char c : data.dump(-1, ' ', false, Json::error_handler_t::replace)) {
    if (c == '<') text += "\\u003c";
    else text += c;
  }
  return text.append(page.substr(at + mark.size()));
}

}  // namespace

namespace {

// Lists the targets of fuzz jobs, each with its findings.
Json fuzz_section(const FuzzSummary& summary) {
  Json targets = Json::array();
  for (const FuzzTarget& t : summary.targets) {
    Json target = to_json(t);
    target["findings"] = Json::array();
    for (const FuzzFinding& f : summary.findings) {
      if (f.target != t.target) continue;
      const std::string& line = f.line.empty() ? f.file : f.line;
      target["findings"].push_back(
          {{"reason", f.reason}, {"case", f.shrunk.empty() ? line : f.shrunk}});
    }
    targets.push_back(std::move(target));
  }
  return targets;
}

}  // namespace

std::string html_report(const Run& run, const PageSections& sections) {
  Json page = to_json(run);
  if (run.results.empty())
    for (const char* field : {"format", "summary", "results"}) page.erase(field);
  if (sections.faults) page["faults"] = to_json(*sections.faults);
  if (sections.fuzz) page["fuzz"] = fuzz_section(*sections.fuzz);
  return filled(report_page, page);
}

std::string html_dashboard(const std::vector<StoredRun>& runs, const std::string& generated) {
  // Names, reasons and commands repeat in every run. Each text is stored once, and numbers take its
  // places.
  Json strings = Json::array(), short_runs = to_json(runs);
  std::map<std::string, std::size_t> number_of;
  for (Json& run : short_runs)
    for (Json& result : run["results"])
      for (const char* field : {"name", "reason", "reproduce"}) {
        if (!result.contains(field) || !result[field].is_string()) continue;
        const auto [at, made] =
            number_of.try_emplace(result[field].get<std::string>(), number_of.size());
        if (made) strings.push_back(at->first);
        result[field] = at->second;
      }
  return filled(
      dashboard_page,
      {{"generated", generated}, {"strings", std::move(strings)}, {"runs", std::move(short_runs)}});
}

}  // namespace assay
