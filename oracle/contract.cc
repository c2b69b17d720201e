#include "oracle/contract.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/safety_factors.h"

namespace assay {

namespace {

// The same arithmetic in a kernel that stores Q times the scale, and saves a product for each
// score.
void add_scaled_query(std::vector<Contract>& ladder, Contract c, Dtype dtype) {
  c.query_dtype = dtype;
  c.name += ", scaled query stored in it";
  ladder.push_back(std::move(c));
}

// The same arithmetic in a kernel whose row sum adds the weights that meet V.
void add_rounded_sum(std::vector<Contract>& ladder, Contract c) {
  c.sum_from_rounded = true;
  c.name += ", row sum of them";
  ladder.push_back(std::move(c));
}

// The same arithmetic in a kernel that stores its softmax before it multiplies V.
void add_divided_first(std::vector<Contract>& ladder, Contract c) {
  c.divides_first = true;
  c.name += ", divided before P V";
  ladder.push_back(std::move(c));
}

// The same arithmetic in a kernel that takes every weight from LSE.
void add_from_lse(std::vector<Contract>& ladder, Contract c) {
  c.divides_first = c.weights_from_lse = true;
  c.division_roundings = 0;
  c.name += ", weights from LSE";
  ladder.push_back(std::move(c));
}

}  // namespace

std::vector<Contract> contract_ladder(Dtype dtype, Index tile) {
  std::vector<Contract> ladder;
  Contract c;
  c.tile = tile;
  c.products_rounded = true;
  c.name = "fp32 accumulation, fp32 weights";
  ladder.push_back(c);
  c.argument_roundings = 2;
  c.exp_ulp = 2.6;
  c.exp_ulp_per_unit = 1.18;
  c.fused_argument = true;
  c.exp_floor = 0x1p-125;  // such an exponential flushes subnormal results
  c.scale_error = 0x1.03p-24;
  c.name = "fp32 accumulation, fp32 weights, fast exp2";
  ladder.push_back(c);
  add_divided_first(ladder, c);
  add_from_lse(ladder, ladder.front());
  if (dtype != Dtype::f32) {
    c.weight_dtype = dtype;
    c.name = "fp32 accumulation, weights in " + std::string(format(dtype).name);
    ladder.push_back(c);
    const Contract plain = c;
    add_divided_first(ladder, c);
    c.dot_roundoff = 0x1p-23;
    c.dot_block = 16;
    c.score_gradients_late = true;
    c.name = "truncating 16-wide block FMA, weights in " + std::string(format(dtype).name);
    ladder.push_back(c);
    const Contract truncating = c;
    add_scaled_query(ladder, c, dtype);
    // Fast vector exponentials of CPUs have 20 bits.
    c.exp_ulp = 16;
    c.name = "fp32 accumulation, exp of 20 bits, weights in " + std::string(format(dtype).name);
    ladder.push_back(c);
    c.score_dtype = dtype;
    c.stores_score_parts = true;
    c.name = "truncating 16-wide block FMA, scores and weights stored in " +
             std::string(format(dtype).name);
    ladder.push_back(c);
    add_divided_first(ladder, c);
    // Their bound of LSE is wider than that of the rungs before.
    add_rounded_sum(ladder, plain);
    add_rounded_sum(ladder, truncating);
    if (dtype == Dtype::f16) {
      c.dot_block = 0;
      c.dot_roundoff = 0x1p-11;
      c.largest = 65504;
      c.product_floor = 0x1p-25;
      c.name = "fp16 accumulation";
      ladder.push_back(c);
    }
  }
  return ladder;
}

namespace {

Contract first_of(const std::vector<Contract>& ladder, bool (*is_it)(const Contract&)) {
  return *std::ranges::find_if(ladder, is_it);
}

// The rung of a softmax between scores and weights that are stored.
Contract stored_softmax(Dtype dtype, Index tile) {
  return first_of(contract_ladder(dtype, tile),
                  [](const Contract& c) { return c.score_dtype && c.divides_first; });
}

// The first rung of matrix instructions.
Contract truncating(Dtype dtype, Index tile) {
  return first_of(contract_ladder(dtype, tile), [](const Contract& c) { return c.dot_block > 0; });
}

}  // namespace

std::vector<Contract> backward_ladder(Dtype dtype, Index tile, Index group) {
  std::vector<Contract> ladder;
  bool stores_heads = false;
  const bool may_store_heads = group > 1 && dtype != Dtype::f32;
  const auto push_stored = [&](Contract c, const std::string& in_what) {
    c.head_gradient_dtype = dtype;
    c.name += ", gradients of heads stored in " + in_what;
    ladder.push_back(std::move(c));
  };
  for (const Contract& c : contract_ladder(dtype, tile)) {
    if (c.weights_from_lse) continue;  // all gradients take theirs from LSE
    // A kernel in fp32 that expands the heads stores their gradients before autograd adds them.
    if (may_store_heads && !stores_heads && c.weight_dtype)
      push_stored(ladder.back(), std::string(format(dtype).name));
    if (!stores_heads) ladder.push_back(c);
    stores_heads = stores_heads || (may_store_heads && c.weight_dtype);
    if (stores_heads) push_stored(c, "it");
  }
  if (dtype == Dtype::f32) return ladder;
  // Scores that are not stored may be beyond what the dtype holds.
  for (Contract c : {truncating(dtype, tile), stored_softmax(dtype, tile)}) {
    c.dp_dtype = dtype;
    c.name += ", dP stored in it";
    if (may_store_heads) push_stored(c, "it");
    else ladder.push_back(c);
  }
  return ladder;
}

double gamma_factor(double k, double u) {
  const double ku = k * u;
  return ku < safety::largest_sum_of_roundoffs ? ku / (1 - ku)
                                               : std::numeric_limits<double>::infinity();
}

double dot_roundings(const Contract& c, double length) {
  if (c.dot_block > 0) return std::ceil(length / c.dot_block) * (c.dot_block + 2);
  return length + (c.products_rounded ? 1 : 0);
}

}  // namespace assay
