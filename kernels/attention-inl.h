// Tiled attention forward with online softmax, compiled once for each SIMD target (hence the guard).
//
// Order of every sum, as the contract in harness/contracts.cc declares it: q.k is one FMA chain over d,
// P V one FMA chain over the keys of a tile on top of the rescaled accumulator, the row sum is summed within
// a tile (any order) and then over the tiles of a split. Each split starts afresh, and splits are merged in order
// (RowBlock::merge). All of it in fp32, whatever the inputs are. Masked keys get weight exactly 0; a tile or a split
// that no row of a block sees is skipped, which changes no bit. Tiles and splits begin at key 0 and have lengths that
// D and Dv alone decide, so a row's bits do not depend on what else is in the call, nor on which way below computes it.
#include <algorithm>

#include "kernels/attention_plan.h"
#include "kernels/pack-inl.h"
#include "kernels/row_block-inl.h"
#include "kernels/stages.h"
#include "problem/parallel.h"

#if defined(ASSAY_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_ATTENTION_INL_H_
#undef ASSAY_KERNELS_ATTENTION_INL_H_
#else
#define ASSAY_KERNELS_ATTENTION_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// Packs K and V of the wave's groups, then runs every block of rows of every query head that reads them.
template <class Stages>
void forward_by_rows(const ForwardPlan& plan, const Stages& stages) {
  const AttentionShape& s = plan.problem->shape;
  const Index tile_keys = plan.tiling.keys * s.dim, tile_values = plan.tiling.keys * plan.padded_value_dim;
  const PackedKeyValues& packed = plan.packed;
  parallel_for(plan.groups * plan.tiles, plan.threads, [&](Index task) {
    Packer<Stages> packer(plan, stages);
    packed.values_not_finite[task] =
        packer.pack(plan.first_group + task / plan.tiles, task % plan.tiles, packed.keys + task * tile_keys, packed.values + task * tile_values);
  });
  const Index blocks = (s.rows + plan.tiling.rows - 1) / plan.tiling.rows;
  parallel_for(plan.groups * s.group() * blocks, plan.threads, [&](Index task) {
    // The last rows of a causal problem see the most keys: they start first.
    const Index row0 = (blocks - 1 - task % blocks) * plan.tiling.rows;
    const Index local_head = task / blocks;  // query heads of the wave in order
    const Index group = local_head / s.group();
    const Index head = (plan.first_group + group) % s.kv_heads * s.group() + local_head % s.group();
    const Index read_group = group + stages.kv_head(head, s.group()) - head / s.group();
    RowBlock<Stages> block(plan, stages, plan.tiling.rows);
    block.place((plan.first_group + group) / s.kv_heads, head, 1, row0, std::min(plan.tiling.rows, s.rows - row0));
    for (Index split = block.seen().begin / plan.tiling.split_keys; split * plan.tiling.split_keys < block.seen().end; ++split) {
      block.attend(split, [&](Index tile) {
        const Index at = read_group * plan.tiles + tile;
        return PackedTile{packed.keys + at * tile_keys, packed.values + at * tile_values, packed.values_not_finite[at] != 0};
      });
      block.merge(block.split_state());
    }
    block.finish();
  });
}

// The rows of all query heads that read a (batch, kv head) pair form one block. Splits go to tasks, which pack tile
// after tile into scratch that stays in cache; what the splits give is merged in the end.
template <class Stages>
void forward_by_splits(const ForwardPlan& plan, const Stages& stages) {
  const AttentionShape& s = plan.problem->shape;
  const Index stacked = plan.stacked_rows(), stride = plan.padded_value_dim;
  const auto partial = [&](Index item, Index row) {
    const Index at = item * stacked + row;
    return RowState{plan.partial.max + at, plan.partial.sum + at, plan.partial.accumulator + at * stride};
  };
  const Index items = plan.groups * plan.splits;
  const Index threads = plan.threads > 0 ? plan.threads : hardware_threads();
  const Index per_task = std::max<Index>(1, items / (8 * threads));
  parallel_for((items + per_task - 1) / per_task, plan.threads, [&](Index task) {
    Packer<Stages> packer(plan, stages);
    RowBlock<Stages> block(plan, stages, stacked);
    const auto keys = allocate(plan.tiling.keys * s.dim), values = allocate(plan.tiling.keys * stride);
    for (Index item = task * per_task; item < std::min(items, (task + 1) * per_task); ++item) {
      const Index group = plan.first_group + item / plan.splits, split = item % plan.splits;
      const Index first_head = group % s.kv_heads * s.group();
      for (Index head = first_head, heads; head < first_head + s.group(); head += heads) {
        const Index read = stages.kv_head(head, s.group());
        for (heads = 1; head + heads < first_head + s.group() && stages.kv_head(head + heads, s.group()) == read;) ++heads;
        block.place(group / s.kv_heads, head, heads, 0, s.rows);
        block.attend(split, [&](Index tile) {
          const bool not_finite = packer.pack(group / s.kv_heads * s.kv_heads + read, tile, keys.get(), values.get());
          return PackedTile{keys.get(), values.get(), not_finite};
        });
        const RowState from = block.split_state(), to = partial(item, (head - first_head) * s.rows);
        std::copy_n(from.max, block.rows(), to.max);
        std::copy_n(from.sum, block.rows(), to.sum);
        std::copy_n(from.accumulator, block.rows() * stride, to.accumulator);
      }
    }
  });
  parallel_for(plan.groups, plan.threads, [&](Index index) {
    const Index group = plan.first_group + index;
    RowBlock<Stages> block(plan, stages, stacked);
    block.place(group / s.kv_heads, group % s.kv_heads * s.group(), s.group(), 0, s.rows);
    for (Index split = 0; split < plan.splits; ++split) block.merge(partial(index * plan.splits + split, 0));
    block.finish();
  });
}

template <class Stages>
void forward_wave(const ForwardPlan& plan, const Stages& stages) {
  if (plan.by_split) forward_by_splits(plan, stages);
  else forward_by_rows(plan, stages);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
