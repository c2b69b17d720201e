// Attention over sequences of different lengths, packed one behind the other.
#pragma once

#include <span>

#include "kernels/simd/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// Where the diagonal of each sequence lies (`offset` in docs/semantics.md), unless the problem
// gives an offset for each sequence.
enum class Anchor { top_left, bottom_right };

// Computes attention over packed sequences. `packed` has batch 1 and has views Q
// [1, Hq, total rows, D] and so on over the packed [total, H, D] tensors. Sequence n owns the rows
// [cu_rows[n], cu_rows[n + 1]) and the keys [cu_keys[n], cu_keys[n + 1]), and sees no other key.
// Both lists have one entry more than there are sequences, begin at 0 and do not fall. Sequences
// may be empty, and rows behind the last sequence are not written. `packed.offset` has one entry
// for each sequence, or none. bias and keep belong to packed rows and keys. Key lengths, starts and
// documents are refused as unsupported. With dropout, sequence n draws with the seed dropout_seed +
// n.
//
// The bits of every sequence are those of its own call of attention_forward.
Status attention_varlen(const Attention& packed, std::span<const Index> cu_rows,
                        std::span<const Index> cu_keys, Anchor anchor, const AttentionOutput& out,
                        const Execution& how = {});

}  // namespace assay::kernels
