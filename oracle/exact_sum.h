// Inside oracle/: exact sums of products of dyadic numbers.
#pragma once

#include "oracle/low_bit_operands.h"
#include "oracle/product.h"

namespace assay {

// The product with a binary32 number. It is exact if that number is a power of two, and else right
// within 2^-100.
ExactSum times(ExactSum s, double factor);

// The exact sum of the first `length` products of a row of A with column c of W, without tensor
// scales.
ExactSum exact_of(const ProductRow& row, const ProductColumns& w, Index c, Index length);
// The whole sum, with them.
ExactSum exact_product(const Product& p, const ProductRow& row, const ProductColumns& w, Index c);

}  // namespace assay
