// Runs candidates in turns, with Google Benchmark: repetitions come in random order, and the
// machine's own rate is measured right before and after each of them. On shared cores that rate
// drifts by half, so fractions of it are compared.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/intervals.h"
#include "harness/results/bench_run.h"

namespace assay::bench {

using Run = std::function<void()>;

// One candidate on one problem.
struct Entry {
  std::string name;  // of the benchmark; unique among the candidates that take turns
  // null if the candidate was not built; an exception from it makes the entry a failure
  std::function<Run()> prepare;
  // of one run, where they are counted: operations, and the bytes that it has to read and write at
  // least
  double flops = 0, bytes = 0;
  enum class Limit { none, flops, bytes } limited_by = Limit::none;
  // Returns the machine's rate of this work over about so many seconds, in GFLOP/s or GB/s (1e9).
  std::function<double(double seconds)> limit;
};

// The numbers of an entry over its repetitions. They are NaN if there are none, and `missing` says
// why.
struct Measured {
  static constexpr double none = Interval::none;
  double seconds = none;   // of a run; all numbers here are medians
  double rate = none;      // of the work that is limited
  double fraction = none;  // of the limit around each repetition
  double spread = none;    // of that fraction: (largest - smallest) / median
  std::string missing = "not run";
  // The number that is compared, for each repetition. It is the fraction of the multiply-add rate
  // where that is the limit, because that rate drifts with the machine. Otherwise it is 1 /
  // seconds: reads drift less, and candidates read different numbers of bytes from different levels
  // of the caches.
  std::vector<double> speeds;
};

double median(std::vector<double> x);  // NaN if x is empty

class Rounds {
 public:
  // Takes the flags of Google Benchmark that follow the program's name. Unless they say otherwise,
  // there are six repetitions, in random order, with a short minimum time. Throws
  // std::invalid_argument; for --help, prints `help` and exits.
  Rounds(const std::vector<std::string>& arguments, void (*help)());
  ~Rounds();
  Rounds(const Rounds&) = delete;
  Rounds& operator=(const Rounds&) = delete;

  // Runs everything that belongs to one comparison in turns. What was prepared is destroyed when
  // this returns.
  std::vector<Measured> run(const std::vector<Entry>& entries);
  // Notes for report() that `name` runs so many times the speed of `over`. Call it after both were
  // run.
  void add_ratio(const std::string& name, const std::string& over, const Interval& ratio);

  // Returns everything that was measured so far.
  const std::vector<Measurement>& report() const { return report_; }

  // Where tables are printed: standard output, unless --benchmark_format uses it; nowhere if
  // benchmarks are only listed.
  std::FILE* tables() const { return tables_; }
  bool lists_only() const { return lists_only_; }

 private:
  class Reporter;
  std::vector<std::string> arguments_;
  bool lists_only_ = false;
  std::FILE* tables_ = nullptr;
  std::vector<Measurement> report_;
  std::unique_ptr<Reporter> reporter_;
};

}  // namespace assay::bench
