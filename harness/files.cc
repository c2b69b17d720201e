#include "harness/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>
#include <system_error>

namespace assay {
namespace {

namespace fs = std::filesystem;

// The descriptor of standard output or standard error that goes to this file, or -1.
int standard_stream_of(const struct stat& file) {
  for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) {
    struct stat of_stream{};
    if (fstat(stream, &of_stream) == 0 && of_stream.st_dev == file.st_dev &&
        of_stream.st_ino == file.st_ino)
      return stream;
  }
  return -1;
}

// Tries names beside `path` until `take` takes one: it answers 0 or, as errno, why not.
template <class Take>
int take_name_beside(const std::string& path, std::string& name, const Take& take) {
  constexpr int most_attempts = 100;
  std::random_device random;
  int error = EEXIST;
  for (int k = 0; k < most_attempts && error == EEXIST; ++k) {
    name = fmt::format("{}.{:08x}.tmp", path, random());
    error = take(name.c_str());
  }
  if (error != 0) name.clear();
  return error;
}

}  // namespace

NewFile::TemporaryName::~TemporaryName() {
  if (!path.empty()) unlink(path.c_str());
}

NewFile::NewFile(std::string path) : path_(std::move(path)) {
  struct stat old{};
  const bool there = stat(path_.c_str(), &old) == 0;
  if (!there && errno != ENOENT) fail();
  const int stream = there ? standard_stream_of(old) : -1;
  direct_ = stream >= 0 || (there && !S_ISREG(old.st_mode));
  if (stream >= 0) {
    std::fflush(stream == STDOUT_FILENO ? stdout : stderr);
    file_ = Descriptor(fcntl(stream, F_DUPFD_CLOEXEC, 0));
  } else if (direct_) {
    file_ = Descriptor(open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  } else {
    // A file that may not be written is not replaced either.
    if (there && access(path_.c_str(), W_OK) != 0) fail();
    path_ = without_links(path_);
    open_beside();
  }
  if (file_.number() < 0) fail();
  if (direct_ || !there) return;
  // The owner cannot always be kept. The permissions come second, because a change of the owner may
  // change them.
  (void)!fchown(file_.number(), old.st_uid, old.st_gid);
  if (fchmod(file_.number(), old.st_mode & 07777) != 0) fail();
}

// Opens the file that will take the place of the one at the path.
void NewFile::open_beside() {
  const std::string folder = fs::path(path_).parent_path();
  const int file =
      open(folder.empty() ? "." : folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
  const bool no_nameless_files = errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL;
  file_ = Descriptor(file);
  if (file < 0 && no_nameless_files) open_named();
}

// Opens a file with a name of its own. O_EXCL follows and overwrites nothing that somebody put
// there.
void NewFile::open_named() {
  errno = take_name_beside(path_, temporary_.path, [&](const char* name) {
    file_ = Descriptor(open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    return file_.number() < 0 ? errno : 0;
  });
}

void NewFile::fail() const {
  throw std::system_error(errno, std::generic_category(), fmt::format("writing {}", path_));
}

void NewFile::write(const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(file_.number(), at, bytes);
    if (n < 0 && errno != EINTR) fail();
    if (n > 0) at += n, bytes -= static_cast<std::size_t>(n);
  }
}

// Gives the nameless file its name or, if that is taken, a name beside it.
void NewFile::link_to_name() {
  const std::string nameless = fmt::format("/proc/self/fd/{}", file_.number());
  const auto link_as = [&](const char* name) {
    const int made = linkat(AT_FDCWD, nameless.c_str(), AT_FDCWD, name, AT_SYMLINK_FOLLOW);
    return made == 0 ? 0 : errno;
  };
  errno = link_as(path_.c_str());
  if (errno == 0) return;
  if (errno == EEXIST) errno = take_name_beside(path_, temporary_.path, link_as);
  if (errno != 0) fail();
}

void NewFile::rename_to_path() {
  if (std::rename(temporary_.path.c_str(), path_.c_str()) != 0) fail();
  temporary_.path.clear();
}

void NewFile::commit() {
  if (!direct_) {
    if (fsync(file_.number()) != 0) fail();
    if (temporary_.path.empty()) link_to_name();
    if (!temporary_.path.empty()) rename_to_path();
  }
  if (close(file_.release()) != 0) fail();
}

bool goes_to_standard_stream(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 && standard_stream_of(facts) >= 0;
}

std::string without_links(const std::string& path) {
  constexpr int most_links = 40;  // as for the system
  fs::path target = path;
  std::error_code error;
  for (int k = 0; k < most_links && fs::is_symlink(target, error); ++k)
    target = target.parent_path() / fs::read_symlink(target, error);
  return target;
}

void write_file(const std::string& path, const std::string& text) {
  NewFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace assay
