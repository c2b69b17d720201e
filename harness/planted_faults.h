// Deliberate, realistic bugs in the production kernels, to test the tests: planted through the stage policy, through what a cache is
// given and gives, or through what the backward pass is handed.
#pragma once

#include <span>
#include <string_view>

#include "kernels/execution.h"
#include "kernels/stages.h"
#include "kernels/status.h"
#include "problem/generate.h"

namespace assay {

enum class Fault {
  none,  // the kernel itself
  // Forward.
  row_max_arguments_swapped,
  accumulator_not_rescaled,
  sum_not_rescaled,
  max_starts_at_zero,
  max_starts_at_lowest,
  max_of_tile_only,
  stale_max,
  causal_dropped_with_mask,
  causal_off_by_one,
  causal_anchor_top_left,
  window_off_by_one,
  last_partial_tile_skipped,
  padding_key_leaks,
  kv_head_modulo,
  scale_off_by_one_percent,
  zero_at_tail_enters_sum,
  weights_truncated_to_bf16,
  bf16_read_as_f32,
  lse_in_base_two,
  second_batch_not_computed,
  output_truncated,
  window_start_rounded_up_to_tile,
  diagonal_tile_taken_as_full,
  causal_by_last_row_of_four,
  mask_batch_stride_dropped,
  mask_of_head_zero,
  bias_row_stride_is_row_count,
  bias_scaled_like_scores,
  empty_row_divided,
  masked_with_minus_ten_thousand,
  masked_with_lowest,
  alibi_slope_of_head_before,
  alibi_without_rule_for_other_counts,
  alibi_distance_from_key_zero,
  softcap_dropped,
  softcap_after_mask,
  sink_dropped,
  lse_without_sink,
  dim_tail_dropped,
  value_columns_beyond_dim_dropped,
  packed_values_alias_keys,
  masked_values_reach_product,
  query_rows_taken_as_packed,
  query_columns_taken_as_adjacent,
  output_written_packed,
  lse_of_all_heads_in_one,
  only_head_zero_computed,
  document_boundary_off_by_one,
  length_zero_means_all,
  values_replaced_by_keys,
  scale_hard_wired,
  rescale_in_half_precision,
  offset_in_32_bits,
  wide_heads_return_ok,
  rows_by_thread_without_remainder,
  window_of_previous_call,
  first_call_writes_nothing,
  output_of_16_bits_written_as_f32,
  bool_mask_inverted,
  bool_mask_ignored,
  bias_ignored,
  mask_of_first_rows_of_tile,
  mask_on_first_keys_of_tile,
  causal_key_counted_in_tile,
  keys_as_many_as_rows,
  values_read_with_key_strides,
  query_heads_at_row_stride,
  row_max_scaled_twice,
  last_lane_missing_from_row_sum,
  // Splits and their merge.
  merged_sum_not_corrected,
  merged_accumulator_not_corrected,
  merged_max_stale,
  split_count_rounded_down,
  empty_split_gives_nan,
  sink_in_every_split,
  partial_sums_alias_maxima,
  // Backward.
  delta_omitted,
  delta_in_bf16,
  query_gradient_scaled_twice,
  key_gradient_unscaled,
  softcap_slope_omitted,
  last_row_tile_dropped,
  last_partial_key_tile_dropped,
  key_gradients_of_last_head_only,
  backward_head_modulo,
  backward_causal_off_by_one,
  backward_anchor_top_left,
  backward_without_bias,
  backward_without_dropout,
  backward_draws_anew,
  weight_gradients_without_dropout_scale,
  backward_weights_truncated_to_bf16,
  score_gradients_truncated_to_bf16,
  backward_lse_in_base_two,
  backward_lse_without_sink,
  query_gradient_of_first_split_only,
  bias_gradient_overwritten,
  sink_gradient_sign,
  key_gradients_with_inverted_triangle,
  // Caches.
  page_table_off_by_one,
  pages_taken_as_consecutive,
  slot_past_length_read,
  newest_token_not_seen,
  eviction_rounded_to_page,
  batch_stride_missing,
  head_stride_missing,
  scale_of_neighbour_group,
  scale_of_first_token,
  nibbles_swapped,
  offset_code_read_as_e2m1,
  uniform_code_read_as_e4m3,
  rotary_part_dropped,
  keys_of_chunk_zero,
  positions_counted_after_append,
  window_underflow,
  tokens_by_head_first_stride,
  written_past_the_new_length,
  f4_saturates_at_four,
  stored_beyond_f32,
  zero_group_divided,
  // Products.
  totals_not_reset,
  totals_in_half_precision,
  weight_nibbles_swapped,
  scale_group_of_tail,
  scale_group_by_tile,
  scales_transposed_for_one_row,
  scale_of_last_odd_column,
  scale_dropped,
  scale_applied_twice,
  scale_in_bf16,
  tensor_scale_dropped,
  nan_scale_as_number,
  nan_weight_as_number,
  smallest_scale_flushed,
  half_read_as_quarter,
  half_read_as_zero,
  offset_code_read_as_float,
  kept_positions_mirrored,
  zero_point_off_by_one,
  zero_point_wraps,
  integer_saturates,
  row_beyond_the_last_stored,
  padding_of_rows_not_zeroed,
  padding_rows_not_zeroed,
  upper_half_of_tile_zero,
  columns_repeated,
  last_columns_not_written,
  depth_tail_dropped,
  added_to_the_output
};

struct PlantedFault {
  Fault fault;
  std::string_view name;
  std::string_view fault_class;  // F01 to F50, of docs/faults.md
  std::string_view suite;        // that hunts it
  std::string_view what;
  std::string_view equivalent = {};  // the proof that no input shows it; empty: some does
  bool by_relation = false;          // one call shows nothing: it takes another one before
};

std::span<const PlantedFault> planted_faults();

// Whether the case runs the code that the fault is in.
bool reaches(const PlantedFault& fault, const Case& c);

// Told of every stage of a kernel, in the order in which it computes them. What it is shown is the kernel's own memory.
class StageObserver {
 public:
  virtual ~StageObserver() = default;
  virtual void at(kernels::Stage stage, const kernels::StageView& view) = 0;
};
// The production kernels with their stages watched, on one thread.
kernels::Status run_watched(Fault fault, const Attention& problem, const AttentionOutput& out, const kernels::Target& target, StageObserver& observer);

// The production kernels with the fault, on the target of the call, or on the baseline if faults are not compiled for that target.
kernels::Status run_planted_fault(const PlantedFault& fault, const Attention& problem, const AttentionOutput& out, const kernels::Execution& how);
kernels::Status run_planted_backward(const PlantedFault& fault, const Attention& problem, const AttentionBackwardInput& in, const AttentionGradients& out,
                                     const kernels::Execution& how, StageObserver* observer = nullptr);
kernels::Status run_planted_product(const PlantedFault& fault, const Product& problem, const TensorView& c, const kernels::Execution& how);
kernels::Status run_planted_cache(const PlantedFault& fault, const Case& c, const Inputs& inputs, const AttentionOutput& out, const kernels::Execution& how);
// The target whose code a call on `target` runs.
std::string_view planted_fault_target(const kernels::Target& target);

}  // namespace assay
