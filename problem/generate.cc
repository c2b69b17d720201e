#include "problem/generate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "problem/cached_tokens.h"
#include "problem/draw.h"
#include "problem/parallel.h"

namespace assay {
namespace {

Index ceil_sqrt(Index n) {
  Index r = 0;
  while (r * r < n) ++r;
  return r;
}

// The least power of two C with 2 * scale * C > 104. A score that differs by one bit of the code is
// then so far below the maximum (0) that its weight is 0 even with gradual underflow (e^-104 <
// 2^-150). Under a tiny scale no C of the dtype is large enough. Then it is the largest C whose
// sums over a code stay finite.
double subset_gap(double scale, int code_bits, double largest) {
  double c = 1;
  while (!(2 * scale * c > 104) && 2 * c * std::max(code_bits, 1) <= largest) c *= 2;
  return c;
}

// What the families of scores need to know of a case.
struct ScoresContext {
  const Case& c;
  double scale;          // its magnitude
  double sign;           // of the scale: Q has it too, so that scores do not depend on it
  double root;           // about sqrt(D), which cancels the default scale
  double scale_of_ones;  // the score of two rows of ones, above 0 also if the scale is not
  double large;          // an element of Q whose square, summed over D, is about 60,000
  int code_bits;
};

double query(const ScoresContext& x, const Position& p) {
  const Case& c = x.c;
  const Draw draw(c.seed, Stream::q, p);
  const double n = draw.normal();
  switch (c.scores) {
    case Scores::uniform: return draw.unit();
    case Scores::tiny: return 0x1p-10 * n;
    case Scores::huge: return 4 * n;
    case Scores::negative: return 1 + 0.5 * draw.unit();
    case Scores::growing:
    case Scores::falling: return p.d == 0 ? 8 : n;
    case Scores::tile_peaks: return p.d == 0 ? 6 : n;
    case Scores::near_overflow: return draw.sign() * max_of(c.dtype) * (0.5 + 0.5 * draw.unit());
    case Scores::large_scores:
    case Scores::far_negative:
    case Scores::far_positive: return x.large;
    case Scores::subnormal:
      return draw.sign() * min_subnormal(c.dtype) * static_cast<double>(draw.word(0) % 64);
    case Scores::signed_zeros: return draw.word(0) % 8 == 0 ? draw.sign() : draw.sign() * 0.0;
    case Scores::ramp:
      return static_cast<double>(p.i + 1) * 1e-3 + static_cast<double>(p.d + 1) * 1e-6;
    case Scores::ties:
      return 1.5 * Draw(c.seed, Stream::k, p.b, p.h / c.shape.group(), 0, p.d).normal();
    case Scores::equal: return 0;
    case Scores::cancel:
      // Two neighbouring elements are equal.
      return 20 * Draw(c.seed, Stream::q, p.b, p.h, p.i, p.d / 2).normal();
    case Scores::heavy_tail: return std::clamp(n * n * n * 2, -60.0, 60.0);
    case Scores::key_sink: return p.d == 0 ? 5 : n;
    case Scores::flat: return 0.01 * n;
    case Scores::subset:
    case Scores::gather: {
      // Key j holds the bits of j as +-1, and a constant 1. The query asks for some bits of a
      // target key by +-C, and subtracts C for each of them. A key that matches scores exactly 0,
      // and any other key scores -2C or less.
      const Draw row(c.seed, Stream::q, p.b, p.h, p.i, -1);
      const auto target =
          static_cast<Index>(row.word(0) % static_cast<std::uint64_t>(std::max<Index>(
                                               1, std::min(p.i + 1, c.shape.keys))));
      const std::uint32_t bits_all = (1u << x.code_bits) - 1;
      const std::uint32_t asked =
          c.scores == Scores::gather ? bits_all : row.word(1) & row.word(2) & bits_all;
      const double gap = subset_gap(x.scale, x.code_bits, max_of(c.dtype));
      if (p.d < x.code_bits) return asked >> p.d & 1 ? (target >> p.d & 1 ? gap : -gap) : 0;
      return p.d == x.code_bits ? -gap * std::popcount(asked) : 0;
    }
    default: return n;
  }
}

double key(const ScoresContext& x, const Position& p) {
  const Case& c = x.c;
  const Draw draw(c.seed, Stream::k, p);
  const double n = draw.normal();
  const double last = static_cast<double>(c.shape.keys);
  const double j = static_cast<double>(p.i);
  switch (c.scores) {
    case Scores::uniform: return draw.unit();
    case Scores::huge: return 4 * n;
    // Every score is below -104, whatever D and the scale are, as far as the dtype reaches. The
    // maximum of a row is far below zero, so a wrong score of 0 would dominate the row, and e^-LSE
    // overflows.
    case Scores::negative: {
      return -std::min(
          (106 + 2 * draw.unit() * std::max(x.scale_of_ones, x.root)) / x.scale_of_ones,
          max_of(c.dtype) / 16);
    }
    case Scores::growing: return p.d == 0 ? 60 * (j + 1) / last * x.root / 8 : n;
    case Scores::falling: return p.d == 0 ? 60 * (last - j) / last * x.root / 8 : n;
    case Scores::tile_peaks:
      return p.d == 0 && (p.i % 16 == 0 || p.i % 16 == 15)
                 ? std::min(60.0, 4 * (j / 16 + 1)) * x.root / 6
                 : n;
    case Scores::near_overflow: return n / max_of(c.dtype);
    // Products q.k are near 60,000, before the scale.
    case Scores::large_scores: return x.large * (1 - 0.002 * draw.unit());
    // Scores are near -200,000 or 200,000, as far as the dtype reaches: below and above the numbers
    // that stand for an infinity by mistake. With more terms, fp32 sums round so much that no bound
    // would judge scores as large, so they are smaller, but beyond 50,000.
    case Scores::far_negative:
    case Scores::far_positive: {
      const double score = std::clamp(1.2e7 / static_cast<double>(c.shape.dim), 55000.0, 2e5),
                   far = std::min(score / (x.scale_of_ones * x.large), max_of(c.dtype) / 16);
      return (c.scores == Scores::far_negative ? -far : far) * (1 - 0.002 * draw.unit());
    }
    case Scores::signed_zeros: return draw.word(0) % 8 == 0 ? draw.sign() : draw.sign() * 0.0;
    case Scores::ramp: return (j + 1) * 1e-3 + static_cast<double>(p.d + 1) * 1e-6;
    case Scores::ties: return p.i % 3 == 1 ? Draw(c.seed, Stream::k, p.b, p.h, 0, p.d).normal() : n;
    case Scores::cancel: {
      const double pair = 20 * Draw(c.seed, Stream::k, p.b, p.h, p.i, p.d / 2).normal();
      return p.d % 2 == 0 ? pair : -pair * (1 - 0.01 * draw.unit());
    }
    case Scores::heavy_tail: return std::clamp(n * n * n * 2, -60.0, 60.0);
    case Scores::key_sink: return p.d == 0 && p.i == 0 ? 10 * x.root / 5 : n;
    case Scores::subset:
    case Scores::gather:
      if (p.d < x.code_bits) return p.i >> p.d & 1 ? 1 : -1;
      return p.d == x.code_bits ? 1 : 0;
    default: return n;
  }
}

double bias_value(const Case& c, const Position& p) {
  const Draw draw(c.seed, Stream::bias, p);
  switch (c.bias.pattern) {
    case MaskPattern::minus_infinity:
      return draw.chance(0.3) ? -std::numeric_limits<double>::infinity() : draw.normal();
    case MaskPattern::blocks:
      return (p.i / 16 + p.d / 16) % 2 == 1 ? -std::numeric_limits<double>::infinity() : 0;
    case MaskPattern::minimum: return draw.chance(0.3) ? -max_of(c.dtype) : 0;
    case MaskPattern::minimum_rows: return p.i % 3 == 1 ? -max_of(c.dtype) : 0;
    case MaskPattern::large: return draw.chance(0.3) ? -10000 : 2 * draw.normal();
    case MaskPattern::constant: return 3;
    default: return 2 * draw.normal();
  }
}

bool keep_value(const Case& c, const Position& p) {
  const Draw draw(c.seed, Stream::keep, p);
  switch (c.keep.pattern) {
    case MaskPattern::random: return draw.chance(0.7);
    case MaskPattern::empty_rows: return p.i % 3 != 1 && draw.chance(0.8);
    case MaskPattern::tiles: return (p.i / 16 + p.d / 16) % 2 == 1;
    case MaskPattern::future: return p.d <= p.i;
    default: return true;
  }
}

// Calls body(position) for every distinct element: on an axis of stride 0 only one is visited.
template <class Body>
void for_each_element(const Extents& shape, const Extents& stride, const Body& body) {
  Extents distinct = shape;
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (stride[axis] == 0) distinct[axis] = std::min<Index>(1, distinct[axis]);
  // Threads take longer to wake up than a few elements take to make.
  constexpr Index few = 16384;
  const Index rows = distinct[0] * distinct[1] * distinct[2];
  parallel_for(rows, rows * distinct[3] <= few ? 1 : 0, [&](Index row) {
    const Index i = row % distinct[2], h = row / distinct[2] % distinct[1],
                b = row / distinct[2] / distinct[1];
    for (Index d = 0; d < distinct[3]; ++d) body(Position{b, h, i, d});
  });
}

template <class Rule>
void fill(const TensorView& t, const Rule& rule) {
  for_each_element(t.shape, t.stride,
                   [&](const Position& p) { store(t, t.at(p.b, p.h, p.i, p.d), rule(p)); });
}

std::vector<Index> per_batch(const std::vector<Index>& list, Index batch) {
  if (list.size() == 1) return std::vector<Index>(usize(batch), list[0]);
  return list;
}

// The number of the document at every position, the same for each batch.
std::vector<std::int32_t> segments(const std::vector<Index>& documents, Index batch, Index length) {
  std::vector<std::int32_t> ids(usize(batch * length));
  for (Index i = 0, doc = 0, end = documents[0]; i < length; ++i) {
    while (i >= end && doc + 1 < static_cast<Index>(documents.size()))
      end += documents[usize(++doc)];
    for (Index b = 0; b < batch; ++b) ids[usize(b * length + i)] = static_cast<std::int32_t>(doc);
  }
  return ids;
}

Extents broadcast_strides(const MaskSpec& m, Extents shape) {
  Extents stride{};
  Index step = 1;
  for (std::size_t axis = 4; axis-- > 0;) {
    if (!m.varies[axis]) continue;
    stride[axis] = step;
    step *= shape[axis];
  }
  return stride;
}

Tensor contiguous(Dtype dtype, const Extents& shape, Surroundings around) {
  return Tensor(dtype, shape, make_layout(LayoutKind::bhsd, shape, 1), around);
}

// Fills tokens of rank + rotary elements, up-projections with a gain of about 1, and the K and V
// that they mean.
void fill_latent(const Case& c, Inputs& in) {
  const AttentionShape& s = c.shape;
  const Index rank = c.cache.rank, rotary = c.cache.rotary, plain = s.dim - rotary;
  in.token_k = contiguous(c.dtype, {s.batch, 1, s.keys, rank}, in.around);
  in.token_v = contiguous(c.dtype, {s.batch, 1, s.keys, rotary}, in.around);
  in.up_k = contiguous(c.dtype, {1, s.kv_heads, plain, rank}, in.around);
  in.up_v = contiguous(c.dtype, {1, s.kv_heads, s.value_dim, rank}, in.around);
  auto normal = [&](Stream stream, double gain) {
    return
        [&c, stream, gain](const Position& p) { return gain * Draw(c.seed, stream, p).normal(); };
  };
  const double gain = 1 / static_cast<double>(ceil_sqrt(rank));
  fill(in.token_k.view(), normal(Stream::latent, 1));
  fill(in.token_v.view(), normal(Stream::rotary, 1));
  fill(in.up_k.view(), normal(Stream::up_k, gain));
  fill(in.up_v.view(), normal(Stream::up_v, gain));
  in.k_scales = scales_of_tokens(c, in.token_k.view(), in.around);
  in.v_scales = scales_of_tokens(c, in.token_v.view(), in.around);
  const Tensor latent = values_of_tokens(c, in.token_k.view(), in.k_scales.view(), in.around),
               turned = values_of_tokens(c, in.token_v.view(), in.v_scales.view(), in.around);
  ProjectedAttention& a = in.problem;
  const Extents k_shape = s.k_extents(), v_shape = s.v_extents();
  in.k = contiguous(Dtype::f64, k_shape, in.around);
  in.v = contiguous(Dtype::f64, v_shape, in.around);
  in.k_absolute = contiguous(Dtype::f64, k_shape, in.around);
  in.v_absolute = contiguous(Dtype::f64, v_shape, in.around);
  a.k = in.k.view();
  a.v = in.v.view();
  a.projection = {in.k_absolute.view(), in.v_absolute.view(), rank, plain};
  // The tensors are decoded once, because the sums read every element many times.
  auto decoded = [](const TensorView& t) {
    std::vector<double> x(usize(element_count(t.shape)));
    for (std::size_t e = 0; e < x.size(); ++e) x[e] = load(t, static_cast<Index>(e));
    return x;
  };
  const std::vector<double> c_of = decoded(latent.view()), up_k = decoded(in.up_k.view()),
                            up_v = decoded(in.up_v.view());
  auto project = [&](const double* up, const double* token, Index at, const TensorView& to,
                     const TensorView& absolute) {
    double sum = 0, magnitude = 0;
    for (Index r = 0; r < rank; ++r) {
      const double product = up[r] * token[r];
      sum += product;
      magnitude += std::fabs(product);
    }
    store(to, at, sum);
    store(absolute, at, magnitude);
  };
  parallel_for(s.batch * s.kv_heads * s.keys, 0, [&](Index position) {
    const Index j = position % s.keys, g = position / s.keys % s.kv_heads,
                b = position / s.keys / s.kv_heads;
    const double* token = c_of.data() + (b * s.keys + j) * rank;
    for (Index d = 0; d < plain; ++d)
      project(up_k.data() + (g * plain + d) * rank, token, a.k.at(b, g, j, d), a.k,
              a.projection.k_absolute);
    for (Index d = 0; d < s.value_dim; ++d)
      project(up_v.data() + (g * s.value_dim + d) * rank, token, a.v.at(b, g, j, d), a.v,
              a.projection.v_absolute);
    for (Index d = 0; d < rotary; ++d) {
      const double x = load(turned.view(), turned.view().at(b, 0, j, d));
      store(a.k, a.k.at(b, g, j, plain + d), x);
      store(a.projection.k_absolute, a.projection.k_absolute.at(b, g, j, plain + d), std::fabs(x));
    }
  });
}

void set_numbers(const Case& c, Attention& a) {
  a.scale = c.scale.value_or(default_scale(c.shape.dim));
  a.softcap = c.softcap;
  a.causal = c.causal;
  a.window_left = c.window_left;
  a.window_right = c.window_right;
  a.finite_min_masks = c.finite_min_masks;
  a.dropout = c.dropout;
  a.dropout_seed = c.dropout_seed;
}

void set_lists(const Case& c, Attention& a) {
  const AttentionShape& s = c.shape;
  a.key_lengths = per_batch(c.lengths, s.batch);
  a.key_starts = per_batch(c.starts, s.batch);
  if (c.offset != OffsetSpec{})
    for (Index b = 0; b < s.batch; ++b)
      a.offset.push_back(c.offset.kind == OffsetSpec::Kind::fixed ? c.offset.value
                         : c.offset.kind == OffsetSpec::Kind::end
                             ? s.keys - s.rows
                             : a.key_lengths[usize(b)] - s.rows);
  if (c.alibi) a.alibi_slopes = default_alibi_slopes(s.query_heads);
  if (c.sink)
    for (Index h = 0; h < s.query_heads; ++h)
      a.sink.push_back(*c.sink + static_cast<float>(h) * 0.25f);
  if (!c.documents.empty()) {
    a.query_segment = segments(c.documents, s.batch, s.rows);
    a.key_segment = segments(c.documents, s.batch, s.keys);
  }
}

// Which keys of K or V lie in the padding, and what these keys hold.
class Padding {
 public:
  Padding(const Case& c, const Attention& a) : c_(c), a_(a) {}

  double hidden_or(const TensorView& t, const Position& p, double visible) const {
    return c_.hidden == Hidden::generated || !is_hidden(t, p) ? visible : hidden();
  }

 private:
  bool is_padding(std::size_t b, Index j) const {
    return (!a_.key_lengths.empty() && j >= a_.key_lengths[b]) ||
           (!a_.key_starts.empty() && j < a_.key_starts[b]);
  }
  // Where batches share their keys, only the padding of all batches is hidden.
  bool is_hidden(const TensorView& t, const Position& p) const {
    bool hidden = is_padding(usize(p.b), p.i);
    if (t.stride[0] == 0)
      for (std::size_t b = 0; b < usize(c_.shape.batch); ++b) hidden = hidden && is_padding(b, p.i);
    return hidden;
  }
  double hidden() const {
    constexpr double inf = std::numeric_limits<double>::infinity();
    return c_.hidden == Hidden::nan        ? std::numeric_limits<double>::quiet_NaN()
           : c_.hidden == Hidden::infinity ? inf
                                           : max_of(c_.dtype) / 2;
  }

  const Case& c_;
  const Attention& a_;
};

ScoresContext context_of(const Case& c, const Attention& a) {
  const AttentionShape& s = c.shape;
  const auto last_key = static_cast<std::uint64_t>(std::max<Index>(0, s.keys - 1));
  const Index bits = std::min<Index>({static_cast<Index>(std::bit_width(last_key)), s.dim - 1, 31});
  const auto scale = std::fabs(static_cast<double>(a.scale)),
             root = static_cast<double>(ceil_sqrt(s.dim));
  const double large = static_cast<double>(ceil_sqrt(60000 * 64 / s.dim)) / 8;
  return {c,
          scale,
          a.scale < 0 ? -1.0 : 1.0,
          root,
          std::max(scale * static_cast<double>(s.dim), 1e-30),
          large,
          static_cast<int>(bits)};
}

// dO and, where the case has it, dLSE.
void make_output_gradients(const Case& c, Inputs& in) {
  const AttentionShape& s = c.shape;
  // A packed tensor has room for Q, K and V only, so these are laid out otherwise.
  const LayoutKind given = c.d_o_layout.value_or(c.o_layout);
  const LayoutKind kind = given == LayoutKind::packed ? LayoutKind::bshd : given;
  const auto fill_with = [&](Tensor& t, Dtype dtype, const Extents& shape, Values family,
                             Stream stream) {
    t = Tensor(dtype, shape, make_layout(kind, shape, s.query_heads), in.around);
    fill(t.view(), [&](const Position& p) {
      return value(family, Draw(c.seed, stream, p), p, dtype, shape[3]);
    });
  };
  fill_with(in.d_o, c.dtype, s.o_extents(), c.gradient, Stream::d_o);
  if (c.lse_gradient)
    fill_with(in.d_lse, Dtype::f32, s.lse_extents(), *c.lse_gradient, Stream::d_lse);
}

// Q, K, V and, for gradients, dO and dLSE.
void make_tensors(const Case& c, Inputs& in) {
  const AttentionShape& s = c.shape;
  Attention& a = in.problem;
  const auto make = [&](LayoutKind kind, const Extents& shape) {
    const Index pack = s.query_heads + 2 * s.kv_heads;
    return Tensor(c.dtype, shape, make_layout(kind, shape, pack), in.around);
  };
  in.q = make(c.q_layout, s.q_extents());
  in.k = make(c.k_layout, s.k_extents());
  in.v = make(c.v_layout, s.v_extents());
  a.q = in.q.view();
  a.k = in.k.view();
  a.v = in.v.view();
  const ScoresContext context = context_of(c, a);
  const Padding padding(c, a);
  fill(a.q, [&](const Position& p) { return context.sign * query(context, p); });
  fill(a.k, [&](const Position& p) { return padding.hidden_or(a.k, p, key(context, p)); });
  fill(a.v, [&](const Position& p) {
    return padding.hidden_or(a.v, p,
                             value(c.values, Draw(c.seed, Stream::v, p), p, c.dtype, s.value_dim));
  });
  if (c.operation == Operation::backward) make_output_gradients(c, in);
}

// The number of elements of a mask, without the axes along which it broadcasts.
Index stored_elements(const MaskSpec& mask, const Extents& shape) {
  Index n = 1;
  for (std::size_t axis = 0; axis < 4; ++axis) n *= mask.varies[axis] ? shape[axis] : 1;
  return n;
}

void add_bias(const Case& c, Inputs& in) {
  const Extents shape = c.shape.pair_extents();
  const Layout layout{broadcast_strides(c.bias, shape), 0, stored_elements(c.bias, shape)};
  in.bias = Tensor(c.dtype, shape, layout, in.around);
  in.problem.bias = in.bias.view();
  fill(in.problem.bias, [&](const Position& p) { return bias_value(c, p); });
}

void add_keep(const Case& c, Inputs& in) {
  const Extents shape = c.shape.pair_extents();
  BoolView& view = in.problem.keep;
  view.stride = broadcast_strides(c.keep, shape);
  in.keep.resize(usize(std::max<Index>(stored_elements(c.keep, shape), 1)));
  view.data = in.keep.data();
  for_each_element(shape, view.stride, [&](const Position& p) {
    in.keep[usize(p.b * view.stride[0] + p.h * view.stride[1] + p.i * view.stride[2] +
                  p.d * view.stride[3])] = keep_value(c, p);
  });
}

// The tensor that a poke names by a letter.
TensorView poked(const Inputs& in, char name) {
  switch (name) {
    case 'q': return in.problem.q;
    case 'k': return in.problem.k;
    case 'v': return in.problem.v;
    case 'g': return in.d_o.view();
    default: return in.problem.bias;
  }
}

}  // namespace

Layout make_layout(LayoutKind kind, const Extents& s, Index heads_in_pack) {
  const auto [B, H, L, D] = s;
  switch (kind) {
    case LayoutKind::bshd: return {{L * H * D, D, H * D, 1}, 0, B * H * L * D};
    case LayoutKind::packed:
      return {{L * heads_in_pack * D, D, heads_in_pack * D, 1}, 0, B * L * heads_in_pack * D};
    case LayoutKind::padded: {
      const Index row = D + 5, head = L * row + 7, batch = H * head + 11;
      return {{batch, head, row, 1}, 3, B * batch + 3};
    }
    case LayoutKind::strided:
      return {{H * L * D * 2, L * D * 2, D * 2, 2}, 1, B * H * L * D * 2 + 1};
    case LayoutKind::shared_head: return {{L * D, 0, D, 1}, 0, B * L * D};
    case LayoutKind::shared_batch: return {{0, L * D, D, 1}, 0, H * L * D};
    case LayoutKind::distant: {
      // The rows, each with all heads, lie so far apart that the last ones lie beyond 2^32
      // elements. The storage is a mapping that takes memory only where it is written.
      const Index row = H * D + (Index{3} << 31) / std::max<Index>(1, B * L);
      return {{L * row, D, row, 1}, 0, B * L * row, true};
    }
    case LayoutKind::reversed:
      return {{H * L * D, L * D, -D, 1}, std::max<Index>(0, L - 1) * D, B * H * L * D};
    default: return {{H * L * D, L * D, D, 1}, 0, B * H * L * D};
  }
}

Attention described(const Case& c) {
  static std::uint8_t nothing;
  const AttentionShape& s = c.shape;
  Attention a;
  a.shape = s;
  set_numbers(c, a);
  set_lists(c, a);
  const auto view = [&](LayoutKind kind, const Extents& shape) {
    const Layout layout = make_layout(kind, shape, s.query_heads + 2 * s.kv_heads);
    return TensorView{&nothing, c.dtype, shape, layout.stride, layout.origin};
  };
  a.q = view(c.q_layout, s.q_extents());
  a.k = view(c.k_layout, s.k_extents());
  a.v = view(c.v_layout, s.v_extents());
  const Extents pairs = s.pair_extents();
  if (c.bias.pattern != MaskPattern::none)
    a.bias = {&nothing, c.dtype, pairs, broadcast_strides(c.bias, pairs), 0};
  if (c.keep.pattern != MaskPattern::none) {
    a.keep.data = &nothing;
    a.keep.stride = broadcast_strides(c.keep, pairs);
  }
  return a;
}

Inputs::Inputs(const Case& c, Surroundings around_) : around(around_) {
  problem.shape = c.shape;
  set_numbers(c, problem);
  set_lists(c, problem);
  make_tensors(c, *this);
  if (c.bias.pattern != MaskPattern::none) add_bias(c, *this);
  if (c.keep.pattern != MaskPattern::none) add_keep(c, *this);
  if (c.cache.kind == CacheSpec::Kind::latent) fill_latent(c, *this);
  for (const Poke& p : c.pokes) {
    const TensorView t = poked(*this, p.tensor);
    store(t, t.at(p.position[0], p.position[1], p.position[2], p.position[3]), p.value);
  }
  if (c.cache && c.cache.kind != CacheSpec::Kind::latent) {
    token_k = std::move(k);
    token_v = std::move(v);
    k_scales = scales_of_tokens(c, token_k.view(), around);
    v_scales = scales_of_tokens(c, token_v.view(), around);
    k = values_of_tokens(c, token_k.view(), k_scales.view(), around);
    v = values_of_tokens(c, token_v.view(), v_scales.view(), around);
    problem.k = k.view();
    problem.v = v.view();
    if (c.cache.scale == CacheScale::e8m0) return;
    k_absolute = magnitudes_of(problem.k, around);
    v_absolute = magnitudes_of(problem.v, around);
    problem.projection = {k_absolute.view(), v_absolute.view(), 1, 0};
  }
}

Inputs::Inputs(const Inputs& other)
    : around(other.around),
      q(other.q),
      k(other.k),
      v(other.v),
      bias(other.bias),
      d_o(other.d_o),
      d_lse(other.d_lse),
      token_k(other.token_k),
      token_v(other.token_v),
      up_k(other.up_k),
      up_v(other.up_v),
      k_absolute(other.k_absolute),
      v_absolute(other.v_absolute),
      k_scales(other.k_scales),
      v_scales(other.v_scales),
      keep(other.keep),
      problem(other.problem) {
  problem.q = q.view();
  problem.k = k.view();
  problem.v = v.view();
  problem.bias = bias.view();
  if (problem.keep) problem.keep.data = keep.data();
  problem.projection.k_absolute = k_absolute.view();
  problem.projection.v_absolute = v_absolute.view();
}

}  // namespace assay
