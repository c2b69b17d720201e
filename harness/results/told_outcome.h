// The outcome of a case in words, for everything that tells of it: terminals, pages, exchange
// formats.
#pragma once

#include <string>

#include "harness/results/result.h"

namespace assay {

// A failure is "fail, proved" where an element is outside the bound that was derived for it, "fail,
// by evidence" where all are inside but no arithmetic makes such errors, and "fail" where something
// else was observed: a crash, a relation that is violated. Other outcomes have their names.
std::string outcome_words(const CaseResult& result);
// The words and the reason: "fail, proved: LSE is outside its bound: LSE[b=0, h=0, row=0] = ...".
std::string told_outcome(const CaseResult& result);

}  // namespace assay
