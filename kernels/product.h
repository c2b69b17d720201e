// Low-bit products on the host: C = A W, as docs/semantics.md defines them.
#pragma once

#include <string>
#include <vector>

#include "kernels/execution.h"
#include "kernels/packed_weights.h"

namespace assay::kernels {

// A [1, 1, M, K] in f32, f16 or bf16, any strides; C [1, 1, M, N] in f32, f16 or bf16, which may overlap nothing.
// - Every group of W is summed for itself in fp32, k ascending, from 0 (a fused multiply-add chain where the target has FMA); group sums
//   times their scales are added up in the same way; the tensor scale comes last. So scales never round a weight or leave its range.
// - The result is bitwise the same for any number of rows, threads and variant: few rows decode weights as they go, many rows decode a
//   panel into fp32 first.
// - Needs a workspace of at most 768 rows of A in fp32, and for each thread one of about 160 KiB; where W has no scales, of 256 bytes a k.
Status product(const TensorView& a, const PackedWeights& w, const TensorView& c, const Execution& how = {});
// A low-bit, with k along its columns (mxfp4, nvfp4, f8e4m3, f8e5m2): it is decoded to fp32, exactly but for numbers of 2^128 and more.
Status product(const LowBitView& a, const PackedWeights& w, const TensorView& c, const Execution& how = {});

// Rows from which panels are decoded first.
inline constexpr Index many_rows = 32;

struct QuantizeOptions {
  Index group = 0;    // 0: that of the format. f8 without scales: -1
  bool pad_k = true;  // false: K must be whole groups. Otherwise the last group is shorter
};

// Bytes as sizes_of() counts them.
struct LowBitBytes {
  LowBit format = LowBit::mxfp4;
  Index k = 0, n = 0, group = 0;
  float tensor_scale = 1;
  std::vector<std::byte> codes, scales, extra;
  LowBitView view() const {
    const auto data = [](const std::vector<std::byte>& bytes) { return bytes.empty() ? nullptr : bytes.data(); };
    return {format, k, n, group, data(codes), data(scales), data(extra), tensor_scale};
  }
};

// W [1, 1, K, N] in f32, f16 or bf16 by the rules of problem/low_bit.h. invalid_arguments: NaN or infinity in W, a scale that overflows
// its format, K that is not whole groups where pad_k is off.
Status quantize_weights(const TensorView& w, LowBit format, const QuantizeOptions& options, LowBitBytes& to);

}  // namespace assay::kernels
