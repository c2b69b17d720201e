#include <algorithm>
#include <cmath>

#include "oracle/product.h"

namespace assay {

QuantizationError quantization_error(const Product& p,
                                     const std::function<double(Index, Index)>& original) {
  const std::vector<double> w = decode_weights(p.w), a = decode_activations(p);
  std::vector<double> difference(w.size());
  double error = 0, size = 0;
  std::vector<double> exact(w.size());
  for (Index k = 0; k < p.k; ++k)
    for (Index n = 0; n < p.n; ++n) {
      const auto at = usize(k * p.n + n);
      exact[at] = original(k, n);
      difference[at] = w[at] - exact[at];
      error += difference[at] * difference[at];
      size += exact[at] * exact[at];
    }
  QuantizationError q;
  q.weights = size > 0 ? std::sqrt(error / size) : 0;
  error = size = 0;
  for (Index m = 0; m < p.m; ++m) {
    // A row of A with NaN or infinities says nothing about quantization.
    if (!std::all_of(a.begin() + m * p.k, a.begin() + (m + 1) * p.k,
                     [](double x) { return std::isfinite(x); }))
      continue;
    for (Index n = 0; n < p.n; ++n) {
      double off = 0, whole = 0;
      for (Index k = 0; k < p.k; ++k) {
        off += a[usize(m * p.k + k)] * difference[usize(k * p.n + n)];
        whole += a[usize(m * p.k + k)] * exact[usize(k * p.n + n)];
      }
      error += off * off;
      size += whole * whole;
    }
  }
  q.products = size > 0 ? std::sqrt(error / size) : 0;
  return q;
}

}  // namespace assay
