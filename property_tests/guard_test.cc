// Tests what the harness must notice around a call, with candidates that each misbehave in one way.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <new>
#include <set>
#include <sstream>
#include <system_error>
#include <tuple>

#include "harness/candidates/contracts.h"
#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "harness/faults/planted_faults.h"
#include "harness/results/adequacy.h"
#include "harness/results/result.h"
#include "harness/cases/suites.h"
#include "harness/results/schema.h"
#include "harness/shortage.h"
#include "kernels/attention/attention.h"
#include "kernels/simd/targets.h"
#include "testing/matchers.h"

namespace assay {
namespace {

// Runs the production kernel and then misbehaves.
class Misbehaving : public Candidate {
 public:
  using Deed = std::function<kernels::Status(const Attention&, const AttentionOutput&, int call)>;
  explicit Misbehaving(Deed deed, bool promises = true)
      : Candidate({.name = "misbehaving", .abilities = {.promises_bits = promises}}),
        deed_(std::move(deed)) {}
  std::string unsupported(const Call&) const override { return why_; }
  std::optional<Arithmetic> arithmetic(const Call& call,
                                       const kernels::Execution& how) const override {
    return host_contract(std::get<ForwardCall>(call).problem, how.target.name());
  }
  kernels::Status run(const Request& request) override {
    const auto& call = std::get<ForwardCall>(request.call);
    const kernels::Status status = kernels::attention_forward(call.problem, call.out, request.how);
    if (!status.ok()) return status;
    return deed_(call.problem, call.out, calls_++);
  }
  std::string why_;

 private:
  Deed deed_;
  int calls_ = 0;
};

CaseResult run(Misbehaving::Deed deed,
               const char* line = "attention b=1 h=2 l=9x20 d=8 layout=o:padded") {
  Misbehaving candidate(std::move(deed));
  return execute(parse_case(line), candidate);
}
std::byte* end_of(const TensorView& t, Index elements) {
  return static_cast<std::byte*>(t.data) + elements * format(t.dtype).bits / 8;
}

TEST(Guard, TheKernelAloneIsFine) {
  const CaseResult r =
      run([](const Attention&, const AttentionOutput&, int) { return kernels::Status{}; });
  EXPECT_THAT(r, Passes());
  EXPECT_EQ(r.relations.at("threads"), Relation::held());
  EXPECT_EQ(r.relations.at("negated-values"), Relation::held());
}

// A kernel that adds 0 times NaN: NaN in V of a key makes NaN of every row of its head.
class SpreadsNan : public Misbehaving {
 public:
  explicit SpreadsNan(bool promises) : Misbehaving(&spread, promises) {}

 private:
  static kernels::Status spread(const Attention& p, const AttentionOutput& out, int) {
    for_each_index(p.v.shape, [&](Index b, Index h, Index j, Index d) {
      if (!std::isnan(load(p.v, p.v.at(b, h, j, d)))) return;
      for (Index i = 0; i < p.shape.rows; ++i)
        store(out.o, out.o.at(b, h, i, d), std::numeric_limits<double>::quiet_NaN());
    });
    return {};
  }
};

// Masked keys are told from keys beyond the length, where memory may hold anything.
TEST(Guard, NanAtMaskedKeysIsAConvention) {
  const auto run_on = [](bool promises, const char* line) {
    SpreadsNan candidate(promises);
    return execute(parse_case(line), candidate);
  };
  const char* masked = "attention b=1 h=2 l=9x20 d=8 causal";
  const CaseResult r = run_on(false, masked);
  EXPECT_THAT(r, Passes());
  for (const char* name : {"unseen-keys-nan", "future-of-early-rows"}) {
    EXPECT_TRUE(r.relations.at(name).differs_by_convention()) << name;
  }
  EXPECT_THAT(run_on(true, masked), FailsWith("0 times NaN is added"));
  EXPECT_THAT(run_on(false, "attention b=1 h=2 l=9x20 d=8 lengths=15"),
              FailsWith("0 times NaN is added"));
}

TEST(Guard, WritesBeforeAndBehindBuffers) {
  CaseResult r = run([](const Attention&, const AttentionOutput& out, int) {
    static_cast<std::byte*>(out.o.data)[-1] = std::byte{0};
    return kernels::Status{};
  });
  EXPECT_THAT(r, FailsWith("o: a guard band was overwritten"));
  r = run([](const Attention& p, const AttentionOutput&, int) {
    *end_of(p.k, 2 * 20 * 8) = std::byte{1};
    return kernels::Status{};
  });
  EXPECT_THAT(r, FailsWith("k: a guard band was overwritten"));
}

TEST(Guard, WritesBetweenElements) {
  const CaseResult r = run([](const Attention&, const AttentionOutput& out, int) {
    static_cast<float*>(out.o.data)[out.o.at(0, 0, 0, 0) + 8] =
        0;  // it writes into the padding behind the first row
    return kernels::Status{};
  });
  EXPECT_THAT(r, FailsWith("o: bytes between its elements were overwritten"));
}

TEST(Guard, ChangedInputs) {
  const CaseResult r = run([](const Attention& p, const AttentionOutput&, int) {
    static_cast<float*>(p.v.data)[3] *= 1.5f;
    return kernels::Status{};
  });
  EXPECT_THAT(r, FailsWith("an input was changed"));
}

TEST(Guard, OutputsLeftUntouched) {
  class Lazy : public Misbehaving {
   public:
    Lazy()
        : Misbehaving(
              [](const Attention&, const AttentionOutput&, int) { return kernels::Status{}; }) {}
    kernels::Status run(const Request&) override { return {}; }
  } lazy;
  const CaseResult r = execute(parse_case("attention b=1 h=2 l=9x20 d=8"), lazy);
  EXPECT_THAT(r, FailsWith("LSE was not written"));
  EXPECT_EQ(r.verdict.failures.at("O was not written"), 2 * 9 * 8);
}

TEST(Guard, ExceptionsAndStatuses) {
  EXPECT_THAT(run([](const Attention&, const AttentionOutput&, int) -> kernels::Status {
                throw std::runtime_error("ouch");
              }),
              FailsWith("the candidate threw: ouch"));
  EXPECT_THAT(
      run([](const Attention&, const AttentionOutput&, int) -> kernels::Status { throw 5; }),
      FailsWith("no std::exception"));
  EXPECT_THAT(run([](const Attention&, const AttentionOutput&, int) {
                return kernels::Status{kernels::StatusCode::execution_failed, "lost"};
              }),
              FailsWith("status 5 (Execution failed): lost"));
}

// What the machine lacks is no fault of the candidate.
TEST(Guard, ShortagesAreNoFailures) {
  const auto fails_with = [](const auto& error) {
    return
        [error](const Attention&, const AttentionOutput&, int) -> kernels::Status { throw error; };
  };
  EXPECT_THROW(run(fails_with(std::system_error(EMFILE, std::generic_category()))), ShortageError);
  EXPECT_THROW(run(fails_with(ShortageError("no memory to share"))), ShortageError);
  EXPECT_THROW(run(fails_with(std::bad_alloc())), std::bad_alloc);
  EXPECT_THROW(run([](const Attention&, const AttentionOutput&, int) {
                 return kernels::Status{kernels::StatusCode::memory_allocation_failed, "scores"};
               }),
               ShortageError);
}

// The second call computes one element differently, because state survives or by chance. If every
// second call does so, the poison of the output is what differs, as where memory was not set.
TEST(Guard, RunsThatDisagree) {
  const auto wrong_in = [](const auto& is_wrong) {
    return run([=](const Attention&, const AttentionOutput& out, int call) {
      if (is_wrong(call)) static_cast<float*>(out.lse.data)[out.lse.at(0, 1, 4, 0)] *= 1 + 0x1p-23f;
      return kernels::Status{};
    });
  };
  EXPECT_THAT(
      wrong_in([](int call) { return call == 1; }),
      FailsWith("not deterministic: 1 of 8 runs differ from the first: LSE[b=0, h=1, row=4"));
  EXPECT_THAT(wrong_in([](int call) { return call % 2 == 1; }),
              FailsWith("poisoned differently disagree: LSE[b=0, h=1, row=4"));
}

// The errors have a direction that depends on the sign. They are far below any bound, so only a
// relation finds them.
TEST(Guard, RelationsSeeWhatNoBoundSees) {
  const CaseResult r = run([](const Attention&, const AttentionOutput& out, int) {
    for (Index i = 0; i < 9; ++i) {
      float& x = static_cast<float*>(out.o.data)[out.o.at(0, 0, i, 0)];
      if (x > 0) x = std::nextafter(x, 10.0f);
    }
    return kernels::Status{};
  });
  EXPECT_THAT(r, FailsWith("relation negated-values violated"));
}

// The candidate reads one element beyond the end, which changes no output. A page without access
// finds it.
TEST(Guard, PagesTellOneElementTooMany) {
  const auto reads_at = [](Index element) {
    return [element](const Attention& p, const AttentionOutput&, int) {
      const volatile float* k = static_cast<const float*>(p.k.data);
      return k[element] > 1e30f ? kernels::Status{kernels::StatusCode::unknown, "read"}
                                : kernels::Status{};
    };
  };
  const Case c = parse_case("attention b=1 h=1 l=9x20 d=8");
  ExecuteOptions options;
  for (const auto& [around, element, dies] :
       {std::tuple{Surroundings::page_behind, Index{160}, true},
        {Surroundings::page_before, Index{-1}, true},
        {Surroundings::bands, Index{160}, false}}) {
    options.around = around;
    Misbehaving candidate(reads_at(element));
    if (dies) EXPECT_DEATH(execute(c, candidate, options), "");
    else EXPECT_THAT(execute(c, candidate, options), Passes());
  }
}

// Pages around one tensor do not appear around the next tensor.
TEST(Guard, SurroundingsAreOfOneTensor) {
  const Extents shape{1, 1, 3, 5};
  const Layout layout{{15, 15, 5, 1}, 0, 15};
  const Tensor behind(Dtype::f32, shape, layout, Surroundings::page_behind),
      banded(Dtype::f32, shape, layout);
  EXPECT_DEATH(behind.bytes()[behind.size_in_bytes()] = std::byte{1}, "");
  EXPECT_TRUE(banded.guards_intact());
  banded.bytes()[banded.size_in_bytes()] = std::byte{1};
  EXPECT_FALSE(banded.guards_intact());
}

// A report draws what was judged: as many elements in the bins, the largest ratio in some cell, and
// failures at their places.
TEST(Pictures, AreOfTheElementsJudged) {
  ExecuteOptions options;
  options.pictures = true;
  const auto host = make_candidate("host");
  const Json fine = to_json(
      execute(parse_case("attention b=2 h=2/1 l=9x300 d=8 causal offset=end"), *host, options));
  for (const Json& u : fine["ulps"]) {
    std::int64_t all = u["above"];
    for (const Json& n : u["counts"]) all += n.get<std::int64_t>();
    EXPECT_EQ(all, fine["elements"]["compared"][u["output"].get<std::string>()]) << u["output"];
  }
  double largest = 0;
  for (const Json& m : fine["maps"])
    if (m["output"] == "O")
      for (const Json& row : m["cells"])
        for (const Json& cell : row)
          if (cell.is_number()) largest = std::max(largest, cell.get<double>());
  EXPECT_EQ(largest, fine["worst"]["O"]["ratio"]);
  ASSERT_EQ(fine["mask"].size(), 1u);  // every head sees the same keys
  EXPECT_EQ(fine["mask"][0]["key_step"], 4);
  EXPECT_EQ(fine["mask"][0]["cells"][8], std::string(75, '9'));
  EXPECT_EQ(fine["heads"][0]["ratios"].size(), 2u);

  const auto wrong = make_candidate("fault:second-batch-not-computed");
  const Json failed = to_json(execute(parse_case("attention b=2 h=1 l=9x30 d=8"), *wrong, options));
  EXPECT_EQ(failed["outcome"], "fail");
  EXPECT_EQ(failed["maps"][0]["b"], 1) << "the worst head comes first";
  const auto product =
      to_json(execute(parse_case("product m=70 n=20 k=40 w=nvfp4"), *host, options));
  EXPECT_EQ(product["maps"][0]["row_step"], 2);
  const auto gradients =
      to_json(execute(parse_case("backward b=1 h=2/1 l=9x30 d=8 causal"), *host, options));
  std::set<std::string> drawn;
  for (const Json& m : gradients["maps"]) drawn.insert(m["output"]);
  EXPECT_EQ(drawn, (std::set<std::string>{"O", "LSE", "dQ", "dK", "dV"}));
}

// The offsets exceed 2^32 elements, in mappings that have memory only for the rows.
TEST(Guard, DistantRowsAreGuardedToo) {
  const char* line = "attention b=2 h=2 l=9x20 d=8 layout=distant";
  EXPECT_THAT(
      run([](const Attention&, const AttentionOutput&, int) { return kernels::Status{}; }, line),
      Passes());
  EXPECT_THAT(run(
                  [](const Attention&, const AttentionOutput& out, int) {
                    static_cast<float*>(out.o.data)[out.o.at(1, 1, 7, 7) + 1] =
                        0;  // it writes behind a row that begins beyond 2^32
                    return kernels::Status{};
                  },
                  line),
              FailsWith("o: bytes between its elements were overwritten"));
}

TEST(Guard, UnsupportedIsNeverAPass) {
  Misbehaving candidate(
      [](const Attention&, const AttentionOutput&, int) { return kernels::Status{}; });
  candidate.why_ = "no such dtype";
  const CaseResult r = execute(parse_case("attention b=1 h=1 l=3 d=4"), candidate);
  EXPECT_THAT(r, IsUnsupported("no such dtype"));
}

TEST(Guard, ImpossibleRequestsAreRefusedBeforeAnythingIsAllocated) {
  const auto host = make_candidate("host");
  EXPECT_THROW(execute(parse_case("attention b=1 h=64 l=4194304 d=1024"), *host), CaseError);
  EXPECT_THROW(execute(parse_case("attention b=1 h=1 l=4 d=4 target=MMX"), *host), CaseError);
  EXPECT_THROW(make_candidate("fault:none-such"), std::invalid_argument);
}

// Runs the backward pass or the cache of the production kernel, and then misbehaves.
class MisbehavingBeyond : public Candidate {
 public:
  using Backward = std::function<void(const Attention&, const AttentionBackwardInput&,
                                      const AttentionGradients&, int call)>;
  using Cached = std::function<void(const Inputs&, const AttentionOutput&, int call)>;
  MisbehavingBeyond(Backward of_gradients, Cached of_caches)
      : Candidate(
            {.name = "misbehaving",
             .abilities = {.cache = of_caches != nullptr, .backward = of_gradients != nullptr}}),
        backward(std::move(of_gradients)),
        cached(std::move(of_caches)) {}
  std::string unsupported(const Call&) const override { return {}; }
  std::optional<Arithmetic> arithmetic(const Call& call,
                                       const kernels::Execution& how) const override {
    return host_->arithmetic(call, how);
  }
  kernels::Status run(const Request& request) override {
    const kernels::Status status = host_->run(request);
    if (const auto* call = std::get_if<BackwardCall>(&request.call))
      backward(call->problem, call->in, call->out, calls_++);
    if (const auto* call = std::get_if<CachedCall>(&request.call))
      cached(call->inputs, call->out, calls_++);
    return status;
  }
  Backward backward;
  Cached cached;

 private:
  std::unique_ptr<Candidate> host_ = make_candidate("host");
  int calls_ = 0;
};

CaseResult run_backward(
    MisbehavingBeyond::Backward deed,
    const char* line = "backward b=1 h=2 l=9x20 d=8 causal layout=q:padded bias=normal@hj") {
  MisbehavingBeyond candidate(std::move(deed), nullptr);
  return execute(parse_case(line), candidate);
}

TEST(GuardBackward, TheKernelAloneIsFine) {
  const CaseResult r = run_backward([](auto&&...) {});
  EXPECT_THAT(r, Passes());
  for (const char* name : {"threads", "negated-gradient", "unseen-keys-nan"})
    EXPECT_EQ(r.relations.at(name), Relation::held()) << name;
}

// An empty sum is written where an axis broadcasts. It lies between no elements.
TEST(GuardBackward, EmptyProblemsWithABroadcastBiasAreFine) {
  for (const char* line :
       {"backward b=0 h=2 l=9x20 d=8 bias=normal@hij sink=1",
        "backward b=1 h=2 l=0x20 d=8 bias=normal@j", "backward b=2 h=2 l=9x0 d=8 bias=normal@"}) {
    const CaseResult r = run_backward([](auto&&...) {}, line);
    EXPECT_THAT(r, HasNothingOutside());
    EXPECT_GT(r.verdict.outputs.at(Output::d_bias).elements, 0) << line;
    EXPECT_THAT(run_backward([](auto&, const AttentionBackwardInput&, const AttentionGradients& out,
                                int) { *static_cast<float*>(out.d_bias.data) = 1; },
                             line),
                FailsWith("dBias is not 0 where no gradient passes"))
        << line;
  }
}

TEST(GuardBackward, MemoryAroundGradientsAndInputs) {
  using In = AttentionBackwardInput;
  using Out = AttentionGradients;
  auto byte_of = [](const TensorView& t, Index offset) -> std::byte& {
    return static_cast<std::byte*>(t.data)[offset];
  };
  EXPECT_THAT(run_backward([&](auto&, const In&, const Out& out, int) {
                byte_of(out.dk, -1) = std::byte{0};
              }),
              FailsWith("dk: a guard band was overwritten"));
  EXPECT_THAT(run_backward([&](auto&, const In&, const Out& out, int) {
                *end_of(out.d_bias, 2 * 20) = std::byte{0};
              }),
              FailsWith("d_bias: a guard band was overwritten"));
  EXPECT_THAT(run_backward([&](auto&, const In&, const Out& out, int) {
                static_cast<float*>(out.dq.data)[out.dq.at(0, 0, 0, 0) + 8] = 0;
              }),
              FailsWith("dq: bytes between its elements were overwritten"));
  EXPECT_THAT(run_backward([&](auto&, const In& in, const Out&, int) {
                byte_of(in.lse, 0) ^= std::byte{1};
              }),
              FailsWith("an input was changed"));
  EXPECT_THAT(run_backward([&](auto&, const In& in, const Out&, int) {
                byte_of(in.d_o, 0) ^= std::byte{1};
              }),
              FailsWith("an input was changed"));
}

TEST(GuardBackward, RunsAndRelationsThatDisagree) {
  auto nudge = [](const TensorView& t) {
    static_cast<float*>(t.data)[t.at(0, 1, 3, 2)] *= 1 + 0x1p-23f;
  };
  EXPECT_THAT(run_backward([&](auto&, auto&, const AttentionGradients& out, int call) {
                if (call == 1) nudge(out.dv);
              }),
              FailsWith("not deterministic: 1 of 8 runs differ from the first: dV[b=0, h=1, row=3, "
                        "column=2]"));
  EXPECT_THAT(run_backward([&](auto&, auto&, const AttentionGradients& out, int call) {
                if (call % 2 == 1) nudge(out.dv);
              }),
              FailsWith("poisoned differently disagree: dV[b=0, h=1, row=3, column=2]"));
  EXPECT_THAT(run_backward([&](auto&, auto&, const AttentionGradients& out, int call) {
                if (call == 3) nudge(out.dq);
              }),
              FailsWith("not deterministic: relation negated-gradient was violated: dQ"));
  EXPECT_THAT(run_backward([&](auto&, auto&, const AttentionGradients& out, int call) {
                if (call >= 3) nudge(out.dq);
              }),
              FailsWith("relation negated-gradient violated: dQ"));
}

TEST(GuardBackward, AWrongForwardIsNotForgivenByItsGradients) {
  struct Wrong : MisbehavingBeyond {
    Wrong() : MisbehavingBeyond([](auto&&...) {}, nullptr) {}
    kernels::Status run(const Request& request) override {
      const kernels::Status status = MisbehavingBeyond::run(request);
      if (const auto* call = std::get_if<ForwardCall>(&request.call))
        static_cast<float*>(call->out.lse.data)[call->out.lse.at(0, 0, 2, 0)] += 0.01f;
      return status;
    }
  } wrong;
  const CaseResult r = execute(parse_case("backward b=1 h=2 l=9x20 d=8"), wrong);
  EXPECT_THAT(r, FailsWith("LSE is outside its bound"));
}

TEST(GuardBackward, WithoutABackwardPassOrACacheIsUnsupported) {
  MisbehavingBeyond candidate(nullptr, nullptr);
  EXPECT_THAT(execute(parse_case("backward b=1 h=1 l=3 d=4"), candidate), IsUnsupported());
  EXPECT_THAT(execute(parse_case("attention b=1 h=1 l=3 d=4 cache=contiguous"), candidate),
              IsUnsupported());
}

TEST(GuardCache, TokensAreInputsAndRelationsAreAsked) {
  MisbehavingBeyond candidate(nullptr, [](auto&&...) {});
  const Case c =
      parse_case("attention b=2 h=4/2 l=9x20 d=8 causal offset=end cache=paged:4 chunks=4,1");
  const CaseResult fine = execute(c, candidate);
  EXPECT_THAT(fine, Passes());
  for (const char* name : {"threads", "chunks", "pages", "no-cache"})
    EXPECT_EQ(fine.relations.at(name), Relation::held()) << name;
  candidate.cached = [](const Inputs& in, const AttentionOutput&, int) {
    in.token_k.bytes()[5] ^= std::byte{1};
  };
  EXPECT_THAT(execute(c, candidate), FailsWith("an input was changed"));
  // One call and chunks differ by an ulp, which no bound notices.
  MisbehavingBeyond leaning(nullptr, [](const Inputs&, const AttentionOutput& out, int call) {
    if (call >= 2) static_cast<float*>(out.o.data)[out.o.at(1, 2, 3, 4)] *= 1 + 0x1p-23f;
  });
  EXPECT_THAT(execute(c, leaning),
              FailsWith("relation chunks violated: O[b=1, h=2, row=3, column=4]"));
}

// If an infinity of Q is projected first, the output may be NaN and nothing else. An infinity in
// the rotary part, or a NaN of Q, is judged as usual.
TEST(GuardCache, OnlyNanIsExcusedOfAProjectedInfinity) {
  MisbehavingBeyond candidate(nullptr, [](auto&&...) {});
  const auto with = [&](const char* poke, double instead) {
    candidate.cached = [instead](const Inputs&, const AttentionOutput& out, int) {
      if (instead == 0) return;
      store(out.lse, out.lse.at(0, 5, 2, 0), instead);
      for (Index c = 0; c < out.o.shape[3]; ++c) store(out.o, out.o.at(0, 5, 2, c), instead);
    };
    ExecuteOptions options;
    options.relations = false;
    return execute(
        parse_case(
            std::string(
                "attention b=1 h=6/3 l=3 d=27/1 softcap=1 cache=latent:16:20+9 poke=q:0:5:2:") +
            poke),
        candidate, options);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const CaseResult excused = with("17=inf", 0);
  EXPECT_THAT(excused, Passes());
  EXPECT_EQ(excused.verdict.excused.at(
                "an infinity of Q or K is projected first, or meets what is read as 0"),
            2);
  EXPECT_THAT(with("17=inf", 7), Fails());
  EXPECT_THAT(with("18=inf", 0), Passes());
  EXPECT_THAT(with("18=inf", nan), Fails()) << "the rotary part is not projected";
  EXPECT_THAT(with("17=nan", 0), Passes());
  EXPECT_THAT(with("17=nan", 7), Fails());
}

// A fault that is listed as equivalent changes no bit. Every other fault is a candidate under its
// name, and a suite that reaches it hunts it.
TEST(PlantedFaults, EquivalentOnesChangeNoBit) {
  const std::vector<Case> cases = make_suite("smoke", 3).cases,
                          products = make_suite("products", 3).cases;
  const PlantedFault elsewhere{.name = "elsewhere", .fault = "sink-gradient-sign"_fault};
  std::size_t equivalent = 0;
  for (const PlantedFault& f : planted_faults) {
    if (f.equivalent.empty()) continue;
    ++equivalent;
    for (const Case& c : products) {
      if (f.about != FaultSubject::product) break;
      const ProductInputs inputs(c);
      const ProductOutput with(c), without(c);
      ASSERT_TRUE(run_planted_product(f, inputs.problem, with.c.view(), 1).ok() &&
                  run_planted_product(elsewhere, inputs.problem, without.c.view(), 1).ok());
      EXPECT_EQ(first_difference(with, without), "") << f.name << ": " << print_case(c);
    }
    for (const Case& c : cases) {
      if (f.about == FaultSubject::product) break;
      const Inputs inputs(c);
      const Outputs with(c), without(c);
      ASSERT_TRUE(run_planted_fault(f, inputs.problem, with.view(), 1).ok() &&
                  run_planted_fault(elsewhere, inputs.problem, without.view(), 1).ok());
      EXPECT_EQ(first_difference(with, without), "") << f.name << ": " << print_case(c);
    }
  }
  EXPECT_EQ(equivalent, 2u);
}

TEST(PlantedFaults, AreNamedOnceAndReachedByTheirSuites) {
  std::set<std::string_view> names;
  for (const PlantedFault& f : planted_faults) {
    EXPECT_TRUE(names.insert(f.name).second) << f.name;
    EXPECT_EQ(make_candidate("fault:" + std::string(f.name))->name(),
              "fault:" + std::string(f.name));
    EXPECT_TRUE(std::ranges::any_of(make_suite(f.suite(), 1).cases, [&](const Case& c) {
      return reaches(f, c);
    })) << f.name;
  }
  // Every class in the list of how kernels fail, F01 to F50, has a fault that some input shows.
  std::set<std::string> classes;
  for (const PlantedFault& f : planted_faults)
    if (f.equivalent.empty()) classes.insert(std::string(f.fault_class));
  for (int n = 1; n <= 50; ++n) EXPECT_TRUE(classes.contains(fmt::format("F{:02}", n))) << n;
  EXPECT_EQ(classes.size(), 50u);
}

// docs/faults.md has every fault once, in the row of its class. The faults that it names as
// stand-ins for faults of other systems exist.
TEST(PlantedFaults, TheirDocumentIsWhole) {
  std::map<std::string, std::string> expected, listed;
  std::set<std::string> names;
  for (const PlantedFault& f : planted_faults) {
    expected[std::string(f.name)] = f.fault_class;
    names.emplace(f.name);
  }
  std::ifstream document(ASSAY_SOURCE_DIR "/docs/faults.md");
  std::size_t models = 0;
  for (std::string line; std::getline(document, line);) {
    if (!line.starts_with("| ") || line.starts_with("| ---")) continue;
    std::istringstream columns(line);
    std::string bar, first, last;
    std::getline(columns, bar, '|');
    std::getline(columns, first, '|');
    for (std::string cell; std::getline(columns, cell, '|');) last = cell;
    const bool is_class = first.size() == 5 && first[1] == 'F' && std::isdigit(first[2]);
    std::ranges::replace(last, ';', ',');
    std::istringstream cells(last);
    for (std::string name; std::getline(cells, name, ',');) {
      std::erase_if(name, [](char c) { return c == ' ' || c == '*'; });
      if (is_class) EXPECT_TRUE(listed.emplace(name, first.substr(1, 3)).second) << name;
      else if (name.find('-') != std::string::npos) {
        ++models;
        EXPECT_TRUE(names.contains(name)) << name;
      }
    }
  }
  EXPECT_EQ(listed, expected);
  EXPECT_GT(models, 40u);
}

// The pass cannot miss the deleted key: deleting a key of `gather` inputs moves O by whole values.
// A tile of more keys than the certificate has lanes is certified in pieces.
TEST(Power, ATileMayBeWiderThanTheLanes) {
  class Wide : public Misbehaving {
   public:
    Wide() : Misbehaving([](auto&&...) { return kernels::Status{}; }) {}
    std::optional<Arithmetic> arithmetic(const Call& call,
                                         const kernels::Execution& how) const override {
      auto contract = std::get<Contract>(*Misbehaving::arithmetic(call, how));
      contract.tile = 1024;
      contract.ordered = false;
      return contract;
    }
  };
  Wide candidate;
  const CaseResult r = execute(parse_case("attention b=1 h=1 l=2x600 d=8"), candidate);
  EXPECT_THAT(r, Passes());
  EXPECT_GT(r.verdict.power.by_either[0], 0);
  Adequacy adequacy;
  adequacy.add(r);
  EXPECT_TRUE(adequacy.summary().contains("f32 tile 256"));
}

TEST(Power, CertificateOfASuiteIsAUnionOfLanes) {
  const auto host = make_candidate("host");
  Adequacy adequacy;
  adequacy.add(execute(parse_case("attention b=1 h=1 l=64 d=128 scores=gather"), *host));
  const AdequacyCells before = adequacy.summary().at("f32 tile 64");
  EXPECT_EQ(before.cells, 4 * (4 * 64 + 63));
  // Row i reads a random key <= i, so some lanes of the only tile are shown. No other kind of tile
  // is shown.
  EXPECT_GT(before.shown, 100);
  EXPECT_LT(before.shown, 4 * 64 + 1);
  adequacy.add(failed_result("attention b=1 h=1 l=64 d=128", "host", Outcome::fail, "x",
                             Surroundings::bands));
  EXPECT_EQ(adequacy.summary().at("f32 tile 64"), before);
}

}  // namespace
}  // namespace assay
