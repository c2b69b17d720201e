// Inside harness/: one call of a candidate, with everything around its buffers watched.
#pragma once

#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/judging/outputs.h"

namespace assay {

// What a call reads and may not change.
struct WatchedInputs {
  struct Named {
    const char* name;
    const Tensor* tensor;
  };
  std::vector<Named> tensors;
  const std::vector<std::uint8_t>* keep = nullptr;  // a boolean mask
};

// Poisons the outputs, runs the request and looks at everything around it. Returns what went wrong
// ("o: a guard band was overwritten", "status 5 ..."); empty if nothing did.
std::string call_guarded(Candidate& candidate, const Request& request, const WatchedInputs& inputs,
                         const NamedOutputs& outputs, Poison with);
// Runs it without a look around: "status 5 ..." or empty.
std::string call_plainly(Candidate& candidate, const Request& request);

}  // namespace assay
