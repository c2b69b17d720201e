// What benchmarks measured: the document that a benchmark program writes for each mode, and the run
// of `assay bench --json` that gathers them. docs/commands/bench.md shows one.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/results/machine.h"

namespace assay {

// How many times the speed of another benchmark, with an interval of this coverage.
struct BenchRatio {
  std::string over;  // the name of the other one
  double ratio = 0, low = 0, high = 0, coverage = 0;
};

// One benchmark. One that failed has a name and a reason alone.
struct Measurement {
  std::string name;
  std::optional<std::string> failed;
  std::optional<double> seconds, low, high, coverage;  // a median with an interval
  std::optional<std::size_t> repetitions;
  std::map<std::string, double> rates;  // "GFLOP/s", "GB/s"
  // Of the machine's limit, which was measured in the same repetitions.
  std::optional<double> fraction, fraction_low, fraction_high, limit;
  std::optional<std::string> limited_by;  // the rate that the limit is one of
  std::vector<BenchRatio> ratios;
};

// The machine's limits on a number of threads.
struct MachineLimits {
  int threads = 1;
  std::map<std::string, double> fma_gflops;      // by dtype
  std::map<std::string, double> read_gigabytes;  // a second, by size
};

struct BenchMode {
  std::string mode;
  std::vector<MachineLimits> limits;
  std::string limits_with;  // the instructions that measured them
  std::vector<Measurement> measured;
};

struct BenchRun {
  Machine machine;
  std::vector<BenchMode> modes;
};

template <class Fields, Described<BenchRatio> Value>
void describe_fields(Fields& fields, Value& r) {
  fields("over", r.over);
  fields("ratio", r.ratio);
  fields("low", r.low);
  fields("high", r.high);
  fields("coverage", r.coverage);
}

inline constexpr const char* bench_rates[] = {"GFLOP/s", "GB/s"};

template <class Fields, Described<Measurement> Value>
void describe_fields(Fields& fields, Value& m) {
  fields("name", m.name);
  fields.optional("failed", m.failed);
  fields.optional("seconds", m.seconds);
  fields.optional("low", m.low);
  fields.optional("high", m.high);
  fields.optional("coverage", m.coverage);
  fields.optional("repetitions", m.repetitions);
  for (const char* rate : bench_rates) {
    std::optional<double> of_this;
    if (const auto found = m.rates.find(rate); found != m.rates.end()) of_this = found->second;
    fields.optional(rate, of_this);
    if constexpr (Fields::reads)
      if (of_this) m.rates[rate] = *of_this;
  }
  fields.optional("fraction", m.fraction);
  fields.optional("fraction_low", m.fraction_low);
  fields.optional("fraction_high", m.fraction_high);
  fields.optional("limit", m.limit);
  fields.optional("limited_by", m.limited_by);
  if (!m.failed) fields("ratios", m.ratios);
}

template <class Fields, Described<MachineLimits> Value>
void describe_fields(Fields& fields, Value& l) {
  fields("threads", l.threads);
  fields.unless("fma GFLOP/s", l.fma_gflops, {});
  fields.unless("read GB/s", l.read_gigabytes, {});
}

template <class Fields, Described<BenchMode> Value>
void describe_fields(Fields& fields, Value& m) {
  fields.constant("format", 1);
  fields("mode", m.mode);
  fields("limits", m.limits);
  fields("limits with", m.limits_with);
  fields("measured", m.measured);
}

template <class Fields, Described<BenchRun> Value>
void describe_fields(Fields& fields, Value& r) {
  fields.constant("format", 1);
  fields("machine", r.machine);
  fields("modes", r.modes);
}

}  // namespace assay
