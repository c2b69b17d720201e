// Inside harness/identify/: one call of a kernel on tensors that are given element by element.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "problem/case.h"

namespace assay {

// The element of row i (or key j) and column d.
using Entries = std::function<double(Index, Index)>;

struct ProbeAnswer {
  Index columns = 0;
  std::vector<double> o;    // rows x columns
  std::vector<double> lse;  // per row; empty for a candidate that gives none
  double at(Index i, Index c) const { return o[usize(i * columns + c)]; }
};

// A shape that the candidate takes: one head without masks, so that every row sees every key.
class Probe {
 public:
  // Throws CandidateDeclined if the candidate takes none of the shapes that are tried.
  Probe(Candidate& candidate, Dtype dtype);

  const Case& shape() const { return case_; }
  Dtype dtype() const { return case_.dtype; }
  Index rows() const { return case_.shape.rows; }
  Index keys() const { return case_.shape.keys; }
  Index dim() const { return case_.shape.dim; }
  double scale() const { return scale_; }

  // Elements are rounded to the dtype. Throws CandidateError.
  ProbeAnswer ask(const Entries& q, const Entries& k, const Entries& v) const;

 private:
  Candidate& candidate_;
  Case case_;
  double scale_ = 1;
};

}  // namespace assay
