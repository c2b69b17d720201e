// Reads a number from text as std::from_chars does. The C++ library of clang has that for integers
// alone, so there the C library reads real numbers.
#pragma once

#include <charconv>
#include <type_traits>

#ifndef __cpp_lib_to_chars
#include <locale.h>  // newlocale, which is POSIX's

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <string>
#endif

namespace assay {

template <class T>
std::from_chars_result read_number(const char* begin, const char* end, T& value) {
#ifndef __cpp_lib_to_chars
  if constexpr (std::is_floating_point_v<T>) {
    // What strtod takes beyond std::from_chars: spaces, a plus sign, and hexadecimal digits.
    if (begin == end ||
        (*begin != '-' && *begin != '.' && !std::isalnum(static_cast<unsigned char>(*begin))))
      return {begin, std::errc::invalid_argument};
    std::string text(begin, end);
    text.resize(std::min(text.find_first_of("xX"), text.size()));
    static const locale_t plain = newlocale(LC_ALL_MASK, "C", nullptr);
    char* stop = nullptr;
    errno = 0;
    const T read = std::is_same_v<T, float> ? strtof_l(text.c_str(), &stop, plain)
                                            : static_cast<T>(strtod_l(text.c_str(), &stop, plain));
    if (stop == text.c_str()) return {begin, std::errc::invalid_argument};
    const char* after = begin + (stop - text.c_str());
    // A subnormal number that had to be rounded gives ERANGE as well, but it is a number.
    if (errno == ERANGE && (read == 0 || std::isinf(read)))
      return {after, std::errc::result_out_of_range};
    value = read;
    return {after, std::errc()};
  } else
#endif
    return std::from_chars(begin, end, value);
}

}  // namespace assay
