// The known faults of heads and rows, of tensors, of dropout and of the sums over tiles.
#include <algorithm>
#include <cmath>
#include <set>

#include "oracle/alteration.h"

namespace assay {
namespace {

constexpr Index tiles[] = {16, 32, 64, 128, 256};
constexpr Index splits[] = {256, 512, 1024};
constexpr Index lanes[] = {4, 8, 16, 32, 64, 128};
constexpr Index distances[] = {1, 2, 4, 8, 16, 32, 64, 128};
constexpr Index places[] = {2, 3, 4};
constexpr Index paddings[] = {8, 16, 32, 64, 128, 256};

Attention with_keys(const Attention& p, Index keys) {
  Attention longer = p;
  longer.shape.keys = keys;
  return longer;
}

template <class Value>
bool change_elements(Alteration& a, TensorView& t, const Value& value) {
  const TensorView from = t;
  return replace(a, t, from.shape, [&](Index b, Index h, Index i, Index j) {
    return value(load(from, from.at(b, h, i, j)), b, h, i, j);
  });
}

bool sum_wrongly(Alteration& a, Index tile, void (*change)(TiledSoftmax&)) {
  if (tile >= a.problem.shape.keys) return false;
  a.softmax.emplace();
  a.softmax->tile = tile;
  change(*a.softmax);
  return true;
}
// One step of the merge of splits is wrong. A tile is a whole split.
bool merge_wrongly(Alteration& a, Index split, void (*change)(TiledSoftmax&)) {
  if (split >= a.problem.shape.keys) return false;
  a.softmax.emplace();
  a.softmax->tile = a.softmax->split = split;
  change(*a.softmax);
  return true;
}

// Whether the changed strides differ from the tensor's own and stay inside it.
bool strides_fit(const TensorView& of, const Extents& other) {
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (other[axis] < 0 || other[axis] > of.stride[axis]) return false;
  return other != of.stride;
}
Extents packed_strides(const Extents& e) { return {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}; }

// As given, but outputs are predicted only inside the range of binary32.
bool in_range_alone(Alteration& a, bool applies) {
  if (!applies) return false;
  a.softmax->zero_sum_is_nan = true;
  a.softmax->tells_beyond_range = false;
  return true;
}
bool maximum_of_tile(Alteration& a, Index tile) {
  return sum_wrongly(a, tile, [](TiledSoftmax& s) { s.maximum = TiledSoftmax::Maximum::of_tile; });
}
bool maximum_scaled_again(Alteration& a, Index tile) {
  a.softmax.emplace().tile = tile;
  a.softmax->maximum = TiledSoftmax::Maximum::scaled_again;
  return true;
}
bool maximum_before_scale(Alteration& a) {
  const ProjectedAttention& p = a.problem;
  const bool applies = p.scale < 0 && p.softcap == 0 && !p.bias && p.alibi_slopes.empty();
  if (applies) a.softmax.emplace().maximum = TiledSoftmax::Maximum::before_scale;
  return applies;
}
bool merged_maximum(Alteration& a, Index split) {
  return merge_wrongly(a, split, [](TiledSoftmax& s) { s.merge_keeps_first_max = true; });
}

// Splits of {} keys are merged one after the other from the first key on, or from the first one
// that a row of the same tile of rows may see.
bool leading_splits_are_nan(Alteration& a, Index split, bool from_first_key) {
  a.change = [=, p = a.problem](const RowPlace& at, bool, Eigen::Ref<Eigen::RowVectorXd> o,
                                double& lse) {
    RowVisibility row;
    evaluate_visibility(p, at.b, at.h, at.row, row);
    Index first = p.shape.keys;
    for (Index j = row.end; j-- > row.begin;)
      if (row.bias[usize(j)] != -std::numeric_limits<double>::infinity()) first = j;
    const Index begin = from_first_key ? 0 : visible_interval(p, at.b, at.row).begin;
    if (first < std::min((begin / split + 1) * split, p.shape.keys)) return;
    o.setConstant(std::numeric_limits<double>::quiet_NaN());
    lse = std::numeric_limits<double>::quiet_NaN();
  };
  return a.problem.shape.keys > 0;
}

// A row loads whole tiles. In these, keys outside its interval (with `single_keys`: all keys that
// it does not see) get the weight 0, and 0 * NaN is NaN.
bool masked_values_spread(Alteration& a, Index tile, bool single_keys) {
  if (a.problem.projection || (single_keys && !masks_elements(a.problem))) return false;
  a.of_lse = false;
  a.change = [=, p = a.problem](const RowPlace& at, bool masked, Eigen::Ref<Eigen::RowVectorXd> o,
                                double&) {
    const KeyInterval own = visible_interval(p, at.b, at.row);
    if (masked || own.begin >= own.end) return;
    RowVisibility row;
    evaluate_visibility(p, at.b, at.h, at.row, row);
    const Index g = at.h / p.shape.group();
    const Index end = std::min((own.end + tile - 1) / tile * tile, p.shape.keys);
    for (Index j = own.begin / tile * tile; j < end; ++j) {
      const bool inside = j >= own.begin && j < own.end;
      const bool seen = j >= row.begin && j < row.end &&
                        row.bias[usize(j)] != -std::numeric_limits<double>::infinity();
      if (single_keys ? seen : inside) continue;
      for (Index c = 0; c < o.size(); ++c)
        if (!std::isfinite(load(p.v, p.v.at(at.b, g, j, c))))
          o(c) = std::numeric_limits<double>::quiet_NaN();
    }
  };
  return true;
}

// The kernel wrote O in binary32 into a tensor of 16-bit numbers, where half of the numbers fit.
bool output_in_twice_the_width(Alteration& a) {
  TensorView& o = a.out.o;
  const Extents packed = packed_strides(o.shape);
  const Index count = element_count(o.shape);
  if (format(o.dtype).bits != 16 || o.stride != packed || count > most_altered_elements)
    return false;
  const TensorView from = o;
  // Copies bits and not values, because half of a number may look like a NaN.
  const auto bits = [&](Index at) {
    return std::uint32_t{static_cast<const std::uint16_t*>(from.data)[from.origin + at]};
  };
  const TensorView to =
      a.tensors.emplace_back(Dtype::f32, o.shape, Layout{packed, 0, count}).view();
  for (Index at = 0; at < count / 2; ++at)
    store(to, at,
          decode(Dtype::f32, static_cast<std::uint64_t>(bits(2 * at + 1)) << 16 | bits(2 * at)));
  o = to;
  a.of_lse = false;
  a.tells = [=, shape = o.shape](const RowPlace& at) {
    return to.at(at.b, at.h, at.row, 0) + shape[3] <= count / 2;
  };
  return true;
}

bool rows_come_from(Alteration& a, std::function<std::optional<RowPlace>(const RowPlace&)> source) {
  a.source = std::move(source);
  return true;
}
bool failing_rows_come_from(Alteration& a, Index heads, Index rows) {
  const std::set<RowPlace> failing(a.failing.begin(), a.failing.end());
  return !failing.empty() && rows_come_from(a, [=](const RowPlace& at) {
    const RowPlace from{at.b, at.h - heads, at.row - rows};
    return failing.contains(at) && from.h >= 0 && from.row >= 0 ? from : at;
  });
}
template <class Wrong>
bool is_zero_where(Alteration& a, const Wrong& wrong) {
  a.of_lse = false;
  a.change = [wrong](const RowPlace& at, bool, Eigen::Ref<Eigen::RowVectorXd> o, double&) {
    if (wrong(at)) o.setZero();
  };
  return true;
}

// The first of the last rows of O that are all 0; the number of rows if the last row is not 0.
Index first_of_zero_rows(const TensorView& o) {
  Index first = o.shape[2];
  const auto is_zero = [&](Index row) {
    for (Index b = 0; b < o.shape[0]; ++b)
      for (Index h = 0; h < o.shape[1]; ++h)
        for (Index d = 0; d < o.shape[3]; ++d)
          if (load(o, o.at(b, h, row, d)) != 0) return false;
    return true;
  };
  while (first > 0 && is_zero(first - 1)) --first;
  return first;
}

float truncated_bf16_pair(const TensorView& t, Index b, Index h, Index i, Index d) {
  const Index low = d / 2 * 2;
  const auto bits = [&](Index column) {
    return static_cast<std::uint32_t>(encode(Dtype::bf16, load(t, t.at(b, h, i, column))));
  };
  return static_cast<float>(decode(Dtype::f32, bits(low + 1) << 16 | bits(low)));
}
bool reads_pairs(Alteration& a, TensorView& t) {
  if (t.dtype != Dtype::bf16) return false;
  const TensorView from = t;
  return replace(a, t, from.shape, [&](Index b, Index h, Index i, Index d) {
    return (d ^ 1) < from.shape[3] ? static_cast<double>(truncated_bf16_pair(from, b, h, i, d))
                                   : load(from, from.at(b, h, i, d));
  });
}

bool casts_weights(Alteration& a, Index tile, double (*cast)(double)) {
  a.softmax.emplace().tile = tile;
  a.softmax->cast = cast;
  return true;
}

// e^x is computed as 2^(x c), where c should be log2 e.
bool has_log2_e(Alteration& a, double c) {
  a.softmax.emplace();
  a.softmax->exponent = c / 1.4426950408889634;
  return true;
}

constexpr Hypothesis hypotheses[] = {
    // Heads, batches and rows.
    {"kv-head-modulo", "query head h reads kv head h mod Hkv",
     [](Alteration& a, Index) {
       const Index heads = a.problem.shape.kv_heads;
       a.key_head = [=](Index h) { return h % heads; };
       return heads > 1 && a.problem.shape.group() > 1;
     }},
    {"kv-head-zero", "every head reads kv head 0",
     [](Alteration& a, Index) {
       a.key_head = [](Index) { return Index{0}; };
       return a.problem.shape.kv_heads > 1;
     }},
    {"kv-head-next", "each head reads the keys of the next kv head",
     [](Alteration& a, Index) {
       const Index heads = a.problem.shape.kv_heads, group = a.problem.shape.group();
       a.key_head = [=](Index h) { return (h / group + 1) % heads; };
       return heads > 1;
     }},
    {"kv-batch-zero", "every batch element reads the keys of the first",
     [](Alteration& a, Index) {
       ProjectedAttention& p = a.problem;
       for (TensorView* t : {&p.k, &p.v, &p.projection.k_absolute, &p.projection.v_absolute})
         t->stride[0] = 0;
       return p.shape.batch > 1;
     }},
    {"head-before", "each head has the outputs of the head before",
     [](Alteration& a, Index) {
       return a.problem.shape.query_heads > 1 && rows_come_from(a, [](const RowPlace& at) {
                return RowPlace{at.b, std::max<Index>(at.h - 1, 0), at.row};
              });
     }},
    {"row-before", "each row has the outputs of the row before",
     [](Alteration& a, Index) {
       return a.problem.shape.rows > 1 && rows_come_from(a, [](const RowPlace& at) {
                return RowPlace{at.b, at.h, std::max<Index>(at.row - 1, 0)};
              });
     }},
    {"stale-rows", "the rows that fail have the outputs of the row {} before them",
     [](Alteration& a, Index by) { return failing_rows_come_from(a, 0, by); }, distances},
    {"stale-rows", "the rows that fail have O of the row {} before them",
     [](Alteration& a, Index by) { return a.of_lse = false, failing_rows_come_from(a, 0, by); },
     distances},
    {"stale-rows", "the rows that fail have the outputs of the head before",
     [](Alteration& a, Index) { return failing_rows_come_from(a, 1, 0); }},
    {"stale-rows", "the rows that fail have O of the head before",
     [](Alteration& a, Index) { return a.of_lse = false, failing_rows_come_from(a, 1, 0); }},
    {"lse-in-head-zero", "all heads write their LSE where head 0 does",
     [](Alteration& a, Index) {
       const Index last = a.problem.shape.query_heads - 1;
       a.of_o = false;
       return last > 0 && rows_come_from(a, [=](const RowPlace& at) {
                return at.h > 0 ? std::nullopt : std::optional(RowPlace{at.b, last, at.row});
              });
     }},
    {"other-batches-zero", "O of batch elements other than the first is 0",
     [](Alteration& a, Index) {
       return a.problem.shape.batch > 1 &&
              is_zero_where(a, [](const RowPlace& at) { return at.b > 0; });
     }},
    {"other-heads-zero", "O of heads other than the first is 0",
     [](Alteration& a, Index) {
       return a.problem.shape.query_heads > 1 &&
              is_zero_where(a, [](const RowPlace& at) { return at.h > 0; });
     }},
    {"last-rows-zero", "O of the last rows is 0",
     [](Alteration& a, Index) {
       const Index first = first_of_zero_rows(a.out.o);
       return first < a.problem.shape.rows &&
              is_zero_where(a, [=](const RowPlace& at) { return at.row >= first; });
     }},
    {"nothing-written", "nothing is written",
     [](Alteration& a, Index) {
       return a.unwritten && rows_come_from(a, [](const RowPlace&) { return std::nullopt; });
     }},
    {"all-nan", "every row that loads a key is NaN",
     [](Alteration& a, Index) {
       a.change = [p = a.problem](const RowPlace& at, bool, Eigen::Ref<Eigen::RowVectorXd> o,
                                  double& lse) {
         const KeyInterval loaded = visible_interval(p, at.b, at.row);
         if (loaded.begin >= loaded.end) return;
         o.setConstant(std::numeric_limits<double>::quiet_NaN());
         lse = std::numeric_limits<double>::quiet_NaN();
       };
       return !a.unwritten;
     }},
    {"empty-row-nan", "O of a row that sees no key is NaN",
     [](Alteration& a, Index) {
       a.change = [](const RowPlace&, bool masked, Eigen::Ref<Eigen::RowVectorXd> o, double&) {
         if (masked) o.setConstant(std::numeric_limits<double>::quiet_NaN());
       };
       return true;
     }},
    {"empty-row-nan", "O of a row that loads no key is NaN",
     [](Alteration& a, Index) {
       a.change = [p = a.problem](const RowPlace& at, bool, Eigen::Ref<Eigen::RowVectorXd> o,
                                  double&) {
         const KeyInterval loaded = visible_interval(p, at.b, at.row);
         if (loaded.begin >= loaded.end) o.setConstant(std::numeric_limits<double>::quiet_NaN());
       };
       return true;
     }},

    // Tensors that are read or written wrongly.
    {"values-are-keys", "K is read for V",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (p.shape.dim != p.shape.value_dim || a.problem.projection) return false;
       p.v = p.k;
       return true;
     }},
    {"values-exchanged", "rows of V change places by pairs",
     [](Alteration& a, Index) {
       TensorView& v = a.problem.v;
       const TensorView from = v;
       return !a.problem.projection &&
              change_elements(a, v, [&](double x, Index b, Index g, Index j, Index c) {
                return (j ^ 1) < from.shape[2] ? load(from, from.at(b, g, j ^ 1, c)) : x;
              });
     }},
    {"query-rows-packed", "rows of Q are taken to be D apart",
     [](Alteration& a, Index) {
       TensorView& q = a.problem.q;
       if (q.stride[2] <= a.problem.shape.dim) return false;
       q.stride[2] = a.problem.shape.dim;
       return true;
     }},
    {"query-columns-adjacent", "columns of Q are taken to be adjacent",
     [](Alteration& a, Index) {
       return std::exchange(a.problem.q.stride[3], Index{1}) > 1 && a.problem.shape.dim > 1;
     }},
    {"query-heads-at-rows", "heads of Q are looked for a row apart",
     [](Alteration& a, Index) {
       Extents& stride = a.problem.q.stride;
       if (a.problem.shape.query_heads < 2 || stride[2] < 0 || stride[2] >= stride[1]) return false;
       stride[1] = stride[2];
       return true;
     }},
    {"values-at-key-strides", "V is read with the strides of K",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (!strides_fit(p.v, p.k.stride)) return false;
       p.v.stride = p.k.stride;
       return true;
     }},
    {"output-packed", "O is written as if it were contiguous",
     [](Alteration& a, Index) {
       TensorView& o = a.out.o;
       const Extents packed = packed_strides(o.shape);
       if (!strides_fit(o, packed)) return false;
       o.stride = packed;
       return true;
     }},
    {"output-in-binary32", "binary32 is written to the memory of O, which has 16 bits",
     [](Alteration& a, Index) { return output_in_twice_the_width(a); }},
    {"masked-values-spread",
     "NaN or an infinity in V reaches rows that load its tile of {} keys and do not see it",
     [](Alteration& a, Index tile) { return masked_values_spread(a, tile, false); }, tiles},
    {"masked-values-spread",
     "NaN or an infinity in V at a masked key reaches rows that load its tile of {} keys",
     [](Alteration& a, Index tile) { return masked_values_spread(a, tile, true); }, tiles},
    {"value-columns-as-dim", "as many columns of O are written as Q has; the others are 0",
     [](Alteration& a, Index) {
       const Index columns = a.problem.shape.dim;
       a.of_lse = false;
       a.change = [=](const RowPlace&, bool, Eigen::Ref<Eigen::RowVectorXd> o, double&) {
         o.tail(o.size() - columns).setZero();
       };
       return columns < a.problem.shape.value_dim;
     }},
    {"pairs-read-as-one", "two neighbours in bf16 are read as one number of binary32",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       return reads_pairs(a, p.q) && reads_pairs(a, p.k) && reads_pairs(a, p.v);
     }},
    {"key-offsets-wrap", "offsets into K are kept in 32 bits",
     [](Alteration& a, Index) {
       TensorView& k = a.problem.k;
       const TensorView from = k;
       Index last = from.origin;
       for (std::size_t axis = 0; axis < 4; ++axis)
         last += from.stride[axis] * std::max<Index>(from.shape[axis] - 1, 0);
       return last > 0xFFFFFFFF && !a.problem.projection &&
              replace(a, k, from.shape, [&](Index b, Index h, Index j, Index d) {
                return load(from, from.at(b, h, j, d) & 0xFFFFFFFF);
              });
     }},
    {"nibbles-exchanged", "neighbouring columns of K and V change places",
     [](Alteration& a, Index) {
       ProjectedAttention& p = a.problem;
       const auto exchange = [&](TensorView& t) {
         const TensorView from = t;
         return change_elements(a, t, [&](double x, Index b, Index g, Index j, Index c) {
           return (c ^ 1) < from.shape[3] ? load(from, from.at(b, g, j, c ^ 1)) : x;
         });
       };
       return !p.projection && exchange(p.k) && exchange(p.v);
     }},
    {"new-keys-zero", "the keys that come with the rows are 0",
     [](Alteration& a, Index) {
       const Index first = a.problem.shape.keys - a.problem.shape.rows;
       return first >= 0 && !a.problem.projection &&
              change_elements(a, a.problem.k, [=](double x, Index, Index, Index j, Index) {
                return j >= first ? 0 : x;
              });
     }},
    {"rotary-dropped", "keys lack their rotary part",
     [](Alteration& a, Index) {
       ProjectedAttention& p = a.problem;
       const Index columns = p.projection.columns;
       if (!p.projection || columns == 0 || columns >= p.shape.dim) return false;
       p.shape.dim = p.q.shape[3] = p.k.shape[3] = columns;
       return true;
     }},
    {"tokens-head-first", "tokens laid out as [head][token] are read as [token][head]",
     [](Alteration& a, Index) {
       ProjectedAttention& p = a.problem;
       const Index heads = p.shape.kv_heads, keys = p.shape.keys;
       if (heads < 2 || keys < 2 || p.projection) return false;
       const auto read = [&](TensorView& t) {
         const TensorView from = t;
         return replace(a, t, from.shape, [&](Index b, Index g, Index j, Index c) {
           const Index flat = j * heads + g;
           return load(from, from.at(b, flat / keys, flat % keys, c));
         });
       };
       return read(p.k) && read(p.v);
     }},

    // Dropout.
    {"dropout-redrawn", "dropout is drawn from the next seed",
     [](Alteration& a, Index) { return ++a.problem.dropout_seed, a.problem.dropout > 0; }},
    {"dropout-ignored", "nothing is dropped",
     [](Alteration& a, Index) { return std::exchange(a.problem.dropout, 0.0f) > 0; }},
    {"dropout-unscaled", "what dropout keeps is not scaled by 1 / (1 - p)",
     [](Alteration& a, Index) {
       const double kept = 1 - static_cast<double>(a.problem.dropout);
       a.change = [=](const RowPlace&, bool, Eigen::Ref<Eigen::RowVectorXd> o, double&) {
         o *= kept;
       };
       return kept < 1;
     }},

    // The softmax over tiles.
    {"values-not-rescaled",
     "the sum of values keeps its scale when the maximum moves (tiles of {})",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile, [](TiledSoftmax& s) { s.rescales_values = false; });
     },
     tiles},
    {"sum-not-rescaled", "the row sum keeps its scale when the maximum moves (tiles of {})",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile, [](TiledSoftmax& s) { s.rescales_sum = false; });
     },
     tiles},
    {"maximum-from-zero", "the running maximum starts at 0",
     [](Alteration& a, Index) {
       a.softmax.emplace().first_max = 0;
       return true;
     }},
    {"maximum-from-zero", "the running maximum starts at 0; a row whose weights vanish is 0 / 0",
     [](Alteration& a, Index) {
       a.softmax.emplace().first_max = 0;
       a.softmax->zero_sum_is_nan = true;
       return true;
     }},
    {"maximum-of-tile", "the running maximum is that of the tile of {} keys alone",
     [](Alteration& a, Index tile) { return maximum_of_tile(a, tile); }, tiles},
    {"maximum-of-tile",
     "the running maximum is that of the tile of {} keys alone, inside the range of binary32",
     [](Alteration& a, Index tile) { return in_range_alone(a, maximum_of_tile(a, tile)); }, tiles},
    {"maximum-of-first-tile",
     "the maximum of the first tile of {} keys is kept, and no weight exceeds 1",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile, [](TiledSoftmax& s) {
         s.maximum = TiledSoftmax::Maximum::first;
         s.clamps = true;
       });
     },
     tiles},
    {"maximum-of-first-tile", "the maximum of the first tile of {} keys is kept",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile,
                          [](TiledSoftmax& s) { s.maximum = TiledSoftmax::Maximum::first; });
     },
     tiles},
    {"maximum-before-scale", "the row maximum is that of the scores before the negative scale",
     [](Alteration& a, Index) { return maximum_before_scale(a); }},
    {"maximum-before-scale",
     "the row maximum is that of the scores before the negative scale, inside the range of "
     "binary32",
     [](Alteration& a, Index) { return in_range_alone(a, maximum_before_scale(a)); }},
    {"maximum-scaled-again", "the row maximum is scaled twice (tiles of {})",
     [](Alteration& a, Index tile) { return maximum_scaled_again(a, tile); }, tiles},
    {"maximum-scaled-again",
     "the row maximum is scaled twice (tiles of {}), inside the range of binary32",
     [](Alteration& a, Index tile) { return in_range_alone(a, maximum_scaled_again(a, tile)); },
     tiles},
    {"corrections-in-half", "corrections e^(m - m') are kept in fp16 (tiles of {})",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile, [](TiledSoftmax& s) { s.corrections_in_half = true; });
     },
     tiles},
    {"lane-missing", "the row sum lacks the last of {} lanes",
     [](Alteration& a, Index count) {
       a.softmax.emplace().tile = count;
       a.softmax->drops_a_lane = true;
       return true;
     },
     lanes},
    {"padding-in-sum", "a padded key of the last tile of {} keys enters the row sum with score 0",
     [](Alteration& a, Index tile) {
       a.softmax.emplace().tile = tile;
       a.softmax->counts_padding = true;
       return a.problem.shape.keys % tile != 0;
     },
     tiles},
    {"weights-truncated", "weights are cast to bf16 by truncation (tiles of {})",
     [](Alteration& a, Index tile) { return casts_weights(a, tile, &truncated_to_bf16); }, tiles},
    {"weights-in-bf16", "weights are rounded to bf16 before P V (tiles of {})",
     [](Alteration& a, Index tile) {
       return a.problem.q.dtype != Dtype::bf16 &&
              casts_weights(a, tile, [](double x) { return round_to(Dtype::bf16, x); });
     },
     tiles},
    {"weights-in-f8e4m3", "weights are rounded to f8e4m3 before P V (tiles of {})",
     [](Alteration& a, Index tile) {
       return casts_weights(a, tile, [](double x) { return round_to(Dtype::f8e4m3, x); });
     },
     tiles},
    {"weights-in-f8e5m2", "weights are rounded to f8e5m2 before P V (tiles of {})",
     [](Alteration& a, Index tile) {
       return casts_weights(a, tile, [](double x) { return round_to(Dtype::f8e5m2, x); });
     },
     tiles},
    {"output-truncated", "O is cast to bf16 by truncation",
     [](Alteration& a, Index) {
       a.of_lse = false;
       a.change = [](const RowPlace&, bool, Eigen::Ref<Eigen::RowVectorXd> o, double&) {
         o = o.unaryExpr(&truncated_to_bf16);
       };
       return true;
     }},
    {"merged-sum", "the sum of earlier splits of {} keys keeps its scale",
     [](Alteration& a, Index split) {
       return merge_wrongly(a, split, [](TiledSoftmax& s) { s.merge_rescales_sum = false; });
     },
     splits},
    {"merged-values", "the values of earlier splits of {} keys keep their scale",
     [](Alteration& a, Index split) {
       return merge_wrongly(a, split, [](TiledSoftmax& s) { s.merge_rescales_values = false; });
     },
     splits},
    {"merged-maximum", "the maximum of the first split of {} keys is kept, and no factor exceeds 1",
     [](Alteration& a, Index split) {
       return merge_wrongly(a, split,
                            [](TiledSoftmax& s) { s.merge_keeps_first_max = s.clamps = true; });
     },
     splits},
    {"merged-maximum", "the maximum of the first split of {} keys is kept",
     [](Alteration& a, Index split) { return merged_maximum(a, split); }, splits},
    {"merged-maximum",
     "the maximum of the first split of {} keys is kept, inside the range of binary32",
     [](Alteration& a, Index split) { return in_range_alone(a, merged_maximum(a, split)); },
     splits},
    {"merged-sum-for-maximum", "the sums of splits of {} keys are read for their maxima",
     [](Alteration& a, Index split) {
       a.softmax.emplace();
       a.softmax->tile = a.softmax->split = split;
       a.softmax->merge_reads_sum_for_max = true;
       return true;
     },
     splits},
    {"leading-split-nan", "a row that sees nothing in the first split of {} keys is NaN",
     [](Alteration& a, Index split) { return leading_splits_are_nan(a, split, true); }, splits},
    {"leading-split-nan",
     "a row that sees nothing in the first split of {} keys that it loads is NaN",
     [](Alteration& a, Index split) { return leading_splits_are_nan(a, split, false); }, splits},

    {"log2-e-rounded", "log2 e is rounded to {} places behind the point",
     [](Alteration& a, Index n) {
       const double unit = std::pow(10.0, static_cast<double>(n));
       return has_log2_e(a, std::round(1.4426950408889634 * unit) / unit);
     },
     places},
    {"log2-e-rounded", "log2 e is rounded to f16",
     [](Alteration& a, Index) { return has_log2_e(a, round_to(Dtype::f16, 1.4426950408889634)); }},
    {"log2-e-rounded", "log2 e is rounded to bf16",
     [](Alteration& a, Index) { return has_log2_e(a, round_to(Dtype::bf16, 1.4426950408889634)); }},
    {"zeros-behind-keys", "zeros behind the last key take part, up to a multiple of {} keys",
     [](Alteration& a, Index tile) {
       const Index keys = a.problem.shape.keys, padded = (keys + tile - 1) / tile * tile;
       a.change = [longer = with_keys(a.problem, padded), keys](const RowPlace& at, bool masked,
                                                                Eigen::Ref<Eigen::RowVectorXd> o,
                                                                double& lse) {
         const KeyInterval seen = visible_interval(longer, at.b, at.row);
         const Index zeros = seen.end - std::max(seen.begin, keys);
         if (zeros <= 0) return;
         const double theirs = std::log(static_cast<double>(zeros)),
                      largest = std::max(lse, theirs),
                      all =
                          largest + std::log(std::exp(lse - largest) + std::exp(theirs - largest));
         if (!masked) o *= std::exp(lse - all);
         lse = all;
       };
       return padded > keys && a.problem.key_lengths.empty() && !a.problem.projection;
     },
     paddings},

    // LSE.
    {"lse-base-two", "LSE is a logarithm to base 2",
     [](Alteration& a, Index) {
       a.change = [](const RowPlace&, bool, Eigen::Ref<Eigen::RowVectorXd>, double& lse) {
         lse *= 1.4426950408889634;
       };
       return true;
     }},
};

}  // namespace

std::span<const Hypothesis> sum_hypotheses() { return hypotheses; }

}  // namespace assay
