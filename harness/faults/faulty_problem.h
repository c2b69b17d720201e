// Inside harness/faults/: the problem and the outputs as a buggy kernel misreads them.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "harness/faults/planted_faults.h"

namespace assay {

class MisreadProblem {
 public:
  // The result holds views into `problem` and `out`, which must outlive it.
  MisreadProblem(Fault fault, const Attention& problem, const AttentionOutput& out);
  MisreadProblem(const MisreadProblem&) = delete;
  MisreadProblem& operator=(const MisreadProblem&) = delete;

  const Attention& problem() const { return p_; }
  const AttentionOutput& out() const { return out_; }

 private:
  void misread_masks(Fault fault);
  void misread_tensors(Fault fault);
  TensorView room_for(const TensorView& of);
  // Makes the masks of the problem anew: each row and key gets what the row from_row(row, key) has
  // there. Where that is negative, the element is not masked (a bias of 0, or kept).
  template <class FromRow>
  void replace_masks(const FromRow& from_row);

  Attention p_;
  AttentionOutput out_;
  std::deque<Tensor> copies_;
  std::vector<std::uint8_t> keep_;
};

}  // namespace assay
