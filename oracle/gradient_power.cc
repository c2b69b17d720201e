#include "oracle/gradient_power.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "oracle/visibility.h"

namespace assay {
namespace {

// Computes 1 / (2 bound) of every element, transposed to columns x rows. It is 0 where nothing is
// asked of the element.
std::vector<float> inverse_bounds(const Gradient& g, Dtype out, double roundoff) {
  std::vector<float> inverse(g.value.size());
  const bool rounds = unit_roundoff(out) > roundoff;
  for (Index r = 0; r < g.rows; ++r)
    for (Index d = 0; d < g.columns; ++d) {
      const auto e = usize(r * g.columns + d);
      const double bound =
          g.bound[e] + (rounds ? half_ulp(out, std::fabs(g.value[e]) + g.bound[e]) : 0);
      const bool asked = g.taint[e] == Taint::none && bound > 0 && std::isfinite(bound);
      inverse[usize(d * g.rows + r)] =
          asked ? static_cast<float>(std::min(0.5 / bound, 0x1p127)) : 0;
    }
  return inverse;
}

// The absolute values of one row of a tensor, with 0 for numbers that are not finite.
std::vector<float> magnitudes(const TensorView& t, Index b, Index h, Index i) {
  std::vector<float> row;
  for (Index d = 0; d < t.shape[3]; ++d) {
    const double x = std::fabs(load(t, t.at(b, h, i, d)));
    row.push_back(std::isfinite(x) ? static_cast<float>(x) : 0);
  }
  return row;
}

// Computes reach[j] = max over d of factor[d] * matrix[d][j].
void largest_products(const std::vector<float>& factor, const std::vector<float>& matrix,
                      std::vector<float>& reach) {
  std::fill(reach.begin(), reach.end(), 0.0f);
  const std::size_t n = reach.size();
  for (std::size_t d = 0; d < factor.size(); ++d) {
    const float* row = matrix.data() + d * n;
    for (std::size_t j = 0; j < n; ++j) reach[j] = std::max(reach[j], factor[d] * row[j]);
  }
}

}  // namespace

void certify_gradients(const Attention& p, const TensorView& d_o, Index b, Index g,
                       const GroupGradients& gradients, const AttentionGradients& out,
                       double arithmetic_roundoff, GradientPower& power) {
  const AttentionShape& s = p.shape;
  const std::vector<float> dk = inverse_bounds(gradients.dk, out.dk.dtype, arithmetic_roundoff),
                           dv = inverse_bounds(gradients.dv, out.dv.dtype, arithmetic_roundoff);
  const auto keys = usize(s.keys);
  std::vector<float> k_transposed(usize(s.dim) * keys), by_dq(keys), by_dk(keys), by_dv(keys),
      own(usize(s.dim));
  for (Index j = 0; j < s.keys; ++j) {
    const std::vector<float> row = magnitudes(p.k, b, g, j);
    for (std::size_t d = 0; d < row.size(); ++d) k_transposed[d * keys + usize(j)] = row[d];
  }
  const float scale = std::fabs(p.scale);
  RowVisibility seen;
  for (Index head = 0; head < s.group(); ++head) {
    const Index h = g * s.group() + head;
    const auto at = usize(head);
    const std::vector<float> dq =
        inverse_bounds(gradients.dq[at], out.dq.dtype, arithmetic_roundoff);
    for (Index i = 0; i < s.rows; ++i) {
      evaluate_visibility(p, b, h, i, seen);
      if (seen.visible == 0) continue;
      for (std::size_t d = 0; d < own.size(); ++d) own[d] = dq[d * usize(s.rows) + usize(i)];
      largest_products(own, k_transposed, by_dq);
      largest_products(magnitudes(p.q, b, h, i), dk, by_dk);
      largest_products(magnitudes(d_o, b, h, i), dv, by_dv);
      const float* score = gradients.score_part[at].data() + i * s.keys;
      const float* weight = gradients.weight_part[at].data() + i * s.keys;
      for (Index j = seen.begin; j < seen.end; ++j) {
        const auto key = usize(j);
        if (seen.bias[key] == -std::numeric_limits<double>::infinity()) continue;
        const float part = scale * std::fabs(score[j]);
        const bool q = part * by_dq[key] > 1, k = part * by_dk[key] > 1,
                   v = weight[j] * by_dv[key] > 1;
        ++power.pairs;
        power.by_dq += q;
        power.by_dk += k;
        power.by_dv += v;
        power.by_any += q || k || v;
      }
    }
  }
}

}  // namespace assay
