// Measures the source document's table of largest differences: the kernel against the oracle's
// exact values, over seeded cases of ordinary data. The differences are absolute, so they depend on
// the data. Whether each element is right is the question of the verdict (`assay check`).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "harness/candidates/contracts.h"
#include "harness/judging/outputs.h"
#include "harness/text.h"
#include "kernels/attention/attention.h"
#include "kernels/simd/targets.h"
#include "oracle/backward.h"
#include "oracle/verdict.h"
#include "problem/parallel.h"

namespace assay::bench {
namespace {

struct Largest {
  double difference = 0;
  double value = 0;   // the largest exact magnitude, for comparison with the difference
  double radius = 0;  // the largest possible error of the oracle itself
  void see(double got, double exact, double off) {
    const double d = std::fabs(got - exact);
    if (!(d <= difference)) difference = std::isnan(d) ? INFINITY : d;
    value = std::fmax(value, std::fabs(exact));
    if (!(off <= radius)) radius = std::isnan(off) ? INFINITY : off;
  }
};
using Differences = std::map<Output, Largest>;

void expect_success(const kernels::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.detail);
}

void see_gradient(Largest& to, const TensorView& t, Index b, Index h, const Gradient& g) {
  for (Index row = 0; row < g.rows; ++row)
    for (Index c = 0; c < g.columns; ++c) {
      const auto at = usize(row * g.columns + c);
      to.see(load(t, t.at(b, h, row, c)), g.value[at], g.ratio[usize(row)] * g.bound[at]);
    }
}

// These gradients belong to the O and LSE that the kernel stored, as in an autograd engine.
void measure(const Case& c, Differences& all) {
  const Inputs in(c);
  const Outputs out(c);
  const GradientOutputs gradients(c, in);
  const AttentionShape& s = c.shape;
  expect_success(kernels::attention_forward(in.problem, out.view()));
  const AttentionBackwardInput input{out.o.view(), out.lse.view(), in.d_o.view()};
  expect_success(kernels::attention_backward(in.problem, input, gradients.view()));

  const Contract contract = host_backward_contract(in.problem, input.d_o.dtype, kernels::Target());
  const Reference forward(in.problem, contract);
  const BackwardReference backward(in.problem, input, gradients.view(), contract);
  SharedGradients shared = backward.no_shared_gradients();
  std::vector<Index> rows(usize(s.rows));
  std::iota(rows.begin(), rows.end(), 0);
  for (Index b = 0; b < s.batch; ++b)
    for (Index g = 0; g < s.kv_heads; ++g) {
      const KeyValuesPointer kv = forward.load_head(b, g);
      const GroupGradients exact = backward.evaluate(b, g, rows, shared);
      for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h) {
        const Block block = forward.evaluate(*kv, h, rows);
        for (Index i = 0; i < s.rows; ++i) {
          for (Index d = 0; d < s.value_dim; ++d) {
            const BlockElement& e = block.element(i, d);
            all[Output::o].see(load(input.o, input.o.at(b, h, i, d)), e.value, e.radius);
          }
        }
        see_gradient(all[Output::dq], gradients.view().dq, b, h, exact.dq[usize(h % s.group())]);
      }
      see_gradient(all[Output::dk], gradients.view().dk, b, g, exact.dk);
      see_gradient(all[Output::dv], gradients.view().dv, b, g, exact.dv);
    }
}

struct Line {
  Dtype dtype;
  const char *forward_claim, *backward_claim;
};

int differences_main(int seeds, const std::vector<Index>& lengths) {
  constexpr Line lines[] = {
      {Dtype::f32, "1e-6", "1e-6"}, {Dtype::f16, "5e-4", "2e-3"}, {Dtype::bf16, "1e-3", "1e-3"}};
  fmt::print(
      "Largest |kernel - exact| on {}, over {} of normal data: L = {}, D = 64 "
      "and 128, causal and not,\n"
      "B = 1, H = 4/2. In brackets: the largest exact magnitude. Claim: the number of the source "
      "document. Outputs have the\n"
      "dtype of the inputs, so every kernel has an error of half an ulp at that magnitude. "
      "Gradients are those for the O and\n"
      "LSE that the kernel stored.\n\n",
      kernels::Target().name(), counted(static_cast<std::size_t>(seeds), "seed"),
      fmt::join(lengths, ", "));
  fmt::print("dtype {:>12} {:>18} {:>9} {:>12} {:>18} {:>18} {:>18} {:>16}\n", "fwd claim", "O",
             "half ulp", "bwd claim", "dQ", "dK", "dV", "oracle within");
  for (const Line& line : lines) {
    std::vector<Case> cases;
    for (int seed = 1; seed <= seeds; ++seed)
      for (const Index length : lengths)
        for (const Index dim : {64, 128})
          for (const bool causal : {false, true}) {
            Case c;
            c.operation = Operation::backward;
            c.shape = {1, 4, 2, length, length, dim, dim};
            c.dtype = line.dtype;
            c.causal = causal;
            c.seed = static_cast<std::uint64_t>(seed);
            cases.push_back(c);
          }
    std::vector<Differences> each(cases.size());
    parallel_for(static_cast<Index>(cases.size()), 0,
                 [&](Index k) { measure(cases[usize(k)], each[usize(k)]); });
    Differences all;
    double radius = 0;
    for (const Differences& one : each)
      for (const auto& [output, seen] : one) {
        Largest& to = all[output];
        to.difference = std::fmax(to.difference, seen.difference);
        to.value = std::fmax(to.value, seen.value);
        radius = std::fmax(radius, seen.radius);
      }
    const auto cell = [&](Output output) {
      return fmt::format("{:.2e} [{:.2f}]", all[output].difference, all[output].value);
    };
    fmt::print("{:<5} {:>12} {:>18} {:>9.2e} {:>12} {:>18} {:>18} {:>18} {:>16.1e}\n",
               format(line.dtype).name, line.forward_claim, cell(Output::o),
               half_ulp(line.dtype, all[Output::o].value), line.backward_claim, cell(Output::dq),
               cell(Output::dk), cell(Output::dv), radius);
  }
  return 0;
}

}  // namespace
}  // namespace assay::bench

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 5;
  std::vector<assay::Index> lengths;
  for (int k = 2; k < argc; ++k) lengths.push_back(std::atoi(argv[k]));
  if (seeds < 1 || std::ranges::any_of(lengths, [](auto n) { return n < 1 || n > 4096; })) {
    fmt::print(stderr,
               "usage: differences_bench [SEEDS [LENGTH...]]   (at least 1 seed, 5 by default; "
               "lengths from 1 to 4096, by default 128, 256 and 512)\n");
    return 2;
  }
  if (lengths.empty()) lengths = {128, 256, 512};
  try {
    return assay::bench::differences_main(seeds, lengths);
  } catch (const std::exception& e) {
    fmt::print(stderr, "differences_bench: {}\n", e.what());
    return 1;
  }
}
