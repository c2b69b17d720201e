// Inside oracle/: matched filters. A fault moves the exact output in a known direction; a filter
// says how much of that direction lies in the errors, and how much by chance. docs/evidence.md, 2.
#pragma once

#include "oracle/evidence_rows.h"
#include "oracle/shares.h"

namespace assay {

// Asks all filters about O, and about LSE where there is one. `roundoff` is that of the sums.
FilterAnswers ask_filters(const EvidenceRows& rows, const Replicates& replicates,
                          const Attention& problem, double roundoff);

}  // namespace assay
