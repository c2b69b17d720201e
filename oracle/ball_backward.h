// The gradients of one kv head in ball arithmetic (Arb), computed directly from docs/semantics.md.
// They are meant for small, finite problems.
#pragma once

#include <vector>

#include "oracle/ball.h"

namespace assay {

class BallGradients {
 public:
  // Computes the gradients of <dO, O> for the exact O, for all rows of the query heads of kv head
  // g. Inputs must be finite where they are visible.
  // dLSE may be absent.
  BallGradients(const Attention& p, const TensorView& d_o, const TensorView& d_lse, Index b,
                Index g, long bits);

  using Enclosure = BallRow::Enclosure;
  // `head` is the number of the query head within the group.
  const Enclosure& dq(Index head, Index i, Index d) const {
    return at(dq_, head * rows_ + i, dim_, d);
  }
  const Enclosure& dk(Index j, Index d) const { return at(dk_, j, dim_, d); }
  const Enclosure& dv(Index j, Index c) const { return at(dv_, j, value_dim_, c); }
  // dS of a pair, which is what the pair adds to dBias.
  const Enclosure& ds(Index head, Index i, Index j) const {
    return at(ds_, head * rows_ + i, keys_, j);
  }
  // What the rows of a head add to dSink.
  const Enclosure& d_sink(Index head) const { return d_sink_[usize(head)]; }

 private:
  static const Enclosure& at(const std::vector<Enclosure>& m, Index row, Index columns,
                             Index column) {
    return m[usize(row * columns + column)];
  }
  Index rows_, keys_, dim_, value_dim_;
  std::vector<Enclosure> dq_, dk_, dv_, ds_, d_sink_;
};

}  // namespace assay
