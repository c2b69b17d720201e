// Inside oracle/: the rows that evidence looks at, with the candidate's errors there, and the
// errors of replicates. All rows of all chosen heads stand below one another.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "oracle/emulation.h"
#include "oracle/reference.h"
#include "oracle/verdict.h"

namespace assay {

// The chosen rows of one head.
struct EvidenceHead {
  std::shared_ptr<const KeyValues> kv;
  Block block;  // with scores
  EmulatedRows in;
  Index first = 0;  // its first row among all rows

  Index rows() const { return block.row_count(); }
};

struct EvidenceRows {
  std::vector<EvidenceHead> heads;
  Dtype out_dtype = Dtype::f32;
  RowMajor exact, error;  // rows x Dv: O, and what the candidate gave minus O
  Eigen::VectorXd bound;  // rms of the row's bounds, the output rounding included
  Eigen::VectorXd lse, lse_error, lse_bound;
  // Whether a row can be asked: its exact outputs and the candidate's are finite, and nothing that
  // it adds up underflows. `lse_asked` is all 0 without an LSE.
  std::vector<char> asked, lse_asked;

  Index rows() const { return exact.rows(); }
  Index asked_rows() const;
};

// The rows that are asked, by batch and head.
using RowsOfHeads = std::map<std::pair<Index, Index>, std::set<Index>>;
// Chooses rows that are spread over all heads, within `budget` pairs of a row and a key, and adds
// the suspects.
RowsOfHeads choose_rows(const AttentionShape& s, const std::vector<SuspectRow>& suspects,
                        double budget, const JudgeOptions& options);

// Gives the K and V of a head.
using LoadHead =
    std::function<std::shared_ptr<const KeyValues>(const Reference&, Index b, Index h)>;
// Evaluates rows under the contract, in the order of the map. Errors are 0, and no row is asked.
EvidenceRows evaluate_rows(const ProjectedAttention& problem, const RowsOfHeads& rows, Dtype out,
                           const Contract& contract, int threads, const LoadHead& load);

// Evaluates the chosen rows, and compares them with the candidate's.
EvidenceRows gather_evidence(const ProjectedAttention& problem, const AttentionOutput& out,
                             const Contract& contract, const std::vector<SuspectRow>& suspects,
                             double budget, const JudgeOptions& options);

// The least errors that count as typical, of a row and of LSE.
double floor_of_row(Dtype out, double largest);
double floor_of_lse(double lse);

// What an emulation needs of the rows of a block.
EmulatedRows emulated_inputs(const ProjectedAttention& p, const KeyValues& kv, const Block& block);

// The errors of replicates of one arithmetic, and what is typical of them.
struct Replicates {
  std::vector<RowMajor> error;             // each rows x Dv
  std::vector<Eigen::VectorXd> lse_error;  // each of all rows
  Eigen::VectorXd sigma, lse_sigma;        // per row: rms over replicates and columns
  std::vector<char> usable;                // per row: asked, and no replicate left the range
};
Replicates replicate(const EvidenceRows& rows, const Contract& contract, int count,
                     std::uint64_t seed, int threads);

// What is typical of a row, from the rows of the replicates' errors: their rms, but not less than
// `floor`. Where the errors of all columns go up and down together, the rms of twelve replicates is
// itself uncertain, and is taken to be larger. `bound` is the rms of the row's bounds.
// docs/evidence.md, 1.
double typical_of_row(const std::vector<RowMajor>& errors, Index row, double floor, double bound);

// Raises typical errors that are below `part` of what is usual in units of their bounds, because
// luck made them small. `bound` has the rms of the bounds of each row.
void raise_by_bounds(Eigen::VectorXd& sigma, const Eigen::VectorXd& bound,
                     const std::vector<char>& usable, double part);

}  // namespace assay
