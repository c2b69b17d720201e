// The fitness of the fuzzers that judge cases, and that it follows a fault which evidence alone
// sees.
#include "fuzz/fitness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>

#include "harness/judging/execute.h"

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

// The host's kernel without its contract. O is too small by a factor, as with a row sum that counts
// a little twice; the factor stays far inside the bound.
class Shrinking : public Candidate {
 public:
  explicit Shrinking(double factor)
      : Candidate({.name = "shrinking", .abilities = {.promises_bits = false}}), factor_(factor) {}
  std::string unsupported(const Call& call) const override { return host_->unsupported(call); }
  std::optional<Arithmetic> arithmetic(const Call&, const kernels::Execution&) const override {
    return std::nullopt;
  }
  kernels::Status run(const Request& request) override {
    kernels::Status status = host_->run(request);
    const TensorView& o = std::get<ForwardCall>(request.call).out.o;
    for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) {
      const Index at = o.at(b, h, i, c);
      store(o, at, round_to(o.dtype, load(o, at) * factor_));
    });
    return status;
  }

 private:
  double factor_;
  std::unique_ptr<Candidate> host_ = make_candidate("host-undeclared");
};

// On the way to where evidence fails it, a fault that grows sets counters of evidence that a right
// kernel does not set. Those of error/bound say less.
TEST(Fitness, EvidenceFollowsAFaultThatTheBoundDoesNotSee) {
  const Case c = parse_case("attention b=1 h=4 l=32x48 d=64 dtype=f16");
  ExecuteOptions options;
  options.power = options.diagnosis = options.relations = false;
  std::set<std::size_t> seen;
  int by_bound = 0, by_evidence = 0;
  bool failed = false;
  for (int step = -1; step < 44 && !failed; ++step) {
    Shrinking candidate(step < 0 ? 1 : 1 - std::exp2(-15 + step / 4.0));
    const CaseResult r = execute(c, candidate, options);
    failed = r.outcome == Outcome::fail;
    EXPECT_TRUE(!failed || r.verdict.by_evidence) << r.reason;
    bool bound = false, evidence = false;
    for (const std::size_t counter : fitness_of(r.verdict))
      if (seen.insert(counter).second) (counter < bound_counters ? bound : evidence) = true;
    if (step < 0 || failed) continue;
    by_bound += bound ? 1 : 0;
    by_evidence += evidence ? 1 : 0;
  }
  EXPECT_TRUE(failed);
  EXPECT_GE(by_evidence, 2);
  EXPECT_GT(by_evidence, by_bound);
  std::printf("kept before it fails: %d by evidence, %d by error/bound\n", by_evidence, by_bound);
}

}  // namespace
}  // namespace assay
