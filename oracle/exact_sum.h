// Inside oracle/: sums of products of dyadic numbers, exact.
#pragma once

#include "oracle/low_bit_operands.h"
#include "oracle/product.h"

namespace assay {

// Times a binary32 number: exact where it is a power of two, else within 2^-100.
ExactSum times(ExactSum s, double factor);

// The first `length` terms of a row of A against column c, without tensor scales.
ExactSum exact_of(const ProductRow& row, const ProductColumns& w, Index c, Index length);

}  // namespace assay
