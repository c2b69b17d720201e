#include "harness/identify/sums.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

namespace assay {
namespace {

// The number that is largest in the dtype and leaves room for some sums, as an exponent of two.
int large_exponent(Dtype dtype) { return dtype == Dtype::f16 ? 14 : 30; }

std::string power(double x) { return fmt::format("2^{}", std::ilogb(x)); }
std::string minus(double x) { return fmt::format("-2^{}", std::ilogb(x)); }

}  // namespace

VisibleSums sums_over_keys(const Probe& probe) {
  VisibleSums sums;
  sums.name = "P V";
  sums.summand = "key";
  sums.length = probe.keys();
  sums.unit = std::ldexp(1, large_exponent(probe.dtype()) - 28);
  sums.large = std::ldexp(1, large_exponent(probe.dtype()));
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
  const double key = std::ldexp(1, probe.dtype() == Dtype::f16 ? 13 : 0);
  sums.unit = std::exp2(std::round(-4 - std::log2(probe.scale() * key)));
  sums.large = std::ldexp(sums.unit, 28);
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

// How many summands are added up before the first and another one meet: the size of the smallest
// part of the sum that has both. Entry j is that of the places 0 and j + 1, counted from the last
// place if `from_last`.
std::optional<std::vector<Index>> meeting_sizes(const VisibleSums& sums, bool from_last) {
  const Index n = sums.length;
  const auto place = [=](Index j) { return from_last ? n - 1 - j : j; };
  std::vector<Summands> all;
  for (Index j = 1; j < n; ++j)
    all.emplace_back([=, &sums](Index k) {
      return k == place(0) ? sums.large : k == place(j) ? -sums.large : sums.unit;
    });
  const std::vector<double> left = sums.ask(all);
  std::vector<Index> sizes;
  for (Index j = 0; j + 1 < n; ++j) {
    const double units = left[usize(j)] / sums.unit;
    if (!(std::fabs(units) < 2 * static_cast<double>(n))) return std::nullopt;
    sizes.push_back(n - static_cast<Index>(std::lround(units)));
    if (sizes.back() < 2 || sizes.back() > n) return std::nullopt;
  }
  return sizes;
}

// The size of the part in which the places 0 and j meet, if tiles of `tile` summands are added one
// after the other, and each of them is summed by itself in blocks of `block`.
Index size_in_tiles(Index j, Index n, Index block, Index tile) {
  if (j < tile) return std::min({n, tile, (j / block + 1) * block});
  return std::min(n, (j / tile + 1) * tile);
}

struct Order {
  Index block = 1, tile = 0;
  bool from_last = false;
};

std::optional<Order> order_of(const std::vector<Index>& sizes, Index n, bool from_last) {
  for (Index tile = n;; tile /= 2) {
    for (Index block = 1; block <= tile; block *= 2) {
      bool same = true;
      for (Index j = 1; same && j < n; ++j)
        same = sizes[usize(j - 1)] == size_in_tiles(j, n, block, tile);
      if (same) return Order{block, tile, from_last};
    }
    if (tile % 2 != 0 || tile <= 2) return std::nullopt;
  }
}

std::string words_for(const Order& o, const VisibleSums& sums) {
  const std::string inner =
      o.block == 1 ? fmt::format("one {} after another", sums.summand)
                   : fmt::format("{} {}s at once, one block after another", o.block, sums.summand);
  std::string words =
      o.block >= sums.length
          ? fmt::format("all {} {}s at once", sums.length, sums.summand)
          : (o.tile >= sums.length ? inner
                                   : fmt::format("tiles of {} {}s, each summed by itself, {}",
                                                 o.tile, sums.summand, inner));
  return o.from_last ? words + ", from the last to the first" : words;
}

// "1 to 3: 4, 4 to 7: 8", and "1 to 63: 2 to 64" where each is one more than the one before.
std::string list_of(const std::vector<Index>& sizes) {
  std::string text;
  for (std::size_t j = 0; j < sizes.size();) {
    std::size_t end = j;
    const Index step = j + 1 < sizes.size() ? sizes[j + 1] - sizes[j] : 0;
    while ((step == 0 || step == 1) && end + 1 < sizes.size() &&
           sizes[end + 1] == sizes[end] + step)
      ++end;
    const auto range = [](Index first, Index last) {
      return last > first ? fmt::format("{} to {}", first, last) : fmt::to_string(first);
    };
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ",
                        range(static_cast<Index>(j) + 1, static_cast<Index>(end) + 1),
                        range(sizes[j], sizes[end]));
    j = end + 1;
    if (text.size() > 120 && j < sizes.size()) return text + ", ...";
  }
  return text;
}

// Three places between which a number is lost if the sum keeps too few bits.
struct Places {
  Index large, small, negative;
};

// What is left of large * 2^-e between the large number and its negative.
struct Bits {
  int kept = 0;          // significant bits of the sum
  bool all = false;      // no number that was tried was lost
  bool nearest = false;  // one and a half times a number that is lost is rounded up
};

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

void tell_bits(const VisibleSums& sums, const std::string& subject, const Places& at,
               Identification& told) {
  const std::optional<Bits> bits = count_bits(sums, at);
  if (!bits) {
    told.not_told.push_back(subject + ": the large number gives NaN");
    return;
  }
  std::string input = fmt::format("{} at {} {}, x at {}, {} at {}: ", power(sums.large),
                                  sums.summand, at.large, at.small, minus(sums.large), at.negative);
  const double last = std::ldexp(sums.large, 1 - bits->kept);
  input += bits->all ? fmt::format("x = {} is left", power(last))
                     : fmt::format("x = {} is left, x = {} is lost, x = 1.5 * {} is {}",
                                   power(last), power(last / 2), power(last / 2),
                                   bits->nearest ? "rounded up" : "lost");
  told.statements.push_back({subject, words_for(*bits), std::move(input)});
}

// The first places that meet place 0 in the smallest part, the next larger one, and so on.
std::vector<Index> first_of_levels(const std::vector<Index>& sizes) {
  std::vector<Index> first;
  const std::set<Index> levels(sizes.begin(), sizes.end());
  for (const Index level : levels)
    first.push_back(1 + (std::ranges::find(sizes, level) - sizes.begin()));
  return first;
}

// The same sums with a large number that a binary16 accumulator holds, and beside which it still
// loses a unit.
VisibleSums within_half(VisibleSums sums) {
  if (sums.free_unit) sums.unit = 1;
  sums.large = std::ldexp(sums.unit, 14);
  return sums;
}

}  // namespace

void tell_sums(const VisibleSums& given, Identification& told) {
  VisibleSums sums = given;
  std::optional<std::vector<Index>> sizes = meeting_sizes(sums, false);
  if (!sizes) {
    sums = within_half(given);
    sizes = meeting_sizes(sums, false);
  }
  if (!sizes) {
    told.not_told.push_back(given.name + ", order of sums: what is left of " + power(sums.large) +
                            " and its negative is no number of units");
    return;
  }
  const Index n = sums.length;
  bool from_last = false;
  std::optional<Order> order = order_of(*sizes, n, false);
  if (!order) {
    const std::optional<std::vector<Index>> mirrored = meeting_sizes(sums, true);
    if (mirrored) order = order_of(*mirrored, n, true);
    if (order) sizes = mirrored, from_last = true;
  }
  told.statements.push_back(
      {given.name + ", order of sums", order ? words_for(*order, sums) : "in another order",
       fmt::format("{} at {} {}, {} at one other, {} elsewhere. So many are lost, by the place of "
                   "the other: {}",
                   power(sums.large), sums.summand, from_last ? n - 1 : 0, minus(sums.large),
                   power(sums.unit), list_of(*sizes))});
  const auto place = [&](Index j) { return from_last ? n - 1 - j : j; };
  const std::vector<Index> first = first_of_levels(*sizes);
  const Index block = sizes->front();
  if (block > 2)
    tell_bits(sums, fmt::format("{}, inside {} {}s", given.name, block, sums.summand),
              {place(0), place(1), place(2)}, told);
  const std::size_t skipped = block > 2 ? 1 : 0;
  if (first.size() >= skipped + 2)
    tell_bits(sums, given.name + ", sums",
              {place(0), place(first[skipped]), place(first[skipped + 1])}, told);
}

void tell_input_bits(const VisibleSums& sums, Dtype dtype, Identification& told) {
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
}

}  // namespace assay
