// Gradients in fp64 for the heads that share a kv head, with a proved radius for every element and
// the bound of a contract.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "oracle/backward_bound.h"
#include "oracle/reference.h"

namespace assay {

// What extended-real arithmetic says of a gradient: NaN, or something that it does not pin down (an
// infinity takes part, or a sum leaves the range).
enum class Taint : std::uint8_t { none, anything, nan };

// rows x columns, row-major. |exact - value| <= ratio * bound.
struct Gradient {
  Index rows = 0, columns = 0;
  std::vector<double> value;
  std::vector<double> bound;  // of |computed - exact| before the output rounding
  std::vector<double> ratio;  // per row
  std::vector<double> slack;  // per row: relative error of the bound itself
  // Per row: some visible pair contributes; if none does, the gradient is exactly 0.
  std::vector<char> touched;
  std::vector<Taint> taint;        // per element
  std::vector<char> may_overflow;  // per element: its accumulator could leave the range
  // Of dBias and dSink: sums of the largest that each computed term can be.
  std::vector<double> absolute;
};

struct GroupGradients {
  std::vector<Index> row_index;  // the rows of dq
  std::vector<Gradient> dq;      // of each query head of the group
  Gradient dk, dv;               // of all rows, or empty where only some rows were asked for
  // Only where pairs were asked for, of each query head: what the pair (i, j) brings to dQ_i and
  // dK_j (times the scale) and to dV_j; rows x keys, 0 where it brings nothing.
  std::vector<std::vector<float>> score_part, weight_part;
};

// Sums over a whole problem: of the elements of dBias (one row), of the sink of each head (one
// row).
struct SharedGradients {
  Gradient d_bias, d_sink;
};

// A contract applied to a problem, whose forward outputs are given. Keeps references to what it is
// given.
class BackwardReference {
 public:
  // `gradients` says whether dBias and dSink are wanted, and over which dimensions dBias sums
  // (strides of 0). `terms` are those of the bound that count: all of them, but in the test of the
  // terms.
  BackwardReference(const Attention& problem, const AttentionBackwardInput& input,
                    const AttentionGradients& gradients, const Contract& contract,
                    const BackwardTerms& terms = {});

  // For all rows, or for some of them. Adds what the heads contribute to `shared`. Not for two
  // groups at a time with the same `shared`.
  GroupGradients evaluate(Index b, Index g, std::span<const Index> rows, SharedGradients& shared,
                          bool with_pairs = false) const;

  SharedGradients no_shared_gradients() const;
  // Turns the sums of `shared` into bounds, once all groups are in.
  void finish(SharedGradients& shared) const;
  // Where an element of dBias is summed.
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
