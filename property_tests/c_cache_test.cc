// Caches through the C interface: decode equals forward bit for bit, and every misuse is refused
// and changes nothing.
#include <assay/assay.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using testing::HasSubstr;

constexpr std::int64_t heads = 4, kv_heads = 2, dim = 8, capacity = 20;

// A cache of two sequences, and the tokens 0..capacity - 1 of sequence 0 in memory beside it.
class CCache : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    ASSERT_EQ(assay_context_create(nullptr, &context), 0);
    config_init(GetParam());
    ASSERT_EQ(assay_cache_create(&config, &cache), 0) << assay_last_error();
    for (std::size_t e = 0; e < k.size(); ++e) {
      k[e] = static_cast<float>((e * 37) % 19) * 0.125f - 1;
      v[e] = static_cast<float>((e * 53) % 23) * 0.25f - 2;
    }
    for (std::size_t e = 0; e < q.size(); ++e)
      q[e] = static_cast<float>((e * 29) % 17) * 0.125f - 1;
  }
  void TearDown() override {
    EXPECT_EQ(assay_cache_destroy(cache), 0) << assay_last_error();
    EXPECT_EQ(assay_context_destroy(context), 0);
  }
  void config_init(int kind) {
    assay_cache_config_init(&config);
    config.kind = kind;
    config.sequences = 2;
    config.kv_heads = kv_heads;
    config.dim = config.value_dim = dim;
    config.capacity = capacity;
    config.page_size = 3;
  }
  // Tokens [first, first + n) of K or V.
  assay_tensor tokens(std::vector<float>& from, std::int64_t first, std::int64_t n) const {
    assay_tensor t;
    assay_tensor_init(&t, from.data(), ASSAY_FLOAT, 32, 1, kv_heads, n, dim);
    t.strides[1] = capacity * dim;
    t.offset = first * dim;
    return t;
  }
  assay_status append(std::int64_t sequence, std::int64_t first, std::int64_t n) {
    const assay_tensor tk = tokens(k, first, n), tv = tokens(v, first, n);
    return assay_cache_append(cache, sequence, &tk, &tv);
  }
  std::int64_t length(std::int64_t sequence) {
    std::int64_t n = -1, evicted = -1;
    EXPECT_EQ(assay_cache_length(cache, sequence, &n, &evicted), 0) << assay_last_error();
    return n * 1000 + evicted;
  }
  assay_status attend(std::vector<float>& to_o, std::vector<float>& to_lse) {
    assay_tensor tq, to, tlse;
    assay_tensor_init(&tq, q.data(), ASSAY_FLOAT, 32, 2, heads, 1, dim);
    assay_tensor_init(&to, to_o.data(), ASSAY_FLOAT, 32, 2, heads, 1, dim);
    assay_tensor_init(&tlse, to_lse.data(), ASSAY_FLOAT, 32, 2, heads, 1, 1);
    assay_attention problem;
    assay_attention_init(&problem);
    problem.q = &tq;
    problem.flags |= ASSAY_CAUSAL;
    return assay_attention_cached(context, &problem, cache, nullptr, nullptr, &to, &tlse);
  }

  assay_context context = nullptr;
  assay_cache cache = nullptr;
  assay_cache_config config;
  std::vector<float> k = std::vector<float>(kv_heads * capacity * dim), v = k,
                     q = std::vector<float>(2 * heads * dim);
  std::vector<float> o = std::vector<float>(2 * heads * dim, 123),
                     lse = std::vector<float>(2 * heads, 456);
};

TEST_P(CCache, DecodeIsForward) {
  ASSERT_EQ(append(0, 0, 5), 0) << assay_last_error();
  ASSERT_EQ(append(0, 5, 1), 0);
  ASSERT_EQ(append(1, 0, 2), 0);
  ASSERT_EQ(attend(o, lse), 0) << assay_last_error();
  EXPECT_EQ(length(0), 6000);
  for (std::int64_t b = 0; b < 2; ++b) {
    const std::int64_t n = b == 0 ? 6 : 2;
    assay_tensor tq, tk = tokens(k, 0, n), tv = tokens(v, 0, n), to, tlse;
    std::vector<float> right(heads * dim), right_lse(heads);
    assay_tensor_init(&tq, q.data() + b * heads * dim, ASSAY_FLOAT, 32, 1, heads, 1, dim);
    assay_tensor_init(&to, right.data(), ASSAY_FLOAT, 32, 1, heads, 1, dim);
    assay_tensor_init(&tlse, right_lse.data(), ASSAY_FLOAT, 32, 1, heads, 1, 1);
    assay_attention problem;
    assay_attention_init(&problem);
    problem.q = &tq;
    problem.k = &tk;
    problem.v = &tv;
    ASSERT_EQ(assay_attention_forward(context, &problem, &to, &tlse), 0) << assay_last_error();
    EXPECT_EQ(std::memcmp(right.data(), o.data() + b * heads * dim, right.size() * sizeof(float)),
              0);
    EXPECT_EQ(
        std::memcmp(right_lse.data(), lse.data() + b * heads, right_lse.size() * sizeof(float)), 0);
  }
}

TEST_P(CCache, ForkEvictReset) {
  ASSERT_EQ(append(0, 0, 7), 0);
  ASSERT_EQ(assay_cache_fork(cache, 0, 1), 0) << assay_last_error();
  ASSERT_EQ(assay_cache_evict(cache, 1, 4), 0) << assay_last_error();
  EXPECT_EQ(length(0), 7000);
  EXPECT_EQ(length(1), 7004);
  ASSERT_EQ(assay_cache_reset(cache, 0), 0);
  EXPECT_EQ(length(0), 0);
  EXPECT_EQ(length(1), 7004);
}

TEST_P(CCache, WhatCannotBeIsRefusedAndChangesNothing) {
  ASSERT_EQ(append(0, 0, 19), 0);
  ASSERT_EQ(append(1, 0, 3), 0);
  std::vector<float> before(o.size()), before_lse(lse.size());
  ASSERT_EQ(attend(before, before_lse), 0);
  const auto refused = [&](assay_status status, assay_status expected, const char* message) {
    EXPECT_EQ(status, expected) << message;
    EXPECT_STREQ(assay_last_error(), message);
    EXPECT_EQ(length(0), 19000);
    EXPECT_EQ(length(1), 3000);
    ASSERT_EQ(attend(o, lse), 0);
    EXPECT_EQ(o, before);
    EXPECT_EQ(lse, before_lse);
  };
  const int state = ASSAY_INVALID_CACHE_STATE, bad = ASSAY_INVALID_ARGUMENTS;
  refused(append(0, 0, 2), state,
          "Invalid cache state: 2 tokens after 19 are above the capacity of 20");
  refused(append(2, 0, 1), state, "Invalid cache state: sequence = 2 is outside [0, 2)");
  refused(append(-1, 0, 1), state, "Invalid cache state: sequence = -1 is outside [0, 2)");
  refused(assay_cache_length(cache, 2, nullptr, nullptr), state,
          "Invalid cache state: sequence = 2 is outside [0, 2)");
  refused(assay_cache_fork(cache, 0, 1), state,
          "Invalid cache state: to = 1 holds 3 tokens, not 0");
  refused(assay_cache_evict(cache, 0, 20), bad,
          "Invalid arguments: position = 20 is outside [0, 19]");
  assay_tensor tk = tokens(k, 0, 1), tv = tokens(v, 0, 1);
  refused(assay_cache_append(cache, 0, nullptr, &tv), bad, "Invalid arguments: k is null");
  refused(assay_cache_append(cache, 0, &tk, nullptr), bad, "Invalid arguments: v is null");
  tk.shape[3] = 7;
  refused(assay_cache_append(cache, 0, &tk, &tv), bad,
          "Invalid arguments: k has shape [1, 2, 1, 7], not [1, 2, 1, 8]");
  tk.shape[3] = 8;
  tk.strides[1] = 4;
  refused(assay_cache_append(cache, 0, &tk, &tv), state,
          "Invalid cache state: k has strides [16, 4, 8, 1]: it overlaps itself");
}

TEST_P(CCache, StaleAndForeignHandlesAreInvalidCacheStates) {
  assay_cache stale = nullptr;
  ASSERT_EQ(assay_cache_create(&config, &stale), 0);
  ASSERT_EQ(assay_cache_destroy(stale), 0);
  const assay_cache mine = cache;
  for (assay_cache handle :
       {stale, reinterpret_cast<assay_cache>(&config), reinterpret_cast<assay_cache>(context),
        static_cast<assay_cache>(nullptr)}) {
    const std::string message = handle ? "Invalid cache state: cache is no cache, or was destroyed"
                                       : "Invalid cache state: cache is null";
    const auto refused = [&](assay_status status) {
      EXPECT_EQ(status, ASSAY_INVALID_CACHE_STATE);
      EXPECT_EQ(assay_last_error(), message);
    };
    cache = handle;
    refused(append(0, 0, 1));
    refused(attend(o, lse));
    EXPECT_TRUE(std::all_of(o.begin(), o.end(), [](float x) { return x == 123; }));
    EXPECT_TRUE(std::all_of(lse.begin(), lse.end(), [](float x) { return x == 456; }));
    cache = mine;
    std::int64_t n = 77;
    refused(assay_cache_length(handle, 0, &n, nullptr));
    EXPECT_EQ(n, 77);
    refused(assay_cache_evict(handle, 0, 0));
    refused(assay_cache_fork(handle, 0, 1));
    refused(assay_cache_reset(handle, 0));
    refused(assay_cache_destroy(handle));
  }
}

TEST_P(CCache, ConfigurationsThatCannotBe) {
  const auto refused = [&](const char* words, assay_status expected = ASSAY_INVALID_ARGUMENTS) {
    assay_cache none = nullptr;
    EXPECT_EQ(assay_cache_create(&config, &none), expected) << words;
    EXPECT_THAT(assay_last_error(), HasSubstr(words));
    EXPECT_EQ(none, nullptr);
    config_init(GetParam());
  };
  config.kind = 3;
  refused("config.kind = 3 is outside [0, 2]");
  config.dim = 65600;
  refused("dim = 65600 is outside [1, 1024]");
  config.kv_heads = 0;
  refused("kv_heads = 0 is below 1");
  config.dtype.bits = 64;
  refused("dtype is f64", ASSAY_UNSUPPORTED);
  config.dtype.code = ASSAY_INT;
  refused("config.dtype has code 0, 32 bits", ASSAY_UNSUPPORTED);
  config.capacity = std::int64_t{1} << 50;
  refused("slots", ASSAY_MEMORY_ALLOCATION_FAILED);
  EXPECT_EQ(assay_cache_create(nullptr, &cache), ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_cache_create(&config, nullptr), ASSAY_INVALID_ARGUMENTS);
}

// The problem has tensors or lists that the cache gives.
TEST_P(CCache, KeysOfTheProblemAreRefused) {
  ASSERT_EQ(append(0, 0, 2), 0);
  assay_tensor tq, to, tk = tokens(k, 0, 2);
  assay_tensor_init(&tq, q.data(), ASSAY_FLOAT, 32, 2, heads, 1, dim);
  assay_tensor_init(&to, o.data(), ASSAY_FLOAT, 32, 2, heads, 1, dim);
  assay_attention problem;
  assay_attention_init(&problem);
  problem.q = &tq;
  problem.k = &tk;
  EXPECT_EQ(assay_attention_cached(context, &problem, cache, nullptr, nullptr, &to, nullptr),
            ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(), "Invalid arguments: k does not go with a cache");
  problem.k = nullptr;
  tq.shape[0] = to.shape[0] = 1;
  EXPECT_EQ(assay_attention_cached(context, &problem, cache, nullptr, nullptr, &to, nullptr),
            ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(),
               "Invalid arguments: q.shape[0] = 1 is not 2, the sequences of the cache");
  EXPECT_EQ(o[0], 123);
}

// Appends and reads from several threads wait for each other. A cache that is destroyed meanwhile
// is refused from then on.
TEST_P(CCache, ThreadsShareACache) {
  ASSERT_EQ(append(0, 0, 2), 0);
  ASSERT_EQ(append(1, 0, 2), 0);
  assay_cache doomed = nullptr;
  ASSERT_EQ(assay_cache_create(&config, &doomed), 0);
  std::atomic<int> appended{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::vector<float> mine(o.size()), mine_lse(lse.size());
      for (int round = 0; round < 20; ++round) {
        if (append(t % 2, 0, 1) == 0) ++appended;
        EXPECT_EQ(attend(mine, mine_lse), 0);
        std::int64_t n;
        const assay_status status = assay_cache_length(doomed, 0, &n, nullptr);
        EXPECT_TRUE(status == 0 || status == ASSAY_INVALID_CACHE_STATE);
        if (t == 0 && round == 10) EXPECT_EQ(assay_cache_destroy(doomed), 0);
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(appended, 2 * (capacity - 2));
  EXPECT_EQ(length(0), capacity * 1000);
}

INSTANTIATE_TEST_SUITE_P(Kinds, CCache, testing::Values(ASSAY_CACHE_CONTIGUOUS, ASSAY_CACHE_PAGED),
                         [](const auto& test) {
                           return test.param == ASSAY_CACHE_CONTIGUOUS ? "contiguous" : "paged";
                         });

// A latent token consists of its rotary and compressed parts. With one token in the cache O = up_v
// c.
TEST(CCacheLatent, OneTokenGivesItsValue) {
  assay_context context = nullptr;
  assay_cache cache = nullptr;
  ASSERT_EQ(assay_context_create(nullptr, &context), 0);
  assay_cache_config config;
  assay_cache_config_init(&config);
  config.kind = ASSAY_CACHE_LATENT;
  config.dim = 6;
  config.value_dim = 4;
  config.rank = 3;
  config.rotary = 2;
  config.capacity = 5;
  ASSERT_EQ(assay_cache_create(&config, &cache), 0) << assay_last_error();
  float c[3] = {1, 2, -1}, rotary[2] = {0.5f, 1}, up_k[4 * 3] = {1, 2, 3},
        up_v[4 * 3] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1};
  float q[6] = {1, 1, 1, 1, 1, 1}, o[4] = {};
  assay_tensor tc, tr, tuk, tuv, tq, to;
  assay_tensor_init(&tc, c, ASSAY_FLOAT, 32, 1, 1, 1, 3);
  assay_tensor_init(&tr, rotary, ASSAY_FLOAT, 32, 1, 1, 1, 2);
  assay_tensor_init(&tuk, up_k, ASSAY_FLOAT, 32, 1, 1, 4, 3);
  assay_tensor_init(&tuv, up_v, ASSAY_FLOAT, 32, 1, 1, 4, 3);
  assay_tensor_init(&tq, q, ASSAY_FLOAT, 32, 1, 1, 1, 6);
  assay_tensor_init(&to, o, ASSAY_FLOAT, 32, 1, 1, 1, 4);
  ASSERT_EQ(assay_cache_append(cache, 0, &tc, &tr), 0) << assay_last_error();
  assay_attention problem;
  assay_attention_init(&problem);
  problem.q = &tq;
  ASSERT_EQ(assay_attention_cached(context, &problem, cache, &tuk, &tuv, &to, nullptr), 0)
      << assay_last_error();
  EXPECT_THAT(o, testing::ElementsAre(1, 2, -1, 2));
  EXPECT_EQ(assay_attention_cached(context, &problem, cache, nullptr, &tuv, &to, nullptr),
            ASSAY_INVALID_ARGUMENTS)
      << assay_last_error();
  EXPECT_EQ(assay_cache_destroy(cache), 0);
  EXPECT_EQ(assay_context_destroy(context), 0);
}

}  // namespace
