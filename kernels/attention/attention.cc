#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention.cc"
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/attention/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

extern template class Packer<NoStages>;  // stored_rows.cc

// attention_splits.cc, so that each half compiles in half of the time
void run_forward_by_splits(ForwardPlan& plan);

void run_forward(ForwardPlan& plan, const void*) {
  if (plan.by_split) run_forward_by_splits(plan);
  else forward_by_rows<Operands::floats>(plan, NoStages{});
}
const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "kernels/attention/attention_pairs.h"
#include "kernels/simd/bf16_dots.h"
#include "kernels/simd/by_target.h"
#include "kernels/validate.h"

namespace assay::kernels {

HWY_EXPORT(run_forward);
HWY_EXPORT(target_name);

namespace {

ForwardTiling tiling_of(Index dim, Index value_dim, Operands operands) {
  // A packed tile of K and V stays within 128 KiB, which is a sixth of the L2 cache for which the
  // tiles are chosen. With fewer than 64 keys, the work that every tile causes (row maxima,
  // corrections) would cost noticeable time.
  return {96, dim + value_dim <= 160 * elements_of_a_word(operands) ? 128 : 64, 512};
}

}  // namespace

ForwardTiling forward_tiling(Index dim, Index value_dim) {
  return tiling_of(dim, value_dim, Operands::floats);
}

ForwardTiling forward_tiling_of_pairs(Index dim, Index value_dim) {
  return tiling_of(dim, value_dim, Operands::pairs);
}

bool computes_in_pairs(const Target& target, Dtype q, Dtype stored_k, Dtype stored_v) {
  return has_bf16_dots(target) && q == Dtype::bf16 && stored_k == Dtype::bf16 &&
         stored_v == Dtype::bf16;
}

bool computes_gradients_in_pairs(const Target& target, const Attention& p, Dtype d_o) {
  return computes_in_pairs(target, p.q.dtype, p.k.dtype, p.v.dtype) && d_o == Dtype::bf16;
}

std::string attention_forward_target(const Target& target) {
  return has_bf16_dots(target) ? target.name() : ASSAY_OF_TARGET(target_name, target)();
}

StoredKeyValues stored_key_values(const Attention& p, Index b, Index g) {
  const auto rows = [&](const TensorView& t, Index columns) {
    const Index bytes = t.dtype == Dtype::f32 ? 4 : 2;
    StoredRows stored;
    stored.columns = {static_cast<const std::byte*>(t.data) + t.at(b, g, 0, 0) * bytes, t.dtype,
                      columns, t.stride[3], t.stride[2] * bytes};
    stored.end = p.shape.keys;
    return stored;
  };
  return {rows(p.k, p.shape.dim), rows(p.v, p.shape.value_dim)};
}

namespace {

// Calls run(stored) with K and V of a valid problem.
template <class Run>
Status with_stored(const Attention& problem, const AttentionOutput& out, const Run& run) {
  if (Status status = validate_attention(problem, out); !status.ok()) return status;
  const AttentionShape& s = problem.shape;
  try {
    std::vector<StoredKeyValues> stored;
    stored.reserve(usize(s.batch * s.kv_heads));
    for (Index b = 0; b < s.batch; ++b)
      for (Index g = 0; g < s.kv_heads; ++g) stored.push_back(stored_key_values(problem, b, g));
    return run(std::move(stored));
  } catch (const std::bad_alloc&) {
    return out_of_memory("the list of key/value heads");
  }
}

}  // namespace

Status plan_and_run(const Attention& problem, const AttentionOutput& out, int threads,
                    RunForward run, const void* stages) {
  return with_stored(problem, out, [&](std::vector<StoredKeyValues> stored) {
    return run_stored(problem, std::move(stored), out, threads, run, stages);
  });
}

Status run_stored(const Attention& problem, std::vector<StoredKeyValues> stored,
                  const AttentionOutput& out, int threads, RunForward run, const void* stages,
                  Operands operands) {
  const AttentionShape& s = problem.shape;
  if (s.batch == 0 || s.rows == 0) return {};
  ForwardPlan plan;
  plan.problem = &problem;
  plan.out = out;
  plan.operands = operands;
  plan.tiling = tiling_of(s.dim, s.value_dim, operands);
  plan.threads = threads;
  plan.stored = std::move(stored);
  plan.tiles = (s.keys + plan.tiling.keys - 1) / plan.tiling.keys;
  plan.splits = (s.keys + plan.tiling.split_keys - 1) / plan.tiling.split_keys;
  plan.padded_value_dim = (s.value_dim + panel_alignment - 1) / panel_alignment * panel_alignment;
  // If all rows fit into one block of rows, packing K and V into memory gains nothing.
  plan.by_split = s.rows <= plan.tiling.rows && plan.stacked_rows() <= plan.tiling.rows;

  const Index states = plan.splits * plan.stacked_rows();
  const Index key_floats = plan.tiles * plan.tile_keys(),
              value_floats = plan.tiles * plan.tile_values();
  const Index group_floats =
      plan.by_split ? states * (2 + plan.padded_value_dim) : key_floats + value_floats;
  const Index all_groups = s.batch * s.kv_heads;
  constexpr Index workspace_floats = (Index{512} << 20) / 4;
  const Index wave = plan.wave_groups =
      std::clamp<Index>(workspace_floats / std::max<Index>(group_floats, 1), 1, all_groups);
  try {
    const ParallelRegion region(threads);
    const auto allocate = [&]<class T>(T*& to, Index count) {
      auto p = allocate_aligned<T>(wave * count);
      to = p.get();
      return p;
    };
    const auto block_0 = allocate(plan.by_split ? plan.partial.max : plan.packed.keys,
                                  plan.by_split ? states : key_floats);
    const auto block_1 = allocate(plan.by_split ? plan.partial.accumulator : plan.packed.values,
                                  plan.by_split ? states * plan.padded_value_dim : value_floats);
    const auto sums = allocate(plan.partial.sum, plan.by_split ? states : 0);
    const auto flags = allocate(plan.packed.values_not_finite, plan.by_split ? 0 : plan.tiles);
    run(plan, stages);
  } catch (const std::bad_alloc&) {
    return out_of_memory("a workspace of {} bytes", 4 * wave * group_floats);
  }
  return {};
}

Status forward_stored(const Attention& problem, std::vector<StoredKeyValues> stored,
                      const AttentionOutput& out, const Execution& how, const void*) {
  // All heads of a cache have one dtype.
  const Dtype k = stored.empty() ? Dtype::f32 : stored[0].keys.columns.dtype,
              v = stored.empty() ? Dtype::f32 : stored[0].values.columns.dtype;
  if (computes_in_pairs(how.target, problem.q.dtype, k, v)) {
    const bool amx = has_amx(how.target);
    return run_stored(problem, std::move(stored), out, how.threads,
                      amx ? forward_of_amx() : forward_of_pairs(), nullptr,
                      amx ? Operands::amx : Operands::pairs);
  }
  return run_stored(problem, std::move(stored), out, how.threads,
                    ASSAY_OF_TARGET(run_forward, how.target), nullptr);
}

Status attention_forward(const Attention& problem, const AttentionOutput& out,
                         const Execution& how) {
  return with_stored(problem, out, [&](std::vector<StoredKeyValues> stored) {
    return forward_stored(problem, std::move(stored), out, how, nullptr);
  });
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
