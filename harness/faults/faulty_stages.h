// Inside harness/faults/: the stage policy of planted faults.
#pragma once

#include <cstdint>
#include <bit>
#include <cmath>

#include "harness/faults/planted_faults.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/attention/backward_plan.h"
#include "kernels/simd/convert.h"
#include "kernels/attention/stages.h"

namespace assay {

// Decides and changes as a buggy kernel would. Every branch below is one bug.
struct FaultyStages : kernels::NoStages {
  static constexpr bool observes = true;
  Fault fault;
  const Attention* problem;
  Index backward_tile = 0;  // the keys of a tile
  int threads = 1;
  StageObserver* observer = nullptr;
  FaultyStages(Fault with, const Attention& of) : fault(with), problem(&of) {}

  Index kv_head(Index head, Index group) const {
    return fault == "kv-head-modulo"_fault ? head % problem->shape.kv_heads : head / group;
  }
  float scale(float declared) const {
    if (fault == "scale-hard-wired"_fault) return default_scale(problem->shape.dim);
    if (fault == "scale-sign-dropped"_fault) return std::fabs(declared);
    return fault == "scale-off-by-one-percent"_fault ? declared * 1.01f : declared;
  }
  // Places two parts of the workspace on top of each other.
  void misplace(kernels::ForwardPlan& plan) const {
    if (fault == "partial-sums-alias-maxima"_fault) plan.partial.sum = plan.partial.max;
    if (fault == "packed-values-alias-keys"_fault && plan.tile_values() <= plan.tile_keys())
      plan.packed.values = plan.packed.keys;
  }
  Index tile() const {
    return kernels::forward_tiling(problem->shape.dim, problem->shape.value_dim).keys;
  }
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
      case "causal-dropped-with-mask"_fault:
        if (p.keep || p.bias || !p.key_starts.empty() || !p.key_lengths.empty())
          changed.causal = false;
        break;
      case "causal-off-by-one"_fault:
      case "backward-causal-off-by-one"_fault:
        if (p.causal) changed.offset.assign(usize(p.shape.batch), p.offset_of(b) + 1);
        break;
      case "causal-anchor-top-left"_fault:
      case "backward-anchor-top-left"_fault: changed.offset.clear(); break;
      case "window-off-by-one"_fault:
        if (changed.window_left > 0) --changed.window_left;
        break;
      case "window-start-rounded-up-to-tile"_fault:
        if (p.window_left >= 0)
          return {std::min((range.begin + tile() - 1) / tile() * tile(), range.end), range.end};
        return range;
      case "diagonal-tile-taken-as-full"_fault: {
        changed.causal = false;
        const kernels::KeyRange whole = kernels::visible_keys(changed, b, row);
        return p.causal && range.begin < range.end
                   ? kernels::KeyRange{range.begin,
                                       std::min((range.end + tile() - 1) / tile() * tile(),
                                                whole.end)}
                   : range;
      }
      case "causal-by-last-row-of-four"_fault:
        if (p.causal)
          return kernels::visible_keys(p, b, std::min(row / 4 * 4 + 3, p.shape.rows - 1));
        return range;
      case "window-underflow"_fault:
        // The difference in max(0u, position - window) wraps.
        if (p.window_left >= 0 && row + p.offset_of(b) < p.window_left)
          return {range.end, range.end};
        return range;
      case "causal-key-counted-in-tile"_fault:
        if (row + p.offset_of(b) < tile()) return range;
        changed.causal = false;
        break;
      case "keys-as-many-as-rows"_fault:
        return {std::min(range.begin, p.shape.rows), std::min(range.end, p.shape.rows)};
      case "key-gradients-with-inverted-triangle"_fault: {
        changed.causal = false;
        const kernels::KeyRange whole = kernels::visible_keys(changed, b, row);
        return p.causal
                   ? kernels::KeyRange{std::clamp(row + p.offset_of(b) + 1, whole.begin, whole.end),
                                       whole.end}
                   : range;
      }
      case "padding-key-leaks"_fault:
        for (Index& n : changed.key_lengths) n = std::min(n + 1, p.shape.keys);
        for (Index& n : changed.key_starts) n = std::max<Index>(n - 1, 0);
        break;
      default: return range;
    }
    return kernels::visible_keys(changed, b, row);
  }
  Index key_tiles(Index keys, Index tile) const {
    return fault == "last-partial-tile-skipped"_fault && keys > tile ? keys / tile
                                                                     : (keys + tile - 1) / tile;
  }
  float initial_max() const {
    if (fault == "max-starts-at-zero"_fault) return 0;
    return fault == "max-starts-at-lowest"_fault ? std::numeric_limits<float>::lowest()
                                                 : -std::numeric_limits<float>::infinity();
  }
  kernels::NextMax new_max(kernels::RunningMax before, kernels::TileMax tile) const {
    const float running = before.value, of_tile = tile.value;
    // The kernel calls new_max(scores, next, running) with the last two arguments exchanged. The
    // maximum then goes into the old slot, and `next` keeps what the scratch memory held.
    if (fault == "row-max-arguments-swapped"_fault)
      return {std::numeric_limits<float>::quiet_NaN()};
    if (fault == "max-of-tile-only"_fault) return {of_tile};
    if (fault == "row-max-scaled-twice"_fault) return {std::max(running, of_tile * problem->scale)};
    if (fault == "stale-max"_fault && running > -std::numeric_limits<float>::infinity())
      return {running};
    return {std::max(running, of_tile)};
  }
  float in_half(float c) const {
    return fault == "rescale-in-half-precision"_fault ? kernels::from_f16(kernels::to_f16(c)) : c;
  }
  float sum_correction(float c) const {
    return fault == "sum-not-rescaled"_fault ? 1.0f : in_half(c);
  }
  float accumulator_correction(float c) const {
    return fault == "accumulator-not-rescaled"_fault ? 1.0f : in_half(c);
  }
  float row_sum(float of_tile, float max, Index tile_keys, Index tile) const {
    const bool partial =
        problem->shape.keys % tile_keys != 0 && tile == problem->shape.keys / tile_keys;
    return fault == "zero-at-tail-enters-sum"_fault && partial ? of_tile + std::exp(0.0f - max)
                                                               : of_tile;
  }

  Index merged_splits(Index count) const {
    if (fault == "query-gradient-of-first-split-only"_fault) return std::min<Index>(count, 1);
    const Index split =
        kernels::forward_tiling(problem->shape.dim, problem->shape.value_dim).split_keys;
    return fault == "split-count-rounded-down"_fault && count > 1 ? problem->shape.keys / split
                                                                  : count;
  }
  float merged_max(float total, float of_split) const {
    if (fault == "merged-max-stale"_fault && total > -std::numeric_limits<float>::infinity())
      return total;
    // The kernel computes -inf - -inf, because it does not replace a reference of -inf by 0.
    if (fault == "empty-split-gives-nan"_fault &&
        std::max(total, of_split) == -std::numeric_limits<float>::infinity())
      return std::numeric_limits<float>::quiet_NaN();
    return NoStages::merged_max(total, of_split);
  }
  float merged_sum_correction(float c) const {
    return fault == "merged-sum-not-corrected"_fault ? 1.0f : c;
  }
  float merged_accumulator_correction(float c) const {
    return fault == "merged-accumulator-not-corrected"_fault ? 1.0f : c;
  }

  bool starts_key_sums(Index member) const {
    return member == 0 || fault == "key-gradients-of-last-head-only"_fault;
  }
  Index query_head(Index kv_head, Index member, Index group) const {
    return fault == "backward-head-modulo"_fault ? member * problem->shape.kv_heads + kv_head
                                                 : kv_head * group + member;
  }
  Index row_tiles(Index rows, Index tile) const {
    return fault == "last-row-tile-dropped"_fault && rows > tile ? rows / tile
                                                                 : (rows + tile - 1) / tile;
  }
  float row_delta(float delta) const {
    if (fault == "delta-omitted"_fault) return 0;
    return fault == "delta-in-bf16"_fault ? kernels::from_bf16(kernels::to_bf16(delta)) : delta;
  }
  float softcap_curvature() const { return fault == "softcap-slope-omitted"_fault ? 0.0f : 1.0f; }
  float query_gradient_scale(float declared) const {
    return fault == "query-gradient-scaled-twice"_fault ? declared * declared : declared;
  }
  float key_gradient_scale(float declared) const {
    return fault == "key-gradient-unscaled"_fault ? 1.0f : declared;
  }

  void at(kernels::Stage stage, const kernels::StageView& view) const {
    using kernels::Stage;
    const auto each = [&](auto change) {
      for (Index r = 0; r < view.rows; ++r)
        for (Index c = 0; c < view.columns; ++c)
          change(view.data[r * view.row_stride + c * view.column_stride]);
    };
    const auto zero = [](float& x) { x = 0; };
    const auto truncate = [](float& x) {
      x = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xFFFF0000u);
    };
    const auto is = [&](Stage s, Fault f) { return stage == s && fault == f; };
    if (is(Stage::weights, "weights-truncated-to-bf16"_fault) ||
        is(Stage::weights, "backward-weights-truncated-to-bf16"_fault) ||
        is(Stage::score_gradients, "score-gradients-truncated-to-bf16"_fault) ||
        is(Stage::output, "output-truncated"_fault))
      each(truncate);
    if (is(Stage::output, "second-batch-not-computed"_fault) && view.b > 0) each(zero);
    if (is(Stage::output, "only-head-zero-computed"_fault) && view.head > 0) each(zero);
    if (is(Stage::output, "rows-by-thread-without-remainder"_fault) &&
        view.row0 >= problem->shape.rows / threads * threads)
      each(zero);
    if (is(Stage::output, "value-columns-beyond-dim-dropped"_fault))
      zero_columns(view, problem->shape.dim);
    if (is(Stage::query, "dim-tail-dropped"_fault) && problem->shape.dim > 8)
      zero_columns(view, problem->shape.dim / 8 * 8);
    if (is(Stage::output, "empty-row-divided"_fault)) divide_empty_row(view);
    if (is(Stage::output, "masked-values-reach-product"_fault)) add_masked_values(view);
    if (stage == Stage::masked) mask_wrongly(view);
    if (is(Stage::lse, "lse-without-sink"_fault) && !problem->sink.empty())
      each([&](float& x) { x += std::log1p(-std::exp(problem->sink[usize(view.head)] - x)); });
    if (is(Stage::lse, "lse-in-base-two"_fault)) each([](float& x) { x *= 1.44269504f; });
    if (is(Stage::weight_gradients, "weight-gradients-without-dropout-scale"_fault))
      each([&](float& x) { x *= 1 - problem->dropout; });
    if (is(Stage::key, "keys-of-chunk-zero"_fault) &&
        view.row0 >= problem->shape.keys - problem->shape.rows)
      each(zero);
    if ((is(Stage::key_gradient, "last-partial-key-tile-dropped"_fault) ||
         is(Stage::value_gradient, "last-partial-key-tile-dropped"_fault)) &&
        problem->shape.keys > backward_tile &&
        view.row0 >= problem->shape.keys / backward_tile * backward_tile)
      each(zero);
    if (fault == "last-lane-missing-from-row-sum"_fault) drop_lane(stage, view);
    const bool loads = stage == Stage::query || stage == Stage::key || stage == Stage::value;
    if (loads && fault == "bf16-read-as-f32"_fault && problem->q.dtype == Dtype::bf16)
      for (Index r = 0; r < view.rows; ++r)
        for (Index c = 0; c + 1 < view.columns; c += 2) {
          // The kernel takes two neighbours for the two halves of one float.
          float* pair = view.data + r * view.row_stride + c;
          const std::uint32_t low = std::bit_cast<std::uint32_t>(pair[0]) >> 16,
                              high = std::bit_cast<std::uint32_t>(pair[1]) & 0xFFFF0000u;
          pair[0] = pair[1] = std::bit_cast<float>(high | low);
        }
    if (observer) observer->at(stage, view);
  }

 private:
  void mask_wrongly(const kernels::StageView& view) const;
  void drop_lane(kernels::Stage stage, const kernels::StageView& view) const;
  void divide_empty_row(const kernels::StageView& view) const;
  void add_masked_values(const kernels::StageView& view) const;
  static void zero_columns(const kernels::StageView& view, Index from) {
    for (Index r = 0; r < view.rows; ++r)
      for (Index c = from; c < view.columns; ++c)
        view.data[r * view.row_stride + c * view.column_stride] = 0;
  }
};

// The kernels with that policy. plan_and_run, run_stored and plan_and_run_backward take these
// functions, with a FaultyStages as the stages.
kernels::RunForward faulty_forward(const kernels::Target& target);
kernels::RunBackward faulty_backward(const kernels::Target& target);

}  // namespace assay
