// Inside oracle/: the bound of low-bit products, derived in docs/bounds_product.md.
#pragma once

#include <vector>

#include "oracle/low_bit_operands.h"
#include "oracle/product.h"

namespace assay {

// Of one element, from its sum to the output.
struct ProductElementBound {
  double bound = 0, reach = 0;  // as in ProductBounds
  bool may_overflow = false;

  // Multiplies by a tensor scale g; `size` is the modulus of the exact value after it.
  void scale_by(double g, double size, const ProductContract& contract);
};

// Of a row against some columns; docs/bounds_product.md derives every line.
struct ProductBounds {
  std::vector<double> bound;     // of the sum before tensor scales and output rounding
  std::vector<double> gauge;     // sum |a w|
  std::vector<double> reach;     // that no partial sum exceeds, roundings included
  std::vector<char> may_overflow;

  void compute(const ProductRow& row, const ProductColumns& w, const ProductContract& c, Index length);
  ProductElementBound of_element(std::size_t column) const { return {bound[column], reach[column], may_overflow[column] != 0}; }

 private:
  std::vector<double> sum_, error_, magnitude_, total_, total_error_;
  std::vector<int> quantum_;
  std::vector<char> rounded_;  // some group sum may be
};

}  // namespace assay
