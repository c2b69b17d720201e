// Inside harness/: faults of those who read the scales of a cache. The oracle does not know scales,
// so these are looked for beside its own hypotheses.
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

// Puts faults that explain O and LSE, of which all are inside their bounds if the scales are read
// that wrongly, before those that were found. Does nothing without scales. `contract` is null where
// none is declared.
void explain_by_scales(const ScaledKeyValues& read, const AttentionOutput& out,
                       const Contract* contract, const JudgeOptions& options, Diagnosis& found);

}  // namespace assay
