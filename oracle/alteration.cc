#include "oracle/alteration.h"

#include <algorithm>

namespace assay {

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
}  // namespace assay
