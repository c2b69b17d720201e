// The known faults of masks, of what is added to scores, and of the scale.
#include <algorithm>
#include <cmath>

#include "oracle/alteration.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

constexpr Index tiles[] = {16, 32, 64, 128, 256};
constexpr Index splits[] = {256, 512, 1024};
constexpr Index eights[] = {8};
constexpr Index fill_tiles[] = {1, 16, 32, 64, 128, 256};

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

// Masked scores are `fill` in all tiles that a row loads.
bool fill_masked(Alteration& a, double fill, Index tile, bool zeros = false) {
  const Attention& p = a.problem;
  if (!masks_elements(p) && !p.causal && !has_window(p) && p.key_lengths.empty() &&
      p.key_starts.empty())
    return false;
  a.softmax.emplace();
  a.softmax->tile = tile;
  a.softmax->fill = fill;
  a.softmax->fills_zeros = zeros;
  return true;
}

// Reads the element masks of the pair (i, j) at row from(i, j). A negative row masks nothing.
template <class From>
bool read_masks_at(Alteration& a, const From& from) {
  Attention& p = a.problem;
  if (!has_element_masks(p) || element_count(p.shape.pair_extents()) > most_altered_elements)
    return false;
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

// Adds slope * (i + offset) to the scores of row i, as if ALiBi counted from the first key.
bool shift_scores(Alteration& a) {
  Attention& p = a.problem;
  const Attention before = p;
  const double lowest = p.bias ? -format(p.bias.dtype).max_finite : 0;
  p.finite_min_masks = false;
  return replace(a, p.bias, p.shape.pair_extents(), [&](Index b, Index h, Index i, Index j) {
    const double bias = before.bias ? load(before.bias, before.bias.at(b, h, i, j)) : 0;
    if (before.finite_min_masks && bias == lowest) return -inf;
    return bias + static_cast<double>(before.alibi_slopes[usize(h)]) *
                      static_cast<double>(i + before.offset_of(b));
  });
}

// Each sequence gets one more key behind its length: a copy of its last key, or zeros.
bool read_slot_behind(Alteration& a, bool repeats_last) {
  ProjectedAttention& p = a.problem;
  if (p.projection || masks_elements(p) || p.shape.keys == 0) return false;
  const std::vector<Index> lengths = p.key_lengths.empty()
                                         ? std::vector<Index>(usize(p.shape.batch), p.shape.keys)
                                         : p.key_lengths;
  const auto lengthen = [&](TensorView& t) {
    const TensorView from = t;
    Extents longer = from.shape;
    ++longer[2];
    return replace(a, t, longer, [&](Index b, Index g, Index j, Index c) {
      const Index length = lengths[usize(b)];
      if (j == length)
        return repeats_last && length > 0 ? load(from, from.at(b, g, length - 1, c)) : 0.0;
      return j < from.shape[2] ? load(from, from.at(b, g, j, c)) : 0.0;
    });
  };
  if (!lengthen(p.k) || !lengthen(p.v)) return false;
  ++p.shape.keys;
  p.key_lengths = lengths;
  for (Index& n : p.key_lengths) ++n;
  return true;
}

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
    {"positions-after-append", "rows are numbered from the end of the cache on",
     [](Alteration& a, Index) {
       Attention& p = a.problem;
       if (!(p.causal || has_window(p))) return false;
       p.offset.resize(usize(p.shape.batch), 0);
       for (Index& n : p.offset) n += p.shape.rows;
       return true;
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
    {"split-dropped", "the last, shorter split of {} keys is dropped",
     [](Alteration& a, Index split) {
       return see(a, [=](const Attention& q, Index, Index, KeyInterval own) {
         const Index whole = q.shape.keys / split * split;
         return KeyInterval{own.begin, whole > 0 ? std::min(own.end, whole) : own.end};
       });
     },
     splits},
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
    {"slot-behind-read", "the slot behind the last key is read, which holds the last key again",
     [](Alteration& a, Index) { return read_slot_behind(a, true); }},
    {"slot-behind-read", "the slot behind the last key is read, which holds zeros",
     [](Alteration& a, Index) { return read_slot_behind(a, false); }},
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
    {"fill-ten-thousand",
     "masked scores are -10000 (tiles of {} keys; those that are not loaded are 0)",
     [](Alteration& a, Index tile) { return fill_masked(a, -10000, tile, true); }, tiles},
    {"fill-lowest",
     "masked scores are the lowest number of binary32 (tiles of {} keys; those that are not loaded "
     "are 0)",
     [](Alteration& a, Index tile) { return fill_masked(a, -0x1.fffffep127, tile, true); }, tiles},
    {"softcap-after-mask",
     "masked scores are minus the softcap (tiles of {} keys; those that are not loaded are 0)",
     [](Alteration& a, Index tile) {
       const float cap = a.problem.softcap;
       return cap > 0 && fill_masked(a, static_cast<double>(-cap), tile, true);
     },
     tiles},
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
     [](Alteration& a, Index) { return !a.problem.alibi_slopes.empty() && shift_scores(a); }},

    // Scores.
    {"scale-one-percent", "the scale is 1% too large",
     [](Alteration& a, Index) { return a.problem.scale *= 1.01f, true; }},
    {"scale-default", "the scale is 1 / sqrt(D)",
     [](Alteration& a, Index) {
       return std::exchange(a.problem.scale, default_scale(a.problem.shape.dim)) != a.problem.scale;
     }},
    {"scale-missing", "scores are not scaled",
     [](Alteration& a, Index) { return std::exchange(a.problem.scale, 1.0f) != 1; }},
    {"scale-sign-dropped", "the sign of the scale is dropped",
     [](Alteration& a, Index) {
       return std::exchange(a.problem.scale, std::fabs(a.problem.scale)) < 0;
     }},
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
};

}  // namespace

std::span<const Hypothesis> mask_hypotheses() { return hypotheses; }

}  // namespace assay
