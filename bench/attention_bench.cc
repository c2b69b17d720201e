// Forward attention on the host, against what the linear-algebra libraries make of it and against the machine.
//
//   attention_bench [--shapes quick|full] [any flag of Google Benchmark]
//
// Candidates take turns in random order, and each repetition measures the machine's fp32 multiply-add rate right
// before and after itself: on shared cores that rate drifts by half, so fractions of it are what gets compared.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bench/machine.h"
#include "bench/peers.h"
#include "kernels/attention.h"
#include "problem/generate.h"
#include "problem/parallel.h"

namespace assay::bench {
namespace {

constexpr Index heads = 8;
constexpr double burst_seconds = 0.004;  // of multiply-adds on either side of a repetition
// Dense kernels pull the clock down, by up to a fifth. A burst right after one would see that clock and flatter
// whoever caused it; after this much of plain multiply-adds the clock is back.
constexpr double recovery_seconds = 0.008;
constexpr double tolerance = 1e-4;  // against fp64; a right fp32 kernel stays below 1e-5 here

struct Configuration {
  int threads = 1;
  Index length = 0, dim = 0;
  bool causal = false;

  PlainAttention problem() const { return {heads, length, length, dim, dim, causal, default_scale(dim)}; }
  std::string text() const { return fmt::format("L:{}/D:{}/causal:{:d}/threads:{}", length, dim, causal, threads); }
};

// Inputs and outputs of every configuration of one length and head dimension.
struct Data {
  explicit Data(const Case& c)
      : inputs(c), o(static_cast<std::size_t>(heads * c.shape.rows * c.shape.dim)), lse(static_cast<std::size_t>(heads * c.shape.rows)) {}
  Inputs inputs;
  std::vector<float> o, lse;
  static const float* of(const TensorView& t) { return static_cast<const float*>(t.data) + t.origin; }
};

Data& data_of(const Configuration& c) {
  static std::map<std::pair<Index, Index>, std::unique_ptr<Data>> all;
  auto& data = all[{c.length, c.dim}];
  if (!data) {
    Case problem;
    problem.shape = {1, heads, heads, c.length, c.length, c.dim, c.dim};
    data = std::make_unique<Data>(problem);
  }
  return *data;
}

using Run = std::function<void()>;  // computes the O and the LSE of the configuration's data, once

Run run_ours(const Configuration& c) {
  Data& data = data_of(c);
  Attention problem = data.inputs.problem;
  problem.causal = c.causal;
  auto view = [&](std::vector<float>& x, Index width) {
    const Index head = c.length * width;
    return TensorView{x.data(), Dtype::f32, {1, heads, c.length, width}, {heads * head, head, width, 1}, 0};
  };
  return [problem, out = AttentionOutput{view(data.o, c.dim), view(data.lse, 1)}, threads = c.threads] {
    if (const kernels::Status status = kernels::attention_forward(problem, out, threads); !status.ok())
      throw std::runtime_error(fmt::format("attention_forward: {} ({})", kernels::message_of(status.code), status.detail));
  };
}

template <auto make>
Run run_peer(const Configuration& c) {
  Data& data = data_of(c);
  return [&data, peer = std::shared_ptr<AttentionPeer>(make(c.problem(), c.threads))] {
    const Attention& a = data.inputs.problem;
    peer->run(Data::of(a.q), Data::of(a.k), Data::of(a.v), data.o.data(), data.lse.data());
  };
}

struct Candidate {
  std::string_view name;
  Run (*prepare)(const Configuration&);  // null where it was not built
};

constexpr Candidate candidates[] = {
    {"ours", run_ours},
#ifdef ASSAY_BENCH_OPENBLAS
    {"openblas", run_peer<make_openblas_attention>},
#else
    {"openblas", nullptr},
#endif
#ifdef ASSAY_BENCH_ONEDNN
    {"onednn", run_peer<make_onednn_attention>},
#else
    {"onednn", nullptr},
#endif
};

std::string name_of(const Candidate& candidate, const Configuration& c) { return fmt::format("{}/{}", candidate.name, c.text()); }

double largest_difference(const std::vector<float>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(d <= largest)) largest = std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
  }
  return largest;
}

// Throws if a candidate is wrong on the smallest shapes: the time of a wrong kernel says nothing.
void check_candidates(const std::vector<Configuration>& configurations) {
  Index smallest = std::numeric_limits<Index>::max();
  for (const Configuration& c : configurations) smallest = std::min(smallest, c.length);
  std::map<std::string_view, std::pair<double, double>> worst;
  for (const Configuration& c : configurations) {
    if (c.length != smallest) continue;
    Data& data = data_of(c);
    const Attention& a = data.inputs.problem;
    std::vector<double> o(data.o.size()), lse(data.lse.size());
    eigen_attention(c.problem(), Data::of(a.q), Data::of(a.k), Data::of(a.v), o.data(), lse.data(), c.threads);
    for (const Candidate& candidate : candidates) {
      if (candidate.prepare == nullptr) continue;
      constexpr float nan = std::numeric_limits<float>::quiet_NaN();
      std::fill(data.o.begin(), data.o.end(), nan);
      std::fill(data.lse.begin(), data.lse.end(), nan);
      candidate.prepare(c)();
      const double o_error = largest_difference(data.o, o), lse_error = largest_difference(data.lse, lse);
      if (o_error > tolerance || lse_error > tolerance)
        throw std::runtime_error(
            fmt::format("{} is wrong: off fp64 by {:.2g} in O and {:.2g} in LSE, at most {} allowed", name_of(candidate, c), o_error, lse_error, tolerance));
      auto& [worst_o, worst_lse] = worst[candidate.name];
      worst_o = std::max(worst_o, o_error);
      worst_lse = std::max(worst_lse, lse_error);
    }
  }
  for (const auto& [name, error] : worst)
    fmt::print(stderr, "check at L = {}: {} is off fp64 by at most {:.2g} in O, {:.2g} in LSE\n", smallest, name, error.first, error.second);
}

constexpr const char *rate_counter = "GFLOP/s", *fma_counter = "FMA_GFLOP/s";

void time_candidate(benchmark::State& state, const Configuration& c, const Run& run) {
  try {
    const double before = fma_gflops(c.threads, burst_seconds);
    for (auto _ : state) run();
    fma_gflops(c.threads, recovery_seconds);
    state.counters[fma_counter] = (before + fma_gflops(c.threads, burst_seconds)) / 2;
    state.counters[rate_counter] = benchmark::Counter(c.problem().flops() * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

std::string fma_name(int threads) { return fmt::format("fma-peak/threads:{}", threads); }

void time_fma(benchmark::State& state, int threads) {
  double sum = 0;
  for (auto _ : state) sum += fma_gflops(threads, 0.01);
  state.counters[rate_counter] = benchmark::Counter(sum, benchmark::Counter::kAvgIterations);
}

void register_benchmarks(const std::vector<Configuration>& configurations, const std::vector<int>& thread_counts) {
  for (const int threads : thread_counts)
    benchmark::RegisterBenchmark(fma_name(threads).c_str(), [threads](benchmark::State& state) { time_fma(state, threads); })->UseRealTime();
  for (const Configuration& c : configurations)
    for (const Candidate& candidate : candidates) {
      if (candidate.prepare == nullptr) continue;
      // Prepared at the first repetition and kept, with one run so that no repetition pays for first touches.
      auto timed = [c, &candidate, run = Run()](benchmark::State& state) mutable {
        if (!run) {
          try {
            Run prepared = candidate.prepare(c);
            prepared();
            run = std::move(prepared);
          } catch (const std::exception& e) {
            return state.SkipWithError(e.what());
          }
        }
        time_candidate(state, c, run);
      };
      benchmark::RegisterBenchmark(name_of(candidate, c).c_str(), std::move(timed))->UseRealTime()->Unit(benchmark::kMillisecond);
    }
}

double median(std::vector<double> x) {
  if (x.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(x.begin(), x.end());
  return (x[(x.size() - 1) / 2] + x[x.size() / 2]) / 2;
}

// Collects the repetitions and prints them as one table at the end. Passes everything on to the reporter that
// --benchmark_format asked for, if it did; the table then goes to stderr.
class TableReporter : public benchmark::BenchmarkReporter {
 public:
  TableReporter(std::vector<Configuration> configurations, std::vector<int> thread_counts, std::unique_ptr<BenchmarkReporter> next)
      : configurations_(std::move(configurations)), thread_counts_(std::move(thread_counts)), next_(std::move(next)) {}

  bool ReportContext(const Context& context) override { return !next_ || next_->ReportContext(context); }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      Samples& samples = samples_[run.run_name.function_name];
      if (run.error_occurred) samples.error = run.error_message;
      // Aggregates are asked only where the user's flags left nothing else.
      const bool repetition = run.run_type == Run::RT_Iteration;
      if (run.error_occurred || (!repetition && (run.aggregate_name != "median" || !samples.rate.empty()))) continue;
      const auto rate = run.counters.find(rate_counter), fma = run.counters.find(fma_counter);
      if (rate == run.counters.end()) continue;
      samples.rate.push_back(rate->second);
      if (fma != run.counters.end()) samples.fraction.push_back(rate->second / fma->second);
    }
    if (next_) next_->ReportRuns(runs);
  }

  void Finalize() override {
    if (next_) next_->Finalize();
    std::FILE* const to = next_ ? stderr : stdout;
    fmt::print(to,
               "\nAttention forward, fp32, B = 1, H = {}, ours on {}. Medians; causal counts visible\n"
               "pairs only; ratios are those of the fractions of the multiply-add rate around each repetition.\n",
               heads, kernels::attention_forward_target());
    print_machine(to);
    print_rates(to);
    print_notes(to);
  }

 private:
  struct Samples {
    std::vector<double> rate, fraction;
    std::string error;
  };

  static double fraction(const Samples* s) { return s == nullptr ? std::numeric_limits<double>::quiet_NaN() : median(s->fraction); }

  const Samples* find(const std::string& name) const {
    const auto found = samples_.find(name);
    return found == samples_.end() ? nullptr : &found->second;
  }

  void print_machine(std::FILE* to) const {
    for (const int threads : thread_counts_) {
      fmt::print(to, "{} {}", threads, threads == 1 ? "thread,  " : "threads, ");
      if (const Samples* s = find(fma_name(threads)); s != nullptr && !s->rate.empty()) {
        const auto [low, high] = std::minmax_element(s->rate.begin(), s->rate.end());
        fmt::print(to, "{} multiply-add: {:.0f} GFLOP/s ({:.0f} to {:.0f}); ", measured_with(), median(s->rate), *low, *high);
      }
      auto read = [&](std::size_t kib) { return read_gigabytes_per_second(kib << 10, threads, 0.03); };
      fmt::print(to, "read: {:.0f} GB/s at 16 KiB, {:.0f} at 512 KiB, {:.0f} at 64 MiB a thread\n", read(16), read(512), read(64 << 10));
    }
  }

  void print_rates(std::FILE* to) const {
    fmt::print(to, "\n{:25}", "");
    for (const Candidate& candidate : candidates) fmt::print(to, " | {:^14}", candidate.name);
    fmt::print(to, " |      ours over\n{:>7} {:>5} {:>4} {:<6}", "threads", "L", "D", "mask");
    for (std::size_t i = 0; i < std::size(candidates); ++i) fmt::print(to, " | {:>7} {:>6}", rate_counter, "of FMA");
    fmt::print(to, " |");
    for (const Candidate& candidate : candidates)
      if (&candidate != candidates) fmt::print(to, " {:>9}", candidate.name);
    const Configuration* last = nullptr;
    for (const Configuration& c : configurations_) {
      auto was_run = [&](const Candidate& x) { return find(name_of(x, c)) != nullptr; };
      if (std::none_of(std::begin(candidates), std::end(candidates), was_run)) continue;
      if (last == nullptr || c.threads != last->threads || c.dim != last->dim) fmt::print(to, "\n");
      print_row(to, c);
      last = &c;
    }
  }

  void print_row(std::FILE* to, const Configuration& c) const {
    fmt::print(to, "{:>7} {:>5} {:>4} {:<6}", c.threads, c.length, c.dim, c.causal ? "causal" : "none");
    std::vector<double> fractions;
    for (const Candidate& candidate : candidates) {
      const Samples* s = find(name_of(candidate, c));
      fractions.push_back(fraction(s));
      if (!std::isnan(fractions.back())) fmt::print(to, " | {:>7.1f} {:>6.2f}", median(s->rate), fractions.back());
      else fmt::print(to, " | {:^14}", candidate.prepare == nullptr ? "not built" : s != nullptr && !s->error.empty() ? "failed" : "not run");
    }
    fmt::print(to, " |");
    for (std::size_t i = 1; i < fractions.size(); ++i) {
      const double ratio = fractions[0] / fractions[i];
      fmt::print(to, " {:>9}", std::isnan(ratio) ? "-" : fmt::format("{:.2f}", ratio));
    }
    fmt::print(to, "\n");
  }

  void print_notes(std::FILE* to) const {
    for (const int threads : thread_counts_) {
      const Samples *one = find(fma_name(1)), *all = find(fma_name(threads));
      if (one == nullptr || all == nullptr) continue;
      if (const double cores = median(all->rate) / median(one->rate); cores < 0.8 * threads)
        fmt::print(to, "\nThe machine was busy: {} threads had the multiply-add rate of {:.1f} cores.", threads, cores);
    }
    for (const Candidate& peer : candidates) {
      if (&peer == candidates) continue;
      double logs = 0, least = std::numeric_limits<double>::infinity();
      int count = 0;
      for (const Configuration& c : configurations_) {
        const double ratio = fraction(find(name_of(candidates[0], c))) / fraction(find(name_of(peer, c)));
        if (std::isnan(ratio)) continue;
        logs += std::log(ratio), least = std::min(least, ratio), ++count;
      }
      if (count > 0) fmt::print(to, "\nOurs over {}: {:.2f} in the geometric mean, {:.2f} at the least.", peer.name, std::exp(logs / count), least);
    }
    std::vector<double> spreads;
    for (const auto& [name, s] : samples_)
      if (s.fraction.size() > 1) {
        const auto [low, high] = std::minmax_element(s.fraction.begin(), s.fraction.end());
        spreads.push_back((*high - *low) / median(s.fraction));
      }
    if (!spreads.empty())
      fmt::print(to, "\nSpread of a fraction between its repetitions: {:.0f}% in the median cell, {:.0f}% in the worst.", 100 * median(spreads),
                 100 * *std::max_element(spreads.begin(), spreads.end()));
    fmt::print(to, "\n");
    for (const auto& [name, s] : samples_)
      if (!s.error.empty()) fmt::print(to, "{} failed: {}\n", name, s.error);
  }

  std::vector<Configuration> configurations_;
  std::vector<int> thread_counts_;
  std::unique_ptr<BenchmarkReporter> next_;
  std::map<std::string, Samples> samples_;
};

void print_help() {
  fmt::print(
      "attention_bench [--shapes quick|full]  (quick, the default: L = 512 and 2048; full: 1024 and 4096 too)\n"
      "and the flags of Google Benchmark, of which five repetitions, random interleaving and a short\n"
      "--benchmark_min_time are set unless given:\n\n");
  benchmark::PrintDefaultHelp();
}

int bench_main(int argc, char** argv) {
  std::vector<std::string> defaults{"--benchmark_repetitions=5", "--benchmark_enable_random_interleaving=true", "--benchmark_min_time=0.15"};
  std::vector<char*> arguments{argv[0]};
  for (std::string& flag : defaults) arguments.push_back(flag.data());  // the user's come later and win
  std::string shapes = "quick";
  bool own_format = false, list_only = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--shapes" && i + 1 < argc) {
      shapes = argv[++i];
    } else if (flag.starts_with("--shapes=")) {
      shapes = flag.substr(9);
    } else {
      own_format |= flag.starts_with("--benchmark_format");
      list_only |= flag.starts_with("--benchmark_list_tests") && !flag.ends_with("=false");
      arguments.push_back(argv[i]);
    }
  }
  if (shapes != "quick" && shapes != "full") {
    fmt::print(stderr, "--shapes is quick or full, not {}\n", shapes);
    return 2;
  }

  std::vector<int> thread_counts{1};
  if (hardware_threads() >= 2) thread_counts.push_back(2);
  std::vector<Configuration> configurations;
  for (const int threads : thread_counts)
    for (const Index dim : {64, 128})
      for (const Index length : shapes == "quick" ? std::vector<Index>{512, 2048} : std::vector<Index>{512, 1024, 2048, 4096})
        for (const bool causal : {false, true}) configurations.push_back({threads, length, dim, causal});

  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data(), print_help);
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;
  if (!list_only) check_candidates(configurations);
  register_benchmarks(configurations, thread_counts);
  TableReporter reporter(configurations, thread_counts,
                         std::unique_ptr<benchmark::BenchmarkReporter>(own_format ? benchmark::CreateDefaultDisplayReporter() : nullptr));
  benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace assay::bench

int main(int argc, char** argv) {
  try {
    return assay::bench::bench_main(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "attention_bench: {}\n", e.what());
    return 1;
  }
}
