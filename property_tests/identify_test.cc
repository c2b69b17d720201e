// What identify() says of emulated kernels, whose arithmetic is known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "harness/candidates/named_candidate.h"
#include "harness/identify/fit.h"
#include "harness/identify/identify.h"
#include "harness/judging/outputs.h"
#include "harness/results/schema.h"
#include "kernels/simd/targets.h"
#include "testing/emulated_kernel.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// A candidate that computes as the emulation says.
class Emulated : public Candidate {
 public:
  explicit Emulated(Emulation e) : Candidate({.name = e.contract.name}), e_(std::move(e)) {}
  std::string unsupported(const Call& call) const override {
    return std::holds_alternative<ForwardCall>(call) ? "" : "only O and LSE";
  }
  std::optional<Arithmetic> arithmetic(const Call&, const kernels::Execution&) const override {
    return std::nullopt;
  }
  kernels::Status run(const Request& request) override {
    const auto& call = std::get<ForwardCall>(request.call);
    run_emulated(e_, call.problem, call.out);
    return {};
  }

 private:
  Emulation e_;
};

Case attention_in(Dtype dtype) {
  Case asked;
  asked.dtype = dtype;
  return asked;
}

std::map<std::string, std::string> answers_of(const Emulation& e, Dtype dtype) {
  Emulated candidate(e);
  std::map<std::string, std::string> answers;
  for (const Statement& s : identify(candidate, attention_in(dtype)).statements)
    answers[s.subject] = s.answer;
  return answers;
}

std::string expected_weights(const Contract& c) {
  if (!c.weight_dtype) return "not rounded";
  return std::string(format(*c.weight_dtype).name) +
         (c.divides_first ? ", after it was divided by the row sum" : "");
}

std::string expected_sums(const Emulation& e) {
  switch (e.accumulation) {
    case Accumulation::half: return "11 bits, rounded to nearest (binary16)";
    case Accumulation::truncating_block: return "24 bits, truncated";
    default: return "24 bits, rounded to nearest (binary32)";
  }
}

constexpr const char* order_of_amx =
    "tiles of 32 columns, each summed by itself, 2 lanes (columns 2 apart), each in order, then "
    "the lanes in order";

class Identify : public testing::TestWithParam<Dtype> {};

TEST_P(Identify, TellsEveryEmulatedArithmetic) {
  for (const Emulation& e : emulations(GetParam())) {
    SCOPED_TRACE(e.contract.name);
    std::map<std::string, std::string> told = answers_of(e, GetParam());
    EXPECT_EQ(told["P V, sums"], expected_sums(e));
    // The emulation adds q.k in binary32 beside a binary16 accumulator of P V.
    if (e.accumulation != Accumulation::half) EXPECT_EQ(told["Q K, sums"], expected_sums(e));
    EXPECT_EQ(told["P"], expected_weights(e.contract));
    if (e.contract.weight_dtype && !e.contract.divides_first)
      EXPECT_EQ(told["row sum"], "of weights " + (e.contract.sum_from_rounded
                                                      ? "rounded to " + expected_weights(e.contract)
                                                      : "that are not rounded"));
    // Sums in binary32 hold the subnormal numbers of f16.
    const bool flushed = flushes(e.accumulation) && GetParam() != Dtype::f16;
    EXPECT_EQ(told["Q K, subnormals"] != "kept", flushed);
    // A binary16 accumulator of P V holds none of those of bf16 and f32.
    const bool too_small = e.accumulation == Accumulation::half && GetParam() != Dtype::f16;
    EXPECT_EQ(told["P V, subnormals"] != "kept", flushed || too_small);
    const bool stored = e.contract.score_dtype.has_value();
    EXPECT_EQ(told["scores"],
              stored ? std::string(format(*e.contract.score_dtype).name) : "not rounded");
    if (e.accumulation == Accumulation::truncating_block) {
      EXPECT_THAT(told["Q K, order of sums"], StartsWith("16 columns at once"));
    } else if (e.accumulation == Accumulation::flushing_lanes) {
      EXPECT_EQ(told["Q K, order of sums"], order_of_amx);
    } else {
      EXPECT_EQ(told["Q K, order of sums"], "one column after another");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Identify, testing::Values(Dtype::f32, Dtype::f16, Dtype::bf16),
                         [](const auto& p) { return std::string(format(p.param).name); });

// Every statement says with which input it was made.
TEST(IdentifyHost, EveryStatementHasItsInput) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  const Identification told = identify(*host, attention_in(Dtype::f32));
  EXPECT_GE(told.statements.size(), 8u);
  for (const Statement& s : told.statements) {
    EXPECT_FALSE(s.answer.empty()) << s.subject;
    EXPECT_FALSE(s.input.empty()) << s.subject;
  }
  const auto back = from_json<Identification>(to_json(told), "identification");
  EXPECT_EQ(back.statements, told.statements);
}

// On a machine without the instruction, the host computes bf16 in fp32.
TEST(IdentifyHost, PairsOfBf16AreNamed) {
  const bool in_pairs = kernels::Target::named("AVX3_BF16").has_value(),
             amx = kernels::Target::named("AVX3_AMX").has_value();
  if (!in_pairs) std::printf("not run on this machine: AVX3_BF16\n");
  if (!amx) std::printf("not run on this machine: AVX3_AMX\n");
  const std::unique_ptr<Candidate> host = make_candidate("host");
  std::map<std::string, std::string> told;
  for (const Statement& s : identify(*host, attention_in(Dtype::bf16)).statements)
    told[s.subject] = s.answer;
  EXPECT_EQ(told["P"], in_pairs ? "bf16" : "not rounded");
  EXPECT_EQ(told["Q K, order of sums"], amx ? order_of_amx : "one column after another");
  EXPECT_EQ(told["P V, sums"], "24 bits, rounded to nearest (binary32)");
  for (const char* sums : {"Q K, subnormals", "P V, subnormals"})
    EXPECT_EQ(told[sums], in_pairs ? "read or written as 0, as by VDPBF16PS and AMX" : "kept");
}

TEST(IdentifyRecord, AnArithmeticFitsRightOutputsAndNoneFitsWrongOnes) {
  for (const bool right : {true, false}) {
    const RecordFile file(std::string(ASSAY_SOURCE_DIR) + "/property_tests/records/" +
                          (right ? "right" : "wrong") + ".safetensors");
    ASSERT_FALSE(file.names().empty());
    for (const std::string& name : file.names()) {
      const std::vector<ArithmeticFit> fits = fit_arithmetics(file.read(name), 1);
      EXPECT_GT(fits.size(), 2u) << name;
      EXPECT_EQ(std::ranges::any_of(fits, &ArithmeticFit::typical), right) << name;
      for (const ArithmeticFit& fit : fits) EXPECT_EQ(fit.why.empty(), fit.typical) << name;
    }
  }
}

TEST(IdentifyHost, AKernelThatTakesNoInputIsRefused) {
  NamedCandidate none({.name = "none", .features = Features({"attention", "dtype=f16"})},
                      [](const NamedCall&) {});
  const Identification told = identify(none, attention_in(Dtype::bf16));
  EXPECT_EQ(told.outcome, Asking::unsupported);
  EXPECT_THAT(told.reason, HasSubstr("no dtype=bf16"));
}

}  // namespace
}  // namespace assay
