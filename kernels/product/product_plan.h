// Inside kernels/: the plan of a low-bit product, which is made before any SIMD code runs and is
// shared by all targets.
#pragma once

#include "kernels/product/product.h"

namespace assay::kernels {

struct ProductOperands {
  const TensorView* a = nullptr;  // or
  const LowBitView* a_low = nullptr;
  TensorView c;
  Index m = 0;
};

struct ProductPlan : ProductOperands {
  const PackedWeights* w = nullptr;
  int threads = 0;
};

using RunProduct = void (*)(const ProductPlan& plan, const void* stages);

// The name of a dtype; also defined for a number that is no dtype.
inline std::string name_of_dtype(Dtype d) {
  return static_cast<int>(d) < count_of<Dtype> ? std::string(format(d).name)
                                               : "dtype " + std::to_string(static_cast<int>(d));
}

// Returns code k of column n times its scale in fp32, without the tensor scale.
float decode_low_bit(const LowBitView& w, Index k, Index n);

// The production kernels for weights of four and of eight bits, compiled for a target.
RunProduct nibble_product(const Target& target);
RunProduct byte_product(const Target& target);
// That with AMX (product_amx.h); null if this program holds none.
RunProduct product_of_amx();

// Checks the dtypes, shapes and reach of A [m, k] and C [m, n], and that C overlaps nothing.
Status check_product(const ProductOperands& operands, Index k, Index n);

// Validates and runs a product as product() does, with another kernel in the place of the
// production kernel.
Status plan_and_run_product(const ProductPlan& plan, RunProduct run, const void* stages);

}  // namespace assay::kernels
