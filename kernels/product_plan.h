// Inside kernels/: a low-bit product once everything is decided; shared by all targets.
#pragma once

#include "kernels/product.h"

namespace assay::kernels {

struct ProductOperands {
  const TensorView* a = nullptr;     // or
  const LowBitView* a_low = nullptr;
  TensorView c;
  Index m = 0;
};

struct ProductPlan : ProductOperands {
  const PackedWeights* w = nullptr;
  int threads = 0;
};

using RunProduct = void (*)(const ProductPlan& plan, const void* stages);

// Also of a number that is no dtype.
inline std::string name_of_dtype(Dtype d) { return static_cast<int>(d) < count_of<Dtype> ? std::string(format(d).name) : "dtype " + std::to_string(static_cast<int>(d)); }

// Code k of column n times its scale in fp32; without the tensor scale.
float decode_low_bit(const LowBitView& w, Index k, Index n);

// The production kernel for weights of four bits and of eight.
RunProduct nibble_product(const Target& target);
RunProduct byte_product(const Target& target);

// Dtypes, shapes and reach of A [m, k] and C [m, n], and that C overlaps nothing.
Status check_product(const ProductOperands& operands, Index k, Index n);

// Validates and runs: product() with another kernel in its place.
Status plan_and_run_product(const ProductPlan& plan, RunProduct run, const void* stages);

}  // namespace assay::kernels
