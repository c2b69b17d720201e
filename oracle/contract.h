// The arithmetic that a kernel claims. A bound is derived from a contract and the data of a case,
// so an error beyond it proves that the kernel does not compute as it says. docs/bounds.md derives
// every term.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "problem/attention.h"
#include "problem/names.h"

namespace assay {

struct Contract {
  std::string name;

  // Dot products (Q K^T and P V).

  // The roundoff of one accumulation step: 2^-24 for rounding to nearest, 2^-23 for truncation,
  // 2^-11 for fp16.
  double dot_roundoff = 0x1p-24;
  int dot_block = 0;  // width of a block FMA that aligns and truncates; 0: one product at a time
  bool products_rounded = false;    // products are rounded before they are added (no FMA)
  double largest = 0x1.fffffep127;  // finite limit of scores and accumulators
  double product_floor = 0x1p-149;  // absolute error of a product that underflows
  // Numbers below it are read as 0, as operands of dot products and, in a backward pass, of all
  // others: 2^-126 if subnormals are flushed. The product_floor is then at least as large.
  double operand_floor = 0;

  // Softmax.
  double roundoff = 0x1p-24;
  double argument_roundings = 1;  // of the argument of exp: 1 for s - m, 2 for (s - m) * c
  bool fused_argument = false;    // exp2(fma(S, c, -m c)) instead of a subtraction
  // The relative error of a constant that is folded into the argument (scale * log2 e).
  double scale_error = 0;
  // The dtype to which a scaled query is rounded. If there is none, scores are scaled instead.
  std::optional<Dtype> query_dtype;
  // exp(x) errs by exp_ulp + exp_ulp_per_unit |x|, in ulp.
  double exp_ulp = 1, exp_ulp_per_unit = 0;
  // The absolute error of an exp that underflows (for a kernel that flushes: the smallest result
  // that it keeps). exp(0) is 1, and exp of -104.5 or less is 0; the exact tier relies on this.
  double exp_floor = 0x1p-149;
  double log_ulp = 1, tanh_ulp = 4;
  std::optional<Dtype> score_dtype;  // scores are stored in it
  // What scores are made of is stored in it, too: q.k, and its product with the scale where biases
  // are added to that.
  bool stores_score_parts = false;
  std::optional<Dtype> weight_dtype;  // weights are rounded to it before P V
  bool sum_from_rounded = false;      // the row sum adds the rounded weights
  // Weights are divided by the row sum, and then rounded to weight_dtype, before P V (a softmax
  // that is stored). O is not divided afterwards.
  bool divides_first = false;
  // Every weight is e^(s - LSE), with LSE as it is stored: divided first, without a division.
  bool weights_from_lse = false;
  int division_roundings = 2;  // 2: times 1/l, 1: divided by l, 0: nothing is divided
  // Only for the backward pass with a weight_dtype: dS is computed from rounded weights, and is
  // scaled before it is rounded itself.
  bool score_gradients_late = false;
  // Only for the backward pass of frameworks that run one operation after the other: dP is stored
  // in it, D is the sum of P dP as they are stored, and dS is stored in it before it is scaled.
  std::optional<Dtype> dp_dtype;
  // Only for the backward pass of grouped heads: dK and dV of every query head are stored in it,
  // and the heads of a group are added afterwards, in it or in a wider format.
  std::optional<Dtype> head_gradient_dtype;

  // Structure.
  Index tile = 64;      // keys in a tile
  Index row_tile = 64;  // rows in a tile; only used to name the place of a row
  int splits = 1;       // number of key splits, which are merged at the end
  // Keys in a split, a multiple of `tile`; 0: one split. Splits begin at multiples of this number.
  // Each split has its own (m, l, O), and they are merged in order: m' = max(m, m_s), l' = l a +
  // l_s b, O' = O a + O_s b with a = e^(m - m') and b = e^(m_s - m'). Each product and each sum is
  // rounded, or fewer of them are. The first split that is not empty is taken as it is, and empty
  // splits change nothing.
  Index split_keys = 0;
  // Backward pass: the sums over the rows of a tile (dK, dV) and over the keys of a tile (dQ) start
  // from zero. They are then added to the sum of the tiles before. dQ is added once more for every
  // split of the keys. 0: one sum in any order.
  Index backward_row_tile = 0, backward_tile = 0, backward_split = 0;
  // Only for a latent cache: Q is multiplied by the projection first. An infinity of Q then meets
  // every element of a token, in sums with both signs.
  bool absorbed = false;
  // The sums have a declared order: q.k is sequential over d, P V is sequential over keys, and the
  // row sum is taken tile by tile: each tile adds up its weights from zero, in any order, and the
  // sums of tiles are added one after the other. This gives a sharper bound.
  bool ordered = false;
};

// The order in which a kernel adds.
enum class ProductOrder : std::uint8_t {
  // Each group of W is summed by itself, from zero and with k ascending. Then the group sums, times
  // their scales, are added from zero, also in ascending order.
  groups_in_order,
  // Each group is summed by itself, and then the groups are, both in any order.
  groups,
  any  // the weights are dequantized and summed in any order
};

template <>
inline constexpr auto table_of<ProductOrder> = complete<Named<ProductOrder>>({
    {ProductOrder::groups_in_order, "groups-in-order"},
    {ProductOrder::groups, "groups"},
    {ProductOrder::any, "any"},
});

struct ProductContract {
  std::string name;
  ProductOrder order = ProductOrder::any;
  double roundoff = 0x1p-24;  // of one accumulation step
  // The width of a block whose products a matrix instruction aligns to the largest of them, with
  // the accumulator, before it drops what is below `roundoff` of it. 0: one product at a time.
  int block = 0;
  bool scales_weights = false;        // a tensor scale is multiplied into every weight
  bool products_rounded = false;      // no FMA
  std::optional<Dtype> weight_dtype;  // dequantized weights are rounded to it
  // The finite limit of the sums. Sums beyond it are infinite, even where the arithmetic truncates.
  double largest = 0x1.fffffep127;
  double floor = 0x1p-149;  // the smallest subnormal: a step that underflows errs by at most this
  // Numbers below it are read as 0 where they are multiplied: 2^-126 if subnormals are flushed. The
  // floor is then at least as large.
  double operand_floor = 0;
};

// The arithmetic of attention or of a product.
using Arithmetic = std::variant<Contract, ProductContract>;

// The contracts that are tried for a kernel that declares none, from the strictest to the most
// lenient.
std::vector<Contract> contract_ladder(Dtype dtype, Index tile);
// The same for gradients. If heads share keys, a kernel may also store the gradients of each head
// in the dtype, in fp32 arithmetic and on every rung whose weights are in the dtype.
std::vector<Contract> backward_ladder(Dtype dtype, Index tile, Index group);

// k u / (1 - k u), Higham's gamma; infinity where k u >= 0.9.
double gamma_factor(double k, double u);
// The number of roundings that a term of a dot product of this length can meet.
double dot_roundings(const Contract& c, double length);

}  // namespace assay
