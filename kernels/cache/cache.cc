#include "kernels/cache/cache.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "kernels/cache/cache_storage.h"
#include "kernels/overlap.h"
#include "kernels/simd/scratch.h"
#include "kernels/simd/codec.h"
#include "kernels/simd/convert.h"

namespace assay::kernels {
namespace {

Status refuse(std::string detail) { return {StatusCode::invalid_arguments, std::move(detail)}; }
Status wrong_state(std::string detail) {
  return {StatusCode::invalid_cache_state, std::move(detail)};
}

bool is_scaled(Dtype d) { return d == Dtype::f8e4m3 || d == Dtype::f8e5m2 || d == Dtype::f4e2m1; }
bool is_token_dtype(Dtype d) { return d == Dtype::f32 || d == Dtype::f16 || d == Dtype::bf16; }

Index pages_of(const CacheConfig& c) {
  if (c.kind == CacheKind::contiguous) return c.capacity > 0 ? c.sequences : 0;
  return c.pages > 0 ? c.pages : c.sequences * ((c.capacity + c.page_size - 1) / c.page_size);
}

float element(const TensorView& t, Index head, Index row, Index column) {
  const Index at = t.at(0, head, row, column);
  if (t.dtype == Dtype::f32) return static_cast<const float*>(t.data)[at];
  const std::uint16_t code = static_cast<const std::uint16_t*>(t.data)[at];
  return t.dtype == Dtype::bf16 ? from_bf16(code) : from_f16(code);
}

Status check_tokens(const char* name, const TensorView& t, Index heads, Index count,
                    Index columns) {
  const Extents wanted{1, heads, count, columns};
  if (t.shape != wanted)
    return refuse(fmt::format("{} has shape [{}], not [{}]", name, fmt::join(t.shape, ", "),
                              fmt::join(wanted, ", ")));
  if (element_count(wanted) == 0) return {};
  if (!is_token_dtype(t.dtype))
    return refuse(fmt::format("{} is {}; it must be f32, f16 or bf16", name, format(t.dtype).name));
  if (!t) return refuse(fmt::format("{} is null", name));
  const Footprint footprint = footprint_of(t, t.shape);
  if (!reach_of(footprint))
    return wrong_state(
        fmt::format("{} has strides [{}]: it reaches more than 2^57 bytes from its pointer", name,
                    fmt::join(t.stride, ", ")));
  if (overlap_with_itself(footprint) != Overlap::none)
    return wrong_state(
        fmt::format("{} has strides [{}]: it overlaps itself", name, fmt::join(t.stride, ", ")));
  return {};
}

Status check_config(const CacheConfig& c) {
  for (auto [name, value, least] : {std::tuple{"sequences", c.sequences, Index{1}},
                                    {"kv_heads", c.kv_heads, 1},
                                    {"capacity", c.capacity, 0},
                                    {"page_size", c.page_size, 1},
                                    {"pages", c.pages, 0},
                                    {"group_size", c.group_size, 0}})
    if (value < least) return refuse(fmt::format("{} = {} is below {}", name, value, least));
  for (auto [name, d] : {std::pair{"dim", c.dim}, {"value_dim", c.value_dim}})
    if (d < 1 || d > max_head_dim)
      return refuse(fmt::format("{} = {} is outside [1, {}]", name, d, max_head_dim));
  if (c.kind != CacheKind::contiguous && c.kind != CacheKind::paged && c.kind != CacheKind::latent)
    return refuse(fmt::format("kind = {} is none of the three", static_cast<int>(c.kind)));
  if (!is_scaled(c.dtype) && !is_token_dtype(c.dtype))
    return {StatusCode::unsupported,
            fmt::format("dtype is {}; a cache holds f32, f16, bf16, f8e4m3, f8e5m2 or f4e2m1",
                        format(c.dtype).name)};
  if (c.kind == CacheKind::latent) {
    if (c.rank < 1) return refuse(fmt::format("rank = {} is below 1", c.rank));
    if (c.rotary < 0) return refuse(fmt::format("rotary = {} is below 0", c.rotary));
    if (c.rank > max_head_dim - std::min(c.rotary, max_head_dim))
      return refuse(
          fmt::format("rank + rotary = {} + {} is above {}", c.rank, c.rotary, max_head_dim));
    if (c.rotary >= c.dim)
      return refuse(fmt::format("rotary = {} is not below dim = {}", c.rotary, c.dim));
  }
  const double slots =
      static_cast<double>(c.kind == CacheKind::contiguous ? c.capacity : c.page_size) *
      (c.kind == CacheKind::contiguous ? static_cast<double>(c.sequences)
       : c.pages > 0
           ? static_cast<double>(c.pages)
           : static_cast<double>(c.sequences) *
                 (static_cast<double>(c.capacity) / static_cast<double>(c.page_size) + 1));
  constexpr double limit = 0x1p46;
  if (slots * static_cast<double>(c.kv_heads) * 4 * max_head_dim > limit)
    return {StatusCode::memory_allocation_failed,
            fmt::format("{} slots of {} heads are above {} bytes", slots, c.kv_heads, limit)};
  return {};
}

}  // namespace

// ---- Planes -------------------------------------------------------------------------------------

TokenPlane::TokenPlane(Dtype dtype, Index heads, Index columns, Index group_size, Index page_size,
                       Index pages)
    : dtype_(dtype),
      heads_(heads),
      columns_(columns),
      group_(group_size > 0 ? std::min(group_size, std::max<Index>(columns, 1))
                            : std::max<Index>(columns, 1)),
      row_bytes_((columns * format(dtype).bits + 7) / 8),
      row_scales_(is_scaled(dtype) ? (columns + group_ - 1) / group_ : 0),
      page_size_(page_size) {
  const auto rows = usize(pages * heads * page_size);
  // The memory is never initialised, because a slot that was not written is never read.
  data_ = allocate_aligned<std::byte>(static_cast<Index>(rows) * row_bytes_);
  scales_ = allocate_aligned<std::uint8_t>(static_cast<Index>(rows) * row_scales_);
}

bool TokenPlane::can_hold(const TensorView& t, Index head, Index row) const {
  if (dtype_ != Dtype::f4e2m1) return true;
  for (Index c = 0; c < columns_; ++c)
    if (!std::isfinite(element(t, head, row, c))) return false;
  return true;
}

void encode_token(const TensorView& t, Index head, Index row, Dtype dtype, Index group,
                  std::byte* to, std::uint8_t* scales) {
  const Index columns = t.shape[3];
  if (!is_scaled(dtype)) {
    for (Index c = 0; c < columns; ++c) {
      const float x = element(t, head, row, c);
      if (dtype == Dtype::f32) {
        std::memcpy(to + 4 * c, &x, 4);
      } else {
        const std::uint16_t code = dtype == Dtype::bf16 ? to_bf16(x) : to_f16(x);
        std::memcpy(to + 2 * c, &code, 2);
      }
    }
    return;
  }
  NarrowFormat f = narrow_format(dtype);
  std::memset(to, 0, usize((columns * f.bits + 7) / 8));
  for (Index begin = 0; begin < columns; begin += group) {
    const Index end = std::min(begin + group, columns);
    float absmax = 0;
    for (Index c = begin; c < end; ++c)
      if (const float x = std::fabs(element(t, head, row, c)); std::isfinite(x))
        absmax = std::max(absmax, x);
    const int exponent = scale_exponent(narrow_format(dtype), absmax);
    scales[begin / group] = static_cast<std::uint8_t>(exponent + 127);
    const float inverse = power_of_two(-exponent);
    f.max_code = max_code_under(narrow_format(dtype), exponent);
    for (Index c = begin; c < end; ++c)
      put_code(f.bits, to, c, encode_narrow(f, element(t, head, row, c) * inverse));
  }
}

void TokenPlane::encode_row(const TensorView& t, Index row, Index head, Index page, Index slot) {
  const Index at = (page * heads_ + head) * page_size_ + slot;
  encode_token(t, head, row, dtype_, group_, data_.get() + at * row_bytes_,
               scales_.get() + at * row_scales_);
}

void TokenPlane::copy_slots(Index from, Index to, Index begin, Index end) {
  const auto copy = [&](auto* data, Index row) {
    for (Index head = 0; head < heads_; ++head) {
      const Index at = (from * heads_ + head) * page_size_ + begin,
                  into = (to * heads_ + head) * page_size_ + begin;
      std::copy_n(data + at * row, (end - begin) * row, data + into * row);
    }
  };
  copy(data_.get(), row_bytes_);
  copy(scales_.get(), row_scales_);
}

StoredColumns TokenPlane::stored(Index head) const {
  const Index page_rows = heads_ * page_size_, at = head * page_size_;
  StoredColumns c;
  c.data = data_.get() + at * row_bytes_;
  c.dtype = dtype_;
  c.count = columns_;
  c.row_bytes = row_bytes_;
  c.page_bytes = page_rows * row_bytes_;
  if (row_scales_ > 0) c.scales = scales_.get() + at * row_scales_;
  c.group = group_;
  c.row_scales = row_scales_;
  c.page_scales = page_rows * row_scales_;
  return c;
}

// ---- The cache ----------------------------------------------------------------------------------

Status Cache::create(const CacheConfig& config, std::unique_ptr<Cache>& cache) {
  if (Status status = check_config(config); !status.ok()) return status;
  try {
    cache = std::make_unique<PagedCache>(config);
  } catch (const std::bad_alloc&) {
    return out_of_memory("{} pages of {} slots", pages_of(config), config.page_size);
  }
  return {};
}

PagedCache::PagedCache(const CacheConfig& c)
    : config_(c),
      page_size_(c.kind == CacheKind::contiguous ? std::max<Index>(c.capacity, 1) : c.page_size),
      k_(c.dtype, c.kind == CacheKind::latent ? 1 : c.kv_heads,
         c.kind == CacheKind::latent ? c.rank : c.dim, c.group_size, page_size_, pages_of(c)),
      v_(c.dtype, k_.heads(), c.kind == CacheKind::latent ? c.rotary : c.value_dim, c.group_size,
         page_size_, pages_of(c)),
      users_(usize(pages_of(c))),
      sequences_(usize(c.sequences)) {
  for (Index page = pages_of(c) - 1; page >= 0; --page) free_.push_back(page);
}

Status PagedCache::check_sequence(const char* name, Index sequence) const {
  if (sequence >= 0 && sequence < config_.sequences) return {};
  return wrong_state(fmt::format("{} = {} is outside [0, {})", name, sequence, config_.sequences));
}

Index PagedCache::take_page() {
  const Index page = free_.back();
  free_.pop_back();
  users_[usize(page)] = 1;
  return page;
}

void PagedCache::release(Index page) {
  // free_ has room for every page
  if (page >= 0 && --users_[usize(page)] == 0) free_.push_back(page);
}

Status PagedCache::append(Index sequence, const TensorView& k, const TensorView& v) {
  if (Status status = check_sequence("sequence", sequence); !status.ok()) return status;
  Sequence& s = sequences_[usize(sequence)];
  const Index count = k.shape[2];
  if (count < 0) return refuse(fmt::format("k has {} tokens", count));
  try {
    if (Status status = check_tokens("k", k, k_.heads(), count, k_.columns()); !status.ok())
      return status;
    if (Status status = check_tokens("v", v, v_.heads(), count, v_.columns()); !status.ok())
      return status;
    if (count > config_.capacity - s.length)
      return wrong_state(fmt::format("{} tokens after {} are above the capacity of {}", count,
                                     s.length, config_.capacity));
    if (count == 0) return {};
    for (Index head = 0; head < k_.heads(); ++head)
      for (Index row = 0; row < count; ++row)
        if (!k_.can_hold(k, head, row) || !v_.can_hold(v, head, row))
          return refuse(fmt::format("token {} of head {} is not finite, which {} cannot hold", row,
                                    head, format(config_.dtype).name));
    const Index first_page = s.length / page_size_,
                end_page = (s.length + count - 1) / page_size_ + 1;
    // whether the first page that is written to holds tokens already
    const bool open = s.length % page_size_ != 0;
    const bool shared = open && users_[usize(s.pages[usize(first_page)])] > 1;
    const Index wanted = end_page - first_page - (open && !shared ? 1 : 0);
    if (wanted > free_pages())
      return wrong_state(
          fmt::format("{} tokens need {} pages, {} are free", count, wanted, free_pages()));
    s.pages.resize(usize(end_page), -1);  // nothing can fail after this
    for (Index page = first_page; page < end_page; ++page) {
      Index& mine = s.pages[usize(page)];
      if (page == first_page && open && !shared) continue;
      const Index taken = take_page();
      if (page == first_page && shared) {
        const Index begin = std::max<Index>(s.evicted - page * page_size_, 0);
        k_.copy_slots(mine, taken, begin, s.length % page_size_);
        v_.copy_slots(mine, taken, begin, s.length % page_size_);
        release(mine);
      }
      mine = taken;
    }
  } catch (const std::bad_alloc&) {
    return out_of_memory("the page table of a sequence");
  }
  for (Index row = 0; row < count; ++row) {
    const Index position = s.length + row, page = s.pages[usize(position / page_size_)];
    for (Index head = 0; head < k_.heads(); ++head) {
      k_.encode_row(k, row, head, page, position % page_size_);
      v_.encode_row(v, row, head, page, position % page_size_);
    }
  }
  s.length += count;
  return {};
}

Status PagedCache::evict(Index sequence, Index position) {
  if (Status status = check_sequence("sequence", sequence); !status.ok()) return status;
  Sequence& s = sequences_[usize(sequence)];
  if (position < 0 || position > s.length)
    return refuse(fmt::format("position = {} is outside [0, {}]", position, s.length));
  for (Index page = s.evicted / page_size_; (page + 1) * page_size_ <= position; ++page) {
    release(s.pages[usize(page)]);
    s.pages[usize(page)] = -1;
  }
  s.evicted = std::max(s.evicted, position);
  return {};
}

Status PagedCache::fork(Index from, Index to) {
  if (Status status = check_sequence("from", from); !status.ok()) return status;
  if (Status status = check_sequence("to", to); !status.ok()) return status;
  const Sequence& source = sequences_[usize(from)];
  Sequence& target = sequences_[usize(to)];
  if (target.length > 0)
    return wrong_state(fmt::format("to = {} holds {} tokens, not 0", to, target.length));
  try {
    target = Sequence(source);
  } catch (const std::bad_alloc&) {
    return out_of_memory("the page table of a sequence");
  }
  for (Index page : target.pages)
    if (page >= 0) ++users_[usize(page)];
  return {};
}

Status PagedCache::reset(Index sequence) {
  if (Status status = check_sequence("sequence", sequence); !status.ok()) return status;
  Sequence& s = sequences_[usize(sequence)];
  for (Index page : s.pages) release(page);
  s = {};
  return {};
}

StoredKeyValues PagedCache::stored(Index sequence, Index head) const {
  const Sequence& s = sequences_[usize(sequence)];
  StoredKeyValues found;
  for (StoredRows* rows : {&found.keys, &found.values}) {
    rows->pages = s.pages.data();
    rows->page_size = page_size_;
    rows->begin = s.evicted;
    rows->end = s.length;
  }
  found.keys.columns = k_.stored(head);
  if (config_.kind == CacheKind::latent) {
    found.keys.more = v_.stored(head);
    found.values.columns = k_.stored(head);
  } else {
    found.values.columns = v_.stored(head);
  }
  return found;
}

}  // namespace assay::kernels
