// Tiled attention backward, compiled once for each SIMD target (hence the guard): row sums of dO O, then the splits of the keys
// (backward_split-inl.h) in waves, then the sums over splits and the gradient of the sinks.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "kernels/backward_split-inl.h"
#include "problem/parallel.h"

#if defined(ASSAY_KERNELS_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_BACKWARD_INL_H_
#undef ASSAY_KERNELS_BACKWARD_INL_H_
#else
#define ASSAY_KERNELS_BACKWARD_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// D_i = sum_c dO O of one tile of rows; 0 for rows that see no key, whatever dO holds there.
template <class Stages>
void compute_delta(const BackwardPlan& plan, Index head, Index tile, const Stages& stages) {
  const Attention& p = *plan.problem;
  const AttentionShape& s = p.shape;
  const Index b = head / s.query_heads, h = head % s.query_heads;
  const Lanes d;
  const Index n = static_cast<Index>(hn::Lanes(d));
  const auto o = allocate_floats(plan.padded_value_dim), d_o = allocate_floats(plan.padded_value_dim);
  std::fill_n(o.get(), plan.padded_value_dim, 0.0f);
  std::fill_n(d_o.get(), plan.padded_value_dim, 0.0f);
  for (Index i = tile * plan.tiling.rows; i < std::min(s.rows, (tile + 1) * plan.tiling.rows); ++i) {
    load_row(plan.in.o, b, h, i, s.value_dim, o.get());
    load_row(plan.in.d_o, b, h, i, s.value_dim, d_o.get());
    Vector sum = hn::Zero(d);
    for (Index c = 0; c < plan.padded_value_dim; c += n) sum = hn::MulAdd(hn::Load(d, o.get() + c), hn::Load(d, d_o.get() + c), sum);
    float delta = hn::GetLane(hn::SumOfLanes(d, sum));
    if (!(std::fabs(delta) <= std::numeric_limits<float>::max())) {
      const KeyRange range = stages.visible(p, b, i, visible_keys(p, b, i));
      if (!ElementBias(p).keeps_any(b, h, i, range)) delta = 0;
    }
    plan.delta[head * s.rows + i] = stages.row_delta(delta);
  }
}

// Adds the splits of a wave for one tile of rows, in their order, on top of the waves before it.
template <class Stages>
void reduce_query_gradients(const BackwardPlan& plan, Index pair, Index first_pair, Index first_split, Index splits, Index member, Index tile,
                            const Stages& stages) {
  const Attention& p = *plan.problem;
  const AttentionShape& s = p.shape;
  const Index floats = plan.tile_floats(), row_panel = plan.tiling.rows * panel_width;
  const auto sum = allocate_floats(floats), row = allocate_floats(plan.padded_dim);
  float* total = plan.totals + (member * plan.row_tiles + tile) * floats;
  if (first_split > 0) std::copy_n(total, floats, sum.get());
  else std::fill_n(sum.get(), floats, 0.0f);
  for (Index split = 0; split < stages.merged_splits(splits); ++split) {
    const Index at = (((pair - first_pair) * plan.wave_splits + split) * s.group() + member) * plan.row_tiles + tile;
    if (!plan.written[at]) continue;
    const float* partial = plan.partials + at * floats;
    for (Index e = 0; e < floats; ++e) sum[e] += partial[e];
  }
  if (first_split + splits < plan.splits) {
    std::copy_n(sum.get(), floats, total);
    return;
  }
  const Index b = pair / s.kv_heads, h = stages.query_head(pair % s.kv_heads, member, s.group()), row0 = tile * plan.tiling.rows;
  for (Index r = 0; r < std::min(plan.tiling.rows, s.rows - row0); ++r) {
    gather_row(sum.get() + r * panel_width, plan.padded_dim, row_panel, stages.query_gradient_scale(p.scale), row.get());
    if constexpr (Stages::observes) stages.at(Stage::query_gradient, {b, h, row0 + r, 0, 1, s.dim, row.get(), s.dim});
    store_row(plan.out.dq, b, h, row0 + r, s.dim, row.get());
  }
}

// dz = -sum e^(z - LSE) D over the batch and the rows of a head, a tile of rows on its own first.
inline void compute_sink_gradient(const BackwardPlan& plan, Index h) {
  const Attention& p = *plan.problem;
  const AttentionShape& s = p.shape;
  const Lanes d;
  float total = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index row0 = 0; row0 < s.rows; row0 += plan.tiling.rows) {
      float sum = 0;
      for (Index i = row0; i < std::min(s.rows, row0 + plan.tiling.rows); ++i) {
        const float lse = static_cast<const float*>(plan.in.lse.data)[plan.in.lse.at(b, h, i, 0)];
        if (lse == minus_infinity) continue;
        const float exponent = p.sink[h] - lse;
        const float weight = hn::GetLane(exp_of_nonpositive(d, hn::Set(d, exponent > 0 ? 0.0f : exponent)));
        sum = multiply_add_one(weight, plan.delta[(b * s.query_heads + h) * s.rows + i], sum);
      }
      total += sum;
    }
  static_cast<float*>(plan.out.d_sink.data)[plan.out.d_sink.at(0, h, 0, 0)] = -total;
}

// One (batch, kv head) pair and split.
struct SplitTask {
  Index pair, split;
};

// The tasks of a wave. Those that add to the same elements of a broadcast dBias form a chain, which one thread runs in order.
inline std::vector<std::vector<SplitTask>> chains_of(const BackwardPlan& plan, Index first_pair, Index pairs, Index first_split, Index splits) {
  const Index kv_heads = plan.problem->shape.kv_heads;
  const auto shared = [&](std::size_t axis) { return plan.out.d_bias && plan.out.d_bias.stride[axis] == 0; };
  std::map<std::tuple<Index, Index, Index>, std::vector<SplitTask>> chains;
  for (Index pair = first_pair; pair < first_pair + pairs; ++pair)
    for (Index split = first_split; split < first_split + splits; ++split)
      chains[{shared(0) ? 0 : pair / kv_heads, shared(1) ? 0 : pair % kv_heads, shared(3) ? 0 : split}].push_back({pair, split});
  std::vector<std::vector<SplitTask>> list;
  for (auto& [key, chain] : chains) list.push_back(std::move(chain));
  return list;
}

template <class Stages>
void backward(const BackwardPlan& plan, const Stages& stages) {
  const AttentionShape& s = plan.problem->shape;
  const Index all_pairs = s.batch * s.kv_heads, pair_tiles = s.group() * plan.row_tiles;
  parallel_for(s.batch * s.query_heads * plan.row_tiles, plan.threads,
               [&](Index task) { compute_delta(plan, task / plan.row_tiles, task % plan.row_tiles, stages); });
  for (Index first_pair = 0; first_pair < all_pairs; first_pair += plan.wave_groups) {
    const Index pairs = std::min(plan.wave_groups, all_pairs - first_pair);
    for (Index first_split = 0; first_split == 0 || first_split < plan.splits; first_split += plan.wave_splits) {
      const Index splits = std::min(plan.wave_splits, plan.splits - first_split);
      if (plan.partials) std::fill_n(plan.written, pairs * plan.wave_splits * pair_tiles, static_cast<unsigned char>(0));
      const auto chains = chains_of(plan, first_pair, pairs, first_split, splits);
      parallel_for(static_cast<Index>(chains.size()), plan.threads, [&](Index c) {
        KeySplit<Stages> work(plan, stages);
        for (const SplitTask& task : chains[c])
          work.run(task.pair / s.kv_heads, task.pair % s.kv_heads, task.split, (task.pair - first_pair) * plan.wave_splits + task.split - first_split);
      });
      if (plan.splits != 1)
        parallel_for(pairs * pair_tiles, plan.threads, [&](Index task) {
          const Index pair = first_pair + task / pair_tiles, member = task % pair_tiles / plan.row_tiles;
          reduce_query_gradients(plan, pair, first_pair, first_split, splits, member, task % plan.row_tiles, stages);
        });
      if (plan.splits == 0) break;
    }
  }
  if (plan.out.d_sink) parallel_for(s.query_heads, plan.threads, [&](Index h) { compute_sink_gradient(plan, h); });
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
