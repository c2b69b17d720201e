// Inside oracle/: the rows that a verdict looks at, where it does not look at all of them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "oracle/verdict.h"

namespace assay {

// Distinct rows of one head, in order: all of them, or a seeded sample.
std::vector<Index> rows_to_judge(Index rows, Index sample, std::uint64_t seed);

// Notes in the verdict which sample `chosen` is; nothing where it is all of the `rows`.
void note_sample(Verdict& v, const std::vector<Index>& chosen, Index rows, std::uint64_t seed);

// What is added to the sentence of a pass of a sample; empty where all rows were judged.
std::string sentence_on_sample(const Verdict& v, Index rows, std::string_view called);

}  // namespace assay
