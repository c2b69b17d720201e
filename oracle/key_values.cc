#include "oracle/key_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "oracle/lanes.h"
#include "oracle/safety_factors.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }

}  // namespace

double dropout_scale(const Attention& p) { return 1 / (1 - static_cast<double>(p.dropout)); }

void load_row(const TensorView& t, Index b, Index h, Index i, std::vector<double>& row) {
  row.resize(usize(t.shape[3]));
  const Index at = t.at(b, h, i, 0), step = t.stride[3];
  const auto* bytes = static_cast<const unsigned char*>(t.data);
  if (t.dtype == Dtype::f32) {
    for (std::size_t d = 0; d < row.size(); ++d) {
      float x;
      std::memcpy(&x, bytes + 4 * (at + static_cast<Index>(d) * step), 4);
      row[d] = x;
    }
  } else if (t.dtype == Dtype::bf16) {
    for (std::size_t d = 0; d < row.size(); ++d) {
      const unsigned char* two = bytes + 2 * (at + static_cast<Index>(d) * step);
      unsigned char x[4] = {0, 0, two[0], two[1]};
      float value;
      std::memcpy(&value, x, 4);
      row[d] = value;
    }
  } else {
    for (std::size_t d = 0; d < row.size(); ++d)
      row[d] = load(t, at + static_cast<Index>(d) * step);
  }
}

double quantum_of(double x) {
  if (x == 0 || !std::isfinite(x)) return inf;
  int e;
  const double scaled = std::ldexp(std::frexp(std::fabs(x), &e), 53);
  const auto significand = static_cast<unsigned long long>(static_cast<std::int64_t>(scaled));
  return std::ldexp(1.0, e - 53 + __builtin_ctzll(significand));
}

KeyValues::KeyValues(const ProjectedAttention& p, Index batch, Index head) : b(batch), g(head) {
  load_elements(p);
  if (p.projection) load_gauges(p);
  single = !p.projection;  // binary32 holds no gauges
  for (Dtype dtype : {p.q.dtype, p.k.dtype, p.v.dtype}) single = single && dtype != Dtype::f64;
  if (p.shape.keys > 0) {
    const double squared = keys_transposed_absolute.colwise().squaredNorm().maxCoeff();
    largest_key_norm = std::sqrt(squared) * (1 + safety::norm);
    largest_value = values_absolute.maxCoeff();
  }
  keys_transposed_single = keys_transposed.cast<float>();
  values_single = values.cast<float>();
}

// bounds.md, 8, NaN and infinities: what is not finite counts as 0 in the sums
void KeyValues::load_elements(const Attention& p) {
  const AttentionShape& s = p.shape;
  constexpr Index pad = 4 * lanes_of<float>;
  keys_transposed = RowMajor::Zero(s.dim, round_up(s.keys, pad) + pad);
  values = RowMajor::Zero(s.keys + 1, round_up(s.value_dim, lanes_of<float>));
  key_not_finite.assign(usize(s.keys), 0);
  value_not_finite = key_not_finite;
  const double scale = dropout_scale(p);
  std::vector<double> row;
  for (Index j = 0; j < s.keys; ++j) {
    const auto key = usize(j);
    load_row(p.k, b, g, j, row);
    for (Index d = 0; d < s.dim; ++d) {
      const double x = row[usize(d)];
      if (!std::isfinite(x)) key_not_finite[key] = any_key_not_finite = true;
      else keys_transposed(d, j) = x;
    }
    load_row(p.v, b, g, j, row);
    for (Index c = 0; c < s.value_dim; ++c) {
      const double x = row[usize(c)];
      if (!std::isfinite(x)) value_not_finite[key] = any_value_not_finite = true;
      else values(j, c) = scale * x;
    }
  }
  keys_transposed_absolute = keys_transposed.cwiseAbs();
  values_absolute = values.cwiseAbs();
}

// bounds.md, 8, Projected keys and values: their gauges stand for |k| and |v|
void KeyValues::load_gauges(const ProjectedAttention& p) {
  const double scale = dropout_scale(p);
  std::vector<double> row;
  for (Index j = 0; j < p.shape.keys; ++j) {
    load_row(p.projection.k_absolute, b, g, j, row);
    for (Index d = 0; d < p.shape.dim; ++d) keys_transposed_absolute(d, j) = row[usize(d)];
    load_row(p.projection.v_absolute, b, g, j, row);
    for (Index c = 0; c < p.shape.value_dim; ++c) values_absolute(j, c) = scale * row[usize(c)];
  }
}

double KeyValues::key_quantum() const {
  std::call_once(quantum_once_, [this] {
    for (Index e = 0; e < keys_transposed.size(); ++e)
      key_quantum_ = std::min(key_quantum_, quantum_of(keys_transposed.data()[e]));
  });
  return key_quantum_;
}

}  // namespace assay
