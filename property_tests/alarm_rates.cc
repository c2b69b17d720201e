// Measures what docs/alarms.md tells of change points: precision and recall on series with known
// changes, how many runs a twofold change takes, and false alarms in a year.
//
//   alarm_rates patterns|delay|false-alarms [SEED]
//   alarm_rates store FILE RUNS CASES [SEED]      makes a store of daily runs, with known changes
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness/results/schema.h"
#include "property_tests/series.h"
#include "reports/change_points.h"
#include "reports/store.h"

namespace assay {
namespace {

constexpr std::size_t days = 365, cases = 1000, measures = 3;
// What `assay store --alarms` asks for in such a store.
const ChangeRule of_the_store{0.5 / (double(days) * double(cases * measures + measures))};

void patterns(std::uint64_t seed) {
  constexpr std::uint64_t repetitions = 200;
  fmt::print("{} series of each kind, seeds {} to {}\n\n", repetitions, seed,
             seed + repetitions - 1);
  fmt::print(
      "| kind | changes | found | precision | recall | runs until found, median |\n"
      "| --- | --- | --- | --- | --- | --- |\n");
  for (const SeriesKind& kind : series_kinds()) {
    Agreement a;
    std::vector<std::size_t> delays;
    for (std::uint64_t k = 0; k < repetitions; ++k) {
      const KnownSeries s = kind.make(seed + k);
      std::vector<std::size_t> found;
      for (const ChangePoint& p : change_points(s.values, of_the_store)) {
        found.push_back(p.at);
        for (const TrueChange& c : s.changes)
          if (p.at + 5 >= c.first && p.at <= c.last + 5)
            delays.push_back(p.found >= c.first ? p.found - c.first + 1 : 0);
      }
      a.add(s.changes, found);
    }
    std::ranges::sort(delays);
    fmt::print("| {} | {} | {} | {:.3f} | {:.3f} | {} |\n", kind.name, a.changes, a.found,
               a.precision(), a.recall(),
               delays.empty() ? "" : fmt::format("{}", delays[delays.size() / 2]));
  }
}

// The share of twofold changes that are found within five runs.
void delay(std::uint64_t seed) {
  constexpr int repetitions = 1000;
  fmt::print(
      "share of {} twofold changes found with at most 5 runs; seed {}\n\n"
      "| runs before | deterministic | noise 5% | 10% | 15% | 20% |\n"
      "| --- | --- | --- | --- | --- | --- |\n",
      repetitions, seed);
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  for (const std::size_t before : {10, 30, 50, 55, 60, 100, 200, 365}) {
    fmt::print("| {} ", before);
    for (const double sigma : {0.0, 0.05, 0.1, 0.15, 0.2}) {
      int found = 0;
      for (int r = 0; r < repetitions; ++r) {
        std::vector<double> series(before + 5);
        for (std::size_t t = 0; t < series.size(); ++t)
          series[t] = sigma * normal(random) + (t < before ? 0 : std::numbers::ln2);
        const auto points = change_points(series, of_the_store);
        found += !points.empty() && points.back().at + 2 >= before;
      }
      fmt::print("| {:.3f} ", double(found) / repetitions);
    }
    fmt::print("|\n");
  }
}

// Counts rises that are found in a year of series without a change, after 100 runs of history.
void false_alarms(std::uint64_t seed) {
  constexpr std::size_t history = 100, years = 2;
  fmt::print(
      "false rises in {} years of {} series without a change, daily runs; seed {}\n\n"
      "| noise | rises | in a year of {} series |\n| --- | --- | --- |\n",
      years, cases, seed, cases * measures);
  for (const SeriesKind& kind : series_kinds()) {
    if (!kind.make(seed).changes.empty() || kind.name.starts_with("spike") ||
        kind.name.starts_with("variance"))
      continue;
    std::size_t rises = 0;
    for (std::size_t k = 0; k < years * cases; ++k) {
      // Pieces of the kind, joined to a year and its history.
      std::vector<double> series;
      for (std::uint64_t piece = 0; series.size() < history + days; ++piece) {
        const auto more = kind.make(seed + 1000003 * k + piece).values;
        series.insert(series.end(), more.begin(), more.end());
      }
      series.resize(history + days);
      for (const ChangePoint& p : change_points(series, of_the_store)) {
        if (p.found < history) continue;
        const auto mean = [](auto begin, auto end) {
          return std::reduce(begin, end, 0.0) / double(end - begin);
        };
        const auto at = series.begin() + static_cast<std::ptrdiff_t>(p.at);
        rises += mean(at, series.begin() + static_cast<std::ptrdiff_t>(p.found) + 1) >
                 mean(series.begin(), at);
      }
    }
    fmt::print("| {} | {} | {:.2f} |\n", kind.name, rises,
               double(rises) * measures / double(years));
  }
}

// One candidate on one machine, a run a day. Times have noise of 10%, accuracy and evidence have
// none, but for every twentieth case. From the middle on, every hundredth case has twice the error;
// from three quarters on, every case takes 1.3 times as long.
void store(const std::string& path, std::size_t runs, std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  std::vector<StoredResult> results(count);
  for (std::size_t k = 0; k < count; ++k) {
    StoredResult& r = results[k];
    r.dtype = std::vector{"f32", "f16", "bf16"}[k % 3];
    r.name = fmt::format("attention b=2 h=6/2 l={}x{} d=40/72 dtype={} causal window=16,0 seed={}",
                         k % 61 + 1, k % 53 + 70, *r.dtype, k);
    r.outcome = "pass";
    r.reason = "every element is inside its bound";
    r.reproduce = fmt::format("assay check --candidate host --case '{}'", r.name);
    r.worst_output = "O";
    r.worst_ratio = 0.05 + 0.3 * uniform(random);
    r.evidence = 0.1 + 0.3 * uniform(random);
    r.bias = 0.01 * normal(random);
    r.slope = normal(random);
    r.compared = static_cast<std::int64_t>(1000 + k);
    r.seconds = 1e-3 * (1 + uniform(random));
    r.judge_seconds = 1e-2;
  }
  Store s(path);
  for (std::size_t day = 0; day < runs; ++day) {
    StoredRun run;
    run.kind = "check";
    run.started = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                              fmt::gmtime(static_cast<std::time_t>(1704067200 + 86400 * day)));
    run.title = "standard";
    run.candidate = "host";
    run.seed = 1;
    run.commit = fmt::format("{:012x}", random() >> 16);
    run.machine = {{"cpu", "a processor"}, {"threads", 2}, {"simd target", "AVX3"}};
    run.sentence = fmt::format("{} cases", count);
    run.results = results;
    for (std::size_t k = 0; k < count; ++k) {
      StoredResult& r = run.results[k];
      if (k % 20 == 7) *r.worst_ratio *= std::exp(0.1 * normal(random));
      if (k % 100 == 3 && day >= runs / 2) *r.worst_ratio *= 2;
      *r.seconds *= std::exp(0.1 * normal(random)) * (day >= runs * 3 / 4 ? 1.3 : 1);
    }
    std::istringstream line(to_json(run).dump());
    s.import_lines(line);
  }
}

std::optional<std::uint64_t> number_in(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Returns whether the words ask for something.
bool did(const std::vector<std::string>& words) {
  const bool makes_store = words.size() >= 4 && words[0] == "store";
  const std::size_t needed = makes_store ? 4 : 1;
  if (words.size() < needed || words.size() > needed + 1) return false;
  const std::optional<std::uint64_t> seed =
      words.size() > needed ? number_in(words[needed]) : std::optional<std::uint64_t>(1);
  if (!seed) return false;
  if (makes_store) {
    const auto runs = number_in(words[2]), count = number_in(words[3]);
    if (runs && count) store(words[1], *runs, *count, *seed);
    return runs && count;
  }
  if (words[0] == "patterns") patterns(*seed);
  else if (words[0] == "delay") delay(*seed);
  else if (words[0] == "false-alarms") false_alarms(*seed);
  else return false;
  return true;
}

}  // namespace
}  // namespace assay

int main(int count, char** words) {
  if (assay::did({words + 1, words + count})) return 0;
  fmt::print(stderr,
             "usage: alarm_rates patterns|delay|false-alarms [SEED]\n"
             "       alarm_rates store FILE RUNS CASES [SEED]\n");
  return 2;
}
