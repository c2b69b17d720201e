// A candidate that answers calls in the form of NamedCall: a function of another language.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "harness/candidates/named_call.h"
#include "problem/features.h"

namespace assay {

class NamedCandidate : public Candidate {
 public:
  struct Facts {
    std::string name;
    // Without the feature "attention", the host's kernel computes the O and LSE of backward cases.
    Features features;
    bool lse = true;  // whether its forward calls write LSE
    // What it declares of its one operation, by the dtype of Q, or of A (f32 if A is low-bit);
    // where nothing is, the ladder is tried.
    std::map<Dtype, Arithmetic> contracts = {};
    bool own_process = false;  // as in Abilities
    // The conventions that it declares.
    Conventions conventions = {};
    std::vector<std::string> remarks = {};  // as in CandidateFacts
  };
  // Computes the outputs of the call. Throws CandidateError for what no candidate may do, and
  // CandidateDeclined for what it does not support after all.
  using Answer = std::function<void(const NamedCall&)>;

  NamedCandidate(Facts facts, Answer answer);

  std::string unsupported(const Call& call) const override;
  std::optional<Arithmetic> arithmetic(const Call& call,
                                       const kernels::Execution& how) const override;
  kernels::Status run(const Request& request) override;

 private:
  const std::map<Dtype, Arithmetic> contracts_;
  const Answer answer_;
};

}  // namespace assay
