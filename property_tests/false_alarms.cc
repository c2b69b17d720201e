// Measures how often evidence fails kernels that are right: emulated kernels of every arithmetic
// that the bounds know, on the cases of a suite.
//
//   false_alarms SUITE [SEED [LARGEST]]
//
// The suite is attention or backward passes. Cases of more than LARGEST million multiply-adds
// (default: 20) are left out, and so are those whose inputs are poked or that go through a cache.
// With the seed, another arithmetic meets each case. Prints one line for every alarm, and a
// summary. The exit status is 1 if there was one.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "harness/cases/suites.h"
#include "harness/judging/outputs.h"
#include "harness/work.h"
#include "oracle/backward_verdict.h"
#include "oracle/verdict.h"
#include "problem/parallel.h"
#include "testing/emulated_kernel.h"

namespace assay {
namespace {

struct Seen {
  Index judged = 0, not_asked = 0, by_evidence = 0, outside = 0;

  void add(const Verdict& v) {
    ++judged;
    not_asked += v.evidence.arithmetic.empty();
    by_evidence += v.by_evidence;
    outside += v.outcome == Outcome::fail && !v.by_evidence;
  }
};

Verdict judge_forward(const Case& c, const Inputs& in, const Emulation& e, bool declared) {
  const Outputs out(c);
  run_emulated(e, in.problem, out.view());
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  return declared ? judge(in.problem, out.view(), e.contract, options)
                  : judge_by_ladder(in.problem, out.view(), 64, options);
}

Verdict judge_gradients(const Case& c, const Inputs& in, const Emulation& e, bool declared) {
  const Outputs forward(c);
  run_emulated(e, in.problem, forward.view());
  const GradientOutputs gradients(c, in);
  const AttentionBackwardInput input{forward.o.view(), forward.lse.view(), in.d_o.view(),
                                     in.d_lse.view()};
  run_emulated_backward(e, in.problem, input, gradients.view());
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  return declared ? judge_backward(in.problem, input, gradients.view(), e.contract, options)
                  : judge_backward_by_ladder(in.problem, input, gradients.view(), options);
}

int run(const std::string& suite, std::uint64_t seed, double largest) {
  std::vector<Case> cases = make_suite(suite, seed).cases;
  const std::size_t all = cases.size();
  std::erase_if(cases, [&](const Case& c) {
    return c.operation == Operation::product || c.cache.kind != CacheSpec::Kind::none ||
           !c.pokes.empty() || multiply_adds(c) > 1e6 * largest;
  });
  std::map<std::string, Seen> seen;
  std::mutex mutex;
  parallel_for(std::ssize(cases), 0, [&](Index k) {
    const Case& c = cases[usize(k)];
    const std::vector<Emulation> arithmetics = emulations(c.dtype);
    const Emulation& e = arithmetics[(usize(k) + seed) % arithmetics.size()];
    const Inputs in(c);
    const auto judge_case = c.operation == Operation::backward ? judge_gradients : judge_forward;
    for (const bool declared : {true, false}) {
      // Weights in 8 bits are a fault of a kernel that does not declare them.
      if (!declared && e.contract.weight_dtype == Dtype::f8e4m3) continue;
      const Verdict v = judge_case(c, in, e, declared);
      const std::lock_guard lock(mutex);
      seen[fmt::format("{}, {}", e.contract.name, declared ? "declared" : "not declared")].add(v);
      if (v.outcome == Outcome::fail)
        fmt::print("{}{}, {}\n    {}\n    {}\n", e.contract.name, declared ? "" : ", not declared",
                   v.by_evidence ? "by evidence" : "proved", print_case(c), v.reason);
    }
  });
  Seen total;
  fmt::print("\n| arithmetic | judged | evidence not asked | failed by evidence | proved |\n");
  fmt::print("| --- | --- | --- | --- | --- |\n");
  for (const auto& [name, s] : seen) {
    fmt::print("| {} | {} | {} | {} | {} |\n", name, s.judged, s.not_asked, s.by_evidence,
               s.outside);
    total.judged += s.judged, total.not_asked += s.not_asked;
    total.by_evidence += s.by_evidence, total.outside += s.outside;
  }
  fmt::print(
      "\n{}, seed {}: {} of {} cases, {} verdicts, {} without evidence, {} failed by it, {} "
      "outside of a bound\n",
      suite, seed, cases.size(), all, total.judged, total.not_asked, total.by_evidence,
      total.outside);
  return total.by_evidence + total.outside > 0;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  std::uint64_t seed = 1;
  double largest = 20;
  const auto number = [](const char* text, auto& to) {
    const char* end = text + std::string_view(text).size();
    return std::from_chars(text, end, to).ptr == end && to > 0;
  };
  if (argc < 2 || argc > 4 || (argc > 2 && !number(argv[2], seed)) ||
      (argc > 3 && !number(argv[3], largest))) {
    fmt::print(stderr, "usage: false_alarms SUITE [SEED [LARGEST]]\n");
    return 2;
  }
  try {
    return assay::run(argv[1], seed, largest);
  } catch (const std::invalid_argument& e) {
    fmt::print(stderr, "false_alarms: {}\n", e.what());
    return 2;
  }
}
