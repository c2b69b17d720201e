// Inside oracle/: which gradients may be NaN if a kernel adds 0 times a NaN or an infinity at pairs
// of a row and a key that a mask hides. bounds_backward.md, 7.
#pragma once

#include <span>

#include "oracle/backward.h"

namespace assay {

// Marks these elements in the gradients of a group of heads, of which dQ has these rows, and in
// `shared`.
void mark_spread(const Attention& problem, const AttentionBackwardInput& input,
                 const BackwardReference& reference, Index b, Index g, std::span<const Index> rows,
                 GroupGradients& group, SharedGradients& shared);

}  // namespace assay
