// Low-bit products on the host: C = A W, as docs/semantics.md defines them.
#pragma once

#include <string>
#include <vector>

#include "kernels/simd/execution.h"
#include "kernels/product/packed_weights.h"

namespace assay::kernels {

// Computes C = A W. A [1, 1, M, K] and C [1, 1, M, N] are f32, f16 or bf16, with any strides; C
// must not overlap any other tensor.
// - Every group of W is summed on its own in fp32, with k ascending, from 0 (a chain of fused
//   multiply-adds if the target has FMA). Group sums times their scales are added up in the same
//   way, and the tensor scale comes last. So a scale never rounds a weight, and no scaled weight
//   leaves its range.
// - The result is bitwise the same for any number of rows and threads and for every variant. With
//   few rows the kernel decodes weights while it multiplies; with many rows it first decodes a
//   panel into fp32.
// - If A is bf16 and the target has AMX, groups are summed in chunks of 32, with subnormal numbers
//   as 0 (product_amx.h), and any number of rows multiplies panels that were decoded first.
// - The kernel needs a workspace for at most 768 rows of A in fp32 (for AMX twice that if groups
//   have 8 k), and about 160 KiB for each thread; if W has no scales, 256 bytes for each k instead.
Status product(const TensorView& a, const PackedWeights& w, const TensorView& c,
               const Execution& how = {});
// Computes the same with a low-bit A, whose columns run along k (mxfp4, nvfp4, f8e4m3, f8e5m2). A
// is decoded to fp32, which is exact except for numbers of 2^128 and more.
Status product(const LowBitView& a, const PackedWeights& w, const TensorView& c,
               const Execution& how = {});

// With at least so many rows, panels are decoded first.
inline constexpr Index many_rows = 32;

struct QuantizeOptions {
  Index group = 0;     // 0: the group size of the format; -1: f8 without scales
  bool pad_k = true;   // false: K must be whole groups; true: the last group may be shorter
  Target target = {};  // whose code is run; every target gives the same bytes
};

// A matrix in a low-bit format; the vectors have the sizes that sizes_of() gives.
struct LowBitBytes {
  LowBit format = LowBit::mxfp4;
  Index k = 0, n = 0, group = 0;
  float tensor_scale = 1;
  std::vector<std::byte> codes, scales, extra;
  LowBitView view() const {
    const auto data = [](const std::vector<std::byte>& bytes) {
      return bytes.empty() ? nullptr : bytes.data();
    };
    return {format, k, n, group, data(codes), data(scales), data(extra), tensor_scale};
  }
};

// Quantizes W [1, 1, K, N], which is f32, f16 or bf16, by the rules of problem/low_bit.h. The
// status is invalid_arguments for NaN or infinity in W, for a scale that overflows its format, and
// for a K that is not whole groups if pad_k is false.
Status quantize_weights(const TensorView& w, LowBit format, const QuantizeOptions& options,
                        LowBitBytes& to);

}  // namespace assay::kernels
