#pragma once

#include <string>

#include "oracle/contract.h"
#include "oracle/product.h"

namespace assay {

// What kernels/attention-inl.h computes, on a SIMD target named as Highway names it.
Contract host_contract(const Attention& problem, const std::string& target);
// What kernels/unfused-inl.h computes.
Contract unfused_contract(const std::string& target);

// What kernels/product-inl.h computes.
ProductContract host_product_contract(const std::string& target);

}  // namespace assay
