// Gradients in fp64 for the heads that share a kv head. Every element has a proved radius and the
// bound that follows from a contract.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "oracle/backward_bound.h"
#include "oracle/reference.h"

namespace assay {

// What extended-real arithmetic says of a gradient: it is finite (none), it is NaN, or it can be
// anything, because an infinity takes part or because a sum leaves the range.
enum class Taint : std::uint8_t { none, anything, nan };

// Arrays are rows x columns, row-major. |exact - value| <= ratio * bound.
struct Gradient {
  Index rows = 0, columns = 0;
  std::vector<double> value;
  std::vector<double> bound;  // of |computed - exact| before the output rounding
  std::vector<double> ratio;  // per row
  std::vector<double> slack;  // per row: relative error of the bound itself
  // Per row: whether some visible pair contributes to it. If none does, the gradient is exactly 0.
  std::vector<char> touched;
  std::vector<Taint> taint;        // per element
  std::vector<char> may_overflow;  // per element: its accumulator could leave the range
  // Per element, if mark_spread() was called: whether it may be NaN because 0 times a NaN or an
  // infinity is added.
  std::vector<char> spread;
  // Only for dBias and dSink: the sum of the largest absolute values that the computed terms can
  // have.
  std::vector<double> absolute;
};

struct GroupGradients {
  std::vector<Index> row_index;  // the rows of dq
  std::vector<Gradient> dq;      // of each query head of the group
  Gradient dk, dv;               // of all rows, or empty where only some rows were asked for
  // Filled only where pairs were asked for; one array for each query head. An entry says what the
  // pair (i, j) contributes to dQ_i and dK_j (times the scale), and what it contributes to dV_j. An
  // array is rows x keys, and holds 0 where a pair contributes nothing.
  std::vector<std::vector<float>> score_part, weight_part;
};

// The gradients that are summed over a whole problem: the elements of dBias (in one row) and the
// sink of each head (in one row).
struct SharedGradients {
  Gradient d_bias, d_sink;
};

// A contract applied to a problem whose forward outputs are given. The object keeps references to
// its arguments.
class BackwardReference {
 public:
  // `gradients` says whether dBias and dSink are wanted, and over which dimensions dBias is summed
  // (those with a stride of 0). `terms` are the terms of the bound that count. These are all of
  // them, except in the test that leaves out one at a time.
  BackwardReference(const Attention& problem, const AttentionBackwardInput& input,
                    const AttentionGradients& gradients, const Contract& contract,
                    const BackwardTerms& terms = {});

  // Evaluates all rows or some of them, and adds to `shared` what the heads contribute. Two calls
  // with the same `shared` must not run at the same time.
  GroupGradients evaluate(Index b, Index g, std::span<const Index> rows, SharedGradients& shared,
                          bool with_pairs = false) const;

  SharedGradients no_shared_gradients() const;
  // Turns the sums of `shared` into bounds, once all groups are in.
  void finish(SharedGradients& shared) const;
  // The index of the element of dBias into which the pair (i, j) is summed.
  Index bias_element(Index b, Index h, Index i, Index j) const;

  const Contract& contract() const { return reference_.contract(); }

 private:
  friend class GroupSum;
  void lay_out_bias(const TensorView& d_bias);

  const Attention& problem_;
  const AttentionBackwardInput& input_;
  Reference reference_;
  BackwardContext context_;
  Extents bias_stride_{};
  Index bias_elements_ = 0;
  bool has_sink_ = false;
};

}  // namespace assay
