// A measurement in a process of its own, which has run nothing yet: not even a thread of the pool.
#pragma once

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <type_traits>

namespace assay::bench {

// What measure() returns there. Throws std::runtime_error that names the measurement if it fails.
template <class Measure>
auto in_own_process(const char* name, const Measure& measure) {
  using Result = decltype(measure());
  static_assert(std::is_trivially_copyable_v<Result>, "it comes as bytes");
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) throw std::runtime_error("no pipe");
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("no process to measure in");
  if (child == 0) {
    try {
      const Result result = measure();
      _exit(write(ends[1], &result, sizeof result) == sizeof result ? 0 : 1);
    } catch (const std::exception& e) {
      fmt::print(stderr, "{}: {}\n", name, e.what());
      _exit(1);
    }
  }
  close(ends[1]);
  Result result;
  const bool complete = read(ends[0], &result, sizeof result) == sizeof result;
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!complete || status != 0) throw std::runtime_error(fmt::format("{} failed", name));
  return result;
}

}  // namespace assay::bench
