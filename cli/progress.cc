#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "harness/text.h"

namespace assay {

Progress::Progress(std::string what, std::size_t total)
    : what_(std::move(what)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (terminal_) std::fputs("\r\033[K", stderr);  // this call never throws
}

void Progress::advance(const std::string& note) {
  ++done_;
  note_ = visible(note);
  draw();
}

void Progress::say(const std::string& line) {
  fmt::print(stderr, "{}{}\n", terminal_ ? "\r\033[K" : "", line);
  std::fflush(stderr);
}

void Progress::draw() {
  const auto now = Clock::now();
  const double seconds = seconds_since(start_);
  if (terminal_) {
    if (now - last_ < std::chrono::milliseconds(100) && done_ < total_) return;
    constexpr std::size_t width = 30;
    const std::size_t filled = total_ ? done_ * width / total_ : width;
    fmt::print(stderr, "\r\033[K{} [{}{}] {}/{} {:.0f} s  {}", what_, std::string(filled, '#'),
               std::string(width - filled, '.'), done_, total_, seconds, note_.substr(0, 60));
    std::fflush(stderr);
  } else {
    if (now - last_ < std::chrono::seconds(10) && done_ < total_) return;
    fmt::print(stderr, "{}: {}/{}, {:.0f} s\n", what_, done_, total_, seconds);
  }
  last_ = now;
}

}  // namespace assay
