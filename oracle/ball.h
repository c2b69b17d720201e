// One row of attention in ball arithmetic (Arb): midpoints with rigorous radii, at any precision.
#pragma once

#include <memory>
#include <vector>

#include "oracle/bound.h"

namespace assay {

class BallRow {
 public:
  // Computes row i of query head h. NaN and infinities in the inputs count as 0, as in Reference.
  BallRow(const ProjectedAttention& p, Index b, Index h, Index i, long bits);

  // O[c] and LSE lie within `radius` of value + low. `low` is the part of the midpoint that is lost
  // when it is rounded to double.
  double o(Index c) const { return o_[usize(c)].value; }
  double o_low(Index c) const { return o_[usize(c)].low; }
  double o_radius(Index c) const { return o_[usize(c)].radius; }
  double lse() const { return lse_.value; }
  double lse_low() const { return lse_.low; }
  double lse_radius() const { return lse_.radius; }
  // The truth of the keys [key0, key0 + count). Its arrays live as long as this object.
  RowTruth truth(Index key0, Index count, bool with_prefix) const;

  struct Enclosure {
    double value = 0, low = 0, radius = 0;
  };

 private:
  class Evaluation;

  std::vector<Enclosure> o_;
  Enclosure lse_;
  RowTruth truth_;
  std::vector<double> gap_, dot_, absolute_, prefix_, weight_, magnitude_, product_, kept_;
};

}  // namespace assay
