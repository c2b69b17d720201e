// The terms of a bound that a document lists as unreachable: no arithmetic that keeps its contract
// is known to need them.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace assay {

// Reads the lines that begin with "- `name`" in the section with this title, in their order.
inline std::vector<std::string> unreachable_terms(
    const std::string& document, const std::string& title = "Every term earns its place") {
  std::ifstream in(std::filesystem::path(ASSAY_SOURCE_DIR) / "docs" / document);
  std::vector<std::string> names;
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("## ")) inside = line.ends_with(". " + title);
    if (inside && line.starts_with("- `")) names.push_back(line.substr(3, line.find('`', 3) - 3));
  }
  return names;
}

}  // namespace assay
