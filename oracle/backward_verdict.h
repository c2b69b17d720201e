// The verdict on the gradients of one case: every element against its proved bound.
#pragma once

#include "oracle/verdict.h"

namespace assay {

// Judges dQ, dK, dV and, where they are given, dBias and dSink, for the O and LSE in `input`. The
// errors of this O and LSE are taken into account element by element; whether O and LSE are good
// enough is for judge() to say. If there is no LSE, the kernel is assumed to have kept its weights.
// With options.sample_rows only dQ is judged, because the other gradients need every row.
Verdict judge_backward(const Attention& problem, const AttentionBackwardInput& input,
                       const AttentionGradients& out, const Contract& contract,
                       const JudgeOptions& options = {});

// Adds a verdict on gradients to the verdict on the O and LSE from which they were computed. The
// worse of the two outcomes counts.
void add_gradients(Verdict& forward, const Verdict& gradients);

// Does for gradients what judge_by_ladder() does for O and LSE.
Verdict judge_backward_by_ladder(const Attention& problem, const AttentionBackwardInput& input,
                                 const AttentionGradients& out, const JudgeOptions& options = {});

}  // namespace assay
