#include "harness/identify/product.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <set>

namespace assay {
namespace {

constexpr Index questions = 64;

// A number as an element of A and a code whose scale is 1. Codes of FP8 take half of the exponent,
// for neither they nor FP8 numbers of A have room for all of it.
ProductTerm term_of(const ProductProbe& probe, double x) {
  if (!probe.shape().product.a_format || x == 0) return {x, 1};
  const int code = std::clamp(std::ilogb(x) >> 1, -8, 8);
  return {std::ldexp(x, -code), std::ldexp(1, code)};
}

VisibleSums sums_over_terms(const ProductProbe& probe) {
  const Case& c = probe.shape();
  // All units together vanish beside the large number. In f16 and FP8 they are subnormal.
  const auto [large, below] = c.product.a_format      ? std::pair(16, 32)
                              : c.dtype == Dtype::f16 ? std::pair(14, 34)
                                                      : std::pair(30, 40);
  VisibleSums sums;
  sums.name = "A W";
  sums.summand = "term";
  sums.length = probe.terms();
  sums.large = std::ldexp(1, large);
  sums.unit = std::ldexp(1, large - below);
  sums.free_unit = true;
  sums.ask = [&probe](const std::vector<Summands>& all) {
    std::vector<ProductSum> asked;
    for (const Summands& each : all)
      asked.push_back({.term = [&](Index k) { return term_of(probe, each(k)); }});
    return probe.ask(asked);
  };
  return sums;
}

// How many of the answers are those that a model gives, within the rounding of the output.
Index agreeing(const ProductProbe& probe, const std::vector<double>& answers,
               const std::vector<double>& model) {
  Index agree = 0;
  for (std::size_t n = 0; n < answers.size(); ++n)
    agree +=
        std::fabs(answers[n] - model[n]) <= 1.01 * half_ulp(probe.shape().out_dtype(), model[n])
            ? 1
            : 0;
  return agree;
}
bool fits(Index agree, std::size_t asked) { return agree * 16 >= static_cast<Index>(asked) * 15; }

double rounded(double x, const Bits& bits) {
  if (x == 0) return x;
  const int shift = bits.kept - 1 - std::ilogb(x);
  const double scaled = std::ldexp(x, shift);
  return std::ldexp(bits.nearest ? std::nearbyint(scaled) : std::trunc(scaled), -shift);
}

// Three places that meet one after the other, and with how many bits.
struct Triple {
  Places at;
  Bits bits;
};

// Those of the known places below `end` that are multiples of `step`.
std::optional<Triple> triple_of(const KnownSums& known, Index step, Index end) {
  std::vector<Index> places;
  std::set<Index> levels;
  for (Index j = step; j < end; j += step) {
    const Index size = known.sizes[usize(j - 1)];
    const bool in_block = known.block && size == known.smallest();
    if (levels.insert(size).second || (in_block && places.size() < 2)) places.push_back(j);
  }
  std::ranges::sort(places, {}, [&](Index j) { return known.sizes[usize(j - 1)]; });
  if (places.size() < 2) return std::nullopt;
  const auto size = [&](std::size_t n) { return known.sizes[usize(places[n] - 1)]; };
  const bool in_block = size(0) == size(1);
  const std::optional<Bits>& bits = in_block ? known.block : known.between;
  // Where one of the first two places is in the block of place 0, it meets it before the sum.
  const std::size_t first = !in_block && known.block && size(0) == known.smallest() ? 1 : 0;
  if (!bits || bits->all || places.size() < first + 2) return std::nullopt;
  return Triple{{known.place(0), known.place(places[first]), known.place(places[first + 1])},
                *bits};
}

// Whether a factor is multiplied in before a sum is taken or behind it.
enum class Side { before, behind, neither };

// M, M times a few units in the last place, and -M, times the factor: what is left between them is
// rounded before the factor comes, or behind it. `ask` answers the sums for the factors.
struct Factors {
  std::vector<double> factor, number;
};

Side side_of(
    const ProductProbe& probe, const KnownSums& known, const Triple& t,
    const std::function<std::vector<double>(const Factors&, const std::vector<ProductSum>&)>& ask,
    Index& agree) {
  Factors all;
  std::vector<ProductSum> sums;
  std::vector<double> before, behind;
  const double large = known.sums.large;
  for (const double factor : {1.125, 1.25, 1.5, 1.75})
    for (Index j = 1; j <= questions / 4; ++j) {
      const double x = std::ldexp(large, -t.bits.kept - 2) * static_cast<double>(j);
      sums.push_back({.term = [=, &probe, at = t.at](Index k) {
        return term_of(probe, k == at.large      ? large
                              : k == at.negative ? -large
                              : k == at.small    ? x
                                                 : 0.0);
      }});
      all.factor.push_back(factor);
      all.number.push_back(x);
      before.push_back(rounded(factor * (large + x), t.bits) - factor * large);
      behind.push_back(factor * (rounded(large + x, t.bits) - large));
    }
  const std::vector<double> answers = ask(all, sums);
  const Index if_before = agreeing(probe, answers, before),
              if_behind = agreeing(probe, answers, behind);
  agree = std::max(if_before, if_behind);
  if (fits(if_before, answers.size()) == fits(if_behind, answers.size())) return Side::neither;
  return if_before > if_behind ? Side::before : Side::behind;
}

std::string input_of(const Triple& t, const KnownSums& known, Index agree) {
  return fmt::format(
      "M = {} at term {}, x at {}, -M at {}, x from 2^{} M to 2^{} M, all times 1.125, 1.25, 1.5 "
      "and 1.75: {} of {} sums are rounded so",
      power(known.sums.large), t.at.large, t.at.small, t.at.negative, -t.bits.kept - 2,
      2 - t.bits.kept, agree, questions);
}

// Scales that are powers of two round nothing, but a product of a and a code may overflow before
// such a scale makes it small.
void tell_scale_by_overflow(const ProductProbe& probe, Identification& told) {
  if (probe.shape().product.a_format || probe.shape().dtype == Dtype::f16) {
    told.not_told.emplace_back("scale: it is a power of two, which rounds nothing");
    return;
  }
  const std::vector<double> c =
      probe.ask({{.term = [](Index k) { return ProductTerm{k == 0 ? 0x1p127 : 0.0, 2}; },
                  .scale = [](Index) { return 0x1p-6; }}});
  told.statements.push_back({"scale",
                             std::isfinite(c[0]) ? "multiplied in before the sum"
                                                 : "multiplied into the sum of each group",
                             fmt::format("a = 2^127, code 2, scale 2^-6: C is {}", c[0])});
}

void tell_scale(const ProductProbe& probe, const KnownSums& known, Identification& told) {
  if (probe.group() == 0) return;
  if (probe.format().scale == Dtype::e8m0) return tell_scale_by_overflow(probe, told);
  const std::optional<Triple> t = triple_of(known, 1, std::min(probe.group(), probe.terms()));
  if (!t) {
    told.not_told.emplace_back("scale: no three terms of a group are added one after another");
    return;
  }
  Index agree = 0;
  const Side side = side_of(
      probe, known, *t,
      [&](const Factors& all, std::vector<ProductSum> sums) {
        for (std::size_t n = 0; n < sums.size(); ++n)
          sums[n].scale = [factor = all.factor[n]](Index) { return factor; };
        return probe.ask(sums);
      },
      agree);
  if (side == Side::neither)
    told.not_told.emplace_back("scale: sums are rounded neither before it nor behind it");
  else
    told.statements.push_back({"scale",
                               side == Side::before ? "multiplied in before the sum"
                                                    : "multiplied into the sum of each group",
                               input_of(*t, known, agree)});
}

// Where the tensor scale comes in: at single terms, at groups, or at the end.
void tell_tensor_scale(const ProductProbe& probe, const KnownSums& known, Identification& told) {
  const auto ask = [&](const Factors& all, const std::vector<ProductSum>& sums) {
    std::vector<double> answers;
    for (std::size_t n = 0; n < sums.size();) {  // equal factors follow one another
      const std::size_t begin = n;
      while (n < sums.size() && all.factor[n] == all.factor[begin]) ++n;
      std::ranges::copy(
          probe.ask({sums.begin() + std::ptrdiff_t(begin), sums.begin() + std::ptrdiff_t(n)},
                    all.factor[begin]),
          std::back_inserter(answers));
    }
    return answers;
  };
  const std::optional<Triple> inside = triple_of(known, 1, probe.group()),
                              between = triple_of(known, probe.group(), probe.terms());
  Index agree = 0;
  const Side terms = inside ? side_of(probe, known, *inside, ask, agree) : Side::neither;
  if (terms == Side::before) {
    told.statements.push_back(
        {"tensor scale", "multiplied in before the sum", input_of(*inside, known, agree)});
    return;
  }
  const Side groups = between ? side_of(probe, known, *between, ask, agree) : Side::neither;
  if (groups == Side::neither || (groups == Side::before && terms == Side::neither))
    told.not_told.emplace_back("tensor scale: sums are rounded neither before it nor behind it");
  else
    told.statements.push_back({"tensor scale",
                               groups == Side::before ? "multiplied into the sum of each group"
                                                      : "multiplied into the finished sum",
                               input_of(*between, known, agree)});
}

// The format of dequantized weights: a code that takes several bits times a scale of eleven. Its
// rounding to the dtype of A, with the scale 1, is subtracted from it.
void tell_dequantized(const ProductProbe& probe, const KnownSums& known, Identification& told) {
  if (probe.format().scale != Dtype::f16) return;  // others have few bits, which nothing rounds
  if (known.between && known.between->kept < 20) {
    told.not_told.push_back(
        fmt::format("weights: sums of {} bits hide what is rounded", known.between->kept));
    return;
  }
  const Dtype a = probe.shape().dtype;
  const Index other = probe.group();
  std::vector<ProductSum> sums;
  std::vector<double> weights;
  for (Index n = 0; n < questions; ++n) {
    const double scale = 1 + static_cast<double>(16 * n + 2 * (n % 8) + 1) / 1024,
                 weight = 3 * scale;
    weights.push_back(weight);
    sums.push_back({.term =
                        [=](Index k) {
                          return k == 0       ? ProductTerm{1, 3}
                                 : k == other ? ProductTerm{-round_to(a, weight), 1}
                                              : ProductTerm{0, 1};
                        },
                    .scale = [=](Index t) { return t == 0 ? scale : 1; }});
  }
  const std::vector<double> answers = probe.ask(sums);
  constexpr std::array<std::pair<const char*, std::optional<Dtype>>, 3> formats{
      {{"not rounded", std::nullopt},
       {"rounded to f16", Dtype::f16},
       {"rounded to bf16", Dtype::bf16}}};
  for (const auto& [words, dtype] : formats) {
    std::vector<double> model;
    for (const double w : weights)
      model.push_back((dtype ? round_to(*dtype, w) : w) - round_to(a, w));
    const Index agree = agreeing(probe, answers, model);
    if (!fits(agree, answers.size())) continue;
    told.statements.push_back(
        {"weights", words,
         fmt::format("code 3 times a scale of 11 bits at term 0, minus its {} at term {}: {} of {} "
                     "sums are those of such weights",
                     format(a).name, other, agree, questions)});
    return;
  }
  told.not_told.emplace_back("weights: no format gives the sums of a weight and its rounding");
}

// Whether products are rounded before they are added. One that takes a bit more than the sum keeps
// meets its rounding, once as the second of two places that meet first, and once as the first.
void tell_products(const ProductProbe& probe, const KnownSums& known, int input_bits,
                   Identification& told) {
  const std::optional<Bits>& bits = known.between;
  const int precision = format(probe.shape().dtype).precision;
  if (!bits || bits->all) return;
  if (bits->kept > precision || input_bits < precision) {
    told.not_told.push_back(fmt::format(
        "products: A has {} bits, and no product takes more bits than a sum of {} keeps",
        std::min(precision, input_bits), bits->kept));
    return;
  }
  const double a = 1 + std::ldexp(1, 1 - bits->kept), product = 3 * a;
  const double nearest = rounded(product, {.kept = bits->kept, .nearest = true});
  const Index first = known.place(0),
              second = known.place(known.places_of_size(known.smallest(), 1)[0]);
  std::vector<ProductSum> sums;
  for (const auto& [at, other] : {std::pair(second, first), std::pair(first, second)})
    sums.push_back({.term = [=](Index k) {
      return k == at      ? ProductTerm{a, 3}
             : k == other ? ProductTerm{-nearest, 1}
                          : ProductTerm{0, 1};
    }});
  const std::vector<double> left = probe.ask(sums);
  const double lost = product - nearest;
  const bool exact = std::ranges::any_of(
      left, [&](double x) { return std::fabs(x - lost) <= std::fabs(lost) / 4; });
  told.statements.push_back(
      {"products", exact ? "not rounded before they are added" : "rounded before they are added",
       fmt::format(
           "3 (1 + 2^{}) at term {}, minus its rounding to {} bits at {}, and the other way "
           "round: {} and {} are left, and the rounding lost {}",
           1 - bits->kept, second, bits->kept, first, left[0], left[1], lost)});
}

}  // namespace

void tell_product(const ProductProbe& probe, Identification& told) {
  const bool low = probe.shape().product.a_format.has_value();
  const VisibleSums sums = sums_over_terms(probe);
  const int input_bits = low ? 0 : tell_input_bits(sums, probe.shape().dtype, told);
  const std::optional<KnownSums> known = tell_sums(sums, told);
  if (!known) return;
  if (!low) tell_products(probe, *known, input_bits, told);
  if (!low) tell_dequantized(probe, *known, told);
  tell_scale(probe, *known, told);
  if (probe.format().value == LowBit::nvfp4) tell_tensor_scale(probe, *known, told);
}

}  // namespace assay
