// Inside oracle/: finds which pairs a pass of a group's gradients has tested.
#pragma once

#include "oracle/backward.h"
#include "oracle/verdict.h"

namespace assay {

// `gradients` must have been evaluated with pairs and for all rows. The dtypes are those of the
// outputs, because their rounding is part of a bound.
void certify_gradients(const Attention& p, const TensorView& d_o, Index b, Index g,
                       const GroupGradients& gradients, const AttentionGradients& out,
                       double arithmetic_roundoff, GradientPower& power);

}  // namespace assay
