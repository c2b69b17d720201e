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

// The logarithm of b / a, if both are positive numbers.
void add_ratio(const Json& a, const Json& b, const char* field, std::vector<double>& logs) {
  if (!a.contains(field) || !b.contains(field) || !a[field].is_number() || !b[field].is_number()) return;
  const double x = a[field], y = b[field];
  if (x > 0 && y > 0) logs.push_back(std::log(y / x));
}

const Json& counters_of(const Json& result) {
  static const Json none = Json::object();
  return result.contains("counters") ? result["counters"] : none;
}

}  // namespace

Comparison compare_runs(const Json& a, const Json& b) {
  // A case may stand in a run several times, as repetitions of a benchmark do: the n-th meets the n-th.
  std::map<std::pair<std::string, int>, const Json*> of_a;
  const auto numbered = [](const Json& run, const auto& use) {
    std::map<std::string, int> seen;
    for (const Json& r : run["results"]) {
      const std::string name = r["name"];
      use(std::pair(name, seen[name]++), r);
    }
  };
  numbered(a, [&](const auto& key, const Json& r) { of_a[key] = &r; });
  Comparison c;
  std::vector<double> accuracy, seconds;
  numbered(b, [&](const auto& key, const Json& r) {
    const auto found = of_a.find(key);
    if (found == of_a.end()) {
      ++c.only_b;
      return;
    }
    ++c.shared;
    const Json& before = *found->second;
    add_ratio(before, r, "worst_ratio", accuracy);
    // How much of the machine's limit a benchmark reached says more than its time on a machine that is shared.
    if (const Json &x = counters_of(before), &y = counters_of(r); x.contains("fraction") && y.contains("fraction")) add_ratio(y, x, "fraction", seconds);
    else add_ratio(before, r, "seconds", seconds);
    const std::string was = before.value("outcome", ""), is = r.value("outcome", "");
    if (was != is) c.changed.push_back(fmt::format("{} -> {}: {}", was, is, key.first));
  });
  c.only_a = of_a.size() - c.shared;
  if (c.shared == 0) throw std::invalid_argument("the two runs share no case");
  c.accuracy = effect_of(accuracy);
  c.seconds = effect_of(seconds);
  return c;
}

}  // namespace assay
