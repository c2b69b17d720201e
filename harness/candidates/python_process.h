// Inside harness/candidates/: the process of a Python function, and what is said to it and by it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/candidates/named_call.h"
#include "harness/process.h"
#include "oracle/contract.h"

namespace assay {

// Messages are lines of text; the elements of tensors follow in row-major order. The process says
// first
//   kernel, or: refused SENTENCE
//   lse yes, no or unknown
//   features, separated by spaces
//   arithmetic COUNT, and as many lines DTYPE TEXT, of what it declares for inputs of that dtype
//   conventions, and what it declares of them: conventions masked-rows:nan
//   remarks COUNT, and as many lines, of what to know of the function whatever its verdict
// Asked "probe", it calls the function once on a tiny case, and answers "lse yes" or "lse no". A
// call is
//   call OPERATION INPUTS OUTPUTS
//   the line of the record
//   NAME CODE BITS BYTES SHAPE... of each input and each output
// and the bytes of the inputs. The answer is "done" and the bytes of the outputs, or "finding
// SENTENCE", or "declined SENTENCE", or "lost SENTENCE": a finding after which the device answers
// this process no more, and the next call starts another one. What the function prints goes to
// standard error.
class PythonProcess {
 public:
  // Throws std::invalid_argument if the process refuses, or cannot be started.
  explicit PythonProcess(std::string where);

  bool lse() const { return lse_; }
  const std::vector<std::string>& features() const { return features_; }
  const std::map<Dtype, Arithmetic>& contracts() const { return contracts_; }
  const Conventions& conventions() const { return conventions_; }
  const std::vector<std::string>& remarks() const { return remarks_; }

  // Runs one call and writes its outputs. Throws CandidateError and CandidateDeclined.
  void run(const NamedCall& call);

 private:
  struct Ended {};  // the process is gone
  void start();
  void learn_lse();
  void read_arithmetic();
  void read_conventions();
  void read_remarks();
  void transfer(const NamedCall& call);
  void send(const void* data, std::size_t bytes);
  void send(const std::string& text) { send(text.data(), text.size()); }
  void receive(void* data, std::size_t bytes);
  std::string receive_line();
  int receive_count();
  std::string how_it_ended();

  const std::string where_;
  bool lse_ = true, asked_lse_ = false;
  std::vector<std::string> features_, remarks_;
  std::map<Dtype, Arithmetic> contracts_;
  Conventions conventions_;
  std::optional<Process> process_;
  Descriptor socket_;
};

}  // namespace assay
