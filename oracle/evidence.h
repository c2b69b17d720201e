// Evidence: whether the errors of a kernel are those that its arithmetic makes on these very
// inputs. A bound is a proof and as wide as the worst case; typical errors are measured by running
// the algorithm in the roundings of a contract. docs/evidence.md says what is asked and how limits
// were set.
#pragma once

#include <cstdint>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "problem/names.h"
#include "problem/tensor.h"

namespace assay {

enum class Output : std::uint8_t;

// What follows if errors are inside their bounds, but not typical of any arithmetic: the case
// fails, or its reason says so; or nothing is asked.
enum class EvidenceRule : std::uint8_t { fail, warn, off };
template <>
inline constexpr auto table_of<EvidenceRule> = complete<Named<EvidenceRule>>({
    {EvidenceRule::fail, "fail"},
    {EvidenceRule::warn, "warn"},
    {EvidenceRule::off, "off"},
});

// A row whose errors are large in units of their bounds. Evidence looks at it first.
struct SuspectRow {
  Index b = 0, h = 0, row = 0;
  double score = 0;  // rms of error / bound over the row, or error / bound of LSE
};

// The row of one output (for dK and dV: the key) whose errors are largest in units of the typical
// ones.
struct Atypical {
  double s = 0;       // rms of the row's errors / rms of the replicates' errors in that row
  double median = 0;  // of s over all rows that were asked
  double limit = 0;   // of s
  // The same median over the rows that are not exact: a row that is so by its data has no errors
  // that could be told from others. 0: all are exact.
  double median_of_inexact = 0;
  double least_replicate = 0;  // the smallest such median of a replicate
  Index b = 0, h = 0, row = 0;
  bool of_column = false;  // of C: `row` is a column
};

// How much of a fault's direction lies in the errors.
struct FilterAnswer {
  std::string fault;  // "the newest key of each row is missing"
  double share = 0;   // 1: the fault is there as a whole
  double z = 0;       // share / rms of the share over the replicates
  double least = 0;   // a smaller share is no fault, however certain it is

  // |z|, or less where the share is too small to matter. A share above 100 belongs to no fault: the
  // direction is then nearly 0, and the share is the quotient of two rounding errors.
  double significance() const {
    constexpr double most = 100;
    const double size = std::fabs(share);
    return size > most ? 0 : std::fabs(z) * (size < least ? size / least : 1);
  }
};

struct Evidence {
  std::string arithmetic;  // the one that fits, or that fits best; empty: nothing was asked
  std::string not_asked;   // why nothing was asked, or "of gradients: " and why none of these were
  bool fits = true;
  std::string reason;                 // where nothing fits: one sentence
  std::map<Output, Atypical> rows;    // by output
  std::vector<FilterAnswer> filters;  // the most significant, at most five
  double z_limit = 0;
  Index questions = 0;  // filters that were asked
  Index rows_asked = 0;
  int replicates = 0;
  std::uint64_t seed = 0;
};

}  // namespace assay
