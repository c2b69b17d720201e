// Inside fuzz/: reads the inputs in folders, and runs programs over them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>
#include <vector>

#include "problem/clock.h"

namespace assay {

struct FuzzInput {
  std::filesystem::path file;
  // of exactly its size, so that a sanitizer sees an access one byte beyond
  std::unique_ptr<unsigned char[]> bytes;
  std::size_t size = 0;
};

// Returns every file of a folder, sorted by name. Throws std::filesystem::filesystem_error.
inline std::vector<FuzzInput> read_inputs(const char* folder) {
  std::vector<FuzzInput> inputs;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream in(entry.path(), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    if (in.bad() || !in.is_open())
      throw std::filesystem::filesystem_error("cannot be read", entry.path(),
                                              std::make_error_code(std::errc::io_error));
    FuzzInput input{entry.path(), std::make_unique<unsigned char[]>(bytes.size()), bytes.size()};
    std::copy(bytes.begin(), bytes.end(), input.bytes.get());
    inputs.push_back(std::move(input));
  }
  std::ranges::sort(inputs, {}, &FuzzInput::file);
  return inputs;
}

// The main function of a program `[--seconds S] FOLDER...`. It uses every input once and prints the
// name of each before using it. With --seconds it uses all of them again and again for that time,
// and prints the number of executions per second at the end.
template <class Use>
int for_inputs(int argc, char** argv, const Use& use) {
  double seconds = 0;
  int first = 1;
  if (argc > 2 && std::strcmp(argv[1], "--seconds") == 0) {
    char* end = nullptr;
    seconds = std::strtod(argv[2], &end);
    if (!(seconds > 0 && seconds < 1e6) || *end != 0) {
      std::fprintf(stderr, "--seconds=%s: a number above 0 and below 1000000\n", argv[2]);
      return 2;
    }
    first = 3;
  }
  std::vector<FuzzInput> inputs;
  try {
    for (int a = first; a < argc; ++a)
      for (FuzzInput& input : read_inputs(argv[a])) inputs.push_back(std::move(input));
  } catch (const std::filesystem::filesystem_error& e) {
    std::fprintf(stderr, "%s: %s\n", e.path1().c_str(), e.code().message().c_str());
    return 2;
  }
  if (inputs.empty()) {
    std::fprintf(stderr, "no input was found\n");
    return 2;
  }
  if (seconds == 0) {
    for (const FuzzInput& input : inputs) {
      // if the program aborts, the last name printed is the input
      std::fprintf(stderr, "%s\n", input.file.c_str());
      use(input);
    }
    std::printf("%zu inputs replayed\n", inputs.size());
    return 0;
  }
  const auto start = Clock::now();
  double took = 0;
  std::size_t rounds = 0;
  for (; took < seconds; took = seconds_since(start), ++rounds)
    for (const FuzzInput& input : inputs) use(input);
  std::printf("%.1f executions a second: %zu inputs, %zu times\n",
              static_cast<double>(rounds * inputs.size()) / took, inputs.size(), rounds);
  return 0;
}

}  // namespace assay
