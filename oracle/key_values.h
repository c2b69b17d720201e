// Inside oracle/: one head's K and V in the forms that the sums need.
#pragma once

#include <Eigen/Core>
#include <limits>
#include <mutex>
#include <vector>

#include "problem/attention.h"

namespace assay {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorSingle = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

class KeyValues {
 public:
  KeyValues(const ProjectedAttention& p, Index batch, Index head);

  Index b, g;
  RowMajor keys_transposed;           // D x Lk, padded; 0 where not finite
  RowMajor keys_transposed_absolute;  // absolute values of keys_transposed, or their gauges
  RowMajor values;                    // Lk x Dv, padded, times keep_scale; 0 where not finite
  RowMajor values_absolute;
  // K and V in binary32. If `single`, they are exact, except that the product with keep_scale was
  // rounded.
  RowMajorSingle keys_transposed_single, values_single;
  bool single = true;  // whether binary32 holds all that is known of K and V, in its normal range
  double largest_key_norm = 0, largest_value = 0;  // upper bounds of the norms of keys and of |v|
  std::vector<char> key_not_finite;                // per key
  std::vector<char> value_not_finite;              // per key: whether some column is not finite
  bool any_key_not_finite = false, any_value_not_finite = false;

  // The largest power of two that divides every element of K; infinity where all elements are 0. It
  // is computed on first use.
  double key_quantum() const;

 private:
  void load_elements(const Attention& p);
  void load_gauges(const ProjectedAttention& p);

  mutable std::once_flag quantum_once_;
  mutable double key_quantum_ = std::numeric_limits<double>::infinity();
};

// 1 / (1 - p) of the dropout p, by which kept values are multiplied; 1 without dropout.
double dropout_scale(const Attention& p);

// Reads one row of a tensor as doubles. The dtype is looked at only once for the row.
void load_row(const TensorView& t, Index b, Index h, Index i, std::vector<double>& row);

// The largest power of two that divides x; infinity for 0, which every power of two divides.
double quantum_of(double x);

}  // namespace assay
