// One more instantiation of the kernel, whose policy picks its fault at run time.
#include "kernels/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "harness/planted_faults.cc"
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)  // the best target of any machine, and a baseline
#endif
#include <hwy/foreach_target.h>

#include "kernels/attention-inl.h"

#ifndef ASSAY_HARNESS_PLANTED_FAULTS_ONCE
#define ASSAY_HARNESS_PLANTED_FAULTS_ONCE
#include <bit>

#include "harness/planted_faults.h"

namespace assay {

// Decides and changes as a buggy kernel would; every branch below is one bug.
struct FaultyStages : kernels::NoStages {
  static constexpr bool observes = true;
  Fault fault;
  const Attention* problem;

  Index kv_head(Index head, Index group) const { return fault == Fault::kv_head_modulo ? head % problem->shape.kv_heads : head / group; }
  float scale(float declared) const { return fault == Fault::scale_off_by_one_percent ? declared * 1.01f : declared; }
  kernels::KeyRange visible(const Attention& p, Index b, Index row, kernels::KeyRange range) const {
    Attention changed;
    changed.shape = p.shape;
    changed.causal = p.causal;
    changed.offset = p.offset;
    changed.window_left = p.window_left;
    changed.window_right = p.window_right;
    changed.key_lengths = p.key_lengths;
    changed.key_starts = p.key_starts;
    switch (fault) {
      case Fault::causal_dropped_with_mask:
        if (p.keep || p.bias || !p.key_starts.empty() || !p.key_lengths.empty()) changed.causal = false;
        break;
      case Fault::causal_off_by_one:
        if (p.causal) changed.offset.assign(static_cast<std::size_t>(p.shape.batch), p.offset_of(b) + 1);
        break;
      case Fault::causal_anchor_top_left: changed.offset.clear(); break;
      case Fault::window_off_by_one:
        if (changed.window_left > 0) --changed.window_left;
        break;
      case Fault::padding_key_leaks:
        for (Index& n : changed.key_lengths) n = std::min(n + 1, p.shape.keys);
        for (Index& n : changed.key_starts) n = std::max<Index>(n - 1, 0);
        break;
      default: return range;
    }
    return kernels::visible_keys(changed, b, row);
  }
  Index key_tiles(Index keys, Index tile) const { return fault == Fault::last_partial_tile_skipped && keys > tile ? keys / tile : (keys + tile - 1) / tile; }
  float initial_max() const { return fault == Fault::max_starts_at_zero ? 0.0f : -std::numeric_limits<float>::infinity(); }
  float new_max(float running, float of_tile) const {
    // new_max(scores, next, running) called as (scores, running, next): the maximum lands in the old slot and
    // `next` stays what the scratch held.
    if (fault == Fault::row_max_arguments_swapped) return std::numeric_limits<float>::quiet_NaN();
    if (fault == Fault::max_of_tile_only) return of_tile;
    if (fault == Fault::stale_max && running > -std::numeric_limits<float>::infinity()) return running;
    return std::max(running, of_tile);
  }
  float sum_correction(float c) const { return fault == Fault::sum_not_rescaled ? 1.0f : c; }
  float accumulator_correction(float c) const { return fault == Fault::accumulator_not_rescaled ? 1.0f : c; }
  float row_sum(float of_tile, float max, Index tile_keys, Index tile) const {
    const bool partial = problem->shape.keys % tile_keys != 0 && tile == problem->shape.keys / tile_keys;
    return fault == Fault::zero_at_tail_enters_sum && partial ? of_tile + std::exp(0.0f - max) : of_tile;
  }
  void at(kernels::Stage stage, const kernels::StageView& view) const {
    using kernels::Stage;
    const auto each = [&](auto change) {
      for (Index r = 0; r < view.rows; ++r)
        for (Index c = 0; c < view.columns; ++c) change(view.data[r * view.row_stride + c * view.column_stride]);
    };
    const auto truncate = [](float& x) { x = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xFFFF0000u); };
    if (stage == Stage::weights && fault == Fault::weights_truncated_to_bf16) each(truncate);
    if (stage == Stage::output && fault == Fault::output_truncated) each(truncate);
    if (stage == Stage::output && fault == Fault::second_batch_not_computed && view.b > 0) each([](float& x) { x = 0; });
    if (stage == Stage::lse && fault == Fault::lse_in_base_two) each([](float& x) { x *= 1.44269504f; });
    const bool loads = stage == Stage::query || stage == Stage::key || stage == Stage::value;
    if (loads && fault == Fault::bf16_read_as_f32 && problem->q.dtype == Dtype::bf16)
      for (Index r = 0; r < view.rows; ++r)
        for (Index c = 0; c + 1 < view.columns; c += 2) {
          // Two neighbours taken for the halves of one float.
          float* pair = view.data + r * view.row_stride + c;
          const std::uint32_t low = std::bit_cast<std::uint32_t>(pair[0]) >> 16, high = std::bit_cast<std::uint32_t>(pair[1]) & 0xFFFF0000u;
          pair[0] = pair[1] = std::bit_cast<float>(high | low);
        }
  }
};

}  // namespace assay
#endif

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_faulty_wave(const ForwardPlan& plan, const void* stages) { forward_wave(plan, *static_cast<const FaultyStages*>(stages)); }
const char* faulty_target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace assay {
namespace kernels {
HWY_EXPORT(run_faulty_wave);
HWY_EXPORT(faulty_target_name);
}  // namespace kernels

std::span<const PlantedFault> planted_faults() {
  static constexpr PlantedFault faults[] = {
      {Fault::row_max_arguments_swapped, "row-max-arguments-swapped", "F11", "the arguments of the row maximum are swapped: the next maximum is never written"},
      {Fault::accumulator_not_rescaled, "accumulator-not-rescaled", "F12", "the accumulator keeps its scale when the maximum moves"},
      {Fault::sum_not_rescaled, "sum-not-rescaled", "F12", "the row sum keeps its scale when the maximum moves"},
      {Fault::max_starts_at_zero, "max-starts-at-zero", "F11", "the running maximum starts at 0 instead of -inf"},
      {Fault::max_of_tile_only, "max-of-tile-only", "F11", "the new maximum is that of the tile, not combined with the running one"},
      {Fault::stale_max, "stale-max", "F11", "the maximum of the first tile is kept"},
      {Fault::causal_dropped_with_mask, "causal-dropped-with-mask", "F05", "a mask or padding switches causality off"},
      {Fault::causal_off_by_one, "causal-off-by-one", "F01", "row i sees key i + 1"},
      {Fault::causal_anchor_top_left, "causal-anchor-top-left", "F01", "the offset of causality and windows is ignored"},
      {Fault::window_off_by_one, "window-off-by-one", "F02", "a left window is one key short"},
      {Fault::last_partial_tile_skipped, "last-partial-tile-skipped", "F16", "the number of key tiles is rounded down"},
      {Fault::padding_key_leaks, "padding-key-leaks", "F30", "one key of padding takes part, on either side"},
      {Fault::kv_head_modulo, "kv-head-modulo", "F28", "query head h reads head h % Hkv"},
      {Fault::scale_off_by_one_percent, "scale-off-by-one-percent", "F42", "the scale of the scores is 1% too large"},
      {Fault::zero_at_tail_enters_sum, "zero-at-tail-enters-sum", "F26", "a padded key of the last tile enters the row sum with score 0"},
      {Fault::weights_truncated_to_bf16, "weights-truncated-to-bf16", "F15", "the weights are cast to bf16 by truncation before P V"},
      {Fault::bf16_read_as_f32, "bf16-read-as-f32", "F49", "bf16 inputs are read as fp32"},
      {Fault::lse_in_base_two, "lse-in-base-two", "F14", "LSE is returned as a logarithm to base 2"},
      {Fault::second_batch_not_computed, "second-batch-not-computed", "F18", "only batch 0 is computed"},
      {Fault::output_truncated, "output-truncated", "F39", "the output is cast to bf16 by truncation"},
  };
  return faults;
}

kernels::Status run_planted_fault(const PlantedFault& fault, const Attention& problem, const AttentionOutput& out, int threads) {
  using namespace kernels;
  FaultyStages stages;
  stages.fault = fault.fault;
  stages.problem = &problem;
  return plan_and_run(problem, out, threads, HWY_DYNAMIC_DISPATCH(run_faulty_wave), &stages);
}

std::string_view planted_fault_target() {
  using namespace kernels;
  return HWY_DYNAMIC_DISPATCH(faulty_target_name)();
}

}  // namespace assay
#endif  // HWY_ONCE
