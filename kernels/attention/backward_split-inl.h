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
// skipped, which changes no bit.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/attention/backward_plan.h"
#include "kernels/attention/dropout.h"
#include "kernels/attention/element_bias-inl.h"
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
    for (Index lane = 0; lane < panel_width; ++lane) row[c + lane] = factor * from[lane];
}

inline bool has_nan(Vector x) { return !hn::AllTrue(Lanes(), hn::Eq(x, x)); }

template <class Stages>
class KeySplit {
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
        keys_across_(allocate_floats(plan.tiling.split_keys * s_.dim)),
        values_across_(allocate_floats(plan.tiling.split_keys * s_.value_dim)),
        keys_(allocate_floats(plan.tiling.split_keys * plan.padded_dim)),
        dk_(allocate_floats(plan.tiling.split_keys * plan.padded_dim)),
        dv_(allocate_floats(plan.tiling.split_keys * plan.padded_value_dim)),
        q_(allocate_floats(plan.tile_floats())),
        d_o_(allocate_floats(plan.tiling.rows * plan.padded_value_dim)),
        dq_(allocate_floats(plan.partials ? 0 : plan.tile_floats())),
        row_(allocate_floats(std::max(plan.padded_dim, plan.padded_value_dim))),
        weights_(allocate_floats(plan.tiling.rows * weight_stride)),
        gradients_(allocate_floats(plan.tiling.rows * weight_stride)),
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

  void pack_keys(Index tile) {
    const Index key0 = split0_ + tile * width_, filled = std::min(width_, s_.keys - key0);
    float* keys_across = keys_across_.get() + tile * width_ * s_.dim;
    float* values_across = values_across_.get() + tile * width_ * s_.value_dim;
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
          finite, spread_row(row_.get(), plan_.padded_dim, key_panel_,
                             keys_.get() + tile * width_ * plan_.padded_dim + j * panel_width));
      load(Stage::value, p_.v, g_, key0 + j, s_.value_dim, plan_.padded_value_dim);
      turn(s_.value_dim, j, values_across);
    }
    keys_not_finite_[tile] = has_nan(finite);
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
    const Lanes d;
    Vector finite = hn::Zero(d);
    for (Index r = 0; r < rows_; ++r) {
      load(Stage::query, p_.q, h_, row0_ + r, s_.dim, plan_.padded_dim);
      finite = hn::Add(
          finite, spread_row(row_.get(), plan_.padded_dim, row_panel_, q_.get() + r * panel_width));
      load(Stage::output_gradient, plan_.in.d_o, h_, row0_ + r, s_.value_dim,
           plan_.padded_value_dim);
      finite = hn::Add(finite, spread_row(row_.get(), plan_.padded_value_dim, row_panel_,
                                          d_o_.get() + r * panel_width));
    }
    const bool rows_not_finite = has_nan(finite);
    std::fill_n(dq, plan_.tile_floats(), 0.0f);
    for (Index tile = (any.begin - split0_) / width_; split0_ + tile * width_ < any.end; ++tile) {
      key0_ = split0_ + tile * width_;
      find_visible();
      compute_products(q_.get(), keys_across_.get() + tile * width_ * s_.dim, s_.dim,
                       stages_.scale(p_.scale), weights_.get());
      observe(Stage::scores, weights_.get());
      compute_weights();
      compute_products(d_o_.get(), values_across_.get() + tile * width_ * s_.value_dim,
                       s_.value_dim, 1.0f, gradients_.get());
      observe(Stage::weight_gradients, gradients_.get());
      compute_score_gradients();
      float* dv = dv_.get() + tile * width_ * plan_.padded_value_dim;
      float* dk = dk_.get() + tile * width_ * plan_.padded_dim;
      const float* keys = keys_.get() + tile * width_ * plan_.padded_dim;
      if (rows_not_finite || keys_not_finite_[tile]) {
        add_visible(weights_.get(), true, d_o_.get(), s_.value_dim, dv);
        add_visible(gradients_.get(), true, q_.get(), s_.dim, dk);
        add_visible(gradients_.get(), false, keys, s_.dim, dq);
      } else {
        add_over_rows(weights_.get(), d_o_.get(), plan_.padded_value_dim, dv);
        add_over_rows(gradients_.get(), q_.get(), plan_.padded_dim, dk);
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
    for_row_blocks(rows_, [&](auto block, Index r) {
      seen_[r] = {width_, 0};
      for (Index i = r; i < r + static_cast<Index>(block.size()); ++i) {
        const KeyRange range = in_tile(i);
        whole = whole && range.end - range.begin == width_;
        widen(seen_[r], range);
      }
      widen(any_, seen_[r]);
    });
    for_row_blocks(any_.end - any_.begin, [&](auto block, Index j) {
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
    for (Index panel = any_.begin / panel_width * panel_width; panel < any_.end;
         panel += panel_width)
      for_row_blocks(rows_, [&](auto block, Index r) HWY_ATTR {
        if (panel + panel_width <= seen_[r].begin || panel >= seen_[r].end) return;
        dot_panel<weight_stride>(block, rows + r * panel_width, row_panel_,
                                 across + panel * columns, columns, scale,
                                 tile + r * weight_stride + panel);
      });
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

  // Computes total[j] += sum_i tile[i][j] rows[i], in register blocks of keys by panels of columns.
  void add_over_rows(const float* tile, const float* rows, Index padded_columns, float* total) {
    for (Index c = 0; c < padded_columns; c += panel_width, rows += row_panel_, total += key_panel_)
      for_row_blocks(any_.end - any_.begin, [&](auto block, Index j) HWY_ATTR {
        const KeyRange seeing = seeing_[j];
        if (seeing.begin >= seeing.end) return;
        const Index key = any_.begin + j;
        add_product<1, weight_stride>(block, tile + seeing.begin * weight_stride + key,
                                      rows + seeing.begin * panel_width, seeing.end - seeing.begin,
                                      total + key * panel_width);
      });
  }

  // Computes total[i] += sum_j tile[i][j] keys[j].
  void add_over_keys(const float* tile, const float* keys, float* total) {
    for (Index c = 0; c < plan_.padded_dim;
         c += panel_width, keys += key_panel_, total += row_panel_)
      for_row_blocks(rows_, [&](auto block, Index r) HWY_ATTR {
        const KeyRange seen = seen_[r];
        if (seen.begin >= seen.end) return;
        add_product<weight_stride, 1>(block, tile + r * weight_stride + seen.begin,
                                      keys + seen.begin * panel_width, seen.end - seen.begin,
                                      total + r * panel_width);
      });
  }

  // Computes the same sums where Q, K or dO holds an infinity or a NaN: only visible pairs are
  // multiplied, so that 0 * NaN never occurs.
  void add_visible(const float* tile, bool over_rows, const float* operand, Index columns,
                   float* total) {
    const Index operand_panel = over_rows ? row_panel_ : key_panel_,
                total_panel = over_rows ? key_panel_ : row_panel_;
    const Index outputs = over_rows ? width_ : rows_, terms = over_rows ? rows_ : width_;
    for (Index o = 0; o < outputs; ++o) {
      std::fill_n(row_.get(), columns, 0.0f);
      for (Index t = 0; t < terms; ++t) {
        const Index at = over_rows ? t * weight_stride + o : o * weight_stride + t;
        // the mark that compute_weights sets
        if (std::bit_cast<std::uint32_t>(weights_[at]) == 0x80000000) continue;
        for (Index c = 0; c < columns; ++c)
          row_[c] = multiply_add_one(
              tile[at],
              operand[c / panel_width * operand_panel + t * panel_width + c % panel_width],
              row_[c]);
      }
      for (Index c = 0; c < columns; ++c)
        total[c / panel_width * total_panel + o * panel_width + c % panel_width] += row_[c];
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
  // Arrays of the split, by tiles: K and V as panels of keys; K, dK and dV as panels of columns.
  hwy::AlignedFreeUniquePtr<float[]> keys_across_, values_across_, keys_, dk_, dv_;
  hwy::AlignedFreeUniquePtr<float[]> q_, d_o_, dq_, row_, weights_, gradients_, slopes_, bias_row_,
      kept_row_;
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
