#include "problem/weight_sets.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace assay {
namespace {

constexpr Index few_columns = 512;

float next(double x, bool up) {
  const float infinity = std::numeric_limits<float>::infinity();
  return std::nextafter(static_cast<float>(x), up ? infinity : -infinity);
}

// Under the scale 1: the numbers that have a code, ties, their neighbours, and what saturates, of
// both signs.
std::vector<float> numbers_of(Dtype element) {
  std::vector<float> list = {0};
  const auto codes = encode(element, format(element).max_finite);
  for (std::uint64_t code = 1; code <= codes; ++code) {
    const double x = decode(element, code), tie = (x + decode(element, code - 1)) / 2;
    list.insert(list.end(), {next(tie, false), static_cast<float>(tie), next(tie, true),
                             static_cast<float>(x)});
  }
  const double largest = format(element).max_finite, step = largest - decode(element, codes - 1);
  for (const double beyond : {0.25, 0.5, 0.75, 1.0, 1.5})
    list.push_back(static_cast<float>(largest + beyond * step));
  const std::size_t positive = list.size();
  for (std::size_t e = 0; e < positive; ++e) list.push_back(-list[e]);
  return list;
}

// The rows of a matrix of whole groups.
Index rows_of_groups(Index group) {
  constexpr Index usual = 128;
  return group == 0 || usual % group == 0 ? usual : group;
}

// Fills columns one after another. Each column has a largest magnitude and a unit. Its numbers are
// those of the list times the unit; it goes on in the list where the column before has ended.
class Columns {
 public:
  Columns(Index k, Index group, std::vector<float> numbers)
      : group_(group == 0 ? k : group), numbers_(std::move(numbers)) {
    set_.k = k;
  }
  // The first number of every group is the largest; the others are smaller. Numbers that f32 does
  // not hold are left out.
  void add(double largest, double unit) {
    const auto top = static_cast<float>(largest);
    if (static_cast<double>(top) != largest || !std::isfinite(top)) return;
    std::vector<float> column(usize(set_.k));
    for (Index k = 0; k < set_.k; ++k) {
      float& x = column[usize(k)];
      x = columns_.size() % 2 ? -top : top;
      if (k % group_ == 0) continue;
      const float number = numbers_[at_++ % numbers_.size()];
      const double scaled = static_cast<double>(number) * unit;
      if (std::fabs(scaled) <= largest) x = static_cast<float>(scaled);
    }
    columns_.push_back(std::move(column));
  }
  WeightSet finish() {
    set_.n = std::ssize(columns_);
    set_.values.resize(usize(set_.k * set_.n));
    for (Index n = 0; n < set_.n; ++n)
      for (Index k = 0; k < set_.k; ++k)
        set_.values[usize(k * set_.n + n)] = columns_[usize(n)][usize(k)];
    return std::move(set_);
  }

 private:
  WeightSet set_;
  const Index group_;
  const std::vector<float> numbers_;
  std::size_t at_ = 0;
  std::vector<std::vector<float>> columns_;
};

// Every binade of f32, with the largest magnitudes at which the rules of scales differ in turn. The
// list is used under two scales, because they differ by a factor of two.
WeightSet ties_of_powers(const LowBitTraits& t, Index k, Index group) {
  const int top = std::ilogb(format(t.element).max_finite);
  const double most = std::ldexp(format(t.element).max_finite, -top),
               rounds_up = 2 - std::ldexp(1.0, -format(t.element).precision);
  const double thresholds[] = {1, most, rounds_up, 2 - 0x1p-23};
  Columns columns(k, group, numbers_of(t.element));
  for (int e = -149; e <= 127; ++e) {
    const double m = thresholds[(e + 149) % 4], a = std::ldexp(m, e);
    const double unit = std::ldexp(1.0, std::max(e - top, -127));
    for (const double largest :
         {static_cast<double>(next(a, false)), a, static_cast<double>(next(a, true))})
      columns.add(largest, m > 1 && largest >= a ? 2 * unit : unit);
  }
  return columns.finish();
}

WeightSet ties_of_tensor(const LowBitTraits& t, Index k, Index group) {
  // The tensor scale is 2^-3, because the largest magnitude is 6 * 448 / 8. Every scale that is a
  // number of E4M3, and the ties between two of them, times 6 is then the largest of a group.
  constexpr double tensor = 0.125;
  Columns columns(k, group, numbers_of(t.element));
  for (std::uint64_t code = 0x7E; code >= 1; --code) {
    const double s = decode(Dtype::f8e4m3, code), tie = (s + decode(Dtype::f8e4m3, code - 1)) / 2;
    columns.add(6 * s * tensor, s * tensor);
    columns.add(6 * tie * tensor, s * tensor);
  }
  return columns.finish();
}

WeightSet ties_of_halves(const LowBitTraits& t, Index k, Index group) {
  Columns columns(k, group, numbers_of(t.element));
  constexpr std::uint64_t last = 0x7BFF, step = last / few_columns;
  for (std::uint64_t code = 1; code <= last; code += step) {
    const double s = decode(Dtype::f16, code), tie = (s + decode(Dtype::f16, code - 1)) / 2;
    columns.add(6 * s, s);
    columns.add(6 * tie, s);
  }
  return columns.finish();
}

// The extremes of a group are (0 - z) and (levels - z) times the scale, where z runs over all zero
// points and the ties between them.
WeightSet ties_of_integers(const LowBitTraits& t, Index k, Index group) {
  const int levels = t.bits == 8 ? 255 : 15;
  const Index step = group == 0 ? k : group;
  constexpr std::uint64_t last = 0x7BFF, codes = last / few_columns;
  WeightSet set;
  set.k = k;
  set.n = static_cast<Index>(last / codes);
  set.values.resize(usize(set.k * set.n));
  for (Index n = 0; n < set.n; ++n) {
    const double s = decode(Dtype::f16, 1 + static_cast<std::uint64_t>(n) * codes),
                 low = -0.5 * static_cast<double>(n % (2 * levels + 1));
    for (Index row = 0; row < k; ++row) {
      const Index place = row % step;
      // Steps of a half reach every code and every tie, over some columns.
      const double q = place == 0 ? low
                       : place == 1
                           ? low + levels
                           : low + 0.5 * static_cast<double>((row + 37 * n) % (2 * levels + 1));
      set.values[usize(row * set.n + n)] = static_cast<float>(q * s);
    }
  }
  return set;
}

}  // namespace

int covering_exponent(Dtype element, double largest) {
  int e = -127;
  while (largest > std::ldexp(format(element).max_finite, e)) ++e;
  return e;
}

WeightSet ties_of(LowBit of, Index group) {
  const LowBitTraits& t = traits(of);
  const Index k = rows_of_groups(group);
  if (t.integer) return ties_of_integers(t, k, group);
  if (of == LowBit::nvfp4) return ties_of_tensor(t, k, group);
  if (t.scale == Dtype::f16) return ties_of_halves(t, k, group);
  if (group > 0) return ties_of_powers(t, k, group);
  Columns columns(k, group, numbers_of(t.element));
  const double most = format(t.element).max_finite;
  for (Index n = 0; n < 16; ++n) columns.add(2 * most, 1);
  return columns.finish();
}

LowBitMatrix codes_of(LowBit of, Index group) {
  const LowBitTraits& t = traits(of);
  const Index codes = Index{1} << t.bits, multiple = group == 0 ? codes : group;
  const Index k = std::max(rows_of_groups(group), (codes + multiple - 1) / multiple * multiple);
  const std::uint64_t last = t.scale == Dtype::e8m0     ? 0xFF
                             : t.scale == Dtype::f8e4m3 ? 0x7F
                                                        : 0x7BFF;
  const std::uint64_t step = std::max<std::uint64_t>(last / few_columns, 1);
  const auto n = group == 0 ? Index{4} : static_cast<Index>(last / step) + 1;
  LowBitMatrix to(of, k, n, group);
  if (of == LowBit::nvfp4) to.set_tensor_scale(0x1.8p-3F + 0x1p-26F);
  for (Index column = 0; column < n; ++column) {
    const auto scale = static_cast<std::uint32_t>(static_cast<std::uint64_t>(column) * step);
    for (Index g = 0; g < to.view().groups(); ++g) {
      to.set_scale(g, column, scale);
      if (t.integer)
        to.set_zero(g, column, static_cast<int>((column + g) % codes) - (t.bits == 8 ? 128 : 0));
    }
    for (Index row = 0; row < k && of != LowBit::fp4_sparse; ++row)
      to.set_code(row, column, static_cast<std::uint32_t>((row + column) % codes));
    for (Index quad = 0; 4 * quad < k && of == LowBit::fp4_sparse; ++quad) {
      constexpr int firsts[] = {0, 0, 0, 1, 1, 2}, seconds[] = {1, 2, 3, 2, 3, 3};
      const auto kept = usize((quad + column) % 6);
      to.set_kept(quad, column, firsts[kept], seconds[kept],
                  static_cast<std::uint32_t>((quad + column) % codes),
                  static_cast<std::uint32_t>((3 * quad + column + 5) % codes));
    }
  }
  return to;
}

}  // namespace assay
