// The known faults of O and LSE, each as another problem or another sum.
#include <algorithm>
#include <cmath>

#include "oracle/alteration.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

constexpr Index tiles[] = {16, 32, 64, 128, 256};
constexpr Index fill_tiles[] = {1, 16, 32, 64, 128, 256};
constexpr Index splits[] = {256, 512, 1024};
constexpr Index eights[] = {8};

// Masks that are written out take no more elements than this.
constexpr Index most_pairs = Index{1} << 21;

bool ignores(bool& flag) { return std::exchange(flag, false); }
template <class T>
bool ignores(std::vector<T>& list) {
  return !std::exchange(list, {}).empty();
}

bool has_element_masks(const Attention& p) { return p.keep || p.bias; }
bool has_window(const Attention& p) { return p.window_left >= 0 || p.window_right >= 0; }
bool has_offset(const Attention& p) {
  return std::ranges::any_of(p.offset, [](Index n) { return n != 0; });
}

void clear_intervals(Attention& p) {
  p.causal = false;
  p.window_left = p.window_right = -1;
  p.key_lengths.clear();
  p.key_starts.clear();
}

// Causality ends `by` keys later; windows and ALiBi stay where they are.
bool shift_diagonal(Alteration& a, Index by) {
  Attention& p = a.problem;
  // A window of -1 is open, so the diagonal can only move to earlier keys by the offset.
  if (!p.causal || p.window_right >= 0 || (by < 0 && (has_window(p) || !p.alibi_slopes.empty())))
    return false;
  if (by < 0) {
    p.offset.resize(usize(p.shape.batch), 0);
    for (Index& n : p.offset) n += by;
    return true;
  }
  p.causal = false;
  p.window_right = by;
  return true;
}

bool change_window(Index& window, Index by) {
  if (window < 0 || window + by < 0) return false;
  window += by;
  return true;
}

// Row i sees the keys interval(b, i, those that it should see).
template <class Interval>
bool see(Alteration& a, const Interval& interval) {
  Attention& p = a.problem;
  const AttentionShape& s = p.shape;
  const bool by_head = p.keep && p.keep.stride[1] != 0;
  const Extents e = {s.batch, by_head ? s.query_heads : 1, s.rows, s.keys};
  if (element_count(e) > most_pairs || element_count(e) == 0) return false;
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

// A contiguous copy whose elements are at(b, h, i, j), in f64.
template <class At>
bool replace(Alteration& a, TensorView& t, const Extents& shape, const At& at) {
  if (element_count(shape) > most_pairs || element_count(shape) == 0) return false;
  const Extents stride = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
  const TensorView to =
      a.tensors.emplace_back(Dtype::f64, shape, Layout{stride, 0, element_count(shape)}).view();
  for_each_index(shape, [&](Index b, Index h, Index i, Index j) {
    store(to, to.at(b, h, i, j), at(b, h, i, j));
  });
  t = to;
  return true;
}
template <class Value>
bool change_elements(Alteration& a, TensorView& t, const Value& value) {
  const TensorView from = t;
  return replace(a, t, from.shape, [&](Index b, Index h, Index i, Index j) {
    return value(load(from, from.at(b, h, i, j)), b, h, i, j);
  });
}

// Masked scores are `fill` in all tiles that a row loads.
bool fill_masked(Alteration& a, double fill, Index tile) {
  const Attention& p = a.problem;
  if (!masks_elements(p) && !p.causal && !has_window(p) && p.key_lengths.empty() &&
      p.key_starts.empty())
    return false;
  a.softmax.emplace();
  a.softmax->tile = tile;
  a.softmax->fill = fill;
  return true;
}

// Masks of elements are read at the row from(i, j); where that is negative, nothing is masked.
template <class From>
bool read_masks_at(Alteration& a, const From& from) {
  Attention& p = a.problem;
  if (!has_element_masks(p) || element_count(p.shape.pair_extents()) > most_pairs) return false;
  const Attention before = p;
  const Extents e = p.shape.pair_extents();
  if (before.keep) {
    a.keep.assign(usize(element_count(e)), 1);
    std::size_t at = 0;
    for_each_index(e, [&](Index b, Index h, Index i, Index j) {
      const Index row = from(i, j);
      a.keep[at++] = row < 0 || before.keep.at(b, h, row, j);
    });
    p.keep = {a.keep.data(), {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}};
  }
  return !before.bias || replace(a, p.bias, e, [&](Index b, Index h, Index i, Index j) {
    const Index row = from(i, j);
    return row < 0 ? 0 : load(before.bias, before.bias.at(b, h, row, j));
  });
}

bool sum_wrongly(Alteration& a, Index tile, void (*change)(TiledSoftmax&)) {
  if (tile >= a.problem.shape.keys) return false;
  a.softmax.emplace();
  a.softmax->tile = tile;
  change(*a.softmax);
  return true;
}
// The first split is merged with others.
bool merge_wrongly(Alteration& a, Index split, void (*change)(TiledSoftmax&)) {
  if (split >= a.problem.shape.keys) return false;
  a.softmax.emplace();
  a.softmax->tile = a.softmax->split = split;
  change(*a.softmax);
  return true;
}

bool rows_come_from(Alteration& a, std::function<RowSource(const RowPlace&)> source) {
  a.source = std::move(source);
  return true;
}
RowSource from_place(Index b, Index h, Index row) { return {RowSource::Kind::row, {b, h, row}}; }
template <class Wrong>
bool is_zero_where(Alteration& a, const Wrong& wrong) {
  a.of_lse = false;
  a.change = [wrong](const RowPlace& at, bool, Eigen::Ref<Eigen::RowVectorXd> o, double&) {
    if (wrong(at)) o.setZero();
  };
  return true;
}

// The first row from which on all of O is 0 in the candidate's output; their number if none is.
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

double truncated_to_bf16(double x) {
  const double r = round_to(Dtype::bf16, x);
  if (std::fabs(r) <= std::fabs(x)) return r;
  return decode(Dtype::bf16, encode(Dtype::bf16, r) - 1);
}

// Only where the changed strides stay inside the tensor.
bool strides_fit(const TensorView& of, const Extents& other) {
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (other[axis] < 0 || other[axis] > of.stride[axis]) return false;
  return other != of.stride;
}
Extents packed_strides(const Extents& e) { return {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}; }

constexpr Hypothesis hypotheses[] = {
    // Causality and windows.
    {"causal-late", "the causal diagonal is one key late",
     [](Alteration& a, Index) { return shift_diagonal(a, 1); }},
    {"causal-late", "causality and windows are one key late",
     [](Alteration& a, Index) {
       return a.problem.causal && see(a, [](const Attention& q, Index b, Index i, KeyInterval) {
                Attention later = q;
                later.offset.resize(usize(q.shape.batch), 0);
                for (Index& n : later.offset) ++n;
                return visible_interval(later, b, i);
              });
     }},
    {"causal-early", "the causal diagonal is one key early",
     [](Alteration& a, Index) { return shift_diagonal(a, -1); }},
    {"offset-ignored", "causality and windows begin at the first key: the offset is ignored",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (!(p.causal || has_window(p)) || !has_offset(p)) return false;
       return see(a, [](const Attention& q, Index b, Index i, KeyInterval) {
         Attention anchored = q;
         anchored.offset.clear();
         return visible_interval(anchored, b, i);
       });
     }},
    {"offset-to-end", "causality and windows are anchored at the last key",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (!(p.causal || has_window(p))) return false;
       const Index end = p.shape.keys - p.shape.rows;
       if (std::ranges::all_of(p.offset, [&](Index n) { return n == end; }) &&
           (end == 0 || !p.offset.empty()))
         return false;
       p.offset.assign(usize(p.shape.batch), end);
       return true;
     }},
    {"positions-after-append", "rows are numbered from the end of the cache on",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (!(p.causal || has_window(p))) return false;
       p.offset.resize(usize(p.shape.batch), 0);
       for (Index& n : p.offset) n += p.shape.rows;
       return true;
     }},
    {"causal-ignored", "causality is ignored",
     [](Alteration& a, Index) { return ignores(a.problem.causal); }},
    {"causal-tile-full", "the tile of {} keys that the diagonal crosses is not masked",
     [](Alteration& a, Index tile) {
       return a.problem.causal &&
              see(a, [=](const Attention& q, Index b, Index i, KeyInterval own) {
                if (own.begin >= own.end) return own;
                Attention open = q;
                open.causal = false;
                return KeyInterval{own.begin, std::min((own.end + tile - 1) / tile * tile,
                                                       visible_interval(open, b, i).end)};
              });
     },
     tiles},
    {"causal-by-last-of-four", "causality is that of the last row of each four",
     [](Alteration& a, Index) {
       return a.problem.causal && see(a, [](const Attention& q, Index b, Index i, KeyInterval) {
                return visible_interval(q, b, std::min(i / 4 * 4 + 3, q.shape.rows - 1));
              });
     }},
    {"causal-in-first-tile", "rows behind the first tile of {} keys see the future",
     [](Alteration& a, Index tile) {
       return a.problem.causal &&
              see(a, [=](const Attention& q, Index b, Index i, KeyInterval own) {
                if (i + q.offset_of(b) < tile) return own;
                Attention open = q;
                open.causal = false;
                return visible_interval(open, b, i);
              });
     },
     tiles},
    {"window-short", "the left window is one key short",
     [](Alteration& a, Index) { return change_window(a.problem.window_left, -1); }},
    {"window-long", "the left window is one key long",
     [](Alteration& a, Index) { return change_window(a.problem.window_left, 1); }},
    {"right-window-short", "the right window is one key short",
     [](Alteration& a, Index) { return change_window(a.problem.window_right, -1); }},
    {"right-window-long", "the right window is one key long",
     [](Alteration& a, Index) { return change_window(a.problem.window_right, 1); }},
    {"window-ignored", "the window is ignored",
     [](Alteration& a, Index) {
       const bool had = has_window(a.problem);
       a.problem.window_left = a.problem.window_right = -1;
       return had;
     }},
    {"window-from-next-tile", "the first, partial tile of {} keys of a window is skipped",
     [](Alteration& a, Index tile) {
       return a.problem.window_left >= 0 &&
              see(a, [=](const Attention&, Index, Index, KeyInterval own) {
                return KeyInterval{(own.begin + tile - 1) / tile * tile, own.end};
              });
     },
     tiles},
    {"window-from-page", "the first key that a row sees is that of its page of {} keys",
     [](Alteration& a, Index page) {
       return (a.problem.window_left >= 0 || !a.problem.key_starts.empty()) &&
              see(a, [=](const Attention&, Index, Index, KeyInterval own) {
                return KeyInterval{own.begin / page * page, own.end};
              });
     },
     tiles},
    {"window-wraps", "rows whose window begins before the first key see nothing",
     [](Alteration& a, Index) {
       return a.problem.window_left >= 0 &&
              see(a, [](const Attention& q, Index b, Index i, KeyInterval own) {
                return i + q.offset_of(b) < q.window_left ? KeyInterval{0, 0} : own;
              });
     }},

    // Lengths, starts and documents.
    {"tail-tile-dropped", "the last, shorter tile of {} keys is dropped",
     [](Alteration& a, Index tile) {
       Attention& p = a.problem;
       const Index whole = p.shape.keys / tile * tile;
       if (whole == 0 || whole == p.shape.keys) return false;
       if (p.key_lengths.empty()) p.key_lengths.assign(usize(p.shape.batch), whole);
       for (Index& n : p.key_lengths) n = std::min(n, whole);
       return true;
     },
     tiles},
    {"last-key-dropped", "the last key is dropped",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (p.shape.keys == 0) return false;
       if (p.key_lengths.empty()) p.key_lengths.assign(usize(p.shape.batch), p.shape.keys);
       for (Index& n : p.key_lengths) n = std::max<Index>(n - 1, 0);
       return true;
     }},
    {"first-key-dropped", "the first key is dropped",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (p.key_starts.empty()) p.key_starts.assign(usize(p.shape.batch), 0);
       for (Index& n : p.key_starts) ++n;
       return true;
     }},
    {"newest-key-dropped", "each row misses its newest key",
     [](Alteration& a, Index) {
       return see(a, [](const Attention&, Index, Index, KeyInterval own) {
         return KeyInterval{own.begin, own.end - 1};
       });
     }},
    {"keys-as-rows", "keys are taken to be as many as rows",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (p.shape.rows >= p.shape.keys) return false;
       if (p.key_lengths.empty()) p.key_lengths.assign(usize(p.shape.batch), p.shape.rows);
       for (Index& n : p.key_lengths) n = std::min(n, p.shape.rows);
       return true;
     }},
    {"padding-seen", "a key of padding is seen",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       for (Index& n : p.key_lengths) n = std::min(n + 1, p.shape.keys);
       for (Index& n : p.key_starts) n = std::max<Index>(n - 1, 0);
       return !p.key_lengths.empty() || !p.key_starts.empty();
     }},
    {"lengths-ignored", "the lengths of the sequences are ignored",
     [](Alteration& a, Index) { return ignores(a.problem.key_lengths); }},
    {"starts-ignored", "the starts of the sequences are ignored",
     [](Alteration& a, Index) { return ignores(a.problem.key_starts); }},
    {"length-zero-is-all", "a sequence of length 0 is taken for one without a length",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       const bool any = std::ranges::find(p.key_lengths, 0) != p.key_lengths.end();
       std::ranges::replace(p.key_lengths, Index{0}, p.shape.keys);
       return any;
     }},
    {"document-late", "documents begin one key late",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       const std::vector<std::int32_t> before = p.key_segment;
       for (std::size_t at = 1; at < before.size(); ++at)
         if (at % usize(p.shape.keys) != 0) p.key_segment[at] = before[at - 1];
       return !before.empty();
     }},
    {"documents-ignored", "the documents are ignored",
     [](Alteration& a, Index) {
       a.problem.key_segment.clear();
       return ignores(a.problem.query_segment);
     }},

    // Masks of elements, and biases.
    {"causal-ignored-with-mask", "a mask switches causality off",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       return (has_element_masks(p) || !p.key_lengths.empty() || !p.key_starts.empty()) &&
              ignores(p.causal);
     }},
    {"bool-mask-ignored", "the boolean mask is ignored",
     [](Alteration& a, Index) { return bool{std::exchange(a.problem.keep, {})}; }},
    {"bool-mask-inverted", "the boolean mask keeps what it should mask",
     [](Alteration& a, Index) {
       if (!a.problem.keep || !read_masks_at(a, [](Index i, Index) { return i; })) return false;
       for (std::uint8_t& kept : a.keep) kept = !kept;
       return true;
     }},
    {"bias-ignored", "the additive mask is ignored",
     [](Alteration& a, Index) { return bool{std::exchange(a.problem.bias, {})}; }},
    {"bias-before-scale", "the additive mask is multiplied by the scale",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       const TensorView from = p.bias;
       const double scale = static_cast<double>(p.scale);
       return p.bias && !p.finite_min_masks && scale != 1 &&
              replace(a, p.bias, p.shape.pair_extents(), [&](Index b, Index h, Index i, Index j) {
                return round_to(from.dtype, scale * load(from, from.at(b, h, i, j)));
              });
     }},
    {"bias-rows-at-row-count", "rows of the additive mask are read as many apart as there are rows",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (!p.bias || p.bias.stride[2] <= p.shape.rows) return false;
       p.bias.stride[2] = p.shape.rows;
       return true;
     }},
    {"masks-of-first-batch", "every batch element reads the masks of the first",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       p.keep.stride[0] = p.bias.stride[0] = 0;
       return has_element_masks(p) && p.shape.batch > 1;
     }},
    {"masks-of-first-head", "every head reads the masks of head 0",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       p.keep.stride[1] = p.bias.stride[1] = 0;
       return has_element_masks(p) && p.shape.query_heads > 1;
     }},
    {"masks-of-first-rows", "rows {} to 31 of every 32 read the masks of the rows before",
     [](Alteration& a, Index rows) {
       return read_masks_at(a, [=](Index i, Index) { return i - i % 32 + i % rows; });
     },
     eights},
    {"masks-on-first-keys", "masks are applied to the first {} keys of every 32",
     [](Alteration& a, Index keys) {
       return read_masks_at(a, [=](Index i, Index j) { return j % 32 < keys ? i : -1; });
     },
     eights},
    {"fill-ten-thousand", "masked scores are -10000 (tiles of {} keys)",
     [](Alteration& a, Index tile) { return fill_masked(a, -10000, tile); }, fill_tiles},
    {"fill-lowest", "masked scores are the lowest number of binary32 (tiles of {} keys)",
     [](Alteration& a, Index tile) { return fill_masked(a, -0x1.fffffep127, tile); }, fill_tiles},
    {"softcap-after-mask", "masked scores are minus the softcap (tiles of {} keys)",
     [](Alteration& a, Index tile) {
       const float cap = a.problem.softcap;
       return cap > 0 && fill_masked(a, static_cast<double>(-cap), tile);
     },
     fill_tiles},
    {"fill-zero", "masked keys are counted with score 0 (tiles of {} keys)",
     [](Alteration& a, Index tile) { return fill_masked(a, 0, tile); }, fill_tiles},

    // ALiBi.
    {"alibi-ignored", "ALiBi is ignored",
     [](Alteration& a, Index) { return ignores(a.problem.alibi_slopes); }},
    {"alibi-head-before", "each head has the slope of the head before",
     [](Alteration& a, Index) {
       std::vector<float>& slopes = a.problem.alibi_slopes;
       if (slopes.empty()) return false;
       std::shift_right(slopes.begin(), slopes.end(), 1);
       slopes.front() = 1;
       return true;
     }},
    {"alibi-one-rule", "slopes are 2^(-8 (h + 1) / H) for any number of heads",
     [](Alteration& a, Index) {
       std::vector<float>& slopes = a.problem.alibi_slopes;
       for (std::size_t h = 0; h < slopes.size(); ++h)
         slopes[h] = static_cast<float>(
             std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(slopes.size())));
       return !slopes.empty();
     }},
    {"alibi-from-key-zero", "the distances of ALiBi are counted from key 0",
     [](Alteration& a, Index) {
       const Attention& p = a.problem;
       if (p.alibi_slopes.empty()) return false;
       const std::vector<float> slopes = p.alibi_slopes;
       const std::vector<Index> offset = p.offset;
       a.change = [=](const RowPlace& at, bool, Eigen::Ref<Eigen::RowVectorXd>, double& lse) {
         const Index from = offset.empty() ? 0 : offset[usize(at.b)];
         lse += static_cast<double>(slopes[usize(at.h)]) * static_cast<double>(at.row + from);
       };
       return true;
     }},

    // Scores.
    {"scale-one-percent", "the scale is 1% too large",
     [](Alteration& a, Index) { return a.problem.scale *= 1.01f, true; }},
    {"scale-default", "the scale is 1 / sqrt(D)",
     [](Alteration& a, Index) {
       return std::exchange(a.problem.scale, default_scale(a.problem.shape.dim)) != a.problem.scale;
     }},
    {"scale-missing", "scores are not scaled",
     [](Alteration& a, Index) { return std::exchange(a.problem.scale, 1.0f) != 1; }},
    {"scale-twice", "scores are scaled twice",
     [](Alteration& a, Index) { return a.problem.scale *= a.problem.scale, true; }},
    {"scale-square-root", "scores are scaled by the square root of the scale",
     [](Alteration& a, Index) {
       a.problem.scale = std::sqrt(std::fabs(a.problem.scale));
       return true;
     }},
    {"softcap-ignored", "the softcap is ignored",
     [](Alteration& a, Index) { return std::exchange(a.problem.softcap, 0.0f) > 0; }},
    {"dim-tail-dropped", "D is rounded down to a multiple of {}",
     [](Alteration& a, Index width) {
       ProjectedAttention& p = a.problem;
       const Index whole = p.shape.dim / width * width;
       if (whole == 0 || whole == p.shape.dim) return false;
       p.shape.dim = p.q.shape[3] = p.k.shape[3] = whole;
       return !p.projection;
     },
     eights},

    // The sink.
    {"sink-ignored", "the sink is ignored",
     [](Alteration& a, Index) { return ignores(a.problem.sink); }},
    {"lse-without-sink", "LSE lacks the sink",
     [](Alteration& a, Index) { return a.of_o = false, ignores(a.problem.sink); }},
    {"sink-twice", "the sink is counted twice",
     [](Alteration& a, Index) {
       for (float& z : a.problem.sink) z += std::log(2.0f);
       return !a.problem.sink.empty();
     }},
    {"sink-per-split", "the sink is counted once for each split of {} keys",
     [](Alteration& a, Index split) {
       Attention& p = a.problem;
       const Index count = (p.shape.keys + split - 1) / split;
       for (float& z : p.sink) z += std::log(static_cast<float>(count));
       return !p.sink.empty() && count > 1;
     },
     splits},

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
                return from_place(at.b, std::max<Index>(at.h - 1, 0), at.row);
              });
     }},
    {"row-before", "each row has the outputs of the row before",
     [](Alteration& a, Index) {
       return a.problem.shape.rows > 1 && rows_come_from(a, [](const RowPlace& at) {
                return from_place(at.b, at.h, std::max<Index>(at.row - 1, 0));
              });
     }},
    {"lse-in-head-zero", "all heads write their LSE where head 0 does",
     [](Alteration& a, Index) {
       const Index last = a.problem.shape.query_heads - 1;
       a.of_o = false;
       return last > 0 && rows_come_from(a, [=](const RowPlace& at) {
                return at.h > 0 ? RowSource{RowSource::Kind::nan, at}
                                : from_place(at.b, last, at.row);
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
       return a.unwritten && rows_come_from(a, [](const RowPlace& at) {
                return RowSource{RowSource::Kind::nan, at};
              });
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
    {"maximum-of-tile", "the running maximum is that of the tile of {} keys alone",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile,
                          [](TiledSoftmax& s) { s.maximum = TiledSoftmax::Maximum::of_tile; });
     },
     tiles},
    {"maximum-of-first-tile", "the maximum of the first tile of {} keys is kept",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile,
                          [](TiledSoftmax& s) { s.maximum = TiledSoftmax::Maximum::first; });
     },
     tiles},
    {"maximum-scaled-again", "the row maximum is scaled twice (tiles of {})",
     [](Alteration& a, Index tile) {
       a.softmax.emplace().tile = tile;
       a.softmax->maximum = TiledSoftmax::Maximum::scaled_again;
       return true;
     },
     tiles},
    {"corrections-in-half", "corrections e^(m - m') are kept in fp16 (tiles of {})",
     [](Alteration& a, Index tile) {
       return sum_wrongly(a, tile, [](TiledSoftmax& s) { s.corrections_in_half = true; });
     },
     tiles},
    {"lane-missing", "the row sum lacks the last of eight lanes (tiles of {})",
     [](Alteration& a, Index tile) {
       a.softmax.emplace().tile = tile;
       a.softmax->drops_a_lane = true;
       return true;
     },
     eights},
    {"padding-in-sum", "a padded key of the last tile of {} keys enters the row sum with score 0",
     [](Alteration& a, Index tile) {
       a.softmax.emplace().tile = tile;
       a.softmax->counts_padding = true;
       return a.problem.shape.keys % tile != 0;
     },
     tiles},
    {"weights-truncated", "weights are cast to bf16 by truncation (tiles of {})",
     [](Alteration& a, Index tile) {
       a.softmax.emplace().tile = tile;
       a.softmax->truncates_weights = true;
       return true;
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
    {"merged-maximum", "the maximum of the first split of {} keys is kept",
     [](Alteration& a, Index split) {
       return merge_wrongly(a, split, [](TiledSoftmax& s) { s.merge_keeps_first_max = true; });
     },
     splits},
    {"split-dropped", "the last, shorter split of {} keys is dropped",
     [](Alteration& a, Index split) {
       return see(a, [=](const Attention& q, Index, Index, KeyInterval own) {
         const Index whole = q.shape.keys / split * split;
         return KeyInterval{own.begin, whole > 0 ? std::min(own.end, whole) : own.end};
       });
     },
     splits},

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

std::span<const Hypothesis> attention_hypotheses() { return hypotheses; }

}  // namespace assay
