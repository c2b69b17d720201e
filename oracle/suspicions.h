// Inside oracle/: faults whose particulars are read from the errors of a wrong output: a factor, a
// key and its weight, a lane, the column that stands in the place of another one. docs/evidence.md,
// 5.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "oracle/alteration.h"
#include "oracle/evidence_rows.h"

namespace assay {

// The rows of a wrong output that are compared. All lists have an entry for each row.
struct ComparedRows {
  const EvidenceRows& rows;  // the rows of a right kernel, in another order
  std::span<const Index> taken;
  std::span<const RowPlace> places;
  const RowMajor &exact, &got;     // O
  std::span<const Index> failing;  // the wrong ones, the one that is furthest from typical first
};

struct Suspicion {
  std::string_view name;
  std::string words;
  std::function<bool(Alteration& a)> alter;
};

// What the errors of O suggest. Each is to be tried: it was read from a few rows only, and to first
// order.
std::vector<Suspicion> suspicions_of(const ProjectedAttention& problem, const ComparedRows& rows);
// The names that they may have.
std::span<const std::string_view> suspicion_names();

// "in head 2", "in rows 32 and on": a property that the places `wrong` have, and the places
// `spared` have not; "in 3 of 20 rows" where no simple one is found.
std::string region_of(std::span<const RowPlace> wrong, std::span<const RowPlace> spared);

// Which rows or columns hold what belongs elsewhere, and which are right but for a factor.
struct Misplaced {
  std::vector<Index> from;     // for each column, the one whose numbers it holds
  std::vector<double> factor;  // for each column
  std::vector<Index> wrong;
  bool all_found = false;  // of every wrong one it is known where its numbers belong
};
// "column 5", "columns 5 and 9", "columns 32 to 63", "columns 1, 3, 5 and 29 others".
std::string list_of(std::string_view noun, std::span<const Index> numbers);
Misplaced misplaced_columns(const RowMajor& got, const RowMajor& exact);
// "columns 4 and 5 of O hold columns 5 and 4"; `noun` is "column" or "row".
std::string words_of(const Misplaced& m, std::string_view noun, std::string_view output);

}  // namespace assay
