// The inputs of a low-bit product.
#include <cmath>

#include "problem/draw.h"
#include "problem/generate.h"

namespace assay {
namespace {

// Turns a code of E2M1, E4M3, E5M2, INT8 or INT4 into one that is a finite number.
std::uint32_t finite_code(const LowBitTraits& t, std::uint32_t code) {
  code &= t.bits == 8 ? 0xFFu : 0xFu;
  if (t.integer || t.bits == 4) return code;
  return std::isfinite(decode(t.element, code)) ? code : code & 0x80;
}

// The code of the largest magnitude. For integers it is the q farthest from a zero point in the
// middle.
std::uint32_t largest_code(const LowBitTraits& t, bool negative) {
  if (t.integer) return t.bits == 8 ? (negative ? 0x80u : 0x7Fu) : (negative ? 0u : 15u);
  return static_cast<std::uint32_t>(
      encode(t.element, negative ? -format(t.element).max_finite : format(t.element).max_finite));
}

// The code of a number that the format can hold. `zero` is the zero point of an integer format.
std::uint32_t code_of(const LowBitTraits& t, double x, int zero) {
  if (!t.integer) return static_cast<std::uint32_t>(encode(t.element, x));
  const int least = t.bits == 8 ? -128 : 0, most = t.bits == 8 ? 127 : 15;
  return static_cast<std::uint32_t>(std::clamp(static_cast<int>(x) + zero, least, most)) &
         (t.bits == 8 ? 0xFFu : 0xFu);
}

std::uint32_t draw_code(const Case& c, Index k, Index n, int zero) {
  const ProductSpec& p = c.product;
  const LowBitTraits& t = traits(p.format);
  const Draw draw(c.seed, Stream::codes, 0, 0, k, n);
  switch (p.weights) {
    case Weights::ramp: return finite_code(t, static_cast<std::uint32_t>(k + 3 * n));
    case Weights::one_hot: return code_of(t, k == (7 * n + 3) % p.k ? 1 : 0, zero);
    case Weights::largest: return largest_code(t, draw.word(0) & 1);
    case Weights::cancel:
      return code_of(
          t,
          (k & 1 ? -1 : 1) *
              (1 + static_cast<double>(Draw(c.seed, Stream::codes, 0, 0, k / 2, n).word(0) % 3)),
          zero);
    case Weights::zeros:
      return code_of(t, draw.word(0) % 8 == 0 ? draw.sign() : draw.sign() * 0.0, zero);
    case Weights::special:
      return draw.word(0) % 64 == 0 ? (draw.word(1) & 1 ? 0x7Fu : 0xFCu)
                                    : finite_code(t, draw.word(1));
    default: return finite_code(t, draw.word(0));
  }
}

std::uint32_t draw_scale(const Case& c, Index t, Index n) {
  const Draw draw(c.seed, Stream::scales, 0, 0, t, n);
  const Dtype dtype = traits(c.product.format).scale;
  const auto power = [&](int e) {
    return static_cast<std::uint32_t>(encode(dtype, std::ldexp(1.0, e)));
  };
  switch (c.product.scales) {
    case ScaleFamily::distinct: return power(static_cast<int>((t * 3 + n) % 7) - 3);
    case ScaleFamily::random:
      if (dtype == Dtype::e8m0) return power(static_cast<int>(draw.word(0) % 13) - 6);
      return static_cast<std::uint32_t>(encode(
          dtype, (1 + draw.unit(0)) * std::ldexp(1.0, static_cast<int>(draw.word(1) % 7) - 4)));
    // The groups of a column have neighbouring scales, so that no group drowns the others. The
    // columns run through every finite code above zero; in f16 every second scale is negative.
    case ScaleFamily::range: {
      const std::uint32_t first = dtype == Dtype::e8m0 ? 0 : 1, last = dtype == Dtype::e8m0 ? 0xFE
                                                                       : dtype == Dtype::f8e4m3
                                                                           ? 0x7E
                                                                           : 0x7BFF;
      const auto step = static_cast<std::uint64_t>(last / 60 + 1);
      const std::uint64_t place = static_cast<std::uint64_t>(n) * step + c.seed % step;
      const auto code =
          first + static_cast<std::uint32_t>((place + static_cast<std::uint64_t>(t) % 3) %
                                             (last - first + 1));
      return dtype == Dtype::f16 && (t + n) % 2 ? code | 0x8000 : code;
    }
    case ScaleFamily::smallest: return dtype == Dtype::e8m0 ? 0 : 1;
    case ScaleFamily::largest:
      return dtype == Dtype::e8m0 ? 0xFE : dtype == Dtype::f8e4m3 ? 0x7E : 0x7BFF;
    case ScaleFamily::zero: return draw.word(0) % 4 == 0 ? 0 : power(0);
    case ScaleFamily::nan:
      if (draw.word(0) % 16 != 0) return power(static_cast<int>(draw.word(1) % 3));
      return dtype == Dtype::e8m0 ? 0xFF : dtype == Dtype::f8e4m3 ? 0x7F : 0x7E00;
    default: return power(0);
  }
}

int draw_zero(const Case& c, Index t, Index n) {
  const Draw draw(c.seed, Stream::zeros, 0, 0, t, n);
  const bool wide = traits(c.product.format).bits == 8;
  switch (c.product.zeros) {
    case ZeroFamily::symmetric: return wide ? 0 : 8;
    case ZeroFamily::edges: {
      static constexpr int of_int8[] = {-128, -127, 0, 127}, of_int4[] = {0, 1, 8, 15};
      const std::uint32_t which = draw.word(0) % 4;
      return wide ? of_int8[which] : of_int4[which];
    }
    default: return static_cast<int>(draw.word(0) % (wide ? 256 : 16)) - (wide ? 128 : 0);
  }
}

LowBitMatrix draw_weights(const Case& c, Surroundings around) {
  const ProductSpec& p = c.product;
  const LowBitTraits& traits_of = traits(p.format);
  if (p.weights == Weights::quantized)
    return quantize(
        p.format, p.k, p.n, p.group_size(),
        [&](Index k, Index n) { return original_weight(c, k, n); }, around);
  LowBitMatrix w(p.format, p.k, p.n, p.group_size(), around);
  const Index group = p.group_size() > 0 ? p.group_size() : p.k;
  if (p.format == LowBit::nvfp4)
    w.set_tensor_scale(static_cast<float>(
        std::ldexp(1 + 0.5 * Draw(c.seed, Stream::scales, 1, 0, 0, 0).unit(), -3)));
  for (Index n = 0; n < p.n; ++n) {
    for (Index t = 0; t < w.view().groups(); ++t) {
      w.set_scale(t, n, draw_scale(c, t, n));
      if (traits_of.integer) w.set_zero(t, n, draw_zero(c, t, n));
    }
    if (p.format == LowBit::fp4_sparse) {
      for (Index quad = 0; 4 * quad < p.k; ++quad) {
        const auto which = Draw(c.seed, Stream::zeros, 0, 0, quad, n).word(0) % 6;
        constexpr int firsts[] = {0, 0, 0, 1, 1, 2}, seconds[] = {1, 2, 3, 2, 3, 3};
        w.set_kept(quad, n, firsts[which], seconds[which],
                   draw_code(c, 4 * quad + firsts[which], n, 0),
                   draw_code(c, 4 * quad + seconds[which], n, 0));
      }
      continue;
    }
    for (Index k = 0; k < p.k; ++k)
      w.set_code(k, n, draw_code(c, k, n, traits_of.integer ? draw_zero(c, k / group, n) : 0));
  }
  return w;
}

}  // namespace

double original_weight(const Case& c, Index k, Index n) {
  // Columns have different magnitudes, so that scales differ, and now and then there is an outlier.
  const Draw draw(c.seed, Stream::codes, 0, 0, k, n);
  return round_to(Dtype::f32, draw.normal() * std::ldexp(0.02, static_cast<int>(n % 5)) *
                                  (draw.word(2) % 256 == 0 ? 8 : 1));
}

ProductInputs::ProductInputs(const Case& c, Surroundings around_) : around(around_) {
  const ProductSpec& p = c.product;
  problem.m = p.m;
  problem.n = p.n;
  problem.k = p.k;
  auto value_of = [&](Index m, Index k) {
    const Position at{0, 0, m, k};
    return value(c.values, Draw(c.seed, Stream::a, at), at, c.dtype, p.k);
  };
  if (p.a_format) {
    a_low = quantize(
        *p.a_format, p.k, p.m, traits(*p.a_format).group,
        [&](Index k, Index m) { return round_to(c.dtype, value_of(m, k)); }, around);
    problem.a_low = a_low.view();
  } else {
    const Extents shape{1, 1, p.m, p.k};
    a = Tensor(c.dtype, shape, make_layout(c.q_layout, shape, 1), around);
    problem.a = a.view();
    // The storage between the rows holds NaN, because it must never be read.
    for (Index e = 0; e < static_cast<Index>(a.size_in_bytes()) * 8 / format(c.dtype).bits; ++e)
      store(problem.a, e, std::nan(""));
    for (Index m = 0; m < p.m; ++m)
      for (Index k = 0; k < p.k; ++k) store(problem.a, problem.a.at(0, 0, m, k), value_of(m, k));
    for (const Poke& poke : c.pokes)
      store(problem.a, problem.a.at(0, 0, poke.position[2], poke.position[3]), poke.value);
  }
  w = draw_weights(c, around);
  problem.w = w.view();
}

ProductInputs::ProductInputs(const ProductInputs& other)
    : around(other.around), a(other.a), a_low(other.a_low), w(other.w), problem(other.problem) {
  if (problem.a) problem.a = a.view();
  else problem.a_low = a_low.view();
  problem.w = w.view();
}

}  // namespace assay
