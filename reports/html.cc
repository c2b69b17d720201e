#include "harness/results/schema.h"
#include "reports/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <unordered_map>
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

namespace {

// The number with four digits, which a picture cannot tell from all of them. Next to a bound all
// digits stay.
Json shortened(double x) {
  if (!std::isfinite(x) || std::fabs(x - 1) < 1e-3) return to_json(x);
  return std::stod(fmt::format("{:.4g}", x));
}

// Values that repeat in run after run stand in a list once, and their number takes their place.
class Once {
 public:
  std::size_t number(Json value) {
    const auto [at, made] = number_of_.try_emplace(
        value.dump(-1, ' ', false, Json::error_handler_t::replace), all_.size());
    if (made) all_.push_back(std::move(value));
    return at->second;
  }
  Json take() { return std::move(all_); }

 private:
  Json all_ = Json::array();
  std::unordered_map<std::string, std::size_t> number_of_;
};

// A run of the page has its results by columns. What `reports/web/src/rows.mjs` reads.
class Columns {
 public:
  Json of(const StoredRun& run) {
    Json kinds = Json::array();
    for (const StoredResult& r : run.results) {
      Json texts = Json::array();
      for (const auto* text : {&r.dtype, &r.outcome, &r.reason, &r.reproduce, &r.worst_output})
        texts.push_back(to_json(*text));
      texts.insert(texts.begin(), r.name);
      texts.push_back(to_json(r.compared));
      kinds.push_back(kinds_.number(std::move(texts)));
    }
    StoredRun without = run;
    without.results.clear();
    Json page = to_json(without);
    page.erase("results");
    page["kinds"] = columns_.number(std::move(kinds));
    for (const auto& [name, field] : numbers)
      if (std::ranges::any_of(run.results,
                              [&](const StoredResult& r) { return (r.*field).has_value(); })) {
        Json values = Json::array();
        for (const StoredResult& r : run.results)
          values.push_back((r.*field) ? shortened(*(r.*field)) : Json());
        page[name] = columns_.number(std::move(values));
      }
    if (std::ranges::any_of(run.results,
                            [](const StoredResult& r) { return !r.counters.is_null(); })) {
      page["counters"] = Json::array();
      for (const StoredResult& r : run.results) page["counters"].push_back(r.counters);
    }
    return page;
  }
  Json kinds() { return kinds_.take(); }
  Json columns() { return columns_.take(); }

 private:
  static constexpr std::pair<const char*, std::optional<double> StoredResult::*> numbers[] = {
      {"worst_ratio", &StoredResult::worst_ratio},
      {"evidence", &StoredResult::evidence},
      {"bias", &StoredResult::bias},
      {"slope", &StoredResult::slope},
      {"seconds", &StoredResult::seconds},
      {"judge_seconds", &StoredResult::judge_seconds}};
  Once kinds_, columns_;
};

}  // namespace

std::string html_dashboard(const Store& store, const Alarms& alarms, const std::string& generated) {
  Columns columns;
  Json runs = Json::array();
  for (const RunEntry& run : store.runs()) runs.push_back(columns.of(store.run(run.id)));
  return filled(dashboard_page, {{"generated", generated},
                                 {"kinds", columns.kinds()},
                                 {"columns", columns.columns()},
                                 {"alarms", to_json(alarms)},
                                 {"runs", std::move(runs)}});
}

}  // namespace assay
