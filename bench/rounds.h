// Candidates that take turns, by Google Benchmark: repetitions in random order, and right before and after each of them
// the machine's own rate. On shared cores that rate drifts by half, so fractions of it are what gets compared.
#pragma once

#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace assay::bench {

using Run = std::function<void()>;

// One candidate on one problem.
struct Entry {
  std::string name;              // of the benchmark, unique among those that take turns
  std::function<Run()> prepare;  // null where the candidate was not built. What it throws makes the entry a failure
  double work = 0;               // of one run
  const char* unit = "";         // of 1e9 of that work a second: GFLOP/s, GB/s
  // The machine's rate of such work over about so many seconds, in that unit; null: nothing to compare with.
  std::function<double(double seconds)> limit;
};

// Medians over the repetitions of an entry; NaN where there are none, and `missing` says why.
struct Measured {
  static constexpr double none = std::numeric_limits<double>::quiet_NaN();
  double seconds = none;   // of a run
  double rate = none;      // in the entry's unit
  double fraction = none;  // of the limit around each repetition
  double spread = none;    // of that fraction: largest less smallest, over the median
  std::string missing = "not run";
};

double median(std::vector<double> x);  // NaN of none

class Rounds {
 public:
  // Google Benchmark's flags behind the program's name. Five repetitions, random interleaving and a short minimum time,
  // unless they say otherwise. Throws std::invalid_argument; for --help, prints `help` and exits.
  Rounds(const std::vector<std::string>& arguments, void (*help)());
  ~Rounds();
  Rounds(const Rounds&) = delete;
  Rounds& operator=(const Rounds&) = delete;

  // All that belongs into one comparison takes turns; what was prepared is gone when this returns.
  std::vector<Measured> run(const std::vector<Entry>& entries);

  // Where tables go: standard output, unless --benchmark_format has claimed that; nowhere if benchmarks are listed only.
  std::FILE* tables() const { return tables_; }
  bool lists_only() const { return lists_only_; }

 private:
  class Reporter;
  std::vector<std::string> arguments_;
  bool lists_only_ = false;
  std::FILE* tables_ = nullptr;
  std::unique_ptr<Reporter> reporter_;
};

}  // namespace assay::bench
