#include "problem/case.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <limits>

namespace assay {
namespace {

constexpr Index most = Index{1} << 40;

[[noreturn]] void refuse(const std::string& message) { throw CaseError(0, message); }

void require_range(std::string_view field, Index value, Index low, Index high) {
  if (value < low || value > high)
    refuse(fmt::format("{}={} is outside [{}, {}]", field, value, low, high));
}

// The product of extents. It is refused where it leaves 64 bits (with room for a factor of 16
// bytes).
Index checked_product(std::string_view what, std::initializer_list<Index> extents) {
  Index product = 1;
  for (Index e : extents)
    if (__builtin_mul_overflow(product, e, &product) ||
        product > std::numeric_limits<Index>::max() / 64)
      refuse(fmt::format("{}: a size overflows 64 bits", what));
  return product;
}

void check_list(std::string_view field, const std::vector<Index>& list, Index batch, Index keys) {
  if (list.empty()) return;
  if (list.size() != 1 && static_cast<Index>(list.size()) != batch)
    refuse(fmt::format("{} has {} entries; it takes 1 or b={}", field, list.size(), batch));
  for (Index n : list) require_range(field, n, 0, keys);
}

// Sequences with lengths of their own come in one call.
void check_cached_lengths(const Case& c) {
  if (c.offset.kind != OffsetSpec::Kind::lengths)
    refuse("cache=... with lengths: the rows are the last tokens of each sequence: offset=lengths");
  if (c.cache.kind == CacheSpec::Kind::latent) refuse("cache=latent with lengths");
  if (!c.starts.empty()) refuse("cache=... with lengths and starts");
  if (!c.cache.chunks.empty()) refuse("cache=... with lengths and chunks");
  if (*std::max_element(c.lengths.begin(), c.lengths.end()) != c.shape.keys)
    refuse(fmt::format("lengths with a cache: the longest sequence has all {} keys", c.shape.keys));
}

// f32 scales: of codes with at most 8 bits, whose tokens are f32 numbers.
void check_scales(const Case& c) {
  const CacheSpec& k = c.cache;
  if (k.scale == CacheScale::e8m0) return;
  const std::string store =
      fmt::format("store={}:{}", format(c.cache_dtype()).name, name_of(k.scale));
  if (format(c.cache_dtype()).bits > 8) refuse(store + ": only f8 and f4 have scales");
  if (k.kind == CacheSpec::Kind::latent) refuse(store + ": the scales of a latent cache are e8m0");
  if (c.dtype == Dtype::f64) refuse(store + " with dtype=f64: a token is f32, f16 or bf16");
  if (k.group > 0 && k.scale != CacheScale::f32)
    refuse(
        fmt::format("{} with groups of {}: a scale belongs to more than a group", store, k.group));
}

// K and V in one buffer have rows of one length, and no layout of their own.
void check_order(const Case& c) {
  if (c.cache.order == PageOrder::apart) return;
  const std::string pages = fmt::format("pages={}", name_of(c.cache.order));
  if (c.cache.kind != CacheSpec::Kind::paged) refuse(pages + " needs cache=paged");
  if (c.shape.dim != c.shape.value_dim)
    refuse(fmt::format("{}: K and V share rows, so d={}/{} cannot be", pages, c.shape.dim,
                       c.shape.value_dim));
  for (const LayoutKind l : {c.k_layout, c.v_layout})
    if (l != LayoutKind::bhsd)
      refuse(fmt::format("{} with layout={}: pages lie either way", pages, name_of(l)));
}

void check_cache(const Case& c) {
  const CacheSpec& k = c.cache;
  if (!k) {
    if (k != CacheSpec{}) refuse("store, pages and chunks need cache=...");
    return;
  }
  if (c.operation == Operation::backward)
    refuse("cache=...: there is no backward pass through a cache");
  const AttentionShape& s = c.shape;
  require_range("b (sequences of a cache)", s.batch, 1, Index{1} << 40);
  if (s.rows > s.keys)
    refuse(fmt::format(
        "cache=...: l={}x{}: the rows are the last tokens, so there are at least as many keys",
        s.rows, s.keys));
  const bool at_the_end = c.offset.kind == OffsetSpec::Kind::end ||
                          (c.offset == OffsetSpec{} && s.rows == s.keys && c.lengths.empty());
  if (!c.lengths.empty()) check_cached_lengths(c);
  else if (!at_the_end) refuse("cache=...: the rows are the last tokens: offset=end");
  for (Index n : c.starts)
    require_range("starts (evicted before the first row)", n, 0, s.keys - s.rows);
  require_range("cache page", k.page, 1, Index{1} << 30);
  require_range("store group", k.group, 0, max_head_dim);
  for (Index n : k.chunks) require_range("chunks", n, 1, Index{1} << 40);
  if (!k.chunks.empty() && !can_chunk(c))
    refuse(c.dropout > 0 ? "chunks with dropout: rows count from the first of a call, so chunks "
                           "drop other weights"
                         : "chunks: a row of an early call cannot see keys of a later one; causal "
                           "or window=...,0 is needed");
  for (LayoutKind l : {c.k_layout, c.v_layout})
    if (l == LayoutKind::shared_batch || l == LayoutKind::shared_head)
      refuse(fmt::format("cache=... with layout={}: tokens are appended one by one", name_of(l)));
  const Dtype dtype = c.cache_dtype();
  if (dtype == Dtype::f64 || dtype == Dtype::e8m0)
    refuse(fmt::format("store={}: caches hold f32, f16, bf16, f8e4m3, f8e5m2 and f4e2m1",
                       format(dtype).name));
  if (k.group > 0 && format(dtype).bits > 8)
    refuse(fmt::format("store={}/{}: only f8 and f4 have scales", format(dtype).name, k.group));
  check_scales(c);
  check_order(c);
  if (dtype == Dtype::f4e2m1 && (c.hidden == Hidden::nan || c.hidden == Hidden::infinity))
    refuse("hidden=nan or inf: f4e2m1 has neither");
  for (const Poke& p : c.pokes)
    if ((p.tensor == 'k' || p.tensor == 'v') &&
        (k.kind == CacheSpec::Kind::latent || (dtype == Dtype::f4e2m1 && !std::isfinite(p.value))))
      refuse(fmt::format("poke={}...: {}", p.tensor,
                         k.kind == CacheSpec::Kind::latent
                             ? "a latent cache has no K and V of its own"
                             : "f4e2m1 has no NaN and no infinity"));
  const Index pages = (s.keys + k.page - 1) / k.page;
  checked_product(fmt::format("cache of b={} h={}/{} l={}x{} in pages of {}", s.batch,
                              s.query_heads, s.kv_heads, s.rows, s.keys, k.page),
                  {s.batch, std::max<Index>(pages, 1), k.page,
                   std::max<Index>(s.kv_heads * (s.dim + s.value_dim), max_head_dim), 16});
  if (k.kind == CacheSpec::Kind::latent) {
    checked_product(fmt::format("projections of {} heads from a latent cache", s.kv_heads),
                    {s.kv_heads, s.dim + s.value_dim, max_head_dim, 16});
    require_range("cache rank", k.rank, 1, max_head_dim);
    require_range("cache rotary", k.rotary, 0, std::min(s.dim - 1, max_head_dim - k.rank));
  }
}

void check_product(const Case& c) {
  const ProductSpec& p = c.product;
  require_range("m", p.m, 0, most);
  require_range("n", p.n, 1, most);
  require_range("k", p.k, 1, most);
  checked_product(fmt::format("m={} n={} k={}", p.m, p.n, p.k),
                  {std::max(p.m, p.n) + 8, p.k + 24, 16});
  checked_product(fmt::format("m={} n={}", p.m, p.n), {p.m + 8, p.n + 24, 16});
  for (auto [field, d] : {std::pair{"dtype", c.dtype}, std::pair{"out", c.out_dtype()}})
    if (d != Dtype::f32 && d != Dtype::f16 && d != Dtype::bf16)
      refuse(fmt::format("{}={}: products take f32, f16 and bf16", field, format(d).name));
  const LowBitTraits& t = traits(p.format);
  if (p.group) {
    if (!t.group_free && *p.group != t.group)
      refuse(fmt::format("w={}:{}: its groups are of {}", t.name, *p.group, t.group));
    require_range("w (group size)", *p.group, t.scale == Dtype::e8m0 ? 0 : 8, most);
    if (*p.group % 8 != 0)
      refuse(fmt::format("w={}:{}: a group is a multiple of 8", t.name, *p.group));
  }
  if (p.format == LowBit::fp4_sparse && p.k % 4 != 0)
    refuse(fmt::format("k={}: two of each four are kept, so it is a multiple of 4", p.k));
  if (p.a_format && traits(*p.a_format).layout != CodeLayout::columns)
    refuse(fmt::format("a={}: A is mxfp4, nvfp4, f8e4m3 or f8e5m2", traits(*p.a_format).name));
  if (p.weights == Weights::quantized &&
      (p.scales != ScaleFamily::unit || p.zeros != ZeroFamily::random))
    refuse("scales and zeros of quantized weights follow from the weights");
  if (!t.integer && p.zeros != ZeroFamily::random)
    refuse(fmt::format("zeros: {} has no zero points", t.name));
  if (p.scales == ScaleFamily::zero && t.scale == Dtype::e8m0)
    refuse(fmt::format("scales=zero: e8m0, the scale of {}, has no zero", t.name));
  if (p.scales != ScaleFamily::unit && p.group_size() == 0)
    refuse(fmt::format("scales={}: w={}:0 has none", name_of(p.scales), t.name));
  if (p.weights == Weights::special && (t.bits != 8 || t.integer))
    refuse(fmt::format("weights=special: {} has neither NaN nor infinity", t.name));
  for (LayoutKind l : {c.q_layout, c.o_layout})
    if (l != LayoutKind::bhsd && l != LayoutKind::padded && l != LayoutKind::strided &&
        l != LayoutKind::reversed)
      refuse(fmt::format("layout={}: A and C are bhsd, padded, strided or reversed", name_of(l)));
  if (p.a_format && (c.q_layout != LayoutKind::bhsd || !c.pokes.empty()))
    refuse("a=...: a low-bit A has one layout and no pokes");
  if (p.a_format && (c.values == Values::near_overflow || c.values == Values::subnormal) &&
      c.dtype != Dtype::f16)
    refuse(fmt::format("values={}: scales of a={} do not reach as far as {}", name_of(c.values),
                       traits(*p.a_format).name, format(c.dtype).name));
  require_range("rows", c.sample_rows, 0, most);
  for (const Poke& poke : c.pokes) {
    if (poke.tensor != 'a') refuse(fmt::format("poke={}: the tensor is a", poke.tensor));
    const Extents shape{1, 1, p.m, p.k};
    for (std::size_t axis = 0; axis < 4; ++axis)
      if (poke.position[axis] < 0 || poke.position[axis] >= shape[axis])
        refuse(fmt::format("poke=a:...: index {} of axis {} is outside [0, {})",
                           poke.position[axis], axis, shape[axis]));
  }
}

// Refuses what a case of attention alone says of gradients.
void check_without_gradients(const Case& c) {
  if (c.d_o_layout)
    refuse(fmt::format("layout=g:{}: only backward has a dO", name_of(*c.d_o_layout)));
  if (c.gradient != Values::normal)
    refuse(fmt::format("grad={}: only backward has a dO", name_of(c.gradient)));
  if (c.lse_gradient)
    refuse(fmt::format("dlse={}: only backward has a dLSE", name_of(*c.lse_gradient)));
  for (const Poke& p : c.pokes)
    if (p.tensor == 'g') refuse("poke=g...: only backward has a dO");
}

}  // namespace

CaseError::CaseError(std::size_t at, const std::string& message)
    : std::runtime_error(at ? fmt::format("column {}: {}", at, message) : message), column(at) {}

bool Poke::operator==(const Poke& o) const {
  return tensor == o.tensor && position == o.position &&
         std::bit_cast<std::uint64_t>(value) == std::bit_cast<std::uint64_t>(o.value);
}

bool can_chunk(const Case& c) {
  const bool of_one_length = !c.cache || c.lengths.empty();
  return (c.causal || c.window_right == 0) && c.dropout == 0 && of_one_length;
}

void check_case(const Case& c) {
  if (!std::all_of(c.target.begin(), c.target.end(),
                   [](unsigned char x) { return std::isalnum(x) || x == '_' || x == '-'; }))
    refuse(fmt::format("target='{}' is not a name", c.target));
  require_range("threads", c.threads, 0, 1024);
  if (c.operation == Operation::product) return check_product(c);
  const AttentionShape& s = c.shape;
  if (c.product != ProductSpec{}) refuse("m, n, k and what W is are those of a product");
  require_range("b", s.batch, 0, most);
  require_range("h", s.query_heads, 1, most);
  require_range("h (kv)", s.kv_heads, 1, most);
  if (s.query_heads % s.kv_heads != 0)
    refuse(fmt::format("h={}/{}: query heads must be a multiple of kv heads", s.query_heads,
                       s.kv_heads));
  require_range("l", s.rows, 0, most);
  require_range("l (keys)", s.keys, 0, most);
  require_range("d", s.dim, 1, max_head_dim);
  require_range("d (value)", s.value_dim, 1, max_head_dim);
  // This check assumes that every layout is packed and strided, and that the batch is not empty,
  // because strides are computed in every case.
  const Index batch = std::max<Index>(s.batch, 1);
  checked_product(fmt::format("b={} h={}/{} l={}x{} d={}/{}", s.batch, s.query_heads, s.kv_heads,
                              s.rows, s.keys, s.dim, s.value_dim),
                  {batch, s.query_heads + 2 * s.kv_heads, std::max({s.rows, s.keys, Index{1}}),
                   std::max(s.dim, s.value_dim) + 24, 16});
  auto mask_fits = [&](std::string_view name, const MaskSpec& m) {
    if (m.pattern != MaskPattern::none)
      checked_product(
          fmt::format("{} mask of l={}x{}", name, s.rows, s.keys),
          {m.varies[0] ? std::max<Index>(s.batch, 1) : 1, m.varies[1] ? s.query_heads : 1,
           m.varies[2] ? std::max<Index>(s.rows, 1) : 1,
           m.varies[3] ? std::max<Index>(s.keys, 1) : 1});
  };
  if (row_of(c.keep.pattern).kind == MaskKind::additive)
    refuse(fmt::format("bool={} is an additive pattern", name_of(c.keep.pattern)));
  if (row_of(c.bias.pattern).kind == MaskKind::boolean)
    refuse(fmt::format("bias={} is a boolean pattern", name_of(c.bias.pattern)));
  mask_fits("bool", c.keep);
  mask_fits("bias", c.bias);
  auto check_dtype = [](std::string_view field, Dtype d) {
    if (d != Dtype::f32 && d != Dtype::f16 && d != Dtype::bf16 && d != Dtype::f64)
      refuse(fmt::format("{}={}: attention takes f64, f32, f16 and bf16", field, format(d).name));
  };
  check_dtype("dtype", c.dtype);
  check_dtype("out", c.out_dtype());
  if (c.scale && !std::isfinite(*c.scale))
    refuse(fmt::format("scale={} is not a finite number", *c.scale));
  if (!(c.softcap >= 0 && c.softcap < std::numeric_limits<float>::infinity()))
    refuse(fmt::format("softcap={} is not a finite number of at least 0", c.softcap));
  if (c.sink && !(std::fabs(*c.sink) < std::numeric_limits<float>::infinity()))
    refuse(fmt::format("sink={} is not a finite number", *c.sink));
  if (!(c.dropout >= 0 && c.dropout < 1))
    refuse(fmt::format("dropout={} is outside [0, 1)", c.dropout));
  require_range("window", c.window_left, -1, most);
  require_range("window", c.window_right, -1, most);
  require_range("offset", c.offset.value, -most, most);
  check_list("lengths", c.lengths, s.batch, s.keys);
  check_list("starts", c.starts, s.batch, s.keys);
  if (c.offset.kind == OffsetSpec::Kind::lengths && c.lengths.empty())
    refuse("offset=lengths needs lengths=...");
  for (Index n : c.documents) require_range("docs", n, 1, most);
  if (c.o_layout == LayoutKind::shared_head || c.o_layout == LayoutKind::shared_batch)
    refuse(fmt::format("layout=o:{}: an output cannot overlap itself", name_of(c.o_layout)));
  if (c.operation != Operation::backward) check_without_gradients(c);
  if (c.finite_min_masks && c.bias.pattern == MaskPattern::none)
    refuse("finite_min_masks needs bias=...");
  check_cache(c);
  require_range("rows", c.sample_rows, 0, most);
  for (const Poke& p : c.pokes) {
    if (std::string_view("qkvmg").find(p.tensor) == std::string_view::npos)
      refuse(fmt::format("poke={}: the tensors are q, k, v, m and g", p.tensor));
    Extents shape = s.k_extents();
    if (p.tensor == 'q') shape = s.q_extents();
    if (p.tensor == 'v') shape[3] = s.value_dim;
    if (p.tensor == 'g') shape = s.o_extents();
    if (p.tensor == 'm') {
      if (c.bias.pattern == MaskPattern::none) refuse("poke=m... needs bias=...");
      shape = s.pair_extents();
    }
    for (std::size_t axis = 0; axis < 4; ++axis)
      if (p.position[axis] < 0 || p.position[axis] >= shape[axis])
        refuse(fmt::format("poke={}:...: index {} of axis {} is outside [0, {})", p.tensor,
                           p.position[axis], axis, shape[axis]));
  }
}

Index case_bytes(const Case& c) {
  if (c.operation == Operation::product) {
    // This counts A and C in their widest layouts, and W both as bytes and as the oracle's doubles.
    const ProductSpec& p = c.product;
    return 8 * (p.m * (2 * p.k + 24) + p.m * (2 * p.n + 24)) + 10 * p.n * p.k;
  }
  const AttentionShape& s = c.shape;
  if (s.batch == 0) return 0;  // the product of the other extents may then overflow
  const Index in = format(c.dtype).bits / 8, out = format(c.out_dtype()).bits / 8;
  const Index heads_in_pack = s.query_heads + 2 * s.kv_heads;
  auto tensor = [&](LayoutKind kind, Index heads, Index length, Index columns, Index bytes) {
    // Padded and strided rows take more than their columns. A packed tensor has room for all heads
    // of Q, K and V.
    const Index wide = kind == LayoutKind::strided  ? 2 * columns + 1
                       : kind == LayoutKind::padded ? columns + 24
                                                    : columns;
    if (kind == LayoutKind::distant)
      return s.batch * length * (bytes * heads * columns + 8192);  // whole pages
    return bytes * s.batch * (kind == LayoutKind::packed ? heads_in_pack : heads) * length * wide;
  };
  auto mask = [&](const MaskSpec& m, Index bytes) {
    return m.pattern == MaskPattern::none
               ? 0
               : bytes * (m.varies[0] ? s.batch : 1) * (m.varies[1] ? s.query_heads : 1) *
                     (m.varies[2] ? s.rows : 1) * (m.varies[3] ? s.keys : 1);
  };
  // The bytes of dO, dLSE and all gradients; each gradient has the size of its input.
  const Index backward =
      c.operation != Operation::backward
          ? 0
          : tensor(c.q_layout, s.query_heads, s.rows, s.dim, in) +
                tensor(c.o_layout, s.query_heads, s.rows, s.value_dim, in) +
                tensor(c.d_o_layout.value_or(c.o_layout), s.query_heads, s.rows, s.value_dim, in) +
                tensor(c.d_o_layout.value_or(c.o_layout), s.query_heads, s.rows, 1, 4) +
                tensor(c.k_layout, s.kv_heads, s.keys, s.dim, in) +
                tensor(c.v_layout, s.kv_heads, s.keys, s.value_dim, in) + mask(c.bias, 4) +
                4 * s.query_heads;
  // The bytes of the tokens, in whole pages, and of their exact values. A latent cache also has the
  // sums of absolute values and the projections.
  const bool latent = c.cache.kind == CacheSpec::Kind::latent;
  const Index slots = c.cache && c.cache.kind != CacheSpec::Kind::contiguous
                          ? (s.keys + c.cache.page - 1) / c.cache.page * c.cache.page
                          : s.keys;
  const Index slot = latent ? c.cache.rank + c.cache.rotary : s.kv_heads * (s.dim + s.value_dim);
  const Index cached =
      c.cache ? 24 * s.batch * s.kv_heads * s.keys * (s.dim + s.value_dim) +
                    4 * s.batch * slots * slot +
                    (c.cache.scale == CacheScale::e8m0
                         ? 0
                         : 8 * s.batch * s.kv_heads * s.keys * (s.dim + s.value_dim + 2)) +
                    (latent ? 12 * s.kv_heads * (s.dim + s.value_dim) * c.cache.rank : 0)
              : 0;
  return backward + cached + tensor(c.q_layout, s.query_heads, s.rows, s.dim, in) +
         tensor(c.o_layout, s.query_heads, s.rows, s.value_dim, out) +
         tensor(c.k_layout, s.kv_heads, s.keys, s.dim, in) +
         tensor(c.v_layout, s.kv_heads, s.keys, s.value_dim, in) +
         4 * s.batch * s.query_heads * s.rows + mask(c.keep, 1) + mask(c.bias, in) +
         8 * s.batch * (s.rows + s.keys) + 8 * s.query_heads;
}

}  // namespace assay
