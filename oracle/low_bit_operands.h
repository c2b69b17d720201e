// The rows of A and the columns of W of a low-bit product, decoded.
#pragma once

#include <vector>

#include "oracle/dyadic.h"
#include "problem/low_bit.h"

namespace assay {

struct ProductRow {
  std::vector<double> a;       // without tensor scale
  std::vector<double> finite;  // the same, with 0 for NaN and infinities
  Integers integers;
  std::vector<int> quantum;  // per group of W: the lowest bit of this row's numbers in it
  bool not_in_f32 = false;   // some dequantized element exceeds the range of binary32
  void read(const Product& p, Index m);
};

// Some columns of W: codes [k][column], scales [t][column].
struct ProductColumns {
  Index first = 0, count = 0, groups = 0, step = 0;
  double tensor_scale = 1;  // of W; in none of the numbers below
  std::vector<double> code, scale;
  std::vector<double> finite_code, finite_scale;  // the same, with 0 for NaN and infinities
  std::vector<Integers> integers;                 // of a column's weights
  std::vector<int> quantum;                       // of the codes of a group, [t][column]
  std::vector<double> largest;                    // of the codes of a group, [t][column]
  double code_at(Index k, Index c) const { return code[usize(k * count + c)]; }
  double scale_at(Index t, Index c) const { return scale[usize(t * count + c)]; }
  double weight(Index k, Index c) const { return code_at(k, c) * scale_at(k / step, c); }

  ProductColumns(const LowBitView& w, Index first_, Index count_);
};

}  // namespace assay
