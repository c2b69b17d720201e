// Deliberate, realistic bugs in the production kernel, planted through its stage policy, to test the tests.
#pragma once

#include <span>
#include <string_view>

#include "kernels/status.h"
#include "problem/attention.h"

namespace assay {

enum class Fault {
  row_max_arguments_swapped,
  accumulator_not_rescaled,
  sum_not_rescaled,
  max_starts_at_zero,
  causal_dropped_with_mask,
  causal_off_by_one,
  last_partial_tile_skipped,
  padding_key_leaks,
  kv_head_modulo,
  scale_off_by_one_percent,
  zero_at_tail_enters_sum,
  weights_truncated_to_bf16,
  bf16_read_as_f32,
  window_off_by_one,
  max_of_tile_only,
  lse_in_base_two,
  stale_max,
  second_batch_not_computed,
  output_truncated,
  causal_anchor_top_left
};

struct PlantedFault {
  Fault fault;
  std::string_view name;
  std::string_view fault_class;  // of faults.md
  std::string_view what;
};

std::span<const PlantedFault> planted_faults();

// The production kernel, on the best target of this machine that the faults are compiled for, with the fault.
kernels::Status run_planted_fault(const PlantedFault& fault, const Attention& problem, const AttentionOutput& out, int threads);
std::string_view planted_fault_target();

}  // namespace assay
