// Inside harness/identify/: one call of a kernel on a low-bit product whose terms are given one by
// one.
#pragma once

#include <functional>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/identify/sums.h"
#include "problem/case.h"

namespace assay {

struct ProductTerm {
  double a = 0;     // the element of A
  double code = 1;  // what the code of W means without its scale
};

// One element of C: its terms by their places, and the scales by their groups. Places count what W
// holds: of 2:4 sparse weights, the first two of each four.
struct ProductSum {
  std::function<ProductTerm(Index)> term;
  std::function<double(Index)> scale = [](Index) { return 1.0; };
};

// A shape that the candidate takes. The sums are elements (i, i) of C, so that each of them has a
// row of A and a column of W of its own.
class ProductProbe {
 public:
  // Throws CandidateDeclined if the candidate takes none of the shapes that are tried.
  ProductProbe(Candidate& candidate, const Case& asked);

  const Case& shape() const { return case_; }
  const LowBitTraits& format() const { return traits(case_.product.format); }
  Index terms() const { return kept(case_.product.k); }
  // The number of terms of a group; 0: there are no scales.
  Index group() const { return kept(case_.product.group_size()); }
  // Throws CandidateError.
  std::vector<double> ask(const std::vector<ProductSum>& sums, double tensor_scale = 1) const;

 private:
  Index kept(Index k) const { return case_.product.format == LowBit::fp4_sparse ? k / 2 : k; }
  Index place_in_k(Index term) const {
    return case_.product.format == LowBit::fp4_sparse ? term / 2 * 4 + term % 2 : term;
  }
  void write(ProductInputs& in, Index at, const ProductSum& sum) const;

  Candidate& candidate_;
  Case case_;
};

}  // namespace assay
