// Attention in fp64 for a block of rows. Every element has a proved radius and the bound that
// follows from a contract.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "oracle/bound.h"
#include "oracle/visibility.h"

namespace assay {

// What extended-real arithmetic says of an output element.
enum class Kind : std::uint8_t { finite, nan, plus_infinity, minus_infinity };

// How far a bound decides a row. bounded: it decides every element. vacuous: only the hull of V is
// left. may_overflow: a score could leave the range, so NaN and infinity are tolerated, and finite
// values are only compared with the hull. must_overflow: nothing can be asked.
enum class Domain : std::uint8_t { bounded, vacuous, may_overflow, must_overflow };

// Some rows of one head, and all keys that at least one of them sees. Matrices are row-major, rows
// x value_dim, except `weight` and `visible`, which are rows x count.
struct Block {
  Index b = 0, h = 0, rows = 0;
  std::vector<Index> row_index;
  Index key0 = 0, count = 0;
  // Per row, relative to key0: the row sees no key outside [seen_begin, seen_end).
  std::vector<Index> seen_begin, seen_end;
  // |O - (o + o_low)| <= radius. Only balls give an o_low other than 0.
  std::vector<double> o, o_low, radius;
  std::vector<double> bound;  // of |Ohat - O| before the output rounding
  std::vector<double> lse, lse_low, lse_radius, lse_bound;
  std::vector<Kind> o_kind, lse_kind;  // which of them NaN and infinities of the inputs determine
  // Per element: an infinity in V makes O infinite, but its weight may underflow to 0.
  std::vector<char> underflow_excused;
  // Per element: its accumulator could leave the range. Finite values are still held to their
  // bound.
  std::vector<char> value_overflow;
  std::vector<Domain> domain;  // per row
  std::vector<char> exact;     // per row: weights are 0 or equal, and sums are exact in any order
  std::vector<char> fully_masked;
  // Per row: the contract multiplies Q by a projection before it meets any key, and this product is
  // infinite. The row may then become NaN.
  std::vector<char> query_lost;
  std::vector<char> needs_ball;  // per row: fp64 is not accurate enough for its bound
  // Per row: the relative error of the bounds themselves, which are computed from the p of fp64.
  std::vector<double> slack;
  std::vector<double> weight;  // p, before dropout
  std::vector<char> kept;     // rows x count: whether dropout keeps the pair; empty without dropout
  std::vector<char> visible;  // rows x count
  // These are filled only where evaluate() was asked to keep scores. They are rows x count, and
  // masked entries have no meaning.
  std::vector<double> gap;          // M - s_j; +inf where masked
  std::vector<double> max;          // M, per row
  std::vector<double> dot;          // q.k_j
  std::vector<double> score_error;  // E_j of the contract
  // The error of the score before the biases; only filled with a softcap or biases.
  std::vector<double> capped_error;
};

enum class Keep : std::uint8_t { outputs, scores };

// K and V of one (batch, kv head) as doubles. They are made once and shared by the blocks that read
// them.
class KeyValues;
struct KeyValuesDeleter {
  void operator()(KeyValues* kv) const;
};
using KeyValuesPointer = std::unique_ptr<KeyValues, KeyValuesDeleter>;

Domain domain_of(const RowBound& b);
// Whether the accumulator of a column could leave the range.
bool values_may_overflow(const Contract& c, Index live, double largest_value);

// A contract applied to a problem. Thread-safe.
class Reference {
 public:
  // Keeps a copy of the problem, whose tensors have to live as long as this object. Only tests of
  // the bound leave out some of the terms.
  Reference(const ProjectedAttention& problem, const Contract& contract,
            const BoundTerms& terms = {});

  KeyValuesPointer load_head(Index b, Index kv_head) const;
  Block evaluate(const KeyValues& kv, Index h, std::span<const Index> rows,
                 Keep keep = Keep::outputs) const;
  // Replaces one row of the block by the results of ball arithmetic with `bits` bits. Returns
  // whether the enclosures in fp64 and in balls had a point in common for every element; if they
  // had not, the oracle itself is wrong.
  bool refine(const KeyValues& kv, Block& block, Index row, long bits) const;

  const Contract& contract() const { return contract_; }
  const ProjectedAttention& problem() const { return problem_; }
  // The number of rows with which the temporaries of a block take no more than a few MiB.
  Index block_rows() const;

 private:
  const ProjectedAttention problem_;
  Contract contract_;
  BoundContext context_;
};

}  // namespace assay
