// Files that are written whole or not at all.
#pragma once

#include <cstddef>
#include <string>

namespace assay {

// A file that is written under a temporary name beside `path`, and that commit() renames. A reader
// sees the old file or the new one, never a part. A file that is not committed is removed. A link
// is followed. Something that is not a regular file (a pipe, /dev/stdout) is written directly.
// Every error is a std::system_error that names the path.
class NewFile {
 public:
  explicit NewFile(std::string path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void commit();

 private:
  [[noreturn]] void fail() const;
  std::string path_, temporary_;
  int file_ = -1;
};

void write_file(const std::string& path, const std::string& text);

}  // namespace assay
