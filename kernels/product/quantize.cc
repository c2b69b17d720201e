// Quantizes numbers to codes and scales, by the rules of problem/low_bit.h. This is the kernels'
// own encoder.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <hwy/base.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <new>

#include "kernels/simd/codec.h"
#include "kernels/simd/convert.h"
#include "kernels/simd/scratch.h"
#include "kernels/overlap.h"
#include "kernels/product/encode_tile.h"
#include "kernels/product/product_plan.h"

namespace assay::kernels {
namespace {

Status refuse(std::string detail) { return {StatusCode::invalid_arguments, std::move(detail)}; }

constexpr NarrowFormat f16_format{16, 10, -14, 0x7BFF, 0x7E00, true};

// Works through W by tiles: the rows of a group, and 64 columns.
class Quantizer {
 public:
  Quantizer(LowBit format, Index group, const TensorView& w, const Target& target, LowBitBytes& to)
      : format_(format),
        traits_(traits(format)),
        k_(w.shape[2]),
        n_(w.shape[3]),
        group_(group),
        step_(group > 0 ? group : 256),
        extremes_(tile_extremes(target)),
        encode_(encode_tile(format, target)),
        to_(to),
        x_(usize(step_ * columns)),
        codes_(usize(step_ * columns)),
        w_(w) {}

  Status run() {
    const LowBitSizes sizes = sizes_of(format_, k_, n_, group_);
    to_.codes.assign(usize(sizes.codes), {});
    to_.scales.assign(usize(sizes.scales), {});
    to_.extra.assign(usize(sizes.extra), {});
    to_.format = format_;
    to_.k = k_;
    to_.n = n_;
    to_.group = group_;
    if (format_ == LowBit::nvfp4) {
      float largest = 0;
      const auto look = [&] {
        for (std::size_t c = 0; c < columns; ++c) largest = std::max({largest, -low_[c], high_[c]});
        return Status{};
      };
      if (Status status = for_each_tile(look); !status.ok()) return status;
      tensor_scale_ = static_cast<float>(static_cast<double>(largest) / (6 * 448.0));
      if (tensor_scale_ == 0) tensor_scale_ = 1;
    }
    to_.tensor_scale = tensor_scale_;
    return for_each_tile([&] { return quantize_tile(); });
  }

 private:
  static constexpr Index columns = WeightTile::columns;

  // Loads every tile and calls `body`, until one of them fails.
  template <class Body>
  Status for_each_tile(const Body& body) {
    for (n0_ = 0; n0_ < n_; n0_ += columns)
      for (width_ = std::min(columns, n_ - n0_), t_ = 0, begin_ = 0; begin_ < k_;
           ++t_, begin_ += step_) {
        rows_ = std::min(step_, k_ - begin_);
        if (Status status = load_tile(); !status.ok()) return status;
        if (Status status = body(); !status.ok()) return status;
      }
    return {};
  }

  float element(Index k, Index n) const {
    const Index at = w_.at(0, 0, k, n);
    if (w_.dtype == Dtype::f32) return static_cast<const float*>(w_.data)[at];
    const std::uint16_t code = static_cast<const std::uint16_t*>(w_.data)[at];
    return w_.dtype == Dtype::bf16 ? from_bf16(code) : from_f16(code);
  }

  // Columns behind N hold zeros.
  Status load_tile() {
    for (Index r = 0; r < rows_; ++r) {
      float* x = x_.data() + r * columns;
      if (w_.dtype == Dtype::f32 && w_.stride[3] == 1 && width_ == columns)
        std::memcpy(x, static_cast<const float*>(w_.data) + w_.at(0, 0, begin_ + r, n0_),
                    columns * sizeof(float));
      else
        for (Index c = 0; c < columns; ++c) x[c] = c < width_ ? element(begin_ + r, n0_ + c) : 0.0f;
    }
    if (extremes_(x_.data(), rows_, low_.data(), high_.data())) return {};
    Index at = 0;
    while (std::isfinite(x_[usize(at)])) ++at;
    return refuse(fmt::format("w[{}, {}] = {} is not finite, and has no code",
                              begin_ + at / columns, n0_ + at % columns, x_[usize(at)]));
  }

  Status quantize_tile() {
    std::array<double, columns> divisor, zero{};
    divisor.fill(1);
    for (Index c = 0; c < width_; ++c)
      if (Status status = choose_scale(c, divisor[usize(c)], zero[usize(c)]); !status.ok())
        return status;
    encode_({x_.data(), divisor.data(), zero.data(), codes_.data(), rows_});
    for (Index c = 0; c < width_; ++c)
      if (divisor[usize(c)] == 0)
        for (Index r = 0; r < rows_; ++r) codes_[usize(r * columns + c)] = 0;
    // A word and a byte may have nibbles behind K.
    std::fill(codes_.begin() + rows_ * columns, codes_.end(), std::uint8_t{0});
    switch (traits_.layout) {
      case CodeLayout::columns:
        if (traits_.bits == 8) {
          put_columns(rows_, begin_, k_);
        } else {
          pair_rows();
          put_columns((rows_ + 1) / 2, begin_ / 2, (k_ + 1) / 2);
        }
        break;
      case CodeLayout::words: put_words(); break;
      case CodeLayout::bytes: put_bytes(); break;
      case CodeLayout::sparse: put_two_of_four(); break;
    }
    return {};
  }

  // Writes the scale of column c, and its zero point, and tells what its weights are divided by.
  Status choose_scale(Index c, double& scale, double& zero) {
    if (group_ == 0) return {};
    const double low = low_[usize(c)], high = high_[usize(c)];
    const double largest = std::max(high, -low);  // 0 where both are 0, and not -0
    const Index n = n0_ + c;
    std::uint32_t code = 0;
    if (traits_.integer) {
      const double least = traits_.bits == 8 ? -128 : 0, levels = traits_.bits == 8 ? 255 : 15;
      if (Status status = f16_scale((high - low) / levels, n, code, scale); !status.ok())
        return status;
      zero = std::clamp(std::nearbyint(-low / scale) + least, least, least + levels);
      to_.extra[usize(t_ * n_ + n)] = static_cast<std::byte>(static_cast<int>(zero));
    } else if (traits_.scale == Dtype::e8m0) {
      const NarrowFormat element = narrow_format(traits_.element);
      const int exponent =
          largest > 0 ? std::ilogb(largest) - std::ilogb(decode_narrow(element, element.max_code))
                      : -127;
      code = static_cast<std::uint32_t>(std::max(exponent, -127) + 127);
      scale = static_cast<double>(from_e8m0(static_cast<std::uint8_t>(code)));
    } else if (format_ == LowBit::nvfp4) {
      code = encode_exact(narrow_format(Dtype::f8e4m3),
                          largest / (6 * static_cast<double>(tensor_scale_)));
      scale = static_cast<double>(decoded_values(Dtype::f8e4m3)[code]) *
              static_cast<double>(tensor_scale_);
    } else if (Status status = f16_scale(largest / 6, n, code, scale); !status.ok()) {
      return status;
    }
    const Index at =
        traits_.layout == CodeLayout::columns ? n * ((k_ + group_ - 1) / group_) + t_ : t_ * n_ + n;
    const std::size_t bytes = traits_.scale == Dtype::f16 ? 2 : 1;
    std::memcpy(to_.scales.data() + usize(at) * bytes, &code, bytes);
    return {};
  }

  Status f16_scale(double wanted, Index n, std::uint32_t& code, double& scale) {
    if (wanted >= 65520)
      return refuse(
          fmt::format("the scale {} of group {} of column {} is above 65504, the largest of f16",
                      wanted, t_, n));
    code = std::max<std::uint32_t>(encode_exact(f16_format, wanted), 1);
    scale = static_cast<double>(from_f16(static_cast<std::uint16_t>(code)));
    return {};
  }

  std::uint32_t code(Index row, Index c) const { return codes_[usize(row * columns + c)]; }

  void put_bytes() {
    for (Index r = 0; r < rows_; ++r)
      std::memcpy(to_.codes.data() + (begin_ + r) * n_ + n0_, codes_.data() + r * columns,
                  usize(width_));
  }
  // Rows of the tile become columns of W, of so many bytes.
  void put_columns(Index rows, Index first, Index bytes_of_column) {
    for (Index c = 0; c < width_; ++c) {
      const std::uint8_t* HWY_RESTRICT from = codes_.data() + c;
      std::byte* HWY_RESTRICT to = to_.codes.data() + (n0_ + c) * bytes_of_column + first;
      for (Index r = 0; r < rows; ++r) to[r] = static_cast<std::byte>(from[r * columns]);
    }
  }
  void pair_rows() {
    for (Index r = 0; r < rows_; r += 2) {
      const std::uint8_t* low = codes_.data() + r * columns;
      std::array<std::uint8_t, columns> pairs;
      for (std::size_t c = 0; c < columns; ++c)
        pairs[c] = static_cast<std::uint8_t>(low[c] | low[c + columns] << 4);
      std::copy(pairs.begin(), pairs.end(), codes_.begin() + r / 2 * columns);
    }
  }
  void put_words() {
    for (Index r = 0; r < rows_; r += 8) {
      std::array<std::uint32_t, columns> words{};
      for (Index i = 0; i < 8; ++i)
        for (Index c = 0; c < columns; ++c) words[usize(c)] |= code(r + i, c) << (4 * i);
      std::memcpy(to_.codes.data() + ((begin_ + r) / 8 * n_ + n0_) * 4, words.data(),
                  usize(width_) * 4);
    }
  }
  // Keeps the two of four that have the largest magnitudes. Where magnitudes are equal, the lower
  // index is taken.
  void put_two_of_four() {
    for (Index r = 0; r < rows_; r += 4)
      for (Index c = 0; c < width_; ++c) {
        const auto size = [&](Index i) { return std::fabs(x_[usize((r + i) * columns + c)]); };
        Index best = 0, next = -1;
        for (Index i = 1; i < 4; ++i) {
          if (size(i) > size(best)) {
            next = best;
            best = i;
          } else if (next < 0 || size(i) > size(next)) {
            next = i;
          }
        }
        const Index low = std::min(best, next), high = std::max(best, next), n = n0_ + c,
                    quad = (begin_ + r) / 4, pair = (quad / 4 * n_ + n) * 8 + quad % 4 * 2;
        put_code(4, to_.codes.data(), pair, code(r + low, c));
        put_code(4, to_.codes.data(), pair + 1, code(r + high, c));
        put_code(4, to_.extra.data(), (quad / 8 * n_ + n) * 8 + quad % 8,
                 static_cast<std::uint32_t>(high * 4 + low));
      }
  }

  const LowBit format_;
  const LowBitTraits& traits_;
  const Index k_, n_, group_;
  const Index step_;  // the rows of a group, or some rows if there are no scales
  const TileExtremes extremes_;
  const EncodeTile encode_;
  LowBitBytes& to_;
  // The tile: group t_, rows_ rows from begin_ on, width_ columns from n0_ on.
  Index t_ = 0, begin_ = 0, rows_ = 0, n0_ = 0, width_ = 0;
  std::vector<float> x_;                       // [rows][64]
  std::vector<std::uint8_t> codes_;            // [rows][64]
  std::array<float, columns> low_{}, high_{};  // the extremes of each column, and 0
  const TensorView& w_;
  float tensor_scale_ = 1;
};

}  // namespace

Status quantize_weights(const TensorView& w, LowBit format, const QuantizeOptions& options,
                        LowBitBytes& to) {
  if (static_cast<int>(format) >= count_of<LowBit>)
    return refuse(
        fmt::format("format = {} is none of the {}", static_cast<int>(format), count_of<LowBit>));
  const LowBitTraits& t = traits(format);
  const Index k = w.shape[2], n = w.shape[3];
  if (w.shape[0] != 1 || w.shape[1] != 1 || k < 1 || n < 1)
    return refuse(fmt::format("w has shape [{}], not [1, 1, K, N]", fmt::join(w.shape, ", ")));
  constexpr Index most = Index{1} << 40;
  for (auto [name, value] : {std::pair{"k", k}, {"n", n}, {"group", options.group}})
    if (value > most) return refuse(fmt::format("{} = {} is above {}", name, value, most));
  if (static_cast<double>(k) * static_cast<double>(n) > 0x1p46)
    return {StatusCode::memory_allocation_failed,
            fmt::format("k * n = {} * {} weights are above 2^46", k, n)};
  if (w.dtype != Dtype::f32 && w.dtype != Dtype::f16 && w.dtype != Dtype::bf16)
    return {StatusCode::unsupported,
            fmt::format("w is {}; weights are quantized from f32, f16 and bf16",
                        name_of_dtype(w.dtype))};
  if (!w) return refuse("w is null");
  if (!reach_of(footprint_of(w, w.shape)))
    return refuse(fmt::format("w with strides {} reaches more than 2^57 bytes from its pointer",
                              fmt::join(w.stride, ", ")));
  const bool no_scales = options.group == -1 && t.scale == Dtype::e8m0 && t.group_free;
  const Index group = no_scales ? 0 : options.group == 0 ? t.group : options.group;
  if (!no_scales && (group < 8 || group % 8 != 0))
    return refuse(fmt::format("group = {} is not a positive multiple of 8", options.group));
  if (!t.group_free && group != t.group)
    return refuse(fmt::format("group = {}: groups of {} have {}", group, t.name, t.group));
  if (!options.pad_k && !no_scales && k % group != 0)
    return refuse(fmt::format("k = {} is not whole groups of {}, and pad_k is off", k, group));
  if (format == LowBit::fp4_sparse && k % 4 != 0)
    return refuse(fmt::format("k = {} is not a multiple of 4, of which two are kept", k));
  try {
    LowBitBytes made;
    if (Status status = Quantizer(format, group, w, options.target, made).run(); !status.ok())
      return status;
    to = std::move(made);
  } catch (const std::bad_alloc&) {
    return out_of_memory("the bytes of {} x {} weights", k, n);
  }
  return {};
}

}  // namespace assay::kernels
