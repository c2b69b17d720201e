// Inside oracle/: the gradients that evidence looks at, with the candidate's errors there, and the
// errors of replicates.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "oracle/emulation_backward.h"
#include "oracle/evidence_rows.h"

namespace assay {

// One gradient of one group of heads, its rows (for dQ: those of all heads) below one another.
struct GradientRows {
  Output output = Output::dq;
  Dtype dtype = Dtype::f32;
  RowMajor exact, error;
  Eigen::VectorXd bound;  // rms of the row's bounds, the output rounding included
  std::vector<char> asked;
};

// The heads that share one kv head.
struct EvidenceGroup {
  Index b = 0, g = 0;
  KeyValuesPointer kv;
  std::vector<EmulatedBackward> heads;
  std::vector<RowMajor> score_part, weight_part;  // of each head, rows x keys
  std::vector<GradientRows> gradients;            // dQ, dK, dV
};

// The errors of the replicates of one group, by gradient.
struct GroupReplicates {
  std::vector<std::vector<RowMajor>> error;  // [gradient][replicate]
  std::vector<Eigen::VectorXd> sigma;        // [gradient], per row
  std::vector<std::vector<char>> usable;     // [gradient], per row
};

// Evaluates a group of heads under the contract, and compares it with the candidate's gradients.
EvidenceGroup gather_group(const Attention& p, const AttentionBackwardInput& input,
                           const AttentionGradients& out, const Contract& contract, Index b,
                           Index g);
GroupReplicates replicate(const EvidenceGroup& group, const Contract& c, int count,
                          std::uint64_t seed, int threads);

// A group with more pairs of a row and a key than this takes too long.
inline constexpr Index most_gradient_pairs = Index{1} << 22;

}  // namespace assay
