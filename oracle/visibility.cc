#include "oracle/visibility.h"

#include <Random123/philox.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace assay {
namespace {
constexpr double inf = std::numeric_limits<double>::infinity();
}

bool uses_offset(const Attention& p) {
  return p.causal || p.window_left != -1 || p.window_right != -1 || !p.alibi_slopes.empty();
}

std::vector<Index> anchored_offset(const Attention& p, const Conventions& conventions) {
  const auto anchor = conventions.of<Anchor>();
  if (anchor == Anchor::top_left || !p.offset.empty() || !uses_offset(p)) return p.offset;
  std::vector<Index> offset;
  for (Index b = 0; b < p.shape.batch; ++b) {
    const bool of_length = anchor == Anchor::end_of_lengths && !p.key_lengths.empty();
    offset.push_back((of_length ? p.key_lengths[usize(b)] : p.shape.keys) - p.shape.rows);
  }
  return offset;
}

KeyInterval visible_interval(const Attention& p, Index b, Index i) {
  const Index offset = p.offset_of(b);
  Index first = 0, last = p.shape.keys - 1;
  if (!p.key_starts.empty()) first = std::max(first, p.key_starts[usize(b)]);
  if (!p.key_lengths.empty()) last = std::min(last, p.key_lengths[usize(b)] - 1);
  if (p.causal) last = std::min(last, i + offset);
  if (p.window_left != -1) first = std::max(first, i + offset - p.window_left);
  if (p.window_right != -1) last = std::min(last, i + offset + p.window_right);
  return {first, last + 1};
}

bool masks_elements(const Attention& p) { return p.keep || p.bias || !p.query_segment.empty(); }

void evaluate_visibility(const Attention& p, Index b, Index h, Index i, RowVisibility& row) {
  const Index keys = p.shape.keys;
  const auto n = usize(keys);
  row.bias.assign(n, -inf);
  const int additions = (p.alibi_slopes.empty() ? 0 : 1) + (p.bias ? 1 : 0);
  // Where nothing is added, the zeros of the row before can stay.
  if (additions > 0 || row.additions > 0 || row.magnitude.size() != n) {
    row.magnitude.assign(n, 0);
    row.product.assign(n, 0);
  }
  row.additions = additions;
  row.begin = keys;
  row.end = row.visible = 0;

  const Index offset = p.offset_of(b);
  const double minimum = p.bias ? -format(p.bias.dtype).max_finite : 0;
  // Intervals are applied first, and then each remaining key is checked by itself.
  const KeyInterval interval = visible_interval(p, b, i);
  if (additions == 0 && !masks_elements(p)) {
    if (interval.begin >= interval.end) return;
    std::fill(row.bias.begin() + interval.begin, row.bias.begin() + interval.end, 0.0);
    row.begin = interval.begin;
    row.end = interval.end;
    row.visible = interval.end - interval.begin;
    return;
  }
  for (Index j = interval.begin; j < interval.end; ++j) {
    if (p.keep && !p.keep.at(b, h, i, j)) continue;
    if (!p.query_segment.empty() &&
        p.query_segment[usize(b * p.shape.rows + i)] != p.key_segment[usize(b * keys + j)])
      continue;
    double bias = 0, magnitude = 0;
    if (p.bias) {
      bias = load(p.bias, p.bias.at(b, h, i, j));
      if (bias == -inf || (p.finite_min_masks && bias == minimum)) continue;
      magnitude = std::fabs(bias);
    }
    const auto at = usize(j);
    if (!p.alibi_slopes.empty()) {
      const double product =
          static_cast<double>(p.alibi_slopes[usize(h)]) * static_cast<double>(j - (i + offset));
      row.product[at] = std::fabs(product);
      bias += product;
      magnitude += std::fabs(product);
    }
    row.bias[at] = bias;
    row.magnitude[at] = magnitude;
    row.begin = std::min(row.begin, j);
    row.end = j + 1;
    ++row.visible;
  }
}

double extended_score(const Attention& p, Index b, Index h, Index i, Index j) {
  double t = 0;
  for (Index d = 0; d < p.shape.dim; ++d)
    t += load(p.q, p.q.at(b, h, i, d)) * load(p.k, p.k.at(b, h / p.shape.group(), j, d));
  t *= static_cast<double>(p.scale);
  return p.softcap > 0
             ? static_cast<double>(p.softcap) * std::tanh(t / static_cast<double>(p.softcap))
             : t;
}

bool is_weightless(const Attention& p, Index b, Index h, Index i, const RowVisibility& row) {
  if (row.visible == 0 || !p.sink.empty()) return false;
  for (Index j = row.begin; j < row.end; ++j) {
    const double bias = row.bias[usize(j)];
    if (bias != -inf && extended_score(p, b, h, i, j) + bias != -inf) return false;
  }
  return true;
}

bool keeps_weight(const Attention& p, Index b, Index h, Index i, Index j) {
  if (p.dropout == 0) return true;
  const r123::Philox4x32::ctr_type counter = {
      {static_cast<std::uint32_t>(j), static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(h),
       static_cast<std::uint32_t>(b)}};
  const r123::Philox4x32::key_type key = {{static_cast<std::uint32_t>(p.dropout_seed),
                                           static_cast<std::uint32_t>(p.dropout_seed >> 32)}};
  return r123::Philox4x32()(counter, key)[0] >= static_cast<double>(p.dropout) * 0x1p32;
}

}  // namespace assay
