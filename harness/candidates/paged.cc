#include "harness/candidates/paged.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "problem/weight_sets.h"

namespace assay {
namespace {

bool is_scaled(Dtype d) { return format(d).bits <= 8; }

// A tensor of pages: what it looks like, and how many elements it takes.
struct Planned {
  Dtype dtype;
  Extents shape;
  Layout layout;
  TensorView view(void* data) const { return {data, dtype, shape, layout.stride, layout.origin}; }
  Tensor filled(std::byte filling) const {
    Tensor t(dtype, shape, layout);
    std::memset(t.bytes(), static_cast<int>(filling), t.size_in_bytes());
    return t;
  }
};

// K or V. A row of nibbles takes whole bytes.
Planned planned_elements(const Case& c, LayoutKind kind, const Extents& shape) {
  Extents stored = shape;
  if (c.cache_dtype() == Dtype::f4e2m1) stored[3] = (shape[3] + 1) / 2 * 2;
  return {c.cache_dtype(), shape, make_layout(kind, stored, 2 * c.shape.kv_heads)};
}
Planned planned_scales(const Case& c, Extents shape) {
  shape[3] = c.cache.group > 0 ? (shape[3] + c.cache.group - 1) / c.cache.group : 1;
  return {Dtype::e8m0, shape, make_layout(LayoutKind::bhsd, shape, 1)};
}

// The sizes of the pages of a case. The table of a sequence has `each` entries, of which the first
// `used` may be pages.
struct PageSizes {
  Index size, used, each;
  Extents k, v;
  explicit PageSizes(const Case& c) {
    const AttentionShape& s = c.shape;
    const bool paged = c.cache.kind == CacheSpec::Kind::paged;
    size = paged ? c.cache.page : std::max<Index>(s.keys, 1);
    used = (s.keys + size - 1) / size;
    each = used + (paged ? 1 : 0);
    k = {used * s.batch, s.kv_heads, size, s.dim};
    v = {used * s.batch, s.kv_heads, size, s.value_dim};
  }
};

// Stores one row of tokens: codes are those of `values`, which are rounded already.
void store_row(const TensorView& raw, const TensorView& values, Index b, Index g, Index j,
               Index page, Index slot, const PagedTensor& to) {
  const TensorView& elements = to.elements.view();
  const Index columns = elements.shape[3];
  const bool scaled = is_scaled(elements.dtype);
  const Index group = scaled && to.group > 0 ? to.group : columns;
  for (Index first = 0, t = 0; first < columns; first += group, ++t) {
    const Index last = std::min(columns, first + group);
    double largest = 0, scale = 1;
    for (Index d = first; scaled && d < last; ++d)
      if (const double x = std::fabs(load(raw, raw.at(b, g, j, d))); std::isfinite(x))
        largest = std::max(largest, x);
    if (scaled) {
      scale = std::ldexp(1.0, covering_exponent(elements.dtype, largest));
      store(to.scales.view(), to.scales.view().at(page, g, slot, t), scale);
    }
    for (Index d = first; d < last; ++d)
      store(elements, elements.at(page, g, slot, d), load(values, values.at(b, g, j, d)) / scale);
  }
}

}  // namespace

Attention paged_problem(const Case& c, const Attention& whole, Chunk rows) {
  const AttentionShape& s = c.shape;
  const Index keys = s.keys - s.rows + rows.first + rows.count;
  Attention p = rows_of(whole, rows, keys);
  for (Index b = 0; b < s.batch; ++b) {
    p.key_lengths.push_back(std::min(keys, length_of(c, b)));
    p.offset.push_back(p.key_lengths.back() - rows.count);
  }
  for (Index b = 0; b < s.batch && !c.starts.empty(); ++b) p.key_starts.push_back(start_of(c, b));
  p.k = {whole.q.data, whole.q.dtype, {s.batch, s.kv_heads, keys, s.dim}, {}, 0};
  p.v = {whole.q.data, whole.q.dtype, {s.batch, s.kv_heads, keys, s.value_dim}, {}, 0};
  return p;
}

std::string without_pages(const Case& c) {
  if (c.cache.kind == CacheSpec::Kind::latent) return "a latent cache in pages";
  for (const LayoutKind layout : {c.k_layout, c.v_layout}) {
    const bool rows = layout == LayoutKind::bhsd || layout == LayoutKind::bshd;
    if (layout == LayoutKind::distant || (c.cache_dtype() == Dtype::f4e2m1 && !rows))
      return fmt::format("pages of {} in the layout {}", format(c.cache_dtype()).name,
                         name_of(layout));
  }
  return {};
}

PageViews page_shapes(const Case& c) {
  static std::byte nothing;
  const PageSizes sizes(c);
  PageViews made{planned_elements(c, c.k_layout, sizes.k).view(&nothing),
                 planned_elements(c, c.v_layout, sizes.v).view(&nothing),
                 {},
                 {},
                 sizes.size,
                 sizes.each,
                 c.cache.group};
  if (is_scaled(c.cache_dtype())) {
    made.k_scales = planned_scales(c, sizes.k).view(&nothing);
    made.v_scales = planned_scales(c, sizes.v).view(&nothing);
  }
  return made;
}

PagedTokens empty_pages(const Case& c, std::byte filling) {
  const PageSizes sizes(c);
  PagedTokens made;
  made.size = sizes.size;
  made.each = sizes.each;
  made.k = {planned_elements(c, c.k_layout, sizes.k).filled(filling), {}, c.cache.group};
  made.v = {planned_elements(c, c.v_layout, sizes.v).filled(filling), {}, c.cache.group};
  if (is_scaled(c.cache_dtype())) {
    made.k.scales = planned_scales(c, sizes.k).filled(filling);
    made.v.scales = planned_scales(c, sizes.v).filled(filling);
  }
  made.table.assign(usize(sizes.each * c.shape.batch), -1);
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index page = start_of(c, b) / made.size; page * made.size < length_of(c, b); ++page)
      made.table[usize(b * made.each + page)] =
          static_cast<std::int32_t>(sizes.k[0] - 1 - (page * c.shape.batch + b));
  return made;
}

void store_tokens(const Case& c, const Inputs& in, Index first, Index last, PagedTokens& to) {
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index j = std::max(first, start_of(c, b)); j < std::min(last, length_of(c, b)); ++j) {
      const Index page = to.slot_of(b, j) / to.size, slot = j % to.size;
      for (Index g = 0; g < c.shape.kv_heads; ++g) {
        store_row(in.token_k.view(), in.problem.k, b, g, j, page, slot, to.k);
        store_row(in.token_v.view(), in.problem.v, b, g, j, page, slot, to.v);
      }
    }
}

PagedTokens paged_tokens(const Case& c, const Inputs& in, const Attention& p) {
  PagedTokens made = empty_pages(c, std::byte{0xFF});
  store_tokens(c, in, 0, p.shape.keys, made);
  // A page without a token of the problem is not in its table.
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index page = (p.shape.keys + made.size - 1) / made.size; page < made.each; ++page)
      made.table[usize(b * made.each + page)] = -1;
  return made;
}

}  // namespace assay
