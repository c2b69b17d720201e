// The production backward kernel is compared with plain loops in double precision: every SIMD
// target that this machine runs, bitwise promises, exact zeros, NaN behind and before masks, and
// refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs.h"
#include "kernels/simd/targets.h"
#include "problem/clock.h"
#include "problem/generate.h"
#include "problem/parallel.h"
#include "testing/plain_backward.h"

namespace assay {
namespace {

using kernels::StatusCode;
using testing::HasSubstr;

class BackwardOnTarget : public testing::TestWithParam<std::string> {
 protected:
  // The execution on the target that is tested.
  static kernels::Execution on(int threads = 0) {
    return {threads, kernels::Target::named(GetParam()).value()};
  }
  // The error of P and dS as the target multiplies them.
  static double cast_of(const Backward& t) {
    return kernels::computes_gradients_in_pairs(on().target, t.p, t.input().d_o.dtype) ? 0x1p-8 : 0;
  }
};

TEST_P(BackwardOnTarget, AgreesWithPlainLoops) {
  double worst = 0;
  for (const char* line : {
           "attention b=2 h=2 l=5x7 d=3",
           "attention b=1 h=1 l=1x1 d=1",
           "attention b=2 h=4/2 l=100x97 d=24/40 dtype=f16 causal",
           "attention b=1 h=6/2 l=37x205 d=64 causal offset=end",
           "attention b=1 h=3/1 l=120x60 d=33/17 causal offset=end",
           "attention b=1 h=2 l=193x192 d=16 dtype=bf16 window=20,5",
           "attention b=2 h=2 l=50x150 d=40 window=0,0 offset=60",
           "attention b=3 h=2 l=40x130 d=8 lengths=0,130,77 starts=0,99,3 hidden=nan",
           "attention b=2 h=2 l=99x101 d=12 docs=5,40,17,30 hidden=nan alibi",
           "attention b=1 h=5/5 l=30x98 d=20 alibi causal offset=end",
           "attention b=2 h=2 l=26x55 d=32 softcap=0.8 scale=1",
           "attention b=2 h=2 l=26x55 d=32 softcap=5 sink=0.5 dropout=0.3:9 causal",
           "attention b=2 h=2 l=100x97 d=32 dropout=0.25:77 values=offset",
           "attention b=2 h=3/1 l=49x49 d=16 sink=-1 dtype=f16 out=f32",
           "attention b=2 h=4/2 l=13x99 d=8 bool=random bias=normal softcap=2",
           "attention b=2 h=4/2 l=13x99 d=8 bool=empty-rows bias=normal@hj sink=1",
           "attention b=2 h=4/2 l=13x99 d=8 bias=minus-infinity@bij dtype=bf16",
           "attention b=2 h=4/2 l=13x99 d=8 bias=minimum finite-min-masks causal offset=20",
           "attention b=2 h=2/1 l=110x99 d=8 bias=normal@ij causal",
           "attention b=2 h=2/1 l=11x20 d=8 bias=normal@bh",
           "attention b=1 h=4/2 l=130x420 d=64 dtype=bf16 causal offset=end",
           "attention b=1 h=2 l=110x150 d=400/200 dtype=bf16 window=90,20",
           "attention b=3 h=2 l=40x130 d=24/33 dtype=bf16 lengths=0,130,77 starts=0,99,3 "
           "hidden=nan",
           "attention b=1 h=2 l=100x97 d=32 dtype=bf16 dropout=0.25:77 softcap=3",
           "attention b=2 h=2/1 l=11x20 d=8 bias=normal@i",
           "attention b=2 h=4/2 l=31x220 d=250/100 bias=normal@bhi causal offset=end",
           "attention b=1 h=4/2 l=31x200 d=500/20 bias=normal@j",
           "attention b=1 h=1 l=50x70 d=700/30 dtype=f16",
           "attention b=1 h=2/1 l=3x700 d=64 window=300,300 offset=350",
           "attention b=1 h=1 l=20x600 d=128 causal offset=500",
           "attention b=2 h=4/2 l=33x65 d=20/36 layout=q:bshd,k:padded,v:strided,o:reversed causal",
           "attention b=2 h=4/2 l=33x65 d=20/36 "
           "layout=q:reversed,k:shared-head,v:shared-batch,o:padded dtype=bf16 out=f16",
           "attention b=1 h=2 l=40x40 d=16 scores=negative values=integers",
           "attention b=1 h=2 l=40x40 d=16 scores=key-sink dtype=f16",
           "attention b=1 h=2 l=40x140 d=16 scores=growing",
           "attention b=1 h=2 l=40x140 d=16 scale=0",
           "backward b=2 h=4/2 l=100x97 d=24/40 causal dlse=normal",
           "backward b=2 h=2 l=26x55 d=32 softcap=5 sink=0.5 dropout=0.3:9 causal dlse=uniform",
           "backward b=2 h=4/2 l=13x99 d=8 bool=empty-rows bias=normal@hj sink=1 dlse=huge",
           "backward b=2 h=4/2 l=13x99 d=8 bool=empty-rows bias=normal dtype=bf16 dlse=normal",
       }) {
    const Backward t(parse_case(line));
    const PlainReference exact(t, cast_of(t));
    ASSERT_TRUE(t.run(on(1)).ok()) << line;
    const double ratio = exact.compare();
    worst = std::max(worst, ratio);
    ASSERT_FALSE(HasFailure()) << line;
    for (const Tensor* out : {&t.dq, &t.dk, &t.dv, &t.d_bias, &t.d_sink})
      if (out->view()) ASSERT_TRUE(out->guards_intact()) << line;
  }
  printf("%s: largest error %.3f of its bound\n", GetParam().c_str(), worst);
  EXPECT_GT(worst, 0.01);
}

TEST_P(BackwardOnTarget, GradientsComeInEveryDtype) {
  for (const Dtype out : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
    const Backward t(parse_case("attention b=1 h=2/1 l=33x45 d=20 dtype=f16"), out);
    const PlainReference exact(t, cast_of(t));
    ASSERT_TRUE(t.run(on(1)).ok());
    exact.compare();
  }
}

// Where a visible NaN or infinity takes part, the output is what plain loops over the visible pairs
// compute. It changes nothing else.
TEST_P(BackwardOnTarget, NaNReachesWhatItTouchesAndNothingElse) {
  const std::string base = "attention b=1 h=4/2 l=40x110 d=8/12 causal offset=50 bool=random ";
  for (const std::string poke :
       {"q:0:1:20:3=nan", "k:0:1:7:2=nan", "k:0:0:100:2=nan", "v:0:1:9:4=nan", "v:0:1:9:4=inf",
        "q:0:2:39:0=inf", "k:0:0:109:1=nan"})
    for (const char* more : {"", " softcap=2", " dropout=0.4:3", " sink=0", " dtype=bf16",
                             " dtype=bf16 dropout=0.4:3"}) {
      const Backward t(parse_case(base + "poke=" + poke + more));
      const PlainReference exact(t, cast_of(t));
      ASSERT_TRUE(t.run(on(1)).ok());
      exact.compare();
      ASSERT_FALSE(HasFailure()) << poke << more;
    }
  for (const double x : {static_cast<double>(NAN), static_cast<double>(INFINITY)})
    for (const Index i : {0, 39}) {
      const Backward t(parse_case(base + "sink=0"));
      store(t.d_o_in.q.view(), t.d_o_in.q.view().at(0, 2, i, 5), x);
      const PlainReference exact(t, cast_of(t));
      ASSERT_TRUE(t.run(on(1)).ok());
      exact.compare();
      // The NaN reaches a part of dV but not all of it.
      std::size_t touched = 0;
      for (const Near& e : exact.dv) touched += !std::isfinite(e.value);
      EXPECT_GT(touched, 0u);
      EXPECT_LT(touched, 110u);
    }
}

INSTANTIATE_TEST_SUITE_P(Targets, BackwardOnTarget, testing::ValuesIn(kernels::runnable_targets()),
                         [](const auto& test) { return test.param; });

void expect_same_bytes(const Tensor& a, const Tensor& b, const char* name) {
  ASSERT_EQ(a.size_in_bytes(), b.size_in_bytes());
  EXPECT_EQ(std::memcmp(a.bytes(), b.bytes(), a.size_in_bytes()), 0) << name;
}

// Wakes a second thread and leaves it awake, because a short call on a busy machine would not wait
// for it. On one core this has no effect.
void wake_threads() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  const auto deadline = seconds_from_now(0.2);
  parallel_for(64, 2, [&](Index) {
    for (bool wait = true; wait;) {
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
      wait = seen.size() < 2 && Clock::now() < deadline;
    }
  });
}

TEST(BackwardPass, AnyNumberOfThreadsGivesTheSameBits) {
  for (const char* line : {"attention b=2 h=4/2 l=200x1300 d=64 causal offset=end",
                           "attention b=4 h=8/4 l=150x300 d=300/40 bias=normal@ij sink=0",
                           "attention b=2 h=4/2 l=150x300 d=300/40 bias=normal@bh",
                           "attention b=3 h=2 l=150x80 d=20 dropout=0.1:4 bias=normal@hj"}) {
    const Case c = parse_case(line);
    const Backward one(c);
    ASSERT_TRUE(kernels::attention_forward(one.p, {one.o.view(), one.lse.view()}).ok());
    ASSERT_TRUE(one.run(1).ok());
    for (int threads : {2, 2, 2, 5, 0}) {
      const Backward many(c);
      ASSERT_TRUE(kernels::attention_forward(many.p, {many.o.view(), many.lse.view()}).ok());
      wake_threads();
      ASSERT_TRUE(many.run(threads).ok());
      expect_same_bytes(one.dq, many.dq, "dq");
      expect_same_bytes(one.dk, many.dk, "dk");
      expect_same_bytes(one.dv, many.dv, "dv");
      if (one.d_bias.view()) expect_same_bytes(one.d_bias, many.d_bias, "d_bias");
      if (one.d_sink.view()) expect_same_bytes(one.d_sink, many.d_sink, "d_sink");
    }
  }
}

// Compares the same (batch, kv head) alone in a call, and dQ of one query head alone. The last case
// is so large that its splits run one after the other.
TEST(BackwardPass, AHeadIsTheSameInAnyCall) {
  for (const char* line : {"attention b=3 h=4/2 l=130x700 d=64 causal offset=end",
                           "attention b=1 h=32/1 l=97x1600 d=1000/1"}) {
    const Case c = parse_case(line);
    const Backward whole(c);
    const AttentionShape& s = c.shape;
    ASSERT_TRUE(kernels::attention_forward(whole.p, {whole.o.view(), whole.lse.view()}).ok());
    ASSERT_TRUE(whole.run(2).ok());
    const Index b = s.batch - 1, g = s.kv_heads - 1, h = g * s.group();
    Attention part = whole.p;
    part.shape.batch = part.shape.kv_heads = 1;
    part.shape.query_heads = s.group();
    if (!part.offset.empty()) part.offset = {part.offset_of(b)};
    const auto from = [&](TensorView v, Index head) {
      v.origin = v.at(b, head, 0, 0);
      return v;
    };
    part.q = from(part.q, h);
    part.k = from(part.k, g);
    part.v = from(part.v, g);
    const AttentionBackwardInput all = whole.input(),
                                 in{from(all.o, h), from(all.lse, h), from(all.d_o, h)};
    const Tensor dq = make(Dtype::f32, LayoutKind::bhsd, {1, s.group(), s.rows, s.dim}),
                 dk = make(Dtype::f32, LayoutKind::bhsd, {1, 1, s.keys, s.dim}),
                 dv = make(Dtype::f32, LayoutKind::bhsd, {1, 1, s.keys, s.value_dim});
    ASSERT_TRUE(
        kernels::attention_backward(part, in, {dq.view(), dk.view(), dv.view(), {}, {}}, 1).ok());
    const auto expect_part = [&](const Tensor& alone, const Tensor& of, Index head) {
      const auto* there = reinterpret_cast<const std::byte*>(
          static_cast<const float*>(of.view().data) + of.view().at(b, head, 0, 0));
      EXPECT_EQ(std::memcmp(alone.bytes(), there, alone.size_in_bytes()), 0) << line;
    };
    expect_part(dq, whole.dq, h);
    expect_part(dk, whole.dk, g);
    expect_part(dv, whole.dv, g);
    part.shape.query_heads = 1;
    const Tensor dq_alone = make(Dtype::f32, LayoutKind::bhsd, {1, 1, s.rows, s.dim});
    ASSERT_TRUE(
        kernels::attention_backward(part, in, {dq_alone.view(), dk.view(), dv.view(), {}, {}}, 1)
            .ok());
    expect_part(dq_alone, whole.dq, h);
  }
}

// The tiling depends on the head dimensions alone, and a split consists of whole tiles.
TEST(BackwardPass, TilingDependsOnTheHeadDimensionsAlone) {
  for (Index d : {1, 64, 128, 256, 1024}) {
    const kernels::BackwardTiling tiling = kernels::backward_tiling(d, d);
    EXPECT_GT(tiling.rows, 0);
    EXPECT_EQ(tiling.split_keys % tiling.keys, 0);
  }
}

TEST(BackwardPass, FullyMaskedRowsAndUnseenKeysGiveExactZeros) {
  // Rows below 10 see no key and hold NaN. Keys from 30 on are seen by no row and hold NaN.
  const Case c = parse_case(
      "attention b=1 h=2/1 l=40x50 d=8 causal offset=-10 lengths=30 hidden=nan sink=0.25 "
      "bias=normal");
  const Backward t(c);
  const PlainReference clean(t);
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < 10; ++i)
      for (const TensorView& v : {t.p.q, t.d_o_in.q.view()}) store(v, v.at(0, h, i, 3), NAN);
  ASSERT_TRUE(t.run().ok());
  clean.compare();
  const auto expect_zero = [](const TensorView& v, Index h, Index i, Index e) {
    EXPECT_EQ(load(v, v.at(0, h, i, e)), 0);
  };
  for (Index e = 0; e < 8; ++e) {
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < 10; ++i) expect_zero(t.dq.view(), h, i, e);
    for (Index j = 30; j < 50; ++j)
      expect_zero(t.dk.view(), 0, j, e), expect_zero(t.dv.view(), 0, j, e);
  }
  for (Index j = 0; j < 50; ++j) expect_zero(t.d_bias.view(), 1, 9, j);
}

TEST(BackwardPass, EmptyProblemsGiveEmptyOrZeroGradients) {
  for (const char* line : {"attention b=0 h=1 l=4 d=4 sink=1", "attention b=2 h=2 l=0x4 d=4 sink=1",
                           "attention b=2 h=2 l=4x0 d=4 sink=1", "attention b=1 h=1 l=0 d=4"}) {
    const Case c = parse_case(line);
    const Backward t(c);
    ASSERT_TRUE(kernels::attention_forward(t.p, {t.o.view(), t.lse.view()}).ok());
    ASSERT_TRUE(t.run().ok()) << line;
    for (const Tensor* out : {&t.dq, &t.dk, &t.dv})
      for (Index e = 0; e < element_count(out->view().shape); ++e) {
        const Extents& n = out->view().shape;
        EXPECT_EQ(
            load(out->view(), out->view().at(e / (n[1] * n[2] * n[3]), e / (n[2] * n[3]) % n[1],
                                             e / n[3] % n[2], e % n[3])),
            0)
            << line;
      }
    if (t.d_sink.view())
      EXPECT_EQ(load(t.d_sink.view(), t.d_sink.view().at(0, 0, 0, 0)), 0) << line;
  }
}

// LSE = -inf means that no key was visible, even if O says something else.
TEST(BackwardPass, AnLseOfMinusInfinityMeansNoContribution) {
  const Backward t(parse_case("attention b=1 h=1 l=2x3 d=4 sink=0"));
  const PlainReference exact(t);
  for (Index i = 0; i < 2; ++i) store(t.lse.view(), i, -INFINITY);
  ASSERT_TRUE(t.run().ok());
  for (const Tensor* gradient : {&t.dq, &t.dk, &t.dv})
    for (Index e = 0; e < element_count(gradient->view().shape); ++e)
      EXPECT_EQ(load(gradient->view(), e), 0);
  EXPECT_EQ(load(t.d_sink.view(), t.d_sink.view().at(0, 0, 0, 0)), 0);
}

// A score that rounding has moved above LSE has the weight 1, not more.
TEST(BackwardPass, NoWeightExceedsOne) {
  const Backward t(parse_case("attention b=1 h=1 l=1 d=1 scale=1"));
  store(t.p.q, 0, 1), store(t.p.k, 0, 3);
  store(t.o.view(), 0, load(t.p.v, 0)), store(t.lse.view(), 0, 2.875);
  ASSERT_TRUE(t.run().ok());
  EXPECT_EQ(load(t.dv.view(), 0), load(t.d_o_in.q.view(), 0));
}

// Every refusal names the argument, its value and the limit, and writes nothing.
TEST(BackwardPass, RefusesWhatCannotBe) {
  const Case c = parse_case("attention b=2 h=4/2 l=3x5 d=8 bias=normal sink=1");
  auto expect = [&](auto change, StatusCode code, const char* words) {
    const Backward t(c);
    Attention p = t.p;
    AttentionBackwardInput in = t.input();
    AttentionGradients out = t.output();
    change(p, in, out);
    const kernels::Status status = kernels::attention_backward(p, in, out);
    EXPECT_EQ(status.code, code) << words << ": " << status.detail;
    EXPECT_THAT(status.detail, HasSubstr(words));
    for (const Tensor* o : {&t.dq, &t.dk, &t.dv, &t.d_bias, &t.d_sink})
      for (std::size_t e = 0; e < o->size_in_bytes() / 4; ++e)
        ASSERT_TRUE(holds_poison(o->view(), static_cast<Index>(e), Poison::nan));
  };
  using P = Attention;
  using In = AttentionBackwardInput;
  using Out = AttentionGradients;
  const auto bad = StatusCode::invalid_arguments;
  expect([](P& p, In&, Out&) { p.shape.dim = 1025; }, bad, "dim = 1025 is outside [1, 1024]");
  expect([](P& p, In&, Out&) { p.v.data = nullptr; }, bad, "v is null");
  expect([](P&, In& in, Out&) { in.o.data = nullptr; }, bad, "o is null");
  expect([](P&, In& in, Out&) { in.lse = {}; }, bad, "lse is null");
  expect([](P&, In& in, Out&) { in.lse.dtype = Dtype::bf16; }, bad, "lse is bf16; it must be f32");
  expect([](P&, In& in, Out&) { in.d_o = {}; }, bad, "d_o is null");
  expect([](P&, In& in, Out&) { in.d_o.dtype = Dtype::f16; }, bad,
         "d_o is f16, q is f32; they must agree");
  expect([](P&, In& in, Out& out) { in.d_lse = out.dq; }, bad, "d_lse");
  expect([](P&, In& in, Out&) { in.d_lse = in.lse, in.d_lse.dtype = Dtype::f16; }, bad,
         "d_lse is f16; it must be f32");
  expect([](P&, In&, Out& out) { out.dq = {}; }, bad, "dq is null");
  expect([](P&, In&, Out& out) { out.dk = {}; }, bad, "dk is null");
  expect([](P&, In&, Out& out) { out.dv = {}; }, bad, "dv is null");
  expect([](P&, In&, Out& out) { out.dk.dtype = Dtype::f64; }, StatusCode::unsupported,
         "dk is f64");
  expect([](P&, In& in, Out&) { in.o.dtype = Dtype::f64; }, StatusCode::unsupported, "o is f64");
  expect([](P&, In&, Out& out) { out.d_bias.dtype = Dtype::f16; }, bad,
         "d_bias is f16; it must be f32");
  expect([](P&, In&, Out& out) { out.d_sink.dtype = Dtype::bf16; }, bad,
         "d_sink is bf16; it must be f32");
  expect([](P& p, In&, Out&) { p.sink.clear(); }, bad,
         "d_sink is asked for, but sink has 0 entries");
}

}  // namespace
}  // namespace assay
