// Inside oracle/: attention of a few rows in the roundings of a contract, under one of the
// schedules that the contract allows. docs/evidence.md, 1.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "oracle/contract.h"
#include "oracle/key_values.h"
#include "problem/random.h"
#include "problem/round_all.h"

namespace assay {

// What a contract leaves open and a kernel has to choose. A replicate draws it.
struct Schedule {
  Index tile = 64;           // keys that share one running maximum
  std::vector<Index> order;  // of the tiles
  // Tiles in a split: each split has its own maximum and sums, which are merged. 0: one split.
  Index split_tiles = 0;
  std::uint64_t dim_seed =
      0;  // of the order in which the terms of q.k are summed; 0: as they stand
  // Some keys are summed in another order and in other parts, as at the edges of a matrix product.
  // What rounds alike for all keys of a row cancels in its weights, and this does not.
  bool two_orders = false;
  Index dot_part = 0;         // q.k is summed in parts of this length; 0: at once
  Index half_part = 16;       // terms that an fp16 accumulator takes at once
  bool scales_query = false;  // Q is multiplied by the scale, not the scores
  // Q and K are multiplied by the root of the scale: its square is another scale, and all scores of
  // a row are off together.
  bool scales_both = false;
  bool base_two = false;          // 2^x with log2 e folded into the argument
  bool folds_scale = false;       // so is the scale, where nothing is added to scores
  bool normalizes_first = false;  // weights are divided by the row sum before P V
  // Weights are e^(s - LSE): the rounding of LSE is one of all weights of a row.
  bool from_lse = false;
  bool late_maximum = false;      // the running maximum lags behind: weights above 1 occur
  bool three_parts = false;       // a product of fp32 numbers is three products of TF32 numbers
  bool rounds_unscaled = false;   // scores are stored before the scale as well
  bool scales_gradients = false;  // dS is scaled before it is rounded, where a contract allows it
  double exp_offset = 0, exp_slope = 0;  // the error of exp in [-1, 1] of what the contract allows
  double constant = 0;                   // the error of the folded constant, likewise
  double tanh = 0, log = 0;              // the errors of tanh and of log, likewise
  double keep_scale = 0;                 // of 1 / (1 - dropout), in [-1, 1] units of roundoff
  bool flushes = false;                  // weights that may underflow are 0
  bool keeps_weights = false;            // the gradients are those of kept weights, without LSE
  bool sums_in_order = false;            // weights are added to their sum one after the other
  // The argument of 2^x is one multiply-add, which of the largest score makes another number than
  // 0.
  bool fuses_argument = false;
  bool aligns_products = false;  // a block drops bits of every product, not of its sum alone
  bool lanes = false;            // the terms of a narrow product are summed in lanes
};
// `serial` numbers the replicates, so that choices of two are shared out evenly.
Schedule draw_schedule(const Contract& c, Index keys, SplitMix64& random, Index serial);

// Whether there is an emulation of such roundings: sums in binary32, rounded or truncated, in f16,
// and in blocks of any roundoff, and a softmax in binary32.
bool is_emulated(const Contract& c);

// The inputs of some rows of one head.
struct EmulatedRows {
  const KeyValues* kv = nullptr;
  Index key0 = 0, count = 0;  // the keys that some row sees
  RowMajorSingle q;           // rows x D
  RowMajorSingle bias;        // rows x count, -inf where masked; empty where all are 0
  bool only_masks = true;     // no bias is another number than 0 and -inf
  RowMajorSingle kept;        // rows x count, 1 or 0 by dropout; empty without dropout
  float scale = 1, softcap = 0;
  float sink = 0;
  bool has_sink = false;
};

struct EmulatedOutputs {
  RowMajorSingle o;  // rows x Dv, not yet rounded to the dtype of O
  Eigen::VectorXf lse;
};
// Rows that see no key get O = 0 and LSE = -inf.
EmulatedOutputs emulate(const Contract& c, const Schedule& how, const EmulatedRows& in);

// 0 to n - 1 in the order that the seed draws.
std::vector<Index> shuffled(Index n, std::uint64_t seed);

// Part of an emulation: s of every pair, biases included. `slope` becomes ds / dt of the softcap
// where it is given and there is a softcap.
RowMajorSingle emulated_scores(const Contract& c, const Schedule& how, const EmulatedRows& in,
                               RowMajorSingle* slope = nullptr);

// sum += a b in the roundings of the contract; `a` is rows x n, `b` is n x columns.
using SingleRef = Eigen::Ref<const RowMajorSingle, 0, Eigen::OuterStride<>>;
void add_product(const Contract& c, const Schedule& how, const SingleRef& a, const SingleRef& b,
                 RowMajorSingle& sum);

// Whether a sum of sizes is so near the subnormal numbers of binary32, which begin at 2^-126, that
// its terms may underflow. What is then lost depends on what a kernel multiplies first, and on
// whether it flushes: nothing is typical of it.
inline bool underflows(double sum) {
  constexpr double least = 0x1p-100;
  return sum > 0 && sum < least;
}

inline void round_all(Dtype dtype, RowMajorSingle& m) {
  round_all(dtype, {m.data(), static_cast<std::size_t>(m.size())});
}

}  // namespace assay
