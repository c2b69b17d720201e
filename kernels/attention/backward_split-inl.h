// One task of attention backward. The file is compiled once for each SIMD target, hence the guard.
//
// A task owns the keys of one split of one key/value head. It packs K and V once, walks over the
// rows of the group's query heads, recomputes P from LSE, and keeps dK and dV of its keys. The dQ
// of the split goes to a buffer of its own, and these buffers are added in the order of the splits.
// There are five products: S, dP, dV, dK, dQ.
//
// The order of every sum is this: q.k is summed as in the forward pass, and dO.V is one FMA chain
// over c. Within a tile, P^T dO and dS^T Q are FMA chains over the rows of the tile, and dS K is
// one over its keys; all of them begin at zero. Tiles, query heads and splits are added in order.
// All sums are fp32. Masked pairs have a P and a dS of exactly 0. A tile that no row sees is
// skipped, which changes no bit. Pairs of bf16 (Operands::pairs) have the same order, P and dS in
// bf16 as they are multiplied, and fused multiply-adds that flush subnormal numbers. AMX
// (Operands::amx) adds them in chunks of 32, and a tile of rows or keys is such a chunk.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/attention/attention_plan.h"
#include "kernels/attention/backward_plan.h"
#include "kernels/attention/dropout.h"
#include "kernels/attention/element_bias-inl.h"
#include "kernels/attention/operands-inl.h"
#include "kernels/simd/bf16_pairs.h"
#include "kernels/simd/register_block-inl.h"
#include "kernels/attention/stages.h"

#if defined(ASSAY_KERNELS_BACKWARD_SPLIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_BACKWARD_SPLIT_INL_H_
#undef ASSAY_KERNELS_BACKWARD_SPLIT_INL_H_
#else
#define ASSAY_KERNELS_BACKWARD_SPLIT_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// Floats from one row of a tile of weights to the next: the width of the tile, and one vector more,
// so that the rows do not fall onto the same cache sets.
inline constexpr Index weight_stride = 96 + 16;

// Copies a row into column panels; the next panel is `panel` floats away. Some lane of the result
// is NaN if the row holds a NaN or an infinity; otherwise all lanes are 0.
inline Vector spread_row(const float* HWY_RESTRICT row, Index columns, Index panel,
                         float* HWY_RESTRICT to) {
  const Lanes d;
  const Index n = static_cast<Index>(hn::Lanes(d));
  Vector sum = hn::Zero(d);
  for (Index c = 0; c < columns; c += panel_width, to += panel)
    for (Index half : {Index{0}, n}) {
      const Vector x = hn::Load(d, row + c + half);
      hn::Store(x, d, to + half);
      sum = hn::MulAdd(x, hn::Zero(d), sum);
    }
  return sum;
}

inline void gather_row(const float* HWY_RESTRICT from, Index columns, Index panel, float factor,
                       float* HWY_RESTRICT row) {
  for (Index c = 0; c < columns; c += panel_width, from += panel)
    // Which chunks of zeros a sum passed by would tell in the sign of a 0.
    for (Index lane = 0; lane < panel_width; ++lane) row[c + lane] = factor * from[lane] + 0.0f;
}

inline bool has_nan(Vector x) { return !hn::AllTrue(Lanes(), hn::Eq(x, x)); }

// Rows of a tensor of bf16 one after the other, with zeros behind the last column and the last row.
class PairRows {
 public:
  PairRows(Index rows, Index columns)
      : elements_((columns + 63) / 64 * 64),
        rows_(allocate_aligned<std::uint16_t>(rows * elements_)) {}

  void load(const TensorView& t, Index b, Index h, Index row0, Index filled, Index rows,
            Index columns) {
    for (Index r = 0; r < rows; ++r) {
      std::uint16_t* to = rows_.get() + r * elements_;
      const Index count = r < filled ? columns : 0, stride = t.stride[3];
      std::fill(to + count, to + elements_, std::uint16_t{0});
      if (count == 0) continue;
      const auto* from = static_cast<const std::uint16_t*>(t.data) + t.at(b, h, row0 + r, 0);
      if (stride == 1) std::copy_n(from, count, to);
      else
        for (Index c = 0; c < count; ++c) to[c] = from[c * stride];
    }
  }
  const std::byte* row(Index r) const {
    return reinterpret_cast<const std::byte*>(rows_.get() + r * elements_);
  }
  Index bytes() const { return 2 * elements_; }  // of a row

 private:
  const Index elements_;
  hwy::AlignedFreeUniquePtr<std::uint16_t[]> rows_;
};

template <Operands operands, class Stages>
class KeySplit {
  static constexpr bool in_pairs = operands == Operands::pairs, in_amx = operands == Operands::amx,
                        in_words = in_pairs || in_amx;
  static_assert(!in_words || (panel_width == bf16::panel_width &&
                              weight_stride == bf16::weight_stride && block_rows == 12));
  static_assert(!in_words || !Stages::observes);
  // How many floats, or words, hold so many elements.
  static constexpr Index per_word = elements_of_a_word(operands);
  static constexpr Index words_of(Index elements) {
    const Index words = (elements + per_word - 1) / per_word;
    return in_amx ? amx::whole_chunks(words) : words;
  }

 public:
  KeySplit(const BackwardPlan& plan, const Stages& stages)
      : plan_(plan),
        p_(*plan.problem),
        s_(p_.shape),
        stages_(stages),
        bias_(p_),
        width_(plan.tiling.keys),
        row_panel_(plan.tiling.rows * panel_width),
        key_panel_(width_ * panel_width),
        row_words_(words_of(plan.tiling.rows)),
        keys_across_(allocate_floats(plan.tiling.split_keys * words_of(s_.dim))),
        values_across_(allocate_floats(plan.tiling.split_keys * words_of(s_.value_dim))),
        keys_(allocate_floats(plan.tiling.split_keys / per_word * plan.padded_dim)),
        dk_(allocate_floats(plan.tiling.split_keys * plan.padded_dim)),
        dv_(allocate_floats(plan.tiling.split_keys * plan.padded_value_dim)),
        q_(allocate_floats(row_words_ * plan.padded_dim)),
        d_o_(allocate_floats(row_words_ * plan.padded_value_dim)),
        q_words_(allocate_floats(in_words ? panels_of_words(s_.dim) * row_panel_ : 0)),
        d_o_words_(allocate_floats(in_words ? panels_of_words(s_.value_dim) * row_panel_ : 0)),
        pair_rows_(in_words ? std::max(2 * row_words_, width_) : 0, std::max(s_.dim, s_.value_dim)),
        dq_(allocate_floats(plan.partials ? 0 : plan.tile_floats())),
        row_(allocate_floats(std::max(plan.padded_dim, plan.padded_value_dim))),
        weights_(allocate_floats(plan.tiling.rows * weight_stride)),
        gradients_(allocate_floats(plan.tiling.rows * weight_stride)),
        weights_of_pairs_(allocate_floats(in_words ? row_words_ * weight_stride : 0)),
        gradients_of_pairs_(allocate_floats(in_words ? row_words_ * weight_stride : 0)),
        weights_of_keys_(allocate_floats(in_amx ? width_ * weight_stride : 0)),
        gradients_of_keys_(allocate_floats(in_amx ? width_ * weight_stride : 0)),
        slopes_(allocate_floats(p_.softcap > 0 ? plan.tiling.rows * weight_stride : 0)),
        bias_row_(allocate_floats(width_)),
        kept_row_(allocate_floats(width_)),
        lse_(usize(plan.tiling.rows)),
        ranges_(lse_.size()),
        seen_(lse_.size()),
        seeing_(usize(width_)),
        keys_not_finite_(usize(plan.tiling.split_keys / width_)) {}

  // `slot` is the place of the split among the partial dQ of the wave.
  void run(Index b, Index g, Index split, Index slot) {
    [[maybe_unused]] const RegistersOf<operands> registers;
    b_ = b;
    g_ = g;
    split0_ = split * plan_.tiling.split_keys;
    split_keys_ = std::min(plan_.tiling.split_keys, s_.keys - split0_);
    for (Index tile = 0; tile * width_ < split_keys_; ++tile) pack_keys(tile);
    const Index row_tiles = stages_.row_tiles(s_.rows, plan_.tiling.rows);
    for (Index member = 0; member < s_.group(); ++member) {
      h_ = stages_.query_head(g_, member, s_.group());
      if (stages_.starts_key_sums(member)) {
        std::fill_n(dk_.get(), plan_.tiling.split_keys * plan_.padded_dim, 0.0f);
        std::fill_n(dv_.get(), plan_.tiling.split_keys * plan_.padded_value_dim, 0.0f);
      }
      for (Index tile = 0; tile < row_tiles; ++tile) {
        row0_ = tile * plan_.tiling.rows;
        rows_ = std::min(plan_.tiling.rows, s_.rows - row0_);
        const Index partial = (slot * s_.group() + member) * plan_.row_tiles + tile;
        float* dq = plan_.partials ? plan_.partials + partial * plan_.tile_floats() : dq_.get();
        const bool sees = run_rows(dq);
        if (plan_.partials) plan_.written[partial] = sees;
        else store_query_gradients(dq, sees);
      }
    }
    store_key_gradients();
  }

 private:
  HWY_INLINE void observe(Stage stage, float* data) const {
    if constexpr (Stages::observes)
      stages_.at(stage, {b_, h_, row0_, key0_, rows_, width_, data, weight_stride});
  }
  HWY_INLINE void observe_row(Stage stage, Index head, Index row, Index columns) const {
    if constexpr (Stages::observes)
      stages_.at(stage, {b_, head, row, row, 1, columns, row_.get(), columns});
  }

  void load(Stage stage, const TensorView& t, Index head, Index row, Index columns,
            Index padded_columns) {
    load_row(t, b_, head, row, columns, row_.get());
    std::fill(row_.get() + columns, row_.get() + padded_columns, 0.0f);
    observe_row(stage, head, row, columns);
  }

  // Writes one row of K or V as a column of its panel of keys.
  void turn(Index columns, Index j, float* tile) {
    float* column = tile + j / panel_width * panel_width * columns + j % panel_width;
    for (Index c = 0; c < columns; ++c) column[c * panel_width] = row_[c];
  }

  static Index panels_of_words(Index columns) {
    return (words_of(columns) + panel_width - 1) / panel_width;
  }
  // The rows of Q and dO that dot_panel reads: floats from one row to the next, and from one panel
  // of words to the next. For AMX the panels of a row lie side by side.
  static Index row_step(Index columns) {
    return in_amx ? panels_of_words(columns) * panel_width : panel_width;
  }
  Index panel_step() const { return in_amx ? panel_width : row_panel_; }
  // Floats from one panel of columns to the next, in tiles of rows of words.
  Index row_words_panel() const { return row_words_ * panel_width; }

  // Packs the panels of keys that dot_panel reads, with zeros behind the last column.
  void pack_across(Index columns, float* to) const {
    const Index words = words_of(columns), filled = bf16::words_of(columns);
    for (Index j = 0; j < width_; j += panel_width) {
      bf16::pack_keys(
          {{pair_rows_.row(j), pair_rows_.row(j + panel_width / 2)}, pair_rows_.bytes(), {0, 0}},
          columns, to + j * words);
      std::fill_n(to + j * words + filled * panel_width, (words - filled) * panel_width, 0.0f);
    }
  }
  // Packs pairs of rows to panels of columns. Returns whether all numbers are finite.
  bool pack_down(Index rows, Index padded_columns, Index panel, float* to) const {
    std::uint16_t largest = 0;
    for (Index r = 0; r < rows; r += 2)
      largest =
          std::max(largest, bf16::pack_values(pair_rows_.row(r), pair_rows_.row(r + 1),
                                              padded_columns, to + r / 2 * panel_width, panel));
    return largest < 0x7F80;
  }

  void pack_keys(Index tile) {
    const Index key0 = split0_ + tile * width_, filled = std::min(width_, s_.keys - key0);
    float* keys_across = keys_across_.get() + tile * width_ * words_of(s_.dim);
    float* values_across = values_across_.get() + tile * width_ * words_of(s_.value_dim);
    float* keys = keys_.get() + tile * width_ / per_word * plan_.padded_dim;
    if constexpr (in_words) {
      pair_rows_.load(p_.k, b_, g_, key0, filled, width_, s_.dim);
      pack_across(s_.dim, keys_across);
      keys_not_finite_[tile] = !pack_down(width_, plan_.padded_dim, key_panel_ / per_word, keys);
      pair_rows_.load(p_.v, b_, g_, key0, filled, width_, s_.value_dim);
      pack_across(s_.value_dim, values_across);
      return;
    }
    if (filled < width_) {
      std::fill_n(keys_across, width_ * s_.dim, 0.0f);
      std::fill_n(values_across, width_ * s_.value_dim, 0.0f);
    }
    const Lanes d;
    Vector finite = hn::Zero(d);
    for (Index j = 0; j < filled; ++j) {
      load(Stage::key, p_.k, g_, key0 + j, s_.dim, plan_.padded_dim);
      turn(s_.dim, j, keys_across);
      finite = hn::Add(
          finite, spread_row(row_.get(), plan_.padded_dim, key_panel_, keys + j * panel_width));
      load(Stage::value, p_.v, g_, key0 + j, s_.value_dim, plan_.padded_value_dim);
      turn(s_.value_dim, j, values_across);
    }
    keys_not_finite_[tile] = has_nan(finite);
  }

  // Packs a tile of rows of Q or dO: to panels of columns, and in pairs also to `words` for
  // dot_panel. Returns whether all numbers are finite.
  bool pack_rows(Stage stage, const TensorView& t, Index columns, Index padded_columns, float* to,
                 float* words) {
    if constexpr (in_words) {
      const Index filled = 2 * words_of(rows_);
      pair_rows_.load(t, b_, h_, row0_, rows_, filled, columns);
      for (Index r = 0; r < rows_; ++r)
        bf16::pack_row(pair_rows_.row(r), words_of(columns), words + r * row_step(columns),
                       panel_step());
      return pack_down(filled, padded_columns, row_words_panel(), to);
    }
    Vector finite = hn::Zero(Lanes());
    for (Index r = 0; r < rows_; ++r) {
      load(stage, t, h_, row0_ + r, columns, padded_columns);
      finite =
          hn::Add(finite, spread_row(row_.get(), padded_columns, row_panel_, to + r * panel_width));
    }
    return !has_nan(finite);
  }

  // Rounds P and dS to bf16 and packs them to words: pairs of rows for sums over rows, and dS also
  // to pairs of keys, in place.
  void pack_weights() {
    pack_pairs(weights_.get(), weights_of_pairs_.get(), weights_of_keys_.get());
    pack_pairs(gradients_.get(), gradients_of_pairs_.get(), gradients_of_keys_.get());
    for (Index r = 0; r < rows_; ++r)
      bf16::pack_weights(gradients_.get() + r * weight_stride, width_);
  }
  // Packs a tile by pairs of rows; for AMX also to a row of words for each key.
  void pack_pairs(float* tile, float* pairs, [[maybe_unused]] float* of_keys) const {
    if (rows_ % 2 == 1) std::fill_n(tile + rows_ * weight_stride, width_, 0.0f);
    for (Index r = 0; r < rows_; r += 2)
      bf16::pack_weights(tile + r * weight_stride, tile + (r + 1) * weight_stride, width_,
                         pairs + r / 2 * weight_stride);
    if constexpr (in_amx) {
      const Index filled = (rows_ + 1) / 2, words = words_of(rows_);
      for (Index w = filled; w < words; ++w) std::fill_n(pairs + w * weight_stride, width_, 0.0f);
      for (Index w = 0; w < words; w += amx::chunk_words)
        for (Index j = 0; j < width_; j += amx::tile_rows)
          bf16::transpose_words(pairs + w * weight_stride + j, weight_stride,
                                of_keys + j * weight_stride + w, weight_stride);
    }
  }

  // Returns false if no row of the tile sees a key of the split; dq is not written then.
  bool run_rows(float* dq) {
    KeyRange any{s_.keys, 0};
    for (Index r = 0; r < rows_; ++r) {
      lse_[r] = static_cast<const float*>(plan_.in.lse.data)[plan_.in.lse.at(b_, h_, row0_ + r, 0)];
      KeyRange range = stages_.visible(p_, b_, row0_ + r, visible_keys(p_, b_, row0_ + r));
      range.begin = std::max(range.begin, split0_);
      range.end = lse_[r] == minus_infinity ? 0 : std::min(range.end, split0_ + split_keys_);
      if (range.begin < range.end)
        any = {std::min(any.begin, range.begin), std::max(any.end, range.end)};
      ranges_[r] = range;
    }
    if (any.begin >= any.end) return false;
    const bool q_finite = pack_rows(Stage::query, p_.q, s_.dim, plan_.padded_dim, q_.get(),
                                    q_words_.get()),
               d_o_finite = pack_rows(Stage::output_gradient, plan_.in.d_o, s_.value_dim,
                                      plan_.padded_value_dim, d_o_.get(), d_o_words_.get());
    const float *q_rows = in_words ? q_words_.get() : q_.get(),
                *d_o_rows = in_words ? d_o_words_.get() : d_o_.get();
    // for sums over rows
    const float *weights_of_rows = in_amx     ? weights_of_keys_.get()
                                   : in_pairs ? weights_of_pairs_.get()
                                              : weights_.get(),
                *gradients_of_rows = in_amx     ? gradients_of_keys_.get()
                                     : in_pairs ? gradients_of_pairs_.get()
                                                : gradients_.get();
    std::fill_n(dq, plan_.tile_floats(), 0.0f);
    for (Index tile = (any.begin - split0_) / width_; split0_ + tile * width_ < any.end; ++tile) {
      key0_ = split0_ + tile * width_;
      find_visible();
      compute_products(q_rows, keys_across_.get() + tile * width_ * words_of(s_.dim), s_.dim,
                       stages_.scale(p_.scale), weights_.get());
      observe(Stage::scores, weights_.get());
      compute_weights();
      compute_products(d_o_rows, values_across_.get() + tile * width_ * words_of(s_.value_dim),
                       s_.value_dim, 1.0f, gradients_.get());
      observe(Stage::weight_gradients, gradients_.get());
      compute_score_gradients();
      if constexpr (in_words) pack_weights();
      float* dv = dv_.get() + tile * width_ * plan_.padded_value_dim;
      float* dk = dk_.get() + tile * width_ * plan_.padded_dim;
      const float* keys = keys_.get() + tile * width_ / per_word * plan_.padded_dim;
      if (!q_finite || !d_o_finite || keys_not_finite_[tile]) {
        add_visible(weights_of_rows, true, d_o_.get(), s_.value_dim, dv);
        add_visible(gradients_of_rows, true, q_.get(), s_.dim, dk);
        add_visible(gradients_.get(), false, keys, s_.dim, dq);
      } else {
        add_over_rows(weights_of_rows, d_o_.get(), plan_.padded_value_dim, dv);
        add_over_rows(gradients_of_rows, q_.get(), plan_.padded_dim, dk);
        add_over_keys(gradients_.get(), keys, dq);
      }
    }
    return true;
  }

  // The keys of this tile, relative to its first key, that the intervals leave to a row.
  KeyRange in_tile(Index r) const {
    const Index begin = std::clamp<Index>(ranges_[r].begin - key0_, 0, width_);
    return {begin, std::clamp<Index>(ranges_[r].end - key0_, begin, width_)};
  }

  // Finds the keys that each register block of rows sees, and the rows that see each register block
  // of keys.
  void find_visible() {
    any_ = {width_, 0};
    const auto widen = [](KeyRange& range, const KeyRange& by) {
      if (by.begin < by.end) range = {std::min(range.begin, by.begin), std::max(range.end, by.end)};
    };
    bool whole = true;
    for_blocks<operands>(rows_, [&](auto block, Index r) {
      seen_[r] = {width_, 0};
      for (Index i = r; i < r + static_cast<Index>(block.size()); ++i) {
        const KeyRange range = in_tile(i);
        whole = whole && range.end - range.begin == width_;
        widen(seen_[r], range);
      }
      widen(any_, seen_[r]);
    });
    if constexpr (in_amx)
      any_ = {any_.begin / amx::tile_rows * amx::tile_rows,
              std::max(any_.begin, amx::whole_tiles(any_.end))};
    for_blocks<operands>(any_.end - any_.begin, [&](auto block, Index j) {
      KeyRange& rows = seeing_[j];
      rows = whole ? KeyRange{0, rows_} : KeyRange{rows_, 0};
      if (whole) return;
      const Index begin = any_.begin + j, end = begin + static_cast<Index>(block.size());
      for (Index r = 0; r < rows_; ++r) {
        const KeyRange range = in_tile(r);
        if (range.begin < end && begin < range.end) rows = {std::min(rows.begin, r), r + 1};
      }
    });
  }

  // Computes a tile of S or dP. A panel of keys stays in L1 while all rows pass.
  void compute_products(const float* rows, const float* across, Index columns, float scale,
                        float* tile) {
    const Index words = words_of(columns), step = row_step(columns);
    for (Index panel = any_.begin / panel_width * panel_width; panel < any_.end;
         panel += panel_width)
      for_blocks<operands>(rows_, [&](auto block, Index r) HWY_ATTR {
        if (panel + panel_width <= seen_[r].begin || panel >= seen_[r].end) return;
        const float *a = rows + r * step, *b = across + panel * words;
        float* out = tile + r * weight_stride + panel;
        if constexpr (in_amx) {
          amx::multiply(block.size(), a, step, b, words, amx::Sum::from_zero, out, weight_stride);
          if (scale != 1) scale_panel(block.size(), scale, out);
        } else if constexpr (in_pairs) {
          bf16::dot_panel(block.size(), a, row_panel_, b, words, scale, out);
        } else {
          dot_panel<weight_stride>(block, a, row_panel_, b, words, scale, out);
        }
      });
  }
  static void scale_panel(Index rows, float scale, float* out) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    for (Index r = 0; r < rows; ++r, out += weight_stride)
      for (Index j = 0; j < panel_width; j += n)
        hn::Store(hn::Mul(hn::Load(d, out + j), hn::Set(d, scale)), d, out + j);
  }

  // Turns s into P. Where a key is masked, P becomes -0, whatever s is there; no visible pair has
  // that weight.
  void compute_weights() {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    const Vector cap = hn::Set(d, p_.softcap), one = hn::Set(d, 1.0f),
                 curvature = hn::Set(d, stages_.softcap_curvature());
    const Vector masked = hn::Set(d, minus_infinity), zero = hn::Zero(d);
    for (Index r = 0; r < rows_; ++r) {
      const KeyRange range = in_tile(r);
      float* row = weights_.get() + r * weight_stride;
      float* slopes = slopes_.get() + r * weight_stride;
      const Index begin = range.begin / n * n,
                  end = range.begin < range.end ? (range.end + n - 1) / n * n : begin;
      std::fill(row, row + begin, -0.0f);
      std::fill(row + end, row + width_, -0.0f);
      if (begin == end) continue;
      std::fill(bias_row_.get() + begin, bias_row_.get() + range.begin, minus_infinity);
      std::fill(bias_row_.get() + range.end, bias_row_.get() + end, minus_infinity);
      if (bias_.active())
        bias_.row(b_, h_, row0_ + r, key0_ + range.begin, range.end - range.begin,
                  bias_row_.get() + range.begin);
      else std::fill(bias_row_.get() + range.begin, bias_row_.get() + range.end, 0.0f);
      const Vector lse = hn::Set(d, lse_[r]);
      for (Index j = begin; j < end; j += n) {
        Vector s = hn::Load(d, row + j);
        if (p_.softcap > 0) {
          const Vector t = tanh_of(d, hn::Div(s, cap));
          s = hn::Mul(cap, t);
          hn::Store(hn::NegMulAdd(hn::Mul(t, t), curvature, one), d, slopes + j);
        }
        const Vector bias = hn::Load(d, bias_row_.get() + j);
        const Vector exponent = hn::Sub(hn::Add(s, bias), lse);
        // Rounding may lift the exponent above 0, although P is never above 1. NaN stays NaN.
        const Vector w =
            exp_of_nonpositive(d, hn::IfThenElse(hn::Gt(exponent, zero), zero, exponent));
        hn::Store(hn::IfThenElse(hn::Eq(bias, masked), hn::Neg(zero), w), d, row + j);
      }
    }
    observe(Stage::weights, weights_.get());
  }

  // Turns dP into dS, and P into P R.
  void compute_score_gradients() {
    const Lanes d;
    const hn::RebindToSigned<Lanes> di;
    const Index n = static_cast<Index>(hn::Lanes(d));
    const auto masked = hn::Set(di, std::numeric_limits<std::int32_t>::min());
    for (Index r = 0; r < rows_; ++r) {
      const KeyRange range = in_tile(r);
      float* weights = weights_.get() + r * weight_stride;
      float* gradients = gradients_.get() + r * weight_stride;
      const float* slopes = slopes_.get() + r * weight_stride;
      const Index begin = range.begin / n * n,
                  end = range.begin < range.end ? (range.end + n - 1) / n * n : begin;
      std::fill(gradients, gradients + begin, 0.0f);
      std::fill(gradients + end, gradients + width_, 0.0f);
      if (begin == end) continue;
      if (p_.dropout > 0) draw_dropout(row0_ + r, begin, end);
      const Vector delta =
          hn::Set(d, plan_.delta[(b_ * s_.query_heads + h_) * s_.rows + row0_ + r]);
      for (Index j = begin; j < end; j += n) {
        const Vector w = hn::Load(d, weights + j);
        Vector g = hn::Load(d, gradients + j);
        if (p_.dropout > 0) {
          const Vector kept = hn::Load(d, kept_row_.get() + j);
          g = hn::Mul(kept, g);
          hn::Store(hn::Mul(w, kept), d, weights + j);
        }
        g = hn::Mul(w, hn::Sub(g, delta));
        hn::Store(hn::IfThenZeroElse(hn::RebindMask(d, hn::Eq(hn::BitCast(di, w), masked)), g), d,
                  gradients + j);
      }
      if (plan_.out.d_bias) add_bias_gradient(r, range);
      if (p_.softcap > 0)
        for (Index j = begin; j < end; j += n) {
          const Vector w = hn::Load(d, weights + j),
                       g = hn::Mul(hn::Load(d, gradients + j), hn::Load(d, slopes + j));
          hn::Store(hn::IfThenZeroElse(hn::RebindMask(d, hn::Eq(hn::BitCast(di, w), masked)), g), d,
                    gradients + j);
        }
    }
    observe(Stage::score_gradients, gradients_.get());
  }

  // Writes R of the keys [begin, end) of a row.
  void draw_dropout(Index row, Index begin, Index end) {
    const float keep_scale = 1.0f / (1.0f - p_.dropout);
    const std::uint64_t threshold = dropout_threshold(p_.dropout);
    for (Index j = begin; j < end; ++j)
      kept_row_[j] =
          dropout_word(p_.dropout_seed, b_, h_, row, key0_ + j) >= threshold ? keep_scale : 0.0f;
  }

  void add_bias_gradient(Index r, const KeyRange& range) {
    const TensorView& t = plan_.out.d_bias;
    float* to = static_cast<float*>(t.data) + t.at(b_, h_, row0_ + r, key0_);
    const float* gradients = gradients_.get() + r * weight_stride;
    const Index stride = t.stride[3];
    if (stride != 0) {
      for (Index j = range.begin; j < range.end; ++j) to[j * stride] += gradients[j];
    } else {
      float sum = 0;
      for (Index j = range.begin; j < range.end; ++j) sum += gradients[j];
      *to += sum;
    }
  }

  // The word at which a sum over a range begins.
  static Index first_word(const KeyRange& range) {
    const Index first = range.begin / per_word;
    return in_amx ? first / amx::chunk_words * amx::chunk_words : first;
  }

  // Computes total[j] += sum_i tile[i][j] rows[i], in register blocks of keys by panels of columns.
  // For AMX the tile is tile[j][i].
  void add_over_rows(const float* tile, const float* rows, Index padded_columns, float* total) {
    for (Index c = 0; c < padded_columns;
         c += panel_width, rows += row_words_panel(), total += key_panel_)
      for_blocks<operands>(any_.end - any_.begin, [&](auto block, Index j) HWY_ATTR {
        const KeyRange seeing = seeing_[j];
        if (seeing.begin >= seeing.end) return;
        const Index key = any_.begin + j, first = first_word(seeing),
                    words = words_of(seeing.end) - first;
        const float *a =
                        tile + (in_amx ? key * weight_stride + first : first * weight_stride + key),
                    *b = rows + first * panel_width;
        float* to = total + key * panel_width;
        if constexpr (in_amx)
          amx::multiply(block.size(), a, weight_stride, b, words, amx::Sum::onto, to, panel_width);
        else if constexpr (in_pairs) bf16::add_over_rows(block.size(), a, b, words, to);
        else add_product<1, weight_stride>(block, a, b, words, to);
      });
  }

  // Computes total[i] += sum_j tile[i][j] keys[j].
  void add_over_keys(const float* tile, const float* keys, float* total) {
    for (Index c = 0; c < plan_.padded_dim;
         c += panel_width, keys += key_panel_ / per_word, total += row_panel_)
      for_blocks<operands>(rows_, [&](auto block, Index r) HWY_ATTR {
        const KeyRange seen = seen_[r];
        if (seen.begin >= seen.end) return;
        const Index first = first_word(seen), words = words_of(seen.end) - first;
        const float *a = tile + r * weight_stride + first, *b = keys + first * panel_width;
        float* to = total + r * panel_width;
        if constexpr (in_amx)
          amx::multiply(block.size(), a, weight_stride, b, words, amx::Sum::onto, to, panel_width);
        else if constexpr (in_pairs) bf16::add_over_keys(block.size(), a, b, words, to);
        else add_product<weight_stride, 1>(block, a, b, words, to);
      });
  }

  // Computes the same sums where Q, K or dO holds an infinity or a NaN: only visible pairs are
  // multiplied, so that 0 * NaN never occurs.
  void add_visible(const float* tile, bool over_rows, const float* operand, Index columns,
                   float* total) {
    const Index operand_panel = over_rows ? row_words_panel() : key_panel_ / per_word,
                total_panel = over_rows ? key_panel_ : row_panel_;
    const Index outputs = over_rows ? width_ : rows_, terms = over_rows ? rows_ : width_;
    const auto is_visible = [&](Index o, Index term) {
      if (term >= terms) return false;
      // the mark that compute_weights sets
      const Index at = over_rows ? term * weight_stride + o : o * weight_stride + term;
      return std::bit_cast<std::uint32_t>(weights_[at]) != 0x80000000;
    };
    const auto visible_bits = [&](Index o, Index word) {
      return (is_visible(o, 2 * word) ? 0xFFFF0000 : 0) |
             (is_visible(o, 2 * word + 1) ? 0x0000FFFF : 0);
    };
    if constexpr (in_amx) {
      for (Index o = 0; o < outputs; ++o)
        add_visible_chunks(
            tile + o * weight_stride, [&](Index word) { return visible_bits(o, word); },
            words_of(terms), operand, operand_panel, columns, total + o * panel_width, total_panel);
      return;
    }
    for (Index o = 0; o < outputs; ++o) {
      std::fill_n(row_.get(), (columns + panel_width - 1) / panel_width * panel_width, 0.0f);
      for (Index t = 0; t < words_of(terms); ++t) {
        const float weight = tile[over_rows ? t * weight_stride + o : o * weight_stride + t];
        if constexpr (in_words) {
          const std::uint32_t kept = visible_bits(o, t);
          for (Index c = 0; kept != 0 && c < columns; c += panel_width)
            bf16::add_word(weight, operand + c / panel_width * operand_panel + t * panel_width,
                           kept, row_.get() + c);
        } else if (is_visible(o, t)) {
          for (Index c = 0; c < columns; ++c)
            row_[c] = multiply_add_one(
                weight,
                operand[c / panel_width * operand_panel + t * panel_width + c % panel_width],
                row_[c]);
        }
      }
      for (Index c = 0; c < columns; ++c)
        total[c / panel_width * total_panel + o * panel_width + c % panel_width] += row_[c];
    }
  }

  // The same for one output of AMX, with terms of its own in which all that is masked is 0.
  template <class VisibleBits>
  static void add_visible_chunks(const float* row, const VisibleBits& visible_bits, Index words,
                                 const float* operand, Index operand_panel, Index columns,
                                 float* total, Index total_panel) {
    alignas(64) float weights[amx::tile_rows * weight_stride] = {},
                                               sums[amx::tile_rows * panel_width] = {},
                                               visible[weight_stride * panel_width];
    std::copy_n(row, words, weights);
    for (Index c = 0; c < columns;
         c += panel_width, operand += operand_panel, total += total_panel) {
      for (Index w = 0; w < words; ++w) {
        const std::uint32_t kept = visible_bits(w);
        for (Index lane = w * panel_width; lane < (w + 1) * panel_width; ++lane)
          visible[lane] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(operand[lane]) & kept);
      }
      std::copy_n(total, panel_width, sums);
      amx::multiply(1, weights, weight_stride, visible, words, amx::Sum::onto, sums, panel_width);
      std::copy_n(sums, panel_width, total);
    }
  }

  void store_query_gradients(const float* dq, bool sees) {
    for (Index r = 0; r < rows_; ++r) {
      if (sees)
        gather_row(dq + r * panel_width, plan_.padded_dim, row_panel_,
                   stages_.query_gradient_scale(p_.scale), row_.get());
      else std::fill_n(row_.get(), s_.dim, 0.0f);
      observe_row(Stage::query_gradient, h_, row0_ + r, s_.dim);
      store_row(plan_.out.dq, b_, h_, row0_ + r, s_.dim, row_.get());
    }
  }

  void store_key_gradients() {
    for (Index j = 0; j < split_keys_; ++j) {
      const Index tile = j / width_, key = split0_ + j, at = j % width_ * panel_width;
      gather_row(dk_.get() + tile * width_ * plan_.padded_dim + at, plan_.padded_dim, key_panel_,
                 stages_.key_gradient_scale(p_.scale), row_.get());
      observe_row(Stage::key_gradient, g_, key, s_.dim);
      store_row(plan_.out.dk, b_, g_, key, s_.dim, row_.get());
      gather_row(dv_.get() + tile * width_ * plan_.padded_value_dim + at, plan_.padded_value_dim,
                 key_panel_, 1.0f, row_.get());
      observe_row(Stage::value_gradient, g_, key, s_.value_dim);
      store_row(plan_.out.dv, b_, g_, key, s_.value_dim, row_.get());
    }
  }

  const BackwardPlan& plan_;
  const Attention& p_;
  const AttentionShape& s_;
  const Stages& stages_;
  const ElementBias bias_;
  // floats from one panel of columns to the next, in tiles of rows and of keys
  const Index width_, row_panel_, key_panel_;
  const Index row_words_;  // how many floats or words hold a tile of rows
  // Arrays of the split, by tiles: K and V as panels of keys; K, dK and dV as panels of columns. In
  // pairs, panels of keys hold words of two columns, and K, Q and dO words of two rows.
  hwy::AlignedFreeUniquePtr<float[]> keys_across_, values_across_, keys_, dk_, dv_;
  hwy::AlignedFreeUniquePtr<float[]> q_, d_o_;
  hwy::AlignedFreeUniquePtr<float[]> q_words_,
      d_o_words_;  // in words: the rows that are multiplied
  PairRows pair_rows_;
  hwy::AlignedFreeUniquePtr<float[]> dq_, row_, weights_, gradients_;
  hwy::AlignedFreeUniquePtr<float[]> weights_of_pairs_, gradients_of_pairs_;  // [row pair][key]
  hwy::AlignedFreeUniquePtr<float[]> weights_of_keys_, gradients_of_keys_;    // [key][row pair]
  hwy::AlignedFreeUniquePtr<float[]> slopes_, bias_row_, kept_row_;
  std::vector<float> lse_;
  std::vector<KeyRange> ranges_;  // of each row, within the split
  // keys of this tile, by the register block of rows that begins at the index
  std::vector<KeyRange> seen_;
  // rows, by the register block of keys that begins at any_.begin + index
  std::vector<KeyRange> seeing_;
  std::vector<unsigned char> keys_not_finite_;  // by tile
  KeyRange any_{};                              // keys of this tile that at least one row sees
  Index b_ = 0, g_ = 0, h_ = 0, split0_ = 0, split_keys_ = 0, row0_ = 0, rows_ = 0, key0_ = 0;
};

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
