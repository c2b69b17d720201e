// Inside harness/: calls that no kernel can answer. The kernel must refuse them, write nothing, and
// live.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "harness/judging/step.h"

namespace assay {

// Makes one wrong call, from poisoned outputs. If its answer is no refusal, says what it was.
Relation ask_to_refuse(Candidate& candidate, const Request& request, const std::string& name,
                       const NamedOutputs& outputs);

// Makes every wrong call that can be made of the step. A candidate that did not refuse a call may
// be in any state, so the next call goes to a fresh process.
template <class Step>
Relations ask_for_refusals(const Asked<Step>& asked) {
  Relations found;
  const typename Step::Out out = asked.step.outputs();
  const Request request{asked.step.call(out), execution_of(asked.step.c)};
  std::unique_ptr<Candidate> fresh;
  for (const std::string& name : asked.candidate.wrong_calls(request.call)) {
    if (!fresh) fresh = asked.candidate.fresh();
    Relation answer = ask_to_refuse(*fresh, request, name, out.named());
    if (answer.how == Relation::How::violated) fresh.reset();
    found["refuses-" + name] = std::move(answer);
  }
  return found;
}

}  // namespace assay
