// Retry, fallback and reopening of devices; the tables of native codes; the host as a device; the
// calls that backends refuse.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <limits>
#include <set>

#include "kernels/attention/attention.h"
#include "kernels/product/product.h"
#include "testing/device_world.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// ---- Policies ----

struct PolicyWorld {
  std::vector<std::string> device_warnings, warnings;
  std::unique_ptr<World> world;
  explicit PolicyWorld(bool fall_back = true) {
    DevicePolicy policy;
    policy.warn = [this](std::string_view text) { device_warnings.emplace_back(text); };
    DispatchSettings settings = World::plain_settings();
    settings.fall_back_on_failure = fall_back;
    settings.warn = [this](std::string_view text) { warnings.emplace_back(text); };
    world = std::make_unique<World>(opencl_codes(), std::move(policy), std::move(settings));
  }
};

std::string result_of(AttentionFixture& f, World& w, Status* status = nullptr) {
  f.out = Outputs(f.c);
  std::memset(f.out.o.bytes(), 0xA5, f.out.o.size_in_bytes());
  std::memset(f.out.lse.bytes(), 0xA5, f.out.lse.size_in_bytes());
  const Status s = w.dispatcher().sdpa(f.in.problem, f.out.view());
  if (status) *status = s;
  else EXPECT_TRUE(s.ok()) << s.detail;
  return bytes_of_tensors({&f.out.o, &f.out.lse});
}

TEST(DevicePolicies, MemorySplitsTheBatchThenTheHeads) {
  AttentionFixture f(
      "attention b=3 h=6/3 l=8x64 d=16 causal bool=random alibi docs=20 lengths=64,50,60 "
      "offset=lengths sink=1 seed=2");
  World plain(opencl_codes());
  const std::string whole = result_of(f, plain);
  // The share of a head is K and V in fp32, 4 KiB each, and little else. The limit goes from the
  // whole need down to less than that share.
  std::size_t most_splits = 0;
  for (std::size_t kib : {64, 32, 22, 15, 12}) {
    SCOPED_TRACE(kib);
    PolicyWorld p;
    p.world->script.limit_memory(kib << 10, -4);
    EXPECT_EQ(result_of(f, *p.world), whole) << "splitting changed bits";
    const DeviceCounters counters = p.world->backend->counters();
    EXPECT_EQ(usize(counters.splits), p.device_warnings.size());
    EXPECT_GT(counters.splits, 0);
    EXPECT_EQ(counters.halved_tiles, 0);
    EXPECT_THAT(p.device_warnings.front(), StartsWith("mock: allocate "));
    EXPECT_THAT(
        p.device_warnings.front(),
        HasSubstr(
            "failed with CL_MEM_OBJECT_ALLOCATION_FAILURE (-4); half of the batch at a time"));
    most_splits = std::max(most_splits, p.device_warnings.size());
    EXPECT_EQ(p.world->dispatcher().counters().replaced, 0);
    EXPECT_TRUE(p.warnings.empty());
  }
  EXPECT_EQ(most_splits, 8u) << "nine heads one by one";
}

// A smaller part would need as much memory, so nothing is split.
TEST(DevicePolicies, OpeningAndCompilingAreNotSplit) {
  AttentionFixture f("attention b=3 h=6/3 l=8x64 d=16 seed=2");
  for (const DeviceCall call :
       {DeviceCall::open, DeviceCall::query, DeviceCall::compile, DeviceCall::download}) {
    PolicyWorld p(false);
    p.world->script.fail_every(call, [] { return -6; });
    Status status;
    result_of(f, *p.world, &status);
    EXPECT_EQ(status.code, StatusCode::memory_allocation_failed);
    EXPECT_EQ(p.world->backend->counters(), DeviceCounters{}) << name_of(call);
    EXPECT_TRUE(p.device_warnings.empty());
  }
}

TEST(DevicePolicies, LaunchesOutOfResourcesHalveTheTile) {
  AttentionFixture f("attention b=1 h=2 l=40x70 d=8 causal seed=2");
  World plain(opencl_codes());
  const std::string whole = result_of(f, plain);
  PolicyWorld p;
  p.world->script.limit_group(64, -5);
  EXPECT_EQ(result_of(f, *p.world), whole);
  EXPECT_EQ(p.world->backend->counters(), (DeviceCounters{0, 2}));
  EXPECT_THAT(p.device_warnings,
              testing::ElementsAre("mock: launch attention_forward failed with CL_OUT_OF_RESOURCES "
                                   "(-5); 8 rows a work-group instead of 16",
                                   "mock: launch attention_forward failed with CL_OUT_OF_RESOURCES "
                                   "(-5); 4 rows a work-group instead of 8"));
  p.device_warnings.clear();
  EXPECT_EQ(result_of(f, *p.world), whole);
  EXPECT_TRUE(p.device_warnings.empty()) << "the smaller tile is kept";
}

TEST(DevicePolicies, WhatIsLeftGoesToTheHostWithAWarning) {
  AttentionFixture f("attention b=1 h=1 l=8x64 d=16 causal seed=2");
  const Outputs expected(f.c);
  ASSERT_TRUE(attention_forward(f.in.problem, expected.view()).ok());
  const std::string host = bytes_of_tensors({&expected.o, &expected.lse});
  for (bool fall_back : {true, false}) {
    PolicyWorld p(fall_back);
    p.world->script.limit_memory(1000, -4);
    Status status;
    const std::string got = result_of(f, *p.world, &status);
    if (fall_back) {
      EXPECT_TRUE(status.ok());
      EXPECT_EQ(got, host);
      EXPECT_THAT(
          p.warnings,
          testing::ElementsAre("sdpa: Memory allocation failed: mock: allocate key failed with "
                               "CL_MEM_OBJECT_ALLOCATION_FAILURE (-4); the host's kernel instead"));
    } else {
      EXPECT_EQ(status.code, StatusCode::memory_allocation_failed);
      EXPECT_EQ(got, std::string(got.size(), '\xA5'));
      EXPECT_TRUE(p.warnings.empty());
    }
    EXPECT_EQ(p.world->dispatcher().counters().replaced, fall_back ? 1 : 0);
    EXPECT_EQ(p.world->dispatcher().counters().dispatched, 1);
    assay_dispatch_counters counters;
    assay_dispatch_counters_init(&counters);
    ASSERT_EQ(assay_dispatch_read(p.world->context, &counters), ASSAY_SUCCESS);
    EXPECT_EQ(counters.replaced, fall_back ? 1 : 0);
    ASSERT_EQ(assay_dispatch_reset(p.world->context), ASSAY_SUCCESS);
    EXPECT_EQ(p.world->dispatcher().counters().replaced, 0);
  }
}

TEST(DevicePolicies, EveryDeviceFailureIsReplacedAndNoOther) {
  AttentionFixture f("attention b=1 h=1 l=8x64 d=16 causal seed=2");
  for (const NativeEntry& e : opencl_codes().entries) {
    PolicyWorld p;
    p.world->script.fail_every(DeviceCall::upload, [&] { return e.code; });
    Status status;
    result_of(f, *p.world, &status);
    const bool replaced = e.status != StatusCode::invalid_arguments;
    EXPECT_EQ(status.code, replaced ? StatusCode::success : StatusCode::invalid_arguments)
        << e.name;
    EXPECT_EQ(p.world->dispatcher().counters().replaced, replaced ? 1 : 0);
    ASSERT_EQ(p.warnings.size(), replaced ? 1u : 0u);
    if (replaced) EXPECT_THAT(p.warnings[0], HasSubstr(std::string(e.name)));
  }
  // An error of the caller reaches no device at all.
  PolicyWorld p;
  Attention bad = f.in.problem;
  bad.scale = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(p.world->dispatcher().sdpa(bad, f.out.view()).code, StatusCode::invalid_arguments);
  EXPECT_EQ(p.world->script.call_count(), 0u);
  EXPECT_TRUE(p.warnings.empty());
}

TEST(DevicePolicies, ALostDeviceIsReplacedUntilItIsReopened) {
  AttentionFixture f("attention b=1 h=1 l=8x64 d=16 causal seed=2");
  PolicyWorld p;
  p.world->script.fail(4, [] { return -2; });  // CL_DEVICE_NOT_AVAILABLE
  for (int k = 1; k <= 3; ++k) {
    result_of(f, *p.world);
    EXPECT_EQ(p.world->dispatcher().counters().replaced, k);
  }
  EXPECT_THAT(p.warnings[1],
              HasSubstr("Device not supported: mock: allocate key failed with "
                        "CL_DEVICE_NOT_AVAILABLE (-2); the device must be opened again"));
  ASSERT_EQ(assay_context_reopen(p.world->context), ASSAY_SUCCESS);
  result_of(f, *p.world);
  EXPECT_EQ(p.world->dispatcher().counters().replaced, 3);
  // The device does not come back.
  p.world->script.fail_every(DeviceCall::open, [] { return -1; });
  EXPECT_EQ(assay_context_reopen(p.world->context), ASSAY_DEVICE_NOT_SUPPORTED);
  EXPECT_THAT(assay_last_error(), HasSubstr("open failed with CL_DEVICE_NOT_FOUND (-1)"));
  EXPECT_EQ(p.world->script.held(), 0u);
}

// The host's kernel fails too. The status is that of the device, and both reasons are told.
TEST(DevicePolicies, BothFailuresAreTold) {
  PolicyWorld p;
  p.world->script.fail_every(DeviceCall::upload, [] { return -14; });
  // There are more keys than the host can have packed: K and V broadcast over 2^40 positions, which
  // no real tensor has.
  float number = 1;
  Attention huge;
  huge.shape = {1, 1, 1, 100, Index{1} << 40, 8, 8};
  huge.q = {&number, Dtype::f32, {1, 1, 100, 8}, {0, 0, 0, 0}, 0};
  huge.k = huge.v = {&number, Dtype::f32, {1, 1, Index{1} << 40, 8}, {0, 0, 0, 0}, 0};
  std::vector<float> o(800, 7), lse(100, 7);
  const AttentionOutput out{{o.data(), Dtype::f32, {1, 1, 100, 8}, {800, 800, 8, 1}, 0},
                            {lse.data(), Dtype::f32, {1, 1, 100, 1}, {100, 100, 1, 1}, 0}};
  const Status status = p.world->dispatcher().sdpa(huge, out);
  EXPECT_EQ(status.code, StatusCode::memory_allocation_failed);
  EXPECT_THAT(
      status.detail,
      HasSubstr("mock: key needs 35184372088832 bytes, but a buffer of the device has at most "));
  EXPECT_THAT(status.detail,
              HasSubstr("; then the host's kernel: Memory allocation failed: a workspace of "));
  for (float x : o) ASSERT_EQ(x, 7);
  EXPECT_EQ(p.world->dispatcher().counters().replaced, 1);
}

// ---- Tables ----

// Every row of the table by status, in the order of the numbers.
std::string rows_of(const NativeTable& table, StatusCode status) {
  std::set<NativeCode> codes;
  for (const NativeEntry& e : table.entries)
    if (e.status == status) codes.insert(e.code);
  std::string text;
  for (NativeCode code : codes) text += fmt::format("{}{}", text.empty() ? "" : " ", code);
  return text;
}

TEST(NativeCodes, EveryRowOfEveryTable) {
  using enum StatusCode;
  EXPECT_EQ(rows_of(opencl_codes(), invalid_arguments),
            "-72 -70 -69 -68 -65 -64 -63 -62 -61 -60 -59 -58 -57 -56 -55 -54 -53 -52 -51 -50 -49 "
            "-48 -41 -40 -39 -38 -37 "
            "-36 -35 -34 -33 -32 -31 -30 -13 -10 -9 -8");
  EXPECT_EQ(rows_of(opencl_codes(), memory_allocation_failed), "-6 -5 -4");
  EXPECT_EQ(rows_of(opencl_codes(), device_not_supported), "-1001 -18 -2 -1");
  EXPECT_EQ(rows_of(opencl_codes(), kernel_compilation_failed),
            "-71 -67 -66 -47 -46 -45 -44 -43 -42 -19 -17 -16 -15 -11 -3");
  EXPECT_EQ(rows_of(opencl_codes(), execution_failed), "-14 -12 -7");
  EXPECT_EQ(rows_of(cuda_codes(), invalid_arguments),
            "1 9 12 16 17 18 19 20 21 22 26 27 32 37 52 66 67 207 208 210 211 212 213 219 400 704 "
            "705 708 712 713 720 912 "
            "914 915");
  EXPECT_EQ(rows_of(cuda_codes(), memory_allocation_failed), "2 65 68 69 701 711 808 809");
  EXPECT_EQ(rows_of(cuda_codes(), device_not_supported),
            "3 4 31 34 35 36 46 49 100 101 102 103 127 201 209 215 216 217 224 709 800 801 802 803 "
            "804 805 807 810");
  EXPECT_EQ(rows_of(cuda_codes(), kernel_compilation_failed),
            "13 43 44 45 98 200 218 221 222 223 225 300 301 302 303 500 811 812 913");
  EXPECT_EQ(rows_of(cuda_codes(), execution_failed),
            "5 6 7 8 23 24 25 28 53 205 206 214 220 226 304 401 402 600 700 702 703 710 714 715 "
            "716 717 718 719 721 806 900 "
            "901 902 903 904 905 906 907 908 909 910 911 999 10000");
  EXPECT_EQ(rows_of(metal_codes(), invalid_arguments), "9 10");
  EXPECT_EQ(rows_of(metal_codes(), memory_allocation_failed), "8 202 203");
  EXPECT_EQ(rows_of(metal_codes(), device_not_supported), "4 7 11 201");
  EXPECT_EQ(rows_of(metal_codes(), kernel_compilation_failed),
            "101 102 103 104 105 106 206 207 208");
  EXPECT_EQ(rows_of(metal_codes(), execution_failed), "1 2 3 12 204 205");
  EXPECT_EQ(rows_of(posix_codes(), invalid_arguments),
            "7 9 14 17 20 21 22 27 33 34 36 75 84 90 116");
  EXPECT_EQ(rows_of(posix_codes(), memory_allocation_failed), "11 12 23 24 28 63 105 122");
  EXPECT_EQ(rows_of(posix_codes(), device_not_supported), "1 6 13 19 38 95");
  EXPECT_EQ(rows_of(posix_codes(), kernel_compilation_failed), "2 8 26");
  EXPECT_EQ(rows_of(posix_codes(), execution_failed),
            "3 4 5 10 16 18 25 29 30 31 32 35 37 39 40 42 43 60 61 62 67 71 72 74 88 89 91 92 93 "
            "97 98 99 100 101 102 103 "
            "104 106 107 110 111 113 114 115 125 130 131");
  for (const NativeTable* table : native_tables()) {
    std::set<NativeCode> seen;
    for (const NativeEntry& e : table->entries) {
      EXPECT_TRUE(seen.insert(e.code).second) << e.name << " twice";
      EXPECT_NE(e.code, 0);
      EXPECT_EQ(kernels::status_of(*table, e.code), e.status);
      EXPECT_EQ(describe(*table, e.code), fmt::format("{} ({})", e.name, e.code));
      EXPECT_TRUE(e.status >= invalid_arguments && e.status <= execution_failed) << e.name;
    }
    EXPECT_EQ(kernels::status_of(*table, 0), success);
    for (NativeCode code : undefined_codes) EXPECT_EQ(kernels::status_of(*table, code), unknown);
  }
}

TEST(HostDevice, RefusesWhatItDoesNotHold) {
  HostDevice d;
  EXPECT_EQ(d.close(), EINVAL);
  ASSERT_EQ(d.open(), 0);
  BufferHandle buffer{};
  ASSERT_EQ(d.allocate(16, buffer), 0);
  std::byte bytes[32]{};
  EXPECT_EQ(d.upload(buffer, bytes), EINVAL) << "32 bytes into 16";
  EXPECT_EQ(d.download(bytes, buffer), EINVAL);
  EXPECT_EQ(d.upload(BufferHandle{99}, std::span(bytes, 1)), EINVAL);
  KernelHandle kernel{};
  EXPECT_EQ(d.compile({"", "", "no_such_kernel", {}}, kernel), ENOENT);
  ASSERT_EQ(d.compile({"", "", "attention_forward", {}}, kernel), 0);
  EXPECT_EQ(d.launch(kernel, {}, std::span(&buffer, 1)), EINVAL) << "one argument of thirteen";
  EXPECT_EQ(d.launch(KernelHandle{99}, {}, {}), EINVAL);
  EXPECT_EQ(d.free(buffer), 0);
  EXPECT_EQ(d.free(buffer), EINVAL);
  EXPECT_EQ(d.release(kernel), 0);
  EXPECT_EQ(d.release(kernel), EINVAL);
#ifndef ASSAY_SANITIZED  // its operator new ends the process instead of throwing
  EXPECT_EQ(d.allocate(usize(1) << 62, buffer), ENOMEM);
#endif
  EXPECT_EQ(d.close(), 0);
}

// The layer over the host's device changes no bit.
TEST(HostDevice, HasTheBitsOfTheKernels) {
  AttentionFixture& f = everything();
  const Outputs direct(f.c), layered(f.c);
  ASSERT_TRUE(attention_forward(f.in.problem, direct.view()).ok());
  Dispatcher dispatcher(
      std::make_shared<DeviceBackend>(std::make_shared<DeviceSession>(make_device("host"))),
      World::plain_settings());
  ASSERT_TRUE(dispatcher.sdpa(f.in.problem, layered.view()).ok());
  EXPECT_EQ(dispatcher.counters().dispatched, 1);
  EXPECT_EQ(first_difference(direct, layered), "");

  ProductFixture& p = small_product();
  std::shared_ptr<const PackedWeights> packed;
  ASSERT_TRUE(PackedWeights::pack(p.in.problem.w, packed).ok());
  const ProductOutput by_host(p.c);
  ASSERT_TRUE(product(p.in.problem.a, *packed, by_host.c.view()).ok());
  DeviceSession session(make_device("host"));
  const Status status = device_product(session, p.in.problem.a, p.in.problem.w, p.out.c.view());
  ASSERT_TRUE(status.ok()) << status.detail;
  EXPECT_EQ(first_difference(by_host, p.out), "");
}

// Tries numbers at the ends of 64 bits and of fp32, on the host and on devices.
TEST(DeviceBackends, ExtremesMeanWhatTheyMeanOnTheHost) {
  AttentionFixture f("attention b=1 h=2 l=9x13 d=4 seed=3");
  constexpr Index huge = std::numeric_limits<Index>::max();
  World w(opencl_codes());
  const auto both = [&](const Attention& p) {
    const Outputs host(f.c), device(f.c);
    EXPECT_TRUE(attention_forward(p, host.view()).ok());
    const Status status = w.dispatcher().sdpa(p, device.view());
    EXPECT_TRUE(status.ok()) << status.detail;
    EXPECT_EQ(first_difference(host, device), "");
    return bytes_of_tensors({&host.o, &host.lse});
  };
  const std::string open = both(f.in.problem);
  Attention p = f.in.problem;
  p.window_right = huge;
  EXPECT_EQ(both(p), open) << "so wide a window hides nothing";
  p.window_left = huge;
  p.offset = {-10};
  EXPECT_EQ(both(p), open);
  p.offset = {largest_extent};
  EXPECT_EQ(both(p), open);
  for (const Index offset : {largest_extent + 1, -largest_extent - 1, huge, -huge}) {
    p.offset = {offset};
    const Status status = attention_forward(p, f.out.view());
    EXPECT_EQ(status.code, StatusCode::invalid_arguments);
    EXPECT_EQ(status.detail, "offset = " + std::to_string(offset) + " is outside [-2^40, 2^40]");
    EXPECT_EQ(w.dispatcher().sdpa(p, f.out.view()).code, StatusCode::invalid_arguments);
  }
  p = f.in.problem;
  p.shape.keys = huge;
  p.k.stride = p.v.stride = {};
  EXPECT_EQ(attention_forward(p, f.out.view()).detail, "keys = 9223372036854775807 is above 2^40");
  p = f.in.problem;
  p.shape.batch = largest_extent;
  p.shape.query_heads = 3 * p.shape.kv_heads;
  EXPECT_EQ(attention_forward(p, f.out.view()).detail, "batch * query_heads = 1099511627776 * " +
                                                           std::to_string(p.shape.query_heads) +
                                                           " is above 2^40");
  // The product with the inverse of this softcap would be NaN, so the dispatcher takes the host for
  // it.
  p = f.in.problem;
  p.softcap = 1e-45f;
  p.scale = 0;
  const DispatchCounters before = w.dispatcher().counters();
  ASSERT_TRUE(w.dispatcher().sdpa(p, f.out.view()).ok());
  EXPECT_EQ(w.dispatcher().counters().refused[static_cast<std::size_t>(Refusal::feature)],
            before.refused[static_cast<std::size_t>(Refusal::feature)] + 1);
}

TEST(DeviceBackends, RefuseByName) {
  EXPECT_EQ(make_device("cuda"), nullptr);
  assay_context_options options;
  assay_context_options_init(&options);
  options.device = "metal";
  assay_context context = nullptr;
  EXPECT_EQ(assay_context_create(&options, &context), ASSAY_DEVICE_NOT_SUPPORTED);
  EXPECT_STREQ(assay_last_error(),
               "Device not supported: device = metal is none of host, opencl, opencl:TEXT");
  options.device = nullptr;
  options.device_fallback = 2;
  EXPECT_EQ(assay_context_create(&options, &context), ASSAY_INVALID_ARGUMENTS);
  options.device_fallback = 1;
  options.reserved = 1;
  EXPECT_EQ(assay_context_create(&options, &context), ASSAY_INVALID_ARGUMENTS);

  ProductFixture& p = small_product();
  DeviceSession session(make_device("host"));
  LowBitView other = p.in.problem.w;
  other.format = LowBit::f8e4m3;
  EXPECT_EQ(device_product(session, p.in.problem.a, other, p.out.c.view()).code,
            StatusCode::invalid_arguments);
  TensorView c = p.out.c.view();
  c.shape[3] = 21;
  const Status shape = device_product(session, p.in.problem.a, p.in.problem.w, c);
  EXPECT_EQ(shape.code, StatusCode::invalid_arguments);
  EXPECT_THAT(shape.detail, HasSubstr("c has shape [1, 1, 3, 21], not [1, 1, 3, 20]"));
}

}  // namespace
}  // namespace assay
