// Inside harness/judging/: judges what a candidate writes into the pages of a cache, bit for bit.
#pragma once

#include "harness/candidates/candidate.h"
#include "harness/judging/judged_bits.h"

namespace assay {

// Appends the tokens of a cached case to pages as a cache gets them: in two parts before the first
// row, then with each chunk of rows. Then slots are written again: sequences are cut back, go round
// in a ring, take over a page of another one, and are forked, with a copy of the page that is
// written. After each call the tokens have to be stored by the rule of caches, and every other byte
// of the pages has to be as it was, so every sequence is read as it should be. Tokens before the
// starts of the case, and those behind the end of a shorter sequence, have the slot -1, which is
// skipped. Nothing is asked of a candidate that does not append. The one call of the operation
// appends all tokens. The inputs are those of the case, and must live as long.
BitsOperation appending(const Inputs& in);

}  // namespace assay
