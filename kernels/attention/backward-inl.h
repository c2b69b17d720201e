// Tiled attention backward. The file is compiled once for each SIMD target, hence the guard. It
// computes the row sums of dO O, then the splits of the keys (backward_split-inl.h) in waves, then
// the sums over the splits and the gradient of the sinks.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/attention/backward_split-inl.h"
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

// Computes D_i = sum_c dO O, less dLSE_i if the loss depends on LSE, for one tile of rows. dO and,
// if there is no sink, dLSE have no effect on rows that see no key, whatever they hold there.
struct DeltaRows {
  explicit DeltaRows(const BackwardPlan& plan)
      : o(allocate_floats(plan.padded_value_dim)), d_o(allocate_floats(plan.padded_value_dim)) {
    std::fill_n(o.get(), plan.padded_value_dim, 0.0f);
    std::fill_n(d_o.get(), plan.padded_value_dim, 0.0f);
  }
  hwy::AlignedFreeUniquePtr<float[]> o, d_o;
};

template <class Stages>
void compute_delta(const BackwardPlan& plan, Index head, Index tile, const Stages& stages,
                   DeltaRows& rows) {
  const Attention& p = *plan.problem;
  const AttentionShape& s = p.shape;
  const Index b = head / s.query_heads, h = head % s.query_heads;
  const Lanes d;
  const Index n = static_cast<Index>(hn::Lanes(d));
  for (Index i = tile * plan.tiling.rows; i < std::min(s.rows, (tile + 1) * plan.tiling.rows);
       ++i) {
    load_row(plan.in.o, b, h, i, s.value_dim, rows.o.get());
    load_row(plan.in.d_o, b, h, i, s.value_dim, rows.d_o.get());
    Vector sum = hn::Zero(d);
    for (Index c = 0; c < plan.padded_value_dim; c += n)
      sum = hn::MulAdd(hn::Load(d, rows.o.get() + c), hn::Load(d, rows.d_o.get() + c), sum);
    const auto is_finite = [](float x) {
      return std::fabs(x) <= std::numeric_limits<float>::max();
    };
    const TensorView& given = plan.in.d_lse;
    float delta = hn::GetLane(hn::SumOfLanes(d, sum)),
          d_lse = given ? static_cast<const float*>(given.data)[given.at(b, h, i, 0)] : 0;
    if (!is_finite(delta) || !is_finite(d_lse)) {
      const KeyRange range = stages.visible(p, b, i, visible_keys(p, b, i));
      if (!ElementBias(p).keeps_any(b, h, i, range)) {
        delta = 0;
        if (p.sink.empty()) d_lse = 0;
      }
    }
    delta = stages.row_delta(delta) - d_lse;
    if constexpr (Stages::observes) stages.at(Stage::delta, {b, h, i, 0, 1, 1, &delta, 1});
    plan.delta[head * s.rows + i] = delta;
  }
}

// Adds the splits of a wave for one tile of rows, in their order, to the sums of the waves before
// it.
struct ReducedTile {
  explicit ReducedTile(const BackwardPlan& plan)
      : sum(allocate_floats(plan.tile_floats())), row(allocate_floats(plan.padded_dim)) {}
  hwy::AlignedFreeUniquePtr<float[]> sum, row;
};

template <class Stages>
void reduce_query_gradients(const BackwardPlan& plan, Index pair, Index first_pair,
                            Index first_split, Index splits, Index member, Index tile,
                            const Stages& stages, ReducedTile& scratch) {
  const Attention& p = *plan.problem;
  const AttentionShape& s = p.shape;
  const Index floats = plan.tile_floats(), row_panel = plan.tiling.rows * panel_width;
  float *sum = scratch.sum.get(), *row = scratch.row.get();
  float* total = plan.totals + (member * plan.row_tiles + tile) * floats;
  if (first_split > 0) std::copy_n(total, floats, sum);
  else std::fill_n(sum, floats, 0.0f);
  for (Index split = 0; split < stages.merged_splits(splits); ++split) {
    const Index at =
        (((pair - first_pair) * plan.wave_splits + split) * s.group() + member) * plan.row_tiles +
        tile;
    if (!plan.written[at]) continue;
    const float* partial = plan.partials + at * floats;
    for (Index e = 0; e < floats; ++e) sum[e] += partial[e];
  }
  if (first_split + splits < plan.splits) {
    std::copy_n(sum, floats, total);
    return;
  }
  const Index b = pair / s.kv_heads, h = stages.query_head(pair % s.kv_heads, member, s.group()),
              row0 = tile * plan.tiling.rows;
  for (Index r = 0; r < std::min(plan.tiling.rows, s.rows - row0); ++r) {
    gather_row(sum + r * panel_width, plan.padded_dim, row_panel,
               stages.query_gradient_scale(p.scale), row);
    if constexpr (Stages::observes)
      stages.at(Stage::query_gradient, {b, h, row0 + r, 0, 1, s.dim, row, s.dim});
    store_row(plan.out.dq, b, h, row0 + r, s.dim, row);
  }
}

// Computes dz = -sum e^(z - LSE) D over the batch and the rows of a head. Each tile of rows is
// summed on its own first.
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
        const float weight =
            hn::GetLane(exp_of_nonpositive(d, hn::Set(d, exponent > 0 ? 0.0f : exponent)));
        sum = multiply_add_one(weight, plan.delta[(b * s.query_heads + h) * s.rows + i], sum);
      }
      total += sum;
    }
  static_cast<float*>(plan.out.d_sink.data)[plan.out.d_sink.at(0, h, 0, 0)] = -total;
}

// A task computes one (batch, kv head) pair and one split.
struct SplitTask {
  Index pair, split;
};

// The tasks of a wave. Tasks that add to the same elements of a broadcast dBias form a chain, which
// one thread runs in order.
inline std::vector<std::vector<SplitTask>> chains_of(const BackwardPlan& plan, Index first_pair,
                                                     Index pairs, Index first_split, Index splits) {
  const Index kv_heads = plan.problem->shape.kv_heads;
  const auto shared = [&](std::size_t axis) {
    return plan.out.d_bias && plan.out.d_bias.stride[axis] == 0;
  };
  std::vector<std::pair<std::array<Index, 3>, SplitTask>> tasks;  // by the elements that they share
  for (Index pair = first_pair; pair < first_pair + pairs; ++pair)
    for (Index split = first_split; split < first_split + splits; ++split)
      tasks.push_back({{shared(0) ? 0 : pair / kv_heads, shared(1) ? 0 : pair % kv_heads,
                        shared(3) ? 0 : split},
                       {pair, split}});
  std::ranges::sort(tasks, {}, [](const auto& task) {
    return std::tuple(task.first, task.second.pair, task.second.split);
  });
  std::vector<std::vector<SplitTask>> list;
  for (std::size_t n = 0; n < tasks.size(); ++n) {
    if (n == 0 || tasks[n].first != tasks[n - 1].first) list.emplace_back();
    list.back().push_back(tasks[n].second);
  }
  return list;
}

// All elements of a broadcast dimension are one element.
inline void fill_with_zeros(const TensorView& t, const Extents& shape) {
  Extents e = shape;
  for (std::size_t n = 0; n < 4; ++n)
    if (t.stride[n] == 0) e[n] = 1;
  float* to = static_cast<float*>(t.data);
  for (Index b = 0; b < e[0]; ++b)
    for (Index h = 0; h < e[1]; ++h)
      for (Index i = 0; i < e[2]; ++i)
        for (Index j = 0; j < e[3]; ++j) to[t.at(b, h, i, j)] = 0;
}

// A wave computes some pairs, and some splits of these pairs.
struct BackwardWave {
  Index first_pair, pairs, first_split, splits;
  std::vector<std::vector<SplitTask>> chains;
};

inline std::vector<BackwardWave> waves_of(const BackwardPlan& plan) {
  const Index all_pairs = plan.problem->shape.batch * plan.problem->shape.kv_heads;
  std::vector<BackwardWave> waves;
  for (Index pair = 0; pair < all_pairs; pair += plan.wave_groups)
    for (Index split = 0; split == 0 || split < plan.splits; split += plan.wave_splits) {
      const Index pairs = std::min(plan.wave_groups, all_pairs - pair),
                  splits = std::min(plan.wave_splits, plan.splits - split);
      waves.push_back({pair, pairs, split, splits, chains_of(plan, pair, pairs, split, splits)});
      if (plan.splits == 0) break;
    }
  return waves;
}

template <Operands operands = Operands::floats, class Stages>
void backward(const BackwardPlan& plan, const Stages& stages) {
  using Split = KeySplit<operands, Stages>;
  const AttentionShape& s = plan.problem->shape;
  const Index pair_tiles = s.group() * plan.row_tiles,
              delta_tasks = s.batch * s.query_heads * plan.row_tiles;
  const std::vector<BackwardWave> waves = waves_of(plan);
  Index most_chains = 0, most_tiles = 0;
  for (const BackwardWave& wave : waves) {
    most_chains = std::max<Index>(most_chains, std::ssize(wave.chains));
    if (plan.splits != 1) most_tiles = std::max(most_tiles, wave.pairs * pair_tiles);
  }
  ScratchPool<DeltaRows> delta_rows(delta_tasks, plan.threads,
                                    [&] { return std::make_unique<DeltaRows>(plan); });
  ScratchPool<Split> key_splits(most_chains, plan.threads,
                                [&] { return std::make_unique<Split>(plan, stages); });
  ScratchPool<ReducedTile> reduced_tiles(most_tiles, plan.threads,
                                         [&] { return std::make_unique<ReducedTile>(plan); });

  parallel_for(delta_tasks, plan.threads, [&](Index task) {
    compute_delta(plan, task / plan.row_tiles, task % plan.row_tiles, stages, *delta_rows.take());
  });
  if (plan.out.d_bias) fill_with_zeros(plan.out.d_bias, s.pair_extents());
  for (const BackwardWave& wave : waves) {
    if (plan.partials)
      std::fill_n(plan.written, wave.pairs * plan.wave_splits * pair_tiles,
                  static_cast<unsigned char>(0));
    parallel_for(std::ssize(wave.chains), plan.threads, [&](Index c) {
      const auto work = key_splits.take();
      for (const SplitTask& task : wave.chains[usize(c)])
        work->run(task.pair / s.kv_heads, task.pair % s.kv_heads, task.split,
                  (task.pair - wave.first_pair) * plan.wave_splits + task.split - wave.first_split);
    });
    if (plan.splits != 1)
      parallel_for(wave.pairs * pair_tiles, plan.threads, [&](Index task) {
        const Index pair = wave.first_pair + task / pair_tiles,
                    member = task % pair_tiles / plan.row_tiles;
        reduce_query_gradients(plan, pair, wave.first_pair, wave.first_split, wave.splits, member,
                               task % plan.row_tiles, stages, *reduced_tiles.take());
      });
  }
  if (plan.out.d_sink)
    parallel_for(s.query_heads, plan.threads, [&](Index h) { compute_sink_gradient(plan, h); });
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
