#include "reports/open_metrics.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "harness/text.h"

namespace assay {
namespace {

// Families in the order in which they are written. A unit ends the name of its family.
struct Family {
  const char *name, *help, *unit;
};
constexpr Family results = {"assay_results", "Results of the run by outcome.", ""},
                 elements = {"assay_compared_elements", "Elements that were compared.", ""},
                 ratio = {"assay_error_bound_ratio",
                          "The largest error divided by its proved bound.", ""},
                 seconds = {"assay_candidate_seconds", "Time of the candidate, over all results.",
                            "seconds"},
                 benchmark = {"assay_benchmark_seconds", "Median time of a benchmark.", "seconds"};

// Labels between braces, and the value at each time. Without a time there is one value.
using Series = std::map<std::string, std::map<std::optional<std::int64_t>, double>>;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : visible(text)) {
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
  return out;
}

std::string label(const char* name, const std::string& value) {
  return fmt::format("{}=\"{}\"", name, escaped(value));
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return fmt::format("{}", value);
}

class Metrics {
 public:
  void add(const StoredRun& run, std::optional<std::int64_t> time) {
    const std::string of_run =
        fmt::format("{},{},{}", label("kind", run.kind), label("candidate", run.candidate),
                    label("suite", run.title));
    std::map<std::string, double> outcomes, worst;
    double compared = 0, took = 0;
    for (const StoredResult& r : run.results) {
      if (r.outcome) ++outcomes[*r.outcome];
      if (r.worst_ratio) {
        double& most = worst.try_emplace(r.dtype.value_or(""), -HUGE_VAL).first->second;
        if (!(*r.worst_ratio <= most)) most = *r.worst_ratio;
      }
      compared += static_cast<double>(r.compared.value_or(0));
      took += r.seconds.value_or(0);
      if (run.kind == "benchmark" && r.seconds)
        take(benchmark, of_run + "," + label("name", r.name), time, *r.seconds);
    }
    for (const auto& [outcome, n] : outcomes)
      take(results, of_run + "," + label("outcome", outcome), time, n);
    if (run.kind == "check") take(elements, of_run, time, compared);
    for (const auto& [dtype, most] : worst)
      take(ratio, of_run + "," + label("dtype", dtype), time, most);
    if (run.kind != "benchmark") take(seconds, of_run, time, took);
  }

  std::string text() const {
    std::string out;
    for (const Family* family : {&results, &elements, &ratio, &seconds, &benchmark}) {
      const auto found = families_.find(family->name);
      if (found == families_.end()) continue;
      out += fmt::format("# TYPE {} gauge\n", family->name);
      if (*family->unit) out += fmt::format("# UNIT {} {}\n", family->name, family->unit);
      out += fmt::format("# HELP {} {}\n", family->name, family->help);
      for (const auto& [labels, points] : found->second)
        for (const auto& [time, value] : points)
          out += fmt::format("{}{{{}}} {}{}\n", family->name, labels, number(value),
                             time ? fmt::format(" {}", *time) : "");
    }
    return out + "# EOF\n";
  }

 private:
  void take(const Family& family, const std::string& labels, std::optional<std::int64_t> time,
            double value) {
    families_[family.name][labels][time] = value;
  }

  std::map<std::string, Series> families_;
};

}  // namespace

std::int64_t seconds_of_time(const std::string& time) {
  namespace chrono = std::chrono;
  int year = 0, hour = 0, minute = 0, second = 0, read = 0;
  unsigned month = 0, day = 0;
  if (std::sscanf(time.c_str(), "%4d-%2u-%2uT%2d:%2d:%2d%n", &year, &month, &day, &hour, &minute,
                  &second, &read) != 6 ||
      time.substr(static_cast<std::size_t>(read)) != "Z")
    throw std::invalid_argument(fmt::format("'{}' is no time as 2026-11-26T06:32:08Z", time));
  const chrono::year_month_day date{chrono::year(year), chrono::month(month), chrono::day(day)};
  if (!date.ok() || hour > 23 || minute > 59 || second > 60 || hour < 0 || minute < 0 || second < 0)
    throw std::invalid_argument(fmt::format("'{}' is no time that there is", time));
  return chrono::sys_days(date).time_since_epoch().count() * 86400LL + hour * 3600 + minute * 60 +
         second;
}

std::string open_metrics(const StoredRun& run) {
  Metrics metrics;
  metrics.add(run, std::nullopt);
  return metrics.text();
}

std::string open_metrics(const std::vector<StoredRun>& runs) {
  Metrics metrics;
  for (const StoredRun& run : runs) metrics.add(run, seconds_of_time(run.started));
  return metrics.text();
}

}  // namespace assay
