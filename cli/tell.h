// Inside cli/: how commands print.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "harness/text.h"

namespace assay {

// A text among the values is shown by visible(). Other values are what they are.
template <class T>
auto told(const T& value) {
  if constexpr (std::is_convertible_v<const T&, std::string_view>) return visible(value);
  else return value;
}

// fmt::format with values of others: a reason of a library or a name in a file can neither control
// the terminal nor look like a line of this program.
template <class... T>
std::string told_in(fmt::format_string<T...> words, const T&... values) {
  const auto texts = std::make_tuple(told(values)...);
  return std::apply(
      [&](const auto&... each) { return fmt::vformat(words, fmt::make_format_args(each...)); },
      texts);
}

// Prints values of others. If the stream does not take it, main() notices.
template <class... T>
void tell(std::FILE* to, fmt::format_string<T...> words, const T&... values) {
  const std::string text = told_in<T...>(words, values...);
  std::fwrite(text.data(), 1, text.size(), to);
}
template <class... T>
void tell(fmt::format_string<T...> words, const T&... values) {
  tell<T...>(stdout, words, values...);
}

}  // namespace assay
