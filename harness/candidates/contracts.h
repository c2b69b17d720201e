// The contracts of our own kernels: the arithmetic that each of them declares.
#pragma once

#include <string>

#include "kernels/simd/targets.h"
#include "oracle/contract.h"
#include "oracle/product.h"

namespace assay {

// The arithmetic of kernels/attention/attention-inl.h on a SIMD target, which has Highway's name.
Contract host_contract(const ProjectedAttention& problem, const std::string& target);
// The arithmetic of attention_forward, which computes in pairs of bf16 where the target can and Q
// and the stored K and V are bf16.
Contract host_forward_contract(const ProjectedAttention& problem, Dtype stored,
                               const kernels::Target& target);
// The arithmetic of attention_backward, which computes in pairs of bf16 where the target can and Q,
// K, V and dO are bf16.
Contract host_backward_contract(const Attention& problem, Dtype d_o, const kernels::Target& target);
// The arithmetic of kernels/attention/unfused-inl.h.
Contract unfused_contract(const std::string& target);

// The arithmetic of kernels/device/attention.cl and product.cl, on a device that keeps subnormal
// numbers.
Contract device_contract(const std::string& device);
ProductContract device_product_contract(const std::string& device);

// The arithmetic of kernels/product/product-inl.h.
ProductContract host_product_contract(const std::string& target);
// The arithmetic of product(), which multiplies with AMX where the target can and A is a tensor of
// bf16.
ProductContract host_product_contract(const Product& p, const kernels::Target& target);

}  // namespace assay
