// Inside fuzz/: what draws a fuzzer to a case beside coverage: how near errors come to their
// bounds, and how far they are from typical ones. An input that sets one of the counters for the
// first time is kept.
#pragma once

#include <cstddef>
#include <vector>

#include "oracle/verdict.h"

namespace assay {

// The counters of error/bound, of every output; behind them are those of evidence: of s, of every
// output, and of z.
inline constexpr std::size_t bound_counters = 16 * 64;
inline constexpr std::size_t fitness_counters = bound_counters + 17 * 64;

// The counters that a verdict sets: one for every half power of two of error/bound, and one for
// every eighth of a power of two of s and of z in units of their limits.
std::vector<std::size_t> fitness_of(const Verdict& v);

}  // namespace assay
