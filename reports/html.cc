#include "reports/html.h"

#include <map>
#include <string_view>
#include <utility>

namespace assay {

// Of the build: reports/web, bundled.
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

std::string html_report(const Json& run) { return filled(report_page, run); }

Json fuzz_of_page(const Json& summary) {
  Json targets = summary.at("targets");
  for (Json& t : targets) {
    Json findings = Json::array();
    for (const Json& f : summary.at("findings"))
      if (f.at("target") == t.at("target")) findings.push_back({{"reason", f.value("reason", "")}, {"case", f.value("shrunk", f.value("case", f.value("file", "")))}});
    t["findings"] = std::move(findings);
  }
  return targets;
}

std::string html_dashboard(const Json& runs, const std::string& generated) {
  // Names, reasons and commands come again in every run: each text once, and numbers in their places.
  Json strings = Json::array(), short_runs = runs;
  std::map<std::string, std::size_t> number_of;
  for (Json& run : short_runs)
    for (Json& result : run["results"])
      for (const char* field : {"name", "reason", "reproduce"}) {
        if (!result.contains(field) || !result[field].is_string()) continue;
        const auto [at, made] = number_of.try_emplace(result[field].get<std::string>(), number_of.size());
        if (made) strings.push_back(at->first);
        result[field] = at->second;
      }
  return filled(dashboard_page, {{"generated", generated}, {"strings", std::move(strings)}, {"runs", std::move(short_runs)}});
}

}  // namespace assay
