// Every term of the forward bound is needed: without it, an arithmetic that keeps its contract
// violates the rest of the bound. docs/bounds.md, section 11, tells which terms cannot be reached,
// and why.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "oracle/reference.h"
#include "property_tests/adversarial_row.h"
#include "property_tests/unreachable_terms.h"

namespace assay {
namespace {

using Problem = std::unique_ptr<TinyProblem>;

Problem tiny(std::vector<float> q, std::vector<float> k, std::vector<float> v) {
  return std::make_unique<TinyProblem>(std::move(q), std::move(k), std::move(v));
}
// Two keys whose values have opposite signs. O is near 0, and the errors of the weights dominate.
Problem opposed(float score, float other) { return tiny({1}, {score, other}, {1, -1}); }
// Eight keys whose scores rise a little, so that every tile of one key corrects those before it.
Problem rising(std::vector<float> v) {
  std::vector<float> k;
  for (std::size_t j = 0; j < v.size(); ++j) k.push_back(static_cast<float>(j) * 0x1p-6f);
  return tiny({1}, std::move(k), std::move(v));
}

// Keys with the same small score.
Problem equal(std::vector<float> v) {
  std::vector<float> k(v.size(), 0x1p-10f);
  return tiny({1}, std::move(k), std::move(v));
}
// Two keys whose score is one large product and three small ones.
Problem large_then_small(float score) {
  constexpr float small = 0x1p-10f;
  return tiny({1, 1, 1, 1}, {score, small, small, small, score, small, small, small}, {1, -1});
}
Problem projected(Problem p, Index products) {
  p->project(products);
  return p;
}

// The roundoffs are so small that one that is made coarser dominates.
Contract quiet() {
  Contract c;
  c.dot_roundoff = c.roundoff = 0x1p-38;
  c.exp_ulp = c.log_ulp = c.tanh_ulp = 0x1p-10;
  c.division_roundings = 1;
  c.ordered = true;
  return c;
}
constexpr double coarse = 0x1p-24;
void take_weights_from_lse(Contract& c) {
  c.divides_first = c.weights_from_lse = true;
  c.division_roundings = 0;
}

struct TermCase {
  BoundTerm term;
  const char* what;  // in words, as in docs/bounds.md
  std::function<Problem(Contract&)> make;
};

const std::vector<TermCase>& term_cases() {
  using T = BoundTerm;
  static const std::vector<TermCase> cases = {
      {T::dot_any_order, "a product of 64 that rounds, no order declared",
       [](Contract& c) {
         c.ordered = false;
         c.dot_roundoff = coarse;
         return opposed(64, 64);
       }},
      {T::dot_in_order, "a product of 64 that rounds, in order",
       [](Contract& c) {
         c.dot_roundoff = coarse;
         return opposed(64, 64);
       }},
      {T::dot_products, "a product of 64 that rounds before it is added",
       [](Contract& c) {
         c.products_rounded = true;
         c.dot_roundoff = c.roundoff = coarse;
         return tiny({1, 1}, {0x1p-10f, 64, 0x1p-10f, 64}, {1, -1});
       }},
      {T::dot_blocks, "a product of 64 in two blocks of two",
       [](Contract& c) {
         c.ordered = false;
         c.dot_roundoff = coarse;
         c.dot_block = 2;
         return large_then_small(64);
       }},
      {T::dot_blocks, "the same, the order of the blocks declared",
       [](Contract& c) {
         c.dot_roundoff = coarse;
         c.dot_block = 2;
         return large_then_small(64);
       }},
      {T::projected_keys, "keys of 64 that are sums of eight products",
       [](Contract& c) {
         c.ordered = false;
         c.dot_roundoff = coarse;
         return projected(opposed(64, 64), 8);
       }},
      {T::projected_keys, "the same, the order of q.k declared",
       [](Contract& c) {
         c.dot_roundoff = coarse;
         return projected(opposed(64, 64), 8);
       }},
      {T::dot_underflow, "keys of 2^-16 that are sums of products, which underflow by 2^-25",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         return projected(tiny({64}, {0x1p-16f, 0x1p-16f}, {1, -1}), 64);
       }},
      {T::dot_underflow, "products of 2^-16 that underflow by 2^-25 each, values of 1000",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         return tiny({0x1p-8f, 0x1p-8f, 0x1p-8f, 0x1p-8f},
                     {0x1p-8f, 0x1p-8f, 0x1p-8f, 0x1p-8f, 0x1p-8f, 0x1p-8f, 0x1p-8f, 0x1p-8f},
                     {1000, -1000});
       }},
      {T::dot_operands, "a query of 2^-10 that is read as 0, keys of 2^8",
       [](Contract& c) {
         c.operand_floor = 0x1.8p-10;
         return tiny({0x1p-10f}, {-0x1p8f, 0x1p8f}, {-1000, 1000});
       }},
      {T::dot_operands, "a query of 2^-8 that is read as 0 after it was scaled by 2^-3",
       [](Contract& c) {
         c.operand_floor = 0x1.8p-10;
         c.query_dtype = Dtype::bf16;
         Problem t = tiny({0x1p-8f}, {-0x1p8f, 0x1p8f}, {-1000, 1000});
         t->attention.scale = 0x1p-3f;
         return t;
       }},
      {T::query_prescale, "a query rounded to bf16 after it was scaled",
       [](Contract& c) {
         c.query_dtype = Dtype::bf16;
         return opposed(4, 4);
       }},
      {T::query_underflow, "a query below the normal numbers of binary16, keys of 2^18",
       [](Contract& c) {
         c.query_dtype = Dtype::f16;
         return tiny({0x1p-20f}, {0x1p18f, 0x1p18f}, {1, -1});
       }},
      {T::score_scale, "the product of a score of 64 with the scale",
       [](Contract& c) {
         c.roundoff = coarse;
         return opposed(64, 64);
       }},
      {T::softcap_argument, "a score of 16 under a cap of 64, its argument rounded twice",
       [](Contract& c) {
         c.roundoff = coarse;
         Problem p = opposed(16, 16);
         p->attention.softcap = 64;
         return p;
       }},
      {T::softcap_constant, "the same with a folded constant that errs by 2^-12",
       [](Contract& c) {
         c.scale_error = 0x1p-12;
         Problem p = opposed(16, 16);
         p->attention.softcap = 64;
         return p;
       }},
      {T::softcap_tanh, "the same with a tanh of 4 ulp",
       [](Contract& c) {
         c.roundoff = coarse;
         c.tanh_ulp = 4;
         Problem p = opposed(16, 16);
         p->attention.softcap = 64;
         return p;
       }},
      {T::softcap_product, "the same: the product of tanh with the cap",
       [](Contract& c) {
         c.roundoff = coarse;
         Problem p = opposed(16, 16);
         p->attention.softcap = 64;
         return p;
       }},
      {T::softcap_underflow, "a score of 2^-16 under a cap of 30 whose argument underflows",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         Problem p = tiny({0x1p-8f}, {0x1p-8f, 0x1p-8f}, {1000, -1000});
         p->attention.softcap = 30;
         return p;
       }},
      {T::alibi_product, "a distance of 1000 that q.k cancels",
       [](Contract& c) {
         c.roundoff = coarse;
         Problem p = opposed(-1000, -1001);
         p->attention.alibi_slopes = {1};
         p->attention.offset = {-1000};
         return p;
       }},
      {T::bias_first, "q.k and ALiBi of 500 each, and a bias that cancels both",
       [](Contract& c) {
         c.roundoff = coarse;
         Problem p = opposed(500, 500);
         p->attention.alibi_slopes = {1};
         p->attention.offset = {-500};
         p->set_bias({-1000, -1001});
         return p;
       }},
      {T::bias_last, "a bias of 1000",
       [](Contract& c) {
         c.roundoff = coarse;
         Problem p = opposed(1, 1);
         p->set_bias({1000, 1000});
         return p;
       }},
      {T::stored_score, "a score of 16 stored in bf16",
       [](Contract& c) {
         c.score_dtype = Dtype::bf16;
         return opposed(16, 16);
       }},
      {T::stored_score_underflow, "a score of 2^-20 stored in f16",
       [](Contract& c) {
         c.score_dtype = Dtype::f16;
         return opposed(0x1p-20f, 0x1p-20f);
       }},
      {T::stored_parts, "q.k of 16 stored in bf16 before it becomes a score",
       [](Contract& c) {
         c.score_dtype = Dtype::bf16;
         c.stores_score_parts = true;
         return opposed(16, 16);
       }},
      {T::stored_parts, "the same, stored once more before a bias",
       [](Contract& c) {
         c.score_dtype = Dtype::bf16;
         c.stores_score_parts = true;
         Problem p = opposed(16, 16);
         p->set_bias({0.25, 0.25});
         return p;
       }},
      {T::argument, "a weight 8 below the maximum",
       [](Contract& c) {
         c.roundoff = coarse;
         return tiny({1}, {0, -8}, {-0.25f, 745});
       }},
      {T::exp, "an exponential of 4 ulp",
       [](Contract& c) {
         c.roundoff = coarse;
         c.exp_ulp = 4;
         return opposed(0, 0.125f);
       }},
      {T::exp_per_unit, "an exponential whose error grows, 8 below the maximum",
       [](Contract& c) {
         c.roundoff = coarse;
         c.exp_ulp_per_unit = 4;
         return tiny({1}, {0, -8}, {-0.25f, 745});
       }},
      {T::corrections, "eight tiles that each correct those before them, exponentials of 4 ulp",
       [](Contract& c) {
         c.roundoff = coarse;
         c.exp_ulp = 4;
         c.tile = 1;
         return rising({1, 0, 0, 0, 0, 0, 0, -1});
       }},
      {T::folded_constant, "a folded constant that errs by 2^-12, 8 below the maximum",
       [](Contract& c) {
         c.scale_error = 0x1p-12;
         return tiny({1}, {0, -8}, {-0.25f, 745});
       }},
      {T::fused_argument, "maxima of 1000 in two tiles",
       [](Contract& c) {
         c.roundoff = coarse;
         c.fused_argument = true;
         c.tile = 1;
         return opposed(1000, 1000.5f);
       }},
      {T::sink, "a sink 8 below the maximum, an exponential whose error grows",
       [](Contract& c) {
         c.roundoff = 0x1p-30;
         c.exp_ulp_per_unit = 0x1p16;
         Problem p = tiny({1}, {0, 0}, {1, 1});
         p->attention.sink = {-8};
         return p;
       }},
      {T::exp_underflow, "an exponential of e^-12 that errs by 2^-20, its value 1000",
       [](Contract& c) {
         c.exp_floor = 0x1p-20;
         return tiny({1}, {0, -12}, {0, 1000});
       }},
      {T::weight_cast, "weights in bf16",
       [](Contract& c) {
         c.weight_dtype = Dtype::bf16;
         return opposed(0, -0.5f);
       }},
      {T::weight_cast_underflow, "a weight of e^-14 in f16, its value 1000",
       [](Contract& c) {
         c.weight_dtype = Dtype::f16;
         return tiny({1}, {0, -14}, {0, 1000});
       }},
      {T::values_any_order, "a sum of values that rounds, no order declared",
       [](Contract& c) {
         c.ordered = false;
         c.dot_roundoff = coarse;
         return tiny({1}, {0.125f, 0.125f, 0.125f, 0.125f}, {1, 1, 0.5f, 1});
       }},
      {T::values_in_order, "a sum of values that rounds, in order",
       [](Contract& c) {
         c.dot_roundoff = coarse;
         return tiny({1}, {0.125f, 0.125f, 0.125f, 0.125f}, {1, 1, 0.5f, 1});
       }},
      {T::tile_ends, "values that cancel across a tile that corrects the one before",
       [](Contract& c) {
         c.roundoff = coarse;
         c.tile = 1;
         return rising({1, -1});
       }},
      {T::split_merges, "values that cancel across two splits",
       [](Contract& c) {
         c.roundoff = coarse;
         c.tile = c.split_keys = 1;
         return rising({1, -1});
       }},
      {T::value_products, "products with V that round before they are added",
       [](Contract& c) {
         c.dot_roundoff = c.roundoff = coarse;
         c.products_rounded = true;
         return rising({1, -1});
       }},
      {T::value_blocks, "a value of 1 in two blocks of two keys",
       [](Contract& c) {
         c.ordered = false;
         c.dot_roundoff = coarse;
         c.dot_block = 2;
         return equal({1, 0x1p-10f, 0x1p-10f, 0x1p-10f});
       }},
      {T::masked_in_blocks, "a value of 1 in four blocks of a visible and a masked key",
       [](Contract& c) {
         c.ordered = false;
         c.dot_roundoff = coarse;
         c.dot_block = 2;
         constexpr float masked = -std::numeric_limits<float>::infinity();
         Problem p = equal({1, 0, 0x1p-10f, 0, 0x1p-10f, 0, 0x1p-10f, 0});
         p->set_bias({0, masked, 0, masked, 0, masked, 0, masked});
         return p;
       }},
      {T::projected_values, "values of 1 that are sums of eight products",
       [](Contract& c) {
         c.ordered = false;
         c.dot_roundoff = coarse;
         return projected(equal({1, 1, 0.5f, 1}), 8);
       }},
      {T::projected_values, "the same, the order of P V declared",
       [](Contract& c) {
         c.dot_roundoff = coarse;
         return projected(equal({1, 1, 0.5f, 1}), 8);
       }},
      {T::corrections_in_sums, "a value that eight corrections multiply, no order declared",
       [](Contract& c) {
         c.roundoff = c.dot_roundoff = coarse;
         c.ordered = false;
         c.tile = 1;
         return rising({1, 0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f});
       }},
      {T::row_sum, "a row sum of eight equal weights, in order",
       [](Contract& c) {
         c.roundoff = coarse;
         return rising({1, 1, 1, 1, 1, 1, 1, 0.5f});
       }},
      {T::dropout_scale, "a kept key of 1 / (1 - 0.3)",
       [](Contract& c) {
         c.roundoff = coarse;
         Problem p = tiny({1}, {0}, {1});
         p->attention.dropout = 0.3f;
         return p;
       }},
      {T::dropped_keys, "a dropped key 4 below the maximum, an exponential whose error grows",
       [](Contract& c) {
         c.roundoff = 0x1p-30;
         c.exp_ulp_per_unit = 0x1p10;
         Problem p = tiny({1}, {0, -4}, {1, 1});
         p->attention.dropout = 0.5f;
         for (std::uint64_t& seed = p->attention.dropout_seed;
              !keeps_weight(p->attention, 0, 0, 0, 0) || keeps_weight(p->attention, 0, 0, 0, 1);)
           ++seed;
         return p;
       }},
      {T::denominator, "scores of 150 stored in bf16, a weight 5 below the maximum",
       [](Contract& c) {
         c.score_dtype = Dtype::bf16;
         return tiny({1}, {150, 145}, {0, 1});
       }},
      {T::hull, "scores of 1000 stored in bf16, equal values: the row is vacuous",
       [](Contract& c) {
         c.dot_roundoff = coarse;
         c.score_dtype = Dtype::bf16;
         return tiny({1}, {1000, 1000, 1000}, {1, 1, 1});
       }},
      {T::value_underflow, "products with values of 2^-16 that underflow by 2^-25",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         return tiny({1}, {0.125f, 0.125f}, {0x1p-16f, -0x1p-16f});
       }},
      {T::value_underflow, "values of 2^-16 that are sums of products, which underflow by 2^-25",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         return projected(equal({0x1p-16f, -0x1p-16f}), 64);
       }},
      {T::divided_weights, "weights that are divided before P V",
       [](Contract& c) {
         c.roundoff = coarse;
         c.divides_first = true;
         return equal({1, -1});
       }},
      {T::divided_underflow, "a weight of e^-14 that underflows by 2^-25 when divided",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         c.divides_first = true;
         return tiny({1}, {0, -14}, {0, 1000});
       }},
      {T::weight_cast_underflow, "a weight of e^-14 that is divided, and then rounded to f16",
       [](Contract& c) {
         c.weight_dtype = Dtype::f16;
         c.divides_first = true;
         return tiny({1}, {0, -14}, {0, 1000});
       }},
      {T::value_operands, "values of 2^-10 that are read as 0",
       [](Contract& c) {
         c.operand_floor = 0x1.8p-10;
         return tiny({1}, {0.125f, 0.125f, 0.125f, 0.125f},
                     {0x1p-10f, 0x1p-10f, 0x1p-10f, 0x1p-10f});
       }},
      {T::weights_from_lse, "weights from an LSE of 1000",
       [](Contract& c) {
         c.roundoff = coarse;
         take_weights_from_lse(c);
         return tiny({1}, {1000, 1000}, {1, 1});
       }},
      {T::lse_argument, "weights from LSE whose arguments are rounded 64 times",
       [](Contract& c) {
         c.roundoff = coarse;
         c.argument_roundings = 64;
         take_weights_from_lse(c);
         return rising({1, 1, 1, 1, 1, 1, 1, 1});
       }},
      {T::lse_weights, "an exponential of 4 ulp, in LSE",
       [](Contract& c) {
         c.roundoff = coarse;
         c.exp_ulp = 4;
         return opposed(0, -0.125f);
       }},
      {T::log, "log of 8 with 16 ulp",
       [](Contract& c) {
         c.roundoff = coarse;
         c.log_ulp = 16;
         return rising({1, 1, 1, 1, 1, 1, 1, 1});
       }},
      {T::log_near_one, "log of 1.1 with an ulp of 1/2, 16 times",
       [](Contract& c) {
         c.roundoff = coarse;
         c.log_ulp = 16;
         return opposed(0, -2.25f);
       }},
      {T::lse_sum, "a maximum of 1000",
       [](Contract& c) {
         c.roundoff = coarse;
         return opposed(1000, 1000);
       }},
  };
  return cases;
}

std::string name_of(BoundTerm term) {
  return std::string(bound_terms[static_cast<std::size_t>(term)].name);
}

struct Bounds {
  double o, o_low, o_bound, lse, lse_low, lse_bound;
};
// The bounds come from balls, so that the oracle's own errors do not count.
Bounds bounds_of(const ProjectedAttention& p, const Contract& c, const BoundTerms& terms) {
  const Reference reference(p, c, terms);
  const KeyValuesPointer kv = reference.load_head(0, 0);
  const Index row = 0;
  Block block = reference.evaluate(*kv, 0, {&row, 1});
  EXPECT_FALSE(block.row(0).exact) << "an exact row has no terms";
  block.row(0).needs_ball = true;
  EXPECT_TRUE(reference.refine(*kv, block, 0, 128));
  const Certified &o = block.o[0], &lse = block.row(0).lse;
  return {o.value, o.low, o.bound + o.radius, lse.value, lse.low, lse.bound + lse.radius};
}

// The largest error/bound over both outputs, both directions and both signs of a folded constant.
double largest_ratio(const ProjectedAttention& p, const Contract& c, const Bounds& b) {
  double ratio = 0;
  for (bool lse : {false, true})
    for (int direction : {-1, 1})
      for (int fold : {-1, 1}) {
        const AdversarialOutput y = run_adversarial(c, p, b.o, {lse, direction, fold});
        const double error =
            lse ? std::fabs((y.lse - b.lse) - b.lse_low) : std::fabs((y.o - b.o) - b.o_low);
        ratio = std::max(ratio, error / (lse ? b.lse_bound : b.o_bound));
      }
  return ratio;
}

TEST(Terms, WithAllOfThemNoAdversarialRoundingViolatesTheBound) {
  for (const TermCase& t : term_cases()) {
    Contract c = quiet();
    const Problem p = t.make(c);
    EXPECT_LE(largest_ratio(p->attention, c, bounds_of(p->attention, c, {})), 1)
        << name_of(t.term) << ": " << t.what;
  }
}

TEST(Terms, EachIsNeeded) {
  for (const TermCase& t : term_cases()) {
    Contract c = quiet();
    const Problem p = t.make(c);
    const double with = largest_ratio(p->attention, c, bounds_of(p->attention, c, {}));
    const Bounds rest = bounds_of(p->attention, c, BoundTerms{}.without(t.term));
    const double without = largest_ratio(p->attention, c, rest);
    printf("%-24s error/bound %.3f, without it %8.3f: %s\n", name_of(t.term).c_str(), with, without,
           t.what);
    EXPECT_GT(without, 1) << name_of(t.term) << ": " << t.what;
  }
}

// The terms without a case, in their order.
std::vector<BoundTerm> terms_without_case() {
  std::set<BoundTerm> tried;
  for (const TermCase& t : term_cases()) tried.insert(t.term);
  std::vector<BoundTerm> rest;
  for (std::size_t k = 0; k < bound_terms.size(); ++k)
    if (!tried.contains(static_cast<BoundTerm>(k))) rest.push_back(static_cast<BoundTerm>(k));
  return rest;
}

TEST(Terms, TheDocumentSaysWhichCannotBeReached) {
  std::vector<std::string> names;
  for (BoundTerm term : terms_without_case()) names.push_back(name_of(term));
  EXPECT_EQ(names, unreachable_terms("bounds.md"));
}

// If one of these terms were needed after all, it would need a case in the table.
TEST(Terms, ThoseAreNotNeededInAnyOfTheCases) {
  for (const TermCase& t : term_cases())
    for (BoundTerm hidden : terms_without_case()) {
      Contract c = quiet();
      const Problem p = t.make(c);
      const Bounds rest = bounds_of(p->attention, c, BoundTerms{}.without(hidden));
      EXPECT_LE(largest_ratio(p->attention, c, rest), 1) << name_of(hidden) << ": " << t.what;
    }
}

}  // namespace
}  // namespace assay
