// Measures what a certified verdict costs, that is the oracle, the bound and the comparison of
// every element, against the plain fp64 attention that a careful tester would write with Eigen, and
// against Arb at 128 bits. It also measures what inputs cost.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "bench/machine.h"
#include "bench/peers.h"
#include "bench/program.h"
#include "bench/table.h"
#include "harness/candidates/candidate.h"
#include "harness/judging/outputs.h"
#include "oracle/backward_verdict.h"
#include "oracle/ball.h"
#include "oracle/reference.h"
#include "oracle/verdict.h"
#include "problem/generate.h"
#include "problem/parallel.h"
#include "testing/contract_of.h"

namespace assay::bench {
namespace {

constexpr long arb_bits = 128;

// A case with its inputs, the outputs of the kernel, and room for the outputs of Eigen.
struct Problem {
  explicit Problem(const char* text)
      : line(text),
        c(parse_case(line)),
        in(c),
        out(c),
        gradients(c, in),
        plain{c.shape.query_heads, c.shape.rows, c.shape.keys,    c.shape.dim,
              c.shape.value_dim,   c.causal,     in.problem.scale} {
    const auto host = make_candidate("host");
    contract = contract_of(*host, in.problem);
    expect(host->run({ForwardCall{in.problem, out.view()}, 0}).ok());
    if (backward())
      expect(host->run({BackwardCall{in.problem, backward_input(), gradients.view()}, 0}).ok());
    o.resize(count(c.shape.value_dim)), lse.resize(count(1));
    if (backward())
      dq.resize(count(c.shape.dim)), dk.resize(count(c.shape.dim)),
          dv.resize(count(c.shape.value_dim));
  }
  static void expect(bool passed) {
    if (!passed) throw std::runtime_error("the kernel did not pass");
  }
  bool backward() const { return c.operation == Operation::backward; }
  AttentionBackwardInput backward_input() const {
    return {out.o.view(), out.lse.view(), in.d_o.view()};
  }
  std::size_t count(Index width) const { return usize(c.shape.query_heads * c.shape.rows * width); }
  static const float* floats(const Tensor& t) { return reinterpret_cast<const float*>(t.bytes()); }

  void eigen(int threads) {
    const float *const q = floats(in.q), *const k = floats(in.k), *const v = floats(in.v);
    eigen_attention(plain, q, k, v, o.data(), lse.data(), threads);
    if (backward())
      eigen_backward(plain, q, k, v, o.data(), lse.data(), floats(in.d_o), dq.data(), dk.data(),
                     dv.data(), threads);
  }
  void verdict(int threads, bool power, bool ordered = true) const {
    Contract promised = contract;
    promised.ordered = promised.ordered && ordered;
    JudgeOptions options;
    options.threads = threads;
    options.power = power;
    expect((backward()
                ? judge_backward(in.problem, backward_input(), gradients.view(), promised, options)
                : judge(in.problem, out.view(), promised, options))
               .outcome == Outcome::pass);
  }
  // The oracle alone, without a comparison.
  void oracle(int threads) const {
    const Reference reference(in.problem, contract);
    const Index step = reference.block_rows(), blocks = (c.shape.rows + step - 1) / step;
    parallel_for(c.shape.query_heads * blocks, threads, [&](Index at) {
      const Index h = at / blocks, first = at % blocks * step;
      std::vector<Index> rows(usize(std::min(step, c.shape.rows - first)));
      std::iota(rows.begin(), rows.end(), first);
      reference.evaluate(*reference.load_head(0, h), h, rows);
    });
  }

  std::string line;
  Case c;
  Inputs in;
  Outputs out;
  GradientOutputs gradients;
  PlainAttention plain;
  Contract contract;
  std::vector<double> o, lse, dq, dk, dv;
};

void measure_verdicts(Rounds& rounds, const Settings& settings,
                      const std::vector<const char*>& lines) {
  std::vector<std::string> names = {"eigen-fp64", "verdict", "no-power"};
  const bool forward = std::string_view(lines.front()).starts_with("attention");
  if (forward) names.insert(names.end(), {"any-order", "oracle", "arb-128"});
  std::vector<std::size_t> others(names.size() - 1);
  std::iota(others.begin(), others.end(), std::size_t{1});
  Table table(rounds, Table::Cell::rate, fmt::format("{:<44} threads", "case"), names, others);
  for (const int threads : settings.threads)
    for (const char* line : lines) {
      const auto p = std::make_shared<Problem>(line);
      const double flops = p->plain.flops() + (p->backward() ? p->plain.backward_flops() : 0);
      std::vector<Entry> entries;
      const auto entry = [&](double work, int on, Run run) {
        entries.push_back(
            {fmt::format("verdicts/{}/{}/threads:{}", names[entries.size()], line, threads),
             [run = std::move(run)] { return run; }, work, 0, Entry::Limit::flops,
             [on](double seconds) { return fma_gflops(on, seconds, Dtype::f64); }});
      };
      entry(flops, threads, [p, threads] { p->eigen(threads); });
      entry(flops, threads, [p, threads] { p->verdict(threads, true); });
      entry(flops, threads, [p, threads] { p->verdict(threads, false); });
      if (forward) {
        entry(flops, threads, [p, threads] { p->verdict(threads, false, false); });
        entry(flops, threads, [p, threads] { p->oracle(threads); });
        // One row, on one thread.
        const AttentionShape& s = p->c.shape;
        entry(2.0 * static_cast<double>(p->plain.keys_before(s.rows) * (s.dim + s.value_dim)), 1,
              [p, last = s.rows - 1] { BallRow(p->in.problem, 0, 0, last, arb_bits); });
      }
      table.line(fmt::format("{:<44} {:>7}", line, threads), entries);
    }
  table.summary();
}

void verdicts_mode(Rounds& rounds, const Settings& settings) {
  fmt::print(rounds.tables(),
             "\nCertified verdicts and plain fp64 attention with Eigen.\n"
             "Medians of GFLOP/s of the products that the case needs, and of this rate as a "
             "fraction of the fp64 multiply-add rate around each\n"
             "repetition. eigen-fp64 over X: how many times the time of eigen-fp64 the candidate X "
             "takes.\n"
             "verdict: the ordered bound, the comparison of every element and the power "
             "certificate; no-power: without the certificate;\n"
             "any-order: the bound that needs no declared order, without the certificate; oracle: "
             "values, radii and bounds, without a comparison;\n"
             "arb-128: one row on one thread.\n");
  measure_verdicts(rounds, settings,
                   {"attention b=1 h=8 l=512 d=64", "attention b=1 h=8 l=512 d=64 causal",
                    "attention b=1 h=8 l=512 d=128", "attention b=1 h=2 l=2048 d=64"});
  fmt::print(rounds.tables(),
             "\nVerdicts on gradients alone, against the forward and backward passes of Eigen.\n");
  measure_verdicts(rounds, settings,
                   {"backward b=1 h=8 l=512 d=64", "backward b=1 h=8 l=512 d=64 causal",
                    "backward b=1 h=8 l=512 d=128", "backward b=1 h=2 l=2048 d=64"});
}

Entry generating(std::string name, Case c, double bytes) {
  auto footprint =
      std::make_shared<const Tensor>(Dtype::f32, Extents{1, 1, 1, static_cast<Index>(bytes) / 4},
                                     Layout{{0, 0, 0, 1}, 0, static_cast<Index>(bytes) / 4});
  Entry e{std::move(name), nullptr, 0, bytes, Entry::Limit::bytes, nullptr};
  e.limit = [footprint, reader = Reader(footprint->bytes(), static_cast<std::size_t>(bytes), 1)](
                double seconds) mutable { return reader.gigabytes_per_second(seconds); };
  e.prepare = [c = std::move(c)]() -> Run {
    return [c] {
      if (c.operation == Operation::product) ProductInputs{c};
      else Inputs{c};
    };
  };
  return e;
}

void generators_mode(Rounds& rounds, const Settings& settings) {
  fmt::print(rounds.tables(),
             "\nGenerating the inputs of cases, on all threads. Medians of GB/s (1e9) of Q, K and "
             "V, or of A and the codes of W, and of this rate as a\n"
             "fraction of the rate of plain reads of as many bytes on one thread.\n");
  Table attention(rounds, Table::Cell::rate, "scores         ", {"f32", "f16", "bf16"});
  const Index length = settings.full ? 4096 : 1024;
  for (const Scores s : values_of<Scores>) {
    std::vector<Entry> entries;
    for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
      Case c;
      c.shape = {1, 8, 8, length, length, 64, 64};
      c.scores = s;
      c.dtype = dtype;
      const double bytes = 3 * 8 * 64 * static_cast<double>(length * format(dtype).bits) / 8;
      entries.push_back(generating(
          fmt::format("generators/{}/{}/L:{}", name_of(c.scores), format(dtype).name, length), c,
          bytes));
    }
    attention.line(fmt::format("{:<15}", name_of(s)), entries);
  }
  Table products(rounds, Table::Cell::rate, "W              ", {"A and W"});
  for (const LowBit w : values_of<LowBit>) {
    const auto& format = traits(w);
    const Case c =
        parse_case(fmt::format("product m=64 n={} k={} w={}", length, length, format.name));
    const LowBitSizes sizes = sizes_of(c.product.format, length, length, format.group);
    products.line(fmt::format("{:<15}", format.name),
                  {generating(fmt::format("generators/product/{}/N:{}", format.name, length), c,
                              64 * 4 * static_cast<double>(length) +
                                  static_cast<double>(sizes.codes + sizes.scales))});
  }
}

constexpr Mode modes[] = {
    {"verdicts", verdicts_mode, true,
     "certified verdicts, the oracle alone and Arb beside plain fp64 attention with Eigen"},
    {"generators", generators_mode, true,
     "inputs of every family of scores and of every low-bit format, as fractions of the read rate"},
};

}  // namespace
}  // namespace assay::bench

int main(int argc, char** argv) {
  return assay::bench::run_program(argc, argv, "oracle_bench", assay::bench::modes);
}
