// Compares what documents and build files say with what exists.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "property_tests/documents.h"

namespace {

namespace fs = std::filesystem;
// docs/checklist.md names tests as "Suite.Name". Each must be defined somewhere.
TEST(Structure, ChecklistNamesTestsThatExist) {
  std::string sources;
  for (const char* room : {"property_tests", "fuzz"})
    for (const auto& entry : fs::directory_iterator(fs::path(ASSAY_SOURCE_DIR) / room)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path());
      sources.append((std::istreambuf_iterator<char>(in)), {});
    }
  std::ifstream in(fs::path(ASSAY_SOURCE_DIR) / "docs" / "checklist.md");
  int named = 0;
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("| 0") && !line.starts_with("| X")) continue;
    std::string tests = line.substr(line.rfind('|', line.size() - 2) + 1);
    for (char& c : tests)
      if (c == ',' || c == '|') c = ' ';
    std::istringstream words(tests);
    for (std::string test; words >> test; ++named) {
      const auto dot = test.find('.');
      ASSERT_NE(dot, std::string::npos) << line;
      const std::string suite = test.substr(0, dot), name = test.substr(dot + 1);
      // A property has a list of parameters after its name.
      const bool defined = sources.find("(" + suite + ", " + name + ")") != std::string::npos ||
                           sources.find("(" + suite + ", " + name + ", ") != std::string::npos ||
                           sources.find("NAME " + test + " ") != std::string::npos;
      EXPECT_TRUE(defined) << test << " is named in the checklist and defined nowhere";
    }
  }
  EXPECT_GT(named, 20);
}

TEST(Structure, NoFlagGivesUpIeeeArithmetic) {
  for (const auto& entry : fs::recursive_directory_iterator(ASSAY_SOURCE_DIR)) {
    if (entry.path().filename() != "CMakeLists.txt" ||
        entry.path().string().find("/build") != std::string::npos)
      continue;
    std::ifstream in(entry.path());
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    for (const char* flag : {"fast-math", "Ofast", "funsafe"})
      EXPECT_EQ(text.find(flag), std::string::npos) << entry.path();
  }
}

// tell() shows texts of others as texts. Commands that print otherwise could forget that. The bar
// of a terminal is drawn with control characters, and an exception of a candidate has no text.
TEST(Structure, CommandsPrintByTell) {
  int seen = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(ASSAY_SOURCE_DIR) / "cli")) {
    std::ifstream in(entry.path());
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    seen += text.find("tell(") != std::string::npos;
    if (entry.path().filename() == "progress.cc") continue;
    for (const char* other : {"fmt::print", "printf", "std::cout", "std::cerr", "std::puts"})
      EXPECT_EQ(text.find(other), std::string::npos) << entry.path() << " has " << other;
  }
  EXPECT_GT(seen, 8);
}

using assay::documents;
using assay::text_of;

// The targets of links and pictures that are files but do not exist.
std::vector<std::string> dead_links(const std::string& text, const fs::path& folder, int& seen) {
  static const std::regex link(R"re(\]\(([^)\s]+)[^)]*\)|src="([^"]+)")re");
  const std::string prose = assay::split_markdown(text).prose;
  std::vector<std::string> dead;
  for (std::sregex_iterator i(prose.begin(), prose.end(), link), end; i != end; ++i) {
    std::string target = (*i)[1].matched ? (*i)[1] : (*i)[2];
    target = target.substr(0, target.find('#'));
    if (target.empty() || target.find("://") != std::string::npos) continue;
    ++seen;
    if (!fs::exists(folder / target)) dead.push_back(target);
  }
  return dead;
}

TEST(Structure, LinksInDocumentsLead) {
  int seen = 0;
  for (const fs::path& document : documents())
    for (const std::string& target : dead_links(text_of(document), document.parent_path(), seen))
      ADD_FAILURE() << document << " links to " << target << ", which is not there";
  EXPECT_GT(seen, 50);
  EXPECT_EQ(dead_links("[one](docs/verdict.md), [no](docs/no.md#at), ![pic](docs/none.png), <img "
                       "src=\"none.png\">",
                       ASSAY_SOURCE_DIR, seen),
            (std::vector<std::string>{"docs/no.md", "docs/none.png", "none.png"}));
  EXPECT_TRUE(dead_links("`[a](b)` [x](https://x.org/y) [here](#there)\n\n    [b](c)",
                         ASSAY_SOURCE_DIR, seen)
                  .empty());
}

}  // namespace
