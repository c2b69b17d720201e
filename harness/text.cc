#include "harness/text.h"

#include <fmt/format.h>

namespace assay {
namespace {

constexpr char32_t no_character = 0xFFFFFFFF;

struct Decoded {
  char32_t character;  // no_character: the first byte begins no character
  std::size_t bytes;
};

// Decodes the character that `text` begins with. Overlong forms, surrogates and numbers above
// U+10FFFF are not UTF-8.
Decoded first_character(std::string_view text) {
  const auto byte = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
  if (byte(0) < 0x80) return {byte(0), 1};
  const std::size_t length = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (byte(0) < 0xC0 || byte(0) > 0xF7 || text.size() < length) return {no_character, 1};
  char32_t character = byte(0) & (0x7Fu >> length);
  for (std::size_t k = 1; k < length; ++k) {
    if ((byte(k) & 0xC0) != 0x80) return {no_character, 1};
    character = character << 6 | (byte(k) & 0x3Fu);
  }
  if (character < least[length] || character > 0x10FFFF ||
      (0xD800 <= character && character < 0xE000))
    return {no_character, 1};
  return {character, length};
}

bool controls_the_terminal(char32_t c) {
  // The last three are the marks of paragraphs and lines, and of the direction of writing.
  return c < 0x20 || (0x7F <= c && c < 0xA0) || (0x2028 <= c && c <= 0x202E) ||
         (0x2066 <= c && c <= 0x2069) || c == 0x200E || c == 0x200F;
}

std::string escaped(char32_t c) {
  switch (c) {
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    default:
      return c < 0x100 ? fmt::format("\\x{:02x}", static_cast<unsigned>(c))
                       : fmt::format("\\u{:04x}", static_cast<unsigned>(c));
  }
}

std::string shown(std::string_view text, bool keep_lines) {
  std::string out;
  while (!text.empty()) {
    const auto [c, bytes] = first_character(text);
    if (c == no_character) out += escaped(static_cast<unsigned char>(text[0]));
    else if (controls_the_terminal(c) && !(keep_lines && c == '\n')) out += escaped(c);
    else out += text.substr(0, bytes);
    text.remove_prefix(bytes);
  }
  return out;
}

}  // namespace

std::string visible(std::string_view text) { return shown(text, false); }
std::string visible_lines(std::string_view text) { return shown(text, true); }

std::size_t places_of(std::string_view text) {
  std::size_t places = 0;
  for (; !text.empty(); ++places) text.remove_prefix(first_character(text).bytes);
  return places;
}

std::string shell_quoted(std::string_view text) {
  const bool as_it_is = visible(text) == text;
  std::string out = as_it_is ? "'" : "$'";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (as_it_is) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    else if (c == '\'' || c == '\\') out += {'\\', c};
    else if (byte < 0x20 || byte >= 0x7F) out += fmt::format("\\x{:02x}", byte);
    else out += c;
  }
  return out + '\'';
}

std::string shell_word(std::string_view text) {
  constexpr std::string_view plain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789%+,-./:=@_";
  const bool safe = !text.empty() && text.find_first_not_of(plain) == std::string_view::npos;
  return safe ? std::string(text) : shell_quoted(text);
}

std::string counted(std::size_t n, std::string_view one, std::string_view many) {
  return n == 1 ? fmt::format("1 {}", one)
                : fmt::format("{} {}{}", n, many.empty() ? one : many, many.empty() ? "s" : "");
}

}  // namespace assay
