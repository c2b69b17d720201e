// The one shrinker: for `assay`, for property tests and for fuzzers.
#pragma once

#include <functional>
#include <vector>

#include "problem/case.h"

namespace assay {

// Cuts lists and pokes to the extents that there are now.
void fit_lists(Case& c);

// Cases one step smaller, the boldest steps first: features dropped, extents cut, families made
// plain. Every one is a case that check_case() accepts.
std::vector<Case> smaller(const Case& c);

// Follows `fails` downhill from a failing case until no step fails any more, or `keep_going` says
// no.
Case shrink(Case failing, const std::function<bool(const Case&)>& fails,
            const std::function<bool()>& keep_going);

}  // namespace assay
