// Inside oracle/: what may stand where right gradients should, read from the candidate's own
// numbers. docs/evidence.md, 5.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "oracle/evidence_gradients.h"

namespace assay {

// dQ (the heads below one another), dK and dV of a group, and for each of their rows the root of
// the sum of the squares of its terms.
struct GroupSums {
  explicit GroupSums(const AttentionShape& s)
      : value{RowMajor::Zero(s.group() * s.rows, s.dim), RowMajor::Zero(s.keys, s.dim),
              RowMajor::Zero(s.keys, s.value_dim)} {
    for (std::size_t n = 0; n < 3; ++n) gauge[n] = Eigen::VectorXd::Zero(value[n].rows());
  }
  std::array<RowMajor, 3> value;
  std::array<Eigen::VectorXd, 3> gauge;
  bool has_weights_above_one = false;
};

// The terms of the sums of one head: P after dropout and scale times dS, rows x keys; and what they
// are multiplied by.
struct GradientTerms {
  RowMajor weight, score;
  RowMajor q, keys, d_o;
};

// The pairs of rows and keys whose gradients are wrong.
struct GradientRegion {
  Index first_head = 0, last_head = -1;  // in the group
  Index first_row = 0, last_row = -1;
  Index first_key = 0, last_key = -1;
  std::array<bool, 3> wrong{};  // dQ, dK, dV

  bool has_row(Index head, Index row) const {
    return head >= first_head && head <= last_head && row >= first_row && row <= last_row;
  }
  bool has_key(Index key) const { return key >= first_key && key <= last_key; }
  bool has_all(const AttentionShape& s) const {
    return last_head - first_head + 1 == s.group() && last_row - first_row + 1 == s.rows &&
           last_key - first_key + 1 == s.keys;
  }
  // "rows 32 to 47", "head 1 of the group, keys 16 to 31"
  std::string words(const AttentionShape& s) const;
};

struct GradientSuspicion {
  std::string_view name;
  std::string words;
  GroupSums sums;
};

// The smallest region that has the rows of dQ and the keys of dK and dV whose errors are more than
// their typical ones times the limit; where no row, or no key, is wrong, all are in it.
GradientRegion wrong_region(const EvidenceGroup& group, const AttentionShape& s,
                            std::span<const Eigen::VectorXd> typical);

// `terms` has those of each head of the group.
std::vector<GradientSuspicion> gradient_suspicions_of(const EvidenceGroup& group,
                                                      const AttentionShape& s,
                                                      const GroupSums& right,
                                                      std::span<const GradientTerms> terms);
std::span<const std::string_view> gradient_suspicion_names();

}  // namespace assay
