// Sequences of different lengths, packed one behind the other.
#pragma once

#include <span>

#include "kernels/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// Where the diagonal of each sequence lies (docs/semantics.md: `offset`), unless the problem gives one per sequence.
enum class Anchor { top_left, bottom_right };

// `packed` has batch 1 and views Q [1, Hq, total rows, D] and so on over the packed [total, H, D] tensors; sequence n owns
// rows [cu_rows[n], cu_rows[n + 1]) and keys [cu_keys[n], cu_keys[n + 1]) and sees nothing else. Both lists hold one entry
// more than there are sequences, begin at 0 and do not fall; sequences may be empty, and rows behind the last one are not
// written. `packed.offset` has an entry per sequence or none; bias and keep are of packed rows and keys; key lengths,
// starts and documents are refused as unsupported. With dropout, sequence n draws with the seed dropout_seed + n.
//
// Every sequence gets the bits of a call of attention_forward of its own.
Status attention_varlen(const Attention& packed, std::span<const Index> cu_rows, std::span<const Index> cu_keys, Anchor anchor, const AttentionOutput& out,
                        const Execution& how = {});

}  // namespace assay::kernels
