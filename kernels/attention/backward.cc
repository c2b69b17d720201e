#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/backward.cc"
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/attention/backward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_backward(const BackwardPlan& plan, const void*) { backward(plan, NoStages{}); }

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

HWY_EXPORT(run_backward);

BackwardTiling backward_tiling(Index dim, Index value_dim) {
  // 96 is a multiple of the register blocks and of the panels on every target. A split holds K
  // twice, V, dK and dV in fp32 within 768 KiB of L2.
  constexpr Index tile = 96, split_floats = (Index{768} << 10) / 4;
  const Index rows = dim + value_dim <= 512 ? tile : tile / 2;
  return {rows, tile,
          std::clamp<Index>(split_floats / (3 * dim + 2 * value_dim) / tile, 1, 6) * tile};
}

Status plan_and_run_backward(const Attention& problem, const AttentionBackwardInput& in,
                             const AttentionGradients& out, int threads, RunBackward run,
                             const void* stages) {
  if (Status status = validate_backward(problem, in, out); !status.ok()) return status;
  const AttentionShape& s = problem.shape;
  BackwardPlan plan;
  plan.problem = &problem;
  plan.in = in;
  plan.out = out;
  plan.tiling = backward_tiling(s.dim, s.value_dim);
  plan.threads = threads;
  const auto padded = [](Index columns) {
    return (columns + panel_alignment - 1) / panel_alignment * panel_alignment;
  };
  plan.padded_dim = padded(s.dim);
  plan.padded_value_dim = padded(s.value_dim);
  plan.row_tiles = (s.rows + plan.tiling.rows - 1) / plan.tiling.rows;
  plan.splits = (s.keys + plan.tiling.split_keys - 1) / plan.tiling.split_keys;

  const Index groups = s.batch * s.kv_heads, split_tiles = s.group() * plan.row_tiles,
              split_floats = split_tiles * plan.tile_floats();
  constexpr Index workspace_floats = (Index{256} << 20) / 4;
  const bool partial = plan.splits > 1;
  const Index fitting = workspace_floats / std::max<Index>(split_floats, 1);  // how many splits fit
  plan.wave_splits = !partial ? plan.splits : std::clamp<Index>(fitting, 1, plan.splits);
  plan.wave_groups =
      !partial ? groups : std::clamp<Index>(fitting / plan.splits, 1, std::max<Index>(groups, 1));
  const Index tiles = partial ? plan.wave_groups * plan.wave_splits * split_tiles : 0;
  const Index totals = plan.wave_splits < plan.splits ? split_floats : 0;
  try {
    const ParallelRegion region(threads);
    const auto delta = allocate_floats(s.batch * s.query_heads * s.rows),
               partials = allocate_floats(tiles * plan.tile_floats()),
               total = allocate_floats(totals);
    const auto written = allocate_aligned<unsigned char>(tiles);
    plan.delta = delta.get();
    plan.partials = partial ? partials.get() : nullptr;
    plan.written = written.get();
    plan.totals = total.get();
    run(plan, stages);
  } catch (const std::bad_alloc&) {
    return out_of_memory("a workspace of {} bytes, or the scratch of a split",
                         4 * (tiles * plan.tile_floats() + totals));
  }
  return {};
}

Status attention_backward(const Attention& problem, const AttentionBackwardInput& in,
                          const AttentionGradients& out, const Execution& how) {
  const RunBackward run = !computes_gradients_in_pairs(how.target, problem, in.d_o.dtype)
                              ? ASSAY_OF_TARGET(run_backward, how.target)
                          : has_amx(how.target) ? backward_of_amx()
                                                : backward_of_pairs();
  return plan_and_run_backward(problem, in, out, how.threads, run, nullptr);
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
