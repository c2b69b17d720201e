#include "kernels/product/packed_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "kernels/simd/codec.h"
#include "kernels/simd/convert.h"
#include "kernels/product/product_plan.h"
#include "kernels/simd/scratch.h"

namespace assay::kernels {
namespace {

Status refuse(std::string detail) { return {StatusCode::invalid_arguments, std::move(detail)}; }

std::uint32_t nibble(const std::byte* data, Index at) {
  return static_cast<std::uint32_t>(data[at / 2]) >> (at % 2 * 4) & 0xF;
}

// Returns the place of scale or zero point [t, n] in the bytes of a matrix.
Index scale_place(const LowBitView& w, Index t, Index n) {
  return traits(w.format).layout == CodeLayout::columns ? n * w.groups() + t : t * w.n + n;
}

std::uint32_t scale_code_of(const LowBitView& w, Index t, Index n) {
  const Index at = scale_place(w, t, n);
  if (traits(w.format).scale != Dtype::f16) return static_cast<std::uint32_t>(w.scales[at]);
  std::uint16_t half;
  std::memcpy(&half, w.scales + 2 * at, 2);
  return half;
}

// Returns the code of an element of a sparse matrix; 0 if it was not kept.
std::uint32_t sparse_code(const LowBitView& w, Index k, Index n) {
  const std::uint32_t kept = nibble(w.extra, (k / 32 * w.n + n) * 8 + k / 4 % 8),
                      position = static_cast<std::uint32_t>(k % 4);
  const Index pair = (k / 16 * w.n + n) * 8 + k / 4 % 4 * 2;
  return position == (kept & 3)  ? nibble(w.codes, pair)
         : position == kept >> 2 ? nibble(w.codes, pair + 1)
                                 : 0;
}

// Returns the nibbles of eight k of a column, the lowest k in the lowest nibble. Rows behind K are
// 0.
std::uint32_t word_of(const LowBitView& w, Index block, Index n) {
  const Index rows = std::min(Index{8}, w.k - 8 * block);
  std::uint32_t word = 0;
  switch (traits(w.format).layout) {
    case CodeLayout::columns:
      if (rows == 8) std::memcpy(&word, w.codes + n * ((w.k + 1) / 2) + 4 * block, 4);
      else std::memcpy(&word, w.codes + n * ((w.k + 1) / 2) + 4 * block, usize((rows + 1) / 2));
      break;
    case CodeLayout::words: std::memcpy(&word, w.codes + 4 * (block * w.n + n), 4); break;
    default:
      for (Index i = 0; i < rows; ++i) word |= sparse_code(w, 8 * block + i, n) << (4 * i);
  }
  return rows == 8 ? word : word & ((1u << (4 * rows)) - 1);
}

// Returns dense codes.
std::uint32_t code_of(const LowBitView& w, Index k, Index n) {
  switch (traits(w.format).layout) {
    case CodeLayout::columns:
      return traits(w.format).bits == 8 ? static_cast<std::uint32_t>(w.codes[n * w.k + k])
                                        : nibble(w.codes + n * ((w.k + 1) / 2), k);
    case CodeLayout::words: return nibble(w.codes, (k / 8 * w.n + n) * 8 + k % 8);
    case CodeLayout::bytes: return static_cast<std::uint32_t>(w.codes[k * w.n + n]);
    default: return sparse_code(w, k, n);
  }
}

// Puts each nibble of 16 bits into a byte of its own.
constexpr std::uint32_t spread(std::uint32_t nibbles) {
  const std::uint32_t pairs = (nibbles | nibbles << 8) & 0x00FF00FF;
  return (pairs | pairs << 4) & 0x0F0F0F0F;
}

// Blocks of eight k of a panel, and the columns of the panel that W has.
struct BlockRange {
  Index first, end;
  Index n, count;
};

// Write blocks in the order of PackedWeights. A column of W is read along k, so that its lines are
// in the cache for every block of the range.
void pack_nibbles(const LowBitView& w, const BlockRange& r, std::uint8_t* to) {
  for (Index c = 0; c < r.count; ++c) {
    std::uint8_t* pair = to + c / 4 * 16 + c % 4 * 2;
    for (Index block = r.first; block < r.end; ++block, pair += PackedWeights::panel * 4) {
      const std::uint32_t word = word_of(w, block, r.n + c),
                          bytes = spread(word & 0xFFFF) | spread(word >> 16) << 4;
      const auto first = static_cast<std::uint16_t>(bytes),
                 second = static_cast<std::uint16_t>(bytes >> 16);
      std::memcpy(pair, &first, 2);
      std::memcpy(pair + 8, &second, 2);
    }
  }
}
void pack_bytes(const LowBitView& w, const BlockRange& r, std::uint8_t* to) {
  const Index begin = 8 * r.first, end = std::min(w.k, 8 * r.end);
  if (traits(w.format).layout == CodeLayout::bytes) {
    for (Index k = begin; k < end; ++k, to += PackedWeights::panel)
      std::memcpy(to, w.codes + k * w.n + r.n, usize(r.count));
  } else {
    for (Index c = 0; c < r.count; ++c)
      for (Index k = begin; k < end; ++k)
        to[(k - begin) * PackedWeights::panel + c] =
            static_cast<std::uint8_t>(w.codes[(r.n + c) * w.k + k]);
  }
}

}  // namespace

Status validate_low_bit_shape(const LowBitView& w) {
  if (static_cast<int>(w.format) >= count_of<LowBit>)
    return refuse(
        fmt::format("format = {} is none of the {}", static_cast<int>(w.format), count_of<LowBit>));
  const LowBitTraits& t = traits(w.format);
  constexpr Index most = Index{1} << 40;
  for (auto [name, value] : {std::pair{"k", w.k}, {"n", w.n}})
    if (value < 1 || value > most)
      return refuse(fmt::format("{} = {} is outside [1, {}]", name, value, most));
  if (static_cast<double>(w.k) * static_cast<double>(w.n) > 0x1p46)
    return {StatusCode::memory_allocation_failed,
            fmt::format("k * n = {} * {} weights are above 2^46", w.k, w.n)};
  if (w.group > most) return refuse(fmt::format("group = {} is above {}", w.group, most));
  if (!t.group_free && w.group != t.group)
    return refuse(fmt::format("group = {}: groups of {} have {}", w.group, t.name, t.group));
  if (w.group % 8 != 0 || w.group < (t.scale == Dtype::e8m0 ? 0 : 8))
    return refuse(fmt::format("group = {} is not a positive multiple of 8{}", w.group,
                              t.scale == Dtype::e8m0 ? ", nor 0" : ""));
  if (w.format == LowBit::fp4_sparse && w.k % 4 != 0)
    return refuse(fmt::format("k = {} is not a multiple of 4, of which two are kept", w.k));
  if (!w.codes) return refuse("codes is null");
  if (!w.scales && w.group > 0) return refuse("scales is null");
  if (!w.extra && t.integer) return refuse("extra (zero points) is null");
  if (!w.extra && w.format == LowBit::fp4_sparse) return refuse("extra (metadata) is null");
  if (!std::isfinite(w.tensor_scale))
    return refuse(fmt::format("tensor_scale = {} is not finite", w.tensor_scale));
  if (w.tensor_scale != 1 && w.format != LowBit::nvfp4)
    return refuse(
        fmt::format("tensor_scale = {}: {} has none, so it must be 1", w.tensor_scale, t.name));
  return {};
}

namespace {

// Refuses codes that a format forbids.
Status check_codes(const LowBitView& w) {
  const LowBitTraits& t = traits(w.format);
  for (Index n = 0; n < w.n; ++n) {
    for (Index g = 0; g < w.groups(); ++g) {
      const std::uint32_t code = scale_code_of(w, g, n);
      const bool negative = t.scale == Dtype::f8e4m3 && code > 0x7F;
      if (negative || (t.scale == Dtype::f16 && (code & 0x7FFF) == 0x7C00))
        return refuse(
            fmt::format("scales: code {:#x} of group {} of column {} is {}; a scale is finite, or "
                        "NaN, and in E4M3 it is not negative",
                        code, g, n, negative ? "negative" : "infinite"));
      if (w.format != LowBit::int4) continue;
      const auto zero = static_cast<std::uint32_t>(w.extra[scale_place(w, g, n)]);
      if (zero > 15)
        return refuse(fmt::format(
            "extra: zero point {} of group {} of column {} is outside [0, 15]", zero, g, n));
    }
    for (Index quad = 0; w.format == LowBit::fp4_sparse && 4 * quad < w.k; ++quad) {
      const std::uint32_t kept = nibble(w.extra, (quad / 8 * w.n + n) * 8 + quad % 8);
      if ((kept & 3) >= kept >> 2)
        return refuse(
            fmt::format("extra: metadata {} of k = {} of column {} is none of 4, 8, 9, 12, 13, 14",
                        kept, 4 * quad, n));
    }
  }
  return {};
}

float value_of(LowBit format, std::uint32_t code, int zero) {
  switch (format) {
    case LowBit::int8: return static_cast<float>(static_cast<std::int8_t>(code) - zero);
    case LowBit::int4: return static_cast<float>(static_cast<int>(code) - zero);
    case LowBit::f8e4m3: return decoded_values(Dtype::f8e4m3)[code];
    case LowBit::f8e5m2: return decoded_values(Dtype::f8e5m2)[code];
    default: return decoded_values(Dtype::f4e2m1)[code];
  }
}

float scale_of(LowBit format, std::uint32_t code) {
  switch (traits(format).scale) {
    case Dtype::f16: return from_f16(static_cast<std::uint16_t>(code));
    case Dtype::f8e4m3: return decoded_values(Dtype::f8e4m3)[code];
    default: return from_e8m0(static_cast<std::uint8_t>(code));
  }
}

}  // namespace

Status validate_low_bit(const LowBitView& w) {
  if (Status status = validate_low_bit_shape(w); !status.ok()) return status;
  return check_codes(w);
}

float decode_low_bit(const LowBitView& w, Index k, Index n) {
  const int zero =
      !traits(w.format).integer ? 0
      : w.format == LowBit::int8
          ? static_cast<int>(static_cast<std::int8_t>(w.extra[scale_place(w, k / w.group, n)]))
          : static_cast<int>(w.extra[scale_place(w, k / w.group, n)]);
  return value_of(w.format, code_of(w, k, n), zero) *
         (w.group > 0 ? scale_of(w.format, scale_code_of(w, k / w.group, n)) : 1.0f);
}

Status PackedWeights::pack(const LowBitView& w, std::shared_ptr<const PackedWeights>& packed) {
  if (Status status = validate_low_bit(w); !status.ok()) return status;
  const LowBitTraits& t = traits(w.format);
  try {
    std::shared_ptr<PackedWeights> p(new PackedWeights);
    p->format_ = w.format;
    p->k_ = w.k;
    p->n_ = w.n;
    p->scaled_ = w.group > 0;
    p->group_ = w.group > 0 ? w.group : p->blocks() * 8;
    p->groups_ = (w.k + p->group_ - 1) / p->group_;
    p->bits_ = t.bits;
    p->tensor_scale_ = w.tensor_scale;
    p->scale_bytes_ = t.scale == Dtype::f16 ? 2 : 1;
    // Columns behind N and rows behind K have codes, scales and zero points of 0.
    const auto bytes = usize(p->panels() * p->blocks() * p->block_bytes());
    p->codes_ = allocate_aligned<std::uint8_t>(static_cast<Index>(bytes));
    std::memset(p->codes_.get(), 0, bytes);
    const auto cells = usize(p->panels() * p->groups_ * panel);
    p->scales_.resize(p->scaled_ ? cells * usize(p->scale_bytes_) : 0);
    p->zeros_.resize(t.integer ? cells : 0);
    constexpr Index blocks_at_once = 16;  // the nibbles of a column are a line of the cache
    for (Index panel_number = 0; panel_number < p->panels(); ++panel_number)
      for (Index block = 0; block < p->blocks(); block += blocks_at_once) {
        const Index n = panel_number * panel;
        (t.bits == 8 ? pack_bytes : pack_nibbles)(
            w, {block, std::min(block + blocks_at_once, p->blocks()), n, std::min(panel, w.n - n)},
            p->codes_.get() + (panel_number * p->blocks() + block) * p->block_bytes());
      }
    for (Index n = 0; n < w.n; ++n) {
      for (Index g = 0; g < w.groups(); ++g) {
        const Index at = (n / panel * p->groups_ + g) * panel + n % panel;
        const std::uint32_t code = scale_code_of(w, g, n);
        std::memcpy(p->scales_.data() + at * p->scale_bytes_, &code, usize(p->scale_bytes_));
        if (t.integer)
          p->zeros_[usize(at)] = static_cast<std::int8_t>(w.extra[scale_place(w, g, n)]);
      }
    }
    if (w.format == LowBit::fp4_sparse)
      for (Index quad = 0; 4 * quad < w.k; ++quad)
        for (Index n = 0; n < w.n; ++n)
          p->kept_.push_back(
              static_cast<std::uint8_t>(nibble(w.extra, (quad / 8 * w.n + n) * 8 + quad % 8)));
    packed = std::move(p);
  } catch (const std::bad_alloc&) {
    return out_of_memory("the packed form of {} x {} weights", w.k, w.n);
  }
  return {};
}

Status PackedWeights::unpack(std::byte* codes, std::byte* scales, std::byte* extra) const {
  const LowBitTraits& t = traits(format_);
  const LowBitSizes sizes = sizes_of(format_, k_, n_, scaled_ ? group_ : 0);
  for (auto [name, to, bytes] : {std::tuple{"codes", codes, sizes.codes},
                                 {"scales", scales, sizes.scales},
                                 {"extra", extra, sizes.extra}}) {
    if (!to && bytes > 0) return refuse(fmt::format("{} is null", name));
    if (bytes > 0) std::memset(to, 0, usize(bytes));
  }
  LowBitView shape;
  shape.format = format_;
  shape.k = k_;
  shape.n = n_;
  shape.group = scaled_ ? group_ : 0;
  for (Index n = 0; n < n_; ++n) {
    for (Index g = 0; g < shape.groups(); ++g) {
      const Index at = scale_place(shape, g, n);
      const std::uint32_t code = scale_code(g, n);
      std::memcpy(scales + at * scale_bytes_, &code, usize(scale_bytes_));
      if (t.integer) extra[at] = static_cast<std::byte>(zero(g, n));
    }
    if (t.layout == CodeLayout::sparse) {
      for (Index quad = 0; 4 * quad < k_; ++quad) {
        const std::uint32_t kept = kept_[usize(quad * n_ + n)];
        const Index pair = (quad / 4 * n_ + n) * 8 + quad % 4 * 2;
        put_code(4, codes, pair, code(4 * quad + (kept & 3), n));
        put_code(4, codes, pair + 1, code(4 * quad + (kept >> 2), n));
        put_code(4, extra, (quad / 8 * n_ + n) * 8 + quad % 8, kept);
      }
      continue;
    }
    for (Index k = 0; k < k_; ++k) {
      const std::uint32_t c = code(k, n);
      if (t.layout == CodeLayout::words) put_code(4, codes, (k / 8 * n_ + n) * 8 + k % 8, c);
      else if (t.layout == CodeLayout::bytes) put_code(8, codes, k * n_ + n, c);
      else put_code(t.bits, codes + n * ((k_ * t.bits + 7) / 8), k, c);
    }
  }
  return {};
}

std::uint32_t PackedWeights::code(Index k, Index n) const {
  const std::uint8_t* block = panel_codes(n / panel) + k / 8 * block_bytes();
  const Index column = n % panel, depth = k % 8;
  if (bits_ == 8) return block[depth * panel + column];
  return block[column / 4 * 16 + depth % 4 / 2 * 8 + column % 4 * 2 + depth % 2] >>
             (depth / 4 * 4) &
         0xFu;
}

float PackedWeights::value(Index k, Index n) const {
  return value_of(format_, code(k, n), zeros_.empty() ? 0 : zero(k / group_, n));
}

std::uint32_t PackedWeights::scale_code(Index t, Index n) const {
  std::uint32_t code = 0;
  std::memcpy(&code, panel_scales(n / panel) + (t * panel + n % panel) * scale_bytes_,
              usize(scale_bytes_));
  return code;
}

float PackedWeights::scale(Index t, Index n) const {
  return scaled_ ? scale_of(format_, scale_code(t, n)) : 1.0f;
}

}  // namespace assay::kernels
