// Every term of the bound of products is needed: an arithmetic that errs by all that its contract
// allows stays inside the bound with all terms, and leaves it without one of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "oracle/product_bound.h"
#include "problem/generate.h"
#include "property_tests/adversary.h"
#include "property_tests/unreachable_terms.h"

namespace assay {
namespace {

// A row of A and a column of W. The codes are int8 with a scale for each group, or nvfp4 with a
// tensor scale.
struct Small {
  Index k = 1, group = 8;
  std::function<double(Index)> a = [](Index) { return 1.0; };
  std::function<int(Index)> code = [](Index) { return 1; };
  double scale = 1;        // a binary16 number, for every group
  float tensor_scale = 0;  // 0: there is none
};

class World {
 public:
  explicit World(const Small& small)
      : s(small), weights_(format(), s.k, 1, s.tensor_scale == 0 ? s.group : 16) {
    a_ = Tensor(Dtype::f32, {1, 1, 1, s.k}, make_layout(LayoutKind::bhsd, {1, 1, 1, s.k}, 1));
    for (Index k = 0; k < s.k; ++k) {
      store(a_.view(), a_.view().at(0, 0, 0, k), s.a(k));
      weights_.set_code(k, 0, static_cast<std::uint32_t>(s.code(k)) & 0xFF);
    }
    if (s.tensor_scale != 0) weights_.set_tensor_scale(s.tensor_scale);
    problem.m = problem.n = 1;
    problem.k = s.k;
    problem.a = a_.view();
    problem.w = weights_.view();
    const Dtype scale = traits(format()).scale;
    for (Index t = 0; t < problem.w.groups(); ++t) {
      weights_.set_scale(t, 0, static_cast<std::uint32_t>(encode(scale, s.scale)));
      if (s.tensor_scale == 0) weights_.set_zero(t, 0, 0);
    }
    row.read(problem, 0);
  }

  LowBit format() const { return s.tensor_scale == 0 ? LowBit::int8 : LowBit::nvfp4; }

  Small s;
  Product problem;
  ProductRow row;

 private:
  LowBitMatrix weights_;
  Tensor a_;
};

// The product as docs/bounds_product.md describes it. Each step errs as its contract allows.
class Kernel {
 public:
  Kernel(const World& world, const ProductContract& contract, Adversary& adversary)
      : world_(world), w_(world.problem.w, 0, 1), c_(contract), a_(adversary), u_(c_.roundoff) {}

  double element() {
    double sum = c_.order == ProductOrder::any ? all_terms() : groups();
    const double scale = world_.s.tensor_scale;
    if (c_.scales_weights) return sum * scale;  // every weight has been scaled
    return scale == 0 ? sum : a_.err(sum * scale, of_product(sum, scale));
  }

 private:
  double read(double x) const { return std::fabs(x) < c_.operand_floor ? 0 : x; }
  double rounded(double x) { return a_.err(x, u_ * std::fabs(x)); }
  double with_floor(double x) { return a_.err(x, u_ * std::fabs(x) + c_.floor); }
  // The error of a product with a scale. A power of two only changes the exponent.
  double of_product(double x, double scale) const {
    return (is_power_of_two(scale) ? 0 : u_ * std::fabs(x * scale)) + c_.floor;
  }
  double added(double sum, double product) {
    if (c_.products_rounded) return rounded(sum + with_floor(product));
    return with_floor(sum + product);
  }
  double added_scaled(double total, double sum, double scale) {
    if (!c_.products_rounded) return with_floor(total + sum * scale);
    return rounded(total + a_.err(sum * scale, of_product(sum, scale)));
  }

  double groups() {
    double total = 0;
    for (Index t = 0; t < w_.groups; ++t) {
      double sum = 0;
      for (Index k = t * w_.step; k < std::min((t + 1) * w_.step, world_.s.k); ++k)
        sum = added(sum, read(world_.row.a[usize(k)]) * read(w_.code_at(k, 0)));
      total = added_scaled(total, sum, w_.scale_at(t, 0));
    }
    return total;
  }
  double all_terms() {
    std::vector<double> products;
    for (Index k = 0; k < world_.s.k; ++k) {
      double weight = w_.weight(k, 0);
      if (c_.weight_dtype) {
        const double least = half_min_subnormal(*c_.weight_dtype), size = std::fabs(weight);
        const double error = std::max(unit_roundoff(*c_.weight_dtype) * size, least);
        weight = a_.err(weight, std::min(size, error));
      }
      // The scale is multiplied by the tensor scale, and the code by the result.
      if (c_.scales_weights) weight = rounded(rounded(weight));
      products.push_back(read(world_.row.a[usize(k)]) * read(weight));
    }
    double sum = 0;
    if (c_.block > 0) {
      for (std::size_t k = 0; k < products.size(); k += usize(c_.block))
        sum = added_block(sum, std::span(products).subspan(k).first(
                                   std::min(usize(c_.block), products.size() - k)));
    } else {
      for (double product : products) sum = added(sum, product);
    }
    return sum;
  }
  // Aligns the products and the sum to the largest of them, and drops bits of each.
  double added_block(double sum, std::span<const double> products) {
    double largest = std::fabs(sum);
    for (double x : products) largest = std::max(largest, std::fabs(x));
    const auto aligned = [&](double x) { return x == 0 ? x : a_.err(x, u_ * largest); };
    double total = aligned(sum);
    for (double x : products) total += aligned(x);
    return rounded(total);
  }

  const World& world_;
  const ProductColumns w_;
  const ProductContract& c_;
  Adversary& a_;
  double u_;
};

double bound_of(const World& world, const ProductContract& contract, const ProductTerms& terms,
                double exact) {
  const ProductColumns column(world.problem.w, 0, 1);
  ProductBounds bounds(terms);
  bounds.compute(world.row, column, contract, world.s.k);
  ProductElementBound element = bounds.of_element(0);
  if (world.s.tensor_scale != 0)
    element.scale_by(static_cast<double>(world.s.tensor_scale), std::fabs(exact),
                     contract.scales_weights, contract);
  return element.bound;
}

struct Case {
  ProductTerm term;
  std::function<void(Small&, ProductContract&)> set;
};

using Term = ProductTerm;

// One large term is followed by many small ones, so that each later addition rounds the whole first
// term. The small terms are no multiples of a power of two that 24 bits can hold beside the large
// one.
double large_then_small(Index k) { return k == 0 ? 1 : 0x1.8p-30; }

const std::vector<Case>& cases() {
  const auto order = [](ProductOrder how, bool products_rounded = false) {
    return [=](ProductContract& c) {
      c.order = how;
      c.products_rounded = products_rounded;
    };
  };
  const auto in_order = order(ProductOrder::groups_in_order);
  const auto in_order_rounded = order(ProductOrder::groups_in_order, true);
  const auto groups = order(ProductOrder::groups),
             groups_rounded = order(ProductOrder::groups, true);
  const auto any = order(ProductOrder::any), any_rounded = order(ProductOrder::any, true);
  const auto make = [](const auto& contract, Index k, Index group) {
    return [=](Small& s, ProductContract& c) {
      contract(c);
      s.k = k;
      s.group = group;
      s.a = large_then_small;
    };
  };
  const auto with = [](const auto& first, const auto& then) {
    return [=](Small& s, ProductContract& c) {
      first(s, c);
      then(s, c);
    };
  };
  const auto odd_scale = [](Small& s, ProductContract&) { s.scale = 0.75; };
  const auto underflow = [](Small&, ProductContract& c) { c.floor = 0x1p-16; };
  const auto reads_as_0 = [](Small& s, ProductContract& c) {
    s.a = [](Index) { return 0x1.8p-10; };
    c.operand_floor = 0x1p-9;
  };
  static const std::vector<Case> all = {
      {Term::group_in_order, make(in_order, 32, 32)},
      {Term::group_products_in_order, make(in_order_rounded, 2, 8)},
      {Term::group_in_any_order, make(groups, 32, 32)},
      {Term::group_products_any_order, make(groups_rounded, 2, 8)},
      {Term::group_underflow, with(make(in_order, 32, 32), underflow)},
      {Term::group_operands, with(make(in_order, 32, 32), reads_as_0)},
      {Term::group_scale, with(make(in_order_rounded, 2, 8), odd_scale)},
      {Term::groups_in_order, make(in_order, 32 * 8, 8)},
      {Term::groups_in_order_underflow, with(make(in_order, 32 * 8, 8),
                                             [](Small& s, ProductContract& c) {
                                               s.scale = 0x1p-10;
                                               c.floor = 0x1p-16;
                                             })},
      {Term::groups_in_any_order, make(groups, 32 * 8, 8)},
      {Term::groups_in_any_order_underflow, with(make(groups, 32 * 8, 8),
                                                 [](Small& s, ProductContract& c) {
                                                   s.scale = 0x1p-10;
                                                   c.floor = 0x1p-16;
                                                 })},
      {Term::weight_cast, with(make(any, 2, 8),
                               [](Small& s, ProductContract& c) {
                                 s.scale = 0.7;
                                 c.weight_dtype = Dtype::bf16;
                               })},
      {Term::weight_cast_underflow, with(make(any, 2, 8),
                                         [](Small& s, ProductContract& c) {
                                           s.scale = 0x1.8p-11;
                                           c.weight_dtype = Dtype::f8e4m3;
                                         })},
      {Term::sum_in_any_order, make(any, 32, 32)},
      {Term::sum_products, make(any_rounded, 2, 8)},
      {Term::sum_underflow, with(make(any_rounded, 32, 32), underflow)},
      {Term::sum_operands, with(make(any, 32, 32), reads_as_0)},
      {Term::sum_blocks, with(make(any, 16, 16), [](Small&, ProductContract& c) { c.block = 2; })},
      {Term::scaled_weights, with(make(any, 2, 16),
                                  [](Small& s, ProductContract& c) {
                                    s.tensor_scale = 0.7f;
                                    c.scales_weights = true;
                                  })},
      {Term::tensor_scale,
       with(make(in_order, 2, 16), [](Small& s, ProductContract&) { s.tensor_scale = 0.7f; })},
      {Term::tensor_scale_underflow, with(make(in_order, 2, 16),
                                          [](Small& s, ProductContract& c) {
                                            s.tensor_scale = 0x1p-10f;
                                            c.floor = 0x1p-16;
                                          })},
  };
  return all;
}

std::string name(ProductTerm term) {
  return std::string(product_terms[static_cast<std::size_t>(term)].name);
}

TEST(ProductTerms, EachIsNeededByAnArithmeticThatKeepsItsContract) {
  for (const Case& x : cases()) {
    Small small;
    ProductContract contract;
    x.set(small, contract);
    const World world(small);
    Adversary adversary;
    const double y =
        adversary.furthest([&](Adversary& a) { return Kernel(world, contract, a).element(); });
    const ExactSum exact = exact_product(world.problem, 0, 0);
    const double error = std::fabs((y - exact.high) - exact.low);
    const double whole = bound_of(world, contract, {}, exact.high);
    const double rest = bound_of(world, contract, ProductTerms().without(x.term), exact.high);
    std::printf("%-30s error %.3f of the bound; without the term the bound is %.3f of it\n",
                name(x.term).c_str(), error / whole, rest / whole);
    EXPECT_TRUE(error <= whole) << name(x.term) << ": the bound itself is violated";
    EXPECT_FALSE(error <= rest) << name(x.term) << ": nothing needs it";
  }
}

// The document names the terms that no arithmetic reaches, with the reason.
TEST(ProductTerms, AreTriedOrDocumentedAsUnreachable) {
  std::vector<std::string> unreachable;
  for (const ProductTermInfo& term : product_terms) {
    const bool tried = std::any_of(cases().begin(), cases().end(),
                                   [&](const Case& x) { return name(x.term) == term.name; });
    if (!tried) unreachable.emplace_back(term.name);
  }
  EXPECT_EQ(unreachable, unreachable_terms("bounds_product.md"));
}

}  // namespace
}  // namespace assay
