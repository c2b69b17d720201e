// The safetensors format: eight bytes with the length n of a header (little-endian), n bytes of
// JSON, then the tensors' bytes.
//
// A file is mapped, so it may be larger than memory; it must not shrink while it is read. The
// reader trusts nothing in a file: it checks every offset, extent and product. Tensors may neither
// overlap nor leave holes, and no name may occur twice.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "problem/tensor.h"

namespace assay {

// An error in a file. It names the file or the tensor.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Text of a file in the form in which messages repeat it: without control characters, and shortened
// if it is long.
std::string shown(const std::string& text);

struct StoredTensor {
  std::string dtype;  // as the file names it: F32, BF16, BOOL, I64, ...
  std::vector<Index> shape;
  std::span<const std::byte> bytes;  // they lie in the file, without alignment
};

struct Safetensors {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Throws FileError.
Safetensors parse_safetensors(std::span<const std::byte> file);

class MappedFile {
 public:
  // Throws FileError.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// A tensor to be written. write() is called when the tensor's turn comes, and passes its bytes in
// pieces of any size.
struct TensorToStore {
  std::string name, dtype;
  std::vector<Index> shape;
  std::size_t bytes = 0;
  std::function<void(const std::function<void(const void*, std::size_t)>& put)> write;
};

// Writes the whole file or nothing. Tensors are ordered by falling alignment, so that each is
// aligned. Throws std::system_error.
void write_safetensors(const std::string& path, std::vector<TensorToStore> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace assay
