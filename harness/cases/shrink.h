// The shrinker that `assay`, property tests and fuzzers share.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

#include "problem/case.h"

namespace assay {

// Cuts the lists and pokes of a case to its present extents.
void fit_lists(Case& c);

// Returns the cases that are one step smaller, the largest steps first: dropped features, smaller
// extents, plainer families. check_case() accepts every one of them.
std::vector<Case> smaller(const Case& c);

// Makes a failing case smaller, step by step, while `fails` still holds for the smaller case. Stops
// when no step fails any more, or when `keep_going` says no.
Case shrink(Case failing, const std::function<bool(const Case&)>& fails,
            const std::function<bool()>& keep_going);

// The same for a test that takes all steps from one case together, and returns the first that still
// fails, if there is one.
using FirstFailing = std::function<std::optional<std::size_t>(const std::vector<Case>&)>;
Case shrink(Case failing, const FirstFailing& first_failing,
            const std::function<bool()>& keep_going);

}  // namespace assay
