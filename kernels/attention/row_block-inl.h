// A block of query rows against the keys of a split, and the merging of splits. The file is
// compiled once for each SIMD target.
#include <cstdint>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/attention/attention_plan.h"
#include "kernels/attention/dropout.h"
#include "kernels/attention/element_bias-inl.h"
#include "kernels/attention/operands-inl.h"
#include "kernels/attention/pack-inl.h"
#include "kernels/simd/bf16_pairs.h"
#include "kernels/simd/register_block-inl.h"
#include "kernels/attention/stages.h"

#if defined(ASSAY_KERNELS_ROW_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_ROW_BLOCK_INL_H_
#undef ASSAY_KERNELS_ROW_BLOCK_INL_H_
#else
#define ASSAY_KERNELS_ROW_BLOCK_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// What the online softmax carries for each row of a block: the sums sum e^(s - max) and
// sum e^(s - max) V. Both may be rescaled together by any e^x.
struct RowState {
  float* max;
  float* sum;
  float* accumulator;  // [row][accumulator stride]
};

template <Operands operands, class Stages>
class RowBlock {
  static constexpr bool in_pairs = operands == Operands::pairs, in_amx = operands == Operands::amx,
                        in_words = in_pairs || in_amx;
  static_assert(!in_words || (panel_width == bf16::panel_width &&
                              score_stride == bf16::score_stride && block_rows == 12));
  // How many floats, or words, hold so many elements.
  static constexpr Index per_word = elements_of_a_word(operands);
  static constexpr Index words_of(Index elements) { return (elements + per_word - 1) / per_word; }

 public:
  RowBlock(const ForwardPlan& plan, const Stages& stages, Index rows)
      : plan_(plan),
        p_(*plan.problem),
        s_(p_.shape),
        stages_(stages),
        bias_(p_),
        width_(plan.tiling.keys),
        accumulator_stride_(plan.padded_value_dim),
        capacity_((rows + panel_alignment - 1) / panel_alignment * panel_alignment),
        q_(allocate_floats(capacity_ * std::max(s_.dim, plan.key_words()))),
        q_row_(allocate_floats(s_.dim)),
        q_across_(allocate_floats(in_amx ? plan.key_words() * amx::tile_rows : 0)),
        scores_(allocate_floats(capacity_ * score_stride)),
        accumulators_(allocate_floats(2 * capacity_ * accumulator_stride_)),
        bias_row_(allocate_floats(width_)),
        of_row_(allocate_floats(7 * capacity_)),
        split_{vector_of_rows(0), vector_of_rows(1), accumulators_.get()},
        total_{vector_of_rows(2), vector_of_rows(3),
               accumulators_.get() + capacity_ * accumulator_stride_},
        tile_sum_(vector_of_rows(4)),
        correction_(vector_of_rows(5)),
        weight_(vector_of_rows(6)),
        block_(usize(capacity_)),
        seen_(block_.size()) {
    std::fill_n(of_row_.get(), 7 * capacity_, 0.0f);
  }

  // Makes this block the rows [row0, row0 + rows) of each of `heads` query heads, from `head` on,
  // which have seen no key yet.
  void place(Index b, Index head, Index heads, Index row0, Index rows) {
    b_ = b;
    head_ = head;
    row0_ = row0;
    head_rows_ = rows;
    rows_ = heads * rows;
    seen_by_block_ = {s_.keys, 0};
    for (Index r = 0; r < rows_; ++r) {
      const Index row = row0 + r % rows;
      const KeyRange keys = stages_.visible(p_, b, row, visible_keys(p_, b, row));
      block_[r] = {head + r / rows, row, keys};
      if (keys.begin < keys.end)
        seen_by_block_ = {std::min(seen_by_block_.begin, keys.begin),
                          std::max(seen_by_block_.end, keys.end)};
    }
    load_queries();
    clear(total_, minus_infinity);
  }

  // The keys that at least one row may see.
  const KeyRange& seen() const { return seen_by_block_; }
  RowState split_state() const { return split_; }
  Index rows() const { return rows_; }

  // Runs the online softmax over the keys of one split. tiles.keys(tile), and then
  // tiles.values(tile), give packed keys and values. If Tiles::stored is true, a few rows do not
  // need packed tiles: they use tiles.panel(tile, key) and tiles.values_in_place(tile, keys).
  template <class Tiles>
  void attend(Index split, Tiles tiles) {
    [[maybe_unused]] const RegistersOf<operands> registers;
    key0_ = 0;
    clear(split_, stages_.initial_max());
    const Index of_split = plan_.tiling.split_keys / width_;
    const Index end = std::min({(split + 1) * of_split, stages_.key_tiles(s_.keys, width_),
                                (seen_by_block_.end + width_ - 1) / width_});
    for (Index tile = std::max(split * of_split, seen_by_block_.begin / width_); tile < end;
         ++tile) {
      key0_ = tile * width_;
      for_blocks<operands>(rows_, [&](auto block, Index r) {
        seen_[r] = seen_in_tile(r, static_cast<Index>(block.size()));
      });
      compute_scores(tile, tiles);
      mask_scores();
      update_softmax(tile);
      accumulate(tile, tiles);
      observe(Stage::accumulated, split_.accumulator, s_.value_dim, accumulator_stride_);
    }
  }

  // Adds a split to those that were merged before it:
  //   m' = max(m, m_s), a = e^(m - m'), b = e^(m_s - m'),
  //   l' = l_s b + (l a), O' = O_s b + (O a).
  // Each bracket is rounded once, and the rest of its formula is rounded once. A split in which the
  // row saw nothing changes nothing, and the first split in which it saw something is taken as it
  // is.
  void merge(const RowState& split) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    for (Index r = 0; r < rows_; ++r) {
      const float new_max = stages_.merged_max(total_.max[r], split.max[r]),
                  reference = reference_of(new_max);
      correction_[r] = total_.max[r] - reference;
      weight_[r] = split.max[r] - reference;
      total_.max[r] = new_max;
    }
    for (Index r = 0; r < rows_; r += n) {
      hn::Store(exp_of_nonpositive(d, hn::Load(d, correction_ + r)), d, correction_ + r);
      hn::Store(exp_of_nonpositive(d, hn::Load(d, weight_ + r)), d, weight_ + r);
    }
    for (Index r = 0; r < rows_; ++r) {
      total_.sum[r] = multiply_add_one(
          split.sum[r], weight_[r], total_.sum[r] * stages_.merged_sum_correction(correction_[r]));
      const Vector a = hn::Set(d, stages_.merged_accumulator_correction(correction_[r])),
                   b = hn::Set(d, weight_[r]);
      const float* from = split.accumulator + r * accumulator_stride_;
      float* to = total_.accumulator + r * accumulator_stride_;
      for (Index c = 0; c < accumulator_stride_; c += n)
        hn::Store(hn::MulAdd(hn::Load(d, from + c), b, hn::Mul(hn::Load(d, to + c), a)), d, to + c);
    }
  }

  // Adds the sink, divides by the sum, and writes the outputs of what has been merged.
  void finish() {
    for (Index r = 0; r < rows_; ++r) {
      float m = total_.max[r], sum = total_.sum[r];
      float* row = total_.accumulator + r * accumulator_stride_;
      if (!p_.sink.empty()) add_sink(p_.sink[block_[r].head], m, sum, row);
      if (sum != 0) {
        const float inverse = (in_words ? keep_scale() : 1.0f) / sum;
        // The sign of a 0 would depend on the masked keys that passed by. Adding 0 makes every zero
        // +0.
        for (Index c = 0; c < s_.value_dim; ++c) row[c] = row[c] * inverse + 0.0f;
      } else if (sees_a_key(r)) {
        // Every visible score is -inf, which is 0 / 0. A row whose every key is masked is 0
        // instead.
        std::fill_n(row, s_.value_dim, std::numeric_limits<float>::quiet_NaN());
      }
      store(r, row, m, sum);
    }
  }

 private:
  struct Row {
    Index head, row;
    KeyRange keys;  // the keys that its intervals leave to the row
  };

  float* vector_of_rows(Index index) const { return of_row_.get() + index * capacity_; }

  // The reference for a row that has seen nothing yet: any finite number gives weights of 0, where
  // -inf - -inf would give NaN.
  static float reference_of(float max) { return max == minus_infinity ? 0.0f : max; }

  void clear(const RowState& state, float max) const {
    std::fill_n(state.max, rows_, max);
    std::fill_n(state.sum, rows_, 0.0f);
    std::fill_n(state.accumulator, rows_ * accumulator_stride_, 0.0f);
  }

  HWY_INLINE void observe(Stage stage, float* data, Index columns, Index stride) const {
    if constexpr (Stages::observes)
      for (Index r = 0; r < rows_; r += head_rows_)
        stages_.at(stage,
                   {b_, block_[r].head, row0_, key0_, head_rows_, columns, data + r * stride,
                    stride, 1, key0_ / plan_.tiling.split_keys * plan_.tiling.split_keys, width_});
  }

  // The words of Q: for AMX, row after row; otherwise the rows of a register block are interleaved.
  void load_queries() {
    for_blocks<operands>(rows_, [&](auto block, Index r) {
      const auto count = static_cast<Index>(block.size()), words = plan_.key_words();
      float* of_block = q_.get() + r * (in_amx ? words : s_.dim);
      for (Index i = 0; i < count; ++i) {
        const Row& row = block_[r + i];
        load_row(p_.q, b_, row.head, row.row, s_.dim, q_row_.get());
        if constexpr (Stages::observes)
          stages_.at(Stage::query, {b_, row.head, row.row, 0, 1, s_.dim, q_row_.get(), s_.dim});
        for (Index w = 0; w < words; ++w)
          of_block[in_amx ? i * words + w : w * count + i] =
              in_words ? pair_at(q_row_.get(), 2 * w) : q_row_[w];
        if constexpr (in_amx)
          if (few_rows()) put_across(of_block + i * words, words, r + i);
      }
    });
  }

  // Numbers that are bf16 already, as a word.
  float pair_at(const float* row, Index d) const {
    const auto first = d < s_.dim ? std::bit_cast<std::uint32_t>(row[d]) : 0,
               second = d + 1 < s_.dim ? std::bit_cast<std::uint32_t>(row[d + 1]) : 0;
    return std::bit_cast<float>(first | second >> 16);
  }

  bool few_rows() const {
    return in_amx ? rows_ <= amx::tile_rows : rows_ < static_cast<Index>(block_rows);
  }
  // Writes a row of words as a column of q_across_, with the halves as they are in memory.
  void put_across(const float* row, Index words, Index r) {
    for (Index w = 0; w < words; ++w)
      q_across_[w * amx::tile_rows + r] =
          std::bit_cast<float>(std::rotl(std::bit_cast<std::uint32_t>(row[w]), 16));
  }

  // The keys of this tile, relative to its first key, that at least one row of [r, r + count) may
  // see.
  KeyRange seen_in_tile(Index r, Index count) const {
    KeyRange seen{width_, 0};
    for (Index i = r; i < r + count; ++i) {
      const KeyRange& range = block_[i].keys;
      const Index begin = std::max<Index>(range.begin - key0_, 0),
                  end = std::min(range.end - key0_, width_);
      if (begin < end) seen = {std::min(seen.begin, begin), std::max(seen.end, end)};
    }
    return seen;
  }

  template <class Tiles>
  void compute_scores(Index tile, const Tiles& tiles) {
    if (!score_in_place(tile, tiles)) score_packed(tiles.keys(tile));
    if (p_.softcap > 0) apply_softcap();
    observe(Stage::scores, scores_.get(), width_, score_stride);
  }

  void score_packed(const float* keys) {
    const float scale = stages_.scale(p_.scale);
    const KeyRange any = seen_in_tile(0, rows_);
    const Index words = plan_.key_words();
    if constexpr (in_amx) {
      for (Index panel = any.begin / panel_width * panel_width; panel < any.end;
           panel += panel_width)
        for_blocks<operands>(rows_, [&](auto block, Index r) {
          const KeyRange& seen = seen_[r];
          if (panel + panel_width <= seen.begin || panel >= seen.end) return;
          amx::multiply(block.size(), q_.get() + r * words, words, keys + panel * words, words,
                        amx::Sum::from_zero, scores_.get() + r * score_stride + panel,
                        score_stride);
        });
      if (!scales_late()) scale_scores(scale, any);
    } else if (rows_ == 1) {
      for_panels(
          any.begin / panel_width * panel_width, any.end, [&](auto panels, Index panel) HWY_ATTR {
            const float* from = keys + panel * words;
            float* to = scores_.get() + panel;
            if constexpr (in_pairs)
              bf16::score_row(panels.size(), q_.get(), words, from, panel_width * words, scale, to);
            else score_row(panels, q_.get(), words, from, scale, to);
          });
    } else {
      // A panel of keys stays in L1 while all rows pass.
      for (Index panel = any.begin / panel_width * panel_width; panel < any.end;
           panel += panel_width)
        for_row_blocks(rows_, [&](auto block, Index r) HWY_ATTR {
          const KeyRange& seen = seen_[r];
          if (panel + panel_width <= seen.begin || panel >= seen.end) return;
          const float *q = q_.get() + r * s_.dim, *from = keys + panel * words;
          float* to = scores_.get() + r * score_stride + panel;
          if constexpr (in_pairs) bf16::score_panel(block.size(), q, words, from, scale, to);
          else score_panel(block, q, words, from, scale, to);
        });
    }
  }

  // Whether the softmax multiplies by the scale, and saves a pass over the scores: it can where
  // nothing but -inf was added to them.
  bool scales_late() const { return in_amx && p_.softcap == 0 && !bias_.active() && p_.scale > 0; }
  void scale_scores(float scale, const KeyRange& any) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    const Vector s = hn::Set(d, scale);
    for (Index r = 0; r < rows_; ++r)
      for (Index j = any.begin / n * n; j < any.end; j += n) {
        float* at = scores_.get() + r * score_stride + j;
        hn::Store(hn::Mul(hn::Load(d, at), s), d, at);
      }
  }

  // With few rows, transposing keys once more for each register block costs less than storing them
  // transposed.
  template <class Tiles>
  bool score_in_place(Index tile, const Tiles& tiles) {
    if constexpr (Tiles::stored) {
      // AMX reads whole chunks of a key.
      if (!few_rows() || (in_amx && s_.dim % (2 * amx::chunk_words) != 0)) return false;
      const float scale = stages_.scale(p_.scale);
      const KeyRange any = seen_in_tile(0, rows_);
      for (Index j = any.begin / panel_width * panel_width; j < any.end; j += panel_width) {
        const PanelRows keys = tiles.panel(tile, j);
        float* to = scores_.get() + j;
        if constexpr (in_words) {
          const bf16::KeyRows rows{
              {keys.half[0], keys.half[1]}, keys.stride, {keys.ahead[0], keys.ahead[1]}};
          if constexpr (in_amx) {
            constexpr Index n = amx::tile_rows;
            alignas(64) float sums[2 * n * n];
            amx::multiply_stored(rows, q_across_.get(), plan_.key_words(), sums);
            for (Index half = 0; half < 2; ++half)
              bf16::transpose_words(sums + half * n * n, n, to + half * n, score_stride);
          } else {
            for_small_blocks(0, rows_, [&](auto block, Index r) {
              bf16::score_rows(block.size(), q_.get() + r * s_.dim, s_.dim, rows, scale,
                               to + r * score_stride);
            });
          }
        } else {
          score_stored_keys(q_.get(), rows_, s_.dim, keys, scale, to);
        }
      }
      if (in_amx && !scales_late()) scale_scores(scale, any);
      return true;
    }
    return false;
  }

  void apply_softcap() {
    const Lanes d;
    const Vector cap = hn::Set(d, p_.softcap);
    for (Index r = 0; r < rows_; ++r)
      for (float* at = scores_.get() + r * score_stride;
           at < scores_.get() + r * score_stride + width_; at += hn::Lanes(d))
        hn::Store(hn::Mul(cap, tanh_of(d, hn::Div(hn::Load(d, at), cap))), d, at);
  }

  // Adds biases, and writes -inf wherever a key is not visible, whatever the score there was.
  void mask_scores() {
    for (Index r = 0; r < rows_; ++r) {
      const auto& [h, i, range] = block_[r];
      float* row = scores_.get() + r * score_stride;
      const Index begin = std::clamp<Index>(range.begin - key0_, 0, width_),
                  end = std::clamp<Index>(range.end - key0_, begin, width_);
      if (bias_.active() && begin < end) {
        bias_.row(b_, h, i, key0_ + begin, end - begin, bias_row_.get() + begin);
        for (Index j = begin; j < end; ++j)
          row[j] = bias_row_[j] == minus_infinity ? minus_infinity : row[j] + bias_row_[j];
      }
      if (begin > 0) std::fill(row, row + begin, minus_infinity);
      if (end < width_) std::fill(row + end, row + width_, minus_infinity);
    }
    observe(Stage::masked, scores_.get(), width_, score_stride);
  }

  // The online softmax:
  //   m' = max(m, max s), w = e^(s - m'), l' = l e^(m - m') + sum w, O' = O e^(m - m') + w V.
  void update_softmax(Index tile) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    const bool late = scales_late();
    const Vector scale = hn::Set(d, stages_.scale(p_.scale));
    for (Index r = 0; r < rows_; ++r) {
      float* row = scores_.get() + r * score_stride;
      if (late)
        for (Index j = 0; j < width_; j += n)
          hn::Store(hn::Mul(hn::Load(d, row + j), scale), d, row + j);
      Vector tile_max = hn::Load(d, row);
      for (Index j = n; j < width_; j += n) tile_max = hn::Max(tile_max, hn::Load(d, row + j));
      const float old_max = split_.max[r];
      const TileMax of_tile{hn::GetLane(hn::MaxOfLanes(d, tile_max))};
      const float new_max = stages_.new_max(RunningMax{old_max}, of_tile).value;
      split_.max[r] = new_max;
      const float reference = reference_of(new_max);
      correction_[r] = old_max - reference;
      const Vector m = hn::Set(d, reference);
      Vector total = hn::Zero(d);
      for (Index j = 0; j < width_; j += n) {
        const Vector w = exp_of_nonpositive(d, hn::Sub(hn::Load(d, row + j), m));
        hn::Store(w, d, row + j);
        total = hn::Add(total, w);
      }
      tile_sum_[r] =
          stages_.row_sum(hn::GetLane(hn::SumOfLanes(d, total)), reference, width_, tile);
    }
    for (Index r = 0; r < rows_; r += n)
      hn::Store(exp_of_nonpositive(d, hn::Load(d, correction_ + r)), d, correction_ + r);
    for (Index r = 0; r < rows_; ++r) {
      split_.sum[r] = split_.sum[r] * stages_.sum_correction(correction_[r]) + tile_sum_[r];
      correction_[r] = stages_.accumulator_correction(correction_[r]);
    }
    if (p_.dropout > 0) drop_weights();
    observe(Stage::row_max, split_.max, 1, 1);
    observe(Stage::rescale, correction_, 1, 1);
    observe(Stage::weights, scores_.get(), width_, score_stride);
    observe(Stage::row_sum, split_.sum, 1, 1);
    if constexpr (in_words)
      for (Index r = 0; r < rows_; ++r)
        bf16::pack_weights(scores_.get() + r * score_stride, width_);
  }

  float keep_scale() const { return 1.0f / (1.0f - p_.dropout); }

  // Applies dropout after the row sums, because the normaliser is computed before dropout.
  void drop_weights() {
    // A scaled weight would be rounded to bf16 with its scale. Pairs are scaled in the end instead.
    const float scale = in_words ? 1.0f : keep_scale();
    const std::uint64_t threshold = dropout_threshold(p_.dropout);
    for (Index r = 0; r < rows_; ++r)
      for (Index j = 0; j < width_; ++j) {
        float& w = scores_[r * score_stride + j];
        if (w == 0) continue;
        w = dropout_word(p_.dropout_seed, b_, block_[r].head, block_[r].row, key0_ + j) >= threshold
                ? w * scale
                : 0.0f;
      }
  }

  template <class Tiles>
  void accumulate(Index tile, const Tiles& tiles) {
    if (accumulate_in_place(tile, tiles)) return;
    const PackedValues values = tiles.values(tile);
    if (values.not_finite) return accumulate_visible(values.data);
    for_blocks<operands>(rows_, [&](auto block, Index r) HWY_ATTR {
      if constexpr (in_amx) accumulate_chunks(block.size(), r, values.data);
      else accumulate_block(block, r, values.data);
    });
  }

  // Chunks of words that begin or end outside of the keys that the block sees have weights of 0
  // there, and finite values.
  void accumulate_chunks(Index rows, Index r, const float* packed) {
    const KeyRange& seen = seen_[r];
    if (seen.begin >= seen.end) return;
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    float* accumulator = split_.accumulator + r * accumulator_stride_;
    for (Index i = 0; i < rows; ++i) {
      if (correction_[r + i] == 1) continue;
      const Vector correction = hn::Set(d, correction_[r + i]);
      for (float* at = accumulator + i * accumulator_stride_;
           at < accumulator + (i + 1) * accumulator_stride_; at += n)
        hn::Store(hn::Mul(hn::Load(d, at), correction), d, at);
    }
    const Index first = seen.begin / per_word / amx::chunk_words * amx::chunk_words,
                words = amx::whole_chunks(words_of(seen.end)) - first;
    for (Index c = 0; c < s_.value_dim; c += panel_width)
      amx::multiply(rows, scores_.get() + r * score_stride + first, score_stride,
                    packed + c * (width_ / per_word) + first * panel_width, words, amx::Sum::onto,
                    accumulator + c, accumulator_stride_);
  }

  template <class Block>
  HWY_INLINE void accumulate_block(Block block, Index r, const float* packed) {
    const KeyRange& seen = seen_[r];
    if (seen.begin >= seen.end) return;
    const auto values = [&](Index c) {
      return PackedOperand{packed + c * (width_ / per_word) + seen.begin / per_word * panel_width,
                           panel_width * (width_ / per_word)};
    };
    // A word may hold the weight of a key that nobody sees, which is 0, and its finite value.
    const Index first = seen.begin / per_word, words = words_of(seen.end) - first;
    const float* weights = scores_.get() + r * score_stride + first;
    if (rows_ == 1)
      return for_panels(0, s_.value_dim, [&](auto panels, Index c) HWY_ATTR {
        float* to = split_.accumulator + c;
        if constexpr (in_pairs)
          bf16::value_row(panels.size(), weights, values(c).row, values(c).panel_step, words,
                          correction_[0], to);
        else value_row(panels, weights, values(c), words, correction_[0], to);
      });
    for (Index c = 0; c < s_.value_dim; c += panel_width) {
      float* to = split_.accumulator + r * accumulator_stride_ + c;
      if constexpr (in_pairs)
        bf16::value_panel(block.size(), weights, values(c).row, words, correction_ + r, to,
                          accumulator_stride_);
      else value_panel(block, weights, values(c), words, correction_ + r, to, accumulator_stride_);
    }
  }

  // For a few rows that see the same keys of the tile. No weight here belongs to a masked pair, so
  // it does not matter what V holds at masked keys.
  template <class Tiles>
  bool accumulate_in_place(Index tile, const Tiles& tiles) {
    if constexpr (Tiles::stored && !in_amx) {
      if (!few_rows() || bias_.active()) return false;
      KeyRange seen = seen_in_tile(0, rows_);
      for (Index r = 0; r < rows_; ++r)
        if (const KeyRange own = seen_in_tile(r, 1); own.begin != seen.begin || own.end != seen.end)
          return false;
      while (seen.begin < seen.end) {
        const ValuesInPlace values = tiles.values_in_place(tile, seen);
        if (!values.data) return false;
        const KeyRange run{seen.begin, seen.begin + values.count};
        seen.begin = run.end;
        if constexpr (in_pairs) {
          accumulate_pairs_in_place(run, values);
        } else {
          add_stored_values(scores_.get() + run.begin, rows_, s_.value_dim, values, correction_,
                            split_.accumulator, accumulator_stride_);
          std::fill_n(correction_, rows_, 1.0f);
        }
      }
      return true;
    }
    return false;
  }

  // The weights of a word lie side by side from an even key on. Where the run has only one of the
  // two keys, zeros stand for the values of the other.
  void accumulate_pairs_in_place(const KeyRange& run, const ValuesInPlace& values) {
    const Index step = values.stride, head = run.begin % 2,
                words = (run.end - run.begin - head) / 2;
    const std::byte* rows = values.data + head * step;
    if (head == 1) add_stored_pairs(run.begin / 2, 1, {values.zeros, values.data, 0, 0});
    add_stored_pairs((run.begin + head) / 2, words, {rows, rows + step, 2 * step, values.ahead});
    if (run.end % 2 == 1 && run.begin + head < run.end)
      add_stored_pairs(run.end / 2, 1, {rows + 2 * words * step, values.zeros, 0, 0});
  }
  void add_stored_pairs(Index word, Index words, const bf16::ValueRows& values) {
    const auto from = [&](Index c) {
      return bf16::ValueRows{values.first + 2 * c, values.second + 2 * c, values.stride,
                             values.ahead};
    };
    if (rows_ == 1)
      for_panels(0, s_.value_dim, [&](auto panels, Index c) {
        bf16::value_row(panels.size(), scores_.get() + word, from(c), words, correction_[0],
                        split_.accumulator + c);
      });
    else
      for_small_blocks(0, rows_, [&](auto block, Index r) {
        for (Index c = 0; c < s_.value_dim; c += panel_width)
          bf16::value_panel(block.size(), scores_.get() + r * score_stride + word, from(c), words,
                            correction_ + r, split_.accumulator + r * accumulator_stride_ + c,
                            accumulator_stride_);
      });
    std::fill_n(correction_, rows_, 1.0f);
  }

  // For a tile in which V holds an infinity or a NaN: only the values that a row sees may reach the
  // row, so that 0 * NaN never occurs.
  void accumulate_visible(const float* values) {
    for (Index r = 0; r < rows_; ++r) {
      float* row = split_.accumulator + r * accumulator_stride_;
      for (Index c = 0; c < s_.value_dim; ++c) row[c] *= correction_[r];
      if constexpr (in_amx) {
        add_visible_chunks(r, values, row);
        continue;
      }
      for (Index w = 0; w < width_ / per_word; ++w) {
        const float weight = scores_[r * score_stride + w];
        if constexpr (in_words) add_visible_pair(r, w, weight, values, row);
        else if (is_visible(r, key0_ + w)) add_visible(w, weight, values, row);
      }
    }
  }

  void add_visible(Index j, float weight, const float* values, float* row) const {
    for (Index c = 0; c < s_.value_dim; ++c)
      row[c] = multiply_add_one(
          weight,
          values[c / panel_width * panel_width * width_ + j * panel_width + c % panel_width],
          row[c]);
  }
  // The bits of a word of values that the row sees.
  std::uint32_t visible_bits(Index r, Index w) const {
    return (is_visible(r, key0_ + 2 * w) ? 0xFFFF0000 : 0) |
           (is_visible(r, key0_ + 2 * w + 1) ? 0x0000FFFF : 0);
  }
  // One row of a tile of rows, with values of its own in which all that it does not see is 0.
  void add_visible_chunks(Index r, const float* values, float* row) const {
    constexpr Index most_words = score_stride / per_word;
    const Index words = width_ / per_word;
    alignas(64) float weights[amx::tile_rows * most_words] = {}, sums[amx::tile_rows * panel_width],
                                               visible[most_words * panel_width];
    std::copy_n(scores_.get() + r * score_stride, words, weights);
    for (Index c = 0; c < s_.value_dim; c += panel_width) {
      for (Index w = 0; w < words; ++w) {
        const std::uint32_t kept = visible_bits(r, w);
        for (Index lane = w * panel_width; lane < (w + 1) * panel_width; ++lane)
          visible[lane] = std::bit_cast<float>(
              kept == 0 ? 0 : std::bit_cast<std::uint32_t>(values[c * words + lane]) & kept);
      }
      std::fill_n(sums, amx::tile_rows * panel_width, 0.0f);
      std::copy_n(row + c, panel_width, sums);
      amx::multiply(1, weights, words, visible, words, amx::Sum::onto, sums, panel_width);
      std::copy_n(sums, panel_width, row + c);
    }
  }
  void add_visible_pair(Index r, Index w, float weight, const float* values, float* row) const {
    const std::uint32_t kept = visible_bits(r, w);
    for (Index c = 0; kept != 0 && c < s_.value_dim; c += panel_width)
      bf16::add_word(weight, values + c * (width_ / 2) + w * panel_width, kept, row + c);
  }

  bool is_visible(Index r, Index key) const {
    const auto& [h, i, range] = block_[r];
    if (key < range.begin || key >= range.end) return false;
    float bias = 0;
    if (bias_.active()) bias_.row(b_, h, i, key, 1, &bias);
    return bias != minus_infinity;
  }

  bool sees_a_key(Index r) const {
    const auto& [h, i, range] = block_[r];
    for (Index j = range.begin; j < range.end; ++j) {
      float bias = 0;
      if (bias_.active()) bias_.row(b_, h, i, j, 1, &bias);
      if (bias != minus_infinity) return true;
    }
    return false;
  }

  // Adds one more key, with logit z and value 0.
  void add_sink(float z, float& m, float& sum, float* row) const {
    const Lanes d;
    const float new_max = m < z ? z : m;
    const float correction = hn::GetLane(exp_of_nonpositive(d, hn::Set(d, m - new_max)));
    for (Index c = 0; c < s_.value_dim; ++c) row[c] *= correction;
    sum = sum * correction + hn::GetLane(exp_of_nonpositive(d, hn::Set(d, z - new_max)));
    m = new_max;
  }

  void store(Index r, float* row, float m, float sum) const {
    const auto& [h, i, range] = block_[r];
    if constexpr (Stages::observes)
      stages_.at(Stage::output, {b_, h, i, 0, 1, s_.value_dim, row, s_.value_dim});
    store_row(plan_.out.o, b_, h, i, s_.value_dim, row);
    if (!plan_.out.lse) return;
    float lse =
        sum == 0 ? minus_infinity
                 : static_cast<float>(static_cast<double>(m) + std::log(static_cast<double>(sum)));
    if constexpr (Stages::observes) stages_.at(Stage::lse, {b_, h, i, 0, 1, 1, &lse, 1});
    const TensorView& t = plan_.out.lse;
    static_cast<float*>(t.data)[t.at(b_, h, i, 0)] = lse;
  }

  const ForwardPlan& plan_;
  const Attention& p_;
  const AttentionShape& s_;
  const Stages& stages_;
  const ElementBias bias_;
  const Index width_, accumulator_stride_, capacity_;
  hwy::AlignedFreeUniquePtr<float[]> q_, q_row_, q_across_, scores_, accumulators_, bias_row_,
      of_row_;
  const RowState split_, total_;
  float* const tile_sum_;
  float* const correction_;
  float* const weight_;
  std::vector<Row> block_;
  std::vector<KeyRange> seen_;  // keys in this tile, by the register block that begins at the row
  KeyRange seen_by_block_{0, 0};
  Index b_ = 0, head_ = 0, row0_ = 0, head_rows_ = 1, rows_ = 0, key0_ = 0;
};

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
