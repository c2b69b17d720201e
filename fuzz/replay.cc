// A fuzz target without a fuzzer: every file of the folders named, once. For compilers without libFuzzer, and for ctest.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size);

int main(int argc, char** argv) {
  std::size_t inputs = 0;
  for (int a = 1; a < argc; ++a) {
    std::vector<std::filesystem::path> files;
    std::error_code error;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[a], error))
      if (entry.is_regular_file()) files.push_back(entry.path());
    if (error) {
      std::fprintf(stderr, "replay: %s: %s\n", argv[a], error.message().c_str());
      return 2;
    }
    std::ranges::sort(files);
    for (const auto& file : files) {
      std::ifstream in(file, std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
      if (in.bad()) {
        std::fprintf(stderr, "replay: %s cannot be read\n", file.c_str());
        return 2;
      }
      std::fprintf(stderr, "%s\n", file.c_str());  // the last one printed is the one that aborts
      // Of exactly its size, so that a sanitizer sees one byte too many.
      const auto exact = std::make_unique<unsigned char[]>(bytes.size());
      std::copy(bytes.begin(), bytes.end(), exact.get());
      LLVMFuzzerTestOneInput(exact.get(), bytes.size());
      ++inputs;
    }
  }
  std::printf("%zu inputs replayed\n", inputs);
  if (inputs == 0) std::fprintf(stderr, "replay: no input was found\n");
  return inputs == 0 ? 2 : 0;
}
