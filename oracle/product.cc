#include "oracle/product.h"

#include <flint/fmpz.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "oracle/decide.h"
#include "problem/parallel.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
__extension__ using Int128 = __int128;

// ---- Decoding, by the layouts of problem/low_bit.h ----------------------------------------------------------

std::uint32_t word_at(const std::byte* data, Index at) {
  std::uint32_t word = 0;
  for (int b = 0; b < 4; ++b) word |= static_cast<std::uint32_t>(data[4 * at + b]) << (8 * b);
  return word;
}

std::uint32_t nibble_of_word(const std::byte* data, Index word, Index nibble) { return word_at(data, word) >> (4 * nibble) & 0xF; }

double element_value(const LowBitTraits& t, std::uint32_t code) {
  if (!t.integer) return decode(t.element, code);
  return t.bits == 8 && code >= 128 ? static_cast<double>(code) - 256 : static_cast<double>(code);
}

double zero_point(const LowBitView& w, Index t, Index n) {
  const auto code = static_cast<std::uint32_t>(w.extra[t * w.n + n]);
  return traits(w.format).bits == 8 && code >= 128 ? static_cast<double>(code) - 256 : static_cast<double>(code);
}

// The decoded code, zero point taken off, without any scale.
double code_value(const LowBitView& w, Index k, Index n) {
  const LowBitTraits& t = traits(w.format);
  std::uint32_t code = 0;
  switch (t.layout) {
    case CodeLayout::columns: {
      const Index column = (w.k * t.bits + 7) / 8 * n;
      if (t.bits == 8) code = static_cast<std::uint32_t>(w.codes[column + k]);
      else code = static_cast<std::uint32_t>(w.codes[column + k / 2]) >> (k % 2 == 0 ? 0 : 4) & 0xF;
      break;
    }
    case CodeLayout::words: code = nibble_of_word(w.codes, (k / 8) * w.n + n, k % 8); break;
    case CodeLayout::bytes: code = static_cast<std::uint32_t>(w.codes[k * w.n + n]); break;
    case CodeLayout::sparse: {
      const std::uint32_t kept = nibble_of_word(w.extra, (k / 32) * w.n + n, k / 4 % 8);
      for (Index which = 0; which < 2; ++which)
        if ((kept >> (2 * which) & 3) == static_cast<std::uint32_t>(k % 4)) return element_value(t, nibble_of_word(w.codes, (k / 16) * w.n + n, k / 4 % 4 * 2 + which));
      return 0;
    }
  }
  return element_value(t, code) - (t.integer ? zero_point(w, k / w.group, n) : 0);
}

double scale_value(const LowBitView& w, Index t, Index n) {
  if (w.group == 0) return 1;
  const LowBitTraits& format_of = traits(w.format);
  const Index at = format_of.layout == CodeLayout::columns ? n * w.groups() + t : t * w.n + n;
  std::uint32_t code = static_cast<std::uint32_t>(w.scales[at]);
  if (format_of.scale == Dtype::f16) code = static_cast<std::uint32_t>(w.scales[2 * at]) | static_cast<std::uint32_t>(w.scales[2 * at + 1]) << 8;
  return decode(format_of.scale, code);
}

// ---- Dyadic numbers -------------------------------------------------------------------------------------------

// The exponent of the lowest set bit of a finite x; a large number for 0.
constexpr int no_bit = 1 << 20;
int lowest_bit(double x) {
  if (x == 0) return no_bit;
  int e;
  const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(x, &e), 53));
  return e - 53 + std::countr_zero(static_cast<std::uint64_t>(mantissa));
}
int highest_bit(double x) { return x == 0 ? -no_bit : std::ilogb(x); }

bool is_power_of_two(double x) { return x != 0 && std::isfinite(x) && lowest_bit(x) == highest_bit(x); }

// A vector of numbers as integers times 2^exponent; without integers where they need more than 62 bits.
struct Integers {
  std::vector<std::int64_t> value;
  int exponent = 0, bits = 0;
  bool fits = true, finite = true;
};

template <class At>
Integers to_integers(Index count, const At& at) {
  Integers x;
  int low = no_bit, high = -no_bit;
  for (Index i = 0; i < count; ++i) {
    if (!std::isfinite(at(i))) {
      x.finite = x.fits = false;
      return x;
    }
    low = std::min(low, lowest_bit(at(i)));
    high = std::max(high, highest_bit(at(i)));
  }
  if (low == no_bit) low = high = 0;
  x.exponent = low;
  x.bits = high - low + 1;
  x.fits = x.bits <= 62;
  if (!x.fits) return x;
  x.value.resize(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) x.value[static_cast<std::size_t>(i)] = static_cast<std::int64_t>(std::ldexp(at(i), -low));
  return x;
}

ExactSum from_integer(Int128 sum, int exponent, int bits) {
  ExactSum s;
  s.bits = bits;
  const auto high = static_cast<double>(sum);
  const Int128 rest = sum - static_cast<Int128>(high);
  const auto low = static_cast<double>(rest);
  s.high = std::ldexp(high, exponent);
  s.low = std::ldexp(low, exponent);
  s.radius = static_cast<Int128>(low) == rest ? 0 : std::ldexp(std::fabs(low), exponent - 52);
  return s;
}

// Terms of any exponents, by big integers.
template <class Term>
ExactSum big_sum(Index count, const Term& term) {
  int low = no_bit;
  for (Index k = 0; k < count; ++k) low = std::min(low, lowest_bit(term(k)));
  ExactSum s;
  s.bits = 0;
  if (low == no_bit) return s;
  fmpz_t sum, x;
  fmpz_init(sum);
  fmpz_init(x);
  for (Index k = 0; k < count; ++k) {
    const double t = term(k);
    if (t == 0) continue;
    const int shift = lowest_bit(t);
    fmpz_set_si(x, static_cast<slong>(std::ldexp(t, -shift)));
    fmpz_mul_2exp(x, x, static_cast<ulong>(shift - low));
    fmpz_add(sum, sum, x);
  }
  // The leading 53 bits, the next 53, and what is left.
  for (double* part : {&s.high, &s.low}) {
    slong e = 0;
    const double mantissa = fmpz_get_d_2exp(&e, sum);  // truncated
    *part = std::ldexp(mantissa, static_cast<int>(e) + low);
    if (mantissa == 0) break;
    fmpz_set_si(x, static_cast<slong>(std::ldexp(mantissa, 53)));
    if (e >= 53) fmpz_mul_2exp(x, x, static_cast<ulong>(e - 53));
    else fmpz_fdiv_q_2exp(x, x, static_cast<ulong>(53 - e));
    fmpz_sub(sum, sum, x);
  }
  if (!fmpz_is_zero(sum)) {
    slong e = 0;
    const double mantissa = fmpz_get_d_2exp(&e, sum);
    s.radius = std::ldexp(std::fabs(mantissa), static_cast<int>(e) + low + 1);
  }
  fmpz_clear(sum);
  fmpz_clear(x);
  return s;
}

// Times a binary32 number: exact where it is a power of two, else within 2^-100.
ExactSum times(ExactSum s, double factor) {
  if (is_power_of_two(factor) || !std::isfinite(s.high)) {
    s.high *= factor;
    s.low *= factor;
    s.radius *= std::fabs(factor);
    return s;
  }
  const double high = s.high * factor, error = std::fma(s.high, factor, -high);
  const double low = std::fma(s.low, factor, error);
  s.radius = s.radius * std::fabs(factor) + std::fabs(high) * 0x1p-100;
  s.high = high;
  s.low = low;
  return s;
}

// ---- Operands -----------------------------------------------------------------------------------------------

struct Row {
  std::vector<double> a;       // without tensor scale
  std::vector<double> finite;  // the same, 0 where it is NaN or infinite
  Integers integers;
  std::vector<int> quantum;    // of each group of W: its lowest bit
  bool not_in_f32 = false;     // some dequantized element exceeds binary32
  void read(const Product& p, Index m);
};

void Row::read(const Product& p, Index m) {
  a.resize(static_cast<std::size_t>(p.k));
  not_in_f32 = false;
  for (Index k = 0; k < p.k; ++k) {
    a[static_cast<std::size_t>(k)] =
        p.a_low ? code_value(p.a_low, k, m) * scale_value(p.a_low, p.a_low.group > 0 ? k / p.a_low.group : 0, m) : load(p.a, p.a.at(0, 0, m, k));
    not_in_f32 |= std::isfinite(a[static_cast<std::size_t>(k)]) && std::fabs(a[static_cast<std::size_t>(k)]) > 0x1.fffffep127;
  }
  integers = to_integers(p.k, [&](Index k) { return a[static_cast<std::size_t>(k)]; });
  finite = a;
  if (!integers.finite) std::ranges::replace_if(finite, [](double x) { return !std::isfinite(x); }, 0.0);
  const Index step = p.w.group > 0 ? p.w.group : p.k;
  quantum.assign(static_cast<std::size_t>((p.k + step - 1) / step), no_bit);
  if (integers.finite)
    for (Index k = 0; k < p.k; ++k) quantum[static_cast<std::size_t>(k / step)] = std::min(quantum[static_cast<std::size_t>(k / step)], lowest_bit(a[static_cast<std::size_t>(k)]));
}

// Some columns of W: codes [k][column], scales [t][column].
struct Columns {
  Index first = 0, count = 0, groups = 0, step = 0;
  std::vector<double> code, scale;
  std::vector<double> finite_code, finite_scale;  // the same, 0 where they are NaN or infinite
  std::vector<Integers> integers;      // of a column's weights
  std::vector<int> quantum;            // of the codes of a group, [t][column]
  std::vector<double> largest;         // of the codes of a group, [t][column]
  double code_at(Index k, Index c) const { return code[static_cast<std::size_t>(k * count + c)]; }
  double scale_at(Index t, Index c) const { return scale[static_cast<std::size_t>(t * count + c)]; }
  double largest_code(Index t, Index c) const { return largest[static_cast<std::size_t>(t * count + c)]; }
  double weight(Index k, Index c) const { return code_at(k, c) * scale_at(k / step, c); }

  Columns(const LowBitView& w, Index first_, Index count_) : first(first_), count(count_), step(w.group > 0 ? w.group : w.k) {
    groups = (w.k + step - 1) / step;
    code.resize(static_cast<std::size_t>(w.k * count));
    scale.resize(static_cast<std::size_t>(groups * count));
    quantum.assign(scale.size(), no_bit);
    largest.assign(scale.size(), 0);
    for (Index k = 0; k < w.k; ++k)
      for (Index c = 0; c < count; ++c) {
        const double x = code[static_cast<std::size_t>(k * count + c)] = code_value(w, k, first + c);
        double& most = largest[static_cast<std::size_t>(k / step * count + c)];
        most = std::max(most, std::fabs(x));
      }
    for (Index t = 0; t < groups; ++t)
      for (Index c = 0; c < count; ++c) scale[static_cast<std::size_t>(t * count + c)] = scale_value(w, t, first + c);
    finite_code = code;
    finite_scale = scale;
    for (auto* list : {&finite_code, &finite_scale}) std::ranges::replace_if(*list, [](double x) { return !std::isfinite(x); }, 0.0);
    for (Index c = 0; c < count; ++c) {
      integers.push_back(to_integers(w.k, [&](Index k) { return weight(k, c); }));
      if (!integers.back().finite) continue;
      for (Index k = 0; k < w.k; ++k) {
        int& q = quantum[static_cast<std::size_t>(k / step * count + c)];
        q = std::min(q, lowest_bit(code_at(k, c)));
      }
    }
  }
};

ExactSum exact_of(const Row& row, const Columns& w, Index c, Index length) {
  const Integers& a = row.integers;
  const Integers& b = w.integers[static_cast<std::size_t>(c)];
  if (!a.finite || !b.finite) {
    // The extended reals: the finite terms do not matter beside the others.
    ExactSum s;
    s.bits = 0;
    for (Index k = 0; k < length; ++k) {
      const double term = row.a[static_cast<std::size_t>(k)] * w.weight(k, c);
      if (!std::isfinite(term)) s.high += term;
    }
    return s;
  }
  const int sum_bits = a.bits + b.bits + static_cast<int>(std::bit_width(static_cast<std::uint64_t>(length)));
  if (!a.fits || !b.fits || sum_bits > 126)
    return big_sum(length, [&](Index k) { return row.a[static_cast<std::size_t>(k)] * w.weight(k, c); });
  if (sum_bits <= 62) {
    std::int64_t sum = 0;
    for (Index k = 0; k < length; ++k) sum += a.value[static_cast<std::size_t>(k)] * b.value[static_cast<std::size_t>(k)];
    return from_integer(sum, a.exponent + b.exponent, 64);
  }
  Int128 sum = 0;
  for (Index k = 0; k < length; ++k) sum += static_cast<Int128>(a.value[static_cast<std::size_t>(k)]) * b.value[static_cast<std::size_t>(k)];
  return from_integer(sum, a.exponent + b.exponent, 128);
}

// ---- The bound ----------------------------------------------------------------------------------------------

// Of a row against some columns; docs/bounds_product.md derives every line.
struct RowBounds {
  std::vector<double> bound;     // of the sum before tensor scales and output rounding
  std::vector<double> gauge;     // sum |a w|
  std::vector<double> reach;     // that no partial sum exceeds, roundings included
  std::vector<char> may_overflow;

  void compute(const Row& row, const Columns& w, const ProductContract& c, Index length);

 private:
  std::vector<double> sum_, error_, magnitude_, total_, total_error_;
  std::vector<int> quantum_;
  std::vector<char> rounded_;  // some group sum may be
};

void RowBounds::compute(const Row& row, const Columns& w, const ProductContract& contract, Index length) {
  const auto n = static_cast<std::size_t>(w.count);
  const double u = contract.roundoff, product_u = contract.products_rounded ? u : 0, exact_limit = 1 / u;
  const double largest_weight = contract.weight_dtype ? overflow_threshold(*contract.weight_dtype) : std::nextafter(contract.largest, inf);
  const int least_bit = std::ilogb(contract.floor);
  const bool in_order = contract.order == ProductOrder::groups_in_order;
  total_.assign(n, 0);
  total_error_.assign(n, 0);
  gauge.assign(n, 0);
  reach.assign(n, 0);
  may_overflow.assign(n, 0);
  quantum_.assign(n, no_bit);
  rounded_.assign(n, 0);
  for (Index t = 0; t < w.groups; ++t) {
    sum_.assign(n, 0);
    error_.assign(n, 0);
    magnitude_.assign(n, 0);
    const Index begin = t * w.step, end = std::min(begin + w.step, length);
    for (Index k = begin; k < end; ++k) {
      const double a = row.finite[static_cast<std::size_t>(k)];
      const double* code = w.finite_code.data() + k * w.count;
      for (std::size_t i = 0; i < n; ++i) {
        const double term = a * code[i];
        sum_[i] += term;
        magnitude_[i] += std::fabs(term);
        error_[i] = error_[i] * (1 + u) + (u * std::fabs(sum_[i]) + product_u * std::fabs(term));
      }
    }
    const double steps = static_cast<double>(end - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const double scale = w.finite_scale[static_cast<std::size_t>(t) * n + i], size = std::fabs(scale);
      const int quantum = row.quantum[static_cast<std::size_t>(t)] + w.quantum[static_cast<std::size_t>(t) * n + i];
      // A group in which every number is a multiple of one power of two, and no sum of them needs more bits than there are.
      const bool exact = quantum > no_bit / 2 || (magnitude_[i] <= std::ldexp(exact_limit, quantum) && quantum >= least_bit);
      double error = in_order ? error_[i] : gamma_factor(steps + (contract.products_rounded ? 1 : 0), u) * magnitude_[i];
      error = exact ? 0 : error + u * magnitude_[i] * steps * steps * 0x1p-52 + steps * contract.floor * (contract.products_rounded ? 2 : 1);
      if (scale != 0 && quantum < no_bit / 2) quantum_[i] = std::min(quantum_[i], quantum + lowest_bit(scale));
      if (contract.order == ProductOrder::any) {
        may_overflow[i] |= !(w.largest_code(t, static_cast<Index>(i)) * size < largest_weight);
      } else {
        rounded_[i] |= !exact;
        may_overflow[i] |= !(magnitude_[i] * (1 + gamma_factor(steps + 1, u)) < contract.largest);
      }
      const double term = sum_[i] * scale;
      total_[i] += term;
      gauge[i] += magnitude_[i] * size;
      if (contract.order == ProductOrder::any) continue;
      // The group sum, as far off as it is, times its scale.
      total_error_[i] += size * error + (contract.products_rounded && !is_power_of_two(scale) ? u * size * (std::fabs(sum_[i]) + error) : 0);
      if (in_order) total_error_[i] = total_error_[i] * (1 + u) + u * std::fabs(total_[i]) + contract.floor * (contract.products_rounded ? 2 : 1);
      else total_error_[i] += contract.floor;
    }
  }
  bound.assign(n, 0);
  double largest = 0;
  for (double a : row.finite) largest = std::max(largest, std::fabs(a));
  const double steps = static_cast<double>(length), groups = static_cast<double>(w.groups);
  for (std::size_t i = 0; i < n; ++i) {
    // No sum, in any order and with any of its roundings, exceeds this.
    reach[i] = gauge[i] * (1 + gamma_factor(steps + groups + 2, u));
    may_overflow[i] |= !(reach[i] < contract.largest) || row.not_in_f32;
    // As for a group: no sum of these numbers, in any order and whether scaled before or after, is rounded at all.
    const bool exact = rounded_[i] ? false : quantum_[i] > no_bit / 2 || (gauge[i] <= std::ldexp(exact_limit, quantum_[i]) && quantum_[i] >= least_bit);
    if (contract.order == ProductOrder::any) {
      const double u_weight = contract.weight_dtype ? unit_roundoff(*contract.weight_dtype) : 0;
      const double weights = contract.weight_dtype ? u_weight * gauge[i] + steps * half_min_subnormal(*contract.weight_dtype) * largest : 0;
      bound[i] = exact && !contract.weight_dtype
                     ? 0
                     : weights + gamma_factor(steps + (contract.products_rounded ? 1 : 0), u) * (gauge[i] + weights) + 2 * steps * contract.floor;
    } else if (contract.order == ProductOrder::groups) {
      bound[i] = exact ? 0 : total_error_[i] + gamma_factor(groups, u) * (gauge[i] + total_error_[i]);
    } else {
      bound[i] = exact ? 0 : total_error_[i] + u * gauge[i] * (steps + groups) * groups * 0x1p-52;
    }
  }
}

// ---- The verdict --------------------------------------------------------------------------------------------

// Bounds are evaluated in fp64, a few thousand roundings deep at most.
constexpr double slack = 0x1p-36;

bool precedes(const Element& a, const Element& b) { return std::tie(a.row, a.column) < std::tie(b.row, b.column); }

class ProductJudge {
 public:
  ProductJudge(const Product& p, const TensorView& c, const ProductContract& contract, const JudgeOptions& options)
      : p_(p), c_(c), contract_(contract), options_(options) {}

  Verdict mine;

  void judge(const Row& row, Index m, const Columns& w) {
    bounds_.compute(row, w, contract_, p_.k);
    for (Index i = 0; i < w.count; ++i) judge_element(row, m, w, i);
  }

 private:
  void judge_element(const Row& row, Index m, const Columns& w, Index i) {
    const auto at = static_cast<std::size_t>(i);
    ExactSum exact = exact_of(row, w, i, p_.k);
    double bound = bounds_.bound[at];
    bool may_overflow = bounds_.may_overflow[at];
    double reach = bounds_.reach[at];
    for (double g : {static_cast<double>(p_.w.tensor_scale), p_.a_low ? static_cast<double>(p_.a_low.tensor_scale) : 1.0}) {
      if (g == 1) continue;
      exact = times(exact, g);
      bound *= std::fabs(g);
      if (!is_power_of_two(g)) bound = bound * (1 + contract_.roundoff) + contract_.roundoff * std::fabs(exact.high);
      bound += contract_.floor;
      reach *= std::fabs(g) * (1 + 2 * contract_.roundoff);
      may_overflow |= !(reach < contract_.largest);
    }
    const Index position = c_.at(0, 0, m, w.first + i);
    const double y = load(c_, position);
    Compared& compared = mine.outputs[Output::c];
    ++compared.elements;
    mine.nan_found += std::isnan(y);
    mine.infinity_found += std::isinf(y);
    const bool rounds = unit_roundoff(c_.dtype) > contract_.roundoff;
    Element e;
    e.output = Output::c;
    e.row = m;
    e.column = w.first + i;
    e.got = y;
    e.exact = exact.high;
    e.bound = bound + (rounds ? half_ulp(c_.dtype, std::fabs(exact.high) + bound) : 0);
    const double error = std::fabs((y - exact.high) - exact.low);
    e.ratio = error == 0 ? 0 : error <= inf ? error / e.bound : inf;
    e.ulp = error / (2 * half_ulp(c_.dtype, exact.high));
    if (options_.untouched && options_.untouched(c_, position) && !std::isnan(exact.high)) return fail(e, "C was not written");
    if (std::isnan(exact.high)) {
      ++mine.nan_expected;
      return std::isnan(y) ? void(++mine.inside) : fail(e, "C is a number where NaN belongs");
    }
    if (std::isinf(exact.high)) {
      ++mine.infinity_expected;
      if (y == exact.high) return void(++mine.inside);
      return may_overflow && !std::isfinite(y) ? excuse("sums may leave the range") : fail(e, "C is not the infinity that belongs there");
    }
    if (may_overflow && !std::isfinite(y)) return excuse("sums may leave the range");
    if (std::isnan(y)) return fail(e, "C is NaN");
    switch (decide(preimage(y, c_.dtype, contract_.roundoff), exact.high, exact.low, exact.radius, bound, slack)) {
      case Decision::outside: return fail(e, bound == 0 ? "C is wrong, and no rounding explains it" : "C is outside its bound");
      case Decision::undecided: return excuse("not refuted: within the bound's own error");
      default: break;
    }
    ++mine.inside;
    mine.exact += bound == 0;
    if (std::isfinite(y) && e.bound > 0) {  // an infinity is right beyond the range of the output
      if (e.ratio >= compared.worst.ratio) compared.worst = e;
      if (options_.judged) options_.judged(e);
      ratio_sum_ += ((y - exact.high) - exact.low) / e.bound;
      ++ratios_;
    }
    if (options_.power) certify(row, w, i, e.bound);
  }

  // Whether a change of one term would move the element by more than twice its bound.
  void certify(const Row& row, const Columns& w, Index i, double bound) {
    Power& power = mine.power;
    const double g = std::fabs(static_cast<double>(p_.w.tensor_scale)) * (p_.a_low ? std::fabs(static_cast<double>(p_.a_low.tensor_scale)) : 1);
    const double threshold = 2 * bound / g;
    const Index tile = tile_of(p_.w), tiles = (p_.k + tile - 1) / tile;
    for (Index k = 0; k < p_.k; ++k) {
      const double term = std::fabs(row.a[static_cast<std::size_t>(k)] * w.weight(k, i));
      const Index next = k + 1 < p_.k ? k + 1 : std::max<Index>(k - 1, 0);
      const double exchange = std::fabs((row.a[static_cast<std::size_t>(k)] - row.a[static_cast<std::size_t>(next)]) * (w.weight(k, i) - w.weight(next, i)));
      const std::array<bool, change_count> shown = {term > threshold, term > threshold, exchange > threshold, 0.01 * term > threshold};
      const Index t = k / tile;
      const bool full = (t + 1) * tile <= p_.k;
      const TileKind kind = !full ? TileKind::tail : tiles == 1 ? TileKind::only : t == 0 ? TileKind::first : t + 1 == p_.k / tile ? TileKind::last_full : TileKind::interior;
      ++power.pairs;
      for (std::size_t change = 0; change < change_count; ++change) {
        if (!shown[change]) continue;
        ++power.by_output[change];
        ++power.by_either[change];
        power.lanes[static_cast<std::size_t>(kind)][change].set(static_cast<std::size_t>(k % tile));
      }
    }
  }

  void fail(Element& e, std::string why) {
    e.why = std::move(why);
    if (options_.judged) options_.judged(e);
    ++mine.outside;
    ++mine.failures[e.why];
    if (mine.outside == 1 || precedes(e, mine.first_failure)) mine.first_failure = e;
    Element& worst = mine.outputs[Output::c].worst;
    if (e.ratio >= worst.ratio && e.bound > 0) worst = e;
  }
  void excuse(const char* reason) { ++mine.excused[reason]; }

 public:
  static Index tile_of(const LowBitView& w) { return w.group > 0 && w.group <= max_tile ? w.group : 128; }
  double ratio_sum_ = 0;
  std::int64_t ratios_ = 0;

 private:
  const Product& p_;
  const TensorView& c_;
  const ProductContract& contract_;
  const JudgeOptions& options_;
  RowBounds bounds_;
};

void merge(Verdict& into, const Verdict& from) {
  if (from.outside > 0 && (into.outside == 0 || precedes(from.first_failure, into.first_failure))) into.first_failure = from.first_failure;
  into.inside += from.inside;
  into.outside += from.outside;
  into.exact += from.exact;
  into.nan_expected += from.nan_expected;
  into.nan_found += from.nan_found;
  into.infinity_expected += from.infinity_expected;
  into.infinity_found += from.infinity_found;
  for (const auto& [why, n] : from.excused) into.excused[why] += n;
  for (const auto& [why, n] : from.failures) into.failures[why] += n;
  for (const auto& [output, part] : from.outputs) {
    Compared& mine = into.outputs[output];
    mine.elements += part.elements;
    if (part.worst.bound > 0 && part.worst.ratio >= mine.worst.ratio) mine.worst = part.worst;
  }
  into.power.add(from.power);
}

constexpr Index columns_of_a_task = 64;

}  // namespace

std::vector<ProductContract> product_ladder(Dtype a) {
  std::vector<ProductContract> ladder;
  auto add = [&](const char* name, ProductOrder order, double roundoff, bool products_rounded, std::optional<Dtype> weights) {
    ProductContract c;
    c.name = name;
    c.order = order;
    c.roundoff = roundoff;
    c.products_rounded = products_rounded;
    c.weight_dtype = weights;
    if (roundoff > 0x1p-20) c.largest = 65504, c.floor = 0x1p-24;
    ladder.push_back(c);
  };
  add("fp32 sums by group, any order", ProductOrder::groups, 0x1p-24, true, {});
  add("fp32 sums, any order", ProductOrder::any, 0x1p-24, true, {});
  add("fp32 truncating sums, any order", ProductOrder::any, 0x1p-23, true, {});
  if (a != Dtype::f32) add("weights rounded to the dtype of A, fp32 sums, any order", ProductOrder::any, 0x1p-24, true, a);
  if (a == Dtype::f16) add("fp16 sums, any order", ProductOrder::any, 0x1p-11, true, a);
  return ladder;
}

ExactSum exact_product(const Product& p, Index m, Index n) {
  Row row;
  row.read(p, m);
  ExactSum s = exact_of(row, Columns(p.w, n, 1), 0, p.k);
  s = times(s, p.w.tensor_scale);
  return p.a_low ? times(s, p.a_low.tensor_scale) : s;
}

Verdict judge_product(const Product& p, const TensorView& c, const ProductContract& contract, const JudgeOptions& options) {
  Verdict v;
  v.contract = contract.name;
  v.tile = ProductJudge::tile_of(p.w);
  v.row_tile = 1;
  v.rows_total = p.m;
  const std::vector<Index> rows = rows_to_judge(p.m, options.sample_rows, options.seed);
  v.rows_judged = static_cast<Index>(rows.size());
  if (options.sample_rows > 0 && options.sample_rows < p.m) {
    v.sampled.assign(rows.begin(), rows.begin() + std::min<std::ptrdiff_t>(8, std::ssize(rows)));
    v.sample_rows = std::ssize(rows);
    v.sample_seed = options.seed;
  }
  std::vector<Row> decoded(rows.size());
  parallel_for(std::ssize(rows), options.threads, [&](Index r) { decoded[static_cast<std::size_t>(r)].read(p, rows[static_cast<std::size_t>(r)]); });
  std::mutex mutex;
  double ratio_sum = 0;
  std::int64_t ratios = 0;
  parallel_for(rows.empty() ? 0 : (p.n + columns_of_a_task - 1) / columns_of_a_task, options.threads, [&](Index task) {
    const Index first = task * columns_of_a_task;
    const Columns w(p.w, first, std::min(columns_of_a_task, p.n - first));
    ProductJudge judge(p, c, contract, options);
    for (std::size_t r = 0; r < rows.size(); ++r) judge.judge(decoded[r], rows[r], w);
    const std::lock_guard lock(mutex);
    merge(v, judge.mine);
    ratio_sum += judge.ratio_sum_;
    ratios += judge.ratios_;
  });
  v.mean_ratio = ratios > 0 ? ratio_sum / static_cast<double>(ratios) : 0;
  std::int64_t excused = 0;
  for (const auto& [why, n] : v.excused) excused += n;
  if (v.outside > 0) {
    v.outcome = Outcome::fail;
    v.reason = describe(v.first_failure);
  } else if (v.inside == 0) {
    v.outcome = Outcome::inconclusive;
    v.reason = excused == 0 ? "the problem has no output element" : "no element of C could be judged by its bound";
  } else {
    v.outcome = Outcome::pass;
    v.reason = excused == 0 ? "every element is inside its bound" : fmt::format("every element that a bound decides is inside it ({} excused)", excused);
    if (!v.sampled.empty()) v.reason += fmt::format("; {} of {} rows were judged: one of each equal stretch, seed {}", v.sample_rows, p.m, v.sample_seed);
  }
  return v;
}

Verdict judge_product_by_ladder(const Product& p, const TensorView& c, const JudgeOptions& options) {
  return climb(product_ladder(p.a_low ? Dtype::f32 : p.a.dtype), options,
               [&](const ProductContract& contract, const JudgeOptions& o) { return judge_product(p, c, contract, o); });
}

QuantizationError quantization_error(const Product& p, const std::function<double(Index, Index)>& original) {
  const std::vector<double> w = decode_weights(p.w), a = decode_activations(p);
  std::vector<double> difference(w.size());
  double error = 0, size = 0;
  std::vector<double> exact(w.size());
  for (Index k = 0; k < p.k; ++k)
    for (Index n = 0; n < p.n; ++n) {
      const auto at = static_cast<std::size_t>(k * p.n + n);
      exact[at] = original(k, n);
      difference[at] = w[at] - exact[at];
      error += difference[at] * difference[at];
      size += exact[at] * exact[at];
    }
  QuantizationError q;
  q.weights = size > 0 ? std::sqrt(error / size) : 0;
  error = size = 0;
  for (Index m = 0; m < p.m; ++m) {
    // What is no number says nothing about quantization.
    if (!std::all_of(a.begin() + m * p.k, a.begin() + (m + 1) * p.k, [](double x) { return std::isfinite(x); })) continue;
    for (Index n = 0; n < p.n; ++n) {
      double off = 0, whole = 0;
      for (Index k = 0; k < p.k; ++k) {
        off += a[static_cast<std::size_t>(m * p.k + k)] * difference[static_cast<std::size_t>(k * p.n + n)];
        whole += a[static_cast<std::size_t>(m * p.k + k)] * exact[static_cast<std::size_t>(k * p.n + n)];
      }
      error += off * off;
      size += whole * whole;
    }
  }
  q.products = size > 0 ? std::sqrt(error / size) : 0;
  return q;
}

std::vector<double> decode_weights(const LowBitView& w) {
  std::vector<double> values(static_cast<std::size_t>(w.k * w.n));
  for (Index k = 0; k < w.k; ++k)
    for (Index n = 0; n < w.n; ++n)
      values[static_cast<std::size_t>(k * w.n + n)] = code_value(w, k, n) * scale_value(w, w.group > 0 ? k / w.group : 0, n) * static_cast<double>(w.tensor_scale);
  return values;
}

std::vector<double> decode_activations(const Product& p) {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(p.m * p.k));
  Row row;
  for (Index m = 0; m < p.m; ++m) {
    row.read(p, m);
    for (double x : row.a) values.push_back(p.a_low ? x * static_cast<double>(p.a_low.tensor_scale) : x);
  }
  return values;
}

}  // namespace assay
