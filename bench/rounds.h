// Candidates that take turns, by Google Benchmark: repetitions in random order, and right before and after each of them
// the machine's own rate. On shared cores that rate drifts by half, so fractions of it are what gets compared.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/intervals.h"

namespace assay::bench {

using Run = std::function<void()>;

// One candidate on one problem.
struct Entry {
  std::string name;              // of the benchmark, unique among those that take turns
  std::function<Run()> prepare;  // null where the candidate was not built. What it throws makes the entry a failure
  double flops = 0, bytes = 0;   // of one run, as far as they are counted: operations, and what it has to read and write at least
  enum class Limit { none, flops, bytes } limited_by = Limit::none;
  // The machine's rate of that over about so many seconds, in GFLOP/s or GB/s (1e9).
  std::function<double(double seconds)> limit;
};

// Of the repetitions of an entry; NaN where there are none, and `missing` says why.
struct Measured {
  static constexpr double none = Interval::none;
  double seconds = none;   // of a run; medians, as all that follows
  double rate = none;      // of what limits it
  double fraction = none;  // of the limit around each repetition
  double spread = none;    // of that fraction: largest less smallest, over the median
  std::string missing = "not run";
  // What is compared, of each repetition: the fraction of the multiply-add rate where that is the limit, since it drifts with the machine; else 1 / seconds:
  // reads drift less, and candidates read different numbers of bytes from different levels of the caches.
  std::vector<double> speeds;
};

double median(std::vector<double> x);  // NaN of none

class Rounds {
 public:
  // Google Benchmark's flags behind the program's name. Six repetitions, random interleaving and a short minimum time,
  // unless they say otherwise. Throws std::invalid_argument; for --help, prints `help` and exits.
  Rounds(const std::vector<std::string>& arguments, void (*help)());
  ~Rounds();
  Rounds(const Rounds&) = delete;
  Rounds& operator=(const Rounds&) = delete;

  // All that belongs into one comparison takes turns; what was prepared is gone when this returns.
  std::vector<Measured> run(const std::vector<Entry>& entries);
  // That `name` runs so many times the speed of `over`; for report(), after both were run.
  void add_ratio(const std::string& name, const std::string& over, const Interval& ratio);

  // Everything measured so far: a list of {"name", "seconds", "low", "high", "coverage", "repetitions", "GFLOP/s", "GB/s", "fraction", ..., "ratios"}, as
  // far as there is something; {"name", "failed"} where a candidate failed.
  const nlohmann::json& report() const { return report_; }

  // Where tables go: standard output, unless --benchmark_format has claimed that; nowhere if benchmarks are listed only.
  std::FILE* tables() const { return tables_; }
  bool lists_only() const { return lists_only_; }

 private:
  class Reporter;
  std::vector<std::string> arguments_;
  bool lists_only_ = false;
  std::FILE* tables_ = nullptr;
  nlohmann::json report_ = nlohmann::json::array();
  std::unique_ptr<Reporter> reporter_;
};

}  // namespace assay::bench
