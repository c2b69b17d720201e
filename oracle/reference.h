// Attention in fp64 for a block of rows. Every element has a proved radius and the bound that
// follows from a contract.
#pragma once

#include <cstdint>
#include <limits>
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

// What is proved of one number: |exact - (value + low)| <= radius, where its kind is finite.
struct Certified {
  double value = 0;
  double low = 0;  // only balls give another one than 0
  double radius = 0;
  double bound = 0;          // of |computed - exact|, before the output rounding
  Kind kind = Kind::finite;  // what NaN and infinities of the inputs make of it
};

// An element of O in a block.
struct BlockElement : Certified {
  // An infinity in V makes O infinite, but its weight may underflow to 0.
  bool underflow_excused = false;
  // Its accumulator could leave the range. Finite values are still held to their bound.
  bool value_overflow = false;
};

// What is known of a row of a block as a whole.
struct BlockRow {
  Index index = 0;  // in the problem
  // The row sees no key outside [seen_begin, seen_end), relative to key0.
  Index seen_begin = 0, seen_end = 0;
  double max = -std::numeric_limits<double>::infinity();  // M; -inf in a row without weight
  Certified lse;
  // The relative error of the bounds themselves, which are computed from the p of fp64.
  double slack = 0;
  Domain domain = Domain::bounded;
  bool exact = false;  // weights are 0 or equal, and sums are exact in any order
  bool fully_masked = false;
  bool needs_ball = false;  // fp64 is not accurate enough for the bound
  // The contract multiplies Q by a projection before it meets any key, and this product is
  // infinite; or it reads as 0 what an infinity of Q or K is multiplied by. The row may then become
  // NaN.
  bool nan_excused = false;
};

// Some rows of one head, and all keys that at least one of them sees. Matrices are row-major.
struct Block {
  Index b = 0, h = 0;
  Index key0 = 0, count = 0;  // the keys
  Index value_dim = 0;
  std::vector<BlockRow> rows;
  std::vector<BlockElement> o;  // rows x value_dim
  std::vector<double> weight;   // rows x count: p, before dropout
  std::vector<char> kept;       // rows x count: whether dropout keeps the pair; empty without it
  std::vector<char> visible;    // rows x count
  // These are filled only where evaluate() was asked to keep scores. They are rows x count, and
  // masked entries have no meaning.
  std::vector<double> gap;          // M - s_j; +inf where masked
  std::vector<double> dot;          // q.k_j
  std::vector<double> score_error;  // E_j of the contract
  // The error of the score before the biases; only filled with a softcap or biases.
  std::vector<double> capped_error;

  Index row_count() const { return std::ssize(rows); }
  BlockRow& row(Index r) { return rows[usize(r)]; }
  const BlockRow& row(Index r) const { return rows[usize(r)]; }
  BlockElement& element(Index r, Index c) { return o[usize(r * value_dim + c)]; }
  const BlockElement& element(Index r, Index c) const { return o[usize(r * value_dim + c)]; }
  // The elements of a row.
  std::span<BlockElement> elements(Index r) { return {o.data() + r * value_dim, usize(value_dim)}; }
  // Where the pair of row r and key key0 + j stands in a matrix of rows x count.
  std::size_t pair(Index r, Index j) const { return usize(r * count + j); }
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
