// Inside harness/: finds mistakes in reading the scales of a cache. The oracle knows no scales, so
// its own hypotheses do not contain such mistakes.
#pragma once

#include "oracle/contract.h"
#include "oracle/diagnosis.h"

namespace assay {

// K and V of a problem as they are read from a cache, and their scales as f64 [B, Hkv, Lk, groups].
struct ScaledKeyValues {
  const ProjectedAttention& problem;
  TensorView k_scales, v_scales;
  Index group = 0;  // columns that share a scale; 0: all
};

// Tries one mistake after the other. A mistake explains O and LSE if all of their elements are
// inside their bounds when the scales are read with it. Puts those that do before the explanations
// that are in `found`. Does nothing without scales. `contract` is null where none is declared.
void explain_by_scales(const ScaledKeyValues& read, const AttentionOutput& out,
                       const Contract* contract, const JudgeOptions& options, Diagnosis& found);

}  // namespace assay
