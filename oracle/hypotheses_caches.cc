// The known faults of caches: of codes and their scales, of pages, and of appends.
#include <algorithm>
#include <cmath>

#include "oracle/alteration.h"
#include "problem/weight_sets.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// A number that a cache holds as a code times a scale.
struct StoredNumber {
  double code = 0, scale = 1;
  bool group_is_zero = false;
};

// K or V as codes.
class Codes {
 public:
  Codes(const StoredTokens& stored, const TensorView& tokens, const TensorView& values)
      : stored_(stored), tokens_(tokens), values_(values) {}

  Index columns() const { return values_.shape[3]; }
  Index group() const { return stored_.group > 0 ? stored_.group : columns(); }
  double scale(Index b, Index g, Index j, Index column) const {
    return std::ldexp(1.0, covering_exponent(stored_.dtype, largest(b, g, j, column)));
  }
  StoredNumber at(Index b, Index g, Index j, Index column) const {
    StoredNumber x;
    x.scale = scale(b, g, j, column);
    x.code = load(values_, values_.at(b, g, j, column)) / x.scale;
    const Index first = column / group() * group();
    x.group_is_zero = true;
    for (Index c = first; c < std::min(first + group(), columns()); ++c)
      x.group_is_zero = x.group_is_zero && load(values_, values_.at(b, g, j, c)) == 0;
    return x;
  }

 private:
  double largest(Index b, Index g, Index j, Index column) const {
    const Index first = column / group() * group();
    double most = 0;
    for (Index c = first; c < std::min(first + group(), columns()); ++c) {
      const double x = std::fabs(load(tokens_, tokens_.at(b, g, j, c)));
      if (std::isfinite(x)) most = std::max(most, x);
    }
    return most;
  }

  const StoredTokens& stored_;
  const TensorView &tokens_, &values_;
};

// Replaces the numbers of K and V by read(codes, stored number, b, g, j, column).
template <class Read>
bool read_codes(Alteration& a, const Read& read) {
  ProjectedAttention& p = a.problem;
  if (!a.stored || p.projection || format(a.stored->dtype).bits > 8) return false;
  const auto change = [&](TensorView& t, const TensorView& tokens) {
    const TensorView from = t;
    const Codes codes(*a.stored, tokens, from);
    return replace(a, t, from.shape, [&](Index b, Index g, Index j, Index c) {
      return read(codes, codes.at(b, g, j, c), b, g, j, c);
    });
  };
  return change(p.k, a.stored->k) && change(p.v, a.stored->v);
}

// The same, for a fault that reads codes wrongly and scales right.
template <class Read>
bool read_code_alone(Alteration& a, Dtype dtype, const Read& read) {
  return a.stored && a.stored->dtype == dtype &&
         read_codes(a, [&](const Codes&, const StoredNumber& x, Index, Index, Index, Index) {
           return std::isnan(x.code) ? nan : x.scale * read(x.code);
         });
}

double as_code(Dtype dtype, double x, double steps, double most) {
  const double code = std::clamp(std::nearbyint(x * steps) + (most + 1) / 2, 0.0, most);
  return decode(dtype, static_cast<std::uint64_t>(code));
}

// The largest code that stays below 2^128 under its scale is read as the next code: as infinity.
double beyond_binary32(const StoredTokens& stored, const StoredNumber& x) {
  const Dtype d = stored.dtype;
  const double magnitude = std::fabs(x.code);
  if (!std::isfinite(magnitude) || magnitude >= format(d).max_finite) return x.scale * x.code;
  const double next = decode(d, encode(d, magnitude) + 1);
  return next * x.scale > format(Dtype::f32).max_finite ? std::copysign(inf, x.code)
                                                        : x.scale * x.code;
}

// Replaces token j of sequence b by the token source(b, j); without a source, by zeros.
using TokenPlace = std::optional<std::pair<Index, Index>>;
template <class Source>
bool read_tokens(Alteration& a, const Source& source) {
  ProjectedAttention& p = a.problem;
  if (!a.stored) return false;
  const auto change = [&](TensorView& t) {
    const TensorView from = t;
    return replace(a, t, from.shape, [&](Index b, Index g, Index j, Index c) {
      const TokenPlace place = source(b, j);
      return place ? load(from, from.at(place->first, g, place->second, c)) : 0;
    });
  };
  if (p.projection && !(change(p.projection.k_absolute) && change(p.projection.v_absolute)))
    return false;
  return change(p.k) && change(p.v);
}

Index length_of(const Attention& p, Index b) {
  return p.key_lengths.empty() ? p.shape.keys : p.key_lengths[usize(b)];
}
Index pages_of(const Attention& p, Index b, Index page) {
  return (length_of(p, b) + page - 1) / page;
}
TokenPlace token_of(const Attention& p, Index b, Index j) {
  if (j >= length_of(p, b)) return {};
  return std::pair(b, j);
}

// Predicts only the rows of the last append. Earlier rows did not see the pages as they are now.
void tell_last_rows(Alteration& a) {
  const std::vector<Index>& appends = a.stored->appends;
  if (appends.size() < 2) return;
  const Index first = appends[appends.size() - 2] - (a.problem.shape.keys - a.problem.shape.rows);
  a.tells = [first](const RowPlace& at) { return at.row >= first; };
}

// Pages by number, as they are handed out to one append after the other: sequence and page.
std::vector<std::pair<Index, Index>> pages_by_number(const Attention& p, const StoredTokens& s) {
  std::vector<std::pair<Index, Index>> all;
  std::vector<Index> taken(usize(p.shape.batch), 0);
  for (std::size_t n = 1; n < s.appends.size(); ++n)
    for (Index b = 0; b < p.shape.batch; ++b) {
      const Index end = std::min(s.appends[n], length_of(p, b));
      for (Index& own = taken[usize(b)]; own * s.page < end; ++own) all.emplace_back(b, own);
    }
  return all;
}

constexpr Hypothesis hypotheses[] = {
    // Codes and scales.
    {"stored-scale-of-next-group", "every group of a token has the scale of the next one",
     [](Alteration& a, Index) {
       return read_codes(
           a, [](const Codes& codes, const StoredNumber& x, Index b, Index g, Index j, Index c) {
             const Index next = (c / codes.group() + 1) * codes.group();
             return x.code * (next < codes.columns() ? codes.scale(b, g, j, next) : x.scale);
           });
     }},
    {"stored-scale-of-first-token", "the tokens of a page have the scales of its first one",
     [](Alteration& a, Index) {
       if (!a.stored || a.stored->page == 0) return false;
       return read_codes(a, [page = a.stored->page](const Codes& codes, const StoredNumber& x,
                                                    Index b, Index g, Index j, Index c) {
         return x.code * codes.scale(b, g, j / page * page, c);
       });
     }},
    {"stored-offset-code", "codes 8 + round(2 x) are read as E2M1",
     [](Alteration& a, Index) {
       return read_code_alone(a, Dtype::f4e2m1,
                              [](double x) { return as_code(Dtype::f4e2m1, x, 2, 15); });
     }},
    {"stored-uniform-code", "codes 128 + round(127 x / 448) are read as E4M3",
     [](Alteration& a, Index) {
       return read_code_alone(a, Dtype::f8e4m3,
                              [](double x) { return as_code(Dtype::f8e4m3, x, 127.0 / 448, 255); });
     }},
    {"stored-at-most-four", "the code of 6 is stored as that of 4",
     [](Alteration& a, Index) {
       return read_code_alone(a, Dtype::f4e2m1,
                              [](double x) { return std::fabs(x) == 6 ? x * 4 / 6 : x; });
     }},
    {"stored-beyond-binary32", "a code that reaches 2^128 under its scale is stored",
     [](Alteration& a, Index) {
       return read_codes(a, [&](const Codes&, const StoredNumber& x, Index, Index, Index, Index) {
         return beyond_binary32(*a.stored, x);
       });
     }},
    {"stored-zero-group-nan", "a group of zeros has a scale of 0 / 0",
     [](Alteration& a, Index) {
       return read_codes(a, [](const Codes&, const StoredNumber& x, Index, Index, Index, Index) {
         return x.group_is_zero ? nan : x.scale * x.code;
       });
     }},

    // Pages and appends.
    {"page-after", "page n is looked up at n + 1",
     [](Alteration& a, Index) {
       if (!a.stored || a.stored->page == 0) return false;
       tell_last_rows(a);
       return read_tokens(a, [&a, before = a.problem](Index b, Index j) {
         const Index page = a.stored->page, last = pages_of(before, b, page) - 1;
         const Index read = std::min(j / page + 1, std::max<Index>(last, 0));
         return token_of(before, b, read * page + j % page);
       });
     }},
    {"pages-in-a-row", "the pages of a sequence are taken to follow its first one",
     [](Alteration& a, Index) {
       if (!a.stored || a.stored->page == 0 || !a.problem.key_starts.empty()) return false;
       const auto all = pages_by_number(a.problem, *a.stored);
       if (all.empty()) return false;
       tell_last_rows(a);
       return read_tokens(a, [&, before = a.problem](Index b, Index j) -> TokenPlace {
         const Index page = a.stored->page;
         const auto first = std::ranges::find(all, std::pair(b, Index{0}));
         if (first == all.end()) return {};
         const auto [of, n] = all[usize((first - all.begin() + j / page) % std::ssize(all))];
         return token_of(before, of, n * page + j % page);
       });
     }},
    {"appended-behind",
     "tokens are written behind their place, where those of the next call belong",
     [](Alteration& a, Index) {
       return read_tokens(a, [&, before = a.problem](Index b, Index j) -> TokenPlace {
         const std::vector<Index>& ends = a.stored->appends;
         const auto own = std::ranges::upper_bound(ends, j);
         if (own - ends.begin() < 2 || own == ends.end()) return {};
         const Index first = own[-1], of_before = own[-2];
         const Index place = of_before + (j - first);
         return place < first ? token_of(before, b, place) : TokenPlace();
       });
     }},
};

}  // namespace

std::span<const Hypothesis> cache_hypotheses() { return hypotheses; }

}  // namespace assay
