// Key/value caches are compared with a plain list of tokens: contents, failures, and attention over
// them.
#include "kernels/cache/cache.h"

#include <gmock/gmock.h>
#include <rapidcheck/gtest.h>

#include <cstring>

#include "kernels/attention/attention.h"
#include "kernels/cache/cache_storage.h"
#include "kernels/simd/codec.h"
#include "kernels/simd/targets.h"
#include "problem/dtype.h"
#include "testing/cache_model.h"
#include "testing/same_bits.h"

namespace assay {
namespace {

using kernels::Cache;
using kernels::PagedCache;
using kernels::Status;
using testing::HasSubstr;

const Dtype cache_dtypes[] = {Dtype::f32,    Dtype::f16,    Dtype::bf16,
                              Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1};
const CacheKind cache_kinds[] = {CacheKind::contiguous, CacheKind::paged, CacheKind::latent};

// A cache whose unwritten storage is NaN in every dtype, scales included.
std::unique_ptr<PagedCache> make_cache(const CacheConfig& config) {
  std::unique_ptr<Cache> made;
  const Status status = Cache::create(config, made);
  EXPECT_TRUE(status.ok()) << status.detail;
  std::unique_ptr<PagedCache> cache(dynamic_cast<PagedCache*>(made.release()));
  const auto stored = cache->stored(0, 0);
  for (const kernels::StoredColumns& c :
       {stored.keys.columns, stored.keys.more, stored.values.columns}) {
    if (c.count == 0) continue;
    const auto pages = usize(cache->free_pages());
    std::memset(const_cast<std::byte*>(c.data), 0xFF, pages * usize(c.page_bytes));
    if (c.scales)
      std::memset(const_cast<std::uint8_t*>(c.scales), 0xFF, pages * usize(c.page_scales));
  }
  return cache;
}

Tensor make_tensor(const Extents& shape) {
  return Tensor(Dtype::f32, shape,
                {{shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1},
                 0,
                 element_count(shape)});
}

// Up-projections of a latent cache with dim - rotary = value_dim = rank that change nothing, so
// that absorbing them is exact.
struct IdentityProjection {
  explicit IdentityProjection(const CacheConfig& c)
      : w(make_tensor({1, c.kv_heads, c.rank, c.rank})) {
    for (Index g = 0; g < c.kv_heads; ++g)
      for (Index i = 0; i < c.rank; ++i) store(w.view(), w.view().at(0, g, i, i), 1);
  }
  kernels::UpProjection view() const { return {w.view(), w.view()}; }
  Tensor w;
};

CacheConfig config_of(CacheKind kind, Dtype dtype, Index sequences, Index capacity,
                      Index page_size) {
  CacheConfig c;
  c.kind = kind;
  c.dtype = dtype;
  c.sequences = sequences;
  c.kv_heads = 2;
  c.capacity = capacity;
  c.page_size = page_size;
  c.group_size = 5;
  c.rank = 18;
  c.rotary = 6;
  c.dim = kind == CacheKind::latent ? c.rank + c.rotary : 20;
  c.value_dim = kind == CacheKind::latent ? c.rank : 13;
  return c;
}

struct Reading {
  Reading(const CacheConfig& c, Index heads, Index row_count, std::uint64_t seed)
      : query_heads(heads),
        rows(row_count),
        o(make_tensor({c.sequences, heads, rows, c.value_dim})),
        lse(make_tensor({c.sequences, heads, rows, 1})) {
    std::mt19937_64 random(seed);
    q = std::make_unique<Tokens>(c.sequences * heads, rows, c.dim, Dtype::f32, 0, random);
    problem.shape = {c.sequences, heads, c.kv_heads, rows, 0, c.dim, c.value_dim};
    problem.q = q->tensor.view();
    problem.q.stride[0] = heads * rows * c.dim;
    problem.scale = 0.25f;
    problem.causal = true;
  }
  AttentionOutput view() const { return {o.view(), lse.view()}; }

  Attention problem;
  Index query_heads, rows;
  std::unique_ptr<Tokens> q;
  Tensor o, lse;
};

// Compares attention_cached with attention_forward over the contents of the list, bit for bit.
// Returns "" if they agree.
std::string reading_difference(const PagedCache& cache, const CacheModel& model, Index rows,
                               std::uint64_t seed) {
  const CacheConfig& c = model.config;
  const Reading cached(c, 2 * c.kv_heads, rows, seed), plain(c, 2 * c.kv_heads, rows, seed);
  const IdentityProjection identity(c);
  const Status status = kernels::attention_cached(cached.problem, cache, identity.view(),
                                                  cached.view(), 1 + static_cast<int>(seed % 2));
  if (!status.ok()) return status.detail;
  const auto [k, v] = model.held();
  Attention p = plain.problem;
  p.k = k.view();
  p.v = v.view();
  p.shape.keys = model.longest();
  if (c.kind == CacheKind::latent) p.shape.kv_heads = 1;
  for (const auto& s : model.sequences) {
    p.key_lengths.push_back(s.length());
    p.key_starts.push_back(s.evicted);
    p.offset.push_back(s.length() - rows);
  }
  if (const Status forward = kernels::attention_forward(p, plain.view(), 1); !forward.ok())
    return forward.detail;
  for (Index b = 0; b < c.sequences; ++b)
    for (Index h = 0; h < cached.query_heads; ++h)
      for (Index i = 0; i < rows; ++i)
        if (std::string d = row_difference(cached.view(), b, h, i, plain.view(), b, i, c.value_dim);
            !d.empty())
          return d;
  return "";
}

Tokens keys_for(const CacheConfig& c, Index count, std::mt19937_64& random, float special = 0) {
  const auto dtype = std::array{Dtype::f32, Dtype::f16, Dtype::bf16}[random() % 3];
  return {c.kind == CacheKind::latent ? 1 : c.kv_heads,
          count,
          c.kind == CacheKind::latent ? c.rank : c.dim,
          dtype,
          static_cast<int>(random() % 3),
          random,
          special};
}
Tokens values_for(const CacheConfig& c, Index count, std::mt19937_64& random, float special = 0) {
  const auto dtype = std::array{Dtype::f32, Dtype::f16, Dtype::bf16}[random() % 3];
  return {c.kind == CacheKind::latent ? 1 : c.kv_heads,
          count,
          c.kind == CacheKind::latent ? c.rotary : c.value_dim,
          dtype,
          static_cast<int>(random() % 3),
          random,
          special};
}

// Any sequence of operations, also of failing ones, has the same effect on the cache as on the
// list.
RC_GTEST_PROP(Cache, FollowsThePlainList, ()) {
  const auto kind =
      *rc::gen::elementOf(std::vector(std::begin(cache_kinds), std::end(cache_kinds)));
  const auto dtype =
      *rc::gen::elementOf(std::vector(std::begin(cache_dtypes), std::end(cache_dtypes)));
  CacheConfig config = config_of(kind, dtype, *rc::gen::inRange<Index>(1, 4),
                                 *rc::gen::inRange<Index>(0, 40), *rc::gen::inRange<Index>(1, 8));
  config.group_size = *rc::gen::element<Index>(0, 1, 5, 16, 100);
  if (kind != CacheKind::contiguous) config.pages = *rc::gen::element<Index>(0, 3, 6);
  if (kind == CacheKind::latent)
    config.rotary = *rc::gen::element<Index>(0, 6), config.dim = config.rank + config.rotary;
  const auto cache = make_cache(config);
  CacheModel model(config);
  std::mt19937_64 random(*rc::gen::arbitrary<std::uint64_t>());
  const auto below = [&](Index n) {
    return static_cast<Index>(random() % static_cast<std::uint64_t>(n));
  };
  const int steps = *rc::gen::inRange(1, 60);
  for (int step = 0; step < steps; ++step) {
    const Index sequence =
        below(20) == 0 ? (below(2) ? -1 : config.sequences) : below(config.sequences);
    StatusCode expected, got;
    switch (below(8)) {
      case 0:
        expected = model.reset(sequence);
        got = cache->reset(sequence).code;
        break;
      case 1: {
        const Index to = below(config.sequences);
        expected = model.fork(sequence, to);
        got = cache->fork(sequence, to).code;
        break;
      }
      case 2: {
        const Index position = below(12) == 0 ? config.capacity + 1
                               : model.exists(sequence)
                                   ? below(model.sequences[usize(sequence)].length() + 1)
                                   : 0;
        expected = model.evict(sequence, position);
        got = cache->evict(sequence, position).code;
        break;
      }
      default: {
        const Index count = below(8) == 0 ? below(30) : below(4);
        // Projecting a NaN by the identity would spread it over the row.
        const float special =
            kind == CacheKind::latent && dtype != Dtype::f4e2m1
                ? 0.0f
                : std::array{0.0f, 0.0f, 0.0f, NAN, INFINITY, -INFINITY}[random() % 6];
        const Tokens k = keys_for(config, count, random, special),
                     v = values_for(config, count, random);
        expected = model.append(sequence, k, v);
        got = cache->append(sequence, k.tensor.view(), v.tensor.view()).code;
      }
    }
    RC_ASSERT(static_cast<int>(got) == static_cast<int>(expected));
    RC_ASSERT(cache->free_pages() == model.pool - model.pages_used());
    for (Index b = 0; b < config.sequences; ++b) {
      RC_ASSERT(cache->length(b) == model.sequences[usize(b)].length());
      RC_ASSERT(cache->evicted(b) == model.sequences[usize(b)].evicted);
      // The kernel reads nothing else.
      RC_ASSERT(cache->stored(b, 0).keys.begin == cache->evicted(b) &&
                cache->stored(b, 0).keys.end == cache->length(b));
      RC_ASSERT(cache->stored(b, 0).values.begin == cache->evicted(b) &&
                cache->stored(b, 0).values.end == cache->length(b));
    }
    RC_ASSERT(reading_difference(*cache, model, 1 + below(3), random()) == "");
  }
}

// Both forks write into the page that they shared.
TEST(Cache, ForksGoTheirOwnWay) {
  for (CacheKind kind : cache_kinds)
    for (Dtype dtype : cache_dtypes)
      for (Index first : {0, 1}) {
        const CacheConfig config = config_of(kind, dtype, 3, 30, 8);
        const auto cache = make_cache(config);
        CacheModel model(config);
        std::mt19937_64 random(9);
        const auto append = [&](Index sequence, Index count) {
          const Tokens k = keys_for(config, count, random), v = values_for(config, count, random);
          ASSERT_EQ(model.append(sequence, k, v), StatusCode::success);
          ASSERT_TRUE(cache->append(sequence, k.tensor.view(), v.tensor.view()).ok());
        };
        append(0, 13);
        ASSERT_EQ(model.evict(0, 9), StatusCode::success);
        ASSERT_TRUE(cache->evict(0, 9).ok());
        ASSERT_EQ(model.fork(0, 1), StatusCode::success);
        ASSERT_TRUE(cache->fork(0, 1).ok());
        for (Index sequence : {first, 1 - first}) {
          append(sequence, 2);
          ASSERT_EQ(reading_difference(*cache, model, 3, 1), "")
              << static_cast<int>(kind) << format(dtype).name << sequence;
        }
        ASSERT_TRUE(cache->reset(first).ok());
        ASSERT_EQ(model.reset(first), StatusCode::success);
        append(2, 20);  // the tokens go into pages that were used before
        ASSERT_EQ(reading_difference(*cache, model, 3, 1), "");
      }
}

// Tries every dtype, over several splits and with all tokens in one call (the path that packs into
// memory).
TEST(Cache, HoldsWhatItsDtypeHolds) {
  for (CacheKind kind : cache_kinds)
    for (Dtype dtype : cache_dtypes) {
      const CacheConfig config = config_of(kind, dtype, 2, 1200, 16);
      const auto cache = make_cache(config);
      CacheModel model(config);
      std::mt19937_64 random(7);
      for (auto [sequence, count] : {std::pair<Index, Index>{0, 1100}, {1, 530}, {0, 1}}) {
        const Tokens k = keys_for(config, count, random), v = values_for(config, count, random);
        ASSERT_EQ(model.append(sequence, k, v), StatusCode::success);
        ASSERT_TRUE(cache->append(sequence, k.tensor.view(), v.tensor.view()).ok());
      }
      EXPECT_EQ(model.evict(1, 77), StatusCode::success);
      EXPECT_TRUE(cache->evict(1, 77).ok());
      for (Index rows : {1, 9, 120})
        EXPECT_EQ(reading_difference(*cache, model, rows, 3), "")
            << static_cast<int>(kind) << format(dtype).name << rows;
    }
}

class CacheOn : public testing::TestWithParam<std::string> {
 protected:
  // The execution on the target that is tested.
  static kernels::Execution on(int threads = 0) {
    return {threads, kernels::Target::named(GetParam()).value()};
  }
};

// A prompt in chunks and then one token at a time gives the same as everything in one call.
TEST_P(CacheOn, ChunksAndTokensEqualOneCall) {
  for (CacheKind kind : cache_kinds)
    for (Index page_size : {1, 3, 16, 128}) {
      if (kind == CacheKind::contiguous && page_size > 1) continue;
      constexpr Index length = 560;
      const CacheConfig config =
          config_of(kind, cache_dtypes[usize(page_size) % 6], 1, length, page_size);
      std::mt19937_64 random(5);
      const Tokens k = keys_for(config, length, random), v = values_for(config, length, random);
      const IdentityProjection identity(config);
      const Reading whole(config, 4, length, 11);
      {
        const auto cache = make_cache(config);
        ASSERT_TRUE(cache->append(0, k.tensor.view(), v.tensor.view()).ok());
        ASSERT_TRUE(
            kernels::attention_cached(whole.problem, *cache, identity.view(), whole.view(), on())
                .ok());
      }
      const auto cache = make_cache(config);
      for (Index at = 0, count = 0; at < length; at += count) {
        count = at == 0 ? 200 : at == 200 ? 53 : at == 253 ? 200 : at == 453 ? 40 : 1;
        const auto cut = [&](const Tokens& t) {
          TensorView view = t.tensor.view();
          view.origin = view.at(0, 0, at, 0);
          view.shape[2] = count;
          return view;
        };
        ASSERT_TRUE(cache->append(0, cut(k), cut(v)).ok());
        const Reading part(config, 4, count, 0);
        Attention p = part.problem;
        p.q = whole.problem.q;
        p.q.origin = p.q.at(0, 0, at, 0);
        ASSERT_TRUE(kernels::attention_cached(p, *cache, identity.view(), part.view(), on()).ok());
        for (Index h = 0; h < 4; ++h)
          for (Index i = 0; i < count; ++i)
            ASSERT_EQ(
                row_difference(whole.view(), 0, h, at + i, part.view(), 0, i, config.value_dim), "")
                << static_cast<int>(kind) << " pages of " << page_size;
      }
    }
}

// As ChunksAndTokensEqualOneCall, with columns and groups as wide as vectors: a few rows read codes
// where they are, and many rows read what was packed.
TEST_P(CacheOn, WideRowsHaveTheBitsOfTheWholeCall) {
  for (Dtype dtype : {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1})
    for (auto [group, dim] : {std::pair<Index, Index>{0, 128}, {48, 96}, {32, 90}, {7, 64}}) {
      constexpr Index length = 300;
      CacheConfig config = config_of(CacheKind::paged, dtype, 1, length, 16);
      config.group_size = group;
      config.dim = config.value_dim = dim;
      std::mt19937_64 random(6);
      const Tokens k = keys_for(config, length, random), v = values_for(config, length, random);
      const auto cache = make_cache(config);
      ASSERT_TRUE(cache->append(0, k.tensor.view(), v.tensor.view()).ok());
      Reading whole(config, 4, 100, 12);
      ASSERT_TRUE(kernels::attention_cached(whole.problem, *cache, {}, whole.view(), on(1)).ok());
      for (Index i : {0, 57, 99}) {
        const Reading part(config, 4, 1, 0);
        Attention p = part.problem;
        p.q = whole.problem.q;
        p.q.origin = p.q.at(0, 0, i, 0);
        p.offset = {length - 100 + i};
        ASSERT_TRUE(kernels::attention_cached(p, *cache, {}, part.view(), on(1)).ok());
        for (Index h = 0; h < 4; ++h)
          ASSERT_EQ(row_difference(whole.view(), 0, h, i, part.view(), 0, 0, dim), "")
              << format(dtype).name << " groups of " << group << ", row " << i;
      }
    }
}

// The LSE of a row that sees one key is the score of that key, and under a Q of one 1 it is one
// element of the key, whatever the code and the scale are.
TEST_P(CacheOn, KeysOfEveryCodeAndScaleAreRead) {
  constexpr Index dim = 72, keys = 64, rows = 8;
  for (Dtype dtype : {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1})
    for (Index group : {0, 32, 7}) {
      CacheConfig config = config_of(CacheKind::contiguous, dtype, 1, keys, 1);
      config.kv_heads = 1;
      config.group_size = group;
      config.dim = dim;
      std::mt19937_64 random(9);
      const Tokens k = keys_for(config, keys, random), v = values_for(config, keys, random);
      const auto cache = make_cache(config);
      ASSERT_TRUE(cache->append(0, k.tensor.view(), v.tensor.view()).ok());
      const kernels::StoredColumns& stored = cache->stored(0, 0).keys.columns;
      auto* bytes = reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(stored.data));
      auto* scales = const_cast<std::uint8_t*>(stored.scales);
      const auto element = [&](Index key, Index c) {
        const std::uint8_t* row = bytes + key * stored.row_bytes;
        const std::uint32_t code = dtype == Dtype::f4e2m1 ? row[c / 2] >> c % 2 * 4 & 15 : row[c];
        return kernels::decode_narrow(kernels::narrow_format(dtype), code) *
               kernels::from_e8m0(scales[key * stored.row_scales + c / stored.group]);
      };
      for (bool special : {false, true})  // where E4M3 has NaN, and E5M2 an infinity
        for (int scale : {0, 110, 127, 238, 239, 247, 255}) {
          for (Index key = 0; key < keys; ++key) {
            for (Index c = 0; c < stored.row_bytes; ++c) {
              const Index n = key * stored.row_bytes + c;
              bytes[n] = static_cast<std::uint8_t>(special ? n : n % 123 + n / 123 % 2 * 128);
            }
            for (Index g = 0; g * stored.group < dim; ++g)
              scales[key * stored.row_scales + g] =
                  static_cast<std::uint8_t>(std::max<Index>(0, scale - g - key % 3));
          }
          const Reading of(config, 1, rows, 3);
          Attention p = of.problem;
          p.window_left = 0;
          for (Index key = 0; key < keys; key += rows)
            for (Index first = 0; first < dim; ++first) {
              p.offset = {key};
              for (Index i = 0; i < rows; ++i)
                for (Index c = 0; c < dim; ++c)
                  store(p.q, p.q.at(0, 0, i, c), c == (first + 9 * i) % dim ? 1 : 0);
              ASSERT_TRUE(kernels::attention_cached(p, *cache, {}, of.view(), on(1)).ok());
              for (Index i = 0; i < rows; ++i) {
                float score = 0;  // other elements make it NaN, if they are not finite
                for (Index c = 0; c < dim; ++c)
                  score += (c == (first + 9 * i) % dim ? 1.0f : 0.0f) * element(key + i, c);
                const double wanted = static_cast<double>(score * p.scale),
                             read = load(of.lse.view(), of.lse.view().at(0, 0, i, 0));
                ASSERT_TRUE(read == wanted || (!std::isfinite(read) && !std::isfinite(wanted)))
                    << format(dtype).name << " key " << key + i << " column "
                    << (first + 9 * i) % dim << ": " << read << " instead of " << wanted;
              }
            }
        }
    }
}

// Attention over one key is its value, whatever the code and the scale are.
TEST_P(CacheOn, EveryCodeAndScaleIsRead) {
  for (Dtype dtype : {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1})
    for (Index group : {32, 48, 7})
      for (Index rows : {1, 40}) {
        constexpr Index dim = 288;
        CacheConfig config = config_of(CacheKind::contiguous, dtype, 1, 1, 1);
        config.kv_heads = 1;
        config.group_size = group;
        config.value_dim = dim;
        std::mt19937_64 random(8);
        const Tokens k = keys_for(config, 1, random), v = values_for(config, 1, random);
        const auto cache = make_cache(config);
        ASSERT_TRUE(cache->append(0, k.tensor.view(), v.tensor.view()).ok());
        const kernels::StoredColumns& stored = cache->stored(0, 0).values.columns;
        auto* bytes = reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(stored.data));
        auto* scales = const_cast<std::uint8_t*>(stored.scales);
        const bool nibbles = dtype == Dtype::f4e2m1;
        for (Index first : {0, 127}) {  // NaN of E4M3 in some rows, and in others not
          for (Index c = 0; c < (nibbles ? dim / 2 : dim); ++c)
            bytes[c] =
                static_cast<std::uint8_t>(first == 0 ? c % 127 + c / 127 % 2 * 128 : c + first);
          for (int scale : {0, 1, 100, 127, 238, 239, 246, 247, 254, 255}) {
            for (Index g = 0; g * group < dim; ++g)
              scales[g] = static_cast<std::uint8_t>(std::max<Index>(0, scale - g));
            Reading of(config, 1, rows, 3);
            of.problem.causal = false;
            ASSERT_TRUE(kernels::attention_cached(of.problem, *cache, {}, of.view(), on(1)).ok());
            for (Index c = 0; c < dim; ++c) {
              const std::uint32_t code = nibbles ? bytes[c / 2] >> c % 2 * 4 & 15 : bytes[c];
              const float value = kernels::decode_narrow(kernels::narrow_format(dtype), code) *
                                  kernels::from_e8m0(scales[c / group]),
                          read = static_cast<float>(
                              load(of.o.view(), of.o.view().at(0, 0, rows - 1, c)));
              ASSERT_TRUE(read == value || (std::isnan(read) && std::isnan(value)))
                  << format(dtype).name << " code " << code << " scale " << int(scales[c / group])
                  << ": " << read << " instead of " << value;
            }
          }
        }
      }
}

INSTANTIATE_TEST_SUITE_P(Targets, CacheOn, testing::ValuesIn(kernels::runnable_targets()),
                         [](const auto& test) { return test.param; });

// A latent cache with real up-projections is compared with softmax over materialised K and V in
// binary64.
TEST(Cache, LatentStaysWithinTheBoundOfItsProjections) {
  CacheConfig c = config_of(CacheKind::latent, Dtype::f32, 1, 700, 16);
  c.rank = 40;
  c.rotary = 8;
  c.dim = 24;
  c.value_dim = 21;
  constexpr Index length = 650;
  const auto cache = make_cache(c);
  std::mt19937_64 random(17);
  const Tokens latent = keys_for(c, length, random), rotary = values_for(c, length, random);
  ASSERT_TRUE(cache->append(0, latent.tensor.view(), rotary.tensor.view()).ok());
  const Tokens up_k(c.kv_heads, c.dim - c.rotary, c.rank, Dtype::bf16, 0, random),
      up_v(c.kv_heads, c.value_dim, c.rank, Dtype::f16, 1, random);
  // The values by [head][key][column], and the same sums of magnitudes.
  using Rows = std::vector<std::vector<std::vector<double>>>;
  const auto project = [&](const Tokens& w, bool magnitudes, bool with_rotary) {
    Rows all(usize(c.kv_heads));
    for (Index g = 0; g < c.kv_heads; ++g)
      for (Index j = 0; j < length; ++j) {
        std::vector<double> row;
        const std::vector<float> from = latent.row(0, j);
        for (Index d = 0; d < w.tensor.view().shape[2]; ++d) {
          double sum = 0;
          const std::vector<float> weights = w.row(g, d);
          for (std::size_t e = 0; e < from.size(); ++e) {
            const double term = static_cast<double>(weights[e]) * static_cast<double>(from[e]);
            sum += magnitudes ? std::fabs(term) : term;
          }
          row.push_back(sum);
        }
        if (with_rotary)
          for (float x : rotary.row(0, j)) row.push_back(magnitudes ? std::fabs(x) : x);
        all[usize(g)].push_back(row);
      }
    return all;
  };
  const Rows k = project(up_k, false, true), k_magnitude = project(up_k, true, true);
  const Rows v = project(up_v, false, false), v_magnitude = project(up_v, true, false);
  for (Index rows : {1, 30, 120}) {
    Reading r(c, 4, rows, 23);
    r.problem.scale = 0x1p-9f;  // the scores are some tens
    ASSERT_TRUE(kernels::attention_cached(r.problem, *cache,
                                          {up_k.tensor.view(), up_v.tensor.view()}, r.view())
                    .ok());
    const double u = 0x1p-24, gamma = 1.01 * u * static_cast<double>(c.dim + c.rank + 2);
    for (Index h = 0; h < 4; ++h)
      for (Index i = 0; i < rows; i += 7) {
        const auto g = usize(h / 2), keys = usize(length - rows + i + 1);
        const std::vector<float> q = r.q->row(h, i);
        std::vector<double> scores;
        double score_error = 0, m = -INFINITY;
        for (std::size_t j = 0; j < keys; ++j) {
          double s = 0, magnitude = 0;
          for (std::size_t d = 0; d < q.size(); ++d) {
            s += 0x1p-9 * static_cast<double>(q[d]) * k[g][j][d];
            magnitude += 0x1p-9 * std::fabs(static_cast<double>(q[d])) * k_magnitude[g][j][d];
          }
          scores.push_back(s);
          score_error = std::max(score_error, gamma * magnitude + u * std::fabs(s));
          m = std::max(m, s);
        }
        double sum = 0;
        for (double s : scores) sum += std::exp(s - m);
        const double lse = m + std::log(sum);
        const double lse_error = score_error + static_cast<double>(keys + 40) * u +
                                 u * std::fabs(lse) + 2 * u * (std::fabs(m) + 90);
        ASSERT_TRUE(std::fabs(load(r.lse.view(), r.lse.view().at(0, h, i, 0)) - lse) <= lse_error);
        for (Index e = 0; e < c.value_dim; ++e) {
          double o = 0, magnitude = 0;
          for (std::size_t j = 0; j < keys; ++j) {
            o += std::exp(scores[j] - lse) * v[g][j][usize(e)];
            magnitude += std::exp(scores[j] - lse) * v_magnitude[g][j][usize(e)];
          }
          // The weights and their sum have the error of the scores, and the sums over keys and rank
          // have roundings.
          const double bound =
              (std::expm1(2 * score_error) + 2 * lse_error +
               u * (static_cast<double>(keys) + static_cast<double>(c.rank) + 200)) *
              magnitude;
          ASSERT_TRUE(std::fabs(load(r.o.view(), r.o.view().at(0, h, i, e)) - o) <= bound)
              << o << " +- " << bound;
          ASSERT_LT(bound, 0.01 * magnitude);  // the bound must be small enough to tell something
        }
      }
  }
}

// Every refusal names the argument, its value and the limit, and changes nothing.
TEST(Cache, RefusesWhatCannotBe) {
  const auto config = config_of(CacheKind::paged, Dtype::f4e2m1, 2, 10, 3);
  const auto refused = [](auto change) {
    CacheConfig c = config_of(CacheKind::latent, Dtype::f32, 2, 10, 3);
    change(c);
    std::unique_ptr<Cache> cache;
    const Status status = Cache::create(c, cache);
    EXPECT_EQ(cache, nullptr);
    return status;
  };
  const auto expect = [](const Status& status, StatusCode code, const char* words) {
    EXPECT_EQ(status.code, code) << status.detail;
    EXPECT_THAT(status.detail, HasSubstr(words));
  };
  const auto bad = StatusCode::invalid_arguments, state = StatusCode::invalid_cache_state;
  expect(refused([](CacheConfig& c) { c.page_size = 0; }), bad, "page_size = 0 is below 1");
  expect(refused([](CacheConfig& c) { c.sequences = 0; }), bad, "sequences = 0");
  expect(refused([](CacheConfig& c) { c.dim = 65600; }), bad, "dim = 65600 is outside [1, 1024]");
  expect(refused([](CacheConfig& c) { c.rank = 1020; }), bad,
         "rank + rotary = 1020 + 6 is above 1024");
  expect(refused([](CacheConfig& c) { c.rotary = c.dim; }), bad, "rotary");
  expect(refused([](CacheConfig& c) { c.kind = static_cast<CacheKind>(7); }), bad,
         "kind = 7 is none of the three");
  expect(refused([](CacheConfig& c) { c.capacity = -1; }), bad, "capacity = -1");
  expect(refused([](CacheConfig& c) { c.group_size = -1; }), bad, "group_size = -1");
  expect(refused([](CacheConfig& c) { c.dtype = Dtype::f64; }), StatusCode::unsupported,
         "dtype is f64");
  expect(refused([](CacheConfig& c) { c.capacity = Index{1} << 60; }),
         StatusCode::memory_allocation_failed, "slots");

  const auto cache = make_cache(config);
  CacheModel model(config);
  std::mt19937_64 random(1);
  const Tokens k(2, 4, 20, Dtype::f32, 0, random), v(2, 4, 13, Dtype::f32, 0, random);
  ASSERT_EQ(model.append(0, k, v), StatusCode::success);
  ASSERT_TRUE(cache->append(0, k.tensor.view(), v.tensor.view()).ok());
  const auto append = [&](auto change) {
    TensorView a = k.tensor.view(), b = v.tensor.view();
    change(a, b);
    return cache->append(0, a, b);
  };
  expect(append([](TensorView& a, TensorView&) { a.data = nullptr; }), bad, "k is null");
  expect(append([](TensorView&, TensorView& b) { b.data = nullptr; }), bad, "v is null");
  expect(append([](TensorView& a, TensorView&) { a.shape[3] = 21; }), bad,
         "k has shape [1, 2, 4, 21], not [1, 2, 4, 20]");
  expect(append([](TensorView&, TensorView& b) { b.shape[2] = 3; }), bad, "v has shape");
  expect(append([](TensorView& a, TensorView&) { a.dtype = Dtype::f64; }), bad, "k is f64");
  expect(append([](TensorView& a, TensorView&) { a.stride[1] = 0; }), state, "overlaps itself");
  expect(append([](TensorView& a, TensorView&) { a.stride[2] = 19; }), state, "overlaps itself");
  expect(append([](TensorView&, TensorView& b) { b.stride[3] = 0; }), state, "v has strides");
  const Tokens nan(2, 4, 13, Dtype::bf16, 2, random, NAN),
      infinity(2, 4, 20, Dtype::f16, 1, random, INFINITY);
  expect(cache->append(0, k.tensor.view(), nan.tensor.view()), bad,
         "is not finite, which f4e2m1 cannot hold");
  expect(cache->append(0, infinity.tensor.view(), v.tensor.view()), bad, "is not finite");
  expect(cache->append(2, k.tensor.view(), v.tensor.view()), state,
         "sequence = 2 is outside [0, 2)");
  const Tokens many_k(2, 7, 20, Dtype::f32, 0, random), many_v(2, 7, 13, Dtype::f32, 0, random);
  expect(cache->append(0, many_k.tensor.view(), many_v.tensor.view()), state,
         "7 tokens after 4 are above the capacity of 10");
  expect(cache->evict(0, 5), bad, "position = 5 is outside [0, 4]");
  expect(cache->evict(-1, 0), state, "sequence = -1");
  expect(cache->fork(1, 0), state, "to = 0 holds 4 tokens");
  expect(cache->fork(0, 9), state, "to = 9 is outside");
  expect(cache->reset(2), state, "sequence = 2");
  EXPECT_EQ(cache->free_pages(), model.pool - 2);
  EXPECT_EQ(reading_difference(*cache, model, 2, 5), "");

  // Strides that interleave heads and rows without overlap are allowed.
  const Tensor wide(Dtype::f32, {1, 1, 1, 400}, {{400, 400, 400, 1}, 0, 400});
  EXPECT_TRUE(append([&](TensorView& a, TensorView&) {
                a.data = wide.view().data, a.stride = {0, 6, 4, 19};
              }).ok());
  EXPECT_EQ(cache->length(0), 8);
}

TEST(Cache, ThePoolIsShared) {
  CacheConfig config = config_of(CacheKind::paged, Dtype::f32, 3, 100, 4);
  config.pages = 3;
  const auto cache = make_cache(config);
  std::mt19937_64 random(1);
  const auto append = [&](Index sequence, Index count) {
    return cache->append(sequence, Tokens(2, count, 20, Dtype::f32, 0, random).tensor.view(),
                         Tokens(2, count, 13, Dtype::f32, 0, random).tensor.view());
  };
  ASSERT_TRUE(append(0, 6).ok());
  ASSERT_TRUE(cache->fork(0, 1).ok());
  EXPECT_EQ(cache->free_pages(), 1);
  const Status full = append(1, 4);  // it needs a copy of the shared page and one more page
  EXPECT_EQ(full.code, StatusCode::invalid_cache_state);
  EXPECT_THAT(full.detail, HasSubstr("4 tokens need 2 pages, 1 are free"));
  ASSERT_TRUE(append(1, 2).ok());
  EXPECT_EQ(append(0, 3).code, StatusCode::invalid_cache_state);
  ASSERT_TRUE(append(0, 2).ok());  // the page is no longer shared
  ASSERT_TRUE(cache->evict(1, 8).ok());
  EXPECT_EQ(cache->free_pages(), 1);  // sequence 0 still has the first page
  ASSERT_TRUE(cache->reset(0).ok());
  EXPECT_EQ(cache->free_pages(), 3);
  EXPECT_EQ(cache->length(1), 8);
}

TEST(Cache, AttentionRefusesWhatCannotBe) {
  const auto config = config_of(CacheKind::latent, Dtype::f32, 1, 10, 3);
  const auto cache = make_cache(config);
  const IdentityProjection identity(config);
  const auto expect = [&](auto change, const char* words) {
    const Reading r(config, 4, 2, 1);
    for (Index e = 0; e < 4 * 2 * config.value_dim; ++e) store(r.o.view(), e, 77);
    Attention p = r.problem;
    AttentionOutput out = r.view();
    kernels::UpProjection w = identity.view();
    change(p, out, w);
    const Status status = kernels::attention_cached(p, *cache, w, out);
    EXPECT_EQ(status.code, StatusCode::invalid_arguments) << words;
    EXPECT_THAT(status.detail, HasSubstr(words));
    for (Index e = 0; e < 4 * 2 * config.value_dim; ++e) ASSERT_EQ(load(r.o.view(), e), 77);
  };
  using W = kernels::UpProjection;
  expect([](Attention& p, AttentionOutput&, W&) { p.shape.batch = 2; },
         "batch = 2, but the cache has 1");
  expect([](Attention& p, AttentionOutput&, W&) { p.shape.dim = 65600; },
         "dim = 65600, but the cache has 24");
  expect([](Attention& p, AttentionOutput&, W&) { p.k = p.q; }, "k and v must be absent");
  expect([](Attention& p, AttentionOutput&, W&) { p.key_lengths = {1}; },
         "key_lengths and key_starts must be absent");
  expect([](Attention& p, AttentionOutput&, W&) { p.q.data = nullptr; }, "q is null");
  expect([](Attention&, AttentionOutput& o, W&) { o.o.data = nullptr; }, "o is null");
  expect([](Attention&, AttentionOutput&, W& w) { w.up_k.data = nullptr; }, "up_k is null");
  expect([](Attention&, AttentionOutput&, W& w) { w.up_v.shape[3] = 17; },
         "up_v has shape [1, 2, 18, 17], not [1, 2, 18, 18]");
  expect([](Attention&, AttentionOutput&, W& w) { w.up_v.dtype = Dtype::f64; }, "up_v is f64");
}

}  // namespace
}  // namespace assay
