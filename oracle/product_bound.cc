#include "oracle/product_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/safety_factors.h"

namespace assay {
namespace {

using Term = ProductTerm;

// A step that underflows errs by the floor of the contract. Products that are rounded separately
// from the additions may underflow once more.
double underflow_of_step(const ProductContract& c) {
  return c.floor * (c.products_rounded ? 2 : 1);
}

double largest_weight(const ProductContract& c) {
  const double inf = std::numeric_limits<double>::infinity();
  return c.weight_dtype ? overflow_threshold(*c.weight_dtype) : std::nextafter(c.largest, inf);
}

}  // namespace

void ProductBounds::start(std::size_t columns, const ProductContract& c) {
  quanta_ = 1 / c.roundoff;
  least_bit_ = std::ilogb(c.floor);
  largest_weight_ = largest_weight(c);
  for (auto* v : {&total_, &total_error_, &gauge_, &gauge_lost_, &reach_, &bound_})
    v->assign(columns, 0);
  for (auto* v : {&rounded_, &may_overflow_}) v->assign(columns, 0);
  quantum_.assign(columns, no_bit);
}

// bounds_product.md, 2, In order: S_t, sum |a c|, and E by its recurrence
void ProductBounds::sum_group(const Group& group, const ProductRow& row, const ProductColumns& w,
                              const ProductContract& c) {
  const auto n = usize(w.count);
  const double u = c.roundoff, sum_u = terms_[Term::group_in_order] * u;
  const double product_u = c.products_rounded ? terms_[Term::group_products_in_order] * u : 0;
  for (auto* v : {&sum_, &magnitude_, &error_, &lost_}) v->assign(n, 0);
  for (Index k = group.begin; k < group.end; ++k) {
    const double a = row.finite[usize(k)];
    const double* code = w.finite_code.data() + k * w.count;
    for (std::size_t i = 0; i < n; ++i) {
      const double term = a * code[i];
      sum_[i] += term;
      magnitude_[i] += std::fabs(term);
      error_[i] = error_[i] * (1 + u) + (sum_u * std::fabs(sum_[i]) + product_u * std::fabs(term));
    }
    if (c.operand_floor > 0) add_lost(k, group, a, w, c);
  }
}

// bounds_product.md, 2, Operands that are read as 0: codes, or where they are dequantized, weights
void ProductBounds::add_lost(Index k, const Group& group, double a, const ProductColumns& w,
                             const ProductContract& c) {
  const auto n = usize(w.count);
  const double* code = w.finite_code.data() + k * w.count;
  const double* scale = w.finite_scale.data() + group.index * w.count;
  const double tensor_scale = c.scales_weights ? w.tensor_scale : 1;
  for (std::size_t i = 0; i < n; ++i) {
    const double factor =
        std::fabs(c.order == ProductOrder::any ? code[i] * scale[i] * tensor_scale : code[i]);
    if (std::fabs(a) < c.operand_floor || factor < c.operand_floor)
      lost_[i] += std::fabs(a * code[i]);
  }
}

// bounds_product.md, 2, Exact groups: every number is a multiple of one power of two, and no sum of
// them needs more bits than the accumulator has
bool ProductBounds::holds(double sum, int quantum) const {
  if (quantum > no_bit / 2) return true;  // all terms are 0
  return sum <= std::ldexp(quanta_, quantum) && quantum >= least_bit_;
}

// bounds_product.md, 2: E of a group
double ProductBounds::group_error(std::size_t i, const Group& group, bool exact,
                                  const ProductContract& c) const {
  if (exact) return 0;
  const double u = c.roundoff, steps = group.terms();
  const double roundings =
      steps + (c.products_rounded ? terms_[Term::group_products_any_order] : 0);
  const double error =
      c.order == ProductOrder::groups_in_order
          ? error_[i]
          : terms_[Term::group_in_any_order] * gamma_factor(roundings, u) * magnitude_[i];
  const double in_fp64 = terms_[Term::group_in_fp64] * u * magnitude_[i] * steps * steps *
                         safety::partial_sums_in_fp64;
  const double lost = terms_[Term::group_operands] * lost_[i] * (1 + gamma_factor(steps + 1, u));
  return error + in_fp64 + lost + terms_[Term::group_underflow] * steps * underflow_of_step(c);
}

// bounds_product.md, 3: a group sum, as far off as it is, times its scale
void ProductBounds::add_scaled_group(std::size_t i, double scale, double error,
                                     const ProductContract& c) {
  const double u = c.roundoff, size = std::fabs(scale);
  const bool rounds = c.products_rounded && !is_power_of_two(scale);
  const double product =
      rounds ? terms_[Term::group_scale] * u * size * (std::fabs(sum_[i]) + error) : 0;
  total_error_[i] += size * error + product;
  if (c.order == ProductOrder::groups_in_order)
    total_error_[i] = total_error_[i] * (1 + u) +
                      terms_[Term::groups_in_order] * u * std::fabs(total_[i]) +
                      terms_[Term::groups_in_order_underflow] * underflow_of_step(c);
  else total_error_[i] += terms_[Term::groups_in_any_order_underflow] * c.floor;
}

// bounds_product.md, 6: what of a group of one column may leave the range; its error goes on to
// section 3.
void ProductBounds::add_group(std::size_t i, const Group& group, const ProductRow& row,
                              const ProductColumns& w, const ProductContract& c) {
  const auto t = usize(group.index);
  const auto at = t * usize(w.count) + i;
  const double scale = w.finite_scale[at], size = std::fabs(scale);
  const int quantum = row.quantum[t] + w.quantum[at];
  if (scale != 0 && quantum < no_bit / 2)
    quantum_[i] = std::min(quantum_[i], quantum + lowest_bit(scale));
  total_[i] += sum_[i] * scale;
  gauge_[i] += magnitude_[i] * size;
  gauge_lost_[i] += lost_[i] * size;
  if (c.order == ProductOrder::any) {
    may_overflow_[i] |= !(w.largest[at] * size < largest_weight_);
    return;
  }
  const bool exact = lost_[i] == 0 && holds(magnitude_[i], quantum);
  if (!exact) rounded_[i] = 1;
  const double reach = magnitude_[i] * (1 + gamma_factor(group.terms() + 1, c.roundoff));
  if (!(reach < c.largest)) may_overflow_[i] = 1;
  add_scaled_group(i, scale, group_error(i, group, exact, c), c);
}

// bounds_product.md, 3: the sum of all groups
double ProductBounds::bound_of_groups(std::size_t i, double steps, double groups,
                                      const ProductContract& c) const {
  const double u = c.roundoff;
  if (c.order == ProductOrder::groups)
    return total_error_[i] + terms_[Term::groups_in_any_order] * gamma_factor(groups, u) *
                                 (gauge_[i] + total_error_[i]);
  return total_error_[i] + terms_[Term::groups_in_fp64] * u * gauge_[i] * (steps + groups) *
                               groups * safety::partial_sums_in_fp64;
}

// bounds_product.md, 4: dequantized weights; `largest` is that of |a|
double ProductBounds::bound_of_any_order(std::size_t i, double steps, double largest,
                                         const ProductContract& c) const {
  double weights = 0;
  if (c.weight_dtype)
    weights =
        terms_[Term::weight_cast] * unit_roundoff(*c.weight_dtype) * gauge_[i] +
        terms_[Term::weight_cast_underflow] * steps * half_min_subnormal(*c.weight_dtype) * largest;
  weights += terms_[Term::sum_operands] * gauge_lost_[i];
  // bounds_product.md, 5: a tensor scale in every weight rounds the scale, and then the weight.
  if (c.scales_weights)
    weights += terms_[Term::scaled_weights] * 2 * (1 + c.roundoff) * c.roundoff * gauge_[i] +
               2 * terms_[Term::scaled_weights] * steps * c.floor * largest;
  double roundings = steps + (c.products_rounded ? terms_[Term::sum_products] : 0);
  // bounds_product.md, 5, Blocks that are aligned: every product of a block, the sum before it, and
  // the sum after it
  if (c.block > 0)
    roundings =
        steps + terms_[Term::sum_blocks] *
                    (std::ceil(steps / c.block) * (std::min<double>(c.block, steps) + 2) - steps);
  return weights +
         terms_[Term::sum_in_any_order] * gamma_factor(roundings, c.roundoff) *
             (gauge_[i] + weights) +
         terms_[Term::sum_underflow] * 2 * steps * c.floor;
}

void ProductBounds::compute(const ProductRow& row, const ProductColumns& w,
                            const ProductContract& c, Index length) {
  const auto n = usize(w.count);
  start(n, c);
  for (Index t = 0; t < w.groups; ++t) {
    const Group group{t, t * w.step, std::min((t + 1) * w.step, length)};
    sum_group(group, row, w, c);
    for (std::size_t i = 0; i < n; ++i) add_group(i, group, row, w, c);
  }
  double largest = 0;
  for (double a : row.finite) largest = std::max(largest, std::fabs(a));
  const double steps = static_cast<double>(length), groups = static_cast<double>(w.groups);
  const double growth = 1 + gamma_factor(steps + groups + 2, c.roundoff);
  for (std::size_t i = 0; i < n; ++i) {
    // bounds_product.md, 6: no sum, in any order and with any of its roundings, exceeds `reach`
    reach_[i] = gauge_[i] * growth;
    may_overflow_[i] |= !(reach_[i] < c.largest) || row.not_in_f32;
    // bounds_product.md, 3, Exact sums: as for a group, whether scaled before or after
    const bool exact = !rounded_[i] && holds(gauge_[i], quantum_[i]);
    if (c.order == ProductOrder::any) {
      if (!exact || gauge_lost_[i] > 0 || c.weight_dtype || c.scales_weights)
        bound_[i] = bound_of_any_order(i, steps, largest, c);
    } else if (!exact) {
      bound_[i] = bound_of_groups(i, steps, groups, c);
    }
  }
}

ProductElementBound ProductBounds::of_element(std::size_t column) const {
  return {bound_[column], reach_[column], may_overflow_[column] != 0, &terms_};
}

// bounds_product.md, 5: the product with a tensor scale
void ProductElementBound::scale_by(double g, double size, bool in_weights,
                                   const ProductContract& c) {
  const ProductTerms& counts = *terms;
  bound *= std::fabs(g);
  if (!is_power_of_two(g) && !in_weights)
    bound = bound * (1 + c.roundoff) + counts[Term::tensor_scale] * c.roundoff * size;
  bound += counts[Term::tensor_scale_underflow] * c.floor;
  reach *= std::fabs(g) * (1 + 2 * c.roundoff);
  may_overflow |= !(reach < c.largest);
}

}  // namespace assay
