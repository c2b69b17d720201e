// What a buggy kernel takes the problem and its outputs for.
#pragma once

#include <deque>

#include "harness/planted_faults.h"

namespace assay {

class MisreadProblem {
 public:
  // Views into `problem` and `out`, which outlive it.
  MisreadProblem(Fault fault, const Attention& problem, const AttentionOutput& out);
  MisreadProblem(const MisreadProblem&) = delete;
  MisreadProblem& operator=(const MisreadProblem&) = delete;

  const Attention& problem() const { return p_; }
  const AttentionOutput& out() const { return out_; }

 private:
  void misread_masks(Fault fault);
  void misread_tensors(Fault fault);
  TensorView room_for(const TensorView& of);

  Attention p_;
  AttentionOutput out_;
  std::deque<Tensor> copies_;
};

}  // namespace assay
