// Fuzz target: any sequence of appends, evictions, forks and resets, including failing ones. It
// changes a cache in the same way as a plain list of tokens. The contents of the cache are read
// back through attention.

#include "fuzz/require.h"
#include "harness/cases/draw_case.h"
#include "kernels/attention/attention.h"
#include "kernels/cache/cache_storage.h"
#include "testing/cache_model.h"

namespace {

using namespace assay;

Tensor make(const Extents& shape) {
  return Tensor(Dtype::f32, shape,
                {{shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1},
                 0,
                 element_count(shape)});
}

// Compares one row of every head, computed over the cache and over the list.
void compare_reading(const kernels::Cache& cache, const CacheModel& model) {
  const CacheConfig& c = model.config;
  const Tensor q = make({c.sequences, c.kv_heads, 1, c.dim});
  for (Index e = 0; e < element_count(q.view().shape); ++e)
    store(q.view(), e, static_cast<double>(e * 7 % 11) / 4 - 1);
  const Tensor o = make({c.sequences, c.kv_heads, 1, c.value_dim}), plain_o = make(o.view().shape);
  const Tensor lse = make({c.sequences, c.kv_heads, 1, 1}), plain_lse = make(lse.view().shape);
  Attention p;
  p.shape = {c.sequences, c.kv_heads, c.kv_heads, 1, 0, c.dim, c.value_dim};
  p.q = q.view();
  p.scale = 0.5f;
  require(kernels::attention_cached(p, cache, {}, {o.view(), lse.view()}, 1).ok(),
          "attention over the cache failed");
  const auto [k, v] = model.held();
  p.k = k.view();
  p.v = v.view();
  p.shape.keys = model.longest();
  for (const auto& s : model.sequences)
    p.key_lengths.push_back(s.length()), p.key_starts.push_back(s.evicted);
  require(kernels::attention_forward(p, {plain_o.view(), plain_lse.view()}, 1).ok(),
          "attention over the list failed");
  for (const auto& [a, b] : {std::pair(&o, &plain_o), {&lse, &plain_lse}})
    for (Index e = 0; e < element_count(a->view().shape); ++e) {
      const double x = load(a->view(), e), y = load(b->view(), e);
      require(x == y || (x != x && y != y), "attention over the cache is not that over the list");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  Choices in({data, size});
  CacheConfig config;
  config.kind = in.flag() ? CacheKind::paged : CacheKind::contiguous;
  config.dtype =
      in.of({Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1});
  config.sequences = in.between(1, 4);
  config.kv_heads = in.between(1, 2);
  config.dim = in.between(1, 9);
  config.value_dim = in.between(1, 9);
  config.capacity = in.between(0, 40);
  config.page_size = in.between(1, 9);
  config.pages = config.kind == CacheKind::paged ? in.between(0, 8) : 0;
  config.group_size = in.between(0, 10);
  std::unique_ptr<kernels::Cache> cache;
  if (!kernels::Cache::create(config, cache).ok()) return 0;
  CacheModel model(config);
  std::mt19937_64 random(in.below(256));
  for (Index steps = in.between(1, 24); steps > 0; --steps) {
    const Index sequence = in.between(-1, config.sequences),
                other = in.between(0, config.sequences - 1),
                position = in.between(0, config.capacity + 1);
    StatusCode expected{}, got{};
    switch (in.below(6)) {
      case 0: expected = model.reset(sequence), got = cache->reset(sequence).code; break;
      case 1:
        expected = model.fork(sequence, other), got = cache->fork(sequence, other).code;
        break;
      case 2:
        expected = model.evict(sequence, position), got = cache->evict(sequence, position).code;
        break;
      default: {
        const Index count = in.between(0, 7);
        const float special = in.of({0.0f, 0.0f, 0.0f, NAN, INFINITY});
        const Tokens k(config.kv_heads, count, config.dim, Dtype::f32,
                       static_cast<int>(in.below(3)), random, special);
        const Tokens v(config.kv_heads, count, config.value_dim, Dtype::f32,
                       static_cast<int>(in.below(3)), random);
        expected = model.append(sequence, k, v);
        got = cache->append(sequence, k.tensor.view(), v.tensor.view()).code;
      }
    }
    require(got == expected, "the cache's status is not the list's");
    for (Index b = 0; b < config.sequences; ++b)
      require(cache->length(b) == model.sequences[usize(b)].length() &&
                  cache->evicted(b) == model.sequences[usize(b)].evicted,
              "the cache's length is not the list's");
  }
  compare_reading(*cache, model);
  return 0;
}
