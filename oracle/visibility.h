// Which key which row sees, and with which bias: semantics.md evaluated literally, for one row at a
// time. Shares nothing with the kernels.
#pragma once

#include <vector>

#include "problem/attention.h"

namespace assay {

struct RowVisibility {
  // Arrays over all Lk keys.
  std::vector<double>
      bias;  // exact sum of the finite biases up to double; -inf: masked; +inf, NaN as given
  std::vector<double> magnitude;  // sum of the absolute values of what is added
  std::vector<double> product;    // absolute value of the ALiBi product, which a kernel rounds
  Index begin = 0, end = 0;       // every visible key lies in [begin, end)
  Index visible = 0;              // their number
  int additions = 0;              // biases that can differ from zero
};

// What causality, windows, lengths and starts leave to row i of a batch: keys [begin, end), empty
// where begin >= end.
struct KeyInterval {
  Index begin, end;
};
KeyInterval visible_interval(const Attention& p, Index b, Index i);
// Whether single keys of an interval can be masked: by a boolean or additive mask or by segments.
bool masks_elements(const Attention& p);

// Reuses the storage of `row`.
void evaluate_visibility(const Attention& p, Index b, Index h, Index i, RowVisibility& row);

// scale * q.k_j after the softcap by extended-real arithmetic: for rows and keys that hold NaN or
// infinities.
double extended_score(const Attention& p, Index b, Index h, Index i, Index j);

// Dropout: whether the weight of (b, h, i, j) is kept.
bool keeps_weight(const Attention& p, Index b, Index h, Index i, Index j);

}  // namespace assay
