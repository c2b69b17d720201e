// Measures what a process pays once, and what calls leave behind.
#include <fmt/format.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <fstream>

#include "bench/data.h"
#include "bench/modes.h"
#include "bench/own_process.h"
#include "kernels/dispatch/dispatch.h"
#include "problem/clock.h"

namespace assay::bench {
namespace {

double seconds_of(const Run& run) {
  const auto start = Clock::now();
  run();
  return seconds_since(start);
}

struct FirstCall {
  double first = 0, warmed = 0, later = 0;  // in seconds; warmed: after the dispatcher's warm_up
};

FirstCall first_call(const AttentionShape& shape, Dtype dtype, bool warm_up, int threads) {
  const Data data(shape, dtype, true, false, 1);
  kernels::DispatchSettings settings;
  settings.min_query_length = 0;
  kernels::Dispatcher dispatcher(kernels::host_backend(), settings);
  const Run call = [&] {
    expect_success("sdpa", dispatcher.sdpa(data.problem, data.out(),
                                           {kernels::Implementation::automatic, "host", threads}));
  };
  if (warm_up) expect_success("warm_up", dispatcher.warm_up({&data.problem, 1}, threads));
  FirstCall result;
  (warm_up ? result.warmed : result.first) = seconds_of(call);
  std::vector<double> later;
  for (int k = 0; k < 50; ++k) later.push_back(seconds_of(call));
  result.later = median(later);
  return result;
}

void print_first_calls(std::FILE* to, int threads) {
  constexpr int processes = 9;
  fmt::print(to,
             "\nThe first call of sdpa in a process, causal, on up to {} threads. Medians of {} "
             "processes with warm_up and as many\nwithout, which take turns.\n\n",
             threads, processes);
  fmt::print(
      to, "dtype    H     L    D   first, ms   after warm_up   later calls   first over later\n");
  for (const AttentionShape& shape :
       {AttentionShape{1, 1, 1, 64, 64, 16, 16}, AttentionShape{1, 1, 1, 512, 512, 64, 64},
        AttentionShape{1, 8, 8, 2048, 2048, 64, 64}})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      std::vector<double> first, warmed, later;
      for (int k = 0; k < processes; ++k) {
        const auto of_new_process = [&](bool warm_up) {
          return in_own_process("first call",
                                [&] { return first_call(shape, dtype, warm_up, threads); });
        };
        const FirstCall cold = of_new_process(false), warm = of_new_process(true);
        first.push_back(cold.first), warmed.push_back(warm.warmed), later.push_back(cold.later);
      }
      fmt::print(to, "{:<5} {:>4} {:>5} {:>4} {:>11.3f} {:>15.3f} {:>13.3f} {:>18.2f}\n",
                 format(dtype).name, shape.query_heads, shape.rows, shape.dim, median(first) * 1e3,
                 median(warmed) * 1e3, median(later) * 1e3, median(first) / median(later));
    }
}

// Memory of this process. The system's kernel counts it in batches of up to 64 pages for each
// thread.
double resident_mib() {
  std::ifstream file("/proc/self/statm");
  long total = 0, resident = 0;
  if (!(file >> total >> resident)) throw std::runtime_error("/proc/self/statm cannot be read");
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1048576;
}

// Prints one line: the memory after each of some calls of growing length.
void print_excess(std::FILE* to, const char* what, Index calls, Index step,
                  const std::function<void(Index length)>& call) {
  // the pool has started, and memory that is allocated once is there
  for (int k = 0; k < 8; ++k) call(step);
  const double baseline = resident_mib();
  double largest = 0, last = 0;
  Index at = 0, beyond = 0;
  for (Index k = 1; k <= calls; ++k) {
    call(k * step);
    last = resident_mib() - baseline;
    beyond += last > 1;
    if (last > largest) largest = last, at = k * step;
  }
#ifdef __GLIBC__
  malloc_trim(0);  // separates a leak from memory that the C library keeps for the next call
#endif
  fmt::print(to, "{:<21} {:>13.1f} {:>13.2f} {:>7} {:>18} {:>17.2f} {:>18.2f}\n", what, baseline,
             largest, at, beyond, last, resident_mib() - baseline);
  std::fflush(to);
}

void print_memory(std::FILE* to, int threads) {
  constexpr Index calls = 1000, step = 2;
  const Data data({1, 2, 2, calls * step, calls * step, 64, 64}, Dtype::f32, true, true);
  Attention problem = data.problem;
  const auto forward = [&](Index length, const auto& cut) {
    problem.shape.rows = problem.shape.keys = length;
    problem.q = cut(data.q), problem.k = cut(data.k), problem.v = cut(data.v);
    expect_success("attention_forward",
                   kernels::attention_forward(problem, {cut(data.o), cut(data.lse)}, threads));
  };
  const auto cut_to = [](Index length) {
    return [length](const Tensor& whole) {
      TensorView t = whole.view();
      t.shape[2] = length;
      return t;
    };
  };
  fmt::print(to,
             "\nResident memory over {} calls, L = {} to {}, H = 2, D = 64, fp32, causal, on up to "
             "{} threads. The baseline includes the\n"
             "tensors; the other columns are MiB above it, right after a call.\n\n"
             "{:<21} {:>13} {:>13} {:>7} {:>18} {:>17} {:>18}\n",
             calls, step, calls * step, threads, "", "baseline, MiB", "largest", "at L",
             "calls above 1 MiB", "after the last", "and malloc_trim");
  print_excess(to, "forward", calls, step, [&](Index length) { forward(length, cut_to(length)); });
  print_excess(to, "forward and backward", calls, step, [&](Index length) {
    const auto cut = cut_to(length);
    forward(length, cut);
    expect_success(
        "attention_backward",
        kernels::attention_backward(problem, {cut(data.o), cut(data.lse), cut(data.d_o)},
                                    {cut(data.dq), cut(data.dk), cut(data.dv), {}, {}}, threads));
  });
}

}  // namespace

void steady_mode(Rounds& rounds, const Settings& settings) {
  if (rounds.lists_only()) return;
  const int threads = settings.threads.back();
  print_first_calls(rounds.tables(), threads);
  print_memory(rounds.tables(), threads);
}

}  // namespace assay::bench
