// The safetensors format: eight bytes with the length n of a header (little-endian), n bytes of
// JSON, then the tensors' bytes.
//
// A file is mapped, so it may be larger than memory; it must not shrink while it is read. Nothing
// in it is believed: every offset, extent and product is checked, tensors may neither overlap nor
// leave holes, names may not come twice.
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

// What is wrong with a file, naming the file or the tensor.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Text of a file as a message may repeat it: no control characters, and not all of it if it is
// long.
std::string shown(const std::string& text);

struct StoredTensor {
  std::string dtype;  // as the file names it: F32, BF16, BOOL, I64, ...
  std::vector<Index> shape;
  std::span<const std::byte> bytes;  // in the file, aligned to nothing
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

// A tensor to be written: write() is asked for its bytes when their turn comes, in pieces of any
// size.
struct TensorToStore {
  std::string name, dtype;
  std::vector<Index> shape;
  std::size_t bytes = 0;
  std::function<void(const std::function<void(const void*, std::size_t)>& put)> write;
};

// Whole or not at all. Tensors are ordered by falling alignment, so that each is aligned. Throws
// std::system_error.
void write_safetensors(const std::string& path, std::vector<TensorToStore> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace assay
