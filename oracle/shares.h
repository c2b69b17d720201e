// Inside oracle/: the sums behind the answers of matched filters. docs/evidence.md, 2.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "oracle/evidence.h"

namespace assay {

// A key, row or term is missing, double or exchanged; what is off by less than this is rounded.
inline constexpr double least_share_of_part = 0.02;

struct FilterAnswers {
  std::vector<FilterAnswer> most_significant;  // at most five once sorted
  Index questions = 0;

  void keep_most_significant() {
    auto& list = most_significant;
    std::ranges::sort(list, [](const FilterAnswer& a, const FilterAnswer& b) {
      return a.significance() > b.significance();
    });
    if (list.size() > 5) list.resize(5);
  }
};

// What is typical of squares, each row those of all replicates: their mean, and no less than a
// quarter of the largest. A right kernel computes in one way, which may be the one that errs most.
inline Eigen::ArrayXd typical_squares(const Eigen::ArrayXXd& squares) {
  return squares.rowwise().mean().max(squares.rowwise().maxCoeff() / 4);
}

// The shares of one kind of fault, by an index: a key, a lane, a tile or a distance. Each share is
// a sum over rows. The same sums over the errors of replicates show how large a share can be by
// chance.
class Shares {
 public:
  // The variance of a share counts as at least `independent` times that of independent errors.
  // Where sums cancel, the twelve replicates may agree with one another although kernels differ.
  Shares(Index count, Index replicates, double independent = 0)
      : independent_(independent),
        numerator_(Eigen::ArrayXd::Zero(count)),
        denominator_(numerator_),
        chance_(Eigen::ArrayXXd::Zero(count, replicates)) {}

  Index size() const { return numerator_.size(); }

  // `product` is sum w g e, and `square` is sum w g g. `by_chance` has sum w g e over the errors of
  // each replicate.
  void add(Index at, double product, double square, const double* by_chance) {
    numerator_(at) += product;
    denominator_(at) += square;
    for (Index k = 0; k < chance_.cols(); ++k) chance_(at, k) += by_chance[k];
  }
  void add(Index at, const Shares& other, Index from) {
    numerator_(at) += other.numerator_(from);
    denominator_(at) += other.denominator_(from);
    chance_.row(at) += other.chance_.row(from);
  }

  // Every index is a question; a share below `least` does not count in full. The most
  // significant answer is kept. The spread of one index is estimated from few replicates, so it is
  // not taken to be less than what is usual among all.
  template <class Name>
  void answer(FilterAnswers& answers, double least, const Name& name) const {
    const Eigen::ArrayXd square = typical_squares(chance_.square());
    double ratio = 0, asked = 0;
    for (Index at = 0; at < size(); ++at)
      if (denominator_(at) > 0) ratio += square(at) / denominator_(at), ++asked;
    if (asked == 0) return;
    ratio /= asked;
    answers.questions += static_cast<Index>(asked);
    FilterAnswer best;
    Index where = -1;
    for (Index at = 0; at < size(); ++at) {
      if (!(denominator_(at) > 0)) continue;
      // The denominator is the variance of the numerator if errors are independent and typical.
      const double spread =
          std::sqrt(std::max(square(at), std::max(ratio, independent_) * denominator_(at)));
      const FilterAnswer answer{
          {}, numerator_(at) / denominator_(at), numerator_(at) / spread, least};
      if (answer.significance() <= best.significance()) continue;
      best = answer;
      where = at;
    }
    if (where < 0) return;
    best.fault = name(where);
    answers.most_significant.push_back(std::move(best));
  }

 private:
  double independent_;
  Eigen::ArrayXd numerator_, denominator_;
  Eigen::ArrayXXd chance_;
};

}  // namespace assay
