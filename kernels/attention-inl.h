// Tiled attention forward with online softmax, compiled once for each SIMD target (hence the guard).
//
// Order of every sum, as the contract in harness/contracts.cc declares it: q.k is one FMA chain over d,
// P V one FMA chain over the keys of a tile on top of the rescaled accumulator, the row sum is summed within
// a tile (any order) and then over tiles. All of it in fp32, whatever the inputs are. Masked keys get weight
// exactly 0, and a tile that no row of a block sees is skipped, which changes no bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/attention_plan.h"
#include "kernels/dropout.h"
#include "kernels/element_bias-inl.h"
#include "kernels/register_block-inl.h"
#include "kernels/stages.h"
#include "problem/parallel.h"

#if defined(ASSAY_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_ATTENTION_INL_H_
#undef ASSAY_KERNELS_ATTENTION_INL_H_
#else
#define ASSAY_KERNELS_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// ---- Packing --------------------------------------------------------------------------------------------

template <class Stages>
void pack_tile(const ForwardPlan& plan, Index group, Index tile, const Stages& stages) {
  const Attention& p = *plan.problem;
  const AttentionShape& s = p.shape;
  const Index width = plan.tiling.keys, key0 = tile * width, filled = std::min(width, s.keys - key0);
  const Index b = (plan.first_group + group) / s.kv_heads, g = (plan.first_group + group) % s.kv_heads;
  float* keys = plan.packed.keys + (group * plan.tiles + tile) * width * s.dim;
  float* values = plan.packed.values + (group * plan.tiles + tile) * width * plan.padded_value_dim;
  auto row = hwy::AllocateAligned<float>(static_cast<std::size_t>(std::max(s.dim, plan.padded_value_dim)));
  float value_sum = 0;  // 0 * x is NaN exactly for the values that a weight of 0 does not erase
  for (Index j = 0; j < width; ++j) {
    if (j < filled) load_row(p.k, b, g, key0 + j, s.dim, row.get());
    else std::fill_n(row.get(), s.dim, 0.0f);
    if constexpr (Stages::observes) stages.at(Stage::key, {b, g, key0 + j, 0, 1, s.dim, row.get(), s.dim});
    float* column = keys + j / panel_width * panel_width * s.dim + j % panel_width;
    for (Index d = 0; d < s.dim; ++d) column[d * panel_width] = row[d];

    std::fill_n(row.get(), plan.padded_value_dim, 0.0f);
    if (j < filled) load_row(p.v, b, g, key0 + j, s.value_dim, row.get());
    if constexpr (Stages::observes) stages.at(Stage::value, {b, g, key0 + j, 0, 1, s.value_dim, row.get(), s.value_dim});
    for (Index c = 0; c < plan.padded_value_dim; c += panel_width) {
      float* to = values + c * width + j * panel_width;
      for (Index lane = 0; lane < panel_width; ++lane) {
        to[lane] = row[c + lane];
        value_sum += 0.0f * to[lane];
      }
    }
  }
  plan.packed.values_not_finite[group * plan.tiles + tile] = value_sum != value_sum;
}

// ---- One block of rows ----------------------------------------------------------------------------------

template <class Stages>
class RowBlock {
 public:
  RowBlock(const ForwardPlan& plan, const Stages& stages)
      : plan_(plan),
        p_(*plan.problem),
        s_(p_.shape),
        stages_(stages),
        bias_(p_),
        width_(plan.tiling.keys),
        accumulator_stride_(plan.padded_value_dim),
        q_(allocate_floats(plan.tiling.rows * s_.dim)),
        q_row_(allocate_floats(s_.dim)),
        scores_(allocate_floats(plan.tiling.rows * score_stride)),
        accumulator_(allocate_floats(plan.tiling.rows * accumulator_stride_)),
        bias_row_(allocate_floats(width_)),
        max_(allocate_floats(plan.tiling.rows)),
        sum_(allocate_floats(plan.tiling.rows)),
        tile_sum_(allocate_floats(plan.tiling.rows)),
        correction_(allocate_floats(plan.tiling.rows)),
        ranges_(static_cast<std::size_t>(plan.tiling.rows)),
        seen_(ranges_) {}

  void run(Index group, Index h, Index row0) {
    b_ = (plan_.first_group + group) / s_.kv_heads;
    h_ = h;
    row0_ = row0;
    rows_ = std::min(plan_.tiling.rows, s_.rows - row0);
    begin();
    KeyRange seen{s_.keys, 0};
    for (Index r = 0; r < rows_; ++r) {
      ranges_[r] = stages_.visible(p_, b_, row0_ + r, visible_keys(p_, b_, row0_ + r));
      const KeyRange& range = ranges_[r];
      if (range.begin < range.end) seen = {std::min(seen.begin, range.begin), std::max(seen.end, range.end)};
    }
    const Index tiles = std::min(stages_.key_tiles(s_.keys, width_), (seen.end + width_ - 1) / width_);
    for (Index tile = seen.begin / width_; tile < tiles; ++tile) {
      key0_ = tile * width_;
      for_row_blocks(rows_, [&](auto block, Index r) { seen_[r] = seen_in_tile(r, static_cast<Index>(block.size())); });
      const Index packed_tile = group * plan_.tiles + tile;
      compute_scores(plan_.packed.keys + packed_tile * width_ * s_.dim);
      mask_scores();
      update_softmax(tile);
      const float* values = plan_.packed.values + packed_tile * width_ * plan_.padded_value_dim;
      if (plan_.packed.values_not_finite[packed_tile]) accumulate_visible(values);
      else accumulate(values);
      observe(Stage::accumulated, accumulator_.get(), s_.value_dim, accumulator_stride_);
    }
    finish();
  }

 private:
  HWY_INLINE void observe(Stage stage, float* data, Index columns, Index stride) const {
    if constexpr (Stages::observes) stages_.at(stage, {b_, h_, row0_, key0_, rows_, columns, data, stride});
  }

  void begin() {
    key0_ = 0;
    for_row_blocks(rows_, [&](auto block, Index r) {
      constexpr auto count = static_cast<Index>(block.size());
      float* interleaved = q_.get() + r * s_.dim;
      for (Index i = 0; i < count; ++i) {
        load_row(p_.q, b_, h_, row0_ + r + i, s_.dim, q_row_.get());
        if constexpr (Stages::observes) stages_.at(Stage::query, {b_, h_, row0_ + r + i, 0, 1, s_.dim, q_row_.get(), s_.dim});
        for (Index d = 0; d < s_.dim; ++d) interleaved[d * count + i] = q_row_[d];
      }
    });
    std::fill_n(accumulator_.get(), rows_ * accumulator_stride_, 0.0f);
    std::fill_n(max_.get(), rows_, stages_.initial_max());
    std::fill_n(sum_.get(), rows_, 0.0f);
  }

  // The keys of this tile, relative to it, that some row of [r, r + count) may see.
  KeyRange seen_in_tile(Index r, Index count) const {
    KeyRange seen{width_, 0};
    for (Index i = r; i < r + count; ++i) {
      const KeyRange& range = ranges_[i];
      const Index begin = std::max<Index>(range.begin - key0_, 0), end = std::min(range.end - key0_, width_);
      if (begin < end) seen = {std::min(seen.begin, begin), std::max(seen.end, end)};
    }
    return seen;
  }

  void compute_scores(const float* keys) {
    const float scale = stages_.scale(p_.scale);
    const KeyRange any = seen_in_tile(0, rows_);
    // A panel of keys stays in L1 while all rows pass.
    for (Index panel = any.begin / panel_width * panel_width; panel < any.end; panel += panel_width)
      for_row_blocks(rows_, [&](auto block, Index r) HWY_ATTR {
        const KeyRange& seen = seen_[r];
        if (panel + panel_width <= seen.begin || panel >= seen.end) return;
        score_panel(block, q_.get() + r * s_.dim, s_.dim, keys + panel * s_.dim, scale, scores_.get() + r * score_stride + panel);
      });
    if (p_.softcap > 0) apply_softcap();
    observe(Stage::scores, scores_.get(), width_, score_stride);
  }

  void apply_softcap() {
    const Lanes d;
    const Vector cap = hn::Set(d, p_.softcap);
    for (Index r = 0; r < rows_; ++r)
      for (float* at = scores_.get() + r * score_stride; at < scores_.get() + r * score_stride + width_; at += hn::Lanes(d))
        hn::Store(hn::Mul(cap, tanh_of(d, hn::Div(hn::Load(d, at), cap))), d, at);
  }

  // Adds biases and puts -inf wherever a key is not visible, whatever the score there was.
  void mask_scores() {
    for (Index r = 0; r < rows_; ++r) {
      const KeyRange& range = ranges_[r];
      float* row = scores_.get() + r * score_stride;
      const Index begin = std::clamp<Index>(range.begin - key0_, 0, width_), end = std::clamp<Index>(range.end - key0_, begin, width_);
      if (bias_.active() && begin < end) {
        bias_.row(b_, h_, row0_ + r, key0_ + begin, end - begin, bias_row_.get() + begin);
        for (Index j = begin; j < end; ++j) row[j] = bias_row_[j] == minus_infinity ? minus_infinity : row[j] + bias_row_[j];
      }
      if (begin > 0) std::fill(row, row + begin, minus_infinity);
      if (end < width_) std::fill(row + end, row + width_, minus_infinity);
    }
    observe(Stage::masked, scores_.get(), width_, score_stride);
  }

  // The online softmax: m' = max(m, max s), w = e^(s - m'), l' = l e^(m - m') + sum w, O' = O e^(m - m') + w V.
  void update_softmax(Index tile) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    for (Index r = 0; r < rows_; ++r) {
      float* row = scores_.get() + r * score_stride;
      Vector tile_max = hn::Load(d, row);
      for (Index j = n; j < width_; j += n) tile_max = hn::Max(tile_max, hn::Load(d, row + j));
      const float old_max = max_[r];
      const float new_max = stages_.new_max(old_max, hn::GetLane(hn::MaxOfLanes(d, tile_max)));
      max_[r] = new_max;
      // A row that has seen nothing yet: any finite reference gives weights of 0 where -inf - -inf gives NaN.
      const float reference = new_max == minus_infinity ? 0.0f : new_max;
      correction_[r] = old_max - reference;
      const Vector m = hn::Set(d, reference);
      Vector total = hn::Zero(d);
      for (Index j = 0; j < width_; j += n) {
        const Vector w = exp_of_nonpositive(d, hn::Sub(hn::Load(d, row + j), m));
        hn::Store(w, d, row + j);
        total = hn::Add(total, w);
      }
      tile_sum_[r] = stages_.row_sum(hn::GetLane(hn::SumOfLanes(d, total)), reference, width_, tile);
    }
    for (Index r = 0; r < rows_; r += n) hn::Store(exp_of_nonpositive(d, hn::Load(d, correction_.get() + r)), d, correction_.get() + r);
    for (Index r = 0; r < rows_; ++r) {
      sum_[r] = sum_[r] * stages_.sum_correction(correction_[r]) + tile_sum_[r];
      correction_[r] = stages_.accumulator_correction(correction_[r]);
    }
    if (p_.dropout > 0) drop_weights();
    observe(Stage::row_max, max_.get(), 1, 1);
    observe(Stage::rescale, correction_.get(), 1, 1);
    observe(Stage::weights, scores_.get(), width_, score_stride);
  }

  // After the row sums: the normaliser is taken before dropout.
  void drop_weights() {
    const float keep_scale = 1.0f / (1.0f - p_.dropout);
    const std::uint64_t threshold = dropout_threshold(p_.dropout);
    for (Index r = 0; r < rows_; ++r)
      for (Index j = 0; j < width_; ++j) {
        float& w = scores_[r * score_stride + j];
        if (w == 0) continue;
        w = dropout_word(p_.dropout_seed, b_, h_, row0_ + r, key0_ + j) >= threshold ? w * keep_scale : 0.0f;
      }
  }

  void accumulate(const float* values) {
    for_row_blocks(rows_, [&](auto block, Index r) HWY_ATTR {
      const KeyRange seen = seen_[r];
      if (seen.begin >= seen.end) return;
      for (Index c = 0; c < s_.value_dim; c += panel_width)
        value_panel(block, scores_.get() + r * score_stride + seen.begin, values + c * width_ + seen.begin * panel_width, seen.end - seen.begin,
                    correction_.get() + r, accumulator_.get() + r * accumulator_stride_ + c, accumulator_stride_);
    });
  }

  // V holds an infinity or a NaN somewhere in this tile: only what a row sees may reach it, so no 0 * NaN.
  void accumulate_visible(const float* values) {
    for (Index r = 0; r < rows_; ++r) {
      float* row = accumulator_.get() + r * accumulator_stride_;
      for (Index c = 0; c < s_.value_dim; ++c) row[c] *= correction_[r];
      for (Index j = 0; j < width_; ++j) {
        if (!is_visible(r, key0_ + j)) continue;
        const float w = scores_[r * score_stride + j];
        for (Index c = 0; c < s_.value_dim; ++c)
          row[c] = multiply_add_one(w, values[c / panel_width * panel_width * width_ + j * panel_width + c % panel_width], row[c]);
      }
    }
  }

  bool is_visible(Index r, Index key) const {
    const KeyRange& range = ranges_[r];
    return key >= range.begin && key < range.end && bias_.keeps(b_, h_, row0_ + r, key);
  }

  void finish() {
    for (Index r = 0; r < rows_; ++r) {
      float m = max_[r], sum = sum_[r];
      float* row = accumulator_.get() + r * accumulator_stride_;
      if (!p_.sink.empty()) add_sink(p_.sink[h_], m, sum, row);
      if (sum != 0) {
        const float inverse = 1.0f / sum;
        for (Index c = 0; c < s_.value_dim; ++c) row[c] *= inverse;
      } else if (bias_.keeps_any(b_, h_, row0_ + r, ranges_[r])) {
        // Every visible score is -inf: 0 / 0, unlike a row whose every key is masked, which is 0.
        std::fill_n(row, s_.value_dim, std::numeric_limits<float>::quiet_NaN());
      }
      store_outputs(r, row, m, sum);
    }
  }

  // One more key with logit z and value 0.
  void add_sink(float z, float& m, float& sum, float* row) const {
    const Lanes d;
    const float new_max = m < z ? z : m;
    const float correction = hn::GetLane(exp_of_nonpositive(d, hn::Set(d, m - new_max)));
    for (Index c = 0; c < s_.value_dim; ++c) row[c] *= correction;
    sum = sum * correction + hn::GetLane(exp_of_nonpositive(d, hn::Set(d, z - new_max)));
    m = new_max;
  }

  void store_outputs(Index r, float* row, float m, float sum) const {
    if constexpr (Stages::observes) stages_.at(Stage::output, {b_, h_, row0_ + r, 0, 1, s_.value_dim, row, s_.value_dim});
    store_row(plan_.out.o, b_, h_, row0_ + r, s_.value_dim, row);
    if (!plan_.out.lse) return;
    float lse = sum == 0 ? minus_infinity : static_cast<float>(static_cast<double>(m) + std::log(static_cast<double>(sum)));
    if constexpr (Stages::observes) stages_.at(Stage::lse, {b_, h_, row0_ + r, 0, 1, 1, &lse, 1});
    const TensorView& t = plan_.out.lse;
    static_cast<float*>(t.data)[t.at(b_, h_, row0_ + r, 0)] = lse;
  }

  const ForwardPlan& plan_;
  const Attention& p_;
  const AttentionShape& s_;
  const Stages& stages_;
  const ElementBias bias_;
  const Index width_, accumulator_stride_;
  hwy::AlignedFreeUniquePtr<float[]> q_, q_row_, scores_, accumulator_, bias_row_, max_, sum_, tile_sum_, correction_;
  std::vector<KeyRange> ranges_;  // of each row
  std::vector<KeyRange> seen_;    // in this tile, by the register block that begins at the row
  Index b_ = 0, h_ = 0, row0_ = 0, rows_ = 0, key0_ = 0;
};

// Packs K and V of the wave's groups, then runs every block of rows of every query head that reads them.
template <class Stages>
void forward_wave(const ForwardPlan& plan, const Stages& stages) {
  const AttentionShape& s = plan.problem->shape;
  parallel_for(plan.groups * plan.tiles, plan.threads, [&](Index task) { pack_tile(plan, task / plan.tiles, task % plan.tiles, stages); });
  const Index blocks = (s.rows + plan.tiling.rows - 1) / plan.tiling.rows;
  parallel_for(plan.groups * s.group() * blocks, plan.threads, [&](Index task) {
    // The last rows of a causal problem see the most keys: they start first.
    const Index block = blocks - 1 - task % blocks;
    const Index local_head = task / blocks;  // query heads of the wave in order
    const Index group = local_head / s.group();
    const Index head = (plan.first_group + group) % s.kv_heads * s.group() + local_head % s.group();
    const Index read_group = group + stages.kv_head(head, s.group()) - head / s.group();
    RowBlock<Stages>(plan, stages).run(read_group, head, block * plan.tiling.rows);
  });
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
