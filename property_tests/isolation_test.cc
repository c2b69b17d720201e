// Running a case changes no state of the process: cases with different SIMD targets run at the same
// time.
#include <gtest/gtest.h>

#include <barrier>
#include <cstring>
#include <optional>
#include <thread>

#include "harness/candidates/candidate.h"
#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "kernels/simd/targets.h"

namespace assay {
namespace {

using Bytes = std::vector<std::byte>;

void append(Bytes& to, const Tensor& t) {
  to.insert(to.end(), t.bytes(), t.bytes() + t.size_in_bytes());
}

// All that a candidate writes for a case, or the reason why it failed.
Bytes bits_of(const Case& c, Candidate& candidate, std::string& wrong) {
  Bytes bits;
  const auto run = [&](const Call& call, const NamedOutputs& outputs) {
    for (const NamedOutput& out : outputs) poison(*out.tensor, Poison::nan);
    const kernels::Status status = candidate.run({call, execution_of(c)});
    if (!status.ok()) wrong = status.detail;
    for (const NamedOutput& out : outputs) {
      if (!out.tensor->guards_intact() || !gaps_intact(*out.tensor, Poison::nan))
        wrong = "memory around the elements of an output was written";
      append(bits, *out.tensor);
    }
  };
  if (c.operation == Operation::product) {
    const ProductInputs in(c);
    const ProductOutput out(c);
    run(ProductCall{in.problem, out.c.view()}, out.named());
    return bits;
  }
  const Inputs in(c);
  const Outputs out(c);
  if (!c.cache) run(ForwardCall{in.problem, out.view()}, out.named());
  else run(CachedCall{c, in, out.view()}, out.named());
  if (c.operation == Operation::backward && wrong.empty()) {
    const GradientOutputs gradients(c, in);
    const AttentionBackwardInput input{out.o.view(), out.lse.view(), in.d_o.view()};
    run(BackwardCall{in.problem, input, gradients.view()}, gradients.named());
  }
  return bits;
}

struct Work {
  Case c;
  std::string candidate;
  Bytes alone;
};

// Every operation, with every candidate of this process that runs the code of a SIMD target.
std::vector<Work> work_on(const std::string& target) {
  std::vector<Work> all;
  for (const auto& [candidate, line] : {
           std::pair{"host", "attention b=1 h=2/1 l=40x700 d=33/17 causal offset=end seed=3"},
           {"host", "attention b=1 h=2/1 l=120x300 d=40 dtype=bf16 out=f32 threads=2 seed=4"},
           {"host", "backward b=1 h=2/1 l=60x90 d=24 softcap=5 seed=5"},
           {"host", "attention b=1 h=4/2 l=3x200 d=32 causal offset=end cache=paged:16 seed=6"},
           {"host",
            "attention b=1 h=4/2 l=3x200 d=32/24 causal offset=end cache=latent:16:20+8 seed=6"},
           {"host", "product m=5 n=70 k=300 dtype=f32 w=int4 weights=codes seed=7"},
           {"host", "product m=45 n=33 k=300 dtype=f32 w=int8 weights=codes seed=8"},
           {"unfused", "attention b=1 h=2/1 l=20x300 d=33/17 causal offset=end seed=9"},
           {"sdpa", "attention b=1 h=1 l=260x270 d=16 seed=10"},
           {"device:host", "attention b=1 h=2/1 l=40x300 d=33/17 causal offset=end seed=11"},
           {"device:host", "product m=5 n=70 k=320 dtype=f32 w=mxfp4 weights=codes seed=12"},
           {"fault:scale-off-by-one-percent",
            "attention b=1 h=2/1 l=40x300 d=33/17 causal offset=end seed=13"},
       }) {
    Work w{parse_case(line), candidate, {}};
    w.c.target = target;
    all.push_back(std::move(w));
  }
  return all;
}

TEST(Isolation, TargetsAtTheSameTimeGiveTheBitsOfEachAlone) {
  const std::vector<std::string> targets = kernels::runnable_targets();
  std::vector<std::vector<Work>> work;
  for (const std::string& target : targets) {
    work.push_back(work_on(target));
    for (Work& w : work.back()) {
      std::string wrong;
      w.alone = bits_of(w.c, *make_candidate(w.candidate), wrong);
      ASSERT_EQ(wrong, "") << w.candidate << ": " << print_case(w.c);
    }
  }
  // Targets with and without a fused multiply-add round differently. There the bits tell which
  // target ran.
  for (std::size_t k = 0; k < work[0].size(); ++k) {
    std::size_t different = 0;
    for (const std::vector<Work>& other : work) different += other[k].alone != work[0][k].alone;
    std::printf("%s: %s: %zu of %zu targets differ from the best\n", work[0][k].candidate.c_str(),
                print_case(work[0][k].c).c_str(), different, targets.size());
    if (targets.size() > 1) EXPECT_GT(different, 0u) << print_case(work[0][k].c);
  }
  std::barrier together(static_cast<std::ptrdiff_t>(targets.size()));
  std::vector<std::string> differences(targets.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < targets.size(); ++t)
      threads.emplace_back([&, t] {
        for (int round = 0; round < 5; ++round) {
          together.arrive_and_wait();
          for (const Work& w : work[t]) {
            std::string wrong;
            const Bytes bits = bits_of(w.c, *make_candidate(w.candidate), wrong);
            if (!wrong.empty()) differences[t] = wrong;
            else if (bits != w.alone)
              differences[t] = w.candidate + ": " + print_case(w.c) + " has other bits than alone";
          }
        }
      });
  }
  for (std::size_t t = 0; t < targets.size(); ++t) EXPECT_EQ(differences[t], "") << targets[t];
}

// The same for verdicts: each case is judged by the contract of its own target, and the next case
// without a target runs on the best one.
TEST(Isolation, VerdictsAtTheSameTimeAreThoseOfEachAlone) {
  const std::vector<std::string> targets = kernels::runnable_targets();
  ExecuteOptions options;
  options.power = false;
  const auto verdict_on = [&](const std::string& target) {
    Case c = parse_case("attention b=1 h=2/1 l=20x200 d=33/17 causal offset=end seed=3");
    c.target = target;
    const CaseResult r = execute(c, *make_candidate("host"), options);
    return std::tuple{r.outcome, r.verdict.contract, r.verdict.inside};
  };
  std::vector<decltype(verdict_on(""))> alone(targets.size(), verdict_on("")), together = alone;
  const auto best = alone[0];
  for (std::size_t t = 0; t < targets.size(); ++t) {
    alone[t] = verdict_on(targets[t]);
    EXPECT_EQ(std::get<Outcome>(alone[t]), Outcome::pass) << targets[t];
    EXPECT_TRUE(std::get<std::string>(alone[t]).ends_with(targets[t]))
        << std::get<std::string>(alone[t]);
    EXPECT_EQ(verdict_on(""), best) << "after " << targets[t];
  }
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < targets.size(); ++t)
      threads.emplace_back([&, t] { together[t] = verdict_on(targets[t]); });
  }
  EXPECT_EQ(together, alone);
}

}  // namespace
}  // namespace assay
