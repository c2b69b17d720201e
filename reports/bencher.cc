#include "reports/bencher.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <stdexcept>

#include "harness/results/schema.h"
#include "harness/text.h"

namespace assay {
namespace {

// A name of a benchmark has at most so many characters in Bencher.
constexpr std::size_t longest_name = 1024;

std::optional<double> counter(const StoredResult& r, const char* name) {
  if (!r.counters.is_object() || !r.counters.contains(name) || !r.counters[name].is_number())
    return std::nullopt;
  return r.counters[name].get<double>();
}

void add(Json& measures, const char* measure, std::optional<double> value,
         std::optional<double> low = {}, std::optional<double> high = {}) {
  if (!value || !std::isfinite(*value)) return;
  Json& metric = measures[measure] = {{"value", *value}};
  if (low && std::isfinite(*low)) metric["lower_value"] = *low;
  if (high && std::isfinite(*high)) metric["upper_value"] = *high;
}

}  // namespace

std::string bencher_metrics(const StoredRun& run) {
  Json document = Json::object();
  for (const StoredResult& r : run.results) {
    Json measures = Json::object();
    constexpr double nanoseconds = 1e9;
    add(measures, "latency", r.seconds ? std::optional(*r.seconds * nanoseconds) : std::nullopt);
    add(measures, "error-bound", r.worst_ratio);
    add(measures, "fraction-of-limit", counter(r, "fraction"), counter(r, "fraction_low"),
        counter(r, "fraction_high"));
    if (!measures.empty()) document[visible(r.name).substr(0, longest_name)] = std::move(measures);
  }
  if (document.empty())
    throw std::invalid_argument("no result of this run has a time or an error/bound");
  return document.dump(1) + "\n";
}

}  // namespace assay
