// What a kernel may mean where nobody agreed. docs/semantics.md says what each value means. The
// first value of a convention is ours. One table lists the conventions; the case line, records, the
// C interface, judges and reports walk over it.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "problem/names.h"

namespace assay {

// O of a row whose bias is -inf at every key, and that has no sink.
enum class MaskedRows : std::uint8_t {
  zero,
  mean_of_v,
  mean_within_lengths,
  unmasked,
  nan,
  any,
};
template <>
inline constexpr auto table_of<MaskedRows> = complete<Named<MaskedRows>>({
    {MaskedRows::zero, "zero"},
    {MaskedRows::mean_of_v, "mean-of-v"},
    {MaskedRows::mean_within_lengths, "mean-within-lengths"},
    {MaskedRows::unmasked, "unmasked"},
    {MaskedRows::nan, "nan"},
    {MaskedRows::any, "any"},
});

// LSE of such a row.
enum class MaskedLse : std::uint8_t { minus_infinity, infinity, zero, any };
template <>
inline constexpr auto table_of<MaskedLse> = complete<Named<MaskedLse>>({
    {MaskedLse::minus_infinity, "-inf"},
    {MaskedLse::infinity, "inf"},
    {MaskedLse::zero, "zero"},
    {MaskedLse::any, "any"},
});

// O of a row that sees keys, of which every score is -inf, and that has no sink.
enum class WeightlessRows : std::uint8_t { nan, zero, mean_of_v, mean_of_visible, any };
template <>
inline constexpr auto table_of<WeightlessRows> = complete<Named<WeightlessRows>>({
    {WeightlessRows::nan, "nan"},
    {WeightlessRows::zero, "zero"},
    {WeightlessRows::mean_of_v, "mean-of-v"},
    {WeightlessRows::mean_of_visible, "mean-of-visible"},
    {WeightlessRows::any, "any"},
});

// LSE of such a row.
enum class WeightlessLse : std::uint8_t { minus_infinity, infinity, zero, nan, any };
template <>
inline constexpr auto table_of<WeightlessLse> = complete<Named<WeightlessLse>>({
    {WeightlessLse::minus_infinity, "-inf"},
    {WeightlessLse::infinity, "inf"},
    {WeightlessLse::zero, "zero"},
    {WeightlessLse::nan, "nan"},
    {WeightlessLse::any, "any"},
});

// Whether 0 times a NaN or an infinity of a masked key is added. Keys outside the length of their
// sequence are not meant, because memory there may hold anything.
enum class MaskedNan : std::uint8_t { ignored, spreads };
template <>
inline constexpr auto table_of<MaskedNan> = complete<Named<MaskedNan>>({
    {MaskedNan::ignored, "ignored"},
    {MaskedNan::spreads, "spreads"},
});

// Where the diagonal of a problem without an offset begins: offset 0, Lk - Lq, or n[b] - Lq.
enum class Anchor : std::uint8_t { top_left, bottom_right, end_of_lengths };
template <>
inline constexpr auto table_of<Anchor> = complete<Named<Anchor>>({
    {Anchor::top_left, "top-left"},
    {Anchor::bottom_right, "bottom-right"},
    {Anchor::end_of_lengths, "end-of-lengths"},
});

// Whether results below the least normal number are written as 0.
enum class Subnormals : std::uint8_t { kept, flushed };
template <>
inline constexpr auto table_of<Subnormals> = complete<Named<Subnormals>>({
    {Subnormals::kept, "kept"},
    {Subnormals::flushed, "flushed"},
});

enum class Convention : std::uint8_t {
  masked_rows,
  masked_lse,
  masked_nan,
  anchor,
  subnormals,
  weightless_rows,
  weightless_lse,
};

// The names of all values of an enumeration, in order.
template <NamedEnum E>
inline constexpr auto names_in_order = [] {
  std::array<std::string_view, table_of<E>.size()> names{};
  for (std::size_t k = 0; k < names.size(); ++k) names[k] = table_of<E>[k].name;
  return names;
}();

struct ConventionRow {
  Convention value;
  std::string_view name;
  std::span<const std::string_view> values;  // ours first
  std::string_view what;                     // what it changes
  std::string_view judge;                    // what judges it
  // Whether a run has exit status 1 if this convention differs from ours and nobody declared it.
  // This is so if finite inputs can then give outputs that differ from those that a user expects.
  bool fails;
};
template <>
inline constexpr auto table_of<Convention> = complete<ConventionRow>({
    {Convention::masked_rows, "masked-rows", names_in_order<MaskedRows>,
     "O of a row that sees no key", "RowJudge, oracle/attention_verdict.cc", true},
    {Convention::masked_lse, "masked-lse", names_in_order<MaskedLse>,
     "LSE of a row that sees no key", "RowJudge, oracle/attention_verdict.cc", true},
    {Convention::masked_nan, "masked-nan", names_in_order<MaskedNan>,
     "NaN or infinity at a masked key", "ZeroTimesNan, oracle/conventional.cc", false},
    {Convention::anchor, "anchor", names_in_order<Anchor>,
     "the diagonal of a problem without an offset", "anchored_offset(), oracle/visibility.cc",
     true},
    {Convention::subnormals, "subnormals", names_in_order<Subnormals>,
     "results below the least normal number", "flushing(), oracle/conventional.cc", false},
    {Convention::weightless_rows, "weightless-rows", names_in_order<WeightlessRows>,
     "O of a row whose every visible score is -inf", "RowJudge, oracle/attention_verdict.cc",
     false},
    {Convention::weightless_lse, "weightless-lse", names_in_order<WeightlessLse>,
     "LSE of a row whose every visible score is -inf", "RowJudge, oracle/attention_verdict.cc",
     false},
});

template <class E>
inline constexpr Convention convention_of = [] {
  if constexpr (std::is_same_v<E, MaskedRows>) return Convention::masked_rows;
  else if constexpr (std::is_same_v<E, MaskedLse>) return Convention::masked_lse;
  else if constexpr (std::is_same_v<E, MaskedNan>) return Convention::masked_nan;
  else if constexpr (std::is_same_v<E, Anchor>) return Convention::anchor;
  else if constexpr (std::is_same_v<E, Subnormals>) return Convention::subnormals;
  else if constexpr (std::is_same_v<E, WeightlessRows>) return Convention::weightless_rows;
  else return Convention::weightless_lse;
}();

// Thrown for a text that should declare conventions, and is malformed.
struct ConventionError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The declared value of each convention. Where nothing is declared, ours is expected.
class Conventions {
 public:
  // All of ours, declared.
  static Conventions ours();
  // Reads "masked-rows:mean-of-v,masked-lse:zero". Throws ConventionError.
  static Conventions parse(std::string_view text);

  template <class E>
  E of() const {
    return static_cast<E>(index(convention_of<E>));
  }
  bool declares(Convention c) const { return at(c) != undeclared; }
  // The value's place in the table; that of ours if nothing is declared.
  std::size_t index(Convention c) const { return declares(c) ? at(c) : 0; }
  void declare(Convention c, std::size_t index) {
    declared_[static_cast<std::size_t>(c)] = static_cast<std::uint8_t>(index);
  }
  template <class E>
  void declare(E value) {
    declare(convention_of<E>, static_cast<std::size_t>(value));
  }
  // These conventions; where they declare nothing, those of `others`.
  Conventions over(const Conventions& others) const;
  // "masked-rows:mean-of-v" for each that is declared.
  std::vector<std::string> names() const;
  bool empty() const { return *this == Conventions(); }

  bool operator==(const Conventions&) const = default;

 private:
  static constexpr std::uint8_t undeclared = 0xFF;
  std::uint8_t at(Convention c) const { return declared_[static_cast<std::size_t>(c)]; }

  std::array<std::uint8_t, table_of<Convention>.size()> declared_ = [] {
    std::array<std::uint8_t, table_of<Convention>.size()> none{};
    none.fill(undeclared);
    return none;
  }();
};

// "masked-rows:mean-of-v"
std::string name_of_value(Convention convention, std::size_t index);

}  // namespace assay
