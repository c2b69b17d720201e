// The low-bit product with AMX. Highway's target is AVX3, as in attention_pairs.cc.
//
// For any number of rows, some groups of a panel are decoded to words of two k each, and AMX
// multiplies them. So all rows have the same sums.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/product/product_amx.cc"
#ifndef HWY_DISABLED_TARGETS  // AVX3 and a baseline, for which nothing is instantiated
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | (HWY_AVX3 - 1))
#endif
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/product/product-inl.h"
#include "kernels/simd/amx.h"

#if HWY_TARGET == HWY_AVX3 && ASSAY_AMX
HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

static_assert(panel_width == bf16::panel_width);
constexpr Index strips = PackedWeights::panel / panel_width;

// How many words a group of so many blocks of eight k has, filled up with zeros to whole chunks.
Index words_of_blocks(Index blocks) { return amx::whole_chunks(4 * blocks); }
// The groups [first, end) of W as they are multiplied.
amx::Groups groups_of(const PackedWeights& w, Index first, Index end) {
  const Index of_last = std::min(end * w.group() / 8, w.blocks()) - (end - 1) * w.group() / 8;
  return {end - first, words_of_blocks(w.group() / 8), words_of_blocks(of_last)};
}
Index words_of_row(const PackedWeights& w) {
  const amx::Groups all = groups_of(w, 0, w.groups());
  return (all.count - 1) * all.words + all.words_of_last;
}

// Some groups of a panel: strips of panel_width columns, [strip][word][column], and the scales,
// [strip][group][column].
struct PanelOfWords {
  Index groups, words;  // for how many it has room
  hwy::AlignedFreeUniquePtr<float[]> weights, scales;
  // With few rows, what was decoded should be in L1 when it is read.
  PanelOfWords(const PackedWeights& w, Index rows)
      : groups(std::min(w.groups(), std::max<Index>(1, (rows < many_rows ? 64 : 256) / w.group()))),
        words(groups * words_of_blocks(w.group() / 8)),
        weights(allocate_floats(words * PackedWeights::panel)),
        scales(allocate_floats(groups * PackedWeights::panel)) {}
};

// The words of k = 2 * pair and the next, in a half block.
template <std::size_t pair, Code code>
HWY_INLINE Vector words_of(const HalfBlock<code>& codes, Vector zeros) {
  const Lanes d;
  const hn::RebindToUnsigned<Lanes> du;
  if constexpr (is_nibble<code> && !has_zeros<code>) {
    return hn::BitCast(d, hn::RotateRight<16>(hn::BitCast(du, codes.template pair_at<pair>())));
  } else {
    const Vector first = take_off<code>(codes.template at<2 * pair>(), zeros),
                 second = take_off<code>(codes.template at<2 * pair + 1>(), zeros);
    // The lower halves are 0.
    return hn::BitCast(d,
                       hn::Or(hn::BitCast(du, first), hn::ShiftRight<16>(hn::BitCast(du, second))));
  }
}

template <Code code>
HWY_NOINLINE void decode_words(const PackedWeights& w, Index panel, Index first_group,
                               Index end_group, PanelOfWords& to) {
  const Lanes d;
  for (Index t = first_group; t < end_group; ++t) {
    const auto [begin, end] = blocks_of_group(NoProductStages{}, w, t);
    const Index word0 = (t - first_group) * words_of_blocks(w.group() / 8),
                behind = word0 + 4 * (end - begin), last = word0 + words_of_blocks(end - begin);
    for (Index strip = 0; strip < strips; ++strip)
      std::fill(to.weights.get() + (strip * to.words + behind) * panel_width,
                to.weights.get() + (strip * to.words + last) * panel_width, 0.0f);
    for (Index column = 0; column < PackedWeights::panel; column += lane_count) {
      const Vector zeros = load_zeros<code>(d, w, panel, t, column);
      const Index strip = column / panel_width, lane = column % panel_width;
      float* words = to.weights.get() + strip * to.words * panel_width + word0 * panel_width + lane;
      for (Index block = begin; block < end; ++block)
        for (Index half = 0; half < 2; ++half, words += 2 * panel_width) {
          const HalfBlock<code> codes(w.panel_codes(panel) + block * w.block_bytes(), column, half);
          hn::Store(words_of<0>(codes, zeros), d, words);
          hn::Store(words_of<1>(codes, zeros), d, words + panel_width);
        }
      hn::Store(load_scales(d, w, panel, t, column), d,
                to.scales.get() + (strip * to.groups + t - first_group) * panel_width + lane);
    }
  }
}

// Packs a row of A to words, with zeros behind K and behind each group.
void pack_words(const TensorView& a, const PackedWeights& w, Index row, float* to,
                std::uint16_t* line) {
  const Index words = words_of_row(w), group = w.group();
  std::fill_n(line, 2 * words, std::uint16_t{0});
  const auto* from = static_cast<const std::uint16_t*>(a.data) + a.at(0, 0, row, 0);
  for (Index t = 0; t < w.groups(); ++t) {
    std::uint16_t* of_group = line + 2 * t * words_of_blocks(group / 8);
    for (Index k = t * group; k < std::min(w.k(), (t + 1) * group); ++k)
      of_group[k - t * group] = from[k * a.stride[3]];
  }
  for (Index word = 0; word < words; ++word)
    to[word] =
        std::bit_cast<float>(static_cast<std::uint32_t>(line[2 * word]) << 16 | line[2 * word + 1]);
}

template <Code code>
void product_of_words(const ProductPlan& plan) {
  const PackedWeights& w = *plan.w;
  const Index words = words_of_row(w);
  constexpr Index wave = 768, block = 2 * amx::tile_rows;
  const Index most_rows = std::min(wave, plan.m);
  struct Line {
    hwy::AlignedFreeUniquePtr<std::uint16_t[]> codes;
  };
  struct Scratch {
    Scratch(const PackedWeights& of, Index rows)
        : panel(of, rows), totals(allocate_floats(rows * PackedWeights::panel)) {}
    PanelOfWords panel;
    hwy::AlignedFreeUniquePtr<float[]> totals;
  };
  const auto a = allocate_floats(amx::whole_tiles(most_rows) * words);
  ScratchPool<Line> lines(most_rows, plan.threads, [&] {
    return std::make_unique<Line>(Line{allocate_aligned<std::uint16_t>(2 * words)});
  });
  ScratchPool<Scratch> pool(
      w.panels() * ((most_rows + rows_of_a_task - 1) / rows_of_a_task), plan.threads,
      [&] { return std::make_unique<Scratch>(w, std::min(rows_of_a_task, most_rows)); });
  for (Index row0 = 0; row0 < plan.m; row0 += wave) {
    const Index rows = std::min(wave, plan.m - row0);
    parallel_for(rows, plan.threads, [&](Index r) {
      pack_words(*plan.a, w, row0 + r, a.get() + r * words, lines.take()->codes.get());
    });
    const Index chunks = (rows + rows_of_a_task - 1) / rows_of_a_task;
    parallel_for(w.panels() * chunks, plan.threads, [&](Index task) {
      const Index panel = task / chunks, first = task % chunks * rows_of_a_task,
                  count = std::min(rows_of_a_task, rows - first);
      const amx::Configured registers(std::min(amx::tile_rows, count));
      const auto scratch = pool.take();
      PanelOfWords& decoded = scratch->panel;
      float* totals = scratch->totals.get();
      std::fill_n(totals, count * PackedWeights::panel, 0.0f);
      for (Index t = 0; t < w.groups(); t += decoded.groups) {
        const Index end = std::min(t + decoded.groups, w.groups());
        decode_words<code>(w, panel, t, end, decoded);
        const amx::Groups groups = groups_of(w, t, end);
        const float* of_groups = a.get() + first * words + t * words_of_blocks(w.group() / 8);
        for (Index strip = 0; strip < strips; ++strip)
          for (Index r = 0; r < count; r += block)
            amx::add_groups(std::min(block, count - r), of_groups + r * words, words,
                            decoded.weights.get() + strip * decoded.words * panel_width, groups,
                            decoded.scales.get() + strip * decoded.groups * panel_width,
                            totals + r * PackedWeights::panel + strip * panel_width,
                            PackedWeights::panel);
      }
      store_totals(plan, NoProductStages{}, panel, row0 + first, count, totals);
    });
  }
}

template <Code... codes>
void run_codes(const ProductPlan& plan) {
  const Code wanted = code_of(plan.w->format());
  ((wanted == codes ? product_of_words<codes>(plan) : void()), ...);
}

void run_product_of_amx(const ProductPlan& plan, const void*) {
  run_codes<Code::e2m1, Code::int4, Code::int8, Code::e4m3, Code::e5m2>(plan);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
#include "kernels/product/product_amx.h"
#include "kernels/simd/bf16_dots.h"

namespace assay::kernels {

bool multiplies_with_amx(const Target& target, Dtype a) {
  return has_amx(target) && a == Dtype::bf16;
}

RunProduct product_of_amx() {
#if ASSAY_AMX
  return N_AVX3::run_product_of_amx;
#else
  return nullptr;
#endif
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
