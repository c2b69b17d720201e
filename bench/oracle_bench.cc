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

void measure(const char* line, int rounds, int threads) {
  const Case c = parse_case(line);
  const Inputs in(c);
  const Outputs out(c);
  const auto host = make_candidate("host");
  if (!host->run(in.problem, out.view(), 0).ok()) std::exit(1);
  const Contract ordered = *host->contract(in.problem);
  Contract any_order = ordered;
  any_order.ordered = false;

  const AttentionShape& s = c.shape;
  const PlainAttention plain{s.query_heads, s.rows, s.keys, s.dim, s.value_dim, c.causal, in.problem.scale};
  std::vector<double> o(static_cast<std::size_t>(s.query_heads * s.rows * s.value_dim)), lse(static_cast<std::size_t>(s.query_heads * s.rows));
  const auto* q = static_cast<const float*>(in.problem.q.data);
  const auto* k = static_cast<const float*>(in.problem.k.data);
  const auto* v = static_cast<const float*>(in.problem.v.data);

  auto verdict = [&](const Contract& contract, bool power) {
    JudgeOptions options;
    options.threads = threads;
    options.power = power;
    if (judge(in.problem, out.view(), contract, options).outcome != Outcome::pass) {
      fmt::print(stderr, "oracle_bench: the kernel did not pass {}\n", line);
      std::exit(1);
    }
  };
  std::vector<double> eigen, full, no_power, free_order, balls;
  for (int r = 0; r < rounds; ++r) {
    eigen.push_back(seconds_of([&] { eigen_attention(plain, q, k, v, o.data(), lse.data(), threads); }));
    full.push_back(seconds_of([&] { verdict(ordered, true); }));
    no_power.push_back(seconds_of([&] { verdict(ordered, false); }));
    free_order.push_back(seconds_of([&] { verdict(any_order, false); }));
    // One row of Arb, times the rows there are, on one thread.
    balls.push_back(seconds_of([&] { BallRow(in.problem, 0, 0, s.rows - 1, 128); }) * static_cast<double>(s.query_heads * s.rows) / threads);
  }
  auto ratio = [&](const std::vector<double>& x) {
    std::vector<double> ratios;
    for (std::size_t r = 0; r < x.size(); ++r) ratios.push_back(x[r] / eigen[r]);
    return median(ratios);
  };
  fmt::print("{:<52} {:>2} {:>10.2f} {:>9.1f} {:>12.1f} {:>11.1f} {:>9.0f}\n", line + std::strlen("attention "), threads, median(eigen) * 1e3, ratio(full),
             ratio(no_power), ratio(free_order), ratio(balls));
}

}  // namespace
}  // namespace assay::bench

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  if (argc > 2 || rounds < 1) {
    fmt::print(stderr, "usage: oracle_bench [ROUNDS]   (at least 1; 7 by default)\n");
    return 2;
  }
  fmt::print("Ratios to plain fp64 attention with Eigen, medians of {} interleaved rounds.\n", rounds);
  fmt::print("{:<52} {:>2} {:>10} {:>9} {:>12} {:>11} {:>9}\n", "case", "t", "Eigen, ms", "verdict", "no power", "any order", "Arb 128");
  for (int threads : {1, 2})
    for (const char* line :
         {"attention b=1 h=8 l=512 d=64", "attention b=1 h=8 l=512 d=64 causal", "attention b=1 h=8 l=512 d=128", "attention b=1 h=2 l=2048 d=64"})
      assay::bench::measure(line, rounds, threads);
  fmt::print(
      "verdict: ordered bound, comparison and power certificate; no power: without the certificate; any order: the bound\n"
      "that needs no declared order, without the certificate. Arb: one row, extrapolated to all.\n");
}
