#include "harness/identify/sums.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <iterator>
#include <set>

namespace assay {
namespace {

// The largest number leaves room for some sums. So many powers of two below it, all units together
// vanish beside it in an accumulator of 24 bits, also where they are added up before they meet it.
// In f16 there are no more, and the unit is subnormal.
int large_exponent(Dtype dtype) { return dtype == Dtype::f16 ? 15 : 30; }
int exponents_below(Dtype dtype) { return dtype == Dtype::f16 ? 31 : 40; }

std::string minus(double x) { return fmt::format("-2^{}", std::ilogb(x)); }

}  // namespace

std::string power(double x) { return fmt::format("2^{}", std::ilogb(x)); }

VisibleSums sums_over_keys(const Probe& probe) {
  VisibleSums sums;
  sums.name = "P V";
  sums.summand = "key";
  sums.length = probe.keys();
  sums.large = std::ldexp(1, large_exponent(probe.dtype()));
  sums.unit = std::ldexp(sums.large, -exponents_below(probe.dtype()));
  sums.free_unit = true;
  // With Q = 0 every weight is 1 before it is divided, so O times the number of keys is the sum.
  sums.ask = [&probe](const std::vector<Summands>& all) {
    const Index columns = probe.shape().shape.value_dim, count = std::ssize(all);
    std::vector<double> result(usize(count));
    for (Index first = 0; first < count; first += columns) {
      const ProbeAnswer answer = probe.ask(
          [](Index, Index) { return 0.0; }, [](Index, Index) { return 0.0; },
          [&](Index j, Index c) { return first + c < count ? all[usize(first + c)](j) : 0.0; });
      for (Index c = 0; c < columns && first + c < count; ++c)
        result[usize(first + c)] = answer.at(0, c) * static_cast<double>(probe.keys());
    }
    return result;
  };
  return sums;
}

VisibleSums sums_over_columns(const Probe& probe, bool by_lse) {
  VisibleSums sums;
  sums.name = "Q K";
  sums.summand = "column";
  sums.length = probe.dim();
  // A unit moves a score by about 1/16, which every output dtype shows.
  const double key = std::ldexp(1, probe.dtype() == Dtype::f16 ? 15 : 0);
  sums.unit = std::exp2(std::round(-4 - std::log2(probe.scale() * key)));
  sums.large = std::ldexp(sums.unit, exponents_below(probe.dtype()));
  // Key 0 has the score s that is asked, all others have 0. O is the weight of key 0 in column 0,
  // and that of the others in column 1; LSE is log(e^s + keys - 1).
  sums.ask = [&probe, key, by_lse](const std::vector<Summands>& all) {
    const Index rows = probe.rows(), count = std::ssize(all);
    std::vector<double> result(usize(count));
    for (Index first = 0; first < count; first += rows) {
      const ProbeAnswer answer = probe.ask(
          [&](Index i, Index d) { return first + i < count ? all[usize(first + i)](d) : 0.0; },
          [&](Index j, Index) { return j == 0 ? key : 0.0; },
          [](Index j, Index c) { return (c == 0) == (j == 0) && c < 2 ? 1.0 : 0.0; });
      const double others = static_cast<double>(probe.keys() - 1);
      for (Index i = 0; i < rows && first + i < count; ++i) {
        const double weight = by_lse ? std::exp(answer.lse[usize(i)]) - others
                                     : others * answer.at(i, 0) / answer.at(i, 1);
        result[usize(first + i)] = std::log(weight) / (probe.scale() * key);
      }
    }
    return result;
  };
  return sums;
}

namespace {

// The sizes of the parts in which summands meet; the places are counted from the last one if
// `from_last`. Returns nothing if what is left is not a whole number of units.
std::optional<MeetingSizes> meeting_sizes(const VisibleSums& sums, bool from_last) {
  const Index n = sums.length;
  const auto place = [=](Index j) { return from_last ? n - 1 - j : j; };
  std::vector<Summands> all;
  for (Index j = 1; j < n; ++j)
    all.emplace_back([=, &sums](Index k) {
      return k == place(0) ? sums.large : k == place(j) ? -sums.large : sums.unit;
    });
  const std::vector<double> left = sums.ask(all);
  MeetingSizes sizes;
  for (Index j = 0; j + 1 < n; ++j) {
    const double units = left[usize(j)] / sums.unit;
    if (!(std::fabs(units) < 2 * static_cast<double>(n))) return std::nullopt;
    sizes.push_back(n - static_cast<Index>(std::lround(units)));
    if (sizes.back() < 2 || sizes.back() > n) return std::nullopt;
  }
  return sizes;
}

std::optional<Bits> count_bits(const VisibleSums& sums, const Places& at) {
  const int most = std::ilogb(sums.large / sums.unit);
  std::vector<Summands> all;
  for (int e = 1; e <= most; ++e)
    for (const double factor : {1.0, 1.5})
      all.emplace_back([=, large = sums.large](Index k) {
        return k == at.large      ? large
               : k == at.negative ? -large
               : k == at.small    ? factor * std::ldexp(large, -e)
                                  : 0.0;
      });
  const std::vector<double> left = sums.ask(all);
  const auto survives = [&](int e, bool half_more) {
    return !(std::fabs(left[usize(2 * (e - 1) + (half_more ? 1 : 0))]) <
             std::ldexp(sums.large, -e - 1));
  };
  // A score that overflows gives NaN, and it only does where x was not lost.
  if (std::isnan(left.back())) return std::nullopt;
  Bits bits;
  int e = 1;
  while (e <= most && survives(e, false)) ++e;
  bits.kept = e;
  bits.all = e > most;
  bits.nearest = !bits.all && survives(e, true);
  return bits;
}

std::string words_for(const Bits& bits) {
  if (bits.all) return fmt::format("{} bits or more", bits.kept);
  if (!bits.nearest) return fmt::format("{} bits, truncated", bits.kept);
  const char* format = bits.kept == 24   ? " (binary32)"
                       : bits.kept == 11 ? " (binary16)"
                       : bits.kept == 8  ? " (bfloat16)"
                                         : "";
  return fmt::format("{} bits, rounded to nearest{}", bits.kept, format);
}

std::optional<Bits> tell_bits(const VisibleSums& sums, const std::string& subject, const Places& at,
                              Identification& told) {
  const std::optional<Bits> bits = count_bits(sums, at);
  if (!bits) {
    told.not_told.push_back(subject + ": the large number gives NaN");
    return bits;
  }
  std::string input = fmt::format("{} at {} {}, x at {}, {} at {}: ", power(sums.large),
                                  sums.summand, at.large, at.small, minus(sums.large), at.negative);
  const double last = std::ldexp(sums.large, 1 - bits->kept);
  input += bits->all ? fmt::format("x = {} is left", power(last))
                     : fmt::format("x = {} is left, x = {} is lost, x = 1.5 * {} is {}",
                                   power(last), power(last / 2), power(last / 2),
                                   bits->nearest ? "rounded up" : "lost");
  told.statements.push_back({subject, words_for(*bits), std::move(input)});
  return bits;
}

// The bits of the sum and, if more than two summands are added at once, those inside such a block.
void tell_bits_of(KnownSums& known, Identification& told) {
  const VisibleSums& sums = known.sums;
  const std::string& name = sums.name;
  std::set<Index> levels(known.sizes.begin(), known.sizes.end());
  if (const Index block = known.smallest(); block > 2) {
    const std::vector<Index> inside = known.places_of_size(block, 2);
    known.block = tell_bits(sums, fmt::format("{}, inside {} {}s", name, block, sums.summand),
                            {known.place(0), known.place(inside[0]), known.place(inside[1])}, told);
    levels.erase(block);
  }
  if (levels.size() < 2) return;
  const Index near = known.places_of_size(*levels.begin(), 1)[0],
              far = known.places_of_size(*std::next(levels.begin()), 1)[0];
  known.between =
      tell_bits(sums, name + ", sums", {known.place(0), known.place(near), known.place(far)}, told);
}

// The same sums with a large number that a binary16 accumulator holds, and beside which it still
// loses a unit.
VisibleSums within_half(VisibleSums sums) {
  if (sums.free_unit) sums.unit = 1;
  sums.large = std::ldexp(sums.unit, 14);
  return sums;
}

}  // namespace

Index KnownSums::smallest() const { return *std::ranges::min_element(sizes); }

std::vector<Index> KnownSums::places_of_size(Index size, Index count) const {
  std::vector<Index> places;
  for (std::size_t j = 0; j < sizes.size() && std::ssize(places) < count; ++j)
    if (sizes[j] == size) places.push_back(static_cast<Index>(j) + 1);
  return places;
}

std::optional<KnownSums> tell_sums(const VisibleSums& given, Identification& told) {
  KnownSums known;
  known.sums = given;
  std::optional<SumOrder> order;
  // Where all meet at once, the first may also be the last that is added.
  const auto is_told = [&] { return order && order->block < order->length; };
  for (const VisibleSums& sums : {given, within_half(given)})
    for (const bool from_last : {false, true}) {
      if (is_told()) continue;
      const std::optional<MeetingSizes> sizes = meeting_sizes(sums, from_last);
      const std::optional<SumOrder> found = sizes ? order_of(*sizes) : std::nullopt;
      if (!sizes || (!known.sizes.empty() && (!found || order == found))) continue;
      order = found;
      known.sums = sums;
      known.sizes = *sizes;
      known.from_last = from_last;
    }
  const VisibleSums& sums = known.sums;
  if (known.sizes.empty()) {
    told.not_told.push_back(given.name + ", order of sums: what is left of " + power(sums.large) +
                            " and its negative is no number of units");
    return std::nullopt;
  }
  told.statements.push_back(
      {given.name + ", order of sums",
       !order ? "in another order"
              : words_for(*order, sums.summand) +
                    (known.from_last ? ", from the last to the first" : ""),
       fmt::format("{} at {} {}, {} at one other, {} elsewhere. So many are lost, by the place of "
                   "the other: {}",
                   power(sums.large), sums.summand, known.place(0), minus(sums.large),
                   power(sums.unit), list_of(known.sizes))});
  tell_bits_of(known, told);
  return known;
}

void tell_subnormals(const Probe& probe, const std::optional<Dtype>& weights, bool by_lse,
                     Identification& told) {
  const bool in_pairs = probe.dtype() == Dtype::bf16 && weights == Dtype::bf16;
  const int subnormal = format(probe.dtype()).min_exponent - 1;
  const double small = std::ldexp(1, subnormal), dim = static_cast<double>(probe.dim());
  // Key 0 has a score of about 8, and all others have 0.
  const int product = std::min(0, std::ilogb(8 / (probe.scale() * dim)));
  const double large = std::ldexp(1, product - subnormal);
  const ProbeAnswer of_scores = probe.ask(
      [&](Index, Index) { return small; }, [&](Index j, Index) { return j == 0 ? large : 0.0; },
      [](Index j, Index c) { return (c == 0) == (j == 0) && c < 2 ? 1.0 : 0.0; });
  const double others = static_cast<double>(probe.keys() - 1),
               weight = by_lse ? std::exp(of_scores.lse[0]) - others
                               : others * of_scores.at(0, 0) / of_scores.at(0, 1);
  const auto tell = [&](const char* subject, bool kept, std::string input) {
    told.statements.push_back({subject,
                               kept       ? "kept"
                               : in_pairs ? "read or written as 0, as by VDPBF16PS and AMX"
                                          : "read or written as 0",
                               std::move(input)});
  };
  tell("Q K, subnormals", std::log(weight) > probe.scale() * dim * std::ldexp(0.5, product),
       fmt::format(
           "Q = {}, K = {} at key 0 and 0 at the others: the weight of key 0 is {:.3g} times "
           "that of another",
           power(small), power(large), weight));
  const ProbeAnswer of_values =
      probe.ask([](Index, Index) { return 0.0; }, [](Index, Index) { return 0.0; },
                [&](Index, Index) { return small; });
  tell("P V, subnormals", of_values.at(0, 0) > small / 2,
       fmt::format("Q = 0, V = {}: O is {:.3g}", power(small), of_values.at(0, 0)));
}

int tell_input_bits(const VisibleSums& sums, Dtype dtype, Identification& told) {
  const int most = format(dtype).precision - 1;
  std::vector<Summands> all;
  for (int e = 1; e <= most; ++e)
    all.emplace_back([=, unit = sums.unit](Index k) {
      const double large = std::ldexp(unit, e);
      return k == 0 ? large + unit : k == 1 ? -large : 0.0;
    });
  const std::vector<double> left = sums.ask(all);
  int kept = 0;
  while (kept < most && left[usize(kept)] > sums.unit / 2) ++kept;
  told.statements.push_back(
      {sums.name + ", inputs",
       kept == most                        ? fmt::format("all {} bits", kept + 1)
       : dtype == Dtype::f32 && kept == 10 ? "11 bits (TF32)"
                                           : fmt::format("{} bits", kept + 1),
       fmt::format("u (2^e + 1) at {} 0, -u 2^e at 1, u = {}: u is left up to e = {}", sums.summand,
                   power(sums.unit), kept)});
  return kept + 1;
}

}  // namespace assay
