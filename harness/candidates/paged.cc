#include "harness/candidates/paged.h"

#include <fmt/format.h>

#include <algorithm>

#include "problem/cached_tokens.h"

namespace assay {
namespace {

bool is_scaled(const Case& c) { return format(c.cache_dtype()).bits <= 8; }
bool is_distant(const Case& c) {
  return c.k_layout == LayoutKind::distant || c.v_layout == LayoutKind::distant;
}

// A pool that is so large that 16 bits cannot number its pages, nor 32 bits hold its offsets.
constexpr Index distant_pages = 3 * (Index{1} << 16) + 1;
constexpr Index distant_stride = Index{1} << 15;  // elements from page to page, at least
constexpr Index most_distant_bytes = Index{1} << 35;

// A tensor of pages: what it looks like, and how many elements it takes.
struct Planned {
  Dtype dtype;
  Extents shape;
  Layout layout;
  TensorView view(void* data) const { return {data, dtype, shape, layout.stride, layout.origin}; }
};

Planned distant(Dtype dtype, const Extents& shape) {
  const Index page = std::max(distant_stride, shape[1] * shape[2] * shape[3]);
  return {dtype, shape, {{page, shape[2] * shape[3], shape[3], 1}, 0, shape[0] * page, true}};
}

// K or V in a buffer of its own. A row of nibbles takes whole bytes.
Planned planned_elements(const Case& c, LayoutKind kind, const Extents& shape) {
  if (is_distant(c)) return distant(c.cache_dtype(), shape);
  Extents stored = shape;
  if (c.cache_dtype() == Dtype::f4e2m1) stored[3] = (shape[3] + 1) / 2 * 2;
  return {c.cache_dtype(), shape, make_layout(kind, stored, 2 * c.shape.kv_heads)};
}

// K (which = 0) or V (which = 1) in one buffer with the other.
Planned planned_together(const Case& c, const Extents& shape, Index which) {
  const Index columns = c.cache_dtype() == Dtype::f4e2m1 ? (shape[3] + 1) / 2 * 2 : shape[3];
  const Index tokens = shape[2] * shape[1] * columns, all = 2 * tokens * shape[0];
  if (c.cache.order == PageOrder::halves)
    return {c.cache_dtype(),
            shape,
            {{2 * tokens, columns, shape[1] * columns, 1}, which * tokens, all}};
  return {c.cache_dtype(),
          shape,
          {{2 * tokens, 2 * columns, 2 * shape[1] * columns, 1}, which * columns, all}};
}

Planned planned_scales(const Case& c, Extents shape) {
  shape[3] = c.cache.group > 0 ? (shape[3] + c.cache.group - 1) / c.cache.group : 1;
  const CacheScale kind = c.cache.scale;
  const bool of_tensor = kind == CacheScale::f32_tensor;
  const bool shared[] = {of_tensor, of_tensor || kind == CacheScale::f32_token, is_given(kind)};
  Extents own = shape;
  for (std::size_t axis = 0; axis < 3; ++axis)
    if (shared[axis]) own[axis] = 1;
  Layout layout = make_layout(LayoutKind::bhsd, own, 1);
  for (std::size_t axis = 0; axis < 3; ++axis)
    if (shared[axis]) layout.stride[axis] = 0;
  layout.sparse = is_distant(c);
  return {kind == CacheScale::e8m0 ? Dtype::e8m0 : Dtype::f32, shape, layout};
}

// The sizes of the pages of a case. The table of a sequence has `each` entries, of which the first
// `used` may be pages. `step` lies between the numbers of two of the `needed` pages that may hold
// tokens, the last of which belongs to no sequence at first.
struct PageSizes {
  Index size, used, each, needed, step;
  Extents k, v;
  explicit PageSizes(const Case& c) {
    const AttentionShape& s = c.shape;
    const bool paged = c.cache.kind == CacheSpec::Kind::paged;
    size = paged ? c.cache.page : std::max<Index>(s.keys, 1);
    used = (s.keys + size - 1) / size;
    each = used + (paged ? 1 : 0);
    needed = used * s.batch + (paged ? 1 : 0);
    const Index pages = is_distant(c) ? std::max(needed, distant_pages) : needed;
    step = pages / std::max<Index>(needed, 1);
    k = {pages, s.kv_heads, size, s.dim};
    v = {pages, s.kv_heads, size, s.value_dim};
  }
  // The number of the n-th page that is used.
  Index number(Index n) const { return k[0] - 1 - n * step; }
};

// Stores one row of tokens [B, H, L, columns], with its scale unless that is given.
void store_row(const Case& c, const TensorView& tokens, const TensorView& scales, Index b, Index g,
               Index j, Index page, Index slot, const PagedTensor& to) {
  const TensorView& elements = to.elements;
  const Index columns = elements.shape[3], group = columns_of_a_scale(c, columns);
  for (Index first = 0, t = 0; first < columns; first += group, ++t) {
    double scale = 1;
    if (to.scales) {
      const Index at = to.scales.at(page, g, slot, t);
      if (!is_given(c.cache.scale)) store(to.scales, at, load(scales, scales.at(b, g, j, t)));
      scale = load(to.scales, at);
    }
    for (Index d = first; d < std::min(columns, first + group); ++d)
      store(elements, elements.at(page, g, slot, d),
            scaled_for_cache(c, load(tokens, tokens.at(b, g, j, d)), scale));
  }
}

std::pair<Planned, Planned> planned_pages(const Case& c, const PageSizes& sizes) {
  if (c.cache.order != PageOrder::apart)
    return {planned_together(c, sizes.k, 0), planned_together(c, sizes.v, 1)};
  return {planned_elements(c, c.k_layout, sizes.k), planned_elements(c, c.v_layout, sizes.v)};
}

// The bytes that a page takes in a view.
std::span<std::byte> bytes_of_page(const TensorView& t, Index page) {
  Index first = t.at(page, 0, 0, 0), last = first;
  for (std::size_t axis = 1; axis < 4; ++axis) {
    const Index far = (t.shape[axis] - 1) * t.stride[axis];
    (far < 0 ? first : last) += far;
  }
  const Index bits = format(t.dtype).bits;
  return {static_cast<std::byte*>(t.data) + first * bits / 8, usize((last + 1 - first) * bits / 8)};
}

void fill_given_scales(const Case& c, const Inputs& in, PagedTokens& to) {
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index j = start_of(c, b); j < length_of(c, b); ++j)
      for (Index g = 0; g < c.shape.kv_heads; ++g)
        for (const auto& [from, scales] :
             {std::pair{in.k_scales.view(), to.k.scales}, {in.v_scales.view(), to.v.scales}})
          store(scales, scales.at(to.slot_of(b, j) / to.size, g, 0, 0),
                load(from, from.at(b, g, j, 0)));
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
    if (c.cache_dtype() == Dtype::f4e2m1 && !rows)
      return fmt::format("pages of {} in the layout {}", format(c.cache_dtype()).name,
                         name_of(layout));
  }
  if (!is_distant(c)) return {};
  if (c.shape.keys == 0) return "a pool of pages so far apart without a token";
  const PageSizes sizes(c);
  const Index page = sizes.size * c.shape.kv_heads * std::max(c.shape.dim, c.shape.value_dim);
  if (page > most_distant_bytes / format(c.cache_dtype()).bits * 8 / sizes.k[0])
    return fmt::format("{} pages of {} elements, so far apart", sizes.k[0], page);
  return {};
}

PageViews page_shapes(const Case& c) {
  static std::byte nothing;
  const PageSizes sizes(c);
  const auto [k, v] = planned_pages(c, sizes);
  PageViews made;
  made.k = k.view(&nothing);
  made.v = v.view(&nothing);
  made.size = sizes.size;
  made.each = sizes.each;
  made.group = c.cache.group;
  if (is_scaled(c)) {
    made.k_scales = planned_scales(c, sizes.k).view(&nothing);
    made.v_scales = planned_scales(c, sizes.v).view(&nothing);
  }
  return made;
}

std::vector<PagedBytes> PagedTokens::parts() const {
  std::vector<PagedBytes> found;
  if (used.empty()) {
    for (const Tensor& t : storage)
      found.push_back({together                                                     ? "K and V"
                       : t.bytes() == k.elements.data || t.bytes() == k.scales.data ? "K"
                                                                                    : "V",
                       {t.bytes(), t.size_in_bytes()}});
    return found;
  }
  for (const auto& [of, tensor] : {std::pair{"K", &k}, {"V", &v}})
    for (const TensorView& t : {tensor->elements, tensor->scales})
      for (const Index page : used) {
        if (t) found.push_back({of, bytes_of_page(t, page)});
      }
  return found;
}

void PagedTokens::copy_page(Index from, Index to) const {
  for (const PagedTensor* tensor : {&k, &v})
    for (const TensorView& t : {tensor->elements, tensor->scales})
      if (t && t.stride[0] != 0)
        std::ranges::copy(bytes_of_page(t, from), bytes_of_page(t, to).begin());
}

bool PagedTokens::guards_intact() const {
  return std::ranges::all_of(storage, &Tensor::guards_intact);
}

PagedTokens empty_pages(const Case& c, const Inputs& in, std::byte filling) {
  const PageSizes sizes(c);
  PagedTokens made;
  made.size = sizes.size;
  made.each = sizes.each;
  made.together = c.cache.order != PageOrder::apart;
  if (c.cache.kind == CacheSpec::Kind::paged) made.spare = sizes.number(sizes.needed - 1);
  made.k.group = made.v.group = c.cache.group;
  for (Index n = 0; is_distant(c) && n < sizes.needed; ++n) made.used.push_back(sizes.number(n));
  const auto add = [&](const Planned& t) {
    made.storage.emplace_back(t.dtype, t.shape, t.layout);
    return made.storage.back().view();
  };
  const auto [k, v] = planned_pages(c, sizes);
  made.k.elements = add(k);
  made.v.elements = made.together ? v.view(made.storage[0].bytes()) : add(v);
  if (is_scaled(c)) {
    made.k.scales = add(planned_scales(c, sizes.k));
    made.v.scales = add(planned_scales(c, sizes.v));
  }
  for (const PagedBytes& part : made.parts()) std::ranges::fill(part.bytes, filling);
  made.table.assign(usize(sizes.each * c.shape.batch), -1);
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index page = start_of(c, b) / made.size; page * made.size < length_of(c, b); ++page)
      made.table[usize(b * made.each + page)] =
          static_cast<std::int32_t>(sizes.number(page * c.shape.batch + b));
  if (is_given(c.cache.scale)) fill_given_scales(c, in, made);
  return made;
}

std::vector<Index> slots_of(const Case& c, const PagedTokens& pages, Index first, Index last) {
  std::vector<Index> slots;
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index j = first; j < last; ++j)
      slots.push_back(j < start_of(c, b) || j >= length_of(c, b) ? -1 : pages.slot_of(b, j));
  return slots;
}

void store_tokens(const Case& c, const Inputs& in, Index first, Index last,
                  std::span<const Index> slots, PagedTokens& to) {
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index j = first; j < last; ++j) {
      const Index at = slots[usize(b * (last - first) + j - first)];
      for (Index g = 0; at >= 0 && g < c.shape.kv_heads; ++g) {
        const Index page = at / to.size, slot = at % to.size;
        store_row(c, in.token_k.view(), in.k_scales.view(), b, g, j, page, slot, to.k);
        store_row(c, in.token_v.view(), in.v_scales.view(), b, g, j, page, slot, to.v);
      }
    }
}

void cut_table(PagedTokens& tokens, Index keys) {
  const Index pages = (keys + tokens.size - 1) / tokens.size;
  for (std::size_t n = 0; n < tokens.table.size(); ++n)
    if (static_cast<Index>(n) % tokens.each >= pages) tokens.table[n] = -1;
}

PagedTokens paged_tokens(const Case& c, const Inputs& in, const Attention& p) {
  PagedTokens made = empty_pages(c, in, std::byte{0xFF});
  store_tokens(c, in, 0, p.shape.keys, slots_of(c, made, 0, p.shape.keys), made);
  cut_table(made, p.shape.keys);
  return made;
}

void share_pages(PagedTokens& tokens) {
  std::vector<TensorView> parts;  // which pages have for themselves
  for (const PagedTensor* tensor : {&tokens.k, &tokens.v})
    for (const TensorView& t : {tensor->elements, tensor->scales})
      if (t && t.stride[0] != 0) parts.push_back(t);
  for (auto n = usize(tokens.each); n < tokens.table.size(); ++n) {
    std::int32_t& own = tokens.table[n];
    const std::int32_t first = tokens.table[n % usize(tokens.each)];
    if (own < 0 || first < 0 ||
        !std::ranges::all_of(
            parts,
            [&](const TensorView& t) {
              return std::ranges::equal(bytes_of_page(t, own), bytes_of_page(t, first));
            }))
      continue;
    for (const TensorView& t : parts) std::ranges::fill(bytes_of_page(t, own), std::byte{0xFF});
    own = first;
  }
}

TensorView tokens_between(const TensorView& t, Index first, Index last) {
  TensorView part = t;
  part.origin = t.at(0, 0, first, 0);
  part.shape[2] = last - first;
  return part;
}

}  // namespace assay
