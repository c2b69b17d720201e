// Every term of the backward bound is needed: an arithmetic that errs by all that its contract
// allows stays inside the bound with all terms, and leaves it without one of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "oracle/backward.h"
#include "oracle/visibility.h"
#include "problem/generate.h"
#include "property_tests/adversary.h"
#include "property_tests/unreachable_terms.h"

namespace assay {
namespace {

enum class Gradients { dq, dk, dv, d_bias, d_sink };

// A problem of one head, as small as a term allows. Its inputs are given by (row or key, column).
struct Small {
  using Values = std::function<double(Index, Index)>;
  static Values all(double x) {
    return [x](Index, Index) { return x; };
  }
  // The value is x in the first row and column, and y elsewhere.
  static Values first(double x, double y) {
    return [x, y](Index i, Index d) { return i == 0 && d == 0 ? x : y; };
  }

  Index heads = 1;  // that share the keys, with the same inputs
  Index rows = 1, keys = 1, dim = 1, value_dim = 1;
  Values q = all(0), k = all(1), v = all(1), d_o = all(1);
  std::optional<double> d_lse;
  float scale = 1, softcap = 0, dropout = 0;
  std::optional<float> sink;
  bool sums_bias = false;  // sum dBias over all rows
  bool stores_lse = true;
  double lse_off = 0, o_off = 0;  // the errors of the LSE and O that the forward pass stored
};

Tensor tensor(Index rows, Index columns, const Small::Values& values) {
  Tensor t(Dtype::f64, {1, 1, rows, columns},
           make_layout(LayoutKind::bhsd, {1, 1, rows, columns}, 1));
  for (Index i = 0; i < rows; ++i)
    for (Index d = 0; d < columns; ++d) store(t.view(), t.view().at(0, 0, i, d), values(i, d));
  return t;
}

// The problem, its tensors, and the exact O and LSE with the errors that the case gives them.
class World {
 public:
  explicit World(const Small& small) : s(small) {
    q = tensor(s.rows, s.dim, s.q);
    k = tensor(s.keys, s.dim, s.k);
    v = tensor(s.keys, s.value_dim, s.v);
    d_o = tensor(s.rows, s.value_dim, s.d_o);
    d_lse = tensor(s.rows, 1, Small::all(s.d_lse.value_or(0)));
    dq = tensor(s.rows, s.dim, Small::all(0));
    dk = tensor(s.keys, s.dim, Small::all(0));
    dv = tensor(s.keys, s.value_dim, Small::all(0));
    d_sink = tensor(1, 1, Small::all(0));
    d_bias = tensor(1, s.keys, Small::all(0));
    problem.shape = {1, s.heads, 1, s.rows, s.keys, s.dim, s.value_dim};
    problem.q = of_all_heads(q);
    problem.k = k.view();
    problem.v = v.view();
    problem.scale = s.scale;
    problem.softcap = s.softcap;
    problem.dropout = s.dropout;
    problem.dropout_seed = 9;
    if (s.sink) problem.sink = {*s.sink};
    if (s.sums_bias) {
      bias = tensor(1, s.keys, Small::all(0));
      problem.bias = bias.view();
      problem.bias.shape[2] = s.rows;
      problem.bias.stride[2] = 0;
    }
    forward();
  }

  double keep(Index i, Index j) const {
    if (s.dropout == 0) return 1;
    return keeps_weight(problem, 0, 0, i, j) ? 1 / (1 - static_cast<double>(s.dropout)) : 0;
  }

  // One head's tensor, broadcast.
  TensorView of_all_heads(const Tensor& t) const {
    TensorView view = t.view();
    view.shape[1] = s.heads;
    view.stride[1] = 0;
    return view;
  }
  AttentionBackwardInput input() const {
    return {of_all_heads(o), s.stores_lse ? of_all_heads(lse) : TensorView{}, of_all_heads(d_o),
            s.d_lse ? of_all_heads(d_lse) : TensorView{}};
  }
  AttentionGradients gradients() const {
    AttentionGradients g{of_all_heads(dq), dk.view(), dv.view(), {}, {}};
    if (s.sink) g.d_sink = d_sink.view();
    if (!s.sums_bias) return g;
    g.d_bias = d_bias.view();
    g.d_bias.shape[2] = s.rows;
    g.d_bias.stride[2] = 0;
    return g;
  }

  Small s;
  Attention problem;
  Tensor q, k, v, d_o, d_lse, bias, o, lse, dq, dk, dv, d_bias, d_sink;

 private:
  void forward() {
    o = tensor(s.rows, s.value_dim, Small::all(0));
    lse = tensor(s.rows, 1, Small::all(0));
    for (Index i = 0; i < s.rows; ++i) {
      std::vector<double> score;
      for (Index j = 0; j < s.keys; ++j) {
        double t = 0;
        for (Index d = 0; d < s.dim; ++d) t += s.q(i, d) * s.k(j, d);
        t *= static_cast<double>(s.scale);
        const double cap = s.softcap;
        score.push_back(cap > 0 ? cap * std::tanh(t / cap) : t);
      }
      double most = *std::max_element(score.begin(), score.end());
      if (s.sink) most = std::max(most, static_cast<double>(*s.sink));
      double sum = s.sink ? std::exp(static_cast<double>(*s.sink) - most) : 0;
      for (double x : score) sum += std::exp(x - most);
      for (Index c = 0; c < s.value_dim; ++c) {
        double value = 0;
        for (Index j = 0; j < s.keys; ++j)
          value += std::exp(score[usize(j)] - most) / sum * keep(i, j) * s.v(j, c);
        store(o.view(), o.view().at(0, 0, i, c), value + s.o_off);
      }
      store(lse.view(), lse.view().at(0, 0, i, 0), most + std::log(sum) + s.lse_off);
    }
  }
};

// The backward pass as docs/bounds_backward.md describes it. Each step errs as its contract allows.
class Kernel {
 public:
  Kernel(const World& world, const Contract& contract, Adversary& adversary)
      : w_(world), s_(world.s), c_(contract), a_(adversary), u_(contract.roundoff) {}

  double element(Gradients which, Index row, Index column) {
    std::vector<double> bias(usize(s_.keys)), dk, dv;
    double sink = 0;
    for (Index i = 0; i < s_.rows; ++i) {
      const std::vector<Pair> pairs = weights(i);
      const double d = c_.dp_dtype ? delta_of_weights(i, pairs) : delta(i);
      if (s_.sink) sink = rounded(sink + read(rounded(read(sink_weight(i)) * read(d))));
      std::vector<double> dq;
      for (Index j = 0; j < s_.keys; ++j) {
        const Pair& x = pairs[usize(j)];
        const double r = w_.keep(i, j);
        double kept = x.p;
        if (s_.dropout > 0) kept = a_.err(read(x.p) * r, 3 * u_ * read(x.p) * r + c_.product_floor);
        const double t = rounded(read(value_product(i, j, r)) - read(d));
        const double p = c_.score_gradients_late ? cast(x.p) : x.p;
        double ds = with_floor(read(p) * read(t));
        double& sum = bias[usize(j)];
        sum = i == 0 ? stored(ds) : rounded(read(sum) + read(stored(ds)));
        if (s_.softcap > 0) ds = with_floor(read(ds) * read(x.factor));
        double g = cast_gradient(stored(ds));
        const double scale = s_.scale;
        if (!c_.weight_dtype && scale < 1)  // it is scaled before it is used
          g = a_.err(g * scale, c_.product_floor) / scale;
        if (which == Gradients::dq && i == row)
          dq.push_back(read(g) * read_scaled(s_.k(j, column)));
        if (which == Gradients::dk && j == row)
          dk.push_back(read(g) * read_scaled(s_.q(i, column)));
        if (which == Gradients::dv && j == row)
          dv.push_back(read(cast(kept)) * read(s_.d_o(i, column)));
      }
      if (which == Gradients::dq && i == row) return scaled(sum_of(dq));
    }
    switch (which) {
      case Gradients::dk: return over_heads(scaled(sum_of(dk)));
      case Gradients::dv: return over_heads(sum_of(dv));
      case Gradients::d_sink: return -rounded(sink);  // it is added to the sums of other blocks
      default: return bias[usize(column)];
    }
  }

 private:
  struct Pair {
    double p, factor;
  };

  double read(double x) const { return std::fabs(x) < c_.operand_floor ? 0 : x; }
  // An element of Q or K that was multiplied by the root of the scale.
  double read_scaled(double x) const {
    const double root = std::sqrt(static_cast<double>(s_.scale));
    return s_.scale < 1 ? read(x * root) / root : read(x);
  }
  double rounded(double x) { return a_.err(x, u_ * std::fabs(x)); }
  double with_floor(double x) { return a_.err(x, u_ * std::fabs(x) + c_.product_floor); }
  // One step of a sum of products.
  double added(double sum, double product) {
    return a_.err(sum + product, c_.dot_roundoff * std::fabs(sum + product) + c_.product_floor);
  }
  double sum_of(std::span<const double> products) {
    double sum = 0;
    if (c_.dot_block == 0) {
      for (double product : products) sum = added(sum, product);
      return sum;
    }
    const auto per_block = usize(c_.dot_block);
    for (; !products.empty(); products = products.subspan(std::min(per_block, products.size())))
      sum = added_block(sum, products.first(std::min(per_block, products.size())));
    return sum;
  }
  // Aligns the products and the sum to the largest of them, and drops bits of each.
  double added_block(double sum, std::span<const double> products) {
    double largest = std::fabs(sum);
    for (double x : products) largest = std::max(largest, std::fabs(x));
    const auto aligned = [&](double x) {
      return x == 0 ? x : a_.err(x, c_.dot_roundoff * largest + c_.product_floor);
    };
    double total = aligned(sum);
    for (double x : products) total += aligned(x);
    return a_.err(total, c_.dot_roundoff * std::fabs(total));
  }
  double scaled(double x) {
    const double scale = s_.scale;
    return s_.scale == 1 || c_.score_gradients_late ? x * scale : rounded(x * scale);
  }

  // Stores the part of every head and adds them. The last sum is the output, whose rounding is not
  // the bound's concern.
  double over_heads(double part) {
    if (!c_.head_gradient_dtype) return part * static_cast<double>(s_.heads);
    const auto stored = [&](double x) {
      const double error = unit_roundoff(*c_.head_gradient_dtype) * std::fabs(x);
      return a_.err(x, std::max(error, half_min_subnormal(*c_.head_gradient_dtype)));
    };
    double sum = stored(part);
    for (Index h = 1; h < s_.heads; ++h) {
      sum += stored(part);
      if (h + 1 < s_.heads) sum = stored(sum);
    }
    return sum;
  }

  // Computes D without FMA, beginning with -dLSE.
  double delta(Index i) {
    double sum = -read(s_.d_lse.value_or(0));
    for (Index c = 0; c < s_.value_dim; ++c) {
      const double o = load(w_.o.view(), w_.o.view().at(0, 0, i, c));
      sum = rounded(sum + with_floor(read(s_.d_o(i, c)) * read(o)));
    }
    return sum;
  }
  double delta_of_weights(Index i, const std::vector<Pair>& pairs) {
    double sum = -s_.d_lse.value_or(0);
    for (Index j = 0; j < s_.keys; ++j)
      sum = rounded(read(sum) + with_floor(read(cast(pairs[usize(j)].p)) *
                                           read(value_product(i, j, w_.keep(i, j)))));
    return sum;
  }
  // What is stored as dP is.
  double stored(double x) {
    if (!c_.dp_dtype) return x;
    const double error = unit_roundoff(*c_.dp_dtype) * std::fabs(x);
    return a_.err(x, std::min(std::fabs(x), std::max(error, half_min_subnormal(*c_.dp_dtype))));
  }
  double value_product(Index i, Index j, double keep) {
    std::vector<double> products;
    for (Index c = 0; c < s_.value_dim; ++c)
      products.push_back(read(s_.d_o(i, c)) * read(s_.v(j, c)));
    const double sum = sum_of(products);
    if (s_.dropout == 0) return stored(sum);
    const double kept = read(sum) * keep;
    return stored(a_.err(kept, 3 * u_ * std::fabs(kept) + c_.product_floor));
  }

  // A score after the softcap, and the factor of the softcap.
  struct Score {
    double s, factor;
  };
  Score score(Index i, Index j) {
    std::vector<double> products;
    for (Index d = 0; d < s_.dim; ++d) products.push_back(read(s_.q(i, d)) * read(s_.k(j, d)));
    const double dot = sum_of(products);
    const double scale = s_.scale, cap = s_.softcap;
    const double t = fused() ? dot * scale : rounded(dot * scale);
    if (cap == 0) return {t, 1};
    const double argument = a_.err(t / cap, 2 * u_ * std::fabs(t / cap));
    const double tanh = std::tanh(argument);
    const double capped = rounded(cap * a_.err(tanh, 2 * u_ * c_.tanh_ulp * std::fabs(tanh)));
    const double tau = a_.err(capped / cap, 2 * u_ * std::fabs(capped / cap));
    return {capped, rounded(1 - rounded(tau * tau))};
  }
  bool fused() const { return c_.fused_argument && s_.softcap == 0; }

  double exponential(double x) {
    const double value = std::exp(x);
    const double ulps = c_.exp_ulp + c_.exp_ulp_per_unit * std::fabs(x);
    return a_.err(value, 2 * u_ * ulps * value + c_.exp_floor);
  }
  // x - y as the argument of exp, where y was stored or is the largest x.
  double argument(double x, double y) {
    if (c_.fused_argument) {
      x = a_.err(x, c_.scale_error * std::fabs(x));
      y = a_.err(y, 2 * u_ * std::fabs(y));
    }
    return a_.err(x - y, c_.argument_roundings * u_ * std::fabs(x - y));
  }
  double sink_weight(Index i) {
    const double lse = load(w_.lse.view(), w_.lse.view().at(0, 0, i, 0));
    return exponential(argument(static_cast<double>(*s_.sink), lse));
  }

  std::vector<Pair> weights(Index i) {
    std::vector<Score> scores;
    for (Index j = 0; j < s_.keys; ++j) scores.push_back(score(i, j));
    if (!s_.stores_lse) return kept_weights(scores);
    const double lse = load(w_.lse.view(), w_.lse.view().at(0, 0, i, 0));
    std::vector<Pair> pairs;
    for (const Score& x : scores) pairs.push_back({exponential(argument(x.s, lse)), x.factor});
    return pairs;
  }
  // Each tile has one key. Each new maximum corrects the weights before it and their sum.
  std::vector<Pair> kept_weights(const std::vector<Score>& scores) {
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    std::vector<Pair> pairs;
    for (const Score& x : scores) {
      const double before = most;
      most = std::max(most, x.s);
      if (most > before && !pairs.empty()) {
        const double correction = exponential(distance(before, most));
        for (Pair& pair : pairs) pair.p *= correction;
        sum *= correction;
      }
      const double rounded_most = fused() ? rounded(most) : most;
      pairs.push_back({exponential(distance(x.s, rounded_most)), x.factor});
      sum = rounded(sum + pairs.back().p);
    }
    for (Pair& pair : pairs) {
      const double p = pair.p / sum;
      pair.p = a_.err(p, c_.division_roundings * u_ * p);
    }
    return pairs;
  }
  double distance(double x, double y) {
    const double gap = std::fabs(x - y);
    return a_.err(x - y, (c_.argument_roundings * u_ + c_.scale_error) * gap);
  }

  // Rounds to nearest, with the largest error that such a rounding may have. Beyond the range it
  // gives what saturation gives.
  double cast(double x, double scale = 1) {
    if (!c_.weight_dtype) return x;
    const Format& f = format(*c_.weight_dtype);
    const double y = x * scale, size = std::fabs(y);
    if (size > f.max_finite) return a_.err(std::copysign(f.max_finite, y), 0) / scale;
    const double error =
        std::max(unit_roundoff(*c_.weight_dtype) * size, half_min_subnormal(*c_.weight_dtype));
    return a_.err(y, std::min(size, error)) / scale;
  }
  double cast_gradient(double ds) {
    if (!c_.score_gradients_late) return cast(ds);
    const double scale = s_.scale;
    return cast(read(rounded(ds * scale)) / scale, scale);
  }

  const World& w_;
  const Small& s_;
  const Contract& c_;
  Adversary& a_;
  double u_;
};

// The exact element and its bound.
struct Bounded {
  double value, bound;
};
Bounded bounded(const World& world, const Contract& contract, const BackwardTerms& terms,
                Gradients which, Index row, Index column) {
  const AttentionBackwardInput input = world.input();
  const BackwardReference reference(world.problem, input, world.gradients(), contract, terms);
  SharedGradients shared = reference.no_shared_gradients();
  std::vector<Index> rows(usize(world.s.rows));
  std::iota(rows.begin(), rows.end(), Index{0});
  const GroupGradients group = reference.evaluate(0, 0, rows, shared);
  reference.finish(shared);
  const auto of = [&](const Gradient& g, Index at) -> Bounded {
    const auto e = usize(at);
    EXPECT_EQ(g.taint[e], Taint::none);
    return {g.value[e], g.bound[e]};
  };
  switch (which) {
    case Gradients::dq: return of(group.dq[0], row * world.s.dim + column);
    case Gradients::dk: return of(group.dk, row * world.s.dim + column);
    case Gradients::dv: return of(group.dv, row * world.s.value_dim + column);
    case Gradients::d_bias: return of(shared.d_bias, column);
    default: return of(shared.d_sink, 0);
  }
}

// An arithmetic with hardly any errors but the roundings of the softmax part. A case changes the
// part of the contract that its term is about.
Contract quiet() {
  Contract c;
  c.dot_roundoff = 0x1p-32;
  c.roundoff = 0x1p-24;
  c.argument_roundings = 0x1p-4;
  c.exp_ulp = c.tanh_ulp = c.log_ulp = 0x1p-4;
  c.tile = c.row_tile = 1;
  return c;
}

struct Case {
  BackwardTerm term;
  Gradients which;
  std::function<void(Small&, Contract&)> set;
};

using Term = BackwardTerm;

// Two keys have the weight 1/2 and the values 1 and -1. O and D are 0, but R dP - D is not.
void opposite_values(Small& s) {
  s.keys = 2;
  s.v = [](Index j, Index) { return j == 0 ? 1 : -1; };
  s.k = Small::first(1, 0);
}

// Numbers below it are read as 0 in the cases of operands.
constexpr double least_operand = 0x1.8p-10, lost_operand = 0x1p-11;

// The weight of the first key, e^-8, is read as 0.
void lost_weight(Small& s, Contract& c) {
  s.keys = 2;
  s.k = Small::first(-8, 0);
  s.q = Small::all(1);
  c.operand_floor = least_operand;
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {Term::stored_output, Gradients::dq, [](Small& s, Contract&) { s.o_off = 0x1p-8; }},
      {Term::delta_sum, Gradients::dq,
       [](Small& s, Contract&) {
         s.value_dim = 32;
         s.v = Small::first(1, 0x1p-30);
       }},
      {Term::delta_underflow, Gradients::dq,
       [](Small& s, Contract& c) {
         s.value_dim = 32;
         c.product_floor = 0x1p-16;
       }},
      // The elements of O alone are lost: V is large, and so is no dP.
      {Term::delta_operands, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.value_dim = 64;
         s.v = [](Index j, Index d) { return ((j + d) % 2 == 0 ? 1 : -1) + lost_operand; };
         c.operand_floor = least_operand;
       }},
      {Term::lse_gradient, Gradients::dq,
       [](Small& s, Contract&) {
         s.value_dim = 32;
         s.d_o = Small::all(0x1p-20);
         s.d_lse = 1;
       }},
      {Term::stored_lse, Gradients::dv, [](Small& s, Contract&) { s.lse_off = 0x1p-8; }},
      {Term::kept_lse, Gradients::dv,
       [](Small& s, Contract&) {
         s.stores_lse = false;
         s.keys = 32;
         s.k = Small::first(0, -40);
         s.q = Small::all(1);
       }},
      {Term::kept_corrections, Gradients::dv,
       [](Small& s, Contract& c) {
         s.stores_lse = false;
         s.keys = 6;
         s.k = [](Index j, Index) { return 4 * static_cast<double>(j); };
         s.q = Small::all(1);
         c.exp_ulp = 1000;
         c.ordered = true;
       }},
      {Term::kept_division, Gradients::dv,
       [](Small& s, Contract& c) {
         s.stores_lse = false;
         c.division_roundings = 50;
       }},
      {Term::kept_scale, Gradients::dv,
       [](Small& s, Contract& c) {
         s.stores_lse = false;
         s.keys = 2;
         s.k = [](Index j, Index) { return 8 * static_cast<double>(j); };
         s.q = Small::all(1);
         c.scale_error = 0x1p-12;
       }},
      {Term::score, Gradients::dv,
       [](Small& s, Contract& c) {
         s.dim = 32;
         s.q = Small::first(1, 0x1p-30);
         c.dot_roundoff = 0x1p-16;
       }},
      {Term::argument, Gradients::dv,
       [](Small& s, Contract& c) {
         s.keys = 2;
         s.k = Small::first(-4, 0);
         s.q = Small::all(1);
         c.argument_roundings = 50;
       }},
      {Term::exp, Gradients::dv, [](Small&, Contract& c) { c.exp_ulp = 50; }},
      {Term::exp_per_unit, Gradients::dv,
       [](Small& s, Contract& c) {
         s.keys = 2;
         s.k = Small::first(-4, 0);
         s.q = Small::all(1);
         c.exp_ulp_per_unit = 50;
       }},
      {Term::fused_argument, Gradients::dv,
       [](Small& s, Contract& c) {
         s.q = Small::all(64);
         c.fused_argument = true;
       }},
      {Term::folded_scale, Gradients::dv,
       [](Small& s, Contract& c) {
         s.q = Small::all(8);
         c.fused_argument = true;
         c.scale_error = 0x1p-12;
       }},
      {Term::exp_underflow, Gradients::dv, [](Small&, Contract& c) { c.exp_floor = 0x1p-16; }},
      {Term::keep_scale, Gradients::dv, [](Small& s, Contract&) { s.dropout = 0.25f; }},
      {Term::keep_underflow, Gradients::dv,
       [](Small& s, Contract& c) {
         s.dropout = 0.25f;
         s.keys = 64;
         s.d_o = Small::all(256);
         c.product_floor = 0x1p-16;
       }},
      {Term::value_cast, Gradients::dv, [](Small&, Contract& c) { c.weight_dtype = Dtype::bf16; }},
      {Term::cast_underflow, Gradients::dv,
       [](Small& s, Contract& c) {
         s.keys = 2;
         s.k = Small::first(-15, 0);
         s.q = Small::all(1);
         c.weight_dtype = Dtype::f16;
       }},
      {Term::rows_sum, Gradients::dv,
       [](Small& s, Contract& c) {
         s.rows = 32;
         s.d_o = Small::first(1, 0x1p-40);
         c.dot_roundoff = 0x1p-24;
       }},
      {Term::rows_sum, Gradients::dk,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.rows = 32;
         s.k = Small::all(0);
         s.q = Small::all(1);
         s.d_o = Small::first(1, 0x1p-40);
         c.dot_roundoff = 0x1p-24;
       }},
      {Term::keys_sum, Gradients::dq,
       [](Small& s, Contract& c) {
         s.keys = 32;
         s.k = Small::first(1, 0x1p-40);
         s.v = Small::first(1, -1.0 / 31);
         c.dot_roundoff = 0x1p-24;
       }},
      {Term::sum_blocks, Gradients::dq,
       [](Small& s, Contract& c) {
         s.keys = 32;
         s.k = Small::first(1, 0x1p-40);
         s.v = Small::first(1, -1.0 / 31);
         c.dot_roundoff = 0x1p-24;
         c.dot_block = 2;
       }},
      {Term::weight_operands, Gradients::dv, lost_weight},
      {Term::weight_operands, Gradients::dv,
       [](Small& s, Contract& c) {
         lost_weight(s, c);
         s.k = Small::first(-6.75, 0);
         s.dropout = 0.75f;
       }},
      // dS is lost where it was multiplied by the scale.
      {Term::weight_operands, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.scale = 0x1p-4f;
         s.d_o = Small::all(0x1p-6);
         c.weight_dtype = Dtype::bf16;
         c.score_gradients_late = true;
         c.operand_floor = least_operand;
       }},
      {Term::input_operands, Gradients::dv,
       [](Small& s, Contract& c) {
         s.d_o = Small::all(lost_operand);
         c.operand_floor = least_operand;
       }},
      {Term::input_operands, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.k = Small::first(lost_operand, 0);
         c.operand_floor = least_operand;
       }},
      // The key is lost where it was multiplied by the root of the scale.
      {Term::input_operands, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.scale = 0.25f;
         s.k = Small::first(0x1p-9, 0);
         c.operand_floor = least_operand;
       }},
      {Term::input_operands, Gradients::dk,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.k = Small::all(0);
         s.q = Small::all(lost_operand);
         c.operand_floor = least_operand;
       }},
      {Term::head_cast, Gradients::dv,
       [](Small& s, Contract& c) {
         s.heads = 3;
         c.head_gradient_dtype = Dtype::bf16;
       }},
      {Term::values_sum, Gradients::dq,
       [](Small& s, Contract& c) {
         s.value_dim = 32;
         s.v = Small::first(1, 0x1p-30);
         c.dot_roundoff = 0x1p-23;
       }},
      {Term::values_underflow, Gradients::dq,
       [](Small& s, Contract& c) {
         s.value_dim = 32;
         c.product_floor = 0x1p-16;
       }},
      {Term::values_operands, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.value_dim = 64;
         s.v = [](Index j, Index) { return j == 0 ? lost_operand : -lost_operand; };
         c.operand_floor = least_operand;
       }},
      {Term::subtraction, Gradients::dq, [](Small& s, Contract&) { opposite_values(s); }},
      {Term::score_gradient, Gradients::dq, [](Small& s, Contract&) { opposite_values(s); }},
      {Term::score_gradient_underflow, Gradients::dq,
       [](Small& s, Contract& c) {
         s.keys = 64;
         s.k = Small::first(4096, 0);
         c.product_floor = 0x1p-16;
       }},
      {Term::score_gradient_operands, Gradients::dq,
       [](Small& s, Contract& c) {
         lost_weight(s, c);
         s.v = Small::first(1000, 0);
       }},
      {Term::softcap_score, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.softcap = 0.25f;
         s.q = Small::all(0.25);
         c.dot_roundoff = 0x1p-16;
       }},
      {Term::softcap_tanh, Gradients::dq,
       [](Small& s, Contract&) {
         opposite_values(s);
         s.softcap = 1;
         s.q = Small::all(2);
         s.k = Small::all(1);
       }},
      {Term::softcap_factor, Gradients::dq,
       [](Small& s, Contract&) {
         opposite_values(s);
         s.softcap = 8;
         s.q = Small::all(0x1p-8);
       }},
      {Term::softcap_product, Gradients::dq,
       [](Small& s, Contract&) {
         opposite_values(s);
         s.softcap = 8;
         s.q = Small::all(0x1p-8);
       }},
      {Term::softcap_underflow, Gradients::dq,
       [](Small& s, Contract& c) {
         s.keys = 64;
         s.softcap = 0x1p-4;
         s.k = Small::first(4096, 0);
         c.product_floor = 0x1p-16;
       }},
      {Term::softcap_operands, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.softcap = 1;
         s.q = Small::all(4.15);
         s.d_o = Small::all(1000);
         c.operand_floor = least_operand;
       }},
      {Term::gradient_cast, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         c.weight_dtype = Dtype::bf16;
       }},
      {Term::gradient_cast, Gradients::dk,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.k = Small::all(0);
         s.q = Small::all(1);
         c.weight_dtype = Dtype::bf16;
       }},
      {Term::late_cast, Gradients::d_bias,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.sums_bias = true;
         c.weight_dtype = Dtype::bf16;
         c.score_gradients_late = true;
       }},
      {Term::stored_dp, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         c.dp_dtype = Dtype::bf16;
       }},
      {Term::delta_of_weights, Gradients::dq,
       [](Small& s, Contract& c) {
         s.keys = 2;
         s.k = Small::first(1, 0);
         c.dp_dtype = Dtype::bf16;
       }},
      {Term::delta_of_weights, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.keys = 2;
         s.sink = 0.0f;
         c.dp_dtype = Dtype::bf16;
       }},
      // Products of weights with dP, lost one by one.
      {Term::delta_of_weights, Gradients::dq,
       [](Small& s, Contract& c) {
         s.keys = 64;
         s.q = Small::all(0.1);
         s.k = Small::first(41.43, 0);  // half of the weight
         s.v = Small::first(0, 0.18);
         c.dp_dtype = Dtype::bf16;
         c.operand_floor = c.product_floor = least_operand;
       }},
      {Term::stored_twice, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         c.dp_dtype = Dtype::bf16;
       }},
      {Term::stored_twice, Gradients::d_bias,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.sums_bias = true;
         c.dp_dtype = Dtype::bf16;
       }},
      {Term::late_underflow, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.scale = 0x1p-10;
         s.d_o = Small::all(0x1p-12);
         c.weight_dtype = Dtype::f16;
         c.score_gradients_late = true;
       }},
      {Term::scaled_underflow, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.scale = 0x1p-6f;
         s.k = Small::first(4096, 0);
         c.product_floor = 0x1p-16;
       }},
      {Term::saturation, Gradients::dq,
       [](Small& s, Contract& c) {
         opposite_values(s);
         s.d_o = Small::all(4096);
         c.weight_dtype = Dtype::f8e4m3;
       }},
      {Term::bias_sum, Gradients::d_bias,
       [](Small& s, Contract&) {
         opposite_values(s);
         s.rows = 32;
         s.sums_bias = true;
         s.d_o = Small::first(1, 0x1p-40);
       }},
      {Term::sink_argument, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.sink = -4.0f;
         c.argument_roundings = 50;
       }},
      {Term::sink_exp, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.sink = 0.0f;
         c.exp_ulp = 50;
       }},
      {Term::sink_exp_per_unit, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.sink = -4.0f;
         c.exp_ulp_per_unit = 50;
       }},
      {Term::sink_fused_argument, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.sink = 64.0f;
         s.q = Small::all(64);
         c.fused_argument = true;
       }},
      {Term::sink_folded_scale, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.sink = 8.0f;
         s.q = Small::all(8);
         c.fused_argument = true;
         c.scale_error = 0x1p-12;
       }},
      {Term::sink_underflow, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.sink = 0.0f;
         c.exp_floor = 0x1p-16;
       }},
      {Term::sink_operands, Gradients::d_sink,
       [](Small& s, Contract& c) {
         s.sink = -8.0f;
         s.d_o = Small::all(1000);
         c.operand_floor = least_operand;
       }},
      {Term::sink_product, Gradients::d_sink, [](Small& s, Contract&) { s.sink = 0.0f; }},
      {Term::sink_sum, Gradients::d_sink,
       [](Small& s, Contract&) {
         s.rows = 32;
         s.sink = 0.0f;
         s.d_o = Small::first(1, 0x1p-40);
       }},
      {Term::scale_product, Gradients::dq,
       [](Small& s, Contract&) {
         opposite_values(s);
         s.scale = 0.75f;
       }},
      {Term::scale_product, Gradients::dk,
       [](Small& s, Contract&) {
         opposite_values(s);
         s.k = Small::all(0);
         s.q = Small::all(1);
         s.scale = 0.75f;
       }},
      {Term::sum_underflow, Gradients::dv,
       [](Small& s, Contract& c) {
         s.rows = 32;
         s.d_o = Small::all(0x1p-10);
         c.product_floor = 0x1p-16;
       }},
      {Term::sum_underflow, Gradients::dq,
       [](Small& s, Contract& c) {
         s.keys = 32;
         s.k = Small::all(0x1p-10);
         c.product_floor = 0x1p-16;
       }},
  };
  return all;
}

std::string name(BackwardTerm term) {
  return std::string(backward_terms[static_cast<std::size_t>(term)].name);
}

// How far an arithmetic comes from the exact element, as a fraction of the bound with some terms.
struct Tried {
  Small small;
  Contract contract;
  Gradients which;

  double error() const {
    const World world(small);
    Adversary adversary;
    const double y = adversary.furthest(
        [&](Adversary& a) { return Kernel(world, contract, a).element(which, 0, 0); });
    return std::fabs(y - bounded(world, contract, {}, which, 0, 0).value);
  }
  double bound(const BackwardTerms& terms) const {
    return bounded(World(small), contract, terms, which, 0, 0).bound;
  }
};

Tried tried(const Case& x) {
  Tried t{{}, quiet(), x.which};
  x.set(t.small, t.contract);
  return t;
}

TEST(BackwardTerms, EachIsNeededByAnArithmeticThatKeepsItsContract) {
  for (const Case& x : cases()) {
    const Tried t = tried(x);
    const double error = t.error(), whole = t.bound({});
    const double rest = t.bound(BackwardTerms().without(x.term));
    std::printf("%-26s error %.3f of the bound; without the term the bound is %.3f of it\n",
                name(x.term).c_str(), error / whole, rest / whole);
    EXPECT_TRUE(error <= whole) << name(x.term) << ": the bound itself is violated";
    EXPECT_FALSE(error <= rest) << name(x.term) << ": nothing needs it";
  }
}

// The document names the terms that no arithmetic reaches, with the reason.
TEST(BackwardTerms, AreTriedOrDocumentedAsUnreachable) {
  std::vector<std::string> unreachable;
  for (const BackwardTermInfo& term : backward_terms) {
    const bool has_case = std::any_of(cases().begin(), cases().end(),
                                      [&](const Case& x) { return name(x.term) == term.name; });
    if (!has_case) unreachable.emplace_back(term.name);
  }
  EXPECT_EQ(unreachable, unreachable_terms("bounds_backward.md"));
}

// The weights of two tiles, whose maxima are rounded separately, come closest to it.
TEST(BackwardTerms, KeptFusedIsNotReached) {
  for (double largest : {-64.0, -2.0, 0.5, 64.0}) {
    Tried t{{}, quiet(), Gradients::dv};
    t.small.stores_lse = false;
    t.small.keys = 2;
    t.small.k = [=](Index j, Index) { return j == 0 ? largest - 4 : largest; };
    t.small.q = Small::all(1);
    t.contract.fused_argument = true;
    const double error = t.error(), rest = t.bound(BackwardTerms().without(Term::kept_fused));
    std::printf("largest score %5.1f: error %.3f of the bound without the term\n", largest,
                error / rest);
    EXPECT_TRUE(error <= rest);
    EXPECT_GT(error, 0.1 * rest);
  }
}

}  // namespace
}  // namespace assay
