// Inside harness/judging/: relations about how the pages of a cached case came about. They are
// asked of candidates that read pages behind a table.
#pragma once

#include "harness/judging/step.h"

namespace assay {

// The candidate's own append writes the pages that it then reads, as in the program that will use
// both. Outputs with other bits than those from pages of the harness are judged by their bounds.
Relation own_pages(const Asked<ForwardStep>& asked);

// Every sequence begins with the tokens of sequence 0, as far as both have whole pages, and those
// pages are the same, as where prefixes are shared. Compared with pages that are apart, and judged
// by its bounds where the bits differ.
Relation shared_pages(const Asked<ForwardStep>& asked);

}  // namespace assay
