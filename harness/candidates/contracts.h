// The contracts of our own kernels: the arithmetic that each of them declares.
#pragma once

#include <string>

#include "oracle/contract.h"
#include "oracle/product.h"

namespace assay {

// What kernels/attention/attention-inl.h computes, on a SIMD target named as Highway names it.
Contract host_contract(const ProjectedAttention& problem, const std::string& target);
// What kernels/attention/unfused-inl.h computes.
Contract unfused_contract(const std::string& target);

// What kernels/device/attention.cl and product.cl compute, on a device that keeps subnormal
// numbers.
Contract device_contract(const std::string& device);
ProductContract device_product_contract(const std::string& device);

// What kernels/product/product-inl.h computes.
ProductContract host_product_contract(const std::string& target);

}  // namespace assay
