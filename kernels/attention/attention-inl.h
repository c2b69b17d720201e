// Tiled attention forward with online softmax. The file is compiled once for each SIMD target,
// hence the guard.
//
// The contract of the host's kernels declares the order of every sum: q.k is one FMA chain over d.
// P V is one FMA chain over the keys of a tile, on top of the rescaled accumulator. The row sum is
// summed within a tile, in any order, and then over the tiles of a split. Each split starts from
// nothing, and splits are merged in order (RowBlock::merge). All sums are fp32, whatever the inputs
// are. Pairs of bf16 (Operands::pairs) have the same order, weights in bf16, and fused
// multiply-adds that flush subnormal numbers. AMX (Operands::amx) adds them in chunks of 32.
//
// Masked keys get a weight of exactly 0. A tile or a split that no row of a block sees is skipped,
// which changes no bit. Tiles and splits begin at key 0, and D and Dv alone decide their lengths.
// So the bits of a row depend neither on what else is in the call, nor on which of the ways below
// computes the row.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "kernels/attention/attention_plan.h"
#include "kernels/attention/pack-inl.h"
#include "kernels/attention/pack_pairs-inl.h"
#include "kernels/attention/row_block-inl.h"
#include "kernels/attention/stages.h"
#include "problem/parallel.h"

#if defined(ASSAY_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_ATTENTION_INL_H_
#undef ASSAY_KERNELS_ATTENTION_INL_H_
#else
#define ASSAY_KERNELS_ATTENTION_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

template <Operands operands, class Stages>
using PackerOf = std::conditional_t<operands == Operands::floats, Packer<Stages>, PairPacker>;

// Gives the tiles of one of the wave's groups, which were packed before.
struct TilesInMemory {
  static constexpr bool stored = false;
  const float* keys(Index tile) const {
    return plan.packed.keys + (group * plan.tiles + tile) * plan.tile_keys();
  }
  PackedValues values(Index tile) const {
    const Index at = group * plan.tiles + tile;
    return {plan.packed.values + at * plan.tile_values(), plan.packed.values_not_finite[at] != 0};
  }
  const ForwardPlan& plan;
  const Index group;
};

// Gives tiles that are packed when they are asked for, or rows as they are stored. The scores no
// longer need the keys when the values are loaded, so one scratch, small enough for L1, holds
// either.
template <class SomePacker>
struct TilesOnTheFly {
  static constexpr bool stored = true;
  PanelRows panel(Index tile, Index j) const { return packer.panel(group, tile, j); }
  ValuesInPlace values_in_place(Index tile, const KeyRange& keys) const {
    return packer.values_in_place(group, tile, keys);
  }
  const float* keys(Index tile) const {
    packer.keys(group, tile, scratch);
    return scratch;
  }
  PackedValues values(Index tile) const { return packer.values(group, tile, scratch); }
  SomePacker& packer;
  const Index group;
  float* const scratch;
};

// Calls wave() for each run of (batch, kv head) pairs for which the workspace has room;
// plan.first_group and plan.groups say which pairs these are.
template <class Wave>
void for_waves(ForwardPlan& plan, const Wave& wave) {
  const Index all_groups = plan.problem->shape.batch * plan.problem->shape.kv_heads;
  for (plan.first_group = 0; plan.first_group < all_groups; plan.first_group += plan.groups) {
    plan.groups = std::min(plan.wave_groups, all_groups - plan.first_group);
    wave();
  }
}

// Packs K and V of the wave's groups, then computes every block of rows of every query head that
// reads them.
template <Operands operands, class Stages>
void forward_by_rows(ForwardPlan& plan, const Stages& stages) {
  using TilePacker = PackerOf<operands, Stages>;
  using Block = RowBlock<operands, Stages>;
  const AttentionShape& s = plan.problem->shape;
  const Index tile_keys = plan.tile_keys(), tile_values = plan.tile_values();
  const PackedKeyValues& packed = plan.packed;
  const Index blocks = (s.rows + plan.tiling.rows - 1) / plan.tiling.rows;
  ScratchPool<TilePacker> packers(plan.wave_groups * plan.tiles, plan.threads,
                                  [&] { return std::make_unique<TilePacker>(plan, stages); });
  ScratchPool<Block> row_blocks(plan.wave_groups * s.group() * blocks, plan.threads, [&] {
    return std::make_unique<Block>(plan, stages, plan.tiling.rows);
  });
  for_waves(plan, [&] {
    parallel_for(plan.groups * plan.tiles, plan.threads, [&](Index task) {
      const auto packer = packers.take();
      const Index group = plan.first_group + task / plan.tiles, tile = task % plan.tiles;
      packer->keys(group, tile, packed.keys + task * tile_keys);
      packed.values_not_finite[task] =
          packer->values(group, tile, packed.values + task * tile_values).not_finite;
    });
    parallel_for(plan.groups * s.group() * blocks, plan.threads, [&](Index task) {
      // Under causality the last rows see the most keys, so they start first.
      const Index row0 = (blocks - 1 - task % blocks) * plan.tiling.rows;
      const Index local_head = task / blocks;  // the query heads of the wave, in order
      const Index group = local_head / s.group();
      const Index head =
          (plan.first_group + group) % s.kv_heads * s.group() + local_head % s.group();
      const Index read_group = group + stages.kv_head(head, s.group()) - head / s.group();
      const auto block = row_blocks.take();
      block->place((plan.first_group + group) / s.kv_heads, head, 1, row0,
                   std::min(plan.tiling.rows, s.rows - row0));
      for (Index split = block->seen().begin / plan.tiling.split_keys;
           split * plan.tiling.split_keys < block->seen().end; ++split) {
        block->attend(split, TilesInMemory{plan, read_group});
        block->merge(block->split_state());
      }
      block->finish();
    });
  });
}

// The rows of all query heads that read one (batch, kv head) pair form one block. Tasks compute
// splits. A task packs tile after tile into a scratch that stays in cache, or reads tiles as they
// are stored if only a few rows need them. The results of the splits are merged at the end.
template <Operands operands, class Stages>
void forward_by_splits(ForwardPlan& plan, const Stages& stages) {
  using TilePacker = PackerOf<operands, Stages>;
  using Block = RowBlock<operands, Stages>;
  const AttentionShape& s = plan.problem->shape;
  const Index stacked = plan.stacked_rows(), stride = plan.padded_value_dim;
  const auto partial = [&](Index item, Index row) {
    const Index at = item * stacked + row;
    return RowState{plan.partial.max + at, plan.partial.sum + at,
                    plan.partial.accumulator + at * stride};
  };
  const Index threads = plan.threads > 0 ? plan.threads : hardware_threads();
  struct Scratch {
    Scratch(const ForwardPlan& of, const Stages& with, Index rows)
        : packer(of, with),
          block(of, with, rows),
          tile(allocate_floats(std::max(of.tile_keys(), of.tile_values()))) {}
    TilePacker packer;
    Block block;
    hwy::AlignedFreeUniquePtr<float[]> tile;
  };
  // The scratches of the splits also merge the results of the splits.
  const Index tasks = plan.wave_groups * std::max<Index>(plan.splits, 1);
  ScratchPool<Scratch> pool(tasks, plan.threads,
                            [&] { return std::make_unique<Scratch>(plan, stages, stacked); });
  for_waves(plan, [&] {
    const Index items = plan.groups * plan.splits,
                per_task = std::max<Index>(1, items / (8 * threads));
    parallel_for((items + per_task - 1) / per_task, plan.threads, [&](Index task) {
      const auto scratch = pool.take();
      Block& block = scratch->block;
      for (Index item = task * per_task; item < std::min(items, (task + 1) * per_task); ++item) {
        const Index group = plan.first_group + item / plan.splits, split = item % plan.splits;
        const Index first_head = group % s.kv_heads * s.group();
        for (Index head = first_head, heads; head < first_head + s.group(); head += heads) {
          const Index read = stages.kv_head(head, s.group());
          for (heads = 1; head + heads < first_head + s.group() &&
                          stages.kv_head(head + heads, s.group()) == read;)
            ++heads;
          block.place(group / s.kv_heads, head, heads, 0, s.rows);
          block.attend(split, TilesOnTheFly<TilePacker>{scratch->packer,
                                                        group / s.kv_heads * s.kv_heads + read,
                                                        scratch->tile.get()});
          const RowState from = block.split_state(),
                         to = partial(item, (head - first_head) * s.rows);
          std::copy_n(from.max, block.rows(), to.max);
          std::copy_n(from.sum, block.rows(), to.sum);
          std::copy_n(from.accumulator, block.rows() * stride, to.accumulator);
        }
      }
    });
    parallel_for(plan.groups, plan.threads, [&](Index index) {
      const Index group = plan.first_group + index;
      const auto scratch = pool.take();
      Block& block = scratch->block;
      block.place(group / s.kv_heads, group % s.kv_heads * s.group(), s.group(), 0, s.rows);
      for (Index split = 0; split < stages.merged_splits(plan.splits); ++split)
        block.merge(partial(index * plan.splits + split, 0));
      block.finish();
    });
  });
}

template <Operands operands = Operands::floats, class Stages>
void forward(ForwardPlan& plan, const Stages& stages) {
  if (plan.by_split) forward_by_splits<operands>(plan, stages);
  else forward_by_rows<operands>(plan, stages);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
