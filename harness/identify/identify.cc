#include "harness/identify/identify.h"

#include "harness/identify/softmax.h"
#include "harness/identify/sums.h"

namespace assay {

Identification identify(Candidate& candidate, Dtype dtype) {
  const Probe probe(candidate, dtype);
  Identification told;
  told.candidate = candidate.name();
  told.line = print_case(probe.shape());
  const std::optional<Dtype> weights = tell_weights(probe, told);
  const bool coarse = weights && format(*weights).bits == 8 && candidate.abilities().lse;
  tell_row_sum(probe, told);
  tell_scores(probe, coarse, told);
  for (const VisibleSums& sums : {sums_over_columns(probe, coarse), sums_over_keys(probe)}) {
    tell_input_bits(sums, dtype, told);
    tell_sums(sums, told);
  }
  return told;
}

}  // namespace assay
