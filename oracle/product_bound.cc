#include "oracle/product_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace assay {

void ProductElementBound::scale_by(double g, double size, const ProductContract& contract) {
  bound *= std::fabs(g);
  if (!is_power_of_two(g)) bound = bound * (1 + contract.roundoff) + contract.roundoff * size;
  bound += contract.floor;
  reach *= std::fabs(g) * (1 + 2 * contract.roundoff);
  may_overflow |= !(reach < contract.largest);
}

void ProductBounds::compute(const ProductRow& row, const ProductColumns& w, const ProductContract& contract, Index length) {
  const auto n = static_cast<std::size_t>(w.count);
  const double u = contract.roundoff, product_u = contract.products_rounded ? u : 0, exact_limit = 1 / u;
  const double largest_weight = contract.weight_dtype ? overflow_threshold(*contract.weight_dtype) : std::nextafter(contract.largest, std::numeric_limits<double>::infinity());
  const int least_bit = std::ilogb(contract.floor);
  const bool in_order = contract.order == ProductOrder::groups_in_order;
  total_.assign(n, 0);
  total_error_.assign(n, 0);
  gauge.assign(n, 0);
  reach.assign(n, 0);
  may_overflow.assign(n, 0);
  quantum_.assign(n, no_bit);
  rounded_.assign(n, 0);
  for (Index t = 0; t < w.groups; ++t) {
    sum_.assign(n, 0);
    error_.assign(n, 0);
    magnitude_.assign(n, 0);
    const Index begin = t * w.step, end = std::min(begin + w.step, length);
    for (Index k = begin; k < end; ++k) {
      const double a = row.finite[static_cast<std::size_t>(k)];
      const double* code = w.finite_code.data() + k * w.count;
      for (std::size_t i = 0; i < n; ++i) {
        const double term = a * code[i];
        sum_[i] += term;
        magnitude_[i] += std::fabs(term);
        error_[i] = error_[i] * (1 + u) + (u * std::fabs(sum_[i]) + product_u * std::fabs(term));
      }
    }
    const double steps = static_cast<double>(end - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const double scale = w.finite_scale[static_cast<std::size_t>(t) * n + i], size = std::fabs(scale);
      const int quantum = row.quantum[static_cast<std::size_t>(t)] + w.quantum[static_cast<std::size_t>(t) * n + i];
      // A group in which every number is a multiple of one power of two, and no sum of them needs more bits than there are.
      const bool exact = quantum > no_bit / 2 || (magnitude_[i] <= std::ldexp(exact_limit, quantum) && quantum >= least_bit);
      double error = in_order ? error_[i] : gamma_factor(steps + (contract.products_rounded ? 1 : 0), u) * magnitude_[i];
      error = exact ? 0 : error + u * magnitude_[i] * steps * steps * 0x1p-52 + steps * contract.floor * (contract.products_rounded ? 2 : 1);
      if (scale != 0 && quantum < no_bit / 2) quantum_[i] = std::min(quantum_[i], quantum + lowest_bit(scale));
      if (contract.order == ProductOrder::any) {
        may_overflow[i] |= !(w.largest_code(t, static_cast<Index>(i)) * size < largest_weight);
      } else {
        rounded_[i] |= !exact;
        may_overflow[i] |= !(magnitude_[i] * (1 + gamma_factor(steps + 1, u)) < contract.largest);
      }
      const double term = sum_[i] * scale;
      total_[i] += term;
      gauge[i] += magnitude_[i] * size;
      if (contract.order == ProductOrder::any) continue;
      // The group sum, as far off as it is, times its scale.
      total_error_[i] += size * error + (contract.products_rounded && !is_power_of_two(scale) ? u * size * (std::fabs(sum_[i]) + error) : 0);
      if (in_order) total_error_[i] = total_error_[i] * (1 + u) + u * std::fabs(total_[i]) + contract.floor * (contract.products_rounded ? 2 : 1);
      else total_error_[i] += contract.floor;
    }
  }
  bound.assign(n, 0);
  double largest = 0;
  for (double a : row.finite) largest = std::max(largest, std::fabs(a));
  const double steps = static_cast<double>(length), groups = static_cast<double>(w.groups);
  for (std::size_t i = 0; i < n; ++i) {
    // No sum, in any order and with any of its roundings, exceeds this.
    reach[i] = gauge[i] * (1 + gamma_factor(steps + groups + 2, u));
    may_overflow[i] |= !(reach[i] < contract.largest) || row.not_in_f32;
    // As for a group: no sum of these numbers, in any order and whether scaled before or after, is rounded at all.
    const bool exact = rounded_[i] ? false : quantum_[i] > no_bit / 2 || (gauge[i] <= std::ldexp(exact_limit, quantum_[i]) && quantum_[i] >= least_bit);
    if (contract.order == ProductOrder::any) {
      const double u_weight = contract.weight_dtype ? unit_roundoff(*contract.weight_dtype) : 0;
      const double weights = contract.weight_dtype ? u_weight * gauge[i] + steps * half_min_subnormal(*contract.weight_dtype) * largest : 0;
      bound[i] = exact && !contract.weight_dtype
                     ? 0
                     : weights + gamma_factor(steps + (contract.products_rounded ? 1 : 0), u) * (gauge[i] + weights) + 2 * steps * contract.floor;
    } else if (contract.order == ProductOrder::groups) {
      bound[i] = exact ? 0 : total_error_[i] + gamma_factor(groups, u) * (gauge[i] + total_error_[i]);
    } else {
      bound[i] = exact ? 0 : total_error_[i] + u * gauge[i] * (steps + groups) * groups * 0x1p-52;
    }
  }
}

}  // namespace assay
