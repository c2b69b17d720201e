// Recorded tensors: inputs and outputs that somebody dumped, on any machine and from any framework,
// into a safetensors file with one line of metadata for each record. docs/records.md is the whole
// of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "harness/judging/execute.h"
#include "harness/records/safetensors.h"

namespace assay {

// Views into the file, but for what is small or not aligned there; it and its file outlive them.
struct Record {
  std::string name;  // empty: the only one of its file
  std::string line;  // what was asked, as the metadata say it
  std::string kernel = "recorded";
  std::string case_line;  // of `assay record`; empty: inputs from somewhere else
  Operation operation = Operation::attention;
  Attention problem;
  AttentionOutput out;  // lse may be absent
  TensorView d_o;
  AttentionGradients gradients;
  Product product;
  TensorView c;
  std::vector<Tensor> owned;
};

class RecordFile {
 public:
  // Throws FileError.
  explicit RecordFile(std::string path);
  // A file that is in memory already, and stays there; `path` is what messages call it.
  RecordFile(std::string path, std::span<const std::byte> bytes);
  const std::string& path() const { return path_; }
  const std::vector<std::string>& names() const { return names_; }
  // Its line of the metadata, without control characters.
  std::string line(const std::string& name) const;
  // With its outputs, which have to be there. Throws FileError that says which record, what is
  // missing and what contradicts what.
  Record read(const std::string& name) const;

 private:
  std::string path_;
  std::unique_ptr<MappedFile> file_;
  Safetensors contents_;
  std::vector<std::string> names_;
};

// The command that judges a record again.
std::string verify_command(const std::string& path, const std::string& name);

struct VerifyOptions {
  int threads = 1;
  Index sample_rows = 0;  // of each head; 0: all
  std::uint64_t seed = 1;
  bool power = true;
  bool pictures = false;  // keep what a report draws
};

// The verdict on a record, under the strictest arithmetic of the ladder that is not refuted. Where
// the record says which case it is, its inputs must be those of the case, bit for bit.
CaseResult verify(const RecordFile& file, const Record& record, const VerifyOptions& options = {});

// Writes the inputs of each case, and what `candidate` makes of them if there is one. Records are
// numbered from 0 (00 where there are more than ten), unless there is but one. Throws CaseError for
// a case that a record cannot hold (caches), FileError if the candidate fails, std::system_error.
void write_records(const std::string& path, const std::vector<Case>& cases,
                   Candidate* candidate = nullptr);

}  // namespace assay
