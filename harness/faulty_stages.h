// The stage policy of planted faults.
#pragma once

#include <bit>
#include <cmath>

#include "harness/planted_faults.h"
#include "kernels/attention_plan.h"
#include "kernels/backward_plan.h"
#include "kernels/convert.h"
#include "kernels/stages.h"

namespace assay {

// Decides and changes as a buggy kernel would; every branch below is one bug.
struct FaultyStages : kernels::NoStages {
  static constexpr bool observes = true;
  Fault fault;
  const Attention* problem;
  Index backward_tile = 0;  // of keys
  int threads = 1;
  StageObserver* observer = nullptr;
  FaultyStages(Fault with, const Attention& of) : fault(with), problem(&of) {}

  Index kv_head(Index head, Index group) const { return fault == Fault::kv_head_modulo ? head % problem->shape.kv_heads : head / group; }
  float scale(float declared) const {
    if (fault == Fault::scale_hard_wired) return default_scale(problem->shape.dim);
    return fault == Fault::scale_off_by_one_percent ? declared * 1.01f : declared;
  }
  // Of the workspace.
  void misplace(kernels::ForwardPlan& plan) const {
    if (fault == Fault::partial_sums_alias_maxima) plan.partial.sum = plan.partial.max;
    if (fault == Fault::packed_values_alias_keys && plan.tile_values() <= plan.tile_keys()) plan.packed.values = plan.packed.keys;
  }
  Index tile() const { return kernels::forward_tiling(problem->shape.dim, problem->shape.value_dim).keys; }
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
      case Fault::backward_causal_off_by_one:
        if (p.causal) changed.offset.assign(static_cast<std::size_t>(p.shape.batch), p.offset_of(b) + 1);
        break;
      case Fault::causal_anchor_top_left:
      case Fault::backward_anchor_top_left: changed.offset.clear(); break;
      case Fault::window_off_by_one:
        if (changed.window_left > 0) --changed.window_left;
        break;
      case Fault::window_start_rounded_up_to_tile:
        if (p.window_left >= 0) return {std::min((range.begin + tile() - 1) / tile() * tile(), range.end), range.end};
        return range;
      case Fault::diagonal_tile_taken_as_full: {
        changed.causal = false;
        const kernels::KeyRange whole = kernels::visible_keys(changed, b, row);
        return p.causal && range.begin < range.end ? kernels::KeyRange{range.begin, std::min((range.end + tile() - 1) / tile() * tile(), whole.end)} : range;
      }
      case Fault::causal_by_last_row_of_four:
        if (p.causal) return kernels::visible_keys(p, b, std::min(row / 4 * 4 + 3, p.shape.rows - 1));
        return range;
      case Fault::window_underflow:
        // max(0u, position - window): the difference wraps.
        if (p.window_left >= 0 && row + p.offset_of(b) < p.window_left) return {range.end, range.end};
        return range;
      case Fault::causal_key_counted_in_tile:
        if (row + p.offset_of(b) < tile()) return range;
        changed.causal = false;
        break;
      case Fault::keys_as_many_as_rows: return {std::min(range.begin, p.shape.rows), std::min(range.end, p.shape.rows)};
      case Fault::key_gradients_with_inverted_triangle: {
        changed.causal = false;
        const kernels::KeyRange whole = kernels::visible_keys(changed, b, row);
        return p.causal ? kernels::KeyRange{std::clamp(row + p.offset_of(b) + 1, whole.begin, whole.end), whole.end} : range;
      }
      case Fault::padding_key_leaks:
        for (Index& n : changed.key_lengths) n = std::min(n + 1, p.shape.keys);
        for (Index& n : changed.key_starts) n = std::max<Index>(n - 1, 0);
        break;
      default: return range;
    }
    return kernels::visible_keys(changed, b, row);
  }
  Index key_tiles(Index keys, Index tile) const { return fault == Fault::last_partial_tile_skipped && keys > tile ? keys / tile : (keys + tile - 1) / tile; }
  float initial_max() const {
    if (fault == Fault::max_starts_at_zero) return 0;
    return fault == Fault::max_starts_at_lowest ? std::numeric_limits<float>::lowest() : -std::numeric_limits<float>::infinity();
  }
  float new_max(float running, float of_tile) const {
    // new_max(scores, next, running) called as (scores, running, next): the maximum lands in the old slot and
    // `next` stays what the scratch held.
    if (fault == Fault::row_max_arguments_swapped) return std::numeric_limits<float>::quiet_NaN();
    if (fault == Fault::max_of_tile_only) return of_tile;
    if (fault == Fault::row_max_scaled_twice) return std::max(running, of_tile * problem->scale);
    if (fault == Fault::stale_max && running > -std::numeric_limits<float>::infinity()) return running;
    return std::max(running, of_tile);
  }
  float in_half(float c) const { return fault == Fault::rescale_in_half_precision ? kernels::from_f16(kernels::to_f16(c)) : c; }
  float sum_correction(float c) const { return fault == Fault::sum_not_rescaled ? 1.0f : in_half(c); }
  float accumulator_correction(float c) const { return fault == Fault::accumulator_not_rescaled ? 1.0f : in_half(c); }
  float row_sum(float of_tile, float max, Index tile_keys, Index tile) const {
    const bool partial = problem->shape.keys % tile_keys != 0 && tile == problem->shape.keys / tile_keys;
    return fault == Fault::zero_at_tail_enters_sum && partial ? of_tile + std::exp(0.0f - max) : of_tile;
  }

  Index merged_splits(Index count) const {
    if (fault == Fault::query_gradient_of_first_split_only) return std::min<Index>(count, 1);
    const Index split = kernels::forward_tiling(problem->shape.dim, problem->shape.value_dim).split_keys;
    return fault == Fault::split_count_rounded_down && count > 1 ? problem->shape.keys / split : count;
  }
  float merged_max(float total, float of_split) const {
    if (fault == Fault::merged_max_stale && total > -std::numeric_limits<float>::infinity()) return total;
    // -inf - -inf, which no reference of 0 avoids.
    if (fault == Fault::empty_split_gives_nan && std::max(total, of_split) == -std::numeric_limits<float>::infinity())
      return std::numeric_limits<float>::quiet_NaN();
    return NoStages::merged_max(total, of_split);
  }
  float merged_sum_correction(float c) const { return fault == Fault::merged_sum_not_corrected ? 1.0f : c; }
  float merged_accumulator_correction(float c) const { return fault == Fault::merged_accumulator_not_corrected ? 1.0f : c; }

  bool starts_key_sums(Index member) const { return member == 0 || fault == Fault::key_gradients_of_last_head_only; }
  Index query_head(Index kv_head, Index member, Index group) const {
    return fault == Fault::backward_head_modulo ? member * problem->shape.kv_heads + kv_head : kv_head * group + member;
  }
  Index row_tiles(Index rows, Index tile) const { return fault == Fault::last_row_tile_dropped && rows > tile ? rows / tile : (rows + tile - 1) / tile; }
  float row_delta(float delta) const {
    if (fault == Fault::delta_omitted) return 0;
    return fault == Fault::delta_in_bf16 ? kernels::from_bf16(kernels::to_bf16(delta)) : delta;
  }
  float softcap_curvature() const { return fault == Fault::softcap_slope_omitted ? 0.0f : 1.0f; }
  float query_gradient_scale(float declared) const { return fault == Fault::query_gradient_scaled_twice ? declared * declared : declared; }
  float key_gradient_scale(float declared) const { return fault == Fault::key_gradient_unscaled ? 1.0f : declared; }

  void at(kernels::Stage stage, const kernels::StageView& view) const {
    using kernels::Stage;
    const auto each = [&](auto change) {
      for (Index r = 0; r < view.rows; ++r)
        for (Index c = 0; c < view.columns; ++c) change(view.data[r * view.row_stride + c * view.column_stride]);
    };
    const auto zero = [](float& x) { x = 0; };
    const auto truncate = [](float& x) { x = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xFFFF0000u); };
    const auto is = [&](Stage s, Fault f) { return stage == s && fault == f; };
    if (is(Stage::weights, Fault::weights_truncated_to_bf16) || is(Stage::weights, Fault::backward_weights_truncated_to_bf16) ||
        is(Stage::score_gradients, Fault::score_gradients_truncated_to_bf16) || is(Stage::output, Fault::output_truncated))
      each(truncate);
    if (is(Stage::output, Fault::second_batch_not_computed) && view.b > 0) each(zero);
    if (is(Stage::output, Fault::only_head_zero_computed) && view.head > 0) each(zero);
    if (is(Stage::output, Fault::rows_by_thread_without_remainder) && view.row0 >= problem->shape.rows / threads * threads) each(zero);
    if (is(Stage::output, Fault::value_columns_beyond_dim_dropped)) zero_columns(view, problem->shape.dim);
    if (is(Stage::query, Fault::dim_tail_dropped) && problem->shape.dim > 8) zero_columns(view, problem->shape.dim / 8 * 8);
    if (is(Stage::output, Fault::empty_row_divided)) divide_empty_row(view);
    if (is(Stage::output, Fault::masked_values_reach_product)) add_masked_values(view);
    if (stage == Stage::masked) mask_wrongly(view);
    if (is(Stage::lse, Fault::lse_without_sink) && !problem->sink.empty())
      each([&](float& x) { x += std::log1p(-std::exp(problem->sink[static_cast<std::size_t>(view.head)] - x)); });
    if (is(Stage::lse, Fault::lse_in_base_two)) each([](float& x) { x *= 1.44269504f; });
    if (is(Stage::weight_gradients, Fault::weight_gradients_without_dropout_scale)) each([&](float& x) { x *= 1 - problem->dropout; });
    if (is(Stage::key, Fault::keys_of_chunk_zero) && view.row0 >= problem->shape.keys - problem->shape.rows) each(zero);
    if ((is(Stage::key_gradient, Fault::last_partial_key_tile_dropped) || is(Stage::value_gradient, Fault::last_partial_key_tile_dropped)) &&
        problem->shape.keys > backward_tile && view.row0 >= problem->shape.keys / backward_tile * backward_tile)
      each(zero);
    if (fault == Fault::last_lane_missing_from_row_sum) drop_lane(stage, view);
    const bool loads = stage == Stage::query || stage == Stage::key || stage == Stage::value;
    if (loads && fault == Fault::bf16_read_as_f32 && problem->q.dtype == Dtype::bf16)
      for (Index r = 0; r < view.rows; ++r)
        for (Index c = 0; c + 1 < view.columns; c += 2) {
          // Two neighbours taken for the halves of one float.
          float* pair = view.data + r * view.row_stride + c;
          const std::uint32_t low = std::bit_cast<std::uint32_t>(pair[0]) >> 16, high = std::bit_cast<std::uint32_t>(pair[1]) & 0xFFFF0000u;
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
      for (Index c = from; c < view.columns; ++c) view.data[r * view.row_stride + c * view.column_stride] = 0;
  }
};

// The kernels with that policy: what plan_and_run, run_stored and plan_and_run_backward take, their stages being a FaultyStages.
kernels::RunForward faulty_forward(const kernels::Target& target);
kernels::RunBackward faulty_backward(const kernels::Target& target);

}  // namespace assay
