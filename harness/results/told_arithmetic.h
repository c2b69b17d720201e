// The numbers of an arithmetic: in words for people, and as fields of a result.
#pragma once

#include <string>
#include <vector>

#include "harness/results/described.h"
#include "oracle/verdict.h"

namespace assay {

// The name of the contract of a verdict, and in parentheses what its bounds depend on most. The
// name alone if no bound was derived.
std::string told_contract(const Verdict& verdict);

// Every number of an arithmetic, in a few lines.
std::vector<std::string> listed_arithmetic(const Arithmetic& arithmetic);

template <class Fields, Described<Contract> Value>
void describe_fields(Fields& fields, Value& c) {
  fields("name", c.name);
  fields("dot_roundoff", c.dot_roundoff);
  fields("dot_block", c.dot_block);
  fields("products_rounded", c.products_rounded);
  fields("largest", c.largest);
  fields("product_floor", c.product_floor);
  fields("operand_floor", c.operand_floor);
  fields("ordered", c.ordered);
  fields("roundoff", c.roundoff);
  fields("argument_roundings", c.argument_roundings);
  fields("fused_argument", c.fused_argument);
  fields("scale_error", c.scale_error);
  fields("exp_ulp", c.exp_ulp);
  fields("exp_ulp_per_unit", c.exp_ulp_per_unit);
  fields("exp_floor", c.exp_floor);
  fields("log_ulp", c.log_ulp);
  fields("tanh_ulp", c.tanh_ulp);
  fields.optional("query_dtype", c.query_dtype);
  fields.optional("score_dtype", c.score_dtype);
  fields("stores_score_parts", c.stores_score_parts);
  fields.optional("weight_dtype", c.weight_dtype);
  fields("sum_from_rounded", c.sum_from_rounded);
  fields("divides_first", c.divides_first);
  fields("weights_from_lse", c.weights_from_lse);
  fields("division_roundings", c.division_roundings);
  fields("tile", c.tile);
  fields("row_tile", c.row_tile);
  fields("splits", c.splits);
  fields("split_keys", c.split_keys);
  fields("absorbed", c.absorbed);
  fields("backward_row_tile", c.backward_row_tile);
  fields("backward_tile", c.backward_tile);
  fields("backward_split", c.backward_split);
  fields("score_gradients_late", c.score_gradients_late);
  fields.optional("dp_dtype", c.dp_dtype);
  fields.optional("head_gradient_dtype", c.head_gradient_dtype);
}

template <class Fields, Described<ProductContract> Value>
void describe_fields(Fields& fields, Value& c) {
  fields("name", c.name);
  fields("order", c.order);
  fields("roundoff", c.roundoff);
  fields("block", c.block);
  fields("products_rounded", c.products_rounded);
  fields("scales_weights", c.scales_weights);
  fields.optional("weight_dtype", c.weight_dtype);
  fields("largest", c.largest);
  fields("floor", c.floor);
  fields.unless("operand_floor", c.operand_floor, 0.0);
}

// The arithmetic of a verdict: that of attention or of a product, and that of gradients if it is
// another.
template <class Fields, Described<Verdict> Value>
void describe_arithmetic(Fields& fields, Value& v) {
  fields("declared", v.declared);
  std::optional<Contract> attention;
  std::optional<ProductContract> product;
  if constexpr (!Fields::reads) {
    if (const auto* c = std::get_if<Contract>(&*v.arithmetic)) attention = *c;
    else product = std::get<ProductContract>(*v.arithmetic);
  }
  fields.optional("attention", attention);
  fields.optional("product", product);
  fields.optional("gradients", v.gradient_arithmetic);
  if constexpr (Fields::reads) {
    if (attention) v.arithmetic = *attention;
    if (product) v.arithmetic = *product;
  }
}

}  // namespace assay
