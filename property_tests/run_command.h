// Runs programs through a shell, as a user does.
#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace assay {

struct Ran {
  int status;
  std::string output;  // standard output and standard error together
};

inline Ran run(const std::string& arguments, const std::string& program = ASSAY_COMMAND) {
  FILE* pipe = popen((program + " " + arguments + " 2>&1").c_str(), "r");
  std::string output;
  char chunk[4096];
  for (std::size_t n; (n = fread(chunk, 1, sizeof chunk, pipe)) > 0;) output.append(chunk, n);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), output};
}

inline std::string read(const std::filesystem::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace assay
