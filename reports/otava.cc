#include "reports/otava.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "harness/results/schema.h"
#include "harness/text.h"
#include "reports/open_metrics.h"

namespace assay {
namespace {

void add(Json& metrics, const std::string& name, double value) {
  if (std::isfinite(value)) metrics.push_back({{"name", name}, {"value", value}});
}

Json metrics_of(const StoredRun& run) {
  Json metrics = Json::array();
  double worst = -1, took = 0, failed = 0;
  for (const StoredResult& r : run.results) {
    const std::string name = visible(r.name);
    if (r.worst_ratio) {
      add(metrics, name + ": error/bound", *r.worst_ratio);
      worst = std::max(worst, *r.worst_ratio);
    }
    if (r.seconds) add(metrics, name + ": seconds", *r.seconds);
    took += r.seconds.value_or(0);
    failed += r.outcome == "fail" || r.outcome == "error";
  }
  if (worst >= 0) add(metrics, "run: error/bound", worst);
  add(metrics, "run: seconds", took);
  add(metrics, "run: failures", failed);
  return metrics;
}

}  // namespace

std::string otava_history(const std::vector<StoredRun>& runs) {
  std::vector<std::pair<std::int64_t, const StoredRun*>> in_time;
  for (const StoredRun& run : runs) in_time.emplace_back(seconds_of_time(run.started), &run);
  std::ranges::stable_sort(in_time, {}, [](const auto& r) { return r.first; });
  Json history = Json::array();
  for (const auto& [time, run] : in_time)
    history.push_back({{"timestamp", time},
                       {"metrics", metrics_of(*run)},
                       {"attributes",
                        {{"commit", run->commit},
                         {"kind", run->kind},
                         {"candidate", run->candidate},
                         {"suite", run->title}}}});
  return history.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace assay
