// Inside harness/identify/: one call of a backward pass on tensors that are given element by
// element.
#pragma once

#include <functional>
#include <vector>

#include "harness/candidates/candidate.h"
#include "problem/case.h"

namespace assay {

// The element of head h, row i (or key j) and column d.
using HeadEntries = std::function<double(Index, Index, Index)>;

// What a backward pass reads. O and LSE have to be those of Q, K and V, because a framework
// computes them again.
struct GradientQuestion {
  HeadEntries q, k, v, d_o, o;
  std::function<double(Index h, Index i)> lse;
};

// Gradients of head h, row i and column d.
struct GradientAnswer {
  Extents shape{};
  std::vector<double> dq, dk, dv;
  double at(const std::vector<double>& of, Index i, Index d) const {
    return of[usize(i * shape[3] + d)];
  }
};

// A shape that the candidate takes: 128 rows and keys without masks, of one head or of several
// query heads that share one.
class BackwardProbe {
 public:
  // Throws CandidateDeclined if the candidate takes none of the shapes that are tried.
  BackwardProbe(Candidate& candidate, Dtype dtype, Index group);

  const Case& shape() const { return case_; }
  Dtype dtype() const { return case_.dtype; }
  Index rows() const { return case_.shape.rows; }
  Index keys() const { return case_.shape.keys; }
  Index dim() const { return case_.shape.dim; }
  double scale() const { return scale_; }

  // Elements are rounded to the dtype. Throws CandidateError. The gradients are those of head 0.
  GradientAnswer ask(const GradientQuestion& question) const;

 private:
  Candidate& candidate_;
  Case case_;
  double scale_ = 1;
};

}  // namespace assay
