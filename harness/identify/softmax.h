// Inside harness/identify/: in which format a kernel stores its scores and weights, and what it
// adds up.
#pragma once

#include <optional>

#include "harness/identify/identify.h"
#include "harness/identify/probe.h"

namespace assay {

// The format of P before P V, and whether P was divided by the row sum before it was rounded.
// Where P is not rounded, the largest error of exp. Returns the format, if P is rounded to one.
std::optional<Dtype> tell_weights(const Probe& probe, Identification& told);
// Whether the row sum adds rounded weights, if the kernel gives LSE.
void tell_row_sum(const Probe& probe, Identification& told);
// The format of stored scores, which are seen in O or in LSE.
void tell_scores(const Probe& probe, bool by_lse, Identification& told);

}  // namespace assay
