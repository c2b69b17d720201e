#include "harness/candidates/cached.h"

#include <algorithm>

namespace assay {
namespace {

// Tokens [first, first + count) of one sequence.
TensorView slice(const TensorView& t, Index b, Index first, Index count) {
  TensorView part = t;
  part.origin = t.at(b, 0, first, 0);
  part.shape[0] = 1;
  part.shape[2] = count;
  return part;
}

}  // namespace

Index length_of(const Case& c, Index b) {
  if (c.lengths.empty()) return c.shape.keys;
  return c.lengths[c.lengths.size() == 1 ? 0 : usize(b)];
}

Index start_of(const Case& c, Index b) {
  return c.starts.empty() ? 0 : c.starts[c.starts.size() == 1 ? 0 : usize(b)];
}

std::vector<Chunk> chunks_of(const Case& c) {
  std::vector<Chunk> list;
  const std::vector<Index>& sizes = c.cache.chunks;
  for (Index first = 0; first < c.shape.rows; first += list.back().count) {
    const Index wanted =
        sizes.empty() ? c.shape.rows : sizes[std::min(list.size(), sizes.size() - 1)];
    list.push_back({first, std::min(wanted, c.shape.rows - first)});
  }
  return list;
}

Attention rows_of(const Attention& whole, Chunk chunk, Index keys) {
  const auto [first, count] = chunk;
  Attention p = whole;
  p.shape.rows = count;
  p.shape.keys = keys;
  p.k = p.v = {};
  p.key_lengths.clear();
  p.key_starts.clear();
  p.offset.clear();
  p.q.origin = whole.q.at(0, 0, first, 0);
  p.q.shape[2] = count;
  if (p.keep) p.keep.data += first * p.keep.stride[2];
  if (p.bias) p.bias.origin = whole.bias.at(0, 0, first, 0);
  if (!whole.query_segment.empty()) {
    p.query_segment.clear();
    p.key_segment.clear();
    for (Index b = 0; b < whole.shape.batch; ++b) {
      const auto rows = whole.query_segment.begin() + b * whole.shape.rows + first;
      const auto tokens = whole.key_segment.begin() + b * whole.shape.keys;
      p.query_segment.insert(p.query_segment.end(), rows, rows + count);
      p.key_segment.insert(p.key_segment.end(), tokens, tokens + keys);
    }
  }
  return p;
}

AttentionOutput rows_of(const AttentionOutput& whole, Chunk rows) {
  AttentionOutput part = whole;
  for (TensorView* t : {&part.o, &part.lse}) {
    t->origin = t->at(0, 0, rows.first, 0);
    t->shape[2] = rows.count;
  }
  return part;
}

kernels::Status CacheCalls::append(kernels::Cache& cache, Index sequence, const TensorView& k,
                                   const TensorView& v) {
  return cache.append(sequence, k, v);
}

kernels::Status CacheCalls::attend(const Attention& problem, const kernels::Cache& cache,
                                   const kernels::UpProjection& projection,
                                   const AttentionOutput& out, const kernels::Execution& how) {
  return kernels::attention_cached(problem, cache, projection, out, how);
}

kernels::Status run_through_cache(const Case& c, const Inputs& in, const AttentionOutput& out,
                                  const kernels::Execution& how, CacheCalls&& calls) {
  using kernels::Status;
  const AttentionShape& s = c.shape;
  kernels::CacheConfig config;
  config.kind = c.cache.kind == CacheSpec::Kind::latent  ? kernels::CacheKind::latent
                : c.cache.kind == CacheSpec::Kind::paged ? kernels::CacheKind::paged
                                                         : kernels::CacheKind::contiguous;
  config.sequences = s.batch;
  config.kv_heads = s.kv_heads;
  config.dim = s.dim;
  config.value_dim = s.value_dim;
  config.capacity = s.keys;
  config.page_size = c.cache.page;
  config.dtype = c.cache_dtype();
  config.group_size = c.cache.group;
  config.rank = c.cache.rank;
  config.rotary = c.cache.rotary;
  std::unique_ptr<kernels::Cache> cache;
  if (Status status = kernels::Cache::create(config, cache); !status.ok()) return status;
  auto append = [&](Index first, Index count) -> Status {
    for (Index b = 0; b < s.batch; ++b) {
      const Index of_b = std::clamp<Index>(length_of(c, b) - first, 0, count);
      if (of_b == 0) continue;
      if (Status status = calls.append(*cache, b, slice(in.token_k.view(), b, first, of_b),
                                       slice(in.token_v.view(), b, first, of_b));
          !status.ok())
        return status;
    }
    return {};
  };
  const Index past = s.keys - s.rows;
  // The past comes in two parts, so that the second append finds a page that is partly full.
  for (const auto& [first, last] : {std::pair{Index{0}, past / 3}, {past / 3, past}})
    if (last > first)
      if (Status status = append(first, last - first); !status.ok()) return status;
  for (Index b = 0; b < s.batch && !c.starts.empty(); ++b)
    if (Status status = cache->evict(b, start_of(c, b)); !status.ok()) return status;
  const kernels::UpProjection projection{in.up_k.view(), in.up_v.view()};
  for (const Chunk& rows : chunks_of(c)) {
    if (Status status = append(past + rows.first, rows.count); !status.ok()) return status;
    const Attention p = rows_of(in.problem, rows, past + rows.first + rows.count);
    if (Status status = calls.attend(p, *cache, projection, rows_of(out, rows), how); !status.ok())
      return status;
  }
  return {};
}

}  // namespace assay
