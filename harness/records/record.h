// Recorded tensors: inputs and outputs that another program wrote, on any machine and from any
// framework, into a safetensors file with one line of metadata for each record. docs/records.md
// describes the whole format.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/judging/execute.h"
#include "harness/records/safetensors.h"
#include "oracle/contract.h"

namespace assay {

// The tensors are views into the file, or into `owned` where they are small or not aligned. The
// file must outlive the record.
struct Record {
  std::string name;  // empty: it is the only record of its file
  std::string line;  // what was asked, as the metadata tell it
  std::string kernel = "recorded";
  std::string case_line;  // written by `assay record`; empty: the inputs come from somewhere else
  Operation operation = Operation::attention;
  ProjectedAttention problem;
  // Of a record whose line says how K and V are stored: the scales of their tokens, and how many
  // columns share one (0: all).
  TensorView k_scales, v_scales;
  Index scale_group = 0;
  Conventions conventions;  // those that the line declares
  AttentionOutput out;      // lse may be absent
  TensorView d_o, d_lse;    // dLSE may be absent
  AttentionGradients gradients;
  Product product;
  TensorView c;
  std::vector<Tensor> owned;
};

class RecordFile {
 public:
  // Throws FileError.
  explicit RecordFile(std::string path);
  // Reads a file that is already in memory and stays there. Messages use `path` as its name.
  RecordFile(std::string path, std::span<const std::byte> bytes);
  // Takes tensors and metadata that no file holds. The tensors' bytes stay where they are.
  RecordFile(std::string path, Safetensors contents);
  const std::string& path() const { return path_; }
  const std::vector<std::string>& names() const { return names_; }
  // The line of a record in the metadata, without control characters.
  std::string line(const std::string& name) const;
  // Reads a record with its outputs, which must be present. Throws FileError that says which record
  // is wrong, what is missing and what contradicts what.
  Record read(const std::string& name) const;

 private:
  void find_records();

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  Safetensors contents_;
  std::vector<std::string> names_;
};

// The command that judges a record again.
std::string verify_command(const std::string& path, const std::string& name);

struct VerifyOptions {
  int threads = 1;
  Index sample_rows = 0;  // the number of rows of each head that are judged; 0: all
  std::uint64_t seed = 1;
  bool power = true;
  EvidenceRule evidence = EvidenceRule::fail;
  bool pictures = false;  // keep the data that a report draws
  // What the kernel of a record declares; nothing: the ladder is tried.
  std::optional<Arithmetic> arithmetic = std::nullopt;
  // What is declared beside what the line of the record declares.
  Conventions conventions = {};
};

// Judges a record under the declared contract, or under the strictest arithmetic of the ladder that
// is not refuted. If the record says which case it is, its inputs must be those of the case, bit
// for bit.
CaseResult verify(const RecordFile& file, const Record& record, const VerifyOptions& options = {});

// Writes the inputs of each case, and the outputs of `candidate` if there is one. Several records
// are numbered from 0 (from 00 if there are more than ten); a single one has no number. Throws
// CaseError for a case that a record cannot hold (caches), FileError if the candidate fails,
// ShortageError if the machine does, and std::system_error. `watch` calls `run`, which runs the
// candidate on the case.
using Watch = std::function<void(const Case& c, const std::function<void()>& run)>;
void write_records(
    const std::string& path, const std::vector<Case>& cases, Candidate* candidate = nullptr,
    const Watch& watch = [](const Case&, const std::function<void()>& run) { run(); });

}  // namespace assay
