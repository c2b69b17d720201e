// The dispatcher: every refusal in its order and with its count, masks that are read again, kernels
// keyed by every constant, settings that are restored, and the left-padding failure of a listed
// device, which is reproduced and avoided.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/attention/unfused.h"

namespace assay {
namespace {

using namespace kernels;
using testing::ElementsAre;
using testing::HasSubstr;

// A device whose limits a test sets. Its kernels compute with the constants that they were compiled
// with, whatever the problem says, so a key that lacks a constant gives wrong numbers.
class ProbeDevice : public AttentionBackend {
 public:
  std::string name = "host", target = "probe";
  Index tile_rows = 8, tile_keys = 16, split_keys = 512;
  bool masks = false, dtypes = true, heads = true, layouts = true, features = true;
  StatusCode compile_status = StatusCode::success;
  std::function<Status(const Attention&, const AttentionOutput&)> kernel;
  mutable int compiled = 0, ran = 0;

  std::string_view device() const override { return name; }
  bool takes_masks() const override { return masks; }
  bool supports_dtype(Dtype, Dtype) const override { return dtypes; }
  bool supports_heads(Index, Index) const override { return heads; }
  bool supports_layout(const Attention&, const AttentionOutput&) const override { return layouts; }
  std::string_view unsupported_feature(const Attention&) const override {
    return features ? "" : "softcap";
  }
  Status choose_tiles(KernelKey& key) const override {
    key.target = target;
    key.tile_rows = tile_rows;
    key.tile_keys = tile_keys;
    key.split_keys = split_keys;
    return {};
  }
  Status compile(const KernelKey& key,
                 std::shared_ptr<const CompiledAttention>& result) const override {
    ++compiled;
    if (compile_status != StatusCode::success) return {compile_status, "the probe's compiler"};
    result = std::make_shared<Kernel>(key, *this);
    return {};
  }

 private:
  struct Kernel : CompiledAttention {
    Kernel(const KernelKey& k, const ProbeDevice& d) : key(k), device(d) {}
    Status run(const Attention& problem, const AttentionOutput& out,
               const Execution& how) const override {
      ++device.ran;
      if (device.kernel) return device.kernel(problem, out);
      Attention p = problem;
      p.scale = key.scale;
      p.softcap = key.softcap;
      p.causal = key.causal;
      p.window_left = key.window_left;
      p.window_right = key.window_right;
      p.finite_min_masks = key.finite_min_masks;
      p.shape.dim = key.dim;
      p.shape.value_dim = key.value_dim;
      p.q.dtype = p.k.dtype = p.v.dtype = key.dtype;
      AttentionOutput to = out;
      to.o.dtype = key.out_dtype;
      if (!key.lse) to.lse = {};
      return attention_forward(p, to, how);
    }
    KernelKey key;
    const ProbeDevice& device;
  };
};

struct Fixture {
  explicit Fixture(const char* line) : c(parse_case(line)), in(c), out(c) {}
  Case c;
  Inputs in;
  Outputs out;
};

constexpr const char* plain = "attention b=1 h=4/2 l=256x40 d=8/6 causal offset=end seed=3";

std::array<Index, refusal_count> only(Refusal r) {
  std::array<Index, refusal_count> refused{};
  refused[static_cast<std::size_t>(r)] = 1;
  return refused;
}

class DispatchTest : public testing::Test {
 protected:
  std::shared_ptr<ProbeDevice> device = std::make_shared<ProbeDevice>();
  Dispatcher dispatcher{device};
};

// At first every check refuses. Then they are repaired one after the other, beginning with the
// first. Each time the first check that still refuses is counted.
TEST_F(DispatchTest, RefusesByTheFirstTestThatFails) {
  Fixture f(
      "attention b=1 h=4/2 l=255x40 d=8/6 causal offset=end bool=random softcap=3 dropout=0.1:5 "
      "lengths=30 seed=3");
  *device = {};
  device->dtypes = device->heads = device->layouts = device->features = false;
  DispatchSettings settings;
  settings.enabled = false;
  settings.listed_devices = {"gpu"};
  std::vector<std::string> told, warned;
  settings.verbose = [&](std::string_view text) { told.emplace_back(text); };
  settings.warn = [&](std::string_view text) { warned.emplace_back(text); };
  SdpaOptions options;
  options.implementation = Implementation::unfused;
  options.device = "gpu";
  const auto expect = [&](Refusal refusal, const char* words) {
    dispatcher.set_settings(settings);
    dispatcher.reset_counters();
    told.clear();
    warned.clear();
    const Outputs fallback(f.c);
    ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view(), options).ok());
    ASSERT_TRUE(attention_unfused(f.in.problem, fallback.view()).ok());
    EXPECT_EQ(first_difference(f.out, fallback), "");
    EXPECT_EQ(dispatcher.counters().refused, only(refusal)) << name_of(refusal);
    EXPECT_EQ(dispatcher.counters().fallback, 1);
    EXPECT_EQ(dispatcher.counters().dispatched, 0);
    EXPECT_EQ(device->ran, 0);
    EXPECT_THAT(told,
                ElementsAre("sdpa: unfused, " + std::string(name_of(refusal)) + ": " + words));
    EXPECT_EQ(warned.size(), refusal == Refusal::listed_device ? 1u : 0u);
  };
  expect(Refusal::disabled, "dispatch is disabled");
  settings.enabled = true;
  expect(Refusal::asked, "the unfused kernel was asked for");
  options.implementation = Implementation::sdpa;
  expect(Refusal::listed_device, "causality with padding or a mask is known to fail on device gpu");
  settings.trust_listed_devices = true;
  expect(Refusal::device, "the tensors are on gpu, the kernel is of host");
  options.device = "host";
  expect(Refusal::dropout, "dropout = 0.1");
  f.in.problem.dropout = 0;
  expect(Refusal::mask, "the mask is not all true");
  f.in.problem.keep = {};
  expect(Refusal::query_length, "255 rows, below 256");
  settings.min_query_length = 255;
  expect(Refusal::dtype, "f32 in, f32 out");
  device->dtypes = true;
  expect(Refusal::heads, "4 query heads, 2 key/value heads");
  device->heads = true;
  expect(Refusal::layout, "the strides, or nested input");
  device->layouts = true;
  expect(Refusal::feature, "softcap");
  device->features = true;
  dispatcher.set_settings(settings);
  told.clear();
  ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view(), options).ok());
  EXPECT_EQ(device->ran, 1);
  EXPECT_THAT(told, ElementsAre("sdpa: dispatched to host"));
  const DispatchCounters counters = dispatcher.counters();
  EXPECT_EQ(counters.dispatched, 1);
  EXPECT_EQ(counters.fallback, 1);
  dispatcher.reset_counters();
  EXPECT_EQ(dispatcher.counters(), DispatchCounters{});
}

TEST_F(DispatchTest, TheThresholdCountsRowsOfTheQuery) {
  for (Index threshold : {256, 1, 300})
    for (Index rows : {threshold - 1, threshold, threshold + 1}) {
      Fixture f(plain);
      DispatchSettings settings;
      settings.min_query_length = threshold;
      dispatcher.set_settings(settings);
      dispatcher.reset_counters();
      f.in.problem.shape.rows = std::min<Index>(rows, 256);
      if (rows > 256) continue;
      ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view()).ok());
      EXPECT_EQ(dispatcher.counters().dispatched, rows >= threshold) << rows;
      EXPECT_EQ(dispatcher.counters().fallback, rows < threshold) << rows;
    }
  // The number of keys does not count: a short K under a long Q is dispatched, a long K under a
  // short Q is not.
  Fixture long_query("attention b=1 h=1 l=257x3 d=4"), long_keys("attention b=1 h=1 l=3x400 d=4");
  dispatcher.set_settings({});
  dispatcher.reset_counters();
  ASSERT_TRUE(dispatcher.sdpa(long_query.in.problem, long_query.out.view()).ok());
  EXPECT_EQ(dispatcher.counters().dispatched, 1);
  ASSERT_TRUE(dispatcher.sdpa(long_keys.in.problem, long_keys.out.view()).ok());
  EXPECT_EQ(dispatcher.counters().refused, only(Refusal::query_length));
}

TEST_F(DispatchTest, OnlyAnAllTrueBooleanMaskIsTrivial) {
  Fixture f(plain);
  const Outputs without(f.c);
  ASSERT_TRUE(dispatcher.sdpa(f.in.problem, without.view()).ok());
  std::vector<std::uint8_t> keep(256 * 40, 1);
  const auto dispatched = [&](const Attention& p) {
    dispatcher.reset_counters();
    EXPECT_TRUE(dispatcher.sdpa(p, f.out.view()).ok());
    return dispatcher.counters().dispatched == 1;
  };
  Attention p = f.in.problem;
  p.keep = {keep.data(), {0, 0, 40, 1}};
  EXPECT_TRUE(dispatched(p));
  EXPECT_EQ(first_difference(without, f.out), "");
  // One false element anywhere is enough: the first, the last, and one in a layout that is not
  // contiguous.
  for (std::size_t at : {0u, 39u, 5000u, 256u * 40 - 1}) {
    keep[at] = 0;
    EXPECT_FALSE(dispatched(p)) << at;
    keep[at] = 1;
  }
  p.keep = {keep.data() + 39, {0, 0, 40, -1}};
  EXPECT_TRUE(dispatched(p));
  keep[256 * 40 - 1] = 0;
  EXPECT_FALSE(dispatched(p));
  p.keep.stride = {0, 0, 0, -1};  // the last row is no longer part of the mask
  EXPECT_TRUE(dispatched(p));
  const float zero = 0;
  p = f.in.problem;
  p.bias = {const_cast<float*>(&zero), Dtype::f32, {1, 1, 1, 1}, {0, 0, 0, 0}, 0};
  EXPECT_FALSE(dispatched(p));
  EXPECT_EQ(dispatcher.counters().refused, only(Refusal::mask));
}

// A mask is edited in place, at the same address. The answer must not be the old one.
TEST_F(DispatchTest, EditedMasksAreSeen) {
  Fixture f(plain);
  std::vector<std::uint8_t> keep(40, 1);
  f.in.problem.keep = {keep.data(), {0, 0, 0, 1}};
  for (int round = 0; round < 4; ++round) {
    keep[usize(round)] = static_cast<std::uint8_t>(round % 2 == 0 ? 0 : 1);
    if (round % 2 == 1) std::fill(keep.begin(), keep.end(), std::uint8_t{1});
    const Outputs right(f.c);
    ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view()).ok());
    ASSERT_TRUE((round % 2 == 0 ? attention_unfused(f.in.problem, right.view())
                                : attention_forward(f.in.problem, right.view()))
                    .ok());
    EXPECT_EQ(first_difference(f.out, right), "") << round;
  }
  EXPECT_EQ(dispatcher.counters().dispatched, 2);
  EXPECT_EQ(dispatcher.counters().fallback, 2);
}

// A change of one constant is a miss, and changing it back is a hit. The numbers of the kernels
// change accordingly.
TEST_F(DispatchTest, KernelsAreKeyedByEveryConstant) {
  device->masks = true;
  DispatchSettings settings;
  settings.min_query_length = 0;
  dispatcher.set_settings(settings);
  Fixture f("attention b=2 h=4/2 l=9x40 d=8/6 causal offset=end window=20,3 seed=3");
  const std::vector<std::uint8_t> keep(40, 1);
  const std::vector<float> zeros(9 * 40 * 8, 0);
  const std::vector<std::pair<const char*, std::function<void(Attention&, AttentionOutput&)>>>
      changes = {
          {"dtype",
           [](Attention& p, AttentionOutput&) { p.q.dtype = p.k.dtype = p.v.dtype = Dtype::f16; }},
          {"inputs bf16",
           [](Attention& p, AttentionOutput&) { p.q.dtype = p.k.dtype = p.v.dtype = Dtype::bf16; }},
          {"out dtype", [](Attention&, AttentionOutput& o) { o.o.dtype = Dtype::f16; }},
          {"dim", [](Attention& p, AttentionOutput&) { p.shape.dim = 7; }},
          {"value dim", [](Attention& p, AttentionOutput&) { p.shape.value_dim = 5; }},
          {"group", [](Attention& p, AttentionOutput&) { p.shape.kv_heads = 1; }},
          {"scale",
           [](Attention& p, AttentionOutput&) { p.scale = std::nextafter(p.scale, 1.0f); }},
          {"softcap", [](Attention& p, AttentionOutput&) { p.softcap = 2; }},
          {"causal", [](Attention& p, AttentionOutput&) { p.causal = false; }},
          {"window left", [](Attention& p, AttentionOutput&) { p.window_left = 19; }},
          {"window right", [](Attention& p, AttentionOutput&) { p.window_right = 2; }},
          {"offset", [](Attention& p, AttentionOutput&) { p.offset.clear(); }},
          {"keep", [&](Attention& p, AttentionOutput&) { p.keep = {keep.data(), {0, 0, 0, 1}}; }},
          {"bias",
           [&](Attention& p, AttentionOutput&) {
             p.bias = {const_cast<float*>(zeros.data()), Dtype::f32, {}, {0, 0, 0, 1}, 0};
           }},
          {"bias dtype",
           [&](Attention& p, AttentionOutput&) {
             p.bias = {const_cast<float*>(zeros.data()), Dtype::f16, {}, {0, 0, 0, 1}, 0};
           }},
          {"minimum", [](Attention& p, AttentionOutput&) { p.finite_min_masks = true; }},
          {"lengths", [](Attention& p, AttentionOutput&) { p.key_lengths = {30, 40}; }},
          {"starts", [](Attention& p, AttentionOutput&) { p.key_starts = {3, 0}; }},
          {"alibi", [](Attention& p, AttentionOutput&) { p.alibi_slopes = {1, 1, 1, 1}; }},
          {"sink", [](Attention& p, AttentionOutput&) { p.sink = {1, 1, 1, 1}; }},
          {"documents",
           [](Attention& p, AttentionOutput&) {
             p.query_segment.assign(18, 0);
             p.key_segment.assign(80, 0);
           }},
          {"lse", [](Attention&, AttentionOutput& o) { o.lse = {}; }},
          {"target", [&](Attention&, AttentionOutput&) { device->target = "other"; }},
          {"tile rows", [&](Attention&, AttentionOutput&) { device->tile_rows = 9; }},
          {"tile keys", [&](Attention&, AttentionOutput&) { device->tile_keys = 17; }},
          {"split keys", [&](Attention&, AttentionOutput&) { device->split_keys = 1024; }},
      };
  const auto call = [&](const Attention& p, const AttentionOutput& out, const char* name) {
    ASSERT_TRUE(dispatcher.sdpa(p, out).ok()) << name;
    const Outputs right(f.c);
    AttentionOutput expected = out;
    expected.o.data = right.o.view().data;
    if (out.lse) expected.lse.data = right.lse.view().data;
    ASSERT_TRUE(attention_forward(p, expected).ok()) << name;
    EXPECT_EQ(std::memcmp(out.o.data, expected.o.data, right.o.size_in_bytes() / 2), 0) << name;
  };
  poison(f.out.o, Poison::nan);
  call(f.in.problem, f.out.view(), "first");
  KernelCache::Counters expected{0, 1};
  for (int round = 0; round < 2; ++round)
    for (const auto& [name, change] : changes) {
      Attention p = f.in.problem;
      const Outputs fresh(f.c);
      AttentionOutput out = fresh.view();
      const std::string target = device->target;
      const Index tile_rows = device->tile_rows, tile_keys = device->tile_keys,
                  split_keys = device->split_keys;
      change(p, out);
      call(p, out, name);
      (round == 0 ? expected.misses : expected.hits) += 1;
      EXPECT_EQ(dispatcher.cache().counters(), expected) << name;
      device->target = target;
      device->tile_rows = tile_rows;
      device->tile_keys = tile_keys;
      device->split_keys = split_keys;
      const Outputs again(f.c);
      call(f.in.problem, again.view(), name);
      EXPECT_EQ(first_difference(f.out, again), "") << name;
      expected.hits += 1;
      EXPECT_EQ(dispatcher.cache().counters(), expected) << name;
    }
  EXPECT_EQ(device->compiled, 1 + static_cast<int>(changes.size()));
  // Values that are not constants share one kernel.
  Attention p = f.in.problem;
  p.shape.batch = 1;
  p.shape.rows = 3;
  p.shape.keys = 20;
  p.offset = {1};
  const Outputs small(f.c);
  ASSERT_TRUE(dispatcher.sdpa(p, small.view()).ok());
  EXPECT_EQ(device->compiled, 1 + static_cast<int>(changes.size()));
  dispatcher.cache().clear();
  ASSERT_TRUE(dispatcher.sdpa(p, small.view()).ok());
  EXPECT_EQ(device->compiled, 2 + static_cast<int>(changes.size()));
}

TEST_F(DispatchTest, WithoutTheCacheTheSameBits) {
  Fixture f(plain);
  const Outputs uncached(f.c);
  for (int round = 0; round < 2; ++round)
    ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view()).ok());
  EXPECT_EQ(device->compiled, 1);
  DispatchSettings settings;
  settings.compile_cache = false;
  {
    const ScopedSettings scope(dispatcher, settings);
    for (int round = 0; round < 3; ++round)
      ASSERT_TRUE(dispatcher.sdpa(f.in.problem, uncached.view()).ok());
  }
  EXPECT_EQ(device->compiled, 4);
  EXPECT_EQ(first_difference(f.out, uncached), "");
  EXPECT_EQ(dispatcher.cache().counters(), (KernelCache::Counters{1, 1}));
  EXPECT_TRUE(dispatcher.settings().compile_cache);
}

// A compilation that fails is reported and writes nothing. The next call works as if it had not
// happened.
TEST_F(DispatchTest, FailedCompilationsLeaveNothingBehind) {
  Fixture f(plain);
  poison(f.out.o, Poison::nan);
  device->compile_status = StatusCode::kernel_compilation_failed;
  DispatchSettings settings;
  settings.fall_back_on_failure = false;
  dispatcher.set_settings(settings);
  const Status status = dispatcher.sdpa(f.in.problem, f.out.view());
  EXPECT_EQ(status.code, StatusCode::kernel_compilation_failed);
  EXPECT_EQ(status.detail, "the probe's compiler");
  for (Index e = 0; e < 4 * 256 * 6; ++e) ASSERT_TRUE(holds_poison(f.out.o.view(), e, Poison::nan));
  device->compile_status = StatusCode::success;
  ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view()).ok());
  const Outputs right(f.c);
  ASSERT_TRUE(attention_forward(f.in.problem, right.view()).ok());
  EXPECT_EQ(first_difference(f.out, right), "");
}

TEST_F(DispatchTest, BadInputIsNotCounted) {
  Fixture f(plain);
  f.in.problem.scale = NAN;
  EXPECT_EQ(dispatcher.sdpa(f.in.problem, f.out.view()).code, StatusCode::invalid_arguments);
  EXPECT_EQ(dispatcher.counters(), DispatchCounters{});
}

TEST_F(DispatchTest, ScopesRestoreTheSettings) {
  DispatchSettings settings;
  settings.min_query_length = 7;
  dispatcher.set_settings(settings);
  {
    const ScopedSettings off(dispatcher, false);
    EXPECT_FALSE(dispatcher.settings().enabled);
    {
      const ScopedSettings on(dispatcher, true);
      EXPECT_TRUE(dispatcher.settings().enabled);
    }
    EXPECT_FALSE(dispatcher.settings().enabled);
    try {
      const ScopedSettings inner(dispatcher, DispatchSettings{});
      throw 1;
    } catch (int) {
    }
    EXPECT_FALSE(dispatcher.settings().enabled);
    EXPECT_EQ(dispatcher.settings().min_query_length, 7);
  }
  EXPECT_TRUE(dispatcher.settings().enabled);
  dispatcher.disable();
  dispatcher.enable();
  EXPECT_TRUE(dispatcher.settings().enabled);
  EXPECT_EQ(dispatcher.settings().min_query_length, 7);
}

TEST_F(DispatchTest, WarmingUpCompilesAndChangesNoBit) {
  Fixture f(
      "attention b=2 h=4/2 l=300x40 d=8/6 causal offset=end window=20,3 softcap=4 sink=1 alibi "
      "lengths=30,40 starts=2,3 docs=100 seed=3");
  const Outputs cold(f.c);
  ASSERT_TRUE(dispatcher.sdpa(f.in.problem, cold.view()).ok());
  Dispatcher warmed(device);
  Attention shape = f.in.problem;
  shape.q.data = shape.k.data = shape.v.data = nullptr;
  const Status status = warmed.warm_up({&shape, 1});
  ASSERT_TRUE(status.ok()) << status.detail;
  EXPECT_EQ(device->compiled, 2);
  EXPECT_EQ(warmed.counters(), DispatchCounters{});
  ASSERT_TRUE(warmed.sdpa(f.in.problem, f.out.view()).ok());
  EXPECT_EQ(device->compiled, 2);  // the run uses the kernels that were warmed up
  EXPECT_EQ(warmed.cache().counters(), (KernelCache::Counters{1, 1}));
  EXPECT_EQ(first_difference(cold, f.out), "");
  shape.shape.dim = 65600;
  const Status refused = warmed.warm_up({&shape, 1});
  EXPECT_EQ(refused.code, StatusCode::invalid_arguments);
  EXPECT_THAT(refused.detail, HasSubstr("dim = 65600"));
}

// What a listed device really does with a batch that is padded on the left: with a mask it drops
// causality, and a row that sees no key is NaN.
Status broken_on_padding(const Attention& problem, const AttentionOutput& out) {
  Attention p = problem;
  if (p.keep) p.causal = false;
  if (Status status = attention_forward(p, out); !status.ok()) return status;
  for (Index b = 0; b < p.shape.batch; ++b)
    for (Index h = 0; h < p.shape.query_heads; ++h)
      for (Index i = 0; i < p.shape.rows; ++i)
        if (load(out.lse, out.lse.at(b, h, i, 0)) == -INFINITY)
          for (Index c = 0; c < p.shape.value_dim; ++c) store(out.o, out.o.at(b, h, i, c), NAN);
  return {};
}

// There are 11 tokens, of which the first 9 are padding.
TEST(LeftPadding, IsReproducedAndAvoided) {
  auto device = std::make_shared<ProbeDevice>();
  device->name = "mps";
  device->masks = true;
  device->kernel = broken_on_padding;
  DispatchSettings settings;
  settings.min_query_length = 1;
  std::vector<std::string> warned;
  settings.warn = [&](std::string_view text) { warned.emplace_back(text); };
  SdpaOptions options;
  options.device = "mps";

  Fixture f("attention b=1 h=2 l=11 d=4 causal seed=6");
  std::vector<std::uint8_t> keep(11, 1);
  std::fill_n(keep.begin(), 9, std::uint8_t{0});
  Attention by_mask = f.in.problem, by_start = f.in.problem;
  by_mask.keep = {keep.data(), {0, 0, 0, 1}};
  by_start.key_starts = {9};
  const Outputs right(f.c);
  ASSERT_TRUE(attention_forward(by_mask, right.view()).ok());

  for (const Attention* p : {&by_mask, &by_start})
    for (Implementation implementation : {Implementation::automatic, Implementation::sdpa}) {
      options.implementation = implementation;
      // The failure is avoided with a warning: a row that sees nothing is 0, and the last rows do
      // not see the future.
      Dispatcher dispatcher(device, settings);
      warned.clear();
      ASSERT_TRUE(dispatcher.sdpa(*p, f.out.view(), options).ok());
      EXPECT_EQ(dispatcher.counters().refused, only(Refusal::listed_device));
      EXPECT_THAT(warned, ElementsAre("sdpa: unfused, listed_device: causality with padding or a "
                                      "mask is known to fail on device mps"));
      for (Index e = 0; e < 2 * 11 * 4; ++e)
        EXPECT_NEAR(load(f.out.o.view(), e), load(right.o.view(), e), 1e-6);
      EXPECT_EQ(load(f.out.o.view(), 0), 0);
      // The failure is reproduced on demand: NaN from the first row on.
      settings.trust_listed_devices = true;
      dispatcher.set_settings(settings);
      settings.trust_listed_devices = false;
      warned.clear();
      ASSERT_TRUE(dispatcher.sdpa(*p, f.out.view(), options).ok());
      EXPECT_EQ(dispatcher.counters().dispatched, 1);
      EXPECT_TRUE(warned.empty());
      EXPECT_TRUE(p == &by_start ? std::isnan(load(f.out.o.view(), 0))
                                 : load(f.out.o.view(), 9 * 4) != load(right.o.view(), 9 * 4));
    }
  // The failure occurs neither without causality nor without padding, nor on another device.
  Dispatcher dispatcher(device, settings);
  warned.clear();
  Attention open = by_start;
  open.causal = false;
  ASSERT_TRUE(dispatcher.sdpa(open, f.out.view(), options).ok());
  ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view(), options).ok());
  EXPECT_EQ(dispatcher.counters().dispatched, 2);
  device->name = "gpu";
  options.device = "gpu";
  ASSERT_TRUE(dispatcher.sdpa(by_start, f.out.view(), options).ok());
  EXPECT_EQ(dispatcher.counters().dispatched, 3);
  EXPECT_TRUE(warned.empty());
}

// All combinations of the conditions under which the failure is reported: the device, the path, the
// side of the padding, many rows or one (prefill and decode), and causality (a decoder or an
// encoder). The dispatcher avoids a listed device on the fused path if there is padding of any kind
// and causality, with one row as with many. All wrong answers of the device are among these.
TEST(LeftPadding, TriggersOfEveryCombination) {
  enum Padding { none, left, right, by_mask };
  constexpr Index keys = 11;
  int refused = 0, wrong = 0, combinations = 0;
  for (const char* name : {"mps", "gpu"})
    for (const Implementation path :
         {Implementation::automatic, Implementation::sdpa, Implementation::unfused})
      for (const Padding padding : {none, left, right, by_mask})
        for (const Index rows : {keys, Index{1}})
          for (const bool causal : {true, false}) {
            ++combinations;
            const std::string line = "attention b=1 h=2 l=" + std::to_string(rows) + "x11 d=4 " +
                                     (causal ? "causal offset=end" : "") + " seed=6";
            SCOPED_TRACE(testing::Message() << line << " on " << name << ", padding " << padding
                                            << ", path " << static_cast<int>(path));
            Fixture f(line.c_str());
            std::vector<std::uint8_t> keep(keys, 1);
            std::fill_n(keep.begin(), 9, std::uint8_t{0});
            Attention p = f.in.problem;
            if (padding == left) p.key_starts = {9};
            if (padding == right) p.key_lengths = {2};
            if (padding == by_mask) p.keep = {keep.data(), {0, 0, 0, 1}};
            auto device = std::make_shared<ProbeDevice>();
            device->name = name;
            device->masks = true;
            device->kernel = broken_on_padding;
            DispatchSettings settings;
            settings.min_query_length = 1;
            settings.warn = [](std::string_view) {};
            SdpaOptions options;
            options.device = name;
            options.implementation = path;
            const Outputs right_answer(f.c);
            ASSERT_TRUE(attention_forward(p, right_answer.view()).ok());
            const auto answers_rightly = [&] {
              for (Index e = 0; e < 2 * rows * 4; ++e)
                if (!(std::fabs(load(f.out.o.view(), e) - load(right_answer.o.view(), e)) <= 1e-6))
                  return false;
              return true;
            };
            Dispatcher dispatcher(device, settings);
            ASSERT_TRUE(dispatcher.sdpa(p, f.out.view(), options).ok());
            const bool avoided = dispatcher.counters().refused == only(Refusal::listed_device);
            EXPECT_EQ(avoided, device->name == "mps" && path != Implementation::unfused &&
                                   padding != none && causal);
            if (device->name == "mps") EXPECT_TRUE(answers_rightly());
            settings.trust_listed_devices = true;
            dispatcher.set_settings(settings);
            ASSERT_TRUE(dispatcher.sdpa(p, f.out.view(), options).ok());
            // A failure that the dispatcher does not avoid would be one of a device that is not
            // listed.
            if (!answers_rightly()) {
              ++wrong;
              EXPECT_TRUE(avoided || device->name != "mps");
            }
            refused += avoided;
          }
  EXPECT_EQ(combinations, 2 * 3 * 4 * 2 * 2);
  EXPECT_EQ(refused, 2 * 3 * 2);
  EXPECT_GT(wrong, 0);
}

// The production dispatcher uses the tiled kernel from 256 rows on, and gives the same bits for any
// number of threads and in any order.
TEST(Dispatch, OfTheHost) {
  Fixture f("attention b=1 h=4/2 l=257x300 d=64 dtype=f16 causal offset=end seed=3"),
      g("attention b=1 h=2 l=9x70 d=40 causal seed=4");
  const Outputs forward(f.c), unfused(g.c);
  ASSERT_TRUE(attention_forward(f.in.problem, forward.view(), 1).ok());
  ASSERT_TRUE(attention_unfused(g.in.problem, unfused.view(), 1).ok());
  const DispatchCounters before = default_dispatcher().counters();
  for (int threads : {1, 3, 0}) {
    ASSERT_TRUE(attention_auto(f.in.problem, f.out.view(), threads).ok());
    EXPECT_EQ(first_difference(f.out, forward), "");
    ASSERT_TRUE(attention_auto(g.in.problem, g.out.view(), threads).ok());
    EXPECT_EQ(first_difference(g.out, unfused), "");
  }
  const DispatchCounters after = default_dispatcher().counters();
  EXPECT_EQ(after.dispatched - before.dispatched, 3);
  EXPECT_EQ(after.fallback - before.fallback, 3);
  EXPECT_EQ(host_backend()->device(), "host");
}

}  // namespace
}  // namespace assay
