// Which keys a row sees, and with which biases: semantics.md evaluated literally, one row at a
// time. This shares no code with the kernels.
#pragma once

#include <vector>

#include "problem/attention.h"
#include "problem/conventions.h"

namespace assay {

// The offsets of a problem whose diagonal is where the convention has it. Offsets that are given
// stay.
std::vector<Index> anchored_offset(const Attention& p, const Conventions& conventions);
// The problem with these offsets.
template <class Problem>
Problem anchored(Problem p, const Conventions& conventions) {
  p.offset = anchored_offset(p, conventions);
  return p;
}
// Whether something in the problem depends on its offset.
bool uses_offset(const Attention& p);

struct RowVisibility {
  // These arrays are over all Lk keys. `bias` is the exact sum of the finite biases, rounded to
  // double; -inf: masked; +inf and NaN as given.
  std::vector<double> bias;
  std::vector<double> magnitude;  // sum of the absolute values of the biases
  std::vector<double> product;    // absolute value of the ALiBi product, which a kernel rounds
  Index begin = 0, end = 0;       // every visible key lies in [begin, end)
  Index visible = 0;              // their number
  int additions = 0;              // biases that can differ from zero
};

// The keys [begin, end) that causality, windows, lengths and starts leave to row i of a batch.
// There are none where begin >= end.
struct KeyInterval {
  Index begin, end;
};
KeyInterval visible_interval(const Attention& p, Index b, Index i);
// Whether single keys of an interval can be masked: by a boolean or additive mask or by segments.
bool masks_elements(const Attention& p);

// Fills `row`, whose storage is reused.
void evaluate_visibility(const Attention& p, Index b, Index h, Index i, RowVisibility& row);

// scale * q.k_j after the softcap, by extended-real arithmetic. It serves rows and keys that hold
// NaN or infinities.
double extended_score(const Attention& p, Index b, Index h, Index i, Index j);

// Whether a row sees keys, has no sink, and every visible score is -inf, by extended-real
// arithmetic. `row` is its visibility.
bool is_weightless(const Attention& p, Index b, Index h, Index i, const RowVisibility& row);

// Whether dropout keeps the weight of (b, h, i, j).
bool keeps_weight(const Attention& p, Index b, Index h, Index i, Index j);

}  // namespace assay
