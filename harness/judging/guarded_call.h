// Inside harness/judging/: one call of a candidate, with a check of everything around its buffers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/judging/outputs.h"

namespace assay {

// What a call reads and must not change.
struct WatchedInputs {
  struct Named {
    const char* name;
    const Tensor* tensor;
  };
  std::vector<Named> tensors;
  const std::vector<std::uint8_t>* keep = nullptr;  // a boolean mask
};

// Fills the outputs with poison, runs the request, and checks everything around the buffers.
// Returns what went wrong ("o: a guard band was overwritten", "status 5 ..."); empty if nothing
// did. `answered` is set to whether the candidate said OK. Throws ShortageError or std::bad_alloc
// if the machine lacked something, also if the candidate says so: that is no fault of the
// candidate.
std::string call_guarded(Candidate& candidate, const Request& request, const WatchedInputs& inputs,
                         const NamedOutputs& outputs, Poison with, bool* answered = nullptr);
// The same for any call, which returns what went wrong in it.
std::string call_guarded(const std::function<std::string()>& call, const WatchedInputs& inputs,
                         const NamedOutputs& outputs, Poison with, bool* answered = nullptr);
// Runs the request without these checks. Returns "status 5 ..." or an empty text.
std::string call_plainly(Candidate& candidate, const Request& request);
// The same for any call of a candidate.
std::string failure_in(const std::function<kernels::Status()>& call);

}  // namespace assay
