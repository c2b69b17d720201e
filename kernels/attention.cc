#include "kernels/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cc"
#include <hwy/foreach_target.h>
// After foreach_target, which redefines the target on each of its passes.
#include "kernels/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_wave(const ForwardPlan& plan, const void*) { forward_wave(plan, NoStages{}); }
const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <fmt/format.h>
#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <new>

#include "kernels/validate.h"

namespace assay::kernels {

HWY_EXPORT(run_wave);
HWY_EXPORT(target_name);

ForwardTiling forward_tiling(Index dim, Index value_dim) {
  // A tile of K and V in fp32 stays within 128 KiB, a sixth of the L2 that is tiled for; below 64 keys the
  // per-tile work (row maxima, corrections) would show.
  return {96, dim + value_dim <= 160 ? 128 : 64};
}

std::string attention_forward_target() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

Status plan_and_run(const Attention& problem, const AttentionOutput& out, int threads, RunWave run, const void* stages) {
  if (Status status = validate_attention(problem, out); !status.ok()) return status;
  const AttentionShape& s = problem.shape;
  if (s.batch == 0 || s.rows == 0) return {};
  ForwardPlan plan;
  plan.problem = &problem;
  plan.out = out;
  plan.tiling = forward_tiling(s.dim, s.value_dim);
  plan.threads = threads;
  plan.tiles = (s.keys + plan.tiling.keys - 1) / plan.tiling.keys;
  plan.padded_value_dim = (s.value_dim + panel_alignment - 1) / panel_alignment * panel_alignment;

  const Index group_floats = plan.tiles * plan.tiling.keys * (s.dim + plan.padded_value_dim);
  const Index all_groups = s.batch * s.kv_heads;
  constexpr Index workspace_floats = (Index{512} << 20) / 4;
  const Index wave = std::clamp<Index>(workspace_floats / std::max<Index>(group_floats, 1), 1, all_groups);
  try {
    auto keys = hwy::AllocateAligned<float>(static_cast<std::size_t>(std::max<Index>(1, wave * plan.tiles * plan.tiling.keys * s.dim)));
    auto values = hwy::AllocateAligned<float>(static_cast<std::size_t>(std::max<Index>(1, wave * plan.tiles * plan.tiling.keys * plan.padded_value_dim)));
    auto flags = hwy::AllocateAligned<unsigned char>(static_cast<std::size_t>(std::max<Index>(1, wave * plan.tiles)));
    if (!keys || !values || !flags) return {StatusCode::memory_allocation_failed, fmt::format("a workspace of {} bytes", 4 * wave * group_floats)};
    plan.packed = {keys.get(), values.get(), flags.get()};
    for (plan.first_group = 0; plan.first_group < all_groups; plan.first_group += plan.groups) {
      plan.groups = std::min(wave, all_groups - plan.first_group);
      run(plan, stages);
    }
  } catch (const std::bad_alloc&) {
    return {StatusCode::memory_allocation_failed, "scratch of a row block"};
  }
  return {};
}

Status attention_forward(const Attention& problem, const AttentionOutput& out, int threads) {
  return plan_and_run(problem, out, threads, HWY_DYNAMIC_DISPATCH(run_wave), nullptr);
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
