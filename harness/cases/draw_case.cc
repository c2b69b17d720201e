#include "harness/cases/draw_case.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "harness/cases/shrink.h"
#include "harness/work.h"
#include "kernels/simd/targets.h"

namespace assay {
namespace {

constexpr Dtype dtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16};
constexpr Index tile_edges[] = {0,   1,   2,   3,   7,   8,   9,   15,  16,  17,  31,  32,
                                33,  63,  64,  65,  95,  96,  97,  127, 128, 129, 191, 192,
                                193, 255, 256, 257, 383, 384, 511, 512, 513, 577};

Index near(Choices& in, Index most) { return std::min(in.of(tile_edges), most); }

// Draws a value at the edge of a dtype, or one that gives trouble together with such values.
double edge_value(Choices& in, Dtype dtype) {
  const Format& f = format(dtype);
  switch (in.below(9)) {
    case 0: return std::numeric_limits<double>::quiet_NaN();
    case 1: return std::numeric_limits<double>::infinity();
    case 2: return -std::numeric_limits<double>::infinity();
    case 3: return f.max_finite;
    case 4: return -f.max_finite;
    case 5: return round_to(dtype, 0x1p-120);
    case 6: return -0.0;
    case 7: return round_to(dtype, 30000);
    default: return round_to(dtype, static_cast<double>(in.between(-100, 100)) / 8);
  }
}

Poke draw_poke(Choices& in, const Case& c) {
  Poke p;
  if (c.operation == Operation::product) {
    p.tensor = 'a';
    p.position = {0, 0, in.between(0, std::max<Index>(0, c.product.m - 1)),
                  in.between(0, c.product.k - 1)};
    p.value = edge_value(in, c.dtype);
    return p;
  }
  const AttentionShape& s = c.shape;
  constexpr char tensors[] = {'q', 'k', 'v', 'm', 'g'};
  p.tensor = in.of(tensors);
  const bool of_rows = p.tensor == 'q' || p.tensor == 'm' || p.tensor == 'g';
  const Index columns = p.tensor == 'm'                      ? s.keys
                        : p.tensor == 'v' || p.tensor == 'g' ? s.value_dim
                                                             : s.dim;
  const Extents shape{s.batch, of_rows ? s.query_heads : s.kv_heads, of_rows ? s.rows : s.keys,
                      columns};
  for (std::size_t axis = 0; axis < 4; ++axis)
    p.position[axis] = in.between(0, std::max<Index>(0, shape[axis] - 1));
  p.value = edge_value(in, c.dtype);
  return p;
}

void draw_product(Choices& in, Case& c) {
  ProductSpec& p = c.product;
  switch (in.below(12)) {
    case 0: p.m = in.between(0, 66); break;
    case 1: p.n = in.between(1, 90); break;
    case 2: p.k = in.between(1, 300); break;
    case 3: p.k = std::max<Index>(1, near(in, 300)); break;
    case 4:
      p.format = in.any<LowBit>();
      p.group.reset();
      p.scales = ScaleFamily::unit;
      p.zeros = ZeroFamily::random;
      break;
    case 5: p.group = 8 * in.between(0, 12); break;
    case 6:
      p.a_format =
          in.flag()
              ? std::optional(in.of({LowBit::mxfp4, LowBit::nvfp4, LowBit::f8e4m3, LowBit::f8e5m2}))
              : std::nullopt;
      break;
    case 7: p.weights = in.any<Weights>(); break;
    case 8: p.scales = in.any<ScaleFamily>(); break;
    case 9: p.zeros = in.any<ZeroFamily>(); break;
    case 10: std::swap(p.m, p.n); break;
    default: p.n = std::max<Index>(1, near(in, 90)); break;
  }
}

MaskPattern none_or_boolean(Choices& in) {
  constexpr auto& booleans = patterns_of<MaskKind::boolean>;
  const std::uint64_t which = in.below(booleans.size() + 1);
  return which == 0 ? MaskPattern::none : booleans[which - 1];
}

// Draws a feature of attention.
void draw_feature(Choices& in, Case& c) {
  AttentionShape& s = c.shape;
  const auto key = [&] { return in.between(0, s.keys); };
  switch (in.below(24)) {
    case 0: c.causal = !c.causal; break;
    case 1: c.offset = {in.of({OffsetSpec::Kind::fixed, OffsetSpec::Kind::end}), 0}; break;
    case 2: c.offset = {OffsetSpec::Kind::fixed, in.between(-20, 200)}; break;
    case 3: c.window_left = in.between(-1, 70); break;
    case 4: c.window_right = in.between(-1, 70); break;
    case 5: c.keep.pattern = none_or_boolean(in); break;
    case 6:
      c.bias.pattern =
          in.flag() ? in.of(std::span(patterns_of<MaskKind::additive>)) : MaskPattern::none;
      break;
    case 7: c.finite_min_masks = !c.finite_min_masks; break;
    case 8: c.keep.varies[in.below(4)] ^= true; break;
    case 9: c.bias.varies[in.below(4)] ^= true; break;
    case 10:
      c.lengths.clear();
      for (Index b = 0; b < s.batch; ++b) c.lengths.push_back(key());
      break;
    case 11:
      c.starts.clear();
      for (Index b = 0; b < s.batch; ++b) c.starts.push_back(key());
      break;
    case 12: c.lengths.clear(), c.starts.clear(); break;
    case 13: c.documents = {in.between(1, 30), in.between(1, 30)}; break;
    case 14: c.documents.clear(); break;
    case 15: c.alibi = !c.alibi; break;
    case 16:
      c.sink =
          in.flag() ? std::optional(static_cast<float>(in.between(-40, 40)) / 2) : std::nullopt;
      break;
    case 17: c.softcap = static_cast<float>(in.of({0.0f, 0.5f, 1.0f, 5.0f, 50.0f})); break;
    case 18:
      c.scale =
          in.flag()
              ? std::optional(in.of({0.0f, 1e-45f, 0.01f, 0.3f, 1.5f, 10.0f, 1e10f, -0.3f, -10.0f}))
              : std::nullopt;
      break;
    case 19: c.dropout = in.of({0.0f, 0.1f, 0.5f, 0.9f}), c.dropout_seed = in.below(100); break;
    case 20: c.hidden = in.any<Hidden>(); break;
    case 21: (in.flag() ? c.q_layout : c.o_layout) = in.any<LayoutKind>(); break;
    case 22: (in.flag() ? c.k_layout : c.v_layout) = in.any<LayoutKind>(); break;
    default: c.offset = {OffsetSpec::Kind::end, 0}; break;
  }
}

void draw_extent(Choices& in, Case& c) {
  AttentionShape& s = c.shape;
  switch (in.below(11)) {
    case 0: s.batch = in.between(1, 3); break;
    case 1: s.kv_heads = in.between(1, 3), s.query_heads = s.kv_heads * in.between(1, 4); break;
    case 2: s.rows = in.between(1, 40); break;
    case 3: s.keys = in.between(1, 80); break;
    case 4: s.rows = std::max<Index>(1, near(in, 200)); break;
    case 5: s.keys = std::max<Index>(1, near(in, 600)); break;
    case 6: s.dim = std::max<Index>(1, near(in, 193)); break;
    case 7: s.value_dim = std::max<Index>(1, near(in, 193)); break;
    case 8: std::swap(s.rows, s.keys); break;
    // The numbers of keys lie on either side of one, two and three splits of a decode call.
    case 9:
      s.rows = in.between(1, 4),
      s.keys = in.of<Index>({511, 512, 513, 577, 1023, 1024, 1025, 1100, 1536, 1537});
      break;
    default: std::swap(s.dim, s.value_dim); break;
  }
}

void draw_cache(Choices& in, Case& c) {
  CacheSpec& k = c.cache;
  switch (in.below(6)) {
    case 0: k.kind = in.of(std::span(values_of<CacheSpec::Kind>).subspan(1)); break;  // any cache
    case 1: k.page = in.between(1, 20); break;
    case 2:
      k.dtype =
          in.of({Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f4e2m1});
      if (format(*k.dtype).bits > 8) k.group = 0;
      break;
    case 3: k.group = in.between(0, 40); break;
    case 4:
      k.chunks.clear();
      for (Index n = in.between(0, 3); n > 0; --n) k.chunks.push_back(in.between(1, 20));
      break;
    default: k.rank = in.between(1, 40), k.rotary = in.between(0, 9); break;
  }
}

void draw_anything(Choices& in, Case& c, CaseKind kind) {
  switch (in.below(10)) {
    case 0: c.dtype = in.of(dtypes); break;
    case 1: c.out = in.flag() ? std::optional(in.of(dtypes)) : std::nullopt; break;
    case 2: c.scores = kind == CaseKind::product ? c.scores : in.any<Scores>(); break;
    case 3: c.values = in.any<Values>(); break;
    case 4: c.seed = in.below(1u << 16); break;
    case 5: c.threads = in.between(1, 3); break;
    case 6: {
      const std::vector<std::string> targets = kernels::runnable_targets();
      const std::uint64_t which = in.below(targets.size() + 1);
      c.target = which < targets.size() ? targets[which] : "";
      break;
    }
    case 7:
      if (in.flag() && !c.pokes.empty()) c.pokes.pop_back();
      else if (c.pokes.size() < 4) c.pokes.push_back(draw_poke(in, c));
      break;
    case 8:
      if (kind == CaseKind::backward && in.flag()) c.d_o_layout = in.any<LayoutKind>();
      else if (kind == CaseKind::backward && in.flag()) c.gradient = in.any<Values>();
      else if (kind == CaseKind::backward && c.lse_gradient) c.lse_gradient.reset();
      else if (kind == CaseKind::backward) c.lse_gradient = in.any<Values>();
      else if (kind == CaseKind::product)
        (in.flag() ? c.q_layout : c.o_layout) = in.of(
            {LayoutKind::bhsd, LayoutKind::padded, LayoutKind::strided, LayoutKind::reversed});
      break;
    default: c.seed += 1; break;
  }
}

double work_of(const Case& c) {
  return multiply_adds(c) * (c.operation == Operation::backward ? 4 : 1);
}

bool is_allowed(const Case& c, double budget) {
  try {
    check_case(c);
  } catch (const CaseError&) {
    return false;
  }
  return affordable(c) && work_of(c) <= budget;
}

// The case that remains when its line is read back. A dropout seed without dropout, for example, is
// lost.
Case as_its_line(const Case& c) { return parse_case(print_case(c)); }

// Makes one change of any kind. Returns true if the result is a case.
bool change(Choices& in, Case& c, CaseKind kind, double budget) {
  Case next = c;
  const std::uint64_t what = in.below(4);
  if (what == 0) draw_anything(in, next, kind);
  else if (kind == CaseKind::product) draw_product(in, next);
  else if (what == 1) draw_extent(in, next);
  else if (what == 2 && kind == CaseKind::cached) draw_cache(in, next);
  else draw_feature(in, next);
  fit_lists(next);
  if (!is_allowed(next, budget)) return false;
  c = std::move(next);
  return true;
}

Case plainest(CaseKind kind) {
  Case c;
  c.shape = {1, 1, 1, 4, 8, 8, 8};
  if (kind == CaseKind::backward) c.operation = Operation::backward;
  if (kind == CaseKind::product)
    c.operation = Operation::product, c.shape = {}, c.product.m = 2, c.product.n = 5;
  if (kind == CaseKind::cached)
    c.cache.kind = CacheSpec::Kind::paged, c.offset.kind = OffsetSpec::Kind::end, c.causal = true;
  return c;
}

}  // namespace

std::uint64_t Choices::below(std::uint64_t n) {
  std::uint64_t x = 0;
  for (std::uint64_t span = 1; span < n; span *= 256) {
    x = x * 256 + (bytes_.empty() ? 0 : bytes_.front());
    if (!bytes_.empty()) bytes_ = bytes_.subspan(1);
  }
  return x % n;
}

bool affordable(const Case& c) {
  if (c.threads > 16 || work_of(c) > most_work) return false;
  if (c.operation == Operation::product)
    return c.product.m <= 512 && c.product.n <= 4096 && c.product.k <= 8192;
  const AttentionShape& s = c.shape;
  if (std::ranges::any_of(s.pair_extents(), [](Index n) { return n > 8192; })) return false;
  const Index inputs = s.batch * s.kv_heads * s.keys * (s.dim + s.value_dim) *
                       (c.cache.kind == CacheSpec::Kind::latent ? c.cache.rank : 1);
  return static_cast<double>(inputs) <= most_work && (!c.cache || c.cache.page <= 4096);
}

Case draw_case(CaseKind kind, Choices in, double budget) {
  Case c = plainest(kind);
  // Extents and families come first, then features. A change that does not go with the rest is
  // dropped.
  for (Index n = in.between(2, 9); n > 0; --n) {
    if (kind == CaseKind::product) {
      change(in, c, kind, budget);
      continue;
    }
    Case next = c;
    draw_extent(in, next);
    fit_lists(next);
    if (is_allowed(next, budget)) c = std::move(next);
  }
  for (Index n = in.between(0, 14); n > 0; --n) change(in, c, kind, budget);
  return as_its_line(c);
}

Case move_case(const Case& c, CaseKind kind, Choices in) {
  Case next = c;
  // A case that has more work already may keep it.
  const double budget = in.below(32) == 31 ? most_work : std::max(little_work, work_of(c));
  for (int attempt = 0; attempt < 8; ++attempt)
    if (change(in, next, kind, budget) && print_case(next) != print_case(c))
      return as_its_line(next);
  return draw_case(kind, in, budget);
}

Case cross_cases(const Case& a, const Case& b, CaseKind kind, Choices in) {
  Case c = a;
  const double budget = std::max(work_of(a), work_of(b));
  const auto take = [&](const auto& assign) {
    if (!in.flag()) return;
    Case next = c;
    assign(next);
    fit_lists(next);
    if (is_allowed(next, budget)) c = std::move(next);
  };
  take([&](Case& n) {
    n.shape = b.shape, n.product.m = b.product.m, n.product.n = b.product.n,
    n.product.k = b.product.k;
  });
  take([&](Case& n) { n.dtype = b.dtype, n.out = b.out; });
  take([&](Case& n) { n.causal = b.causal, n.offset = b.offset; });
  take([&](Case& n) { n.window_left = b.window_left, n.window_right = b.window_right; });
  take([&](Case& n) { n.keep = b.keep; });
  take([&](Case& n) { n.bias = b.bias, n.finite_min_masks = b.finite_min_masks; });
  take([&](Case& n) { n.lengths = b.lengths, n.starts = b.starts; });
  take([&](Case& n) { n.documents = b.documents; });
  take([&](Case& n) {
    n.alibi = b.alibi, n.sink = b.sink, n.softcap = b.softcap, n.scale = b.scale;
  });
  take([&](Case& n) { n.dropout = b.dropout, n.dropout_seed = b.dropout_seed; });
  take([&](Case& n) { n.scores = b.scores; });
  take([&](Case& n) { n.values = b.values, n.gradient = b.gradient; });
  take([&](Case& n) { n.lse_gradient = b.lse_gradient; });
  take([&](Case& n) { n.hidden = b.hidden; });
  take([&](Case& n) { n.pokes = b.pokes; });
  take([&](Case& n) { n.cache = b.cache; });
  take([&](Case& n) { n.product = b.product; });
  take([&](Case& n) {
    n.q_layout = b.q_layout, n.k_layout = b.k_layout, n.v_layout = b.v_layout,
    n.o_layout = b.o_layout, n.d_o_layout = b.d_o_layout;
  });
  return c == a ? move_case(a, kind, in) : as_its_line(c);
}

CaseKind kind_of(const Case& c) {
  if (c.operation == Operation::product) return CaseKind::product;
  if (c.operation == Operation::backward) return CaseKind::backward;
  return c.cache ? CaseKind::cached : CaseKind::forward;
}

Case case_of_bytes(CaseKind kind, std::span<const unsigned char> bytes) {
  try {
    Case c = parse_case({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (kind_of(c) == kind && affordable(c)) return c;
  } catch (const CaseError&) {
  }
  return draw_case(kind, Choices(bytes));
}

}  // namespace assay
