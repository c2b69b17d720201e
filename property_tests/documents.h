// Reads the documents of this repository, for tests that compare them with what they describe.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace assay {

inline std::string text_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::vector<std::filesystem::path> documents() {
  const std::filesystem::path root = ASSAY_SOURCE_DIR;
  std::vector<std::filesystem::path> found = {root / "README.md",
                                              root / "examples" / "kernel" / "README.md"};
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root / "docs"))
    if (entry.path().extension() == ".md") found.push_back(entry.path());
  return found;
}

struct Markdown {
  std::vector<std::string> code;  // lines of code blocks, and the texts between backquotes
  std::string prose;              // the rest of the text
};

inline Markdown split_markdown(const std::string& text) {
  Markdown m;
  bool fenced = false;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("```")) {
      fenced = !fenced;
    } else if (fenced || line.starts_with("    ")) {
      m.code.push_back(line);
    } else {
      for (std::size_t at = 0, quote; at < line.size(); at = quote + 1) {
        quote = std::min(line.find('`', at), line.size());
        m.prose += line.substr(at, quote - at);
        const std::size_t end = line.find('`', quote + 1);
        if (end == std::string::npos) continue;
        m.code.push_back(line.substr(quote + 1, end - quote - 1));
        quote = end;
      }
      m.prose += '\n';
    }
  }
  return m;
}

}  // namespace assay
