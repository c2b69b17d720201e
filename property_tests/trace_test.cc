// The stage trace: right kernels stay inside every enclosure, and for a wrong kernel the trace
// tells where it first goes wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <concepts>
#include <functional>
#include <type_traits>

#include "harness/candidates/contracts.h"
#include "harness/judging/outputs.h"
#include "harness/cases/suites.h"
#include "harness/judging/trace.h"
#include "kernels/attention/attention.h"
#include "kernels/simd/bf16_dots.h"

namespace assay {
namespace {

using kernels::Stage;
using testing::HasSubstr;

// Runs every case of the suites that a trace takes on the kernel itself. There must be no false
// alarm, and every stage must be compared.
TEST(Trace, TheKernelStaysInsideEveryEnclosure) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  std::array<std::int64_t, stage_count> by_stage{};
  std::size_t cases = 0, unjudged = 0;
  for (const char* suite : {"smoke", "standard", "backward", "padding"}) {
    std::size_t index = 0;
    for (const Case& c : make_suite(suite, 1).cases) {
      const AttentionShape& s = c.shape;
      if (c.cache || c.operation == Operation::product || c.dtype == Dtype::f64 ||
          s.batch * s.query_heads * s.rows * s.keys > 40000)
        continue;
      if (++index % 3 != 0) continue;
      const Trace t = trace_case(c, *host);
      EXPECT_FALSE(t.first) << describe(t, c);
      ++cases;
      unjudged += t.rows_not_judged > 0;
      for (std::size_t k = 0; k < t.stages.size(); ++k) by_stage[k] += t.stages[k].compared;
    }
  }
  printf("%zu cases, %zu of them with rows that nothing is asked of\n", cases, unjudged);
  EXPECT_GT(cases, 150u);
  EXPECT_LT(unjudged, cases / 2);
  for (std::size_t k = 0; k < by_stage.size(); ++k) {
    const auto stage = static_cast<Stage>(k);
    printf("  %-18s %10ld\n", std::string(name_of(stage)).c_str(), static_cast<long>(by_stage[k]));
    if (stage != Stage::query_gradient && stage != Stage::key_gradient &&
        stage != Stage::value_gradient)
      EXPECT_GT(by_stage[k], 1000) << name_of(stage);
  }
}

// The backward pass of the host, or one with a fault, without its forward pass.
class GradientsAlone : public Candidate {
 public:
  explicit GradientsAlone(const std::string& of)
      : Candidate({.name = "gradients alone",
                   .abilities = {.forward = false,
                                 .backward = true,
                                 .gradients_alone = true,
                                 .d_sink = false,
                                 .stages = true}}),
        whole_(make_candidate(of)) {}
  std::string unsupported(const Call& call) const override { return whole_->unsupported(call); }
  std::optional<Arithmetic> arithmetic(const Call& call,
                                       const kernels::Execution& how) const override {
    return whole_->arithmetic(call, how);
  }
  kernels::Status run(const Request& r) override {
    EXPECT_TRUE(std::holds_alternative<BackwardCall>(r.call));
    return whole_->run(r);
  }

 private:
  std::unique_ptr<Candidate> whole_;
};

TEST(Trace, GradientsAloneAreFollowedFromOurOAndLse) {
  const Case c = parse_case("backward b=1 h=2 l=37x53 d=16 causal sink=0.5");
  GradientsAlone right("host"), wrong("fault:delta-omitted");
  const Trace t = trace_case(c, right);
  EXPECT_FALSE(t.first) << describe(t, c);
  EXPECT_EQ(t.verdict.outcome, Outcome::pass) << t.verdict.reason;
  EXPECT_FALSE(t.verdict.outputs.contains(Output::d_sink));
  EXPECT_GT(t.stages[static_cast<std::size_t>(Stage::score_gradients)].compared, 0);
  const Trace w = trace_case(c, wrong);
  ASSERT_TRUE(w.first) << describe(w, c);
  EXPECT_EQ(name_of(w.first->stage), "delta");
}

struct Located {
  const char *fault, *line;
  Stage stage;
  bool reaches_outputs = true;  // false: the other stages compensate the error by chance
};

class Localizes : public testing::TestWithParam<Located> {};

TEST_P(Localizes, TheFirstStageThatIsWrong) {
  const auto& [fault, line, stage, reaches_outputs] = GetParam();
  const std::unique_ptr<Candidate> candidate = make_candidate(std::string("fault:") + fault);
  const Case c = parse_case(line);
  const Trace t = trace_case(c, *candidate);
  ASSERT_TRUE(t.first) << describe(t, c);
  EXPECT_EQ(name_of(t.first->stage), name_of(stage)) << describe(t, c);
  EXPECT_EQ(t.verdict.outcome == Outcome::fail, reaches_outputs) << describe(t, c);
}

constexpr const char* plain = "attention b=2 h=4/2 l=70x300 d=16 causal offset=end scores=growing";
constexpr const char* masked =
    "attention b=2 h=4/2 l=70x300 d=16 causal offset=end window=40,0 lengths=300,177 bool=random";
constexpr const char* padded =
    "attention b=2 h=4/2 l=70x300 d=16 causal offset=200 lengths=300,177 starts=3,0";
constexpr const char* gradients =
    "backward b=2 h=4/2 l=70x300 d=16 causal offset=end softcap=8 dropout=0.2:5";

INSTANTIATE_TEST_SUITE_P(
    Faults, Localizes,
    testing::Values(
        Located{"row-max-arguments-swapped", plain, Stage::row_max},
        Located{"max-of-tile-only", "attention b=1 h=1 l=70x300 d=16 scores=falling",
                Stage::row_max, false},
        Located{"stale-max", plain, Stage::row_max, false},
        Located{"max-starts-at-zero", "attention b=1 h=1 l=70x300 d=16 scores=negative",
                Stage::row_max},
        Located{"accumulator-not-rescaled", plain, Stage::rescale},
        Located{"sum-not-rescaled", plain, Stage::row_sum},
        Located{"zero-at-tail-enters-sum", "attention b=1 h=1 l=70x300 d=16", Stage::row_sum},
        Located{"scale-off-by-one-percent", plain, Stage::scores},
        Located{"kv-head-modulo", plain, Stage::scores},
        Located{"causal-dropped-with-mask", padded, Stage::masked},
        Located{"causal-off-by-one", masked, Stage::masked},
        Located{"causal-anchor-top-left", masked, Stage::masked},
        Located{"window-off-by-one", masked, Stage::masked},
        Located{"padding-key-leaks", padded, Stage::masked},
        Located{"bf16-read-as-f32", "attention b=1 h=1 l=7x30 d=16 dtype=bf16", Stage::query},
        Located{"weights-truncated-to-bf16", plain, Stage::weights},
        Located{"output-truncated", plain, Stage::output},
        Located{"lse-in-base-two", plain, Stage::lse},
        Located{"last-partial-tile-skipped", plain, Stage::output},
        Located{"second-batch-not-computed", plain, Stage::output},
        Located{"delta-omitted", gradients, Stage::delta},
        Located{"delta-in-bf16", gradients, Stage::delta},
        Located{"softcap-slope-omitted", gradients, Stage::score_gradients},
        Located{"backward-causal-off-by-one", gradients, Stage::weights},
        Located{"weight-gradients-without-dropout-scale", gradients, Stage::weight_gradients},
        Located{"backward-without-dropout", gradients, Stage::score_gradients},
        Located{"backward-lse-in-base-two", gradients, Stage::weights},
        Located{"score-gradients-truncated-to-bf16", gradients, Stage::score_gradients},
        Located{"backward-weights-truncated-to-bf16", gradients, Stage::weights}),
    [](const auto& test) {
      std::string name = test.param.fault;
      for (char& c : name)
        if (c == '-') c = '_';
      return name;
    });

// The enclosure of scores is taken before the biases, however large the biases are.
TEST(Trace, LargeBiasesHideNoWrongScore) {
  const std::unique_ptr<Candidate> scaled = make_candidate("fault:scale-off-by-one-percent");
  const Case c = parse_case("attention b=1 h=1 l=4x200 d=16 bias=large scores=tiny");
  const Trace t = trace_case(c, *scaled);
  ASSERT_TRUE(t.first) << describe(t, c);
  EXPECT_EQ(t.first->stage, Stage::scores) << describe(t, c);
}

// Finding this bug by hand took six steps. The trace tells at once that the maximum is NaN in the
// first tile of the first row, and shows l before and after it.
TEST(Trace, SaysAtOnceThatTheRowMaximumIsNotWritten) {
  const std::unique_ptr<Candidate> swapped = make_candidate("fault:row-max-arguments-swapped");
  const Case c = parse_case("attention b=1 h=1 l=70x200 d=16");
  const Trace t = trace_case(c, *swapped);
  ASSERT_TRUE(t.first);
  EXPECT_EQ(t.first->row, 0);
  EXPECT_EQ(t.first->key0, 0);
  EXPECT_TRUE(std::isnan(t.first->value.got));
  ASSERT_EQ(t.state.size(), 1u);
  EXPECT_TRUE(std::isnan(t.state[0].sum.got));
  EXPECT_GT(t.state[0].sum.exact, 1);
  EXPECT_EQ(t.then, (std::vector<Stage>{Stage::rescale, Stage::weights, Stage::row_sum,
                                        Stage::accumulated, Stage::output, Stage::lse}));
  const std::string text = describe(t, c);
  EXPECT_THAT(text, HasSubstr("first wrong: row_max at b=0 h=0 row=0, tile 0 (keys 0 to 127), lane "
                              "0: nan is not a number"));
  EXPECT_THAT(text, HasSubstr("wrong after it: rescale weights row_sum accumulated output lse"));
}

// A candidate with right outputs, which tells the stages that the test wants.
class Telling : public Candidate {
 public:
  explicit Telling(std::function<void(StageObserver&)> tell)
      : Candidate({.name = "telling", .abilities = {.stages = true}}), tell_(std::move(tell)) {}
  std::string unsupported(const Call&) const override { return {}; }
  std::optional<Arithmetic> arithmetic(const Call& call, const kernels::Execution&) const override {
    return host_contract(std::get<ForwardCall>(call).problem, "AVX2");
  }
  kernels::Status run(const Request& request) override {
    const auto& call = std::get<ForwardCall>(request.call);
    if (request.observer) tell_(*request.observer);
    return kernels::attention_forward(call.problem, call.out, request.how);
  }

 private:
  std::function<void(StageObserver&)> tell_;
};

Trace told(std::function<void(StageObserver&)> tell) {
  Telling candidate(std::move(tell));
  // There are one row and four keys, and all scores are 0: m = 0 and l = 1, 2, 3, 4.
  return trace_case(parse_case("attention b=1 h=1 l=1x4 d=2 scores=equal values=ones scale=0"),
                    candidate);
}

TEST(Trace, InvariantsAreChecked) {
  const auto tell = [](StageObserver& o, Stage stage, std::vector<float> lanes, Index key0 = 0,
                       Index keys = 1) {
    o.at(stage, {0, 0, 0, key0, 1, static_cast<Index>(lanes.size()), lanes.data(),
                 static_cast<Index>(lanes.size()), 1, 0, keys});
  };
  EXPECT_FALSE(told([&](StageObserver& o) {
                 tell(o, Stage::row_max, {0, 0, 0, 0});
                 tell(o, Stage::row_sum, {1, 1});
                 tell(o, Stage::row_max, {0}, 1);
                 tell(o, Stage::rescale, {1}, 1);
                 tell(o, Stage::row_sum, {2}, 1);
               }).first);
  const auto found = [&](const char* what, std::function<void(StageObserver&)> f) {
    const Trace t = told(std::move(f));
    ASSERT_TRUE(t.first) << what;
    EXPECT_THAT(t.first->what, HasSubstr(what));
  };
  found("differs from lane 0 of the same row",
        [&](StageObserver& o) { tell(o, Stage::row_max, {0, 0, -0.0f, 0}); });
  found("differs from lane 0 of the same row",
        [&](StageObserver& o) { tell(o, Stage::row_sum, {1, std::nextafter(1.0f, 2.0f)}); });
  found("the running maximum fell, from 0", [&](StageObserver& o) {
    tell(o, Stage::row_max, {0});
    tell(o, Stage::row_max, {-1e-30f}, 1);
  });
  found("a correction outside [0, 1]",
        [&](StageObserver& o) { tell(o, Stage::rescale, {1.5f}, 1); });
  found("a correction outside [0, 1]",
        [&](StageObserver& o) { tell(o, Stage::rescale, {std::nanf("")}, 1); });
  found("a row sum below 1, after a visible key",
        [&](StageObserver& o) { tell(o, Stage::row_sum, {0.5f}); });
  found("is outside its enclosure", [&](StageObserver& o) { tell(o, Stage::row_sum, {2}); });
  found("is not a number",
        [&](StageObserver& o) { tell(o, Stage::accumulated, {1, std::nanf("")}); });
  found("does not belong to this pass",
        [&](StageObserver& o) { tell(o, Stage::score_gradients, {0, 0}); });
  found("was told without a column", [&](StageObserver& o) { tell(o, Stage::row_max, {}); });
  found("belongs to no head or key of the problem",
        [&](StageObserver& o) { tell(o, Stage::row_max, {0}, 4); });
  found("belongs to no head or key of the problem", [&](StageObserver& o) {
    float x = 0;
    o.at(Stage::scores, {0, 7, 0, 0, 1, 1, &x, 1, 1, 0, 1});
  });
}

// The errors of the kernel come near the bounds.
TEST(Trace, BoundsAreNotLoose) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  const Case c = parse_case("attention b=1 h=2 l=70x300 d=64 causal offset=end scores=growing");
  const Trace t = trace_case(c, *host);
  ASSERT_FALSE(t.first);
  for (const auto& [stage, least] : {std::pair{Stage::scores, 0.2},
                                     {Stage::row_max, 0.1},
                                     {Stage::weights, 0.1},
                                     {Stage::rescale, 0.05},
                                     {Stage::row_sum, 0.005},
                                     {Stage::accumulated, 0.002}})
    EXPECT_GT(t.stages[static_cast<std::size_t>(stage)].worst, least) << name_of(stage);
}

TEST(Trace, ProductionKernelsAreNotWatched) {
  static_assert(!kernels::NoStages::observes && std::is_empty_v<kernels::NoStages>);
  // A candidate that is not traced runs the production kernel, which has the same bits as the
  // watched one where it multiplies floats. Pairs of bf16 are not watched.
  const Case c = parse_case("attention b=2 h=4/2 l=70x300 d=16 dtype=bf16 causal offset=end");
  const Inputs in(c);
  const Outputs unwatched(c), watched(c);
  class : public StageObserver {
   public:
    void at(Stage, const kernels::StageView&) override { ++told; }
    int told = 0;
  } observer;
  ASSERT_TRUE(kernels::attention_forward(in.problem, unwatched.view(),
                                         {1, kernels::without_bf16_dots(kernels::Target())})
                  .ok());
  ASSERT_TRUE(run_watched(no_fault, in.problem, watched.view(), {}, observer).ok());
  EXPECT_GT(observer.told, 100);
  EXPECT_EQ(first_difference(unwatched, watched), "");
}

// The bug of a kernel whose row maximum took (scores, next, running) and was called with the last
// two exchanged cannot be written here: the call does not compile.
template <class Policy, class First, class Second>
concept TakesMaxima = requires(const Policy& stages, First first, Second second) {
  { stages.new_max(first, second) } -> std::same_as<kernels::NextMax>;
};
TEST(Trace, SwappedArgumentsOfTheRowMaximumDoNotCompile) {
  using kernels::NextMax, kernels::NoStages, kernels::RunningMax, kernels::TileMax;
  static_assert(TakesMaxima<NoStages, RunningMax, TileMax>);
  static_assert(!TakesMaxima<NoStages, TileMax, RunningMax>);
  static_assert(!TakesMaxima<NoStages, NextMax, TileMax>);
  static_assert(!TakesMaxima<NoStages, RunningMax, NextMax>);
  static_assert(!TakesMaxima<NoStages, float, float>);
  EXPECT_EQ(NoStages().new_max(RunningMax{1}, TileMax{2}).value, 2);
  EXPECT_EQ(NoStages().new_max(RunningMax{3}, TileMax{2}).value, 3);
}

TEST(Trace, SilenceIsNoPass) {
  EXPECT_THROW(told([](StageObserver&) {}), CandidateError);
}

TEST(Trace, RefusesWhatHasNoStages) {
  const std::unique_ptr<Candidate> host = make_candidate("host"),
                                   unfused = make_candidate("unfused");
  EXPECT_THROW(trace_case(parse_case("product m=2 n=2 k=32"), *host), CaseError);
  EXPECT_THROW(trace_case(parse_case("attention b=1 h=1 l=3x9 d=4 cache=paged:4"), *host),
               CaseError);
  EXPECT_THROW(trace_case(parse_case("attention b=8 h=8 l=1024 d=4"), *host), CaseError);
  EXPECT_THROW(trace_case(parse_case("attention b=1 h=1 l=4 d=4"), *unfused),
               std::invalid_argument);
  // A row that sees NaN is not followed, and the trace tells this.
  EXPECT_GT(
      trace_case(parse_case("attention b=1 h=1 l=4 d=4 poke=k:0:0:1:2=nan"), *host).rows_not_judged,
      0);
}

}  // namespace
}  // namespace assay
