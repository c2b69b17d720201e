// What identify() says of the gradients of emulated kernels, whose arithmetic is known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "harness/candidates/named_candidate.h"
#include "harness/identify/gradients.h"
#include "harness/identify/identify.h"
#include "kernels/simd/targets.h"
#include "testing/emulated_kernel.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// How the dK and dV of the query heads of a group are added.
enum class Heads { at_once, rounded, rounded_and_added_in_dtype };

TensorView head_of(TensorView t, Index h) {
  t.origin = t.at(0, h, 0, 0);
  t.shape[1] = 1;
  return t;
}

// A backward pass that computes as the emulation says.
class EmulatedBackwardPass : public Candidate {
 public:
  EmulatedBackwardPass(Emulation e, Heads heads)
      : Candidate({.name = e.contract.name, .abilities = {.backward = true}}),
        e_(std::move(e)),
        heads_(heads) {}
  std::string unsupported(const Call& call) const override {
    return std::holds_alternative<BackwardCall>(call) ? "" : "only gradients";
  }
  std::optional<Arithmetic> arithmetic(const Call&, const kernels::Execution&) const override {
    return std::nullopt;
  }
  kernels::Status run(const Request& request) override {
    const auto& call = std::get<BackwardCall>(request.call);
    if (heads_ == Heads::at_once || call.problem.shape.group() == 1)
      run_emulated_backward(e_, call.problem, call.in, call.out);
    else add_heads(call);
    return {};
  }

 private:
  void add_heads(const BackwardCall& call) const {
    const Attention& p = call.problem;
    const Tensor dk(call.out.dk.dtype, call.out.dk.shape, packed(call.out.dk.shape)),
        dv(call.out.dv.dtype, call.out.dv.shape, packed(call.out.dv.shape));
    std::vector<double> sums[2];
    for (Index h = 0; h < p.shape.query_heads; ++h) {
      Attention one = p;
      one.shape.query_heads = 1;
      one.q = head_of(p.q, h);
      const AttentionBackwardInput in{head_of(call.in.o, h), head_of(call.in.lse, h),
                                      head_of(call.in.d_o, h)};
      run_emulated_backward(e_, one, in, {head_of(call.out.dq, h), dk.view(), dv.view(), {}, {}});
      add(dk.view(), sums[0]);
      add(dv.view(), sums[1]);
    }
    store_all(sums[0], call.out.dk);
    store_all(sums[1], call.out.dv);
  }
  static Layout packed(const Extents& e) { return make_layout(LayoutKind::bhsd, e, 1); }
  void add(const TensorView& part, std::vector<double>& sums) const {
    sums.resize(usize(element_count(part.shape)), 0);
    std::size_t at = 0;
    for_each_index(part.shape, [&](Index b, Index h, Index i, Index d) {
      const double sum = sums[at] + load(part, part.at(b, h, i, d));
      sums[at++] = heads_ == Heads::rounded ? sum : round_to(part.dtype, sum);
    });
  }
  static void store_all(const std::vector<double>& sums, const TensorView& to) {
    std::size_t at = 0;
    for_each_index(to.shape, [&](Index b, Index h, Index i, Index d) {
      store(to, to.at(b, h, i, d), round_to(to.dtype, sums[at++]));
    });
  }

  Emulation e_;
  Heads heads_;
};

Case gradients_in(Dtype dtype) {
  Case asked;
  asked.operation = Operation::backward;
  asked.dtype = dtype;
  return asked;
}

std::map<std::string, std::string> answers_of(Candidate& candidate, Dtype dtype) {
  std::map<std::string, std::string> answers;
  const Identification told = identify(candidate, gradients_in(dtype));
  EXPECT_EQ(told.outcome, Asking::told) << told.reason;
  for (const Statement& s : told.statements) {
    EXPECT_FALSE(s.input.empty()) << s.subject;
    answers[s.subject] = s.answer;
  }
  return answers;
}

Emulation emulation_named(const std::string& name, Dtype dtype) {
  const std::vector<Emulation> all = emulations(dtype);
  const auto found =
      std::ranges::find_if(all, [&](const Emulation& e) { return e.contract.name == name; });
  if (found == all.end()) throw std::invalid_argument(name);
  return *found;
}

std::map<std::string, std::string> answers_of(const std::string& emulation, Dtype dtype,
                                              Heads heads = Heads::at_once) {
  EmulatedBackwardPass candidate(emulation_named(emulation, dtype), heads);
  return answers_of(candidate, dtype);
}

constexpr const char* binary32 = "24 bits, rounded to nearest (binary32)";

TEST(IdentifyBackward, TellsSums) {
  std::map<std::string, std::string> told = answers_of("fp32, fma", Dtype::f32);
  for (const char* of : {"dP", "dV", "dK", "dQ"}) {
    SCOPED_TRACE(of);
    EXPECT_EQ(told[std::string(of) + ", sums"], binary32);
    EXPECT_THAT(told[std::string(of) + ", order of sums"], StartsWith("one "));
    EXPECT_EQ(told[std::string(of) + ", inputs"], "all 24 bits");
  }
  EXPECT_EQ(told["P before dV"], "not rounded");
  EXPECT_EQ(told["dS before dK"], "not rounded");
  told = answers_of("truncating blocks of 16", Dtype::bf16);
  for (const char* of : {"dP", "dV", "dK", "dQ"}) {
    SCOPED_TRACE(of);
    EXPECT_EQ(told[std::string(of) + ", sums"], "24 bits, truncated");
    EXPECT_THAT(told[std::string(of) + ", order of sums"], StartsWith("16 "));
  }
}

TEST(IdentifyBackward, TellsASumInHalf) {
  std::map<std::string, std::string> told = answers_of("fp16 accumulator", Dtype::f16);
  EXPECT_EQ(told["dV, sums"], "11 bits, rounded to nearest (binary16)");
  EXPECT_EQ(told["dP, sums"], binary32);
}

// What two of the questions tell of P and dS.
std::map<std::string, std::string> roundings_of(const std::string& emulation, Dtype dtype) {
  EmulatedBackwardPass candidate(emulation_named(emulation, dtype), Heads::at_once);
  const BackwardProbe probe(candidate, dtype, 1);
  Identification told;
  tell_gradient_weights(probe, told);
  tell_score_gradients(probe, told);
  std::map<std::string, std::string> answers;
  for (const Statement& s : told.statements) answers[s.subject] = s.answer;
  return answers;
}

TEST(IdentifyBackward, TellsWhatIsRoundedBeforeTheProducts) {
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    const std::string name(format(dtype).name);
    SCOPED_TRACE(name);
    std::map<std::string, std::string> told = roundings_of("fp32, rounded products, exp2", dtype);
    EXPECT_EQ(told["P before dV"], "not rounded");
    EXPECT_EQ(told["dS before dK"], "not rounded");
    told = roundings_of("weights in the dtype", dtype);
    EXPECT_EQ(told["P before dV"], name);
    EXPECT_EQ(told["dS before dK"], name);
    told = roundings_of("weights in the dtype, dS from them and scaled", dtype);
    EXPECT_EQ(told["P before dV"], name);
    EXPECT_EQ(told["dS before dK"], name + ", from P in " + name);
    told = roundings_of("weights in e4m3", dtype);
    EXPECT_EQ(told["P before dV"], "f8e4m3");
    EXPECT_EQ(told["dS before dK"], "f8e4m3");
  }
}

TEST(IdentifyBackward, TellsHowGroupedHeadsAreAdded) {
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    const std::string name(format(dtype).name);
    SCOPED_TRACE(name);
    const auto told = [&](Heads heads) {
      EmulatedBackwardPass candidate(emulation_named("fp32, fma", dtype), heads);
      Identification all;
      tell_grouped_heads(BackwardProbe(candidate, dtype, 4), all);
      return all.statements.at(0).answer;
    };
    EXPECT_EQ(told(Heads::at_once), "added before they are rounded");
    EXPECT_EQ(told(Heads::rounded), "each rounded to " + name + ", then added in more bits");
    EXPECT_EQ(told(Heads::rounded_and_added_in_dtype),
              "each rounded to " + name + ", and added in " + name);
  }
}

// In bf16 the host rounds P and dS if the machine multiplies pairs, and AMX has its own order.
TEST(IdentifyBackward, TheHostsGradientsAreInBinary32) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  std::map<std::string, std::string> told = answers_of(*host, Dtype::bf16);
  for (const char* of : {"dP, sums", "dV, sums", "dK, sums", "dQ, sums"})
    EXPECT_EQ(told[of], binary32) << of;
  const bool in_pairs = kernels::Target::named("AVX3_BF16").has_value(),
             amx = kernels::Target::named("AVX3_AMX").has_value();
  EXPECT_EQ(told["dV, order of sums"],
            amx ? "tiles of 32 rows, each summed by itself, 2 lanes (rows 2 apart), each in order, "
                  "then the lanes in order"
                : "tiles of 96 rows, each summed by itself, one row after another");
  EXPECT_EQ(told["P before dV"], in_pairs ? "bf16" : "not rounded");
  EXPECT_EQ(told["dS before dK"], in_pairs ? "bf16" : "not rounded");
  EXPECT_EQ(told["dV, grouped heads"], "added before they are rounded");
}

TEST(IdentifyBackward, AKernelWithoutGradientsIsRefused) {
  NamedCandidate none({.name = "none", .features = Features({"attention", "dtype=bf16"})},
                      [](const NamedCall&) {});
  const Identification told = identify(none, gradients_in(Dtype::bf16));
  EXPECT_EQ(told.outcome, Asking::unsupported);
  EXPECT_THAT(told.reason, HasSubstr("no backward"));
}

}  // namespace
}  // namespace assay
