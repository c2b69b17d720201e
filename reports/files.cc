#include "reports/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <system_error>

namespace assay {

void write_file(const std::string& path, const std::string& text) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, getpid());
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  auto give_up = [&] {
    const int error = errno;
    if (file >= 0) close(file), unlink(temporary.c_str());
    throw std::system_error(error, std::generic_category(), fmt::format("writing {}", path));
  };
  if (file < 0) give_up();
  for (std::size_t at = 0; at < text.size();) {
    const ssize_t n = write(file, text.data() + at, text.size() - at);
    if (n < 0 && errno != EINTR) give_up();
    if (n > 0) at += static_cast<std::size_t>(n);
  }
  if (fsync(file) != 0) give_up();
  close(file);
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    throw std::system_error(error, std::generic_category(), fmt::format("writing {}", path));
  }
}

}  // namespace assay
