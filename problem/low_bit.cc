#include "problem/low_bit.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "problem/weight_sets.h"

namespace assay {
namespace {

using enum CodeLayout;
constexpr Index divide_up(Index a, Index b) { return (a + b - 1) / b; }

Tensor byte_tensor(Index count, Surroundings around) {
  return Tensor(Dtype::f8e4m3, {1, 1, 1, count}, {{0, 0, 0, 1}, 0, count}, around);
}

// Writes nibble `at` of 32-bit words or of bytes, the low one first. On a little-endian machine
// both have the same order.
void put_nibble(std::byte* data, Index at, std::uint32_t code) {
  std::byte& b = data[at / 2];
  b = at % 2 ? (b & std::byte{0x0F}) | static_cast<std::byte>(code << 4)
             : (b & std::byte{0xF0}) | static_cast<std::byte>(code);
}

double largest_of(Index begin, Index end, Index n,
                  const std::function<double(Index, Index)>& value) {
  double largest = 0;
  for (Index k = begin; k < end; ++k) largest = std::max(largest, std::fabs(value(k, n)));
  return largest;
}

double nearest_integer(double x) {
  return std::nearbyint(x);
}  // ties go to even, because the rounding mode is never changed

void refuse_scale(double scale, Index t, Index n) {
  throw std::domain_error(
      fmt::format("the scale {} of group {} of column {} overflows f16", scale, t, n));
}

// The code of max(RN16(x), 2^-24).
std::uint64_t f16_scale(double x, Index t, Index n) {
  const std::uint64_t code = encode(Dtype::f16, x);
  if (std::isinf(decode(Dtype::f16, code))) refuse_scale(x, t, n);
  return std::max<std::uint64_t>(code, 1);
}

void quantize_integers(LowBitMatrix& to, const LowBitView& v, Index t, Index n,
                       const std::function<double(Index, Index)>& value) {
  const double least = traits(v.format).bits == 8 ? -128 : 0,
               most = traits(v.format).bits == 8 ? 127 : 15;
  const Index begin = t * v.group, end = std::min(begin + v.group, v.k);
  double low = 0, high = 0;
  for (Index k = begin; k < end; ++k) {
    low = std::min(low, value(k, n));
    high = std::max(high, value(k, n));
  }
  const std::uint64_t code = f16_scale((high - low) / (most - least), t, n);
  const double scale = decode(Dtype::f16, code);
  const double zero = std::clamp(nearest_integer(-low / scale) + least, least, most);
  to.set_scale(t, n, static_cast<std::uint32_t>(code));
  to.set_zero(t, n, static_cast<int>(zero));
  for (Index k = begin; k < end; ++k) {
    const auto q =
        static_cast<int>(std::clamp(nearest_integer(value(k, n) / scale) + zero, least, most));
    to.set_code(k, n, static_cast<std::uint32_t>(q) & (traits(v.format).bits == 8 ? 0xFFu : 0xFu));
  }
}

void keep_two_of_four(LowBitMatrix& to, Index quad, Index n, const std::array<double, 4>& x,
                      double scale) {
  std::array<int, 4> order = {0, 1, 2, 3};
  std::ranges::sort(order, {}, [&](int p) { return std::pair(-std::fabs(x[usize(p)]), p); });
  const int first = std::min(order[0], order[1]), second = std::max(order[0], order[1]);
  auto code = [&](int p) {
    return static_cast<std::uint32_t>(encode(Dtype::f4e2m1, x[usize(p)] / scale));
  };
  to.set_kept(quad, n, first, second, code(first), code(second));
}

// The code of the E8M0 scale of a group with this largest magnitude.
std::uint64_t power_scale(GroupScale rule, Dtype element, double largest) {
  if (largest == 0) return 0;
  const Format& f = assay::format(element);
  const int top = std::ilogb(f.max_finite);
  switch (rule) {
    case GroupScale::ceil: return encode_scale(std::ldexp(largest, -top), ScaleRule::ceil);
    case GroupScale::rceil: return encode_scale(largest / f.max_finite, ScaleRule::ceil);
    case GroupScale::even: {
      const int ulp = std::ilogb(largest) - f.precision + 1;
      largest = std::ldexp(nearest_integer(std::ldexp(largest, -ulp)), ulp);
      break;
    }
    case GroupScale::floor: break;
  }
  return encode_scale(std::ldexp(largest, -top), ScaleRule::floor);
}

}  // namespace

LowBitSizes sizes_of(LowBit format, Index k, Index n, Index group) {
  const LowBitTraits& t = traits(format);
  const Index groups = group > 0 ? divide_up(k, group) : 0;
  LowBitSizes s;
  s.scales = groups * n * (t.scale == Dtype::f16 ? 2 : 1);
  switch (t.layout) {
    case columns: s.codes = n * divide_up(k * t.bits, 8); break;
    case words: s.codes = 4 * n * divide_up(k, 8); break;
    case sparse:
      s.codes = 4 * n * divide_up(k, 16);
      s.extra = 4 * n * divide_up(k, 32);
      break;
    case bytes: s.codes = n * k; break;
  }
  if (t.integer) s.extra = groups * n;
  return s;
}

LowBitMatrix::LowBitMatrix(LowBit format, Index k, Index n, Index group, Surroundings around)
    : format_(format), k_(k), n_(n), group_(group) {
  const LowBitSizes s = sizes_of(format, k, n, group);
  codes_ = byte_tensor(s.codes, around);
  scales_ = byte_tensor(s.scales, around);
  extra_ = byte_tensor(s.extra, around);
  std::memset(codes_.bytes(), 0xFF, codes_.size_in_bytes());
  if (traits(format).layout == sparse) std::memset(extra_.bytes(), 0xFF, extra_.size_in_bytes());
}

LowBitView LowBitMatrix::view() const {
  LowBitView v;
  v.format = format_;
  v.k = k_;
  v.n = n_;
  v.group = group_;
  v.codes = codes_.bytes();
  v.scales = scales_.size_in_bytes() > 0 ? scales_.bytes() : nullptr;
  v.extra = extra_.size_in_bytes() > 0 ? extra_.bytes() : nullptr;
  v.tensor_scale = tensor_scale_;
  return v;
}

void LowBitMatrix::set_code(Index k, Index n, std::uint32_t code) {
  const LowBitTraits& t = traits(format_);
  switch (t.layout) {
    case columns:
      if (t.bits == 4) put_nibble(codes_.bytes(), n * divide_up(k_, 2) * 2 + k, code);
      else codes_.bytes()[n * k_ + k] = static_cast<std::byte>(code);
      break;
    case words: put_nibble(codes_.bytes(), (k / 8 * n_ + n) * 8 + k % 8, code); break;
    case bytes: codes_.bytes()[k * n_ + n] = static_cast<std::byte>(code); break;
    case sparse: throw std::logic_error("a sparse matrix is written by set_kept");
  }
}

void LowBitMatrix::set_scale(Index t, Index n, std::uint32_t code) {
  const Index at = traits(format_).layout == columns ? n * divide_up(k_, group_) + t : t * n_ + n;
  if (traits(format_).scale == Dtype::f16) {
    const auto half = static_cast<std::uint16_t>(code);
    std::memcpy(scales_.bytes() + 2 * at, &half, 2);
  } else {
    scales_.bytes()[at] = static_cast<std::byte>(code);
  }
}

void LowBitMatrix::set_zero(Index t, Index n, int zero) {
  extra_.bytes()[t * n_ + n] = static_cast<std::byte>(zero);
}

void LowBitMatrix::set_kept(Index quad, Index n, int first, int second, std::uint32_t first_code,
                            std::uint32_t second_code) {
  const Index at = (quad / 4 * n_ + n) * 8 + quad % 4 * 2;
  put_nibble(codes_.bytes(), at, first_code);
  put_nibble(codes_.bytes(), at + 1, second_code);
  put_nibble(extra_.bytes(), (quad / 8 * n_ + n) * 8 + quad % 8,
             static_cast<std::uint32_t>(second * 4 + first));
}

LowBitMatrix quantize(LowBit format, Index k, Index n, Index group,
                      const std::function<double(Index, Index)>& value, Surroundings around) {
  return quantize_by(GroupScale::floor, format, k, n, group, value, around);
}

LowBitMatrix quantize_by(GroupScale rule, LowBit format, Index k, Index n, Index group,
                         const std::function<double(Index, Index)>& value, Surroundings around) {
  const LowBitTraits& t = traits(format);
  LowBitMatrix to(format, k, n, group, around);
  for (Index c = 0; c < n; ++c)
    for (Index r = 0; r < k; ++r)
      if (!std::isfinite(value(r, c)))
        throw std::domain_error(
            fmt::format("element [{}, {}] = {} is not finite", r, c, value(r, c)));
  double tensor_scale = 1;
  if (format == LowBit::nvfp4) {
    double largest = 0;
    for (Index c = 0; c < n; ++c) largest = std::max(largest, largest_of(0, k, c, value));
    tensor_scale = static_cast<float>(largest / (6 * 448.0));
    if (tensor_scale == 0) tensor_scale = 1;
    to.set_tensor_scale(static_cast<float>(tensor_scale));
  }
  const Index step = group > 0 ? group : k;
  for (Index c = 0; c < n; ++c)
    for (Index begin = 0, g = 0; begin < k; begin += step, ++g) {
      if (t.integer) {
        quantize_integers(to, to.view(), g, c, value);
        continue;
      }
      const Index end = std::min(begin + step, k);
      const double largest = largest_of(begin, end, c, value);
      std::uint64_t code = 0;
      double scale = 1;
      if (group > 0) {
        if (t.scale == Dtype::e8m0) {
          code = power_scale(rule, t.element, largest);
        } else if (format == LowBit::nvfp4) {
          code = encode(Dtype::f8e4m3, largest / (6 * tensor_scale));
        } else {
          code = f16_scale(largest / 6, g, c);
        }
        scale = decode(t.scale, code) * tensor_scale;
        to.set_scale(g, c, static_cast<std::uint32_t>(code));
      }
      if (t.layout == sparse) {
        for (Index q = begin / 4; q * 4 < end; ++q)
          keep_two_of_four(
              to, q, c,
              {value(4 * q, c), value(4 * q + 1, c), value(4 * q + 2, c), value(4 * q + 3, c)},
              scale);
        continue;
      }
      for (Index r = begin; r < end; ++r)
        to.set_code(
            r, c,
            scale == 0 ? 0 : static_cast<std::uint32_t>(encode(t.element, value(r, c) / scale)));
    }
  return to;
}

}  // namespace assay
