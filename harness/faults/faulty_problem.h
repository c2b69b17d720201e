// What a buggy kernel takes the problem and its outputs for.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "harness/faults/planted_faults.h"

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
  // The masks that are there, made anew for every row and key from those of another row, or none
  // (0, or kept) where `from_row` is negative.
  template <class FromRow>
  void replace_masks(const FromRow& from_row);

  Attention p_;
  AttentionOutput out_;
  std::deque<Tensor> copies_;
  std::vector<std::uint8_t> keep_;
};

}  // namespace assay
