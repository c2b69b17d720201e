// The arithmetic that a kernel claims. A bound is derived from a contract and the data of a case,
// so an error beyond it proves that the kernel does not compute as it says. docs/bounds.md derives
// every term.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "problem/attention.h"

namespace assay {

struct Contract {
  std::string name;

  // Dot products (Q K^T and P V).
  double dot_roundoff =
      0x1p-24;        // of one accumulation step: 2^-24 RN, 2^-23 truncating, 2^-11 fp16
  int dot_block = 0;  // width of a block FMA that aligns and truncates; 0: one product at a time
  bool products_rounded = false;    // products are rounded before they are added (no FMA)
  double largest = 0x1.fffffep127;  // finite limit of scores and accumulators
  double product_floor = 0x1p-149;  // absolute error of a product that underflows

  // Softmax.
  double roundoff = 0x1p-24;
  double argument_roundings = 1;  // on the argument of exp: 1 for s - m, 2 for (s - m) * c
  bool fused_argument = false;    // exp2(fma(S, c, -m c)) instead of a subtraction
  double scale_error = 0;  // relative error of a constant folded into the argument (scale * log2 e)
  double query_prescale =
      0;  // unit roundoff of a query rounded after scaling; 0: scores are scaled
  double exp_ulp = 1, exp_ulp_per_unit = 0;  // error of exp(x): exp_ulp + exp_ulp_per_unit |x|
  double exp_floor =
      0x1p-149;  // absolute error of an exp that underflows (flush: the smallest result kept);
                 // exp(0) is 1 and exp of -104.5 or less is 0, which the exact tier relies on
  double log_ulp = 1, tanh_ulp = 4;
  std::optional<Dtype> score_dtype;   // scores are stored in it
  std::optional<Dtype> weight_dtype;  // weights are rounded to it before P V
  bool sum_from_rounded = false;      // the row sum adds the rounded weights
  int division_roundings = 2;         // 2: times 1/l, 1: divided by l
  bool score_gradients_late = false;  // backward, with a weight_dtype: dS comes from rounded
                                      // weights, and is scaled before it is rounded itself

  // Structure.
  Index tile = 64;      // keys a tile
  Index row_tile = 64;  // rows a tile; only names places
  int splits = 1;       // of the keys, merged at the end
  // Keys of a split, a multiple of tile; 0: one split. Splits begin at multiples of it, each with
  // (m, l, O) of its own, and are merged in order: m' = max(m, m_s), l' = l a + l_s b, O' = O a +
  // O_s b with a = e^(m - m'), b = e^(m_s - m'), rounding each product and sum, or fewer of them.
  // The first that is not empty is taken as it is; empty ones change nothing.
  Index split_keys = 0;
  // Backward: sums over the rows of a tile (dK, dV) and over the keys of a tile (dQ) start from
  // zero and are then added to what the tiles before gave; dQ once more for every split of the
  // keys. 0: one sum in any order.
  Index backward_row_tile = 0, backward_tile = 0, backward_split = 0;
  // Of a latent cache: Q is multiplied by the projection first, so that an infinity of Q meets
  // every element of a token, in sums with both signs.
  bool absorbed = false;
  bool ordered = false;  // q.k sequential over d, P V sequential over keys, the sum tile by tile: a
                         // sharper bound
};

// From the strictest to the most lenient: what is tried for a kernel that declares nothing.
std::vector<Contract> contract_ladder(Dtype dtype, Index tile);

// k u / (1 - k u), Higham's gamma; infinity where k u >= 0.9.
double gamma_factor(double k, double u);
// Roundings that a term of a dot product of this length can meet.
double dot_roundings(const Contract& c, double length);

}  // namespace assay
