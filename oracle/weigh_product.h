// Inside oracle/: asks the evidence of a product. docs/evidence.md, 1 to 3.
#pragma once

#include <span>

#include "oracle/product.h"

namespace assay {

// Asks whether the errors of some rows and columns of C, those of the worst element of the verdict
// `bounds` among them, are typical of one of the contracts, from the first on.
Evidence weigh_product(const Product& p, const TensorView& c,
                       std::span<const ProductContract> contracts, const Verdict& bounds,
                       const JudgeOptions& options);

}  // namespace assay
