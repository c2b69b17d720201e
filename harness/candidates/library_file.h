// Inside harness/: the file of a kernel library, which must stay as it is while a run lasts.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>

namespace assay {

class LibraryFile {
 public:
  // Reads the file of the candidate lib:PATH. Of any other candidate, and of a name that the loader
  // finds in folders of its own, no change is noticed.
  explicit LibraryFile(const std::string& candidate);

  // Whether the path holds other bytes than before. The bytes are read again only if the file
  // system says that the file is another or was written.
  bool changed();

 private:
  std::optional<struct stat> facts() const;
  std::optional<std::uint64_t> hash() const;

  std::string path_;
  std::optional<struct stat> facts_;
  std::optional<std::uint64_t> hash_;
};

}  // namespace assay
