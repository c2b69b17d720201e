#include "harness/judging/quantizer_faults.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "harness/judging/judged_bits.h"
#include "oracle/low_bit_operands.h"

namespace assay {
namespace {

double f32(double x) { return round_to(Dtype::f32, x); }
double bf16(double x) { return round_to(Dtype::bf16, x); }
double f16(double x) { return round_to(Dtype::f16, x); }

double number(const Quantized& q, Index k, Index n) { return load(q.w, q.w.at(0, 0, k, n)); }
Index step_of(const LowBitView& m) { return m.group > 0 ? m.group : std::max<Index>(m.k, 1); }

Explanation explained(std::string_view name, std::string words) {
  Explanation e;
  e.hypothesis = name;
  e.words = std::move(words);
  return e;
}

// ---- Scales ----

bool same_bytes(const std::byte* x, const std::byte* y, Index bytes) {
  return bytes == 0 || std::memcmp(x, y, usize(bytes)) == 0;
}
bool same_zeros(const LowBitView& a, const LowBitView& b) {
  return same_bytes(a.extra, b.extra, sizes_of(a.format, a.k, a.n, a.group).extra);
}
bool same_scales(const LowBitView& a, const LowBitView& b) {
  return a.tensor_scale == b.tensor_scale &&
         same_bytes(a.scales, b.scales, sizes_of(a.format, a.k, a.n, a.group).scales);
}

// What the quantizer may have taken for w[k, n] when it looked for the scales.
struct OtherNumbers {
  std::string_view name, words;
  double (*of)(const Quantized& q, Index k, Index n);
};
constexpr OtherNumbers other_numbers[] = {
    {"scale-of-signed-largest", "scales are those of the largest number, not of the largest size",
     [](const Quantized& q, Index k, Index n) { return std::max(number(q, k, n), 0.0); }},
    {"scale-of-bf16", "scales are those of the numbers rounded to bf16",
     [](const Quantized& q, Index k, Index n) { return bf16(number(q, k, n)); }},
    {"scale-of-f16", "scales are those of the numbers rounded to f16",
     [](const Quantized& q, Index k, Index n) { return f16(number(q, k, n)); }},
    {"scale-without-last", "the last number of a group has no part in its scale",
     [](const Quantized& q, Index k, Index n) {
       const bool last = k + 1 == q.w.shape[2] || (k + 1) % step_of(q.rule) == 0;
       return last ? 0 : number(q, k, n);
     }},
    {"scale-of-first-group", "every group has the scale of the first",
     [](const Quantized& q, Index k, Index n) { return number(q, k % step_of(q.rule), n); }},
    {"scale-of-column", "every group has the scale of its whole column",
     [](const Quantized& q, Index, Index n) {
       double largest = 0;
       for (Index k = 0; k < q.w.shape[2]; ++k)
         largest = std::max(largest, std::fabs(number(q, k, n)));
       return largest;
     }},
    {"scale-doubled", "scales are twice as large, as by a step of their exponent",
     [](const Quantized& q, Index k, Index n) { return 2 * number(q, k, n); }},
    {"scale-halved", "scales are half as large, as by a step of their exponent",
     [](const Quantized& q, Index k, Index n) { return number(q, k, n) / 2; }},
};

bool gives_scales(const Quantized& q, GroupScale rule,
                  const std::function<double(Index, Index)>& value) {
  try {
    const LowBitMatrix made =
        quantize_by(rule, q.rule.format, q.rule.k, q.rule.n, q.rule.group, value);
    return same_scales(made.view(), q.got) && same_zeros(made.view(), q.got);
  } catch (const std::domain_error&) {
    return false;  // these numbers have no scale
  }
}

std::optional<Explanation> fault_of_scales(const Quantized& q) {
  for (const auto& rule : table_of<GroupScale>)
    if (rule.value != q.scales &&
        gives_scales(q, rule.value, [&](Index k, Index n) { return number(q, k, n); }))
      return explained("scale-rule",
                       fmt::format("scales follow the rule {}, and {} is the one that is declared",
                                   rule.name, name_of(q.scales)));
  for (const OtherNumbers& other : other_numbers)
    if (gives_scales(q, q.scales, [&](Index k, Index n) { return other.of(q, k, n); }))
      return explained(other.name, std::string(other.words));
  return std::nullopt;
}

// ---- Codes ----

// The codes of one column, without scales: the numbers between which a quotient is rounded.
class Grid {
 public:
  Grid(const LowBitTraits& t, double zero) : integer_(t.integer) {
    if (integer_) {
      const double least = t.bits == 8 ? -128 : 0, most = t.bits == 8 ? 127 : 15;
      least_ = least - zero, most_ = most - zero;
      return;
    }
    for (std::uint64_t code = 0; code < std::uint64_t{1} << (t.bits - 1); ++code)
      if (const double x = decode(t.element, code); std::isfinite(x)) sizes_.push_back(x);
    std::ranges::sort(sizes_);
    most_ = sizes_.back(), least_ = -most_;
  }

  double most() const { return most_; }
  double least() const { return least_; }
  bool saturates(double y) const { return y < least_ || y > most_; }
  // The codes below and above |y|, with the sign of y.
  std::pair<double, double> around(double y) const {
    if (saturates(y)) return {std::clamp(y, least_, most_), std::clamp(y, least_, most_)};
    if (integer_)
      return {std::trunc(y), std::trunc(y) + (y == std::trunc(y) ? 0 : std::copysign(1, y))};
    const auto above = std::ranges::lower_bound(sizes_, std::fabs(y));
    const auto below = *above == std::fabs(y) ? above : above - 1;
    return {std::copysign(*below, y), std::copysign(*above, y)};
  }

 private:
  bool integer_;
  double least_ = 0, most_ = 0;
  std::vector<double> sizes_;
};

// The code that is nearest to y, or one of the two that are; `up` is the larger in size.
template <class Tie>
double nearest(const Grid& grid, double y, const Tie& takes_up) {
  const auto [down, up] = grid.around(y);
  const double below = std::fabs(y - down), above = std::fabs(up - y);
  return below == above ? (takes_up(down, up) ? up : down) : below < above ? down : up;
}
double nearest_even(const Grid& grid, const LowBitTraits& t, double y) {
  return nearest(grid, y, [&](double down, double up) {
    return t.integer ? std::fmod(down, 2) != 0 : (encode(t.element, up) & 1) == 0;
  });
}

// How the code of the number x under the scale s may come to be.
struct OtherRounding {
  std::string_view name, words;
  double (*of)(const Grid& grid, const LowBitTraits& t, double x, double s);
};
constexpr OtherRounding other_roundings[] = {
    {"quantizer-ties-away", "ties are rounded away from zero",
     [](const Grid& g, const LowBitTraits&, double x, double s) {
       return nearest(g, x / s, [](double, double) { return true; });
     }},
    {"quantizer-ties-to-zero", "ties are rounded towards zero",
     [](const Grid& g, const LowBitTraits&, double x, double s) {
       return nearest(g, x / s, [](double, double) { return false; });
     }},
    {"quantizer-ties-up", "ties are rounded up",
     [](const Grid& g, const LowBitTraits&, double x, double s) {
       return nearest(g, x / s, [](double, double up) { return up > 0; });
     }},
    {"quantizer-truncates", "numbers are rounded towards zero",
     [](const Grid& g, const LowBitTraits&, double x, double s) { return g.around(x / s).first; }},
    {"quantizer-rounds-down", "numbers are rounded down",
     [](const Grid& g, const LowBitTraits&, double x, double s) {
       const auto [down, up] = g.around(x / s);
       return std::min(down, up);
     }},
    {"quantizer-reciprocal",
     "numbers are multiplied by the inverse of the scale, not divided by it",
     [](const Grid& g, const LowBitTraits& t, double x, double s) {
       return nearest_even(g, t, f32(x * f32(1 / s)));
     }},
    {"quantizer-rounds-first", "quotients are rounded to f16 before they are rounded to a code",
     [](const Grid& g, const LowBitTraits& t, double x, double s) {
       return nearest_even(g, t, f16(x / s));
     }},
    {"quantizer-rounds-first", "quotients are rounded to bf16 before they are rounded to a code",
     [](const Grid& g, const LowBitTraits& t, double x, double s) {
       return nearest_even(g, t, bf16(x / s));
     }},
    {"quantizer-rounds-first", "numbers are rounded to bf16 before they are divided",
     [](const Grid& g, const LowBitTraits& t, double x, double s) {
       return nearest_even(g, t, bf16(x) / s);
     }},
    {"quantizer-drops-sign", "signs are dropped",
     [](const Grid& g, const LowBitTraits& t, double x, double s) {
       return nearest_even(g, t, std::fabs(x / s));
     }},
    {"quantizer-zero-without-sign", "codes of zero have no sign",
     [](const Grid& g, const LowBitTraits& t, double x, double s) {
       return nearest_even(g, t, x / s) + 0.0;
     }},
};

// The codes that were written, beside what is rounded to them.
class Codes {
 public:
  explicit Codes(const Quantized& q)
      : q_(q), t_(traits(q.got.format)), got_(q.got, 0, q.got.n), floats_(t_, 0) {}

  template <class Check>
  bool all(const Check& check) const {
    for (Index n = 0; n < q_.got.n; ++n)
      for (Index k = 0; k < q_.got.k; ++k)
        if (!check(k, n)) return false;
    return true;
  }
  double scale(Index k, Index n) const {
    return got_.scale_at(k / got_.step, n) * static_cast<double>(q_.got.tensor_scale);
  }
  double quotient(Index k, Index n) const { return number(q_, k, n) / scale(k, n); }
  Grid grid(Index k, Index n) const {
    if (!t_.integer) return floats_;
    const auto* zeros = reinterpret_cast<const std::uint8_t*>(q_.got.extra);
    const int zero = zeros[k / got_.step * q_.got.n + n];
    return Grid(t_, t_.bits == 8 ? static_cast<std::int8_t>(zero) : zero);
  }
  double right(Index k, Index n) const {
    const double s = scale(k, n);
    return s == 0 ? 0 : stored(nearest_even(grid(k, n), t_, number(q_, k, n) / s));
  }
  double by(const OtherRounding& other, Index k, Index n) const {
    const double s = scale(k, n);
    return s == 0 ? 0 : stored(other.of(grid(k, n), t_, number(q_, k, n), s));
  }
  double got(Index k, Index n) const { return got_.code_at(k, n); }
  bool is_right(Index k, Index n) const { return stored_alike(got(k, n), right(k, n)); }
  Index keys() const { return q_.got.k; }
  bool in_last_group(Index k) const {
    return q_.got.k % got_.step != 0 && k >= q_.got.k / got_.step * got_.step;
  }
  double least_normal() const {
    return t_.integer ? 0 : std::ldexp(1, format(t_.element).min_exponent);
  }

 private:
  // An integer code has no zero with a sign.
  double stored(double code) const { return t_.integer ? code + 0.0 : code; }

  const Quantized& q_;
  const LowBitTraits& t_;
  const ProductColumns got_;
  const Grid floats_;
};

std::optional<Explanation> fault_of_codes(const Codes& codes) {
  for (const OtherRounding& other : other_roundings)
    if (codes.all(
            [&](Index k, Index n) { return stored_alike(codes.got(k, n), codes.by(other, k, n)); }))
      return explained(other.name, std::string(other.words));
  const auto exchanged = [&](Index k, Index n) {
    return (k ^ 1) < codes.keys() ? stored_alike(codes.got(k, n), codes.right(k ^ 1, n)) : true;
  };
  if (codes.all(exchanged))
    return explained("quantizer-nibbles-exchanged", "pairs of codes have each other's place");
  const auto only = [&](const auto& where) {
    return codes.all([&](Index k, Index n) { return codes.is_right(k, n) || where(k, n); });
  };
  if (only([&](Index k, Index n) { return codes.grid(k, n).saturates(codes.quotient(k, n)); }))
    return explained("quantizer-does-not-saturate",
                     "numbers beyond the largest code do not saturate");
  if (only([&](Index k, Index) { return codes.in_last_group(k); }))
    return explained("quantizer-last-group", "the last group, which is shorter, has wrong codes");
  if (only(
          [&](Index k, Index n) { return std::fabs(codes.quotient(k, n)) < codes.least_normal(); }))
    return explained("quantizer-subnormals", "codes below the normal ones are wrong");
  return std::nullopt;
}

}  // namespace

std::optional<Explanation> fault_of_quantizer(const Quantized& q) {
  if (traits(q.rule.format).layout == CodeLayout::sparse || q.rule.k == 0 || q.rule.n == 0)
    return std::nullopt;
  const Codes codes(q);
  const bool right_codes = codes.all([&](Index k, Index n) { return codes.is_right(k, n); });
  const bool scales = same_scales(q.rule, q.got), zeros = same_zeros(q.rule, q.got);
  // What rounds codes otherwise may do the same to zero points.
  if (scales && !right_codes) return fault_of_codes(codes);
  if (!right_codes || (scales && zeros)) return std::nullopt;
  if (std::optional<Explanation> found = fault_of_scales(q)) return found;
  return explained(scales ? "quantizer-zero-points" : "quantizer-scales",
                   fmt::format("the codes are right for the {} that were written, which are not "
                               "those of the rule",
                               scales ? "zero points" : "scales"));
}

}  // namespace assay
