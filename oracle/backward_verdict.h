// The verdict on the gradients of one case: every element against its proved bound.
#pragma once

#include "oracle/verdict.h"

namespace assay {

// Judges dQ, dK, dV and, where given, dBias and dSink, for the O and LSE in `input`, whose own
// errors it takes into account element by element (whether O and LSE are good enough is judge()'s
// business). Without an LSE the kernel is taken to have kept its weights. With options.sample_rows
// only dQ is judged: the others need every row.
Verdict judge_backward(const Attention& problem, const AttentionBackwardInput& input,
                       const AttentionGradients& out, const Contract& contract,
                       const JudgeOptions& options = {});

// Adds a verdict on gradients to that on the O and LSE they were computed from; the worse outcome
// counts.
void add_gradients(Verdict& forward, const Verdict& gradients);

// As judge_by_ladder(), for gradients.
Verdict judge_backward_by_ladder(const Attention& problem, const AttentionBackwardInput& input,
                                 const AttentionGradients& out, const JudgeOptions& options = {});

}  // namespace assay
