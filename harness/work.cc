#include "harness/work.h"

namespace assay {

double multiply_adds(const Case& c) {
  if (c.operation == Operation::product)
    return static_cast<double>(c.product.m) * static_cast<double>(c.product.n) *
           static_cast<double>(c.product.k);
  const AttentionShape& s = c.shape;
  const double pairs = static_cast<double>(s.batch * s.query_heads) * static_cast<double>(s.rows) *
                       static_cast<double>(s.keys);
  return pairs * static_cast<double>(s.dim + s.value_dim);
}

}  // namespace assay
