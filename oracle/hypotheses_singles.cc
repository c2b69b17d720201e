// Known faults that are rarer than those of hypotheses_masks.cc and hypotheses_sums.cc.
#include <algorithm>
#include <utility>

#include "oracle/alteration.h"

namespace assay {
namespace {

// Pair (i, j) gets the element masks of the pair (i - rows, j - keys), and those that are outside
// the tensor mask nothing.
bool shift_masks(Alteration& a, Index rows, Index keys) {
  Attention& p = a.problem;
  const Extents e = p.shape.pair_extents();
  if (!(p.keep || p.bias) || element_count(e) > most_altered_elements) return false;
  const Attention before = p;
  const auto inside = [&](Index i, Index j) { return i >= 0 && i < e[2] && j >= 0 && j < e[3]; };
  if (before.keep) {
    a.keep.clear();
    for_each_index(e, [&](Index b, Index h, Index i, Index j) {
      a.keep.push_back(!inside(i - rows, j - keys) || before.keep.at(b, h, i - rows, j - keys));
    });
    p.keep = {a.keep.data(), {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}};
  }
  return !before.bias || replace_bias(a, [&](Index b, Index h, Index i, Index j) {
    return inside(i - rows, j - keys) ? load(before.bias, before.bias.at(b, h, i - rows, j - keys))
                                      : 0;
  });
}

// Gives each query head a K and a V of its own: those of the kv heads key_head(h) and
// value_head(h).
bool read_heads(Alteration& a, Index (*key_head)(const AttentionShape&, Index h),
                Index (*value_head)(const AttentionShape&, Index h)) {
  ProjectedAttention& p = a.problem;
  const AttentionShape s = p.shape;
  if (p.projection || s.kv_heads == 1) return false;
  const auto read = [&](TensorView& t, Index columns, auto head) {
    const TensorView from = t;
    return replace(a, t, {s.batch, s.query_heads, s.keys, columns},
                   [&](Index b, Index h, Index j, Index d) {
                     return load(from, from.at(b, head(s, h), j, d));
                   });
  };
  if (!read(p.k, s.dim, key_head) || !read(p.v, s.value_dim, value_head)) return false;
  p.shape.kv_heads = s.query_heads;
  a.key_head = [](Index h) { return h; };
  return true;
}

bool shift_keys(Alteration& a, Index by) {
  ProjectedAttention& p = a.problem;
  const TensorView from = p.k;
  const Index last = p.shape.keys - 1;
  return !p.projection && last > 0 &&
         replace(a, p.k, from.shape, [&](Index b, Index h, Index j, Index d) {
           return load(from, from.at(b, h, std::clamp<Index>(j + by, 0, last), d));
         });
}

Index own(const AttentionShape& s, Index h) { return h / s.group(); }
Index modulo(const AttentionShape& s, Index h) { return h % s.kv_heads; }

// O of each row is that of the row from(s, its place); LSE is its own.
bool o_comes_from(Alteration& a, RowPlace (*from)(const AttentionShape&, const RowPlace&)) {
  a.of_lse = false;
  a.source = [from, s = a.problem.shape](const RowPlace& at) { return from(s, at); };
  return true;
}

constexpr Hypothesis of_inputs[] = {
    {"k-head-modulo", "query head h reads K of kv head h mod Hkv, and V of its own",
     [](Alteration& a, Index) {
       return a.problem.shape.group() > 1 && read_heads(a, modulo, own);
     }},
    {"v-head-modulo", "query head h reads V of kv head h mod Hkv, and K of its own",
     [](Alteration& a, Index) {
       return a.problem.shape.group() > 1 && read_heads(a, own, modulo);
     }},
    {"k-batch-zero", "every batch element reads K of the first, and V of its own",
     [](Alteration& a, Index) {
       ProjectedAttention& p = a.problem;
       p.k.stride[0] = p.projection.k_absolute.stride[0] = 0;
       return p.shape.batch > 1;
     }},
    {"v-batch-zero", "every batch element reads V of the first, and K of its own",
     [](Alteration& a, Index) {
       ProjectedAttention& p = a.problem;
       p.v.stride[0] = p.projection.v_absolute.stride[0] = 0;
       return p.shape.batch > 1;
     }},
    {"keys-and-values-exchanged", "K is read for V, and V for K",
     [](Alteration& a, Index) {
       ProjectedAttention& p = a.problem;
       std::swap(p.k, p.v);
       return p.shape.dim == p.shape.value_dim && !p.projection;
     }},
    {"k-row-before", "K of each key is that of the key before",
     [](Alteration& a, Index) { return shift_keys(a, -1); }},
    {"k-next-row", "K of each key is that of the next one",
     [](Alteration& a, Index) { return shift_keys(a, 1); }},
    {"window-sides-exchanged", "the sides of the window are exchanged",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       std::swap(p.window_left, p.window_right);
       return p.window_left != p.window_right;
     }},
    {"alibi-heads-reversed", "the slopes of ALiBi stand in reverse order",
     [](Alteration& a, Index) {
       std::ranges::reverse(a.problem.alibi_slopes);
       return a.problem.alibi_slopes.size() > 1;
     }},
    {"bool-mask-added", "the boolean mask is added to the scores, as 0 or 1",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       const BoolView keep = std::exchange(p.keep, {});
       const TensorView bias = p.bias;
       return keep && replace_bias(a, [&](Index b, Index h, Index i, Index j) {
                return (bias ? load(bias, bias.at(b, h, i, j)) : 0) + keep.at(b, h, i, j);
              });
     }},
    {"heads-exchanged", "pairs of heads have each other's O",
     [](Alteration& a, Index) {
       return a.problem.shape.query_heads % 2 == 0 &&
              o_comes_from(a, [](const AttentionShape&, const RowPlace& at) {
                return RowPlace{at.b, at.h ^ 1, at.row};
              });
     }},
    {"batches-reversed", "batch elements have O in reverse order",
     [](Alteration& a, Index) {
       return a.problem.shape.batch > 1 &&
              o_comes_from(a, [](const AttentionShape& s, const RowPlace& at) {
                return RowPlace{s.batch - 1 - at.b, at.h, at.row};
              });
     }},
    {"rows-reversed", "rows have O in reverse order",
     [](Alteration& a, Index) {
       return a.problem.shape.rows > 1 &&
              o_comes_from(a, [](const AttentionShape& s, const RowPlace& at) {
                return RowPlace{at.b, at.h, s.rows - 1 - at.row};
              });
     }},
    {"heads-inside-rows", "O is written with the heads of a row side by side, as [row][head]",
     [](Alteration& a, Index) {
       return o_comes_from(a, [](const AttentionShape& s, const RowPlace& at) {
         const Index place = at.h * s.rows + at.row;
         return RowPlace{at.b, place % s.query_heads, place / s.query_heads};
       });
     }},
    {"rows-inside-heads", "O is written with the rows of a head side by side, as [head][row]",
     [](Alteration& a, Index) {
       return o_comes_from(a, [](const AttentionShape& s, const RowPlace& at) {
         const Index place = at.row * s.query_heads + at.h;
         return RowPlace{at.b, place / s.rows, place % s.rows};
       });
     }},
    {"mask-late", "masks of pairs are read one key too far to the left",
     [](Alteration& a, Index) { return shift_masks(a, 0, 1); }},
    {"mask-early", "masks of pairs are read one key too far to the right",
     [](Alteration& a, Index) { return shift_masks(a, 0, -1); }},
    {"mask-of-row-before", "masks of pairs are those of the row before",
     [](Alteration& a, Index) { return shift_masks(a, 1, 0); }},
    {"mask-of-next-row", "masks of pairs are those of the next row",
     [](Alteration& a, Index) { return shift_masks(a, -1, 0); }},
    {"bias-twice", "the additive mask is added twice",
     [](Alteration& a, Index) {
       const TensorView from = a.problem.bias;
       return from && replace_bias(a, [&](Index b, Index h, Index i, Index j) {
                return 2 * load(from, from.at(b, h, i, j));
              });
     }},
};

}  // namespace

std::span<const Hypothesis> input_hypotheses() { return of_inputs; }

}  // namespace assay
