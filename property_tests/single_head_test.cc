// The single-head interface: what it computes, the order in which it refuses, its limits and its
// messages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "harness/candidates/contracts.h"
#include "kernels/attention/attention.h"
#include "kernels/dispatch/single_head.h"
#include "kernels/simd/targets.h"
#include "kernels/attention/unfused.h"
#include "oracle/verdict.h"
#include "testing/matchers.h"

namespace assay {
namespace {

using namespace kernels;
using testing::HasSubstr;

// Contiguous arrays, all of one shape.
struct Arrays {
  Tensor storage[4];
  Array q, k, v, o;
  Arrays(const std::vector<Index>& q_shape, const std::vector<Index>& k_shape,
         Dtype dtype = Dtype::f32) {
    Array* arrays[] = {&q, &k, &v, &o};
    for (int n = 0; n < 4; ++n) {
      const std::vector<Index>& shape = n == 0 || n == 3 ? q_shape : k_shape;
      Index elements = 1;
      std::vector<Index> stride(shape.size());
      for (std::size_t axis = shape.size(); axis-- > 0; elements *= shape[axis])
        stride[axis] = elements;
      storage[n] = Tensor(dtype, {1, 1, 1, elements}, {{0, 0, 0, 1}, 0, elements});
      for (Index e = 0; e < elements; ++e)
        store(storage[n].view(), e, static_cast<double>((e * 13 + 5 * n) % 31) / 16 - 1);
      *arrays[n] = {storage[n].view().data, dtype, shape, stride};
    }
    std::memset(storage[3].bytes(), 0xA5, storage[3].size_in_bytes());
  }
  bool untouched() const {
    for (std::size_t e = 0; e < storage[3].size_in_bytes(); ++e)
      if (storage[3].bytes()[e] != std::byte{0xA5}) return false;
    return true;
  }
};

Attention problem_of(const Arrays& a, float scale, bool causal) {
  Attention p;
  const bool flat = a.q.shape.size() == 2;
  const Index batch = flat ? 1 : a.q.shape[0], rows = a.q.shape[flat ? 0 : 1],
              keys = a.k.shape[flat ? 0 : 1], d = a.q.shape.back();
  p.shape = {batch, 1, 1, rows, keys, d, d};
  const auto view = [&](const Array& x, Index length) {
    return TensorView{x.data, x.dtype, {batch, 1, length, d}, {length * d, 0, d, 1}, 0};
  };
  p.q = view(a.q, rows);
  p.k = view(a.k, keys);
  p.v = view(a.v, keys);
  p.scale = scale;
  p.causal = causal;
  return p;
}

// The oracle judges every batch element, in every dtype, causal and not, with scales from 1e-6 to
// 1.5.
TEST(SingleHead, EveryElementIsWithinItsBound) {
  for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
    for (bool causal : {false, true})
      for (std::optional<float> scale :
           {std::optional<float>(), std::optional<float>(1e-6f), std::optional<float>(1.5f)})
        for (bool flat : {true, false}) {
          // The length of K differs from that of Q.
          Arrays a = flat ? Arrays({37, 24}, {53, 24}, dtype)
                          : Arrays({3, 37, 1, 24}, {3, 53, 1, 24}, dtype);
          Dispatcher dispatcher;
          SingleHeadOptions options;
          options.scale = scale;
          options.causal = causal;
          const Status status = single_head_attention(dispatcher, a.q, a.k, a.v, a.o, options);
          ASSERT_TRUE(status.ok()) << status.detail;
          const Attention p = problem_of(a, scale ? *scale : default_scale(24), causal);
          // So few rows go to the unfused kernel. Its bits are judged together with its LSE, which
          // this interface does not give.
          const Tensor lse(Dtype::f32, {p.shape.batch, 1, 37, 1},
                           {{37, 37, 1, 1}, 0, p.shape.batch * 37});
          const Tensor o(dtype, {p.shape.batch, 1, 37, 24},
                         {{37 * 24, 37 * 24, 24, 1}, 0, p.shape.batch * 37 * 24});
          ASSERT_TRUE(attention_unfused(p, {o.view(), lse.view()}).ok());
          ASSERT_EQ(std::memcmp(o.bytes(), a.o.data, o.size_in_bytes()), 0);
          const Verdict verdict =
              judge(p, {o.view(), lse.view()}, unfused_contract(Target().name()), {});
          EXPECT_THAT(verdict, Passes());
          EXPECT_EQ(verdict.compared(Output::o), p.shape.batch * 37 * 24);
        }
}

// From 256 rows on the outputs have the bits of the tiled kernel, and below those of the fallback.
// Strides are respected.
TEST(SingleHead, RunsOnTheDispatcher) {
  Arrays a({300, 16}, {270, 16});
  Dispatcher dispatcher;
  ASSERT_TRUE(single_head_attention(dispatcher, a.q, a.k, a.v, a.o).ok());
  EXPECT_EQ(dispatcher.counters().dispatched, 1);
  const Tensor expected(Dtype::f32, {1, 1, 300, 16}, {{4800, 4800, 16, 1}, 0, 4800});
  ASSERT_TRUE(
      attention_forward(problem_of(a, default_scale(16), false), {expected.view(), {}}).ok());
  EXPECT_EQ(std::memcmp(expected.bytes(), a.storage[3].bytes(), 4 * 4800), 0);

  // The view has every second row of Q, backwards.
  Arrays strided({150, 16}, {270, 16});
  strided.q = a.q;
  strided.q.shape[0] = 150;
  strided.q.stride[0] = -32;
  strided.q.origin = 298 * 16;
  ASSERT_TRUE(single_head_attention(dispatcher, strided.q, a.k, a.v, strided.o).ok());
  EXPECT_EQ(dispatcher.counters().fallback, 1);
  const auto* row = static_cast<const float*>(strided.o.data) + 10 * 16;
  const auto* same = static_cast<const float*>(a.o.data) + (298 - 20) * 16;
  for (int c = 0; c < 16; ++c) EXPECT_NEAR(row[c], same[c], 1e-5);
}

struct Refused {
  const char* name;
  std::function<void(Arrays&, SingleHeadOptions&)> spoil;
  StatusCode code;
  const char* text;
};

// The refusals come in the order of the checks: each call also contains everything that is refused
// later, and the earlier refusal still comes first.
TEST(SingleHead, RefusesInOrderWithItsWords) {
  const std::string prefix = "Metal SDPA Backend Error: ";
  const std::vector<Refused> order = {
      {"ranks differ", [](Arrays& a, auto&) { a.k.shape = {7, 8, 9}; },
       StatusCode::invalid_arguments,
       "Query, key, and value tensors must have the same number of dimensions [query has 4, key "
       "has 3]"},
      {"rank 3",
       [](Arrays& a, auto&) {
         for (Array* t : {&a.q, &a.k, &a.v}) t->shape = {70000, 3, 5000};
       },
       StatusCode::invalid_arguments,
       "Unsupported tensor dimensions. Expected 2D (seq_len, head_dim) or 4D (batch, seq_len, "
       "num_heads, head_dim) [query has 3 dimensions]"},
      {"several heads", [](Arrays& a, auto&) { a.q.shape[2] = a.k.shape[2] = a.v.shape[2] = 4; },
       StatusCode::unsupported,
       "Multi-head attention not yet supported by Metal Flash Attention (num_heads > 1) "
       "[query.shape[2] = 4]"},
      {"dtype", [](Arrays& a, auto&) { a.q.dtype = Dtype::f64; }, StatusCode::unsupported,
       "Unsupported dtype for Metal Flash Attention. Supported: float16, float32, bfloat16 [query "
       "is f64]"},
      {"length of K", [](Arrays& a, auto&) { a.k.shape[1] = 65536; }, StatusCode::invalid_arguments,
       "Sequence length too large (max 65535) [key.shape[1] = 65536]"},
      {"head dimension", [](Arrays& a, auto&) { a.q.shape[3] = 65536 + 64; },
       StatusCode::invalid_arguments,
       "Head dimension too large (max 1024) [query.shape[3] = 65600]"},
      {"batch", [](Arrays& a, auto&) { a.v.shape[0] = (Index{1} << 32) + 2; },
       StatusCode::invalid_arguments,
       "Batch size too large (max 1024) [value.shape[0] = 4294967298]"},
      {"rank of the output", [](Arrays& a, auto&) { a.o.shape = {2, 5}; },
       StatusCode::invalid_arguments, "Invalid arguments [output has 2 dimensions, not 4]"},
      {"strides", [](Arrays& a, auto&) { a.o.stride.pop_back(); }, StatusCode::invalid_arguments,
       "Invalid arguments [output has 3 strides, not 4]"},
      {"empty", [](Arrays& a, auto&) { a.o.shape[1] = 0; }, StatusCode::invalid_arguments,
       "Invalid arguments [output.shape[1] = 0, below 1]"},
      {"null", [](Arrays& a, auto&) { a.o.data = nullptr; }, StatusCode::invalid_arguments,
       "Invalid arguments [output is null]"},
      {"dtype of V", [](Arrays& a, auto&) { a.v.dtype = Dtype::bf16; },
       StatusCode::invalid_arguments, "Invalid arguments [value is bf16, query is f32]"},
      {"dtype of O", [](Arrays& a, auto&) { a.o.dtype = Dtype::f64; },
       StatusCode::invalid_arguments,
       "Invalid arguments [output is f64, not float16, float32 or bfloat16]"},
      {"batch of O", [](Arrays& a, auto&) { a.o.shape[0] = 3; }, StatusCode::invalid_arguments,
       "Invalid arguments [output.shape[0] = 3, but query.shape[0] = 2]"},
      {"batch of K", [](Arrays& a, auto&) { a.k.shape[0] = 1; }, StatusCode::invalid_arguments,
       "Invalid arguments [key.shape[0] = 1, but query.shape[0] = 2]"},
      {"length of V", [](Arrays& a, auto&) { a.v.shape[1] = 6; }, StatusCode::invalid_arguments,
       "Invalid arguments [value.shape[1] = 6, but key.shape[1] = 7]"},
      {"dimension of V", [](Arrays& a, auto&) { a.v.shape[3] = 3; }, StatusCode::invalid_arguments,
       "Invalid arguments [value.shape[3] = 3, but query.shape[3] = 4]"},
      {"scale",
       [](Arrays&, SingleHeadOptions& o) { o.scale = std::numeric_limits<float>::quiet_NaN(); },
       StatusCode::invalid_arguments, "Invalid arguments [scale = nan is not finite]"}};
  for (std::size_t first = 0; first < order.size(); ++first)
    for (bool with_later : {false, true}) {
      Arrays a({2, 5, 1, 4}, {2, 7, 1, 4});
      SingleHeadOptions options;
      // The last change is made first, so that the settings of an earlier one stay. Changes of all
      // shapes cannot be combined.
      for (std::size_t n = order.size(); with_later && n-- > std::max<std::size_t>(first + 1, 2);)
        order[n].spoil(a, options);
      order[first].spoil(a, options);
      SCOPED_TRACE(order[first].name);
      Dispatcher dispatcher;
      const Status status = single_head_attention(dispatcher, a.q, a.k, a.v, a.o, options);
      EXPECT_EQ(status.code, order[first].code) << status.detail;
      EXPECT_EQ(status.detail, prefix + order[first].text);
      EXPECT_TRUE(a.untouched());
      EXPECT_EQ(dispatcher.counters(), DispatchCounters{});
    }
}

// On the limit the call computes, and one beyond the limit it refuses.
TEST(SingleHead, LimitsAreInclusive) {
  const auto run = [](const std::vector<Index>& q, const std::vector<Index>& k) {
    Arrays a(q, k);
    Dispatcher dispatcher;
    const Status status = single_head_attention(dispatcher, a.q, a.k, a.v, a.o);
    if (status.ok()) {
      const auto* o = static_cast<const float*>(a.o.data);
      Index elements = 1;
      for (Index n : q) elements *= n;
      for (Index e = 0; e < elements; ++e)
        if (!(std::fabs(o[e]) <= 1)) return std::string("output outside the values");
    }
    return status.detail;
  };
  EXPECT_EQ(run({65535, 1}, {3, 1}), "");
  EXPECT_EQ(run({3, 1}, {65535, 1}), "");
  EXPECT_THAT(run({65536, 1}, {3, 1}),
              HasSubstr("Sequence length too large (max 65535) [query.shape[0] = 65536]"));
  EXPECT_THAT(run({3, 1}, {65536, 1}), HasSubstr("[key.shape[0] = 65536]"));
  EXPECT_EQ(run({2, 1024}, {3, 1024}), "");
  EXPECT_THAT(run({2, 1025}, {3, 1025}),
              HasSubstr("Head dimension too large (max 1024) [query.shape[1] = 1025]"));
  EXPECT_EQ(run({1024, 2, 1, 3}, {1024, 2, 1, 3}), "");
  EXPECT_THAT(run({1025, 2, 1, 3}, {1025, 2, 1, 3}),
              HasSubstr("Batch size too large (max 1024) [query.shape[0] = 1025]"));
}

// The backend throws. A std::exception gives its words, and anything else gives a fixed sentence.
TEST(SingleHead, ExceptionsHaveTheirWords) {
  class Throwing : public AttentionBackend {
   public:
    explicit Throwing(std::function<void()> how) : how_(std::move(how)) {}
    std::string_view device() const override { return "host"; }
    bool supports_dtype(Dtype, Dtype) const override { return true; }
    bool supports_heads(Index, Index) const override { return true; }
    bool supports_layout(const Attention&, const AttentionOutput&) const override { return true; }
    std::string_view unsupported_feature(const Attention&) const override { return {}; }
    Status choose_tiles(KernelKey&) const override {
      how_();
      return {};
    }
    Status compile(const KernelKey&, std::shared_ptr<const CompiledAttention>&) const override {
      return {};
    }

   private:
    std::function<void()> how_;
  };
  const auto run = [](std::function<void()> how) {
    Arrays a({5, 4}, {7, 4});
    DispatchSettings settings;
    settings.min_query_length = 0;
    Dispatcher dispatcher(std::make_shared<Throwing>(std::move(how)), settings);
    const Status status = single_head_attention(dispatcher, a.q, a.k, a.v, a.o);
    EXPECT_TRUE(a.untouched());
    return std::pair(status.code, status.detail);
  };
  EXPECT_EQ(run([] { throw std::runtime_error("no such thing"); }),
            std::pair(StatusCode::execution_failed,
                      std::string("Metal SDPA Backend Error: no such thing")));
  EXPECT_EQ(
      run([] { throw 42; }),
      std::pair(StatusCode::unknown, std::string("Metal SDPA Backend: Unknown error occurred")));
  EXPECT_EQ(run([] { throw std::bad_alloc(); }).first, StatusCode::memory_allocation_failed);
}

// A refusal of the dispatcher reaches the caller too, with the sentence of a forward pass.
TEST(SingleHead, OverlapsAreRefused) {
  Arrays a({5, 4}, {7, 4});
  Dispatcher dispatcher;
  a.o.data = a.q.data;
  const Status status = single_head_attention(dispatcher, a.q, a.k, a.v, a.o);
  EXPECT_EQ(status.code, StatusCode::invalid_arguments);
  EXPECT_THAT(status.detail,
              HasSubstr("Metal SDPA Backend Error: Metal Flash Attention forward pass failed with "
                        "code 1 (Invalid arguments - check tensor shapes and "
                        "parameters) [1, Invalid arguments: o overlaps q"));
}

}  // namespace
}  // namespace assay
