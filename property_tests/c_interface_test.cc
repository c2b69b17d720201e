// The C interface through its shared library: numbers, every refusal with its words, handles,
// versions and threads.
#include <assay/assay.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();

// A small problem, for which a test can check that its outputs are untouched. All scores are equal,
// so O is the mean of V.
struct Call {
  std::vector<float> q = std::vector<float>(2 * 4 * 3 * 8, 0),
                     k = std::vector<float>(2 * 2 * 5 * 8, 1),
                     v = std::vector<float>(2 * 2 * 5 * 6);
  std::vector<float> o = std::vector<float>(2 * 4 * 3 * 6, 123),
                     lse = std::vector<float>(2 * 4 * 3, 456);
  std::vector<std::uint8_t> keep = std::vector<std::uint8_t>(2 * 4 * 3 * 5, 1);
  std::vector<float> bias = std::vector<float>(2 * 4 * 3 * 5, 0);
  assay_tensor tq, tk, tv, to, tlse, tkeep, tbias;
  assay_attention problem;
  assay_context context = nullptr;
  const assay_tensor *po = &to, *plse = &tlse;
  const assay_attention* pproblem = &problem;

  Call() {
    for (std::size_t e = 0; e < v.size(); ++e) v[e] = static_cast<float>(e % 7);
    assay_tensor_init(&tq, q.data(), ASSAY_FLOAT, 32, 2, 4, 3, 8);
    assay_tensor_init(&tk, k.data(), ASSAY_FLOAT, 32, 2, 2, 5, 8);
    assay_tensor_init(&tv, v.data(), ASSAY_FLOAT, 32, 2, 2, 5, 6);
    assay_tensor_init(&to, o.data(), ASSAY_FLOAT, 32, 2, 4, 3, 6);
    assay_tensor_init(&tlse, lse.data(), ASSAY_FLOAT, 32, 2, 4, 3, 1);
    assay_tensor_init(&tkeep, keep.data(), ASSAY_BOOL, 8, 2, 4, 3, 5);
    assay_tensor_init(&tbias, bias.data(), ASSAY_FLOAT, 32, 2, 4, 3, 5);
    assay_attention_init(&problem);
    problem.q = &tq;
    problem.k = &tk;
    problem.v = &tv;
    EXPECT_EQ(assay_context_create(nullptr, &context), ASSAY_SUCCESS) << assay_last_error();
  }
  Call(const Call&) = delete;
  ~Call() { EXPECT_EQ(assay_context_destroy(context), ASSAY_SUCCESS) << assay_last_error(); }

  bool untouched() const {
    return std::all_of(o.begin(), o.end(), [](float x) { return x == 123; }) &&
           std::all_of(lse.begin(), lse.end(), [](float x) { return x == 456; });
  }
  // With equal scores, O is the mean of the keys of the head that h reads, and LSE is log 5.
  void expect_means() const {
    for (std::size_t b = 0; b < 2; ++b)
      for (std::size_t h = 0; h < 4; ++h)
        for (std::size_t i = 0; i < 3; ++i) {
          EXPECT_NEAR(lse[(b * 4 + h) * 3 + i], std::log(5.0), 1e-6);
          for (std::size_t c = 0; c < 6; ++c) {
            double mean = 0;
            for (std::size_t j = 0; j < 5; ++j) mean += v[((b * 2 + h / 2) * 5 + j) * 6 + c] / 5.0;
            EXPECT_NEAR(o[((b * 4 + h) * 3 + i) * 6 + c], mean, 1e-5);
          }
        }
  }
};

TEST(CInterface, VersionAndMessages) {
  EXPECT_EQ(assay_version(), ASSAY_VERSION);
  EXPECT_STREQ(assay_status_message(0), "Success");
  EXPECT_STREQ(assay_status_message(1), "Invalid arguments");
  EXPECT_STREQ(assay_status_message(2), "Memory allocation failed");
  EXPECT_STREQ(assay_status_message(3), "Device not supported");
  EXPECT_STREQ(assay_status_message(4), "Kernel compilation failed");
  EXPECT_STREQ(assay_status_message(5), "Execution failed");
  EXPECT_STREQ(assay_status_message(6), "Unsupported configuration");
  EXPECT_STREQ(assay_status_message(7), "Invalid cache state");
  for (int code : {255, 8, -1, 254, 256, 1 << 30})
    EXPECT_STREQ(assay_status_message(code), "Unknown error");
}

TEST(CInterface, ForwardAndSdpaGiveTheMean) {
  for (bool sdpa : {false, true}) {
    Call c;
    ASSERT_EQ(sdpa ? assay_sdpa(c.context, &c.problem, &c.to, &c.tlse, ASSAY_AUTOMATIC, nullptr)
                   : assay_attention_forward(c.context, &c.problem, &c.to, &c.tlse),
              ASSAY_SUCCESS)
        << assay_last_error();
    EXPECT_STREQ(assay_last_error(), "");
    c.expect_means();
  }
}

// Strides, offsets, dtypes and masks reach the kernel. Only key 3 is kept, in bf16, from a buffer
// of [B, L, H, D].
TEST(CInterface, ViewsAndMasks) {
  Call c;
  std::vector<std::uint16_t> v(2 * 5 * 2 * 6 + 1), q(2 * 4 * 3 * 8, 0), k(2 * 2 * 5 * 8, 0x3F80);
  for (std::size_t e = 1; e < v.size(); ++e)
    v[e] = static_cast<std::uint16_t>(0x4000 + e);  // the values begin at 2
  c.tv.data = v.data();
  c.tv.offset = 1;
  const std::int64_t strides[] = {60, 6, 12, 1};
  std::copy_n(strides, 4, c.tv.strides);
  c.tq.data = q.data();
  c.tk.data = k.data();
  for (assay_tensor* t : {&c.tq, &c.tk, &c.tv}) t->dtype = {ASSAY_BFLOAT, 16, 1};
  const std::uint8_t mask[] = {1, 0, 0, 0, 1, 0};
  assay_tensor_init(&c.tkeep, const_cast<std::uint8_t*>(mask), ASSAY_UINT, 8, 1, 1, 1, 5);
  c.tkeep.offset = 1;
  c.problem.keep = &c.tkeep;
  ASSERT_EQ(assay_attention_forward(c.context, &c.problem, &c.to, nullptr), ASSAY_SUCCESS)
      << assay_last_error();
  for (std::size_t b = 0; b < 2; ++b)
    for (std::size_t h = 0; h < 4; ++h)
      for (std::size_t d = 0; d < 6; ++d) {
        const std::uint32_t bits =
            static_cast<std::uint32_t>(v[1 + b * 60 + h / 2 * 6 + 3 * 12 + d]) << 16;
        float expected;
        std::memcpy(&expected, &bits, 4);
        EXPECT_EQ(c.o[((b * 4 + h) * 3 + 2) * 6 + d], expected);
      }
  EXPECT_EQ(c.lse[0], 456);
}

struct Bad {
  const char* name;
  std::function<void(Call&)> change;
  int status;
  const char* message;
};

const std::vector<Bad>& bad_inputs() {
  static float spare[8];
  static const std::int64_t lengths[] = {1, 6};
  static const float slopes[] = {1, NAN, 1, 1};
  static const std::vector<Bad> list = {
      {"null context", [](Call& c) { c.context = nullptr; }, 1,
       "Invalid arguments: context is null"},
      {"foreign context", [](Call& c) { c.context = reinterpret_cast<assay_context>(spare); }, 1,
       "Invalid arguments: context is no context, or was destroyed"},
      {"null problem", [](Call& c) { c.pproblem = nullptr; }, 1,
       "Invalid arguments: problem is null"},
      {"null q", [](Call& c) { c.problem.q = nullptr; }, 1, "Invalid arguments: q is null"},
      {"null k", [](Call& c) { c.problem.k = nullptr; }, 1, "Invalid arguments: k is null"},
      {"null v", [](Call& c) { c.problem.v = nullptr; }, 1, "Invalid arguments: v is null"},
      {"null o", [](Call& c) { c.po = nullptr; }, 1, "Invalid arguments: o is null"},
      {"null q data", [](Call& c) { c.tq.data = nullptr; }, 1, "Invalid arguments: q is null"},
      {"null v data", [](Call& c) { c.tv.data = nullptr; }, 1, "Invalid arguments: v is null"},
      {"null o data", [](Call& c) { c.to.data = nullptr; }, 1, "Invalid arguments: o is null"},
      {"null lse data", [](Call& c) { c.tlse.data = nullptr; }, 1,
       "Invalid arguments: lse.data is null"},
      {"null keep data",
       [](Call& c) {
         c.problem.keep = &c.tkeep;
         c.tkeep.data = nullptr;
       },
       1, "Invalid arguments: keep.data is null"},
      {"null bias data",
       [](Call& c) {
         c.problem.bias = &c.tbias;
         c.tbias.data = nullptr;
       },
       1, "Invalid arguments: bias.data is null"},
      {"null offset", [](Call& c) { c.problem.offset_count = 2; }, 1,
       "Invalid arguments: offset is null and has 2 entries"},
      {"zero D", [](Call& c) { c.tq.shape[3] = c.tk.shape[3] = 0; }, 1,
       "Invalid arguments: dim = 0 is outside [1, 1024]"},
      {"zero Dv", [](Call& c) { c.tv.shape[3] = c.to.shape[3] = 0; }, 1,
       "Invalid arguments: value_dim = 0 is outside [1, 1024]"},
      {"zero heads", [](Call& c) { c.tq.shape[1] = c.to.shape[1] = c.tlse.shape[1] = 0; }, 1,
       "Invalid arguments: query_heads = 0 is not a positive multiple of kv_heads = 2"},
      {"zero kv heads", [](Call& c) { c.tk.shape[1] = c.tv.shape[1] = 0; }, 1,
       "Invalid arguments: kv_heads = 0 is below 1"},
      {"heads 4 and 3", [](Call& c) { c.tk.shape[1] = c.tv.shape[1] = 3; }, 1,
       "Invalid arguments: query_heads = 4 is not a positive multiple of kv_heads = 3"},
      {"D 65600", [](Call& c) { c.tq.shape[3] = c.tk.shape[3] = 65600; }, 1,
       "Invalid arguments: dim = 65600 is outside [1, 1024]"},
      {"D 2^32 + 8", [](Call& c) { c.tq.shape[3] = c.tk.shape[3] = (std::int64_t{1} << 32) + 8; },
       1, "Invalid arguments: dim = 4294967304 is outside [1, 1024]"},
      {"Dv 1025", [](Call& c) { c.tv.shape[3] = c.to.shape[3] = 1025; }, 1,
       "Invalid arguments: value_dim = 1025 is outside [1, 1024]"},
      {"negative length", [](Call& c) { c.tq.shape[2] = -3; }, 1,
       "Invalid arguments: q.shape[2] = -3 is negative"},
      {"batch of k", [](Call& c) { c.tk.shape[0] = 3; }, 1,
       "Invalid arguments: k.shape[0] = 3 is not 2"},
      {"dim of k", [](Call& c) { c.tk.shape[3] = 7; }, 1,
       "Invalid arguments: k.shape[3] = 7 is not 8"},
      {"heads of v", [](Call& c) { c.tv.shape[1] = 1; }, 1,
       "Invalid arguments: v.shape[1] = 1 is not 2"},
      {"length of v", [](Call& c) { c.tv.shape[2] = 4; }, 1,
       "Invalid arguments: v.shape[2] = 4 is not 5"},
      {"rows of o", [](Call& c) { c.to.shape[2] = 4; }, 1,
       "Invalid arguments: o.shape[2] = 4 is not 3"},
      {"columns of lse", [](Call& c) { c.tlse.shape[3] = 3; }, 1,
       "Invalid arguments: lse.shape[3] = 3 is not 1"},
      {"shape of keep",
       [](Call& c) {
         c.problem.keep = &c.tkeep;
         c.tkeep.shape[3] = 4;
       },
       1, "Invalid arguments: keep.shape[3] = 4 is not 5"},
      {"shape of bias",
       [](Call& c) {
         c.problem.bias = &c.tbias;
         c.tbias.shape[1] = 2;
       },
       1, "Invalid arguments: bias.shape[1] = 2 is not 4"},
      {"rank", [](Call& c) { c.tq.rank = 3; }, 1, "Invalid arguments: q.rank = 3 is not 4"},
      {"device", [](Call& c) { c.tk.device_type = 2; }, 3,
       "Device not supported: k.device_type = 2 is not 1, the processor"},
      {"dtypes differ", [](Call& c) { c.tk.dtype = {ASSAY_FLOAT, 16, 1}; }, 1,
       "Invalid arguments: q, k and v are f32, f16 and f32; they must agree"},
      {"f64", [](Call& c) { c.tq.dtype.bits = 64; }, 6,
       "Unsupported configuration: q is f64; the kernel takes f32, f16 and bf16"},
      {"f8", [](Call& c) { c.tv.dtype = {ASSAY_FLOAT8_E4M3FN, 8, 1}; }, 6,
       "Unsupported configuration: v is f8e4m3; the kernel takes f32, f16 and bf16"},
      {"int32", [](Call& c) { c.tq.dtype.code = ASSAY_INT; }, 6,
       "Unsupported configuration: q.dtype has code 0, 32 bits, 1 lanes, which is no number format "
       "of this library"},
      {"lanes", [](Call& c) { c.to.dtype.lanes = 4; }, 6,
       "Unsupported configuration: o.dtype has code 2, 32 bits, 4 lanes, which is no number format "
       "of this library"},
      {"keep of int32",
       [](Call& c) {
         c.problem.keep = &c.tkeep;
         c.tkeep.dtype = {ASSAY_INT, 32, 1};
       },
       6,
       "Unsupported configuration: keep.dtype has code 0, 32 bits, 1 lanes; it is bool or uint8"},
      {"lse in f16", [](Call& c) { c.tlse.dtype.bits = 16; }, 1,
       "Invalid arguments: lse is f16; it must be f32"},
      {"o on itself", [](Call& c) { c.to.strides[1] = 0; }, 1,
       "Invalid arguments: o overlaps itself: shape 2, 4, 3, 6, strides 72, 0, 6, 1"},
      {"o by one", [](Call& c) { c.to.strides[2] = 5; }, 1,
       "Invalid arguments: o overlaps itself: shape 2, 4, 3, 6, strides 72, 18, 5, 1"},
      {"o on q", [](Call& c) { c.tq.data = c.o.data() + 143; }, 1,
       "Invalid arguments: o overlaps q; an output may overlap nothing"},
      {"o on k", [](Call& c) { c.tk.data = c.o.data() - 159; }, 1,
       "Invalid arguments: o overlaps k; an output may overlap nothing"},
      {"o on v", [](Call& c) { c.tv.data = c.o.data(); }, 1,
       "Invalid arguments: o overlaps v; an output may overlap nothing"},
      {"lse on o", [](Call& c) { c.tlse.data = c.o.data(); }, 1,
       "Invalid arguments: o overlaps lse; an output may overlap nothing"},
      {"o on bias",
       [](Call& c) {
         c.problem.bias = &c.tbias;
         c.tbias.data = c.o.data();
       },
       1, "Invalid arguments: o overlaps bias; an output may overlap nothing"},
      {"lse on keep",
       [](Call& c) {
         c.problem.keep = &c.tkeep;
         c.tkeep.data = c.lse.data();
       },
       1, "Invalid arguments: lse overlaps keep; an output may overlap nothing"},
      {"strides out of the world", [](Call& c) { c.tk.strides[0] = huge; }, 1,
       "Invalid arguments: k with strides 9223372036854775807, 40, 8, 1 and origin 0 reaches more "
       "than 2^57 bytes from its pointer"},
      {"keep out of the world",
       [](Call& c) {
         c.problem.keep = &c.tkeep;
         c.tkeep.offset = huge;
       },
       1,
       "Invalid arguments: keep with strides 60, 15, 5, 1 and offset 9223372036854775807 reaches "
       "more than 2^57 bytes from its pointer"},
      {"NaN scale",
       [](Call& c) {
         c.problem.flags = 0;
         c.problem.scale = NAN;
       },
       1, "Invalid arguments: scale = nan is not a finite number"},
      {"infinite scale",
       [](Call& c) {
         c.problem.flags = 0;
         c.problem.scale = -INFINITY;
       },
       1, "Invalid arguments: scale = -inf is not a finite number"},
      {"softcap", [](Call& c) { c.problem.softcap = -1; }, 1,
       "Invalid arguments: softcap = -1 is not a finite number of at least 0"},
      {"dropout", [](Call& c) { c.problem.dropout = 1; }, 1,
       "Invalid arguments: dropout = 1 is outside [0, 1)"},
      {"flags", [](Call& c) { c.problem.flags = 64; }, 1,
       "Invalid arguments: problem.flags = 0x40 has bits beyond 0x7"},
      {"key lengths",
       [](Call& c) {
         c.problem.key_lengths = lengths;
         c.problem.key_length_count = 2;
       },
       1, "Invalid arguments: a key length or start of 6 is outside [0, 5]"},
      {"count of key lengths",
       [](Call& c) {
         c.problem.key_lengths = lengths;
         c.problem.key_length_count = huge;
       },
       1, "Invalid arguments: key_lengths has 9223372036854775807 entries, not 2"},
      {"negative count", [](Call& c) { c.problem.sink_count = -1; }, 1,
       "Invalid arguments: sink has -1 entries, not 4"},
      {"slopes",
       [](Call& c) {
         c.problem.alibi_slopes = slopes;
         c.problem.alibi_slope_count = 4;
       },
       1, "Invalid arguments: alibi_slopes = nan is not finite"},
      {"segments", [](Call& c) { c.problem.query_segment_count = 7; }, 1,
       "Invalid arguments: query_segment has 7 entries, not 2 * 3"},
      {"version 0", [](Call& c) { c.problem.version = 0; }, 1,
       "Invalid arguments: problem.version = 0 is not between 1 and 2"},
      {"a later version", [](Call& c) { c.tq.version = ASSAY_VERSION + 1; }, 1,
       "Invalid arguments: q.version = 3 is not between 1 and 2"},
      {"larger struct", [](Call& c) { c.to.struct_size = 256; }, 1,
       "Invalid arguments: o.struct_size = 256 is not a multiple of 8 from 8 to 104, the size that "
       "this library knows"},
      {"broken size", [](Call& c) { c.problem.struct_size = 20; }, 1,
       "Invalid arguments: problem.struct_size = 20 is not a multiple of 8 from 8 to "},
  };
  return list;
}

TEST(CInterface, BadInputIsRefusedByNameAndWritesNothing) {
  for (const Bad& bad : bad_inputs())
    for (bool sdpa : {false, true}) {
      Call c;
      const assay_context context = c.context;
      bad.change(c);
      const assay_status status =
          sdpa ? assay_sdpa(c.context, c.pproblem, c.po, c.plse, ASSAY_AUTOMATIC, "host")
               : assay_attention_forward(c.context, c.pproblem, c.po, c.plse);
      EXPECT_EQ(status, bad.status) << bad.name;
      EXPECT_THAT(assay_last_error(), testing::StartsWith(bad.message)) << bad.name;
      EXPECT_TRUE(c.untouched()) << bad.name;
      c.context = context;
    }
  EXPECT_GE(bad_inputs().size(), 60u);
}

// The bytes around and between the views of a refused call must not change either. The poisoned
// arena is compared byte for byte.
TEST(CInterface, RefusedOutputsOverlappingInputsLeaveEveryByte) {
  Call c;
  std::vector<std::byte> arena(1 << 16, std::byte{0xA5}), before = arena;
  c.tq.data = c.to.data = arena.data() + 4096;
  c.tlse.data = arena.data() + 8192;
  EXPECT_EQ(assay_attention_forward(c.context, &c.problem, &c.to, &c.tlse),
            ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(arena, before);
}

TEST(CInterface, OlderStructsGetDefaults) {
  Call c;
  // The caller's header ended after `flags` and `dropout`.
  c.problem.struct_size = offsetof(assay_attention, dropout_seed);
  c.problem.window_left = 0;  // the library does not read it
  c.problem.keep = reinterpret_cast<const assay_tensor*>(8);
  ASSERT_EQ(assay_attention_forward(c.context, &c.problem, &c.to, &c.tlse), ASSAY_SUCCESS)
      << assay_last_error();
  c.expect_means();
  assay_dispatch_counters counters;
  std::memset(&counters, 0x55, sizeof(counters));
  assay_dispatch_counters_init(&counters);
  counters.struct_size = offsetof(assay_dispatch_counters, refused);
  ASSERT_EQ(assay_dispatch_read(c.context, &counters), ASSAY_SUCCESS);
  EXPECT_EQ(counters.dispatched, 0);
  EXPECT_EQ(counters.refused[0], 0x5555555555555555);
}

TEST(CInterface, HandlesAreFoundOut) {
  assay_context a = nullptr, b = nullptr;
  ASSERT_EQ(assay_context_create(nullptr, &a), ASSAY_SUCCESS);
  ASSERT_EQ(assay_context_destroy(a), ASSAY_SUCCESS);
  EXPECT_EQ(assay_context_destroy(a), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(), "Invalid arguments: context is no context, or was destroyed");
  ASSERT_EQ(assay_context_create(nullptr, &b), ASSAY_SUCCESS);
  EXPECT_NE(a, b);  // a number is never given out again
  EXPECT_EQ(assay_dispatch_reset(a), ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_dispatch_reset(b), ASSAY_SUCCESS);
  EXPECT_EQ(assay_context_destroy(b), ASSAY_SUCCESS);
  EXPECT_EQ(assay_context_create(nullptr, nullptr), ASSAY_INVALID_ARGUMENTS);
  assay_context_options options;
  const auto refused = [&](const char* words) {
    assay_context none = nullptr;
    EXPECT_EQ(assay_context_create(&options, &none), ASSAY_INVALID_ARGUMENTS);
    EXPECT_EQ(none, nullptr);
    EXPECT_THAT(assay_last_error(), HasSubstr(words));
    assay_context_options_init(&options);
  };
  assay_context_options_init(&options);
  options.threads = -1;
  refused("threads = -1 is below 0");
  options.compile_cache = 2;
  refused("compile_cache = 2 is neither 0 nor 1");
  options.min_query_length = -5;
  refused("min_query_length = -5 is below 0");
  options.listed_device_count = 3;
  refused("listed_devices is null and has 3 entries");
  options.struct_size = 4096;
  refused("options.struct_size = 4096");
}

TEST(CInterface, CountersAndSwitches) {
  std::vector<std::pair<int, std::string>> told;
  assay_context_options options;
  assay_context_options_init(&options);
  const char* devices[] = {"npu"};
  options.min_query_length = 3;
  options.listed_devices = devices;
  options.listed_device_count = 1;
  options.report_user = &told;
  options.report = [](void* user, std::int32_t severity, const char* text) {
    static_cast<std::vector<std::pair<int, std::string>>*>(user)->emplace_back(severity, text);
  };
  Call c;
  assay_context context = nullptr;
  ASSERT_EQ(assay_context_create(&options, &context), ASSAY_SUCCESS);
  const auto sdpa = [&](int implementation, const char* device) {
    return assay_sdpa(context, &c.problem, &c.to, &c.tlse, implementation, device);
  };
  EXPECT_EQ(sdpa(ASSAY_AUTOMATIC, nullptr), 0);
  EXPECT_EQ(sdpa(ASSAY_SDPA, "host"), 0);
  EXPECT_EQ(sdpa(ASSAY_UNFUSED, "host"), 0);
  c.keep[7] = 0;
  c.problem.keep = &c.tkeep;
  EXPECT_EQ(sdpa(ASSAY_SDPA, nullptr), 0);
  c.problem.flags |= ASSAY_CAUSAL;
  EXPECT_EQ(sdpa(ASSAY_SDPA, "npu"), 0);
  EXPECT_EQ(sdpa(3, nullptr), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(), "Invalid arguments: implementation = 3 is outside [0, 2]");
  std::int32_t before = -1;
  EXPECT_EQ(assay_dispatch_enable(context, 0, &before), 0);
  EXPECT_EQ(before, 1);
  EXPECT_EQ(sdpa(ASSAY_AUTOMATIC, nullptr), 0);
  EXPECT_EQ(assay_dispatch_enable(context, before, &before), 0);
  EXPECT_EQ(before, 0);
  assay_dispatch_counters counters;
  assay_dispatch_counters_init(&counters);
  ASSERT_EQ(assay_dispatch_read(context, &counters), 0);
  EXPECT_EQ(counters.dispatched, 2);
  EXPECT_EQ(counters.fallback, 4);
  EXPECT_THAT(counters.refused, ElementsAre(1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0));
  EXPECT_EQ(counters.cache_hits, 1);
  EXPECT_EQ(counters.cache_misses, 1);
  ASSERT_EQ(told.size(), 7u);
  EXPECT_EQ(told[0],
            (std::pair<int, std::string>(ASSAY_REPORT_VERBOSE, "sdpa: dispatched to host")));
  EXPECT_EQ(told[3].second, "sdpa: unfused, mask: the mask is not all true");
  EXPECT_EQ(told[5].first, ASSAY_REPORT_WARNING);
  EXPECT_THAT(
      told[5].second,
      HasSubstr("listed_device: causality with padding or a mask is known to fail on device npu"));
  ASSERT_EQ(assay_dispatch_reset(context), 0);
  ASSERT_EQ(assay_dispatch_read(context, &counters), 0);
  EXPECT_EQ(counters.dispatched + counters.fallback + counters.cache_hits + counters.cache_misses,
            0);
  EXPECT_EQ(assay_dispatch_read(context, nullptr), ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_context_destroy(context), 0);
}

// An exception of a callback stops at the interface, and the next call works as if it had not
// happened.
TEST(CInterface, NothingIsThrownThroughIt) {
  static int what;
  assay_context_options options;
  assay_context_options_init(&options);
  options.report = [](void*, std::int32_t, const char*) {
    switch (what) {
      case 1: throw 5;
      case 2: throw std::runtime_error("ouch");
      case 3: throw std::bad_alloc();
      default: return;
    }
  };
  Call c;
  assay_context context = nullptr;
  ASSERT_EQ(assay_context_create(&options, &context), 0);
  const std::pair<int, const char*> expected[] = {
      {255, "Unknown error: something was thrown that is no std::exception"},
      {5, "Execution failed: ouch"},
      {2, "Memory allocation failed: a decision of the dispatcher"}};
  for (what = 1; what <= 3; ++what) {
    EXPECT_EQ(assay_sdpa(context, &c.problem, &c.to, &c.tlse, ASSAY_AUTOMATIC, nullptr),
              expected[what - 1].first);
    EXPECT_STREQ(assay_last_error(), expected[what - 1].second);
    EXPECT_TRUE(c.untouched());
  }
  EXPECT_EQ(assay_sdpa(context, &c.problem, &c.to, &c.tlse, ASSAY_AUTOMATIC, nullptr), 0);
  c.expect_means();
  EXPECT_EQ(assay_context_destroy(context), 0);
}

TEST(CInterface, LastErrorIsOfTheThread) {
  EXPECT_EQ(assay_context_destroy(nullptr), ASSAY_INVALID_ARGUMENTS);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([t] {
      EXPECT_STREQ(assay_last_error(), "");
      for (int round = 0; round < 200; ++round) {
        Call c;
        EXPECT_EQ(assay_sdpa(c.context, &c.problem, &c.to, &c.tlse, 10 + t, nullptr),
                  ASSAY_INVALID_ARGUMENTS);
        EXPECT_EQ(
            std::string(assay_last_error()),
            "Invalid arguments: implementation = " + std::to_string(10 + t) + " is outside [0, 2]");
        EXPECT_EQ(assay_sdpa(c.context, &c.problem, &c.to, &c.tlse, 0, nullptr), ASSAY_SUCCESS);
        EXPECT_STREQ(assay_last_error(), "");
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_STREQ(assay_last_error(), "Invalid arguments: context is null");
}

TEST(CInterface, PackedSequences) {
  Call c;
  // One batch holds 3 packed rows and 5 packed keys, as two sequences and an empty one.
  for (assay_tensor* t : {&c.tq, &c.tk, &c.tv, &c.to, &c.tlse}) t->shape[0] = 1;
  const std::int64_t rows[] = {0, 2, 2, 3}, keys[] = {0, 4, 4, 5};
  ASSERT_EQ(assay_attention_varlen(c.context, &c.problem, rows, keys, 3, 0, &c.to, &c.tlse), 0)
      << assay_last_error();
  EXPECT_NEAR(c.lse[0], std::log(4.0), 1e-6);
  EXPECT_EQ(c.lse[2], 0);
  EXPECT_NEAR(c.o[2 * 6], c.v[4 * 6], 1e-6);
  EXPECT_EQ(c.lse[12], 456);
  const auto refused = [&](const std::int64_t* r, const std::int64_t* k, std::int64_t n,
                           const char* words) {
    std::fill(c.o.begin(), c.o.end(), 123.0f);
    std::fill(c.lse.begin(), c.lse.end(), 456.0f);
    EXPECT_EQ(assay_attention_varlen(c.context, &c.problem, r, k, n, 0, &c.to, &c.tlse),
              ASSAY_INVALID_ARGUMENTS);
    EXPECT_THAT(assay_last_error(), HasSubstr(words));
    EXPECT_TRUE(c.untouched());
  };
  refused(nullptr, keys, 3, "cu_rows is null");
  refused(rows, nullptr, 3, "cu_keys is null");
  refused(rows, keys, -1, "sequences = -1 is outside [0, ");
  refused(rows, keys, huge, "sequences = 9223372036854775807 is outside [0, ");
  const std::int64_t falling[] = {0, 2, 1, 3};
  refused(falling, keys, 3, "cu_rows[2] = 1 is below cu_rows[1] = 2");
}

// This is d<dO, O>/dV with equal weights: every dV is the mean of the rows of dO, summed over the
// query heads of the group.
TEST(CInterface, Backward) {
  Call c;
  ASSERT_EQ(assay_attention_forward(c.context, &c.problem, &c.to, &c.tlse), 0);
  std::vector<float> d_o(c.o.size(), 1), dq(c.q.size(), 9), dk(c.k.size(), 9), dv(c.v.size(), 9);
  assay_tensor td_o = c.to, tdq = c.tq, tdk = c.tk, tdv = c.tv;
  td_o.data = d_o.data();
  tdq.data = dq.data();
  tdk.data = dk.data();
  tdv.data = dv.data();
  assay_gradients g;
  assay_gradients_init(&g);
  g.dq = &tdq;
  g.dk = &tdk;
  g.dv = &tdv;
  ASSERT_EQ(assay_attention_backward(c.context, &c.problem, &c.to, &c.tlse, &td_o, &g), 0)
      << assay_last_error();
  for (float x : dv) EXPECT_NEAR(x, 2 * 3 / 5.0, 1e-5);
  for (float x : dk) EXPECT_EQ(x, 0);  // because Q is 0
  const auto refused = [&](const char* words) {
    std::fill(dv.begin(), dv.end(), 9.0f);
    EXPECT_EQ(assay_attention_backward(c.context, &c.problem, &c.to, &c.tlse, &td_o, &g),
              ASSAY_INVALID_ARGUMENTS)
        << words;
    EXPECT_THAT(assay_last_error(), HasSubstr(words));
    EXPECT_TRUE(std::all_of(dv.begin(), dv.end(), [](float x) { return x == 9; }));
  };
  g.dk = nullptr;
  refused("dk is null");
  g.dk = &tdk;
  tdk.shape[2] = 4;
  refused("dk.shape[2] = 4 is not 5");
  tdk = c.tk;
  tdk.data = dq.data();
  refused("dq overlaps dk");
  tdk.data = dk.data();
  tdv.strides[0] = 0;
  refused("dv overlaps itself");
  tdv = c.tv;
  refused("dv overlaps v");
  tdv.data = dv.data();
  EXPECT_EQ(assay_attention_backward(c.context, &c.problem, &c.to, nullptr, &td_o, &g),
            ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_attention_backward(c.context, &c.problem, &c.to, &c.tlse, nullptr, &g),
            ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_attention_backward(c.context, &c.problem, &c.to, &c.tlse, &td_o, nullptr),
            ASSAY_INVALID_ARGUMENTS);
  // A loss that is the sum of LSE: with equal weights dQ is the scaled mean of K.
  std::fill(d_o.begin(), d_o.end(), 0.0f);
  std::vector<float> d_lse(c.lse.size(), 1);
  assay_tensor td_lse = c.tlse;
  td_lse.data = d_lse.data();
  g.d_lse = &td_lse;
  ASSERT_EQ(assay_attention_backward(c.context, &c.problem, &c.to, &c.tlse, &td_o, &g), 0)
      << assay_last_error();
  const auto keys = static_cast<std::size_t>(c.tk.shape[2]),
             dim = static_cast<std::size_t>(c.tk.shape[3]);
  float sum = 0;
  for (std::size_t j = 0; j < keys; ++j) sum += c.k[j * dim];
  EXPECT_NE(sum, 0);
  EXPECT_NEAR(dq[0], sum / static_cast<float>(keys) / std::sqrt(static_cast<float>(dim)), 1e-5);
  for (float x : dv) EXPECT_EQ(x, 0);
  td_lse.shape[2] = 1;
  refused("d_lse.shape[2] = 1 is not 3");
  td_lse = c.tlse;
  td_lse.data = dk.data();
  refused("dk overlaps d_lse");
  g.d_lse = nullptr;
  // Inputs may overlap one another: here dO is O.
  EXPECT_EQ(assay_attention_backward(c.context, &c.problem, &c.to, &c.tlse, &c.to, &g), 0)
      << assay_last_error();
}

}  // namespace
