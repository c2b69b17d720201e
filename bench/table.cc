#include "bench/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "bench/machine.h"

namespace assay::bench {
namespace {

constexpr int width = 14, ratio_width = 19;

std::string cell_text(Table::Cell kind, const Measured& m) {
  if (!m.missing.empty()) return m.missing;
  return kind == Table::Cell::rate ? fmt::format("{:.1f} {:>6.2f}", m.rate, m.fraction)
                                   : fmt::format("{:.3f}", m.seconds * 1e3);
}

// Prints two decimals where they say something.
std::string ratio_text(const Interval& r) {
  const int digits = r.high < 20 ? 2 : r.high < 200 ? 1 : 0;
  return fmt::format("{:.{}f} [{:.{}f}, {:.{}f}]", r.estimate, digits, r.low, digits, r.high,
                     digits);
}

}  // namespace

Table::Table(Rounds& rounds, Cell cell, std::string labels, std::vector<std::string> candidates,
             std::vector<std::size_t> ratios)
    : rounds_(rounds),
      to_(rounds.tables()),
      cell_(cell),
      labels_(std::move(labels)),
      candidates_(std::move(candidates)),
      ratios_(std::move(ratios)),
      seen_(ratios_.size()) {}

void Table::line(const std::string& label, const std::vector<Entry>& entries) {
  const std::vector<Measured> cells = rounds_.run(entries);
  if (std::all_of(cells.begin(), cells.end(),
                  [](const Measured& m) { return std::isnan(m.seconds) && m.missing != "failed"; }))
    return;
  if (!std::exchange(begun_, true)) {
    fmt::print(to_, "\n{}", labels_);
    for (const std::string& name : candidates_) fmt::print(to_, " | {:>{}}", name, width);
    if (!ratios_.empty()) fmt::print(to_, " | {} over", candidates_[0]);
    for (const std::size_t k : ratios_) fmt::print(to_, " {:>{}}", candidates_[k], ratio_width);
    fmt::print(to_, "\n");
  }
  fmt::print(to_, "{:>{}}", label, labels_.size());
  for (const Measured& m : cells) {
    fmt::print(to_, " | {:>{}}", cell_text(cell_, m), width);
    if (!std::isnan(m.spread)) spreads_.push_back(m.spread);
  }
  if (!ratios_.empty()) fmt::print(to_, " | {:{}}", "", candidates_[0].size() + 5);
  for (std::size_t r = 0; r < ratios_.size(); ++r) {
    const Interval ratio = ratio_interval(cells[0].speeds, cells[ratios_[r]].speeds);
    const bool known = !std::isnan(ratio.estimate);
    if (known)
      seen_[r].push_back(ratio.estimate),
          rounds_.add_ratio(entries[0].name, entries[ratios_[r]].name, ratio);
    fmt::print(to_, " {:>{}}", known ? ratio_text(ratio) : "-", ratio_width);
  }
  fmt::print(to_, "\n");
  std::fflush(to_);
}

void Table::summary() const {
  for (std::size_t r = 0; r < ratios_.size(); ++r) {
    if (seen_[r].empty()) continue;
    double logs = 0;
    for (const double ratio : seen_[r]) logs += std::log(ratio);
    const auto [low, high] = std::minmax_element(seen_[r].begin(), seen_[r].end());
    fmt::print(to_, "{} over {}: {:.2f} in the geometric mean, {:.2f} to {:.2f}.\n", candidates_[0],
               candidates_[ratios_[r]], std::exp(logs / static_cast<double>(seen_[r].size())), *low,
               *high);
  }
  if (std::ranges::any_of(seen_, [](const auto& ratios) { return !ratios.empty(); }))
    fmt::print(to_,
               "In brackets: 95% intervals by the ranks of the repetitions (the range where there "
               "are fewer than 4 of each).\n");
  if (!spreads_.empty())
    fmt::print(to_,
               "Spread of a fraction between its repetitions: {:.0f}% in the median cell, {:.0f}% "
               "in the worst.\n",
               100 * median(spreads_), 100 * *std::max_element(spreads_.begin(), spreads_.end()));
}

std::vector<MachineLimits> print_machine(std::FILE* to, const std::vector<int>& thread_counts) {
  std::vector<MachineLimits> limits;
  constexpr int bursts = 5;
  double one = 0;
  fmt::print(to, "Multiply-adds in registers ({}), GFLOP/s, medians and ranges of {} bursts:\n",
             measured_with(), bursts);
  for (const int threads : thread_counts) {
    MachineLimits& limit = limits.emplace_back();
    limit.threads = threads;
    fmt::print(to, "{:>4} {}", threads, threads == 1 ? "thread: " : "threads:");
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16}) {
      std::vector<double> rates;
      for (int b = 0; b < bursts; ++b) rates.push_back(fma_gflops(threads, 0.01, dtype));
      const auto [low, high] = std::minmax_element(rates.begin(), rates.end());
      if (*high > 0) limit.fma_gflops[std::string(format(dtype).name)] = median(rates);
      if (*high > 0)
        fmt::print(to, " {} {:.0f} ({:.0f} to {:.0f})", format(dtype).name, median(rates), *low,
                   *high);
      else fmt::print(to, " {} none in this build", format(dtype).name);
      if (dtype != Dtype::f32) continue;
      if (threads == 1) one = median(rates);
      else if (one > 0 && median(rates) < 0.8 * threads * one)
        fmt::print(to, " [busy: the rate of {:.1f} cores]", median(rates) / one);
    }
    auto read = [&](std::size_t kib) {
      const double rate = read_gigabytes_per_second(kib << 10, threads, 0.03);
      limit.read_gigabytes[fmt::format("{} KiB", kib)] = rate;
      return rate;
    };
    const double near = read(16), middle = read(512), far = read(64 << 10);
    fmt::print(to,
               "\n              read: {:.0f} GB/s at 16 KiB, {:.0f} at 512 KiB, {:.0f} at 64 MiB a "
               "thread\n",
               near, middle, far);
  }
  return limits;
}

}  // namespace assay::bench
