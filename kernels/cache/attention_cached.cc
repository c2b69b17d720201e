// Attention over a cache: the forward kernel, which reads from the cache's storage.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cache/attention_cached.cc"
#include <hwy/foreach_target.h>

#include "kernels/simd/register_block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// Computes to[row][c] = sum_i from[row][i] w[g][i][c] as one FMA chain over i, for `count` rows.
// `scratch` holds a row of w.
void multiply_rows(const TensorView& w, Index g, Index depth, Index columns, const float* from,
                   Index from_stride, Index count, float* to, Index to_stride, float* scratch) {
  const Lanes d;
  const Index n = static_cast<Index>(hn::Lanes(d));
  for (Index row = 0; row < count; ++row) std::fill_n(to + row * to_stride, columns, 0.0f);
  for (Index i = 0; i < depth; ++i) {
    load_row(w, 0, g, i, columns, scratch);
    for (Index row = 0; row < count; ++row) {
      const float x = from[row * from_stride + i];
      float* sum = to + row * to_stride;
      Index c = 0;
      for (; c + n <= columns; c += n)
        hn::StoreU(hn::MulAdd(hn::Set(d, x), hn::LoadU(d, scratch + c), hn::LoadU(d, sum + c)), d,
                   sum + c);
      for (; c < columns; ++c) sum[c] = multiply_add_one(x, scratch[c], sum[c]);
    }
  }
}

// Computes to[row][c] = sum_i w[g][c][i] from[row][i] for `count` rows. `scratch` holds a row of w.
void multiply_transposed(const TensorView& w, Index g, Index depth, Index columns,
                         const float* from, Index count, float* to, float* scratch) {
  const Lanes d;
  const Index n = static_cast<Index>(hn::Lanes(d));
  for (Index c = 0; c < columns; ++c) {
    load_row(w, 0, g, c, depth, scratch);
    for (Index row = 0; row < count; ++row) {
      const float* x = from + row * depth;
      Vector even = hn::Zero(d), odd = hn::Zero(d);
      Index i = 0;
      for (; i + 2 * n <= depth; i += 2 * n) {
        even = hn::MulAdd(hn::LoadU(d, scratch + i), hn::LoadU(d, x + i), even);
        odd = hn::MulAdd(hn::LoadU(d, scratch + i + n), hn::LoadU(d, x + i + n), odd);
      }
      float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
      for (; i < depth; ++i) sum = multiply_add_one(scratch[i], x[i], sum);
      to[row * columns + c] = sum;
    }
  }
}

void load_query(const TensorView& t, Index b, Index h, Index i, Index columns, float* row) {
  load_row(t, b, h, i, columns, row);
}
void store_output(const TensorView& t, Index b, Index h, Index i, Index columns, const float* row) {
  store_row(t, b, h, i, columns, row);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <new>

#include "kernels/simd/by_target.h"
#include "kernels/cache/cache_storage.h"
#include "kernels/simd/scratch.h"
#include "kernels/validate.h"
#include "problem/parallel.h"

namespace assay::kernels {

HWY_EXPORT(multiply_rows);
HWY_EXPORT(multiply_transposed);
HWY_EXPORT(load_query);
HWY_EXPORT(store_output);

namespace {

Status refuse(std::string detail) { return {StatusCode::invalid_arguments, std::move(detail)}; }

std::vector<StoredKeyValues> stored_in(const PagedCache& cache, Index heads) {
  std::vector<StoredKeyValues> stored;
  for (Index b = 0; b < cache.config().sequences; ++b)
    for (Index g = 0; g < heads; ++g) stored.push_back(cache.stored(b, g));
  return stored;
}

Status check_projection(const char* name, const TensorView& t, const Extents& shape) {
  if (t.shape != shape)
    return refuse(fmt::format("{} has shape [{}], not [{}]", name, fmt::join(t.shape, ", "),
                              fmt::join(shape, ", ")));
  if (t.dtype != Dtype::f32 && t.dtype != Dtype::f16 && t.dtype != Dtype::bf16)
    return refuse(fmt::format("{} is {}; it must be f32, f16 or bf16", name, format(t.dtype).name));
  if (!t) return refuse(fmt::format("{} is null", name));
  return {};
}

TensorView rows_of(float* data, const AttentionShape& s, Index columns) {
  return {data,
          Dtype::f32,
          {s.batch, s.query_heads, s.rows, columns},
          {s.query_heads * s.rows * columns, s.rows * columns, columns, 1},
          0};
}

// s = (W_k c + rotary) . q = [c ; rotary] . [W_k^T q ; q of the rotary part], and W_v can be
// applied after the sum over the keys. So all heads share one key/value head, whose keys are [c ;
// rotary] and whose values are c.
Status attend_latent(const Attention& p, const PagedCache& cache, const UpProjection& projection,
                     const AttentionOutput& out, const Execution& how, AttendStored attend,
                     const void* context) {
  const AttentionShape& s = p.shape;
  const Index rank = cache.config().rank, rotary = cache.config().rotary,
              absorbed_dim = rank + rotary, plain = s.dim - rotary;
  if (Status status = check_projection("up_k", projection.up_k, {1, s.kv_heads, plain, rank});
      !status.ok())
    return status;
  if (Status status = check_projection("up_v", projection.up_v, {1, s.kv_heads, s.value_dim, rank});
      !status.ok())
    return status;
  const Index rows = s.batch * s.query_heads * s.rows;
  const auto queries = allocate_floats(rows * absorbed_dim), sums = allocate_floats(rows * rank);
  Attention absorbed = p;
  absorbed.shape.kv_heads = 1;
  absorbed.shape.dim = absorbed_dim;
  absorbed.shape.value_dim = rank;
  absorbed.q = rows_of(queries.get(), s, absorbed_dim);
  const TensorView sum = rows_of(sums.get(), s, rank);

  constexpr Index block = 16;
  const Index blocks = (s.rows + block - 1) / block;
  const ParallelRegion region(how.threads);
  struct Scratch {
    std::vector<float> rows, of_projection;
  };
  ScratchPool<Scratch> pool(s.batch * s.query_heads * blocks, how.threads, [&] {
    const auto floats = [](Index n) { return std::vector<float>(usize(n)); };
    return std::make_unique<Scratch>(
        Scratch{floats(block * std::max(s.dim, s.value_dim)), floats(rank)});
  });
  const auto load = ASSAY_OF_TARGET(load_query, how.target);
  const auto multiply = ASSAY_OF_TARGET(multiply_rows, how.target);
  const auto multiply_back = ASSAY_OF_TARGET(multiply_transposed, how.target);
  const auto store = ASSAY_OF_TARGET(store_output, how.target);
  // Calls body(b, h, first row, number of rows, first row counted over all heads).
  const auto for_blocks = [&](auto body) {
    parallel_for(s.batch * s.query_heads * blocks, how.threads, [&](Index task) {
      const Index head = task / blocks, row0 = task % blocks * block;
      body(head / s.query_heads, head % s.query_heads, row0, std::min(block, s.rows - row0),
           head * s.rows + row0);
    });
  };
  for_blocks([&](Index b, Index h, Index row0, Index count, Index at) {
    const auto scratch = pool.take();
    float* q = scratch->rows.data();
    float* to = queries.get() + at * absorbed_dim;
    for (Index i = 0; i < count; ++i) {
      load(p.q, b, h, row0 + i, s.dim, q + i * s.dim);
      std::copy_n(q + i * s.dim + plain, rotary, to + i * absorbed_dim + rank);
    }
    multiply(projection.up_k, h / s.group(), plain, rank, q, s.dim, count, to, absorbed_dim,
             scratch->of_projection.data());
  });
  if (Status status = attend(absorbed, stored_in(cache, 1), {sum, out.lse}, how, context);
      !status.ok())
    return status;
  for_blocks([&](Index b, Index h, Index row0, Index count, Index at) {
    const auto scratch = pool.take();
    float* o = scratch->rows.data();
    multiply_back(projection.up_v, h / s.group(), rank, s.value_dim, sums.get() + at * rank, count,
                  o, scratch->of_projection.data());
    for (Index i = 0; i < count; ++i)
      store(out.o, b, h, row0 + i, s.value_dim, o + i * s.value_dim);
  });
  return {};
}

}  // namespace

Status attention_cached(const Attention& problem, const Cache& cache,
                        const UpProjection& projection, const AttentionOutput& out,
                        const Execution& how) {
  return attention_cached(problem, cache, projection, out, how, forward_stored, nullptr);
}

Status attention_cached(const Attention& problem, const Cache& cache,
                        const UpProjection& projection, const AttentionOutput& out,
                        const Execution& how, AttendStored attend, const void* context) {
  const auto* paged = dynamic_cast<const PagedCache*>(&cache);
  if (!paged) return {StatusCode::unsupported, "cache was not made by Cache::create"};
  const CacheConfig& config = cache.config();
  const AttentionShape& s = problem.shape;
  for (auto [name, asked, held] : {std::tuple{"batch", s.batch, config.sequences},
                                   {"kv_heads", s.kv_heads, config.kv_heads},
                                   {"dim", s.dim, config.dim},
                                   {"value_dim", s.value_dim, config.value_dim}})
    if (asked != held)
      return refuse(fmt::format("{} = {}, but the cache has {}", name, asked, held));
  if (problem.k || problem.v) return refuse("k and v must be absent: the cache holds them");
  if (!problem.key_lengths.empty() || !problem.key_starts.empty())
    return refuse("key_lengths and key_starts must be absent: the cache knows them");
  try {
    Attention p = problem;
    p.shape.keys = 0;
    for (Index b = 0; b < s.batch; ++b) {
      p.key_lengths.push_back(cache.length(b));
      p.key_starts.push_back(cache.evicted(b));
      p.shape.keys = std::max(p.shape.keys, cache.length(b));
    }
    if (p.offset.empty())
      for (Index n : p.key_lengths) p.offset.push_back(n - s.rows);
    if (Status status = validate_attention(p, out, true); !status.ok()) return status;
    if (s.rows == 0) return {};
    if (config.kind == CacheKind::latent)
      return attend_latent(p, *paged, projection, out, how, attend, context);
    return attend(p, stored_in(*paged, s.kv_heads), out, how, context);
  } catch (const std::bad_alloc&) {
    return out_of_memory("scratch of attention over a cache");
  }
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
