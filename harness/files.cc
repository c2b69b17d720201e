#include "harness/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

namespace assay {

NewFile::NewFile(std::string path) : path_(std::move(path)) {
  struct stat facts{};
  const bool there = stat(path_.c_str(), &facts) == 0;
  if (there && !S_ISREG(facts.st_mode)) {
    file_ = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    std::error_code error;
    if (const auto target = std::filesystem::canonical(path_, error); !error) path_ = target;
    temporary_ = fmt::format("{}.{}.tmp", path_, getpid());
    file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  }
  if (file_ < 0) fail();
}

NewFile::~NewFile() {
  if (file_ < 0) return;
  close(file_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void NewFile::fail() const {
  throw std::system_error(errno, std::generic_category(), fmt::format("writing {}", path_));
}

void NewFile::write(const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(file_, at, bytes);
    if (n < 0 && errno != EINTR) fail();
    if (n > 0) at += n, bytes -= static_cast<std::size_t>(n);
  }
}

void NewFile::commit() {
  if (!temporary_.empty() &&
      (fsync(file_) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0))
    fail();
  close(file_);
  file_ = -1;
}

void write_file(const std::string& path, const std::string& text) {
  NewFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace assay
