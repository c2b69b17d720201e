// The low-bit product. The file is compiled once for each SIMD target.
//
// For a few rows of A, product_block() decodes four k of two vectors of columns and uses them for
// every row at once. A single row has a loop of its own, over as many vectors as hide the latency
// of an addition. For many rows, decode_panel() writes fp32 panels, which the register blocks of
// attention multiply. All three make the same sums.
#include <cstdint>
#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/simd/decode-inl.h"
#include "kernels/product/product_plan.h"
#include "kernels/product/product_stages.h"
#include "kernels/simd/register_block-inl.h"
#include "problem/parallel.h"

#if defined(ASSAY_KERNELS_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_PRODUCT_INL_H_
#undef ASSAY_KERNELS_PRODUCT_INL_H_
#else
#define ASSAY_KERNELS_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

inline constexpr Index lane_count = static_cast<Index>(hn::MaxLanes(Lanes()));
// How many rows are multiplied at once while their weights are decoded: registers must hold the
// accumulators of two vectors for each row, and what decoding needs.
inline constexpr std::size_t decoding_rows = has_many_registers ? 8 : 4;
// How many vectors of columns a single row sums side by side.
inline constexpr std::size_t row_vectors =
    std::min<std::size_t>(8, usize(PackedWeights::panel / lane_count));
static_assert(PackedWeights::panel % panel_width == 0 &&
              PackedWeights::panel % (static_cast<Index>(row_vectors) * lane_count) == 0);

// ---- Decoding -----------------------------------------------------------------------------------

constexpr Code code_of(LowBit format) {
  switch (format) {
    case LowBit::int8: return Code::int8;
    case LowBit::int4: return Code::int4;
    case LowBit::f8e4m3: return Code::e4m3;
    case LowBit::f8e5m2: return Code::e5m2;
    default: return Code::e2m1;
  }
}
// Four k of a block, k = 4 * half + depth, each as a vector of columns from `column` on. Zero
// points are not yet subtracted. The caller goes depth by depth, so that several columns or rows
// advance side by side: their independent sums hide the latency of an addition.
template <Code code>
class HalfBlock {
 public:
  HWY_INLINE HalfBlock(const std::uint8_t* HWY_RESTRICT block, Index column, Index half) {
    if constexpr (!is_nibble<code>) {
      from_ = block + 4 * half * PackedWeights::panel + column;
    } else {
#if HWY_TARGET == HWY_SCALAR
      from_ = block + column / 4 * 16 + column % 4 * 2;
      half_ = half;
#else
      const Lanes d;
      const hn::Repartition<std::uint8_t, Lanes> d8;
      const hn::Repartition<std::uint16_t, Lanes> d16;
      const auto bytes = hn::LoadU(d8, block + 4 * column);
      const auto shifted =
          half == 0 ? bytes : hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, bytes)));
      const auto nibbles = hn::And(shifted, hn::Set(d8, std::uint8_t{0x0F}));
      const auto upper =
          hn::TableLookupBytes(hn::LoadDup128(d8, nibble_table<code>.upper), nibbles);
      const auto lower =
          hn::TableLookupBytes(hn::LoadDup128(d8, nibble_table<code>.lower), nibbles);
      first_ = hn::BitCast(d, hn::InterleaveLower(d8, lower, upper));
      second_ = hn::BitCast(d, hn::InterleaveUpper(d8, lower, upper));
#endif
    }
  }
  template <std::size_t depth>
  HWY_INLINE Vector at() const {
    const Lanes d;
    const hn::RebindToUnsigned<Lanes> du;
    if constexpr (!is_nibble<code>) {
      const auto codes = hn::LoadU(hn::Rebind<std::uint8_t, Lanes>(),
                                   from_ + static_cast<Index>(depth) * PackedWeights::panel);
      if constexpr (code == Code::int8) {
        const hn::Rebind<std::int8_t, Lanes> narrow;
        return hn::ConvertTo(
            d, hn::PromoteTo(hn::RebindToSigned<Lanes>(), hn::BitCast(narrow, codes)));
      } else {
        return decode_f8 < code == Code::e4m3 ? 3 : 2 > (d, hn::PromoteTo(du, codes));
      }
    } else {
#if HWY_TARGET == HWY_SCALAR
      const std::size_t nibble = from_[depth / 2 * 8 + depth % 2] >> (half_ * 4) & 0xFu;
      const std::uint32_t bits = static_cast<std::uint32_t>(nibble_table<code>.upper[nibble] << 8 |
                                                            nibble_table<code>.lower[nibble])
                                 << 16;
      return hn::Set(d, std::bit_cast<float>(bits));
#else
      // Each lane holds a pair of bf16, with the even k in the lower half.
      const auto pair = hn::BitCast(du, depth < 2 ? first_ : second_);
      return hn::BitCast(
          d, depth % 2 == 0 ? hn::ShiftLeft<16>(pair) : hn::And(pair, hn::Set(du, 0xFFFF0000u)));
#endif
    }
  }
#if HWY_TARGET != HWY_SCALAR
  // A pair of bf16 in each lane, k = 2 * pair in the lower half.
  template <std::size_t pair>
  HWY_INLINE Vector pair_at() const
    requires is_nibble<code>
  {
    return pair == 0 ? first_ : second_;
  }
#endif

 private:
  const std::uint8_t* from_ = nullptr;
#if HWY_TARGET == HWY_SCALAR
  Index half_ = 0;
#else
  Vector first_, second_;
#endif
};

// Loads the zero points of group t; 0 if the format has none.
template <Code code>
HWY_INLINE Vector load_zeros(Lanes d, const PackedWeights& w, Index panel, Index t, Index column) {
  if constexpr (has_zeros<code>) {
    const auto zeros = hn::LoadU(hn::Rebind<std::int8_t, Lanes>(),
                                 w.panel_zeros(panel) + t * PackedWeights::panel + column);
    return hn::ConvertTo(d, hn::PromoteTo(hn::RebindToSigned<Lanes>(), zeros));
  } else {
    return hn::Zero(d);
  }
}
template <Code code>
HWY_INLINE Vector take_off(Vector weights, Vector zeros) {
  if constexpr (has_zeros<code>) return hn::Sub(weights, zeros);
  else return weights;
}

// Loads the scales of group t.
HWY_INLINE Vector load_scales(Lanes d, const PackedWeights& w, Index panel, Index t, Index column) {
  if (!w.has_scales()) return hn::Set(d, 1.0f);
  const hn::RebindToUnsigned<Lanes> du;
  const std::uint8_t* from =
      w.panel_scales(panel) + (t * PackedWeights::panel + column) * w.scale_bytes();
  if (w.scale_bytes() == 2)
    return load_narrow(d, Dtype::f16, reinterpret_cast<const std::uint16_t*>(from));
  const auto codes = hn::PromoteTo(du, hn::LoadU(hn::Rebind<std::uint8_t, Lanes>(), from));
  if (w.format() == LowBit::nvfp4) return decode_f8<3>(d, codes);
  // An E8M0 code is the exponent field of fp32, except for code 0, which is a subnormal number
  // there, and for NaN.
  const auto power =
      hn::Or(hn::ShiftLeft<23>(codes),
             hn::IfThenElseZero(hn::Eq(codes, hn::Set(du, 0u)), hn::Set(du, 0x00400000u)));
  return hn::BitCast(d, hn::Or(power, hn::IfThenElseZero(hn::Eq(codes, hn::Set(du, 0xFFu)),
                                                         hn::Set(du, 0x7FC00000u))));
}

// The weights as a policy changes them.
template <class Stages>
HWY_NOINLINE Vector observed_weights(const Stages& stages, const PackedWeights& w, Index k,
                                     Index n) {
  float lanes[hn::MaxLanes(Lanes())];
  for (Index i = 0; i < lane_count; ++i)
    lanes[i] = k < w.k() && n + i < w.n() ? stages.weight(w, k, n + i) : 0;
  return hn::LoadU(Lanes(), lanes);
}

// The weights with their zero points subtracted, as a policy changes them.
template <Code code, class Stages>
class Weights {
 public:
  HWY_INLINE Weights(const Stages& stages, const PackedWeights& w, Index panel, Index block,
                     Index column, Index half, Vector zeros)
      : codes_(w.panel_codes(panel) + block * w.block_bytes(), column, half),
        zeros_(zeros),
        stages_(stages),
        w_(w),
        k_(8 * block + 4 * half),
        n_(panel * PackedWeights::panel + column) {}
  template <std::size_t depth>
  HWY_INLINE Vector at() const {
    if constexpr (Stages::observes) {
      return observed_weights(stages_, w_, k_ + static_cast<Index>(depth), n_);
    } else {
      return take_off<code>(codes_.template at<depth>(), zeros_);
    }
  }

 private:
  HalfBlock<code> codes_;
  Vector zeros_;
  const Stages& stages_;
  const PackedWeights& w_;
  Index k_, n_;
};
template <class Stages>
HWY_NOINLINE Vector observed_scales(const Stages& stages, const PackedWeights& w, Index t, Index n,
                                    Index rows) {
  float lanes[hn::MaxLanes(Lanes())];
  for (Index i = 0; i < lane_count; ++i)
    lanes[i] = n + i < w.n() ? stages.scale(w, t, n + i, rows) : 0;
  return hn::LoadU(Lanes(), lanes);
}
template <class Stages>
HWY_INLINE Vector scales_of_group(Lanes d, const Stages& stages, const PackedWeights& w,
                                  Index panel, Index t, Index column, Index rows) {
  if constexpr (Stages::observes) {
    return observed_scales(stages, w, t, panel * PackedWeights::panel + column, rows);
  } else {
    return load_scales(d, w, panel, t, column);
  }
}
template <class Stages>
HWY_INLINE Vector initial_total(Lanes d, const Stages& stages, const ProductPlan& plan, Index row,
                                Index column) {
  if constexpr (Stages::observes) {
    float lanes[hn::MaxLanes(Lanes())];
    for (Index i = 0; i < lane_count; ++i) lanes[i] = stages.initial(row, column + i, plan.m);
    return hn::LoadU(d, lanes);
  } else {
    return hn::Zero(d);
  }
}
template <class Stages>
HWY_NOINLINE Vector observed_total(Lanes d, const Stages& stages, Vector total) {
  float lanes[hn::MaxLanes(Lanes())];
  hn::StoreU(total, d, lanes);
  for (float& x : lanes) x = stages.after_group(x);
  return hn::LoadU(d, lanes);
}
// Computes total + sum * scale.
template <class Stages>
HWY_INLINE Vector add_group(Lanes d, const Stages& stages, Vector sum, Vector scale, Vector total) {
  total = hn::MulAdd(sum, scale, total);
  if constexpr (Stages::observes) return observed_total(d, stages, total);
  else return total;
}

// ---- Few rows -----------------------------------------------------------------------------------

// The blocks of eight k that belong to group t.
struct BlockRange {
  Index begin, end;
};
template <class Stages>
HWY_INLINE BlockRange blocks_of_group(const Stages& stages, const PackedWeights& w, Index t) {
  const Index all = stages.depth_blocks(w), begin = std::min(t * w.group() / 8, all);
  return {begin, std::min((t + 1) * w.group() / 8, all)};
}

// Computes sum[V] += x[depth] * weights[V] for four k of some vectors.
template <std::size_t depth, class Weights, std::size_t... V>
HWY_INLINE void add_depth(std::index_sequence<V...>, const float* HWY_RESTRICT x,
                          const Weights* weights, Vector* sum) {
  const Vector a = hn::Set(Lanes(), x[depth]);
  ((sum[V] = hn::MulAdd(a, weights[V].template at<depth>(), sum[V])), ...);
}
template <Code code, class Stages, std::size_t... V>
HWY_INLINE void add_half_block(std::index_sequence<V...> vectors, const Stages& stages,
                               const PackedWeights& w, Index panel, Index block, Index column,
                               Index half, const Vector* zeros, const float* HWY_RESTRICT x,
                               Vector* sum) {
  const Weights<code, Stages> weights[] = {
      {stages, w, panel, block, column + static_cast<Index>(V) * lane_count, half, zeros[V]}...};
  add_depth<0>(vectors, x, weights, sum);
  add_depth<1>(vectors, x, weights, sum);
  add_depth<2>(vectors, x, weights, sum);
  add_depth<3>(vectors, x, weights, sum);
}

// Computes the totals of one row for the columns of the vectors V of a panel, from `column` on.
template <Code code, class Stages, std::size_t... V>
HWY_NOINLINE void product_row(std::index_sequence<V...>, const ProductPlan& plan,
                              const Stages& stages, Index panel, Index column, Index row,
                              const float* HWY_RESTRICT a, float* totals) {
  const Lanes d;
  const PackedWeights& w = *plan.w;
  const auto columns = [&](std::size_t v) { return column + static_cast<Index>(v) * lane_count; };
  // Four vectors at a time, because their half blocks fit into registers.
  constexpr std::size_t step = std::min<std::size_t>(4, sizeof...(V));
  Vector total[] = {
      initial_total(d, stages, plan, row, panel * PackedWeights::panel + columns(V))...};
  for (Index t = 0; t < w.groups(); ++t) {
    Vector sum[] = {((void)V, hn::Zero(d))...};
    const Vector zeros[] = {load_zeros<code>(d, w, panel, t, columns(V))...};
    const auto [begin, end] = blocks_of_group(stages, w, t);
    for (Index block = begin; block < end; ++block)
      for (std::size_t v = 0; v < sizeof...(V); v += step)
        for (Index half = 0; half < 2; ++half)
          add_half_block<code>(std::make_index_sequence<step>(), stages, w, panel, block,
                               columns(v), half, zeros + v, a + 8 * block + 4 * half, sum + v);
    ((total[V] = add_group(d, stages, sum[V],
                           scales_of_group(d, stages, w, panel, t, columns(V), plan.m), total[V])),
     ...);
  }
  (hn::StoreU(total[V], d, totals + columns(V)), ...);
}

// Computes left[R] += x[depth][R] * weights, and the same for the vector of columns to the right.
template <std::size_t depth, class Weights, std::size_t... R>
HWY_INLINE void add_depth_of_rows(std::index_sequence<R...>, const float* HWY_RESTRICT x,
                                  const Weights& left_weights, const Weights& right_weights,
                                  Vector (&left)[sizeof...(R)], Vector (&right)[sizeof...(R)]) {
  const Lanes d;
  const Vector l = left_weights.template at<depth>(), r = right_weights.template at<depth>();
  ((left[R] = hn::MulAdd(hn::Set(d, x[depth * sizeof...(R) + R]), l, left[R]),
    right[R] = hn::MulAdd(hn::Set(d, x[depth * sizeof...(R) + R]), r, right[R])),
   ...);
}

// Computes the totals of the rows R for two vectors of columns. A is interleaved: for each k, the
// elements of the block's rows lie side by side.
template <Code code, class Stages, std::size_t... R>
HWY_INLINE void product_block(std::index_sequence<R...> rows, const ProductPlan& plan,
                              const Stages& stages, Index panel, Index column, Index row,
                              const float* HWY_RESTRICT a, float* totals) {
  const Lanes d;
  const PackedWeights& w = *plan.w;
  const Index right = column + lane_count, n0 = panel * PackedWeights::panel;
  Vector total_left[] = {
      initial_total(d, stages, plan, row + static_cast<Index>(R), n0 + column)...};
  Vector total_right[] = {
      initial_total(d, stages, plan, row + static_cast<Index>(R), n0 + right)...};
  for (Index t = 0; t < w.groups(); ++t) {
    Vector left[] = {((void)R, hn::Zero(d))...}, rest[] = {((void)R, hn::Zero(d))...};
    const Vector zeros_left = load_zeros<code>(d, w, panel, t, column),
                 zeros_right = load_zeros<code>(d, w, panel, t, right);
    const auto [begin, end] = blocks_of_group(stages, w, t);
    for (Index block = begin; block < end; ++block)
      for (Index half = 0; half < 2; ++half) {
        const float* x = a + (8 * block + 4 * half) * static_cast<Index>(sizeof...(R));
        const Weights<code, Stages> l(stages, w, panel, block, column, half, zeros_left),
            r(stages, w, panel, block, right, half, zeros_right);
        add_depth_of_rows<0>(rows, x, l, r, left, rest);
        add_depth_of_rows<1>(rows, x, l, r, left, rest);
        add_depth_of_rows<2>(rows, x, l, r, left, rest);
        add_depth_of_rows<3>(rows, x, l, r, left, rest);
      }
    const Vector scale_left = scales_of_group(d, stages, w, panel, t, column, plan.m),
                 scale_right = scales_of_group(d, stages, w, panel, t, right, plan.m);
    ((total_left[R] = add_group(d, stages, left[R], scale_left, total_left[R]),
      total_right[R] = add_group(d, stages, rest[R], scale_right, total_right[R])),
     ...);
  }
  ((hn::StoreU(total_left[R], d, totals + static_cast<Index>(R) * PackedWeights::panel + column),
    hn::StoreU(total_right[R], d, totals + static_cast<Index>(R) * PackedWeights::panel + right)),
   ...);
}

// ---- Many rows ----------------------------------------------------------------------------------

// Some groups of a panel in fp32: strips of panel_width columns, [strip][k][column], and the
// scales, [group][column].
struct DecodedPanel {
  Index groups, depth;  // for how many it has room; depth counts k
  hwy::AlignedFreeUniquePtr<float[]> weights, scales;
  explicit DecodedPanel(const PackedWeights& w)
      : groups(std::min(w.groups(), std::max<Index>(1, 256 / w.group()))),
        depth(std::min(groups * w.group(), w.blocks() * 8)),
        weights(allocate_floats(depth * PackedWeights::panel)),
        scales(allocate_floats(groups * PackedWeights::panel)) {}
  const float* strip(Index column) const { return weights.get() + column * depth; }
};

template <Code code, class Stages>
HWY_NOINLINE void decode_panel(const ProductPlan& plan, const Stages& stages, Index panel,
                               Index first_group, Index end_group, DecodedPanel& to) {
  const Lanes d;
  const PackedWeights& w = *plan.w;
  for (Index t = first_group; t < end_group; ++t) {
    const auto [begin, end] = blocks_of_group(stages, w, t);
    const Index k0 = (t - first_group) * w.group() - begin * 8;
    for (Index column = 0; column < PackedWeights::panel; column += lane_count) {
      const Vector zeros = load_zeros<code>(d, w, panel, t, column);
      float* strip =
          to.weights.get() + column / panel_width * panel_width * to.depth + column % panel_width;
      for (Index block = begin; block < end; ++block)
        for (Index half = 0; half < 2; ++half) {
          const Weights<code, Stages> weights(stages, w, panel, block, column, half, zeros);
          float* to_rows = strip + (k0 + 8 * block + 4 * half) * panel_width;
          hn::Store(weights.template at<0>(), d, to_rows);
          hn::Store(weights.template at<1>(), d, to_rows + panel_width);
          hn::Store(weights.template at<2>(), d, to_rows + 2 * panel_width);
          hn::Store(weights.template at<3>(), d, to_rows + 3 * panel_width);
        }
      hn::Store(scales_of_group(d, stages, w, panel, t, column, plan.m), d,
                to.scales.get() + (t - first_group) * PackedWeights::panel + column);
    }
  }
}

// Adds the groups [first, end) of a strip to the totals of the rows R.
template <class Stages, std::size_t... R>
HWY_NOINLINE void add_decoded(std::index_sequence<R...> rows, const ProductPlan& plan,
                              const Stages& stages, Index first_group, Index end_group,
                              const DecodedPanel& b, Index column, const float* a, float* totals) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  const PackedWeights& w = *plan.w;
  float* to = totals + column;
  Vector total_left[] = {hn::Load(d, to + R * PackedWeights::panel)...},
         total_right[] = {hn::Load(d, to + R * PackedWeights::panel + n)...};
  const float* strip = b.strip(column);
  for (Index t = first_group; t < end_group; ++t) {
    const auto [begin, end] = blocks_of_group(stages, w, t);
    const Index k0 = (t - first_group) * w.group();
    Vector left[] = {((void)R, hn::Zero(d))...}, right[] = {((void)R, hn::Zero(d))...};
    multiply_add<1, sizeof...(R)>(d, rows, a + 8 * begin * static_cast<Index>(sizeof...(R)),
                                  PackedOperand{strip + k0 * panel_width}, 8 * (end - begin), left,
                                  right);
    const float* scales = b.scales.get() + (t - first_group) * PackedWeights::panel + column;
    const Vector scale_left = hn::Load(d, scales), scale_right = hn::Load(d, scales + n);
    ((total_left[R] = add_group(d, stages, left[R], scale_left, total_left[R]),
      total_right[R] = add_group(d, stages, right[R], scale_right, total_right[R])),
     ...);
  }
  ((hn::Store(total_left[R], d, to + R * PackedWeights::panel),
    hn::Store(total_right[R], d, to + R * PackedWeights::panel + n)),
   ...);
}

// ---- The whole ----------------------------------------------------------------------------------

// Rows of A in fp32, with K rounded up and filled with zeros. The rows [r, r + R) of a register
// block lie interleaved from r * depth on.
template <class Stages>
void pack_activations(const ProductPlan& plan, const Stages& stages, Index row0, Index r,
                      Index block, Index depth, float* to, float* line) {
  std::fill(line + plan.w->k(), line + depth, stages.padding());
  for (Index i = 0; i < block; ++i) {
    const Index m = row0 + r + i;
    if (plan.a) load_row(*plan.a, 0, 0, m, plan.w->k(), line);
    else
      for (Index k = 0; k < plan.w->k(); ++k) line[k] = decode_low_bit(*plan.a_low, k, m);
    for (Index k = 0; k < depth; ++k) to[r * depth + k * block + i] = line[k];
  }
}

// Calls body(index_sequence, first row) over [0, rows): for register blocks of `most` rows, and
// then for one block with the rows that are left.
template <std::size_t most, class Body>
HWY_INLINE void for_blocks_of(Index rows, const Body& body) {
  Index r = 0;
  for (; r + static_cast<Index>(most) <= rows; r += static_cast<Index>(most))
    body(std::make_index_sequence<most>(), r);
  for_small_blocks(r, rows, body);
}

template <class Stages>
HWY_NOINLINE void store_totals(const ProductPlan& plan, const Stages& stages, Index panel,
                               Index row0, Index rows, float* totals) {
  const PackedWeights& w = *plan.w;
  const Index n0 = panel * PackedWeights::panel,
              columns = stages.stored_columns(std::min(PackedWeights::panel, w.n() - n0));
  const float scale_w = stages.tensor_scale(w.tensor_scale()),
              scale_a = plan.a_low ? plan.a_low->tensor_scale : 1.0f;
  TensorView c = plan.c;
  c.origin += n0 * c.stride[3];
  for (Index i = 0; i < rows; ++i) {
    float* line = totals + i * PackedWeights::panel;
    if (scale_w != 1 || scale_a != 1)
      for (Index n = 0; n < columns; ++n) line[n] = line[n] * scale_w * scale_a;
    if constexpr (Stages::observes)
      for (Index n = 0; n < columns; ++n) line[n] = stages.output(line[n], row0 + i, n0 + n);
    store_row(c, 0, 0, row0 + i, columns, line);
  }
}

template <Code code, class Stages>
void product_few_rows(const ProductPlan& plan, const Stages& stages, Index row0, Index rows,
                      const float* a) {
  const Index depth = plan.w->blocks() * 8;
  parallel_for(plan.w->panels(), plan.threads, [&](Index panel) HWY_ATTR {
    alignas(64) float totals[usize(many_rows * PackedWeights::panel)];
    for_blocks_of<decoding_rows>(rows, [&](auto block, Index r) HWY_ATTR {
      const float* x = a + r * depth;
      float* to = totals + r * PackedWeights::panel;
      if constexpr (block.size() == 1) {
        for (Index column = 0; column < PackedWeights::panel;
             column += static_cast<Index>(row_vectors) * lane_count)
          product_row<code>(std::make_index_sequence<row_vectors>(), plan, stages, panel, column,
                            row0 + r, x, to);
      } else {
        for (Index column = 0; column < PackedWeights::panel; column += panel_width)
          product_block<code>(block, plan, stages, panel, column, row0 + r, x, to);
      }
    });
    store_totals(plan, stages, panel, row0, stages.stored_rows(rows), totals);
  });
}

inline constexpr Index rows_of_a_task = 384;

struct ManyRows {
  ManyRows(const PackedWeights& w, Index rows)
      : decoded(w), totals(allocate_floats(rows * PackedWeights::panel)) {}
  DecodedPanel decoded;
  hwy::AlignedFreeUniquePtr<float[]> totals;
};

template <Code code, class Stages>
void product_many_rows(const ProductPlan& plan, const Stages& stages, Index row0, Index rows,
                       const float* a, ScratchPool<ManyRows>& pool) {
  const PackedWeights& w = *plan.w;
  const Index depth = w.blocks() * 8;
  const Index chunks = (rows + rows_of_a_task - 1) / rows_of_a_task;
  parallel_for(w.panels() * chunks, plan.threads, [&](Index task) HWY_ATTR {
    const Lanes d;
    const Index panel = task / chunks, first = task % chunks * rows_of_a_task,
                count = std::min(rows_of_a_task, rows - first);
    const auto scratch = pool.take();
    DecodedPanel& decoded = scratch->decoded;
    float* totals = scratch->totals.get();
    for (Index i = 0; i < count; ++i)
      for (Index column = 0; column < PackedWeights::panel; column += lane_count)
        hn::Store(
            initial_total(d, stages, plan, row0 + first + i, panel * PackedWeights::panel + column),
            d, totals + i * PackedWeights::panel + column);
    for (Index t = 0; t < w.groups(); t += decoded.groups) {
      const Index end = std::min(t + decoded.groups, w.groups());
      decode_panel<code>(plan, stages, panel, t, end, decoded);
      for (Index column = 0; column < PackedWeights::panel; column += panel_width)
        for_row_blocks(count, [&](auto block, Index r) HWY_ATTR {
          add_decoded(block, plan, stages, t, end, decoded, column, a + (first + r) * depth,
                      totals + r * PackedWeights::panel);
        });
    }
    store_totals(plan, stages, panel, row0 + first, count, totals);
  });
}

template <Code code, class Stages>
void product_of_code(const ProductPlan& plan, const Stages& stages) {
  const PackedWeights& w = *plan.w;
  const Index depth = w.blocks() * 8;
  // The register blocks of a task begin at its first row, because 384 and 768 are multiples of all
  // block sizes.
  constexpr Index wave = 768;
  const Index most_rows = std::min(wave, plan.m);
  const bool many = plan.m >= many_rows;
  struct Line {
    hwy::AlignedFreeUniquePtr<float[]> floats;
  };
  const auto a = allocate_floats(most_rows * depth);
  ScratchPool<Line> lines(most_rows, plan.threads,
                          [&] { return std::make_unique<Line>(Line{allocate_floats(depth)}); });
  ScratchPool<ManyRows> pool(
      many ? w.panels() * ((most_rows + rows_of_a_task - 1) / rows_of_a_task) : 0, plan.threads,
      [&] { return std::make_unique<ManyRows>(w, std::min(rows_of_a_task, most_rows)); });
  for (Index row0 = 0; row0 < plan.m; row0 += wave) {
    const Index rows = std::min(wave, plan.m - row0);
    const auto pack = [&](auto most) {
      // The blocks are cut as for_blocks_of() cuts them.
      const Index full = rows / most.value, blocks = full + (rows % most.value + 3) / 4;
      parallel_for(blocks, plan.threads, [&](Index b) {
        const auto line = lines.take();
        const Index r = b < full ? b * most.value : full * most.value + (b - full) * 4;
        pack_activations(plan, stages, row0, r,
                         b < full ? most.value : std::min<Index>(4, rows - r), depth, a.get(),
                         line->floats.get());
      });
    };
    if (many) {
      pack(std::integral_constant<Index, static_cast<Index>(block_rows)>());
      product_many_rows<code>(plan, stages, row0, rows, a.get(), pool);
    } else {
      pack(std::integral_constant<Index, static_cast<Index>(decoding_rows)>());
      product_few_rows<code>(plan, stages, row0, rows, a.get());
    }
  }
}

// One of these codes is the code of the weights.
template <Code... codes, class Stages>
void run_product(const ProductPlan& plan, const Stages& stages) {
  const Code wanted = code_of(plan.w->format());
  ((wanted == codes ? product_of_code<codes>(plan, stages) : void()), ...);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
