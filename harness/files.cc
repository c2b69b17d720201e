#include "harness/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

namespace assay {

NewFile::NewFile(std::string path) : path_(std::move(path)), temporary_(fmt::format("{}.{}.tmp", path_, getpid())) {
  file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file_ < 0) fail();
}

NewFile::~NewFile() {
  if (file_ < 0) return;
  close(file_);
  unlink(temporary_.c_str());
}

void NewFile::fail() const { throw std::system_error(errno, std::generic_category(), fmt::format("writing {}", path_)); }

void NewFile::write(const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(file_, at, bytes);
    if (n < 0 && errno != EINTR) fail();
    if (n > 0) at += n, bytes -= static_cast<std::size_t>(n);
  }
}

void NewFile::commit() {
  if (fsync(file_) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
  close(file_);
  file_ = -1;
}

void write_file(const std::string& path, const std::string& text) {
  NewFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace assay
