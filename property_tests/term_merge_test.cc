// Every term of the bound of merges is needed: an arithmetic that errs by all that its contract
// allows stays inside the bound with all terms, and leaves it without one of them. docs/bounds.md,
// section 12, tells which terms cannot be reached, and why.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "oracle/merge.h"
#include "property_tests/adversary.h"
#include "property_tests/unreachable_terms.h"

namespace assay {
namespace {

constexpr double log_two = 0.69314718055994530942;

// The parts of one row with one column, O_s and LSE_s in binary64.
struct Parts {
  std::vector<double> lse, o;
  bool base_two = false;
};

TensorView view_of(double& x) {
  TensorView t;
  t.data = &x;
  t.dtype = Dtype::f64;
  t.shape = t.stride = {1, 1, 1, 1};
  return t;
}

// The forms of a merge: the sum of values is divided at the end, or each weight is divided first.
enum class Form { divided_at_the_end, divided_weights };

// A merge as docs/bounds.md describes it. Each step errs as its contract allows.
class Kernel {
 public:
  Kernel(const Parts& parts, const Contract& contract, Form form, Adversary& adversary)
      : parts_(parts), c_(contract), form_(form), a_(adversary), u_(c_.roundoff) {
    max_ = *std::max_element(parts.lse.begin(), parts.lse.end());
    for (double lse : parts.lse) weights_.push_back(weight(max_ - lse));
    for (double w : weights_) sum_ = added(sum_, w);
  }

  double o() {
    const double inverse = c_.division_roundings == 2 ? rounded(1 / sum_) : 1 / sum_;
    double o = 0;
    for (std::size_t s = 0; s < weights_.size(); ++s) {
      const double w =
          form_ == Form::divided_weights ? quotient(weights_[s], inverse) : weights_[s];
      const double product = w * parts_.o[s];
      o = added(o, w == 1 ? product : rounded(product, c_.product_floor));
    }
    return form_ == Form::divided_weights ? o : rounded(o * inverse, c_.product_floor);
  }

  double lse() {
    const double natural = std::log(sum_), log = parts_.base_two ? natural / log_two : natural;
    // Near a sum of 1 a logarithm may err by an ulp of 1/2, instead of an ulp of its result.
    double computed = a_.err(log, c_.log_ulp * 2 * u_ * std::max(std::fabs(log), 0.5));
    if (parts_.base_two) computed = rounded(computed, c_.product_floor);
    return rounded(max_ + computed);
  }

 private:
  double rounded(double x, double floor = 0) { return a_.err(x, u_ * std::fabs(x) + floor); }
  // The quotient of a weight of 1 is at least 1 / n, and does not underflow.
  double quotient(double weight, double inverse) {
    return rounded(weight * inverse, weight == 1 ? 0 : c_.product_floor);
  }
  // The addition to 0 is exact.
  double added(double sum, double x) { return sum == 0 ? x : rounded(sum + x); }
  double weight(double distance) {
    if (distance == 0) return 1;
    const double exact = distance * (parts_.base_two ? log_two : 1);
    const double x = a_.err(exact, c_.argument_roundings * u_ * exact), e = std::exp(-x);
    const double relative = 2 * u_ * (c_.exp_ulp + c_.exp_ulp_per_unit * x);
    return std::max(0.0, a_.err(e, relative * e + c_.exp_floor));
  }

  const Parts& parts_;
  const Contract& c_;
  const Form form_;
  Adversary& a_;
  const double u_;
  double max_ = 0, sum_ = 0;
  std::vector<double> weights_;
};

// The exact row comes from balls, so that the oracle's own errors do not count.
MergedRow row_of(Parts parts, const Contract& contract, const MergeTerms& terms) {
  std::vector<AttentionOutput> views;
  for (std::size_t s = 0; s < parts.lse.size(); ++s)
    views.push_back({view_of(parts.o[s]), view_of(parts.lse[s])});
  return merge_row({views, parts.base_two}, contract, 0, 0, 0, 256, terms);
}

// The largest error/bound over both outputs and both forms.
double largest_ratio(const Parts& parts, const Contract& contract, const MergeTerms& terms) {
  const MergedRow row = row_of(parts, contract, terms);
  EXPECT_TRUE(row.o_bound[0] > 0 && row.lse_bound > 0);
  double ratio = 0;
  Adversary adversary;
  for (Form form : {Form::divided_at_the_end, Form::divided_weights}) {
    const double o =
        adversary.furthest([&](Adversary& a) { return Kernel(parts, contract, form, a).o(); });
    const double lse =
        adversary.furthest([&](Adversary& a) { return Kernel(parts, contract, form, a).lse(); });
    ratio = std::max({ratio, std::fabs((o - row.o[0]) - row.o_low[0]) / row.o_bound[0],
                      std::fabs((lse - row.lse) - row.lse_low) / row.lse_bound});
  }
  return ratio;
}

struct Case {
  MergeTerm term;
  const char* what;
  std::function<Parts(Contract&)> make;
};

using Term = MergeTerm;

// The roundoffs are so small that one that is made coarser dominates.
Contract quiet() {
  Contract c;
  c.roundoff = 0x1p-38;
  c.exp_ulp = c.log_ulp = 0x1p-10;
  c.division_roundings = 1;
  return c;
}
constexpr double coarse = 0x1p-24;

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {Term::argument, "a part 8 below the maximum",
       [](Contract& c) {
         c.roundoff = coarse;
         return Parts{{0, -8}, {-0.25, 745}};
       }},
      {Term::exp, "an exponential of 4 ulp",
       [](Contract& c) {
         c.roundoff = coarse;
         c.exp_ulp = 4;
         return Parts{{0, -0.125}, {1, -1}};
       }},
      {Term::exp_per_unit, "an exponential whose error grows, 8 below the maximum",
       [](Contract& c) {
         c.roundoff = coarse;
         c.exp_ulp_per_unit = 4;
         return Parts{{0, -8}, {-0.25, 745}};
       }},
      {Term::exp_underflow, "an exponential of e^-12 that errs by 2^-20, its value 1000",
       [](Contract& c) {
         c.exp_floor = 0x1p-20;
         return Parts{{0, -12}, {0, 1000}};
       }},
      {Term::value_sum, "values that cancel",
       [](Contract& c) {
         c.roundoff = coarse;
         return Parts{{0, -0.125}, {1, -1}};
       }},
      {Term::weight_sum, "a first part that outweighs three others, equal values",
       [](Contract& c) {
         c.roundoff = coarse;
         c.division_roundings = 2;
         return Parts{{0, -8, -8, -8}, {1, 1, 1, 1}};
       }},
      {Term::denominator, "weights that may be half of what they should be",
       [](Contract& c) {
         c.exp_ulp = 0x1p36;
         return Parts{{0, -0x1p-10, -0x1p-10, -0x1p-10}, {0, 1, 1, 1}};
       }},
      {Term::value_underflow, "products with values of 2^-16 that underflow by 2^-25",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         return Parts{{0, -0.125}, {0x1p-16, -0x1p-16}};
       }},
      {Term::quotient_underflow, "quotients of e^-12 that underflow by 2^-25, the value 1000",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         return Parts{{0, -12}, {0, 1000}};
       }},
      {Term::lse_weights, "an exponential of 4 ulp, in LSE",
       [](Contract& c) {
         c.roundoff = coarse;
         c.exp_ulp = 4;
         return Parts{{0, -0.125}, {1, -1}};
       }},
      {Term::log, "log of 4 with 16 ulp",
       [](Contract& c) {
         c.roundoff = coarse;
         c.log_ulp = 16;
         return Parts{{0, 0, 0, 0}, {1, 1, 1, 1}};
       }},
      {Term::log_near_one, "log of 1.1 with an ulp of 1/2, 16 times",
       [](Contract& c) {
         c.roundoff = coarse;
         c.log_ulp = 16;
         return Parts{{0, -2.25}, {1, 1}};
       }},
      {Term::lse_sum, "a maximum of 1000",
       [](Contract& c) {
         c.roundoff = coarse;
         return Parts{{1000, 1000}, {1, 1}};
       }},
      {Term::lse_underflow, "log2 of 1 + 2^-30, a product that underflows by 2^-25",
       [](Contract& c) {
         c.product_floor = 0x1p-25;
         return Parts{{1, -29}, {1, 1}, true};
       }},
  };
  return all;
}

// Each of these takes as much as is known of a term that is never used up.
const std::vector<Case>& hopeless_cases() {
  static const std::vector<Case> all = {
      {Term::weight_quotients, "values that cancel but for little",
       [](Contract& c) {
         c.roundoff = coarse;
         return Parts{{0, -0x1p-20}, {1, -0.9375}};
       }},
      {Term::division, "a first part that outweighs three others, times the inverse of the sum",
       [](Contract& c) {
         c.roundoff = coarse;
         c.division_roundings = 2;
         return Parts{{0, -8, -8, -8}, {1, 0x1p-10, 0x1p-10, 0x1p-10}};
       }},
      {Term::lse_base, "log2 of 3 as a product, a maximum of 2",
       [](Contract& c) {
         c.roundoff = coarse;
         return Parts{{2, 2, 2}, {1, 1, 1}, true};
       }},
  };
  return all;
}

// Parts and contracts of all kinds. The roundoffs are so far above 2^-53 that the errors of the
// emulation itself do not count.
Parts random_parts(std::mt19937_64& g, Contract& c) {
  const auto power = [&](double low, double high) {
    return std::exp2(std::uniform_real_distribution<double>(low, high)(g));
  };
  c.roundoff = power(-28, -11.01);
  if (g() % 2) c.exp_ulp = power(-10, 3);
  if (g() % 2) c.log_ulp = power(-10, 3);
  if (g() % 2) c.exp_ulp_per_unit = power(-5, 2);
  if (g() % 3 == 0) c.exp_floor = power(-40, -18);
  if (g() % 3 == 0) c.product_floor = power(-40, -18);
  c.argument_roundings = static_cast<double>(g() % 3);
  c.division_roundings = g() % 2 ? 1 : 2;
  Parts parts;
  parts.base_two = g() % 2;
  const double most = g() % 2 ? 0 : power(-2, 2), spread = power(-20, 3);
  for (std::size_t s = 0, count = 2 + g() % 3; s < count; ++s) {
    parts.lse.push_back(g() % 3 ? most - spread * power(-4, 1) : most);
    parts.o.push_back((g() % 2 ? 1 : -1) * (g() % 2 ? 1 : power(-15, 3)));
  }
  return parts;
}

std::string name(MergeTerm term) {
  return std::string(merge_terms[static_cast<std::size_t>(term)]);
}

double largest_ratio(const Case& x, const MergeTerms& terms) {
  Contract contract = quiet();
  const Parts parts = x.make(contract);
  return largest_ratio(parts, contract, terms);
}

TEST(MergeTerms, WithAllOfThemTheArithmeticStaysInside) {
  for (const auto* table : {&cases(), &hopeless_cases()})
    for (const Case& x : *table)
      EXPECT_TRUE(largest_ratio(x, {}) <= 1)
          << name(x.term) << ": the bound itself is violated: " << x.what;
}

TEST(MergeTerms, EachIsNeededByAnArithmeticThatKeepsItsContract) {
  for (const Case& x : cases()) {
    const double whole = largest_ratio(x, {}),
                 rest = largest_ratio(x, MergeTerms().without(x.term));
    std::printf("%-18s error/bound %.3f, without it %8.3f: %s\n", name(x.term).c_str(), whole, rest,
                x.what);
    EXPECT_FALSE(rest <= 1) << name(x.term) << ": nothing needs it";
  }
}

// What the document says of the unreachable terms is tried together with the bound itself.
TEST(MergeTerms, RandomPartsStayInsideWithoutTheUnreachable) {
  std::mt19937_64 g(3);
  for (int k = 0; k < 2000; ++k) {
    Contract contract = quiet();
    const Parts parts = random_parts(g, contract);
    EXPECT_TRUE(largest_ratio(parts, contract, {}) <= 1) << "parts " << k;
    for (const Case& hidden : hopeless_cases())
      EXPECT_TRUE(largest_ratio(parts, contract, MergeTerms().without(hidden.term)) <= 1)
          << "parts " << k << " without " << name(hidden.term);
  }
}

// The document names the terms that no arithmetic reaches, with the reason.
TEST(MergeTerms, AreTriedOrDocumentedAsUnreachable) {
  std::vector<std::string> unreachable;
  for (std::string_view term : merge_terms) {
    const bool tried = std::any_of(cases().begin(), cases().end(),
                                   [&](const Case& x) { return name(x.term) == term; });
    if (!tried) unreachable.emplace_back(term);
  }
  EXPECT_EQ(unreachable, unreachable_terms("bounds.md", "Every term of merges earns its place"));
}

// If one of these terms were needed after all, it would belong in the table of cases.
TEST(MergeTerms, TheUnreachableAreNotNeededInAnyCase) {
  for (const Case& hidden : hopeless_cases()) {
    const MergeTerms rest = MergeTerms().without(hidden.term);
    std::printf("%-18s error/bound %.3f, without it %8.3f: %s\n", name(hidden.term).c_str(),
                largest_ratio(hidden, {}), largest_ratio(hidden, rest), hidden.what);
    for (const auto* table : {&cases(), &hopeless_cases()})
      for (const Case& x : *table)
        EXPECT_TRUE(largest_ratio(x, rest) <= 1)
            << name(hidden.term) << " is needed by the case of " << name(x.term);
  }
}

}  // namespace
}  // namespace assay
