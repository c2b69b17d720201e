// The fitness of the fuzzers that judge cases, and whether it draws them to a fault that evidence
// alone sees.
#include "fuzz/fitness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>

#include "fuzz/judge.h"
#include "harness/judging/execute.h"
#include "problem/random.h"

namespace assay {
namespace {

using testing::SizeIs;

TEST(Fitness, ALargerRatioIsAnotherCounter) {
  Verdict v;
  EXPECT_TRUE(fitness_of(v).empty());
  v.outputs[Output::o].worst.ratio = 0.5;
  v.evidence.rows[Output::o] = {.s = 1, .limit = 4};
  v.evidence.filters.push_back({"O is too large by a factor", 0.1, 2, 0.01});
  v.evidence.z_limit = 8;
  const std::vector<std::size_t> before = fitness_of(v);
  ASSERT_THAT(before, SizeIs(3));
  EXPECT_LT(before[0], bound_counters);
  EXPECT_GE(before[1], bound_counters);
  v.outputs[Output::o].worst.ratio = 0.8;
  v.evidence.rows[Output::o].s = 1.1;
  v.evidence.filters[0].z = 2.3;
  const std::vector<std::size_t> after = fitness_of(v);
  for (std::size_t k = 0; k < 3; ++k) EXPECT_EQ(after[k], before[k] + 1) << k;
  // Beyond every step, there is still a counter.
  v.outputs[Output::o].worst.ratio = INFINITY;
  v.evidence.rows[Output::lse] = {.s = 1e300, .limit = 1};
  v.evidence.filters[0].z = -1e300;
  std::set<std::size_t> all;
  for (const std::size_t counter : fitness_of(v)) {
    EXPECT_LT(counter, fitness_counters);
    EXPECT_TRUE(all.insert(counter).second);
  }
  EXPECT_THAT(all, SizeIs(4));
}

// The host's kernel without its contract. O is too small by a factor that grows with the keys, as
// with a row sum that counts a few of them twice; it stays inside the bound.
class Shrinking : public Candidate {
 public:
  std::string name() const override { return "shrinking"; }
  Abilities abilities() const override { return {.promises_bits = false}; }
  std::string unsupported(const Call& call) const override { return host_->unsupported(call); }
  std::optional<Arithmetic> arithmetic(const Call&, const kernels::Execution&) const override {
    return std::nullopt;
  }
  kernels::Status run(const Request& request) override {
    kernels::Status status = host_->run(request);
    const auto& call = std::get<ForwardCall>(request.call);
    const double factor = 1 - 0x1p-21 * static_cast<double>(call.problem.shape.keys);
    const TensorView& o = call.out.o;
    for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) {
      const Index at = o.at(b, h, i, c);
      store(o, at, round_to(o.dtype, load(o, at) * factor));
    });
    return status;
  }

 private:
  std::unique_ptr<Candidate> host_ = make_candidate("host-undeclared");
};

struct Search {
  int executions = 0;
  bool by_evidence = false;
};

// Mutates kept inputs, and keeps those that set a counter for the first time, until one fails.
Search search(std::uint64_t seed, bool with_evidence, int most) {
  constexpr CaseKind kind = CaseKind::forward;
  Shrinking candidate;
  ExecuteOptions options;
  options.power = options.diagnosis = options.relations = false;
  SplitMix64 random(seed);
  std::vector<std::string> kept = {"attention b=1 h=1 l=4x8 d=8 dtype=f16"};
  std::set<std::size_t> seen;
  for (int n = 1; n <= most; ++n) {
    unsigned char bytes[4096];
    std::string line = kept[random() % kept.size()];
    std::memcpy(bytes, line.data(), line.size());
    const std::size_t size =
        mutate_bytes(kind, bytes, line.size(), sizeof bytes, static_cast<unsigned>(random()));
    line.assign(reinterpret_cast<const char*>(bytes), size);
    CaseResult r;
    try {
      r = execute(case_of_bytes(kind, {bytes, size}), candidate, options);
    } catch (const CaseError&) {
      continue;  // a target that this machine does not run
    }
    if (r.outcome == Outcome::fail) return {n, r.verdict.by_evidence};
    bool is_new = false;
    for (const std::size_t counter : fitness_of(r.verdict))
      if (with_evidence || counter < bound_counters) is_new |= seen.insert(counter).second;
    if (is_new) kept.push_back(line);
  }
  return {most, false};
}

TEST(Fitness, EvidenceDrawsToAFaultThatOnlyEvidenceSees) {
  int with = 0, without = 0, by_evidence = 0;
  constexpr int seeds = 12, most = 1500;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    const Search drawn = search(seed, true, most), plain = search(seed, false, most);
    std::printf("seed %d: %d executions with S and z, %d without\n", static_cast<int>(seed),
                drawn.executions, plain.executions);
    with += drawn.executions;
    without += plain.executions;
    by_evidence += drawn.by_evidence ? 1 : 0;
  }
  std::printf("%d executions with S and z, %d without\n", with, without);
  EXPECT_GE(by_evidence, seeds - 1);
  EXPECT_LT(with, without);
}

}  // namespace
}  // namespace assay
