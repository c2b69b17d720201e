// What the harness must notice around a call, tried with candidates that misbehave in one way each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "harness/contracts.h"
#include "harness/execute.h"
#include "harness/result.h"
#include "harness/run.h"
#include "kernels/attention.h"
#include "kernels/targets.h"

namespace assay {
namespace {

using testing::HasSubstr;

// The production kernel, then a misdeed.
class Misbehaving : public Candidate {
 public:
  using Deed = std::function<kernels::Status(const Attention&, const AttentionOutput&, int call)>;
  explicit Misbehaving(Deed deed) : deed_(std::move(deed)) {}
  std::string name() const override { return "misbehaving"; }
  std::string unsupported(const Attention&, Dtype) const override { return why_; }
  std::optional<Contract> contract(const Attention& p) const override { return host_contract(p, kernels::chosen_target()); }
  kernels::Status run(const Attention& p, const AttentionOutput& out, int threads) override {
    const kernels::Status status = kernels::attention_forward(p, out, threads);
    if (!status.ok()) return status;
    return deed_(p, out, calls_++);
  }
  std::string why_;

 private:
  Deed deed_;
  int calls_ = 0;
};

CaseResult run(Misbehaving::Deed deed, const char* line = "attention b=1 h=2 l=9x20 d=8 layout=o:padded") {
  Misbehaving candidate(std::move(deed));
  return execute(parse_case(line), candidate);
}
std::byte* end_of(const TensorView& t, Index elements) { return static_cast<std::byte*>(t.data) + elements * format(t.dtype).bits / 8; }

TEST(Guard, TheKernelAloneIsFine) {
  const CaseResult r = run([](const Attention&, const AttentionOutput&, int) { return kernels::Status{}; });
  EXPECT_EQ(r.outcome, Outcome::pass) << r.reason;
  EXPECT_EQ(r.relations.at("threads"), "held");
  EXPECT_EQ(r.relations.at("negated-values"), "held");
}

TEST(Guard, WritesBeforeAndBehindBuffers) {
  CaseResult r = run([](const Attention&, const AttentionOutput& out, int) {
    static_cast<std::byte*>(out.o.data)[-1] = std::byte{0};
    return kernels::Status{};
  });
  EXPECT_EQ(r.outcome, Outcome::fail);
  EXPECT_THAT(r.reason, HasSubstr("o: a guard band was overwritten"));
  r = run([](const Attention& p, const AttentionOutput&, int) {
    *end_of(p.k, 2 * 20 * 8) = std::byte{1};
    return kernels::Status{};
  });
  EXPECT_THAT(r.reason, HasSubstr("k: a guard band was overwritten"));
}

TEST(Guard, WritesBetweenElements) {
  const CaseResult r = run([](const Attention&, const AttentionOutput& out, int) {
    static_cast<float*>(out.o.data)[out.o.at(0, 0, 0, 0) + 8] = 0;  // the padding behind the first row
    return kernels::Status{};
  });
  EXPECT_THAT(r.reason, HasSubstr("o: bytes between its elements were overwritten"));
}

TEST(Guard, ChangedInputs) {
  const CaseResult r = run([](const Attention& p, const AttentionOutput&, int) {
    static_cast<float*>(p.v.data)[3] *= 1.5f;
    return kernels::Status{};
  });
  EXPECT_THAT(r.reason, HasSubstr("an input was changed"));
}

TEST(Guard, OutputsLeftUntouched) {
  class Lazy : public Misbehaving {
   public:
    Lazy() : Misbehaving([](const Attention&, const AttentionOutput&, int) { return kernels::Status{}; }) {}
    kernels::Status run(const Attention&, const AttentionOutput&, int) override { return {}; }
  } lazy;
  const CaseResult r = execute(parse_case("attention b=1 h=2 l=9x20 d=8"), lazy);
  EXPECT_EQ(r.outcome, Outcome::fail);
  EXPECT_THAT(r.reason, HasSubstr("LSE was not written"));
  EXPECT_EQ(r.verdict.failures.at("O was not written"), 2 * 9 * 8);
}

TEST(Guard, ExceptionsAndStatuses) {
  EXPECT_THAT(run([](const Attention&, const AttentionOutput&, int) -> kernels::Status { throw std::runtime_error("ouch"); }).reason,
              HasSubstr("the candidate threw: ouch"));
  EXPECT_THAT(run([](const Attention&, const AttentionOutput&, int) -> kernels::Status { throw 5; }).reason, HasSubstr("no std::exception"));
  EXPECT_THAT(run([](const Attention&, const AttentionOutput&, int) {
                return kernels::Status{kernels::StatusCode::execution_failed, "lost"};
              }).reason,
              HasSubstr("status 5 (Execution failed): lost"));
}

// An element that the second call computes differently: state that survives, or memory that was not set.
TEST(Guard, RunsThatDisagree) {
  const CaseResult r = run([](const Attention&, const AttentionOutput& out, int call) {
    if (call == 1) static_cast<float*>(out.lse.data)[out.lse.at(0, 1, 4, 0)] *= 1 + 0x1p-23f;
    return kernels::Status{};
  });
  EXPECT_EQ(r.outcome, Outcome::fail);
  EXPECT_THAT(r.reason, HasSubstr("poisoned differently disagree: LSE[b=0, h=1, row=4"));
}

// A lean on sign: far below any bound, seen by a relation alone.
TEST(Guard, RelationsSeeWhatNoBoundSees) {
  const CaseResult r = run([](const Attention&, const AttentionOutput& out, int) {
    for (Index i = 0; i < 9; ++i) {
      float& x = static_cast<float*>(out.o.data)[out.o.at(0, 0, i, 0)];
      if (x > 0) x = std::nextafter(x, 10.0f);
    }
    return kernels::Status{};
  });
  EXPECT_EQ(r.outcome, Outcome::fail);
  EXPECT_THAT(r.reason, HasSubstr("relation negated-values violated"));
}

TEST(Guard, UnsupportedIsNeverAPass) {
  Misbehaving candidate([](const Attention&, const AttentionOutput&, int) { return kernels::Status{}; });
  candidate.why_ = "no such dtype";
  const CaseResult r = execute(parse_case("attention b=1 h=1 l=3 d=4"), candidate);
  EXPECT_EQ(r.outcome, Outcome::unsupported);
  EXPECT_EQ(r.reason, "no such dtype");
}

TEST(Guard, ImpossibleRequestsAreRefusedBeforeAnythingIsAllocated) {
  const auto host = make_candidate("host");
  EXPECT_THROW(execute(parse_case("attention b=1 h=64 l=4194304 d=1024"), *host), CaseError);
  EXPECT_THROW(execute(parse_case("attention b=1 h=1 l=4 d=4 target=MMX"), *host), CaseError);
  EXPECT_THROW(make_candidate("fault:none-such"), std::invalid_argument);
}

// Shown by a pass that cannot miss it: deleting a key of `gather` inputs moves O by whole values.
TEST(Power, CertificateOfASuiteIsAUnionOfLanes) {
  const auto host = make_candidate("host");
  Adequacy adequacy;
  adequacy.add(to_json(execute(parse_case("attention b=1 h=1 l=64 d=128 scores=gather"), *host)));
  const Json before = adequacy.summary()["f32 tile 64"];
  EXPECT_EQ(before["cells"], 4 * (4 * 64 + 63));
  // Row i reads key <= i at random, so some lanes of the only tile are shown, and no other kind of tile is.
  EXPECT_GT(before["shown"], 100);
  EXPECT_LT(before["shown"], 4 * 64 + 1);
  adequacy.add(failed_result("attention b=1 h=1 l=64 d=128", "host", Outcome::fail, "x"));
  EXPECT_EQ(adequacy.summary()["f32 tile 64"]["shown"], before["shown"]);
}

}  // namespace
}  // namespace assay
