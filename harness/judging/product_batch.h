// Inside harness/judging/: several products in one call of a library.
#pragma once

#include "harness/judging/step.h"

namespace assay {

// Computes the product of the step and two others of its shape in one call. Each C has to be inside
// its bound. Only for a candidate that has batches.
Relation product_batch(const Asked<ProductStep>& asked);

}  // namespace assay
