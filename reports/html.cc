#include "harness/results/schema.h"
#include "reports/html.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace assay {

// The build makes these from reports/web, bundled.
extern const std::string_view report_page, dashboard_page;

namespace {

std::string dumped(const Json& data) {
  return data.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string filled(std::string_view page, const Json& data) {
  constexpr std::string_view mark = "@DATA@";
  const auto at = page.find(mark);
  std::string text(page.substr(0, at));
  // Inside a script element only "<" could end the data.
  for (const char c : dumped(data)) {
    if (c == '<') text += "\\u003c";
    else text += c;
  }
  return text.append(page.substr(at + mark.size()));
}

std::string base64(const std::vector<Bytef>& bytes) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve(bytes.size() / 3 * 4 + 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t n = std::min<std::size_t>(3, bytes.size() - i);
    unsigned group = 0;
    for (std::size_t k = 0; k < 3; ++k) group = group << 8 | (k < n ? bytes[i + k] : 0u);
    for (std::size_t k = 0; k < 4; ++k) text += k <= n ? digits[group >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

// The data deflated, as RFC 1950 says, and in base64. What `unpacked` of `reports/web/src/page.mjs`
// reads.
std::string packed(const Json& data) {
  const std::string text = dumped(data);
  uLongf size = compressBound(text.size());
  std::vector<Bytef> bytes(size);
  if (compress(bytes.data(), &size, reinterpret_cast<const Bytef*>(text.data()), text.size()) !=
      Z_OK)
    throw std::bad_alloc();  // the bytes suffice, so nothing else can be missing
  bytes.resize(size);
  return base64(bytes);
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
    const auto [at, made] = number_of_.try_emplace(dumped(value), all_.size());
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

Json by_columns(const Store& store, std::span<const RunEntry> entries) {
  Columns columns;
  Json runs = Json::array();
  for (const RunEntry& run : entries) runs.push_back(columns.of(store.run(run.id)));
  return {{"kinds", columns.kinds()}, {"columns", columns.columns()}, {"runs", std::move(runs)}};
}

}  // namespace

std::string html_dashboard(const Store& store, const Alarms& alarms, const std::string& generated) {
  // As many runs as pictures show without a slider. The page is drawn with them, before a browser
  // has read those before them, which stand at its end.
  constexpr std::size_t at_once = 40;
  std::vector<RunEntry> all = store.runs();
  std::ranges::stable_sort(all, {}, &RunEntry::started);  // imported runs may be older
  const std::size_t earlier = all.size() - std::min(all.size(), at_once);
  Json data = by_columns(store, std::span(all).subspan(earlier));
  data["generated"] = generated;
  data["alarms"] = to_json(alarms);
  data["earlier"] = earlier;
  std::string page = filled(dashboard_page, data);
  if (earlier > 0)
    page.insert(page.rfind("</body>"),
                fmt::format("<script type=\"text/plain\" id=\"earlier\">{}</script>\n",
                            packed(by_columns(store, std::span(all).first(earlier)))));
  return page;
}

}  // namespace assay
