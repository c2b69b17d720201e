// Merges the results of attention over disjoint sets of keys into the result over their union.
#pragma once

#include <span>

#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

enum class LogBase { natural, two };

// Merges parts, which are normalised results O_s [B, H, L, Dv] (f32, f16 or bf16) and LSE_s
// [B, H, L, 1] (f32, in the given base) for the same rows over different keys. For each row:
//   m = max_s LSE_s,  w_s = base^(LSE_s - m),
//   O = sum_s (w_s / sum_s w_s) O_s,  LSE = m + log_base(sum_s w_s).
// All of this is computed in binary64. Both sums are in the order of the parts, and the second one
// is a chain of FMA. O and LSE are rounded once.
// - A part with LSE_s = -inf saw nothing in that row, and its O is not read. If all parts are so,
//   or if there is no part, O = 0 and LSE = -inf. NaN or +inf in some LSE_s makes the row NaN.
// - A sink is a part with O_s = 0 and LSE_s = its logit; it must be in exactly one part.
// - O may be f32, f16 or bf16; LSE (f32) may be absent. Shapes are those of the views. An output
//   must not overlap any other tensor.
Status attention_merge(std::span<const AttentionOutput> parts, LogBase base,
                       const AttentionOutput& out, int threads = 0);

}  // namespace assay::kernels
