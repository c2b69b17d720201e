#include "property_tests/adversarial_row.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "oracle/visibility.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// The small products of a projection, relative to the element.
constexpr double small_product = 0x1p-30;

double sign_of(double x) { return x < 0 ? -1 : 1; }

// Whether a result is so small that it may have underflowed.
bool is_tiny(double x, double floor) { return x != 0 && std::fabs(x) < floor * 0x1p11; }

struct Partial {
  double max = -inf, sum = 0, o = 0;
};

class Row {
 public:
  Row(const Contract& c, const ProjectedAttention& p, double exact_o, const Target& target)
      : c_(c), p_(p), o_(exact_o), target_(target), d_(target.direction), u_(c.roundoff) {
    evaluate_visibility(p, 0, 0, 0, seen_);
    fused_ = c.fused_argument && p.softcap == 0 && seen_.additions == 0;
    keep_scale_ = p.dropout > 0 ? 1 / (1 - static_cast<double>(p.dropout)) : 1;
  }

  AdversarialOutput run() {
    const Index keys = p_.shape.keys, per_split = c_.split_keys > 0 ? c_.split_keys : keys;
    Partial whole;
    for (Index first = 0; first < keys; first += per_split)
      merge(whole, part(first, std::min(keys, first + per_split)));
    if (!p_.sink.empty()) merge_sink(whole);
    AdversarialOutput out;
    const double divided = std::pow(1 + d_ * sign_of(whole.o) * u_, c_.division_roundings);
    out.o = c_.weights_from_lse && !target_.lse ? with_weights_from_lse()
            : c_.divides_first                  ? with_divided_weights(whole)
            : whole.sum > 0                     ? whole.o / whole.sum * divided
                                                : 0;
    out.lse = lse_of(whole);
    return out;
  }

 private:
  // x after a rounding of at most `roundoff`, towards `direction`.
  static double rounded(double x, double roundoff, double direction) {
    return x + direction * roundoff * std::fabs(x);
  }
  // Whether the contract allows that x is read as 0.
  bool is_lost(double x) const { return std::fabs(x) < c_.operand_floor; }
  double value(Index j) const { return load(p_.v, p_.v.at(0, 0, j, 0)); }
  // An element x of K or V as the kernel gets it: given, or a sum of products of which the first is
  // the large one (see TinyProblem::project).
  double element(double x, double direction) const {
    const Index products = p_.projection.length;
    if (products == 0) return x;
    const double small = x * small_product;
    double sum = 0;
    for (Index k = 0; k < products; ++k) {
      double product = k > 0 ? small : x - static_cast<double>(products - 1) * small;
      if (is_tiny(product, c_.product_floor)) product += direction * c_.product_floor;
      sum = rounded(sum + product, c_.dot_roundoff, direction);
    }
    return sum;
  }
  bool kept(Index j) const { return p_.dropout == 0 || keeps_weight(p_, 0, 0, 0, j); }
  double effective_value(Index j) const { return kept(j) ? keep_scale_ * value(j) : 0; }

  // The direction in which the weight of a key has to err.
  double direction_of(Index j) const {
    if (target_.lse) return d_;
    return d_ * sign_of(effective_value(j) - (c_.weights_from_lse ? 0 : o_));
  }

  double dot(Index j, double direction) const {
    std::vector<double> products;
    for (Index d = 0; d < p_.shape.dim; ++d) {
      double q = load(p_.q, p_.q.at(0, 0, 0, d));
      const double k = element(load(p_.k, p_.k.at(0, 0, j, d)), direction * sign_of(q));
      if (c_.query_dtype)
        q = stored(*c_.query_dtype,
                   rounded(q * static_cast<double>(p_.scale), u_, direction * sign_of(k)),
                   direction * sign_of(k));
      // What is read as 0 errs towards `direction` if that is where the product is not.
      double product = q * k;
      if (is_lost(q) || is_lost(k)) product = direction * sign_of(product) < 0 ? 0 : product;
      if (is_tiny(product, c_.product_floor)) product += direction * c_.product_floor;
      if (c_.products_rounded) product = rounded(product, u_, direction);
      products.push_back(product);
    }
    return added(0, products, direction);
  }

  // A sum after more products. A block FMA aligns its products and the sum to the largest of them,
  // and drops bits of all that are not 0.
  double added(double sum, std::span<const double> products, double direction) const {
    const std::size_t per_block = c_.dot_block > 0 ? static_cast<std::size_t>(c_.dot_block) : 1;
    for (; !products.empty(); products = products.subspan(std::min(per_block, products.size()))) {
      const auto block = products.first(std::min(per_block, products.size()));
      double largest = std::fabs(sum), total = sum;
      for (double x : block) largest = std::max(largest, std::fabs(x)), total += x;
      const double dropped = c_.dot_block > 0 ? direction * c_.dot_roundoff * largest : 0;
      total += sum == 0 ? 0 : dropped;
      for (double x : block) total += x == 0 ? 0 : dropped;
      const bool rounds = sum != 0 || !c_.products_rounded;
      sum = rounds ? rounded(total, c_.dot_roundoff, direction) : total;
    }
    return sum;
  }

  double capped(double t, double direction) const {
    const double cap = p_.softcap;
    double x = rounded(rounded(t / cap, u_, direction), u_, direction);
    x = rounded(x, c_.scale_error, direction);
    if (is_tiny(x, c_.product_floor)) x += direction * c_.product_floor;
    const double tanh = rounded(std::tanh(x), 2 * u_ * c_.tanh_ulp, direction);
    double s = rounded(cap * tanh, u_, direction);
    if (is_tiny(s, c_.product_floor)) s += direction * c_.product_floor;
    return s;
  }

  // Rounds to the nearest stored number or to a neighbour, so the error is at most half a unit in
  // the last place.
  static double stored(Dtype dtype, double x, double direction) {
    return x + direction * std::max(unit_roundoff(dtype) * std::fabs(x), half_min_subnormal(dtype));
  }

  double score(Index j) const {
    const double direction = direction_of(j);
    const bool parts = c_.score_dtype && c_.stores_score_parts;
    double s = dot(j, direction);
    if (parts) s = stored(*c_.score_dtype, s, direction);
    if (!fused_ && !c_.query_dtype) s = rounded(s * static_cast<double>(p_.scale), u_, direction);
    else if (fused_ && !c_.query_dtype)
      // The error is inside the argument, and its constant covers it.
      s *= static_cast<double>(p_.scale);
    if (parts && (p_.softcap > 0 || p_.bias || !p_.alibi_slopes.empty()))
      s = stored(*c_.score_dtype, s, direction);
    if (p_.softcap > 0) s = capped(s, direction);
    if (!p_.alibi_slopes.empty()) {
      const double distance = static_cast<double>(j - p_.offset_of(0));
      const double slope = static_cast<double>(p_.alibi_slopes[0]);
      const double product = rounded(distance * slope, u_, direction);
      s = product == 0 ? s : rounded(s + product, u_, direction);
    }
    if (p_.bias) {
      const double bias = load(p_.bias, p_.bias.at(0, 0, 0, j));
      s = bias == 0 ? s : rounded(s + bias, u_, direction);
    }
    return c_.score_dtype ? stored(*c_.score_dtype, s, direction) : s;
  }

  // e^(from - to) with an error towards `direction`. The fused form rounds -m c before it adds it.
  double exponential(double from, double to, double direction, bool fused) const {
    if (from == to && !fused) return 1;
    double x = rounded(from - to, c_.argument_roundings * u_, direction);
    if (fused) x += direction * u_ * std::max(std::fabs(from), std::fabs(to));
    x *= 1 + target_.fold * (p_.softcap > 0 ? 0 : c_.scale_error);
    const double relative = 2 * u_ * (c_.exp_ulp + c_.exp_ulp_per_unit * std::fabs(x));
    const double e = rounded(std::exp(x), relative, direction);
    return is_tiny(e, c_.exp_floor) ? std::max(0.0, e + direction * c_.exp_floor) : e;
  }

  // The correction errs in the direction that moves the output: all that came before it, or its
  // part of the row sum.
  double correction(const Partial& x, double to) const {
    const double moved = target_.lse ? 1 : x.o - o_ * x.sum;
    return x.max == to ? 1 : exponential(x.max, to, d_ * sign_of(moved), false);
  }
  double accumulate(double o, double roundoff) const {
    return target_.lse ? o : rounded(o, roundoff, d_);
  }
  double add_to_sum(double sum, double roundoff) const {
    return rounded(sum, roundoff, target_.lse ? d_ : -d_ * sign_of(o_));
  }

  // w, rounded to the dtype of weights.
  double cast(double w, double direction) const {
    if (!c_.weight_dtype || w == 1) return w;
    const double error =
        std::max(unit_roundoff(*c_.weight_dtype) * w, half_min_subnormal(*c_.weight_dtype));
    return std::max(0.0, w + direction * std::min(w, error));
  }

  Partial part(Index first, Index last) const {
    Partial x;
    for (Index begin = first; begin < last;) {
      const Index end = std::min(last, (begin / c_.tile + 1) * c_.tile);
      add_tile(x, begin, end);
      begin = end;
    }
    return x;
  }

  void add_tile(Partial& x, Index begin, Index end) const {
    double m = x.max;
    for (Index j = begin; j < end; ++j)
      if (seen_.bias[usize(j)] > -inf) m = std::max(m, score(j));
    if (m == -inf) return;
    if (x.max > -inf && x.max != m) {
      const double a = correction(x, m);
      x.o = accumulate(x.o * a, u_);
      x.sum = add_to_sum(x.sum * a, u_);
    }
    x.max = m;
    double tile_sum = 0;
    std::vector<double> products;
    for (Index j = begin; j < end; ++j) {
      if (seen_.bias[usize(j)] == -inf) {
        if (c_.dot_block > 0) products.push_back(0);
        continue;
      }
      const double e = exponential(score(j), m, direction_of(j), fused_);
      // If the row sum adds the rounded weights, the error of a cast counts as an error of the
      // weight.
      const bool of_weight = c_.sum_from_rounded || target_.lse;
      const double towards = of_weight ? direction_of(j) : d_ * sign_of(effective_value(j));
      const double w = cast(e, towards);
      const double added = tile_sum + (c_.sum_from_rounded ? w : e);
      tile_sum = tile_sum == 0 ? added : add_to_sum(added, u_);
      if (kept(j)) products.push_back(product(j, w));
    }
    add_products(x, products);
    x.sum = x.sum == 0 ? tile_sum : add_to_sum(x.sum + tile_sum, u_);
  }

  // The weight of a kept key times its value.
  double product(Index j, double w) const {
    const double direction = d_ * sign_of(value(j));
    // The roundings are those of 1 - p, of its inverse, and of the product with it.
    if (p_.dropout > 0)
      for (int k = 0; k < 3; ++k) w = rounded(k == 0 ? w * keep_scale_ : w, u_, direction);
    double product = w * element(value(j), d_);
    if (is_lost(value(j)) && d_ * sign_of(product) < 0) product = 0;
    if (is_tiny(product, c_.product_floor)) product += d_ * c_.product_floor;
    return c_.products_rounded ? rounded(product, u_, d_) : product;
  }
  void add_products(Partial& x, std::span<const double> products) const {
    if (!target_.lse) x.o = added(x.o, products, d_);
  }

  // O of a kernel that divides every weight by the row sum, and rounds it, before it multiplies V.
  double with_divided_weights(const Partial& whole) const {
    Partial x;
    std::vector<double> products;
    for (Index j = 0; j < p_.shape.keys; ++j) {
      if (seen_.bias[usize(j)] == -inf || !kept(j)) continue;
      const double towards = d_ * sign_of(effective_value(j));
      const double e = exponential(score(j), whole.max, direction_of(j), fused_);
      double w = e / whole.sum * std::pow(1 + towards * u_, c_.division_roundings);
      if (is_tiny(w, c_.product_floor)) w = std::max(0.0, w + towards * c_.product_floor);
      products.push_back(product(j, cast(w, towards)));
    }
    add_products(x, products);
    return x.o;
  }

  // O of a kernel whose weights are e^(s - LSE): LSE errs to the other side than the weights.
  double with_weights_from_lse() const {
    const double lse =
        Row(c_, p_, o_, {true, -d_ * sign_of(o_) > 0 ? 1 : -1, target_.fold}).run().lse;
    Partial x;
    std::vector<double> products;
    for (Index j = 0; j < p_.shape.keys; ++j) {
      if (seen_.bias[usize(j)] == -inf || !kept(j)) continue;
      const double towards = d_ * sign_of(effective_value(j));
      products.push_back(
          product(j, cast(exponential(score(j), lse, direction_of(j), fused_), towards)));
    }
    add_products(x, products);
    return x.o;
  }

  void merge(Partial& whole, const Partial& x) const {
    if (x.max == -inf) return;
    if (whole.max == -inf) {
      whole = x;
      return;
    }
    const double m = std::max(whole.max, x.max), u = std::max(u_, c_.dot_roundoff);
    const double a = correction(whole, m), b = correction(x, m);
    const double before = a == 1 ? whole.o : accumulate(whole.o * a, u);
    const double own = b == 1 ? x.o : accumulate(x.o * b, u);
    whole.o = accumulate(before + own, u);
    const double sum = a == 1 ? whole.sum : add_to_sum(whole.sum * a, u_);
    const double own_sum = b == 1 ? x.sum : add_to_sum(x.sum * b, u_);
    whole.sum = add_to_sum(sum + own_sum, u_);
    whole.max = m;
  }

  void merge_sink(Partial& whole) const {
    const double z = p_.sink[0], m = std::max(whole.max, z);
    if (m != whole.max) {
      const double a = correction(whole, m);
      whole.o = accumulate(whole.o * a, u_);
      whole.sum = add_to_sum(whole.sum * a, u_);
    }
    const double direction = target_.lse ? d_ : -d_ * sign_of(o_);
    whole.sum = add_to_sum(whole.sum + exponential(z, m, direction, fused_), u_);
    whole.max = m;
  }

  double lse_of(const Partial& whole) const {
    const double log = std::log(whole.sum), near_one = std::fabs(log) < 0.7 ? 0.5 : 0;
    double error = c_.log_ulp * 2 * u_ * (std::fabs(log) + near_one);
    if (is_tiny(log, c_.product_floor)) error += c_.product_floor;
    return rounded(whole.max + (log + d_ * error), u_, d_);
  }

  const Contract& c_;
  const ProjectedAttention& p_;
  const double o_;
  const Target target_;
  const double d_, u_;
  RowVisibility seen_;
  bool fused_ = false;
  double keep_scale_ = 1;
};

TensorView view_of(std::vector<float>& data, Index rows, Index columns) {
  TensorView t;
  t.data = data.data();
  t.shape = {1, 1, rows, columns};
  t.stride = {rows * columns, rows * columns, columns, 1};
  return t;
}

}  // namespace

TinyProblem::TinyProblem(std::vector<float> query, std::vector<float> keys,
                         std::vector<float> values)
    : q(std::move(query)), k(std::move(keys)), v(std::move(values)) {
  AttentionShape& s = attention.shape;
  s.rows = s.value_dim = 1;
  s.dim = static_cast<Index>(q.size());
  s.keys = static_cast<Index>(v.size());
  attention.q = view_of(q, 1, s.dim);
  attention.k = view_of(k, s.keys, s.dim);
  attention.v = view_of(v, s.keys, 1);
}

void TinyProblem::project(Index products) {
  const auto absolute = [](const std::vector<float>& x, std::vector<double>& to, TensorView view) {
    for (float element : x) to.push_back(std::fabs(static_cast<double>(element)));
    view.data = to.data();
    view.dtype = Dtype::f64;
    return view;
  };
  attention.projection = {absolute(k, k_absolute, attention.k),
                          absolute(v, v_absolute, attention.v), products, attention.shape.dim};
}

void TinyProblem::set_bias(std::vector<float> values) {
  bias = std::move(values);
  attention.bias = view_of(bias, 1, attention.shape.keys);
}

AdversarialOutput run_adversarial(const Contract& c, const ProjectedAttention& p, double exact_o,
                                  const Target& target) {
  return Row(c, p, exact_o, target).run();
}

}  // namespace assay
