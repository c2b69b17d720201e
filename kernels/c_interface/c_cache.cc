// Caches of the C interface.
#include "kernels/c_interface/c_common.h"
#include "kernels/cache/cache.h"

namespace assay::kernels {
namespace {

struct CacheObject {
  std::unique_ptr<Cache> cache;
  std::shared_mutex mutex;  // shared while reading
};

Handles<CacheObject, assay_cache>& caches() {
  static auto* handles =
      new Handles<CacheObject, assay_cache>("cache", StatusCode::invalid_cache_state);
  return *handles;
}

// Runs a function that changes the cache, while no other call uses it, and returns its status.
template <class Change>
assay_status change(assay_cache handle, const Change& apply) {
  return guarded([&] {
    const auto object = caches().get(handle);
    const std::lock_guard lock(object->mutex);
    return apply(*object->cache);
  });
}

}  // namespace
}  // namespace assay::kernels

using namespace assay;
using namespace assay::kernels;

extern "C" {

assay_status assay_cache_create(const assay_cache_config* config, assay_cache* cache) {
  return guarded([&] {
    if (!cache) refuse("cache is null");
    assay_cache_config c;
    assay_cache_config_init(&c);
    c = read_struct(config, "config", c);
    if (c.kind < ASSAY_CACHE_CONTIGUOUS || c.kind > ASSAY_CACHE_LATENT)
      refuse("config.kind = " + std::to_string(c.kind) + " is outside [0, 2]");
    const CacheConfig made{static_cast<CacheKind>(c.kind),
                           c.sequences,
                           c.kv_heads,
                           c.dim,
                           c.value_dim,
                           c.capacity,
                           c.page_size,
                           c.pages,
                           dtype_of(c.dtype, "config"),
                           c.group_size,
                           c.rank,
                           c.rotary};
    const auto object = std::make_shared<CacheObject>();
    if (Status status = Cache::create(made, object->cache); !status.ok()) return status;
    *cache = caches().add(object);
    return Status{};
  });
}

assay_status assay_cache_destroy(assay_cache cache) {
  return guarded([&] { return caches().destroy(cache); });
}

assay_status assay_cache_append(assay_cache cache, int64_t sequence, const assay_tensor* k,
                                const assay_tensor* v) {
  return change(cache, [&](Cache& c) {
    if (!k) refuse("k is null");
    if (!v) refuse("v is null");
    return c.append(sequence, view_of(k, "k"), view_of(v, "v"));
  });
}

assay_status assay_cache_evict(assay_cache cache, int64_t sequence, int64_t position) {
  return change(cache, [&](Cache& c) { return c.evict(sequence, position); });
}

assay_status assay_cache_fork(assay_cache cache, int64_t from, int64_t to) {
  return change(cache, [&](Cache& c) { return c.fork(from, to); });
}

assay_status assay_cache_reset(assay_cache cache, int64_t sequence) {
  return change(cache, [&](Cache& c) { return c.reset(sequence); });
}

assay_status assay_cache_length(assay_cache cache, int64_t sequence, int64_t* length,
                                int64_t* evicted) {
  return guarded([&] {
    const auto object = caches().get(cache);
    const std::shared_lock lock(object->mutex);
    const Index sequences = object->cache->config().sequences;
    if (sequence < 0 || sequence >= sequences)
      refuse("sequence = " + std::to_string(sequence) + " is outside [0, " +
                 std::to_string(sequences) + ")",
             StatusCode::invalid_cache_state);
    if (length) *length = object->cache->length(sequence);
    if (evicted) *evicted = object->cache->evicted(sequence);
    return Status{};
  });
}

assay_status assay_attention_cached(assay_context context, const assay_attention* problem,
                                    assay_cache cache, const assay_tensor* up_k,
                                    const assay_tensor* up_v, const assay_tensor* o,
                                    const assay_tensor* lse) {
  return guarded([&] {
    const auto c = context_of(context);
    const auto object = caches().get(cache);
    const std::shared_lock lock(object->mutex);
    Attention p = problem_of(problem, false);
    const CacheConfig& config = object->cache->config();
    if (p.shape.batch != config.sequences)
      refuse("q.shape[0] = " + std::to_string(p.shape.batch) + " is not " +
             std::to_string(config.sequences) + ", the sequences of the cache");
    p.shape.kv_heads = config.kv_heads;
    p.shape.value_dim = config.value_dim;
    return attention_cached(p, *object->cache, {view_of(up_k, "up_k"), view_of(up_v, "up_v")},
                            output_of(p, o, lse), c->threads);
  });
}

}  // extern "C"
