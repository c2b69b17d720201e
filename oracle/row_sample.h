// Inside oracle/: the rows that a verdict looks at, where it does not look at all of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "oracle/verdict.h"

namespace assay {

// Chooses distinct rows of one head, in ascending order: all of them, or a sample that the seed
// determines.
std::vector<Index> rows_to_judge(Index rows, Index sample, std::uint64_t seed);

// Records in the verdict which rows were sampled; records nothing if `chosen` holds all of the
// `rows`.
void note_sample(Verdict& v, const std::vector<Index>& chosen, Index rows, std::uint64_t seed);

// The words that are added to the reason of a pass that rests on a sample; empty where all rows
// were judged.
std::string sentence_on_sample(const Verdict& v, Index rows, std::string_view called);

}  // namespace assay
