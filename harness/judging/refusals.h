// Inside harness/judging/: calls that no kernel can answer. The kernel must refuse them, write
// nothing, and live.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "harness/judging/judged_bits.h"
#include "harness/judging/step.h"

namespace assay {

// Makes every wrong call that can be made of the request, and tells each as the relation
// PREFIX-NAME. `prepare` fills what the call writes, and says where that is. A candidate that did
// not refuse a call may be in any state, so the next call goes to a fresh process.
Relations ask_for_refusals(Candidate& candidate, const Request& request, const std::string& prefix,
                           const std::function<std::vector<WrittenBytes>()>& prepare);

// The bytes of outputs that are filled with poison.
std::vector<WrittenBytes> poisoned(const NamedOutputs& outputs);

template <class Step>
Relations ask_for_refusals(const Asked<Step>& asked) {
  const typename Step::Out out = asked.step.outputs();
  return ask_for_refusals(asked.candidate, {asked.step.call(out), execution_of(asked.step.c)},
                          "refuses", [&] { return poisoned(out.named()); });
}

}  // namespace assay
