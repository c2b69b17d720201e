// The walls of the house, read off the include lines.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Rooms = std::set<std::string>;

// Room -> rooms that it may include.
const std::map<std::string, Rooms> allowed = {
    {"problem", {"problem"}},
    {"oracle", {"oracle", "problem"}},
    {"kernels", {"kernels", "problem"}},
    {"harness", {"harness", "oracle", "kernels", "problem"}},
    {"reports", {"reports", "harness", "problem"}},
    {"cli", {"cli", "reports", "harness", "oracle", "kernels", "problem"}},
    {"property_tests", {"property_tests", "cli", "reports", "harness", "oracle", "kernels", "problem"}},
    {"fuzz", {"fuzz", "harness", "oracle", "kernels", "problem"}},
    {"bench", {"bench", "harness", "oracle", "kernels", "problem"}},
};

struct Include {
  std::string file, room, target;
};

std::vector<Include> project_includes() {
  std::vector<Include> found;
  for (const auto& [room, rooms] : allowed) {
    if (!fs::exists(fs::path(ASSAY_SOURCE_DIR) / room)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(ASSAY_SOURCE_DIR) / room)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc") continue;
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);)
        if (line.starts_with("#include \"")) found.push_back({entry.path().filename(), room, line.substr(10, line.find('"', 10) - 10)});
    }
  }
  return found;
}

TEST(Structure, RoomsIncludeOnlyWhatTheyMay) {
  const auto includes = project_includes();
  EXPECT_GT(includes.size(), 100u);
  for (const Include& i : includes) {
    const std::string to = i.target.substr(0, i.target.find('/'));
    EXPECT_TRUE(allowed.contains(to)) << i.room << "/" << i.file << " includes " << i.target << ", which is not written from the root";
    EXPECT_TRUE(allowed.at(i.room).contains(to)) << i.room << "/" << i.file << " includes " << i.target;
  }
}

// The wall that carries the weight, said on its own.
TEST(Structure, OracleAndKernelsNeverMeet) {
  bool oracle_seen = false, kernels_seen = false;
  for (const Include& i : project_includes()) {
    oracle_seen |= i.room == "oracle";
    kernels_seen |= i.room == "kernels";
    EXPECT_FALSE(i.room == "oracle" && i.target.starts_with("kernels/")) << i.file;
    EXPECT_FALSE(i.room == "kernels" && i.target.starts_with("oracle/")) << i.file;
  }
  EXPECT_TRUE(oracle_seen && kernels_seen);
}

TEST(Structure, NoFlagGivesUpIeeeArithmetic) {
  for (const auto& entry : fs::recursive_directory_iterator(ASSAY_SOURCE_DIR)) {
    if (entry.path().filename() != "CMakeLists.txt" || entry.path().string().find("/build") != std::string::npos) continue;
    std::ifstream in(entry.path());
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    for (const char* flag : {"fast-math", "Ofast", "funsafe"}) EXPECT_EQ(text.find(flag), std::string::npos) << entry.path();
  }
}

}  // namespace
