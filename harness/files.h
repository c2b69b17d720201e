// Files that are written whole or not at all.
#pragma once

#include <cstddef>
#include <string>

#include "harness/process.h"

namespace assay {

// A file that has no name until commit() gives it the name `path`. A reader sees the old file or
// the new one, never a part, and what is not committed disappears with this process. A link is
// followed. The new file has the permissions and, where this process may set it, the owner of the
// old one. Something that is not a regular file (a pipe, a terminal) is written directly, and so is
// the file that standard output or standard error goes to.
//
// On a file system without nameless files (O_TMPFILE) the file has the name PATH.XXXXXX.tmp until
// commit(); a kill may leave it behind.
// Every error is a std::system_error that names the path.
class NewFile {
 public:
  explicit NewFile(std::string path);

  void write(const void* data, std::size_t bytes);
  void commit();

 private:
  // A name that is removed with the object, unless it was given to something else.
  struct TemporaryName {
    TemporaryName() = default;
    TemporaryName(const TemporaryName&) = delete;
    TemporaryName& operator=(const TemporaryName&) = delete;
    ~TemporaryName();
    std::string path;
  };
  [[noreturn]] void fail() const;
  void open_beside();
  void open_named();
  void link_to_name();
  void rename_to_path();

  std::string path_;
  TemporaryName temporary_;
  bool direct_ = false;  // the bytes go to what is at the path already
  Descriptor file_;
};

// Whether what is written to the path goes where standard output or standard error go.
bool goes_to_standard_stream(const std::string& path);

// The path without the links that it ends in. The last one may point to nothing.
std::string without_links(const std::string& path);

void write_file(const std::string& path, const std::string& text);

}  // namespace assay
