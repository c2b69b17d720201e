// Inside oracle/: which pairs of a group a pass of its gradients has tested.
#pragma once

#include "oracle/backward.h"
#include "oracle/verdict.h"

namespace assay {

// `gradients` were evaluated with pairs and all rows. The dtypes are those of the outputs, whose
// rounding is part of a bound.
void certify_gradients(const Attention& p, const TensorView& d_o, Index b, Index g,
                       const GroupGradients& gradients, const AttentionGradients& out,
                       double arithmetic_roundoff, GradientPower& power);

}  // namespace assay
