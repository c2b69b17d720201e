// Known faults that are rarer than those of hypotheses_masks.cc and hypotheses_sums.cc.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
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

constexpr double infinity = std::numeric_limits<double>::infinity();

// c tanh(t / c) is computed with another scale and another softcap.
bool cap_with(Alteration& a, double scale, double softcap) {
  ProjectedAttention& p = a.problem;
  if (p.softcap == 0) return false;
  p.scale = static_cast<float>(scale);
  p.softcap = static_cast<float>(softcap);
  return true;
}

// The score of a pair is f(t, what is added to it, the softcap), where t is scale q.k.
bool cap_by(Alteration& a, double (*f)(double t, double bias, double cap)) {
  ProjectedAttention& p = a.problem;
  if (p.softcap == 0 || p.projection) return false;
  const auto cap = static_cast<double>(std::exchange(p.softcap, 0.0f));
  const Attention uncapped = p;
  p.alibi_slopes.clear();
  RowVisibility row;
  std::optional<RowPlace> place;
  return replace_bias(a, [&](Index b, Index h, Index i, Index j) {
    const RowPlace here{b, h, i};
    if (place != here) evaluate_visibility(uncapped, b, h, i, row);
    place = here;
    const double bias = row.bias[usize(j)];
    if (bias == -infinity) return bias;
    const double t = extended_score(uncapped, b, h, i, j);
    return f(t, bias, cap) - t;
  });
}

// The largest score of a row that sees a key, or the sink.
double maximum_of(const Attention& p, const RowPlace& at) {
  RowVisibility row;
  evaluate_visibility(p, at.b, at.h, at.row, row);
  double max = p.sink.empty() ? -infinity : static_cast<double>(p.sink[usize(at.h)]);
  for (Index j = row.begin; j < row.end; ++j)
    if (row.bias[usize(j)] > -infinity)
      max = std::max(max, extended_score(p, at.b, at.h, at.row, j) + row.bias[usize(j)]);
  return max;
}

// LSE is f(m, log l, scale), where it should be m + log l: m is the largest score of the row, and l
// the sum of its weights relative to that.
bool combine_lse(Alteration& a, double (*f)(double m, double log_l, double scale)) {
  a.of_o = false;
  a.change = [f, p = Attention(a.problem)](const RowPlace& at, bool masked,
                                           Eigen::Ref<Eigen::RowVectorXd>, double& lse) {
    if (masked) return;
    const double m = maximum_of(p, at);
    lse = f(m, lse - m, static_cast<double>(p.scale));
  };
  return !a.problem.projection;
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
    {"softcap-before-scale", "the softcap is applied before the scale",
     [](Alteration& a, Index) {
       const double scale = static_cast<double>(a.problem.scale);
       return cap_with(a, scale, static_cast<double>(a.problem.softcap) * std::fabs(scale));
     }},
    {"softcap-undivided", "scores are not divided by the softcap before tanh",
     [](Alteration& a, Index) {
       const double cap = static_cast<double>(a.problem.softcap);
       return cap_with(a, static_cast<double>(a.problem.scale) * cap, cap);
     }},
    {"softcap-unmultiplied", "tanh is not multiplied by the softcap",
     [](Alteration& a, Index) {
       const double cap = static_cast<double>(a.problem.softcap);
       return cap_with(a, static_cast<double>(a.problem.scale) / cap, 1);
     }},
    {"softcap-in-base-two", "the softcap is applied to scores that log2 e is multiplied into",
     [](Alteration& a, Index) {
       return cap_with(a, static_cast<double>(a.problem.scale),
                       static_cast<double>(a.problem.softcap) * std::numbers::ln2);
     }},
    {"softcap-clamps", "scores are cut off at the softcap, without tanh",
     [](Alteration& a, Index) {
       return cap_by(
           a, [](double t, double bias, double cap) { return std::clamp(t, -cap, cap) + bias; });
     }},
    {"softcap-after-bias", "the softcap is applied after what is added to the scores",
     [](Alteration& a, Index) {
       const bool adds = a.problem.bias || !a.problem.alibi_slopes.empty();
       return adds && cap_by(a, [](double t, double bias, double cap) {
                return cap * std::tanh((t + bias) / cap);
              });
     }},
    {"lse-without-maximum", "LSE lacks the largest score",
     [](Alteration& a, Index) {
       return combine_lse(a, [](double, double log_l, double) { return log_l; });
     }},
    {"lse-is-maximum", "LSE is the largest score",
     [](Alteration& a, Index) {
       return combine_lse(a, [](double m, double, double) { return m; });
     }},
    {"lse-is-sum", "LSE is the sum of the weights, relative to the largest score",
     [](Alteration& a, Index) {
       return combine_lse(a, [](double, double log_l, double) { return std::exp(log_l); });
     }},
    {"lse-without-logarithm", "LSE adds the sum of the weights, not its logarithm",
     [](Alteration& a, Index) {
       return combine_lse(a, [](double m, double log_l, double) { return m + std::exp(log_l); });
     }},
    {"lse-maximum-unscaled", "the largest score in LSE lacks the scale",
     [](Alteration& a, Index) {
       const ProjectedAttention& p = a.problem;
       const bool adds = p.softcap != 0 || p.bias || !p.alibi_slopes.empty() || !p.sink.empty();
       return !adds && p.scale != 0 && combine_lse(a, [](double m, double log_l, double scale) {
         return m / scale + log_l;
       });
     }},
    {"lse-in-two-bases", "LSE adds a natural logarithm to the largest score in base 2",
     [](Alteration& a, Index) {
       return combine_lse(
           a, [](double m, double log_l, double) { return m * std::numbers::log2e + log_l; });
     }},
    {"lse-in-two-bases", "LSE adds a logarithm to base 2 to the largest score",
     [](Alteration& a, Index) {
       return combine_lse(
           a, [](double m, double log_l, double) { return m + log_l * std::numbers::log2e; });
     }},
    {"lse-negated", "LSE has the wrong sign",
     [](Alteration& a, Index) {
       return combine_lse(a, [](double m, double log_l, double) { return -m - log_l; });
     }},
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
