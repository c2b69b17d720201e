// Inside harness/identify/: how a kernel of low-bit products adds up, and where it multiplies
// scales in.
#pragma once

#include "harness/identify/identify.h"
#include "harness/identify/product_probe.h"

namespace assay {

// Says everything that is told of a product.
void tell_product(const ProductProbe& probe, Identification& told);

}  // namespace assay
