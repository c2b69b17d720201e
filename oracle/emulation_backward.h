// Inside oracle/: the gradients of one query head in the roundings of a contract.
// docs/evidence.md, 1.
#pragma once

#include "oracle/emulation.h"

namespace assay {

// What the backward pass of one query head reads: all of its rows.
struct EmulatedBackward {
  EmulatedRows in;
  RowMajorSingle o, d_o;  // rows x Dv, as the forward pass stored them
  // Likewise; -inf for a row without weight. Empty for a kernel that gives no LSE: its gradients
  // rest on an LSE, or on weights, of its own, which have the errors of its scores.
  Eigen::VectorXf lse;
  Eigen::VectorXf d_lse;  // 0 where there is none
  float keep_scale = 1;   // 1 / (1 - dropout)
};

struct EmulatedGradients {
  RowMajorSingle dq;      // rows x D
  RowMajorSingle dk, dv;  // count x D, count x Dv: this head's part, for the keys from key0 on
};
EmulatedGradients emulate_backward(const Contract& c, const Schedule& how,
                                   const EmulatedBackward& in);

}  // namespace assay
