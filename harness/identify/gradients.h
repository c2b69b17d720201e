// The arithmetic of a backward pass.
#pragma once

#include "harness/identify/backward_probe.h"
#include "harness/identify/identify.h"

namespace assay {

// The format of P before dV, and of dS before dQ and dK.
void tell_gradient_weights(const BackwardProbe& probe, Identification& told);
void tell_score_gradients(const BackwardProbe& probe, Identification& told);
// Order, bits and inputs of the sums of dV, dK, dQ and dP.
void tell_gradient_sums(const BackwardProbe& probe, Identification& told);
// Whether dK and dV of the query heads of a group are rounded before they are added. The probe has
// four of them.
void tell_grouped_heads(const BackwardProbe& probe, Identification& told);

}  // namespace assay
