#include "harness/results/schema.h"
#include "reports/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <stdexcept>

namespace assay {
namespace {

Effect effect_of(const std::vector<double>& logs) {
  Effect e;
  e.cases = logs.size();
  if (logs.empty()) return e;
  const auto mean = [](const std::vector<double>& x) {
    double sum = 0;
    for (double v : x) sum += v;
    return sum / static_cast<double>(x.size());
  };
  constexpr std::size_t resamples = 2000;
  std::mt19937_64 random(1);
  std::vector<double> means, drawn(logs.size());
  for (std::size_t k = 0; k < resamples; ++k) {
    for (double& x : drawn) x = logs[random() % logs.size()];
    means.push_back(mean(drawn));
  }
  std::ranges::sort(means);
  e.mean = std::exp(mean(logs));
  e.low = std::exp(means[resamples / 40]);
  e.high = std::exp(means[resamples - 1 - resamples / 40]);
  return e;
}

// The logarithm of b / a, if both are positive finite numbers.
void add_ratio(std::optional<double> a, std::optional<double> b, std::vector<double>& logs) {
  if (a && b && *a > 0 && *b > 0 && std::isfinite(*a) && std::isfinite(*b))
    logs.push_back(std::log(*b / *a));
}

// The fraction of the machine's limit that a benchmark reached.
std::optional<double> fraction_of(const StoredResult& r) {
  if (!r.counters.is_object() || !r.counters.contains("fraction")) return std::nullopt;
  const Json& fraction = r.counters["fraction"];
  if (!fraction.is_number()) return std::nullopt;
  return fraction.get<double>();
}

// A case may occur in a run several times, as the repetitions of a benchmark do. The n-th
// occurrence in one run is compared with the n-th in the other.
using Numbered = std::map<std::pair<std::string, int>, const StoredResult*>;
Numbered numbered(const StoredRun& run) {
  Numbered results;
  std::map<std::string, int> seen;
  for (const StoredResult& r : run.results) results[{r.name, seen[r.name]++}] = &r;
  return results;
}

}  // namespace

Comparison compare_runs(const StoredRun& a, const StoredRun& b) {
  const Numbered of_a = numbered(a);
  Comparison c;
  std::vector<double> accuracy, seconds;
  std::map<std::string, int> seen;
  for (const StoredResult& r : b.results) {
    const auto found = of_a.find({r.name, seen[r.name]++});
    if (found == of_a.end()) {
      ++c.only_b;
      continue;
    }
    ++c.shared;
    const StoredResult& before = *found->second;
    add_ratio(before.worst_ratio, r.worst_ratio, accuracy);
    // On a shared machine, the fraction of its limit that a benchmark reached says more than the
    // time.
    const std::optional<double> was_at = fraction_of(before), is_at = fraction_of(r);
    if (was_at && is_at) add_ratio(is_at, was_at, seconds);
    else add_ratio(before.seconds, r.seconds, seconds);
    const std::string was = before.outcome.value_or(""), is = r.outcome.value_or("");
    if (was != is) c.changed.push_back(fmt::format("{} -> {}: {}", was, is, r.name));
  }
  c.only_a = of_a.size() - c.shared;
  if (c.shared == 0) throw std::invalid_argument("the two runs share no case");
  c.accuracy = effect_of(accuracy);
  c.seconds = effect_of(seconds);
  return c;
}

}  // namespace assay
