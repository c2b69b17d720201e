#include "oracle/alteration.h"

#include <algorithm>

namespace assay {
namespace {

// The element of the additive mask that masks a pair.
double masking_bias(const Attention& p) {
  return p.finite_min_masks ? -format(p.bias.dtype).max_finite
                            : -std::numeric_limits<double>::infinity();
}

}  // namespace

void clear_intervals(Attention& p) {
  p.causal = false;
  p.window_left = p.window_right = -1;
  p.key_lengths.clear();
  p.key_starts.clear();
}

bool see(Alteration& a,
         const std::function<KeyInterval(const Attention&, Index b, Index i, KeyInterval own)>&
             interval) {
  Attention& p = a.problem;
  const AttentionShape& s = p.shape;
  const bool by_head = p.keep && p.keep.stride[1] != 0;
  const Extents e = {s.batch, by_head ? s.query_heads : 1, s.rows, s.keys};
  if (element_count(e) > most_altered_elements || element_count(e) == 0) return false;
  const Extents dense = {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1};
  a.keep.assign(usize(element_count(e)), 0);
  for (Index b = 0; b < e[0]; ++b)
    for (Index h = 0; h < e[1]; ++h)
      for (Index i = 0; i < e[2]; ++i) {
        const KeyInterval seen = interval(p, b, i, visible_interval(p, b, i));
        for (Index j = std::max<Index>(seen.begin, 0); j < std::min(seen.end, s.keys); ++j)
          a.keep[usize(b * dense[0] + h * dense[1] + i * dense[2] + j)] =
              !p.keep || p.keep.at(b, h, i, j);
      }
  p.keep = {a.keep.data(), {dense[0], by_head ? dense[1] : 0, dense[2], 1}};
  clear_intervals(p);
  return true;
}

bool replace(Alteration& a, TensorView& t, const Extents& shape,
             const std::function<double(Index b, Index h, Index i, Index j)>& at) {
  if (element_count(shape) > most_altered_elements || element_count(shape) == 0) return false;
  const Extents stride = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
  const TensorView to =
      a.tensors.emplace_back(Dtype::f64, shape, Layout{stride, 0, element_count(shape)}).view();
  for_each_index(shape, [&](Index b, Index h, Index i, Index j) {
    store(to, to.at(b, h, i, j), at(b, h, i, j));
  });
  t = to;
  return true;
}

bool replace_bias(Alteration& a,
                  const std::function<double(Index b, Index h, Index i, Index j)>& at) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  Attention& p = a.problem;
  const double masks = masking_bias(p);
  p.finite_min_masks = false;
  return replace(a, p.bias, p.shape.pair_extents(), [&](Index b, Index h, Index i, Index j) {
    const double x = at(b, h, i, j);
    return x <= masks ? -inf : x;
  });
}

bool add_to_scores(Alteration& a, const std::function<double(Index j)>& bias) {
  Attention& p = a.problem;
  if (p.bias) {
    const TensorView from = p.bias;
    const double masks = masking_bias(p);
    return replace_bias(a, [&](Index b, Index h, Index i, Index j) {
      const double x = load(from, from.at(b, h, i, j));
      return x <= masks ? x : x + bias(j);
    });
  }
  // One row for all pairs.
  if (!replace(a, p.bias, {1, 1, 1, p.shape.keys},
               [&](Index, Index, Index, Index j) { return bias(j); }))
    return false;
  p.bias.shape = p.shape.pair_extents();
  p.bias.stride = {0, 0, 0, 1};
  return true;
}

}  // namespace assay
