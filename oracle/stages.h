// The exact value of every stage of tiled attention, and how far from it a kernel that keeps its
// contract may be. Derivation: docs/bounds.md, 15, and docs/bounds_backward.md, 11.
//
// After some tiles, the state of the online softmax is m = max s_j, l = sum e^(s_j - m) and the
// accumulator sum e^(s_j - m) v_j, over the visible keys of [first, end). It does not depend on how
// these keys were divided into tiles. Sinks are added at the end, in the output and LSE.
#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "oracle/backward_bound.h"
#include "oracle/reference.h"
#include "problem/conventions.h"

namespace assay {

// |computed - value| <= error. If the value is not known, the computed one only has to be a number.
struct Expected {
  double value = 0, error = 0;
  bool known = true;
  static Expected unknown() { return {0, std::numeric_limits<double>::infinity(), false}; }
  bool holds(double computed) const {
    return known ? computed == value || std::fabs(computed - value) <= error
                 : !std::isnan(computed);
  }
};

// The stages of one query row.
class StageRow {
 public:
  // Whether the row is judged: the inputs that it sees hold no NaN and no infinity, and its scores
  // stay within the range. The stages of other rows are not judged.
  bool judged() const { return judged_; }
  bool visible(Index j) const;

  Expected score(Index j) const;        // scaled and capped, before biases; of a visible key
  Expected plain_score(Index j) const;  // before the softcap; not known where there is one
  Expected masked(Index j) const;       // with biases; -infinity where masked
  // These are over the keys [first, end), which lie in `tiles` tiles, or over [first, before) and
  // then over more keys.
  Expected row_max(Index first, Index end) const;
  Expected correction(Index first, Index before, Index end) const;
  Expected weight(Index j, Index first, Index end) const;  // e^(s_j - m) under dropout
  Expected row_sum(Index first, Index end, Index tiles) const;
  Expected accumulated(Index first, Index end, Index tiles, Index column) const;
  Expected output(Index column) const;  // before it is rounded to the dtype of O
  Expected lse() const;

  // Backward pass: these follow from O and LSE as they are stored.
  Expected delta() const;
  Expected probability(Index j) const;      // before dropout
  Expected weight_gradient(Index j) const;  // dP = dO.v, before dropout
  Expected score_gradient(Index j) const;   // dS, with the softcap's slope

 private:
  friend class StageReference;
  struct Maximum {
    Expected most;
    Index live = 0;
  };
  const Maximum& maximum(Index first, Index end) const;
  double exponent_error(const Expected& from, const Expected& to) const;
  // body(j) for the visible keys of [first, end).
  template <class Body>
  void for_each_visible(Index first, Index end, const Body& body) const;
  // body(j, e^(s_j - m), the relative error of the computed one) for these keys.
  template <class Body>
  void for_each_weight(Index first, Index end, Index tiles, const Body& body) const;

  const Attention* p_ = nullptr;
  const Contract* c_ = nullptr;
  const KeyValues* kv_ = nullptr;
  Block block_;
  bool judged_ = false;
  mutable std::map<std::pair<Index, Index>, Maximum> maxima_;
  // Only for the backward pass.
  Expected delta_;
  std::vector<Expected> probability_, weight_gradient_, score_gradient_;
};

// Gives the rows of a problem, with the errors that the contract and the conventions allow. A row
// is computed when it is first asked for, and kept. The object is not thread-safe, and keeps
// references to the problem and the input.
class StageReference {
 public:
  StageReference(const Attention& problem, const Contract& contract, const Conventions& conventions,
                 const AttentionBackwardInput* backward = nullptr);
  const StageRow& row(Index b, Index h, Index i);

 private:
  void add_backward(StageRow& row, Index b, Index h, Index i) const;
  void add_weight_gradients(StageRow& row, const std::vector<double>& sum,
                            const std::vector<double>& absolute,
                            const std::vector<double>& lost) const;
  void add_pairs(StageRow& row, const GradientTruth& t) const;

  const Attention& problem_;
  const Contract contract_;
  const AttentionBackwardInput* backward_;
  Reference reference_;
  std::map<std::pair<Index, Index>, KeyValuesPointer> heads_;
  std::map<std::tuple<Index, Index, Index>, StageRow> rows_;
};

}  // namespace assay
