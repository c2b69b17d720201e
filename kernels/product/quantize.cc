// Quantizes numbers to codes and scales, by the rules of problem/low_bit.h. This is the kernels'
// own encoder.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <new>

#include "kernels/simd/codec.h"
#include "kernels/simd/convert.h"
#include "kernels/overlap.h"
#include "kernels/product/product_plan.h"
#include "kernels/simd/scratch.h"

namespace assay::kernels {
namespace {

Status refuse(std::string detail) { return {StatusCode::invalid_arguments, std::move(detail)}; }

constexpr NarrowFormat f16_format{16, 10, -14, 0x7BFF, 0x7E00, true};

class Quantizer {
 public:
  Quantizer(LowBit format, Index group, const TensorView& w, LowBitBytes& to)
      : format_(format),
        traits_(traits(format)),
        k_(w.shape[2]),
        n_(w.shape[3]),
        group_(group),
        to_(to),
        column_(usize(k_)),
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
      for (Index n = 0; n < n_; ++n) {
        if (Status status = load_column(n); !status.ok()) return status;
        for (float x : column_) largest = std::max(largest, std::fabs(x));
      }
      tensor_scale_ = static_cast<float>(static_cast<double>(largest) / (6 * 448.0));
      if (tensor_scale_ == 0) tensor_scale_ = 1;
    }
    to_.tensor_scale = tensor_scale_;
    for (Index n = 0; n < n_; ++n) {
      if (Status status = load_column(n); !status.ok()) return status;
      const Index step = group_ > 0 ? group_ : k_;
      for (Index t = 0, begin = 0; begin < k_; ++t, begin += step)
        if (Status status = quantize_group(t, n, begin, std::min(begin + step, k_)); !status.ok())
          return status;
    }
    return {};
  }

 private:
  double value(Index k) const { return column_[usize(k)]; }

  Status load_column(Index n) {
    for (Index k = 0; k < k_; ++k) {
      const Index at = w_.at(0, 0, k, n);
      float& x = column_[usize(k)];
      if (w_.dtype == Dtype::f32) x = static_cast<const float*>(w_.data)[at];
      else if (w_.dtype == Dtype::bf16)
        x = from_bf16(static_cast<const std::uint16_t*>(w_.data)[at]);
      else x = from_f16(static_cast<const std::uint16_t*>(w_.data)[at]);
      if (!std::isfinite(x))
        return refuse(fmt::format("w[{}, {}] = {} is not finite, and has no code", k, n, x));
    }
    return {};
  }

  Status quantize_group(Index t, Index n, Index begin, Index end) {
    if (traits_.integer) return quantize_integers(t, n, begin, end);
    double largest = 0;
    for (Index k = begin; k < end; ++k) largest = std::max(largest, std::fabs(value(k)));
    double scale = 1;
    if (group_ > 0) {
      std::uint32_t code = 0;
      if (traits_.scale == Dtype::e8m0) {
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
      } else if (Status status = f16_scale(largest / 6, t, n, code, scale); !status.ok()) {
        return status;
      }
      put_scale(t, n, code);
    }
    if (traits_.layout == CodeLayout::sparse) {
      for (Index k = begin; k < end; k += 4) keep_two(n, k, scale);
      return {};
    }
    const NarrowFormat element = narrow_format(traits_.element);
    for (Index k = begin; k < end; ++k)
      put(k, n, scale == 0 ? 0 : encode_exact(element, value(k) / scale));
    return {};
  }

  Status quantize_integers(Index t, Index n, Index begin, Index end) {
    double low = 0, high = 0;
    for (Index k = begin; k < end; ++k) {
      low = std::min(low, value(k));
      high = std::max(high, value(k));
    }
    const double least = traits_.bits == 8 ? -128 : 0, levels = traits_.bits == 8 ? 255 : 15;
    std::uint32_t code = 0;
    double scale = 1;
    if (Status status = f16_scale((high - low) / levels, t, n, code, scale); !status.ok())
      return status;
    put_scale(t, n, code);
    const auto round_into = [&](double x) { return std::min(std::max(x, least), least + levels); };
    const double zero = round_into(std::nearbyint(-low / scale) + least);
    to_.extra[usize(t * n_ + n)] = static_cast<std::byte>(static_cast<int>(zero));
    for (Index k = begin; k < end; ++k)
      put(k, n,
          static_cast<std::uint32_t>(
              static_cast<int>(round_into(std::nearbyint(value(k) / scale) + zero))) &
              (traits_.bits == 8 ? 0xFFu : 0xFu));
    return {};
  }

  Status f16_scale(double wanted, Index t, Index n, std::uint32_t& code, double& scale) {
    if (wanted >= 65520)
      return refuse(
          fmt::format("the scale {} of group {} of column {} is above 65504, the largest of f16",
                      wanted, t, n));
    code = std::max<std::uint32_t>(encode_exact(f16_format, wanted), 1);
    scale = static_cast<double>(from_f16(static_cast<std::uint16_t>(code)));
    return {};
  }

  void put_scale(Index t, Index n, std::uint32_t code) {
    const Index at =
        traits_.layout == CodeLayout::columns ? n * ((k_ + group_ - 1) / group_) + t : t * n_ + n;
    const std::size_t bytes = traits_.scale == Dtype::f16 ? 2 : 1;
    std::memcpy(to_.scales.data() + usize(at) * bytes, &code, bytes);
  }

  void put(Index k, Index n, std::uint32_t code) {
    std::byte* codes = to_.codes.data();
    if (traits_.layout == CodeLayout::words) put_code(4, codes, (k / 8 * n_ + n) * 8 + k % 8, code);
    else if (traits_.layout == CodeLayout::bytes) put_code(8, codes, k * n_ + n, code);
    else put_code(traits_.bits, codes + n * ((k_ * traits_.bits + 7) / 8), k, code);
  }

  // Finds the two elements of largest magnitude among four k, from `first` on. Where magnitudes are
  // equal, the lower index is taken.
  void keep_two(Index n, Index first, double scale) {
    Index best = 0, next = -1;
    const auto size = [&](Index i) { return std::fabs(value(first + i)); };
    for (Index i = 1; i < 4; ++i) {
      if (size(i) > size(best)) {
        next = best;
        best = i;
      } else if (next < 0 || size(i) > size(next)) {
        next = i;
      }
    }
    const Index low = std::min(best, next), high = std::max(best, next), quad = first / 4;
    const NarrowFormat element = narrow_format(Dtype::f4e2m1);
    const Index pair = (quad / 4 * n_ + n) * 8 + quad % 4 * 2;
    put_code(4, to_.codes.data(), pair, encode_exact(element, value(first + low) / scale));
    put_code(4, to_.codes.data(), pair + 1, encode_exact(element, value(first + high) / scale));
    put_code(4, to_.extra.data(), (quad / 8 * n_ + n) * 8 + quad % 8,
             static_cast<std::uint32_t>(high * 4 + low));
  }

  const LowBit format_;
  const LowBitTraits& traits_;
  const Index k_, n_, group_;
  LowBitBytes& to_;
  std::vector<float> column_;
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
    if (Status status = Quantizer(format, group, w, made).run(); !status.ok()) return status;
    to = std::move(made);
  } catch (const std::bad_alloc&) {
    return out_of_memory("the bytes of {} x {} weights", k, n);
  }
  return {};
}

}  // namespace assay::kernels
