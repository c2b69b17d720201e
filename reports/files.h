#pragma once

#include <string>

namespace assay {

// Writes the whole text under a temporary name beside `path` and renames it: a reader sees the old file or
// the new one, never a part. Throws std::system_error naming the path.
void write_file(const std::string& path, const std::string& text);

}  // namespace assay
