// How texts of others are printed: the reason of a library, a name in a file, an argument.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace assay {

// The text as it can be shown on one line of a terminal. Control characters, line ends, characters
// that change the direction of writing, and bytes that are not UTF-8 are written as \n, \x1b or
// \u202e, so that they do nothing.
std::string visible(std::string_view text);
// The same for a text of several lines, whose line ends stay.
std::string visible_lines(std::string_view text);
// How many characters `text` takes on a terminal if each takes one place.
std::size_t places_of(std::string_view text);

// The text in quotes as one word of a shell's command. A text that `visible` would change is
// written with the escapes of bash and zsh ($'...'), so that it stays the same when it is printed.
std::string shell_quoted(std::string_view text);
// The same without quotes if the text needs none.
std::string shell_word(std::string_view text);

// "1 case", "2 cases". `many` is the plural if it is not `one` with an s.
std::string counted(std::size_t n, std::string_view one, std::string_view many = {});

}  // namespace assay
