// Fuzz target: safetensors files and records. Whatever the bytes are, they are refused with a
// sentence or judged.
#include <cstdlib>

#include "harness/records/record.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace assay;
  // Aligned as a mapping of a file is, and of exactly its size.
  const std::vector<std::byte> file(reinterpret_cast<const std::byte*>(data),
                                    reinterpret_cast<const std::byte*>(data) + size);
  try {
    const RecordFile records("input", file);
    for (const std::string& name : records.names()) {
      const Record r = records.read(name);
      const AttentionShape& s = r.problem.shape;
      if (s.rows * s.keys > 1 << 12 || r.product.m * r.product.n * r.product.k > 1 << 16) continue;
      if (verify(records, r).outcome == Outcome::error) std::abort();
    }
  } catch (const FileError&) {
  }
  return 0;
}
