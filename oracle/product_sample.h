// Inside oracle/: the rows and columns of a product that evidence looks at, with the candidate's
// errors there, and the errors of replicates.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "oracle/key_values.h"
#include "oracle/product.h"

namespace assay {

// Some rows and columns of a product. `exact` and `error` are rows x columns.
struct ProductSample {
  std::vector<Index> rows, columns;
  RowMajor a, w;  // rows x K, K x columns: what the bytes mean
  RowMajor exact, error;
  Eigen::ArrayXX<bool> asked;
  Index group = 0;  // of W; 0: none
  double tensor_scale = 1;
  Dtype out = Dtype::f32;
};

// Rows and columns that are spread over C, with those of the worst element of the verdict.
ProductSample sample_product(const Product& p, const TensorView& c, const Verdict& bounds,
                             std::uint64_t seed);

struct ProductReplicates {
  std::vector<RowMajor> error;
  RowMajor square;  // mean over the replicates; infinite where one left the range
};

ProductReplicates replicate(const ProductSample& s, const ProductContract& c,
                            const JudgeOptions& options);

}  // namespace assay
