#include "bench/rounds.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <regex>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace assay::bench {
namespace {

// of measuring the machine's limit, before and after each repetition
constexpr double burst_seconds = 0.004;
// Dense kernels make the clock slower, by up to a fifth. A burst right after such a kernel would
// measure the slower clock, and the fraction of that kernel would look too good. After this much
// plain work the clock is back to normal.
constexpr double recovery_seconds = 0.008;

constexpr const char *flops_rate = "GFLOP/s", *bytes_rate = "GB/s";
const char* limited_rate(const Entry& e) {
  return e.limited_by == Entry::Limit::bytes ? bytes_rate : flops_rate;
}
std::string limit_counter(const Entry& e) { return fmt::format("limit_{}", limited_rate(e)); }

void time_entry(benchmark::State& state, const Entry& e, Run& run) {
  try {
    // The candidate is prepared at the first repetition and kept. It runs once before, so that no
    // repetition pays for first touches of memory.
    if (!run) {
      Run prepared = e.prepare();
      prepared();
      run = std::move(prepared);
    }
    const double before = e.limit ? e.limit(burst_seconds) : 0;
    for (auto _ : state) run();
    for (const auto& [rate, work] : {std::pair(flops_rate, e.flops), {bytes_rate, e.bytes}})
      if (work > 0)
        state.counters[rate] =
            benchmark::Counter(work * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
    if (!e.limit) return;
    e.limit(recovery_seconds);
    state.counters[limit_counter(e)] = (before + e.limit(burst_seconds)) / 2;
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

// Google Benchmark complains of every group that a filter leaves empty.
bool is_asked_for(const std::string& name) {
  std::string filter = benchmark::GetBenchmarkFilter();
  if (filter.empty() || filter == "all") return true;
  const bool negative = filter.starts_with('-');
  return std::regex_search(name + "/real_time",
                           std::regex(filter.substr(negative), std::regex::extended)) != negative;
}

}  // namespace

double median(std::vector<double> x) {
  if (x.empty()) return Measured::none;
  std::sort(x.begin(), x.end());
  return (x[(x.size() - 1) / 2] + x[x.size() / 2]) / 2;
}

namespace {

// Why a run failed; empty if it did not. Google Benchmark 1.8 has other names for it than 1.7.
template <class Run>
std::string failure_of(const Run& run) {
  if constexpr (requires { run.skip_message; })
    return static_cast<bool>(run.skipped) ? run.skip_message : "";
  else return run.error_occurred ? run.error_message : "";
}

}  // namespace

// Collects the repetitions of one group. It passes everything on to the reporter that
// --benchmark_format asked for, as if all groups were one.
class Rounds::Reporter : public benchmark::BenchmarkReporter {
 public:
  explicit Reporter(benchmark::BenchmarkReporter* next) : next_(next) {}
  ~Reporter() override {
    if (next_ && started_) next_->Finalize();
  }

  bool ReportContext(const Context& context) override {
    if (std::exchange(started_, true)) return true;
    return !next_ || next_->ReportContext(context);
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      Samples& samples = samples_[run.run_name.function_name];
      if (std::string failure = failure_of(run); !failure.empty()) {
        samples.error = std::move(failure);
        fmt::print(stderr, "{} failed: {}\n", run.run_name.function_name, samples.error);
        continue;
      }
      // Aggregates are used only where the user's flags left nothing else.
      const bool repetition = run.run_type == Run::RT_Iteration;
      if (!repetition && (run.aggregate_name != "median" || !samples.seconds.empty())) continue;
      samples.seconds.push_back(run.GetAdjustedRealTime() /
                                benchmark::GetTimeUnitMultiplier(run.time_unit));
      for (const auto& [name, counter] : run.counters) samples.counters[name].push_back(counter);
    }
    if (next_) next_->ReportRuns(runs);
  }

  void Finalize() override {}
  void clear() { samples_.clear(); }

  Measured measured(const Entry& e) const {
    Measured m;
    const auto found = samples_.find(e.name);
    if (!e.prepare) m.missing = "not built";
    if (found == samples_.end()) return m;
    const Samples& s = found->second;
    m.missing = s.error.empty() ? "" : "failed";
    m.seconds = median(s.seconds);
    if (const auto rate = s.counters.find(limited_rate(e)); rate != s.counters.end())
      m.rate = median(rate->second);
    for (const double seconds : s.seconds) m.speeds.push_back(1 / seconds);
    const std::vector<double> fractions = fractions_of(e, s);
    if (fractions.empty()) return m;
    if (e.limited_by == Entry::Limit::flops) m.speeds = fractions;
    m.fraction = median(fractions);
    if (fractions.size() < 2) return m;
    const auto [low, high] = std::minmax_element(fractions.begin(), fractions.end());
    m.spread = (*high - *low) / m.fraction;
    return m;
  }

  Measurement described(const Entry& e, const Measured& m) const {
    const Samples& s = samples_.at(e.name);
    Measurement d;
    d.name = e.name;
    if (!s.error.empty()) {
      d.failed = s.error;
      return d;
    }
    const Interval seconds = median_interval(s.seconds);
    d.seconds = seconds.estimate;
    d.low = seconds.low;
    d.high = seconds.high;
    d.coverage = seconds.coverage;
    d.repetitions = s.seconds.size();
    for (const char* rate : {flops_rate, bytes_rate})
      if (const auto found = s.counters.find(rate); found != s.counters.end())
        d.rates[rate] = median(found->second);
    if (std::isnan(m.fraction)) return d;
    const Interval fraction = median_interval(fractions_of(e, s));
    d.fraction = fraction.estimate;
    d.fraction_low = fraction.low;
    d.fraction_high = fraction.high;
    d.limited_by = limited_rate(e);
    d.limit = median(s.counters.at(limit_counter(e)));
    return d;
  }

 private:
  struct Samples {
    std::vector<double> seconds;
    std::map<std::string, std::vector<double>> counters;
    std::string error;
  };
  // One number for each repetition; none if there is no limit.
  static std::vector<double> fractions_of(const Entry& e, const Samples& s) {
    const auto limit = s.counters.find(limit_counter(e));
    if (limit == s.counters.end()) return {};
    std::vector<double> fractions = s.counters.at(limited_rate(e));
    for (std::size_t i = 0; i < fractions.size(); ++i) fractions[i] /= limit->second[i];
    return fractions;
  }

  std::unique_ptr<benchmark::BenchmarkReporter> next_;
  bool started_ = false;
  std::map<std::string, Samples> samples_;
};

Rounds::Rounds(const std::vector<std::string>& arguments, void (*help)()) : arguments_(arguments) {
  bool own_format = false;
  for (const std::string_view flag : arguments) {
    if (flag.starts_with("--benchmark_out"))
      throw std::invalid_argument("--benchmark_out: use --benchmark_format and a redirection");
    own_format |= flag.starts_with("--benchmark_format");
    lists_only_ |= flag.starts_with("--benchmark_list_tests") && !flag.ends_with("=false");
  }
  // The user's flags come later, so they win.
  const auto defaults = {"--benchmark_repetitions=6", "--benchmark_enable_random_interleaving=true",
                         "--benchmark_min_time=0.15"};
  arguments_.insert(arguments_.begin() + 1, defaults.begin(), defaults.end());
  std::vector<char*> pointers;
  for (std::string& flag : arguments_) pointers.push_back(flag.data());
  int count = static_cast<int>(pointers.size());
  pointers.push_back(nullptr);
  benchmark::Initialize(&count, pointers.data(), help);
  if (count > 1) throw std::invalid_argument(fmt::format("unknown argument {}", pointers[1]));
  tables_ = lists_only_ ? std::fopen("/dev/null", "w") : own_format ? stderr : stdout;
  reporter_ =
      std::make_unique<Reporter>(own_format ? benchmark::CreateDefaultDisplayReporter() : nullptr);
}

Rounds::~Rounds() {
  reporter_.reset();
  benchmark::Shutdown();
  if (lists_only_ && tables_) std::fclose(tables_);
}

std::vector<Measured> Rounds::run(const std::vector<Entry>& entries) {
  reporter_->clear();
  bool some = false;
  for (const Entry& e : entries) {
    if (!e.prepare || !is_asked_for(e.name)) continue;
    benchmark::RegisterBenchmark(e.name.c_str(), [&e,
                                                  run = Run()](benchmark::State& state) mutable {
      time_entry(state, e, run);
    })->UseRealTime();
    some = true;
  }
  if (some) benchmark::RunSpecifiedBenchmarks(reporter_.get());
  benchmark::ClearRegisteredBenchmarks();
  std::fflush(stdout);
  std::vector<Measured> measured;
  for (const Entry& e : entries) {
    measured.push_back(reporter_->measured(e));
    if (!std::isnan(measured.back().seconds) || measured.back().missing == "failed")
      report_.push_back(reporter_->described(e, measured.back()));
  }
  return measured;
}

void Rounds::add_ratio(const std::string& name, const std::string& over, const Interval& ratio) {
  const auto found = std::ranges::find(report_.rbegin(), report_.rend(), name, &Measurement::name);
  found->ratios.push_back({over, ratio.estimate, ratio.low, ratio.high, ratio.coverage});
}

}  // namespace assay::bench
