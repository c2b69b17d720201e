// What a certified verdict costs: oracle, bound and comparison of every element, against the plain fp64 attention
// that a careful tester would write with Eigen, and Arb at 128 bits beside both. All candidates take turns in
// every round, so a busy machine slows them alike; ratios are medians over the rounds.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "bench/peers.h"
#include "harness/candidate.h"
#include "harness/run.h"
#include "oracle/backward_verdict.h"
#include "oracle/ball.h"
#include "oracle/verdict.h"
#include "problem/generate.h"

namespace assay::bench {
namespace {

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

struct Problem {
  explicit Problem(const char* line)
      : c(parse_case(line)), in(c), out(c), gradients(c, in), plain{c.shape.query_heads, c.shape.rows, c.shape.keys,    c.shape.dim,
                                                                    c.shape.value_dim,   c.causal,     in.problem.scale} {
    const auto host = make_candidate("host");
    contract = *host->contract(in.problem);
    expect(host->run(in.problem, out.view(), 0).ok());
    if (c.operation == Operation::backward) expect(host->run_backward(in.problem, backward_input(), gradients.view(), 0).ok());
  }
  static void expect(bool passed) {
    if (passed) return;
    fmt::print(stderr, "oracle_bench: the kernel did not pass\n");
    std::exit(1);
  }
  AttentionBackwardInput backward_input() const { return {out.o.view(), out.lse.view(), in.d_o.view()}; }
  std::size_t count(Index width) const { return static_cast<std::size_t>(c.shape.query_heads * c.shape.rows * width); }
  static const float* floats(const Tensor& t) { return reinterpret_cast<const float*>(t.bytes()); }

  Case c;
  Inputs in;
  Outputs out;
  GradientOutputs gradients;
  PlainAttention plain;
  Contract contract;
};

JudgeOptions options_of(int threads, bool power) {
  JudgeOptions options;
  options.threads = threads;
  options.power = power;
  return options;
}

// Medians of the ratios to `base`, which took its turn in the same round.
double ratio(const std::vector<double>& x, const std::vector<double>& base) {
  std::vector<double> ratios;
  for (std::size_t r = 0; r < x.size(); ++r) ratios.push_back(x[r] / base[r]);
  return median(ratios);
}

void measure_forward(const char* line, int rounds, int threads) {
  const Problem p(line);
  const AttentionShape& s = p.c.shape;
  Contract any_order = p.contract;
  any_order.ordered = false;
  std::vector<double> o(p.count(s.value_dim)), lse(p.count(1));
  auto verdict = [&](const Contract& contract, bool power) {
    Problem::expect(judge(p.in.problem, p.out.view(), contract, options_of(threads, power)).outcome == Outcome::pass);
  };
  std::vector<double> eigen, full, no_power, free_order, balls;
  for (int r = 0; r < rounds; ++r) {
    eigen.push_back(seconds_of(
        [&] { eigen_attention(p.plain, Problem::floats(p.in.q), Problem::floats(p.in.k), Problem::floats(p.in.v), o.data(), lse.data(), threads); }));
    full.push_back(seconds_of([&] { verdict(p.contract, true); }));
    no_power.push_back(seconds_of([&] { verdict(p.contract, false); }));
    free_order.push_back(seconds_of([&] { verdict(any_order, false); }));
    // One row of Arb, times the rows there are, on one thread.
    balls.push_back(seconds_of([&] { BallRow(p.in.problem, 0, 0, s.rows - 1, 128); }) * static_cast<double>(p.count(1)) / threads);
  }
  fmt::print("{:<52} {:>2} {:>10.2f} {:>9.1f} {:>12.1f} {:>11.1f} {:>9.0f}\n", line + std::strlen("attention "), threads, median(eigen) * 1e3,
             ratio(full, eigen), ratio(no_power, eigen), ratio(free_order, eigen), ratio(balls, eigen));
}

void measure_backward(const char* line, int rounds, int threads) {
  const Problem p(line);
  const AttentionShape& s = p.c.shape;
  std::vector<double> o(p.count(s.value_dim)), lse(p.count(1)), dq(p.count(s.dim)), dk(p.count(s.dim)), dv(p.count(s.value_dim));
  const float *const q = Problem::floats(p.in.q), *const k = Problem::floats(p.in.k), *const v = Problem::floats(p.in.v);
  auto verdict = [&](bool power) {
    Problem::expect(judge_backward(p.in.problem, p.backward_input(), p.gradients.view(), p.contract, options_of(threads, power)).outcome == Outcome::pass);
  };
  std::vector<double> eigen, full, no_power;
  for (int r = 0; r < rounds; ++r) {
    eigen.push_back(seconds_of([&] {
      eigen_attention(p.plain, q, k, v, o.data(), lse.data(), threads);
      eigen_backward(p.plain, q, k, v, o.data(), lse.data(), Problem::floats(p.in.d_o), dq.data(), dk.data(), dv.data(), threads);
    }));
    full.push_back(seconds_of([&] { verdict(true); }));
    no_power.push_back(seconds_of([&] { verdict(false); }));
  }
  fmt::print("{:<52} {:>2} {:>10.2f} {:>9.1f} {:>12.1f}\n", line, threads, median(eigen) * 1e3, ratio(full, eigen), ratio(no_power, eigen));
}

}  // namespace
}  // namespace assay::bench

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  if (argc > 2 || rounds < 1) {
    fmt::print(stderr, "usage: oracle_bench [ROUNDS]   (at least 1; 7 by default)\n");
    return 2;
  }
  fmt::print("Ratios to plain fp64 attention with Eigen, medians of {} interleaved rounds; the goal of each verdict is 5.\n", rounds);
  fmt::print("{:<52} {:>2} {:>10} {:>9} {:>12} {:>11} {:>9}\n", "case", "t", "Eigen, ms", "verdict", "no power", "any order", "Arb 128");
  for (int threads : {1, 2})
    for (const char* line :
         {"attention b=1 h=8 l=512 d=64", "attention b=1 h=8 l=512 d=64 causal", "attention b=1 h=8 l=512 d=128", "attention b=1 h=2 l=2048 d=64"})
      assay::bench::measure_forward(line, rounds, threads);
  for (int threads : {1, 2})
    for (const char* line :
         {"backward b=1 h=8 l=512 d=64", "backward b=1 h=8 l=512 d=64 causal", "backward b=1 h=8 l=512 d=128", "backward b=1 h=2 l=2048 d=64"})
      assay::bench::measure_backward(line, rounds, threads);
  fmt::print(
      "verdict: ordered bound, comparison and power certificate; no power: without the certificate; any order: the bound\n"
      "that needs no declared order, without the certificate. Arb: one row, extrapolated to all. backward: gradients alone,\n"
      "against forward and backward of Eigen.\n");
}
