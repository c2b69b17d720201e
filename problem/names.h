// Enumerations with tables: the names, the number and the draws of their values come from one
// table.
//
//   enum class Colour : std::uint8_t { red, dark_blue };
//   template <>
//   inline constexpr auto table_of<Colour> = complete<Named<Colour>>({
//       {Colour::red, "red"},
//       {Colour::dark_blue, "dark-blue"},
//   });
//
// A row that is missing or in the wrong place is a compile error.
#pragma once

#include <cstdint>
#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>

namespace assay {

// The table has one row for each value, in the order of the enumeration. A row begins with `value`
// and `name`.
template <class E>
inline constexpr auto table_of = nullptr;

template <class E>
concept NamedEnum = std::is_enum_v<E> && requires { table_of<E>.size(); };

// A row that holds nothing but the name of a value.
template <class E>
struct Named {
  E value;
  std::string_view name;
};

// Whether a value is an enumerator. gcc and clang print a value that is not one as a cast.
template <auto value>
consteval bool is_enumerator() {
  return std::string_view(__PRETTY_FUNCTION__).find("value = (") == std::string_view::npos;
}

// Makes a table of rows, after checking that all rows are there and in order.
template <class Row, std::size_t n>
consteval std::array<Row, n> complete(const Row (&rows)[n]) {
  using E = decltype(Row::value);
  static_assert(!is_enumerator<static_cast<E>(n)>(), "an enumerator has no row in its table");
  std::array<Row, n> table{};
  for (std::size_t k = 0; k < n; ++k) {
    if (rows[k].value != static_cast<E>(k))
      throw "the rows are not in the order of the enumeration";
    table[k] = rows[k];
  }
  return table;
}

template <NamedEnum E>
inline constexpr int count_of = static_cast<int>(table_of<E>.size());

template <NamedEnum E>
constexpr const auto& row_of(E value) {
  return table_of<E>[static_cast<std::size_t>(value)];
}

template <NamedEnum E>
constexpr std::string_view name_of(E value) {
  return row_of(value).name;
}

// All values, in order.
template <NamedEnum E>
inline constexpr auto values_of = [] {
  std::array<E, table_of<E>.size()> values{};
  for (std::size_t k = 0; k < values.size(); ++k) values[k] = static_cast<E>(k);
  return values;
}();

template <NamedEnum E>
constexpr std::optional<E> value_named(std::string_view name) {
  for (const E value : values_of<E>)
    if (name_of(value) == name) return value;
  return std::nullopt;
}

}  // namespace assay
