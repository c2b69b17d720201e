#include "harness/planted_faults.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "harness/faulty_problem.h"
#include "harness/faulty_stages.h"
#include "problem/parallel.h"

namespace assay {
namespace {

// What a store of fp32 leaves in a contiguous output of 16 bits; the second half would lie beyond its end.
void write_as_floats(const TensorView& o) {
  if (o.dtype == Dtype::f32 || o.stride != make_layout(LayoutKind::bhsd, o.shape, 1).stride) return;
  std::vector<float> results;
  for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) { results.push_back(static_cast<float>(load(o, o.at(b, h, i, c)))); });
  std::memcpy(static_cast<std::uint16_t*>(o.data) + o.at(0, 0, 0, 0), results.data(), results.size() / 2 * sizeof(float));
}

}  // namespace

std::span<const PlantedFault> planted_faults() {
  using enum Fault;
  static constexpr PlantedFault faults[] = {
      {row_max_arguments_swapped, "row-max-arguments-swapped", "F11", "standard",
       "the arguments of the row maximum are swapped: the next maximum is never written"},
      {accumulator_not_rescaled, "accumulator-not-rescaled", "F12", "standard", "the accumulator keeps its scale when the maximum moves"},
      {sum_not_rescaled, "sum-not-rescaled", "F12", "standard", "the row sum keeps its scale when the maximum moves"},
      {max_starts_at_zero, "max-starts-at-zero", "F11", "standard", "the running maximum starts at 0 instead of -inf"},
      {max_starts_at_lowest, "max-starts-at-lowest", "F11", "standard", "the running maximum starts at the lowest finite number instead of -inf",
       "no score is between the two; until a finite one comes, the weights are e^-inf = 0 under either, so that the sum is 0, and a sum of 0 decides O and "
       "LSE whatever the maximum is"},
      {max_of_tile_only, "max-of-tile-only", "F11", "standard", "the new maximum is that of the tile, not combined with the running one"},
      {stale_max, "stale-max", "F11", "standard", "the maximum of the first tile is kept"},
      {causal_dropped_with_mask, "causal-dropped-with-mask", "F05", "standard", "a mask or padding switches causality off"},
      {causal_off_by_one, "causal-off-by-one", "F01", "standard", "row i sees key i + 1"},
      {causal_anchor_top_left, "causal-anchor-top-left", "F01", "standard", "the offset of causality and windows is ignored"},
      {window_off_by_one, "window-off-by-one", "F02", "standard", "a left window is one key short"},
      {last_partial_tile_skipped, "last-partial-tile-skipped", "F16", "standard", "the number of key tiles is rounded down"},
      {padding_key_leaks, "padding-key-leaks", "F30", "standard", "one key of padding takes part, on either side"},
      {kv_head_modulo, "kv-head-modulo", "F28", "standard", "query head h reads head h % Hkv"},
      {scale_off_by_one_percent, "scale-off-by-one-percent", "F42", "standard", "the scale of the scores is 1% too large"},
      {zero_at_tail_enters_sum, "zero-at-tail-enters-sum", "F26", "standard", "a padded key of the last tile enters the row sum with score 0"},
      {weights_truncated_to_bf16, "weights-truncated-to-bf16", "F15", "standard", "the weights are cast to bf16 by truncation before P V"},
      {bf16_read_as_f32, "bf16-read-as-f32", "F49", "standard", "bf16 inputs are read as fp32"},
      {lse_in_base_two, "lse-in-base-two", "F14", "standard", "LSE is returned as a logarithm to base 2"},
      {second_batch_not_computed, "second-batch-not-computed", "F18", "standard", "only batch 0 is computed"},
      {output_truncated, "output-truncated", "F39", "standard", "the output is cast to bf16 by truncation"},
      {window_start_rounded_up_to_tile, "window-start-rounded-up-to-tile", "F03", "standard", "the first tile of a window is ceil(begin / tile), not floor"},
      {diagonal_tile_taken_as_full, "diagonal-tile-taken-as-full", "F03", "standard", "the tile that the diagonal crosses is not masked"},
      {causal_by_last_row_of_four, "causal-by-last-row-of-four", "F03", "standard", "causality is evaluated once for four rows, by the last of them"},
      {mask_batch_stride_dropped, "mask-batch-stride-dropped", "F04", "standard", "every batch element reads the masks of the first"},
      {mask_of_head_zero, "mask-of-head-zero", "F04", "standard", "every head reads the masks of head 0"},
      {bias_row_stride_is_row_count, "bias-row-stride-is-row-count", "F04", "standard", "rows of the bias are taken to be Lq apart, not Lk"},
      {bias_scaled_like_scores, "bias-scaled-like-scores", "F42", "standard", "the bias is added before the scale"},
      {empty_row_divided, "empty-row-divided", "F06", "standard", "a row that sees no key is 0 / 0"},
      {masked_with_minus_ten_thousand, "masked-with-minus-ten-thousand", "F07", "standard", "masked scores are -10000, not -inf"},
      {masked_with_lowest, "masked-with-lowest", "F07", "standard", "masked scores are the lowest finite number, not -inf"},
      {alibi_slope_of_head_before, "alibi-slope-of-head-before", "F08", "standard", "slopes are 2^(-8 h / H), not 2^(-8 (h + 1) / H)"},
      {alibi_without_rule_for_other_counts, "alibi-without-rule-for-other-counts", "F08", "standard",
       "slopes are 2^(-8 (h + 1) / H) for any number of heads, powers of two or not"},
      {alibi_distance_from_key_zero, "alibi-distance-from-key-zero", "F08", "standard", "the distance is counted from key 0: a constant of each row, which LSE alone sees"},
      {softcap_dropped, "softcap-dropped", "F09", "standard", "the softcap is ignored"},
      {softcap_after_mask, "softcap-after-mask", "F09", "standard", "the softcap is applied after masking: masked scores are -cap"},
      {sink_dropped, "sink-dropped", "F10", "standard", "the sink is ignored"},
      {lse_without_sink, "lse-without-sink", "F10", "standard", "LSE lacks the sink"},
      {dim_tail_dropped, "dim-tail-dropped", "F17", "standard", "D is rounded down to a multiple of 8"},
      {value_columns_beyond_dim_dropped, "value-columns-beyond-dim-dropped", "F17", "standard", "as many columns of O are written as Q has"},
      {packed_values_alias_keys, "packed-values-alias-keys", "F19", "standard", "packed values lie where packed keys do, if they fit"},
      {masked_values_reach_product, "masked-values-reach-product", "F24", "standard", "masked keys enter P V with weight 0: 0 * NaN"},
      {query_rows_taken_as_packed, "query-rows-taken-as-packed", "F25", "standard", "rows of Q are taken to be D apart"},
      {query_columns_taken_as_adjacent, "query-columns-taken-as-adjacent", "F25", "standard", "the innermost stride of Q is taken to be 1"},
      {output_written_packed, "output-written-packed", "F25", "standard", "O is written as if it were contiguous"},
      {lse_of_all_heads_in_one, "lse-of-all-heads-in-one", "F27", "standard", "every head writes its LSE where head 0 does"},
      {only_head_zero_computed, "only-head-zero-computed", "F18", "standard", "O of heads other than 0 stays 0"},
      {document_boundary_off_by_one, "document-boundary-off-by-one", "F31", "standard", "the first key of a document belongs to the one before"},
      {length_zero_means_all, "length-zero-means-all", "F31", "standard", "a sequence of length 0 is taken for one without a length"},
      {values_replaced_by_keys, "values-replaced-by-keys", "F05", "standard", "where D = Dv, K is read for V"},
      {scale_hard_wired, "scale-hard-wired", "F42", "standard", "scores are scaled by 1 / sqrt(D), whatever the scale is"},
      {rescale_in_half_precision, "rescale-in-half-precision", "F48", "standard", "e^(m - m') is kept in fp16: it flushes below 2^-25"},
      {offset_in_32_bits, "offset-in-32-bits", "F45", "standard", "offsets into K are kept in 32 bits"},
      {wide_heads_return_ok, "wide-heads-return-ok", "F46", "standard", "D above 128 is not supported, and OK is returned"},
      {rows_by_thread_without_remainder, "rows-by-thread-without-remainder", "F47", "standard",
       "each of n threads computes floor(Lq / n) rows; the remainder stays 0"},
      {window_of_previous_call, "window-of-previous-call", "F50", "standard", "a call without a left window keeps that of the call before", {}, true},
      {first_call_writes_nothing, "first-call-writes-nothing", "F50", "standard", "the first call of a process returns OK and writes nothing"},
      {output_of_16_bits_written_as_f32, "output-of-16-bits-written-as-f32", "F49", "standard", "fp32 results are written over an output of 16 bits, as far as it reaches"},
      {bool_mask_inverted, "bool-mask-inverted", "F04", "standard", "the boolean mask keeps what it should mask"},
      {bool_mask_ignored, "bool-mask-ignored", "F05", "standard", "the boolean mask is ignored, and OK is returned"},
      {bias_ignored, "bias-ignored", "F05", "standard", "the additive mask is ignored, and OK is returned"},
      {mask_of_first_rows_of_tile, "mask-of-first-rows-of-tile", "F03", "standard", "rows 8 to 31 of every 32 read the masks of rows 0 to 7"},
      {mask_on_first_keys_of_tile, "mask-on-first-keys-of-tile", "F03", "standard", "masks are applied to the first 8 keys of every 32"},
      {causal_key_counted_in_tile, "causal-key-counted-in-tile", "F03", "standard", "causality counts keys from their tile on: rows beyond the first tile see the future"},
      {keys_as_many_as_rows, "keys-as-many-as-rows", "F31", "standard", "keys from Lq on are not seen"},
      {values_read_with_key_strides, "values-read-with-key-strides", "F25", "standard", "V is read with the strides of K, where they stay inside V"},
      {query_heads_at_row_stride, "query-heads-at-row-stride", "F27", "standard", "heads of Q are looked for a row apart, where that stays inside Q"},
      {row_max_scaled_twice, "row-max-scaled-twice", "F48", "standard", "the row maximum is scaled once more than the scores: their exponentials overflow or vanish"},
      {last_lane_missing_from_row_sum, "last-lane-missing-from-row-sum", "F12", "standard", "one lane of eight is not added to the row sum"},

      {merged_sum_not_corrected, "merged-sum-not-corrected", "F13", "decode",
       "the sum of earlier splits keeps its scale when a later one has a larger maximum"},
      {merged_accumulator_not_corrected, "merged-accumulator-not-corrected", "F13", "decode",
       "the accumulator of earlier splits keeps its scale when a later one has a larger maximum"},
      {merged_max_stale, "merged-max-stale", "F13", "decode", "the maximum of the first split that saw something is kept"},
      {split_count_rounded_down, "split-count-rounded-down", "F13", "decode", "the number of splits is rounded down: the last, shorter one is not merged"},
      {empty_split_gives_nan, "empty-split-gives-nan", "F13", "decode", "a split that saw nothing is merged by e^(-inf - -inf)"},
      {sink_in_every_split, "sink-in-every-split", "F10", "decode", "every split adds the sink to its sum"},
      {partial_sums_alias_maxima, "partial-sums-alias-maxima", "F19", "decode", "the maxima and the sums of the splits share their memory"},

      {delta_omitted, "delta-omitted", "F33", "backward", "D = sum dO O is not subtracted from dP"},
      {delta_in_bf16, "delta-in-bf16", "F20", "backward", "D is kept in bf16"},
      {query_gradient_scaled_twice, "query-gradient-scaled-twice", "F32", "backward", "dQ is multiplied by the scale of the scores twice"},
      {key_gradient_unscaled, "key-gradient-unscaled", "F32", "backward", "dK lacks the scale of the scores"},
      {softcap_slope_omitted, "softcap-slope-omitted", "F09", "backward", "dS lacks the slope of the softcap, 1 - tanh^2"},
      {last_row_tile_dropped, "last-row-tile-dropped", "F18", "backward", "the number of row tiles is rounded down"},
      {last_partial_key_tile_dropped, "last-partial-key-tile-dropped", "F16", "backward", "dK and dV of the last, shorter tile of keys are 0"},
      {key_gradients_of_last_head_only, "key-gradients-of-last-head-only", "F34", "backward", "each query head of a group overwrites dK and dV"},
      {backward_head_modulo, "backward-head-modulo", "F28", "backward", "the backward pass alone gives query head h the head h % Hkv"},
      {backward_causal_off_by_one, "backward-causal-off-by-one", "F01", "backward", "in the backward pass alone, row i sees key i + 1"},
      {backward_anchor_top_left, "backward-anchor-top-left", "F01", "backward", "the backward pass alone ignores the offset of causality and windows"},
      {backward_without_bias, "backward-without-bias", "F05", "backward", "P is recomputed without the bias"},
      {backward_without_dropout, "backward-without-dropout", "F43", "backward", "nothing is dropped in the backward pass"},
      {backward_draws_anew, "backward-draws-anew", "F43", "backward", "the backward pass draws its dropout from another seed"},
      {weight_gradients_without_dropout_scale, "weight-gradients-without-dropout-scale", "F44", "backward", "dP lacks the 1 / (1 - p) of dropout"},
      {backward_weights_truncated_to_bf16, "backward-weights-truncated-to-bf16", "F15", "backward", "P is cast to bf16 by truncation"},
      {score_gradients_truncated_to_bf16, "score-gradients-truncated-to-bf16", "F15", "backward", "dS is cast to bf16 by truncation"},
      {backward_lse_in_base_two, "backward-lse-in-base-two", "F14", "backward", "LSE is taken for a logarithm to base 2"},
      {backward_lse_without_sink, "backward-lse-without-sink", "F33", "backward", "P is recomputed from an LSE without the sink"},
      {query_gradient_of_first_split_only, "query-gradient-of-first-split-only", "F35", "backward", "dQ is that of the first split of the keys"},
      {bias_gradient_overwritten, "bias-gradient-overwritten", "F35", "backward", "an element of a broadcast dBias is overwritten, not added to"},
      {sink_gradient_sign, "sink-gradient-sign", "F10", "backward", "dSink has the wrong sign"},
      {key_gradients_with_inverted_triangle, "key-gradients-with-inverted-triangle", "F32", "backward", "the causal triangle is inverted in dK and dV alone"},

      {page_table_off_by_one, "page-table-off-by-one", "F29", "caches", "page n is looked up at n + 1"},
      {pages_taken_as_consecutive, "pages-taken-as-consecutive", "F29", "caches", "the pages of a sequence are taken to follow its first one"},
      {slot_past_length_read, "slot-past-length-read", "F30", "caches", "the slot behind the last token, where an old one lies, takes part"},
      {newest_token_not_seen, "newest-token-not-seen", "F30", "caches", "attention reads the length before the last token came"},
      {eviction_rounded_to_page, "eviction-rounded-to-page", "F30", "caches", "evicted tokens of a page that is still there are seen"},
      {batch_stride_missing, "batch-stride-missing", "F27", "caches", "every sequence reads the pages of sequence 0"},
      {head_stride_missing, "head-stride-missing", "F27", "caches", "every head reads the slots of head 0"},
      {scale_of_neighbour_group, "scale-of-neighbour-group", "F40", "caches", "a group is decoded with the scale of the next one"},
      {scale_of_first_token, "scale-of-first-token", "F22", "caches", "the tokens of a page are decoded with the scales of its first one"},
      {nibbles_swapped, "nibbles-swapped", "F36", "caches", "the high nibble is read first"},
      {offset_code_read_as_e2m1, "offset-code-read-as-e2m1", "F36", "caches", "f4 is written as 8 + round(2 x) and read as E2M1"},
      {uniform_code_read_as_e4m3, "uniform-code-read-as-e4m3", "F36", "caches", "f8 is written as 128 + round(127 x / 448) and read as E4M3"},
      {rotary_part_dropped, "rotary-part-dropped", "F05", "caches", "the keys of a latent cache lack their rotary part"},
      {keys_of_chunk_zero, "keys-of-chunk-zero", "F05", "caches", "the keys that came with the rows are still 0 when the rows attend"},
      {positions_counted_after_append, "positions-counted-after-append", "F30", "caches", "rows are numbered from the length that the append has left behind"},
      {window_underflow, "window-underflow", "F02", "caches", "position - window wraps below 0: the row sees nothing"},
      {tokens_by_head_first_stride, "tokens-by-head-first-stride", "F27", "caches", "tokens of a chunk are read as [token][head] where they are [head][token]"},
      {written_past_the_new_length, "written-past-the-new-length", "F30", "caches", "a chunk is written where the next one belongs"},
      {stored_beyond_f32, "stored-beyond-f32", "F39", "caches", "a code that reaches 2^128 under its scale is stored: a finite number is read as infinity"},
      {f4_saturates_at_four, "f4-saturates-at-four", "F39", "caches", "f4 ends at 4: what a group scales by is what 6 stands for"},
      {zero_group_divided, "zero-group-divided", "F39", "caches", "a group of zeros has the scale 0 / 0"},

      {totals_not_reset, "totals-not-reset", "F23", "products", "from four rows on, an element's sum begins with what the tile before left"},
      {totals_in_half_precision, "totals-in-half-precision", "F20", "products", "the sum over groups is kept in fp16"},
      {weight_nibbles_swapped, "weight-nibbles-swapped", "F36", "products", "the high nibble of a byte is read first"},
      {scale_group_of_tail, "scale-group-of-tail", "F40", "products", "a last, shorter group is read with the scale of the one before"},
      {scale_group_by_tile, "scale-group-by-tile", "F40", "products", "the group of a scale is counted in tiles of 32: k_tile / G + (k - k_tile) / G"},
      {scales_transposed_for_one_row, "scales-transposed-for-one-row", "F37", "products", "the variant for one row reads scales as [N][groups]"},
      {scale_of_last_odd_column, "scale-of-last-odd-column", "F40", "products", "scales are loaded by pairs: where N is odd, the last column has that of the one before"},
      {scale_dropped, "scale-dropped", "F22", "products", "scales are taken to be 1"},
      {scale_applied_twice, "scale-applied-twice", "F22", "products", "every scale is applied twice"},
      {scale_in_bf16, "scale-in-bf16", "F39", "products", "scales are rounded to bf16"},
      {tensor_scale_dropped, "tensor-scale-dropped", "F22", "products", "the tensor scale is not applied"},
      {nan_scale_as_number, "nan-scale-as-number", "F41", "products", "a scale that is NaN is read as 0"},
      {nan_weight_as_number, "nan-weight-as-number", "F41", "products", "the NaN of E4M3 is read as 480, that of E5M2 as infinity"},
      {smallest_scale_flushed, "smallest-scale-flushed", "F48", "products", "the smallest scale of a format is read as 0"},
      {half_read_as_quarter, "half-read-as-quarter", "F36", "products", "the subnormal of E2M1, 0.5, is read as 0.25"},
      {half_read_as_zero, "half-read-as-zero", "F36", "products", "the subnormal of E2M1, 0.5, is flushed to 0"},
      {offset_code_read_as_float, "offset-code-read-as-float", "F36", "products", "FP4 is written as 8 + round(2 x) and read as E2M1"},
      {kept_positions_mirrored, "kept-positions-mirrored", "F36", "products", "positions of 2:4 metadata are counted from the far end of the four"},
      {zero_point_off_by_one, "zero-point-off-by-one", "F38", "products", "zero points are one too large"},
      {zero_point_wraps, "zero-point-wraps", "F38", "products", "a zero point of 0 is stored as zero point - 1 in its own bits, and read back as the largest + 1"},
      {integer_saturates, "integer-saturates", "F21", "products", "q - zero point is kept in eight bits"},
      {row_beyond_the_last_stored, "row-beyond-the-last-stored", "F18", "products", "few rows are stored by twos: a row beyond the last one is written"},
      {padding_of_rows_not_zeroed, "padding-of-rows-not-zeroed", "F16", "products", "what follows the last k of a row, up to a whole block, is not zeroed"},
      {padding_rows_not_zeroed, "padding-rows-not-zeroed", "F18", "products", "rows beyond M, up to a whole tile, are not zeroed",
       "register blocks have as many rows as there are: 12, 8, 6, 4, 3, 2 or 1; no row beyond M is ever loaded, multiplied or stored"},
      {upper_half_of_tile_zero, "upper-half-of-tile-zero", "F18", "products", "rows 32 to 63 of every 64 are not computed: 0"},
      {columns_repeated, "columns-repeated", "F27", "products", "an index of accumulators collapses: columns 0 to 7 stand in 8 to 31 of every 32 as well"},
      {last_columns_not_written, "last-columns-not-written", "F18", "products", "columns of a last, narrower panel are stored by eights, the rest is not"},
      {depth_tail_dropped, "depth-tail-dropped", "F16", "products", "K is rounded down to whole blocks of eight"},
      {added_to_the_output, "added-to-the-output", "F23", "products", "C is added to, not written"},
  };
  return faults;
}

bool reaches(const PlantedFault& fault, const Case& c) {
  if (fault.suite == "products" || c.operation == Operation::product) return fault.suite == "products" && c.operation == Operation::product;
  return fault.suite == "backward" ? c.operation == Operation::backward : fault.suite != "caches" || c.cache;
}

kernels::Status run_watched(Fault fault, const Attention& problem, const AttentionOutput& out, const kernels::Target& target, StageObserver& observer) {
  const MisreadProblem misread(fault, problem, out);
  FaultyStages stages(fault, misread.problem());
  stages.observer = &observer;
  return kernels::plan_and_run(misread.problem(), misread.out(), 1, faulty_forward(target), &stages);
}

kernels::Status run_planted_fault(const PlantedFault& fault, const Attention& problem, const AttentionOutput& out, const kernels::Execution& how) {
  if (fault.fault == Fault::wide_heads_return_ok && problem.shape.dim > 128) return {};
  static std::atomic<bool> called = false;
  if (fault.fault == Fault::first_call_writes_nothing && !called.exchange(true)) return {};
  const MisreadProblem misread(fault.fault, problem, out);
  FaultyStages stages(fault.fault, misread.problem());
  stages.threads = how.threads > 0 ? how.threads : hardware_threads();
  kernels::Status status = kernels::plan_and_run(misread.problem(), misread.out(), how.threads, faulty_forward(how.target), &stages);
  if (fault.fault == Fault::output_of_16_bits_written_as_f32 && status.ok()) write_as_floats(out.o);
  return status;
}

}  // namespace assay
