// Attention in fp64 for a block of rows, with a proved radius for every element and the bound of a
// contract.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "oracle/bound.h"
#include "oracle/visibility.h"

namespace assay {

// What extended-real arithmetic says of an output element.
enum class Kind : std::uint8_t { finite, nan, plus_infinity, minus_infinity };

// Where a bound decides a row. vacuous: only the hull of V is left. may_overflow: a score could
// leave the range, so NaN and infinity are tolerated and finite values are held to the hull alone.
// must_overflow: nothing can be asked.
enum class Domain : std::uint8_t { bounded, vacuous, may_overflow, must_overflow };

// Some rows of one head, over the keys that any of them sees. Matrices are row-major, rows x
// value_dim, except `weight` and `visible`, which are rows x count.
struct Block {
  Index b = 0, h = 0, rows = 0;
  std::vector<Index> row_index;
  Index key0 = 0, count = 0;
  std::vector<Index> seen_begin, seen_end;  // per row, relative to key0: what it sees lies between
  std::vector<double> o, o_low, radius;     // |O - (o + o_low)| <= radius; o_low is 0 but for balls
  std::vector<double> bound;                // of |Ohat - O| before the output rounding
  std::vector<double> lse, lse_low, lse_radius, lse_bound;
  std::vector<Kind> o_kind, lse_kind;   // by the inputs' NaN and infinities
  std::vector<char> underflow_excused;  // an infinity in V times a weight that may underflow to 0
  std::vector<char> value_overflow;  // per element: its accumulator could leave the range (finite
                                     // values stay bounded)
  std::vector<Domain> domain;        // per row
  std::vector<char> exact;           // per row: weights are 0 or equal, sums exact in any order
  std::vector<char> fully_masked;
  std::vector<char> query_lost;  // per row: infinite where a contract multiplies Q by a projection
                                 // before any key is met, so that NaN may come of it
  std::vector<char> needs_ball;  // fp64 is not good enough for this row's bound
  std::vector<double>
      slack;  // relative error of the bounds themselves: they are computed from p in fp64
  std::vector<double> weight;  // p, before dropout
  std::vector<char> kept;      // rows x count, by dropout; empty without
  std::vector<char> visible;   // rows x count
  // Only where evaluate() was asked to keep scores; rows x count, meaningless where masked.
  std::vector<double> gap;          // M - s_j; +inf where masked
  std::vector<double> max;          // M, per row
  std::vector<double> dot;          // q.k_j
  std::vector<double> score_error;  // E_j of the contract
  std::vector<double>
      capped_error;  // of the score before the biases; only with a softcap or biases
};

enum class Keep : std::uint8_t { outputs, scores };

// K and V of one (batch, kv head) as doubles, made once and shared by the blocks that read them.
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
  // Keeps the problem, whose tensors have to live as long. Fewer terms than all are for tests of
  // the bound.
  Reference(const ProjectedAttention& problem, const Contract& contract,
            const BoundTerms& terms = {});

  KeyValuesPointer load_head(Index b, Index kv_head) const;
  Block evaluate(const KeyValues& kv, Index h, std::span<const Index> rows,
                 Keep keep = Keep::outputs) const;
  // Replaces one row of the block by ball arithmetic of `bits` bits. Reports whether the enclosures
  // in fp64 and in balls had a point in common for every element; if not, the oracle itself is
  // wrong.
  bool refine(const KeyValues& kv, Block& block, Index row, long bits) const;

  const Contract& contract() const { return contract_; }
  const ProjectedAttention& problem() const { return problem_; }
  // Rows that keep the temporaries of a block within a few MiB.
  Index block_rows() const;

 private:
  const ProjectedAttention problem_;
  Contract contract_;
  BoundContext context_;
};

}  // namespace assay
