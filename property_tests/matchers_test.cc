// Tests the matchers: answers that must fail do, and the message names the element, the contract
// and the case; right answers match.
#include "testing/matchers.h"

#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "harness/candidates/contracts.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/merge.h"
#include "problem/generate.h"
#include "testing/require_that.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// The message of a failed expectation; empty if the expectation holds.
std::string message_of(const std::function<void()>& expectation) {
  testing::TestPartResultArray results;
  {
    using Reporter = testing::ScopedFakeTestPartResultReporter;
    const Reporter reporter(Reporter::INTERCEPT_ONLY_CURRENT_THREAD, &results);
    expectation();
  }
  std::string text;
  for (int k = 0; k < results.size(); ++k) text += results.GetTestPartResult(k).message();
  return text;
}

Tensor contiguous(const Extents& shape) {
  return Tensor(Dtype::f32, shape, make_layout(LayoutKind::bhsd, shape, 1));
}

void add_to(const TensorView& t, Index at, double change) { store(t, at, load(t, at) + change); }

// The bound of one element, as the judge computes it.
class BoundOf {
 public:
  BoundOf(Output output, Index h, Index row, Index column)
      : output_(output), h_(h), row_(row), column_(column) {
    options.judged = [this](const Element& e) {
      if (e.output == output_ && e.h == h_ && e.row == row_ && e.column == column_) value = e.bound;
    };
  }
  BoundOf(const BoundOf&) = delete;
  BoundOf& operator=(const BoundOf&) = delete;

  JudgeOptions options;
  double value = 0;

 private:
  Output output_;
  Index h_, row_, column_;
};

// O, LSE and gradients of the production kernel.
class Matchers : public testing::Test {
 protected:
  Matchers() {
    EXPECT_TRUE(kernels::attention_forward(problem_, out()).ok());
    EXPECT_TRUE(kernels::attention_backward(problem_, input(), gradients()).ok());
  }
  AttentionOutput out() const { return {o_.view(), lse_.view()}; }
  AttentionBackwardInput input() const { return {o_.view(), lse_.view(), in_.d_o.view()}; }
  AttentionGradients gradients() const { return {dq_.view(), dk_.view(), dv_.view(), {}, {}}; }
  std::string message() const {
    return message_of([&] { EXPECT_THAT(out(), IsWithinBoundOf(problem_, contract_).on(case_)); });
  }

  const Case case_ = parse_case("backward b=1 h=2/1 l=5x9 d=4 causal offset=end seed=3");
  const Inputs in_{case_};
  const Attention& problem_ = in_.problem;
  const Contract contract_ = host_contract(problem_, "AVX2");
  const Tensor o_ = contiguous({1, 2, 5, 4}), lse_ = contiguous({1, 2, 5, 1});
  const Tensor dq_ = contiguous({1, 2, 5, 4}), dk_ = contiguous({1, 1, 9, 4}),
               dv_ = contiguous({1, 1, 9, 4});
};

TEST_F(Matchers, RightOutputsMatch) {
  EXPECT_THAT(out(), IsWithinBoundOf(problem_, contract_).on(case_));
  EXPECT_THAT(gradients(), IsWithinBoundOf(problem_, input(), contract_));
  EXPECT_THAT(message(), IsEmpty());
}

TEST_F(Matchers, NanIsNamed) {
  store(o_.view(), o_.view().at(0, 1, 3, 2), nan);
  EXPECT_THAT(message(),
              AllOf(HasSubstr("Expected: has every element within its bound"),
                    HasSubstr("Actual: O f32 [1, 2, 5, 4], LSE f32 [1, 2, 5, 1]"),
                    HasSubstr("fails: O is NaN: O[b=0, h=1, row=3, column=2] = nan, exact"),
                    HasSubstr("contract: " + contract_.name), HasSubstr("1 element: O is NaN"),
                    HasSubstr("O: 39 of 40 elements inside their bounds"),
                    HasSubstr("LSE: 10 of 10 elements inside their bounds"),
                    HasSubstr("case: " + print_case(case_))));
}

// An output at half of its bound from the exact value passes. At twice the bound it fails.
TEST_F(Matchers, OneElementOffByTwiceItsBoundIsNamed) {
  for (const double times : {0.5, -0.5, 2.0, -2.0}) {
    const Tensor o = contiguous(o_.view().shape);
    std::memcpy(o.bytes(), o_.bytes(), o.size_in_bytes());
    BoundOf bound(Output::o, 1, 4, 3);
    double exact = 0;
    bound.options.judged = [&, inner = bound.options.judged](const Element& e) {
      inner(e);
      if (e.output == Output::o && e.h == 1 && e.row == 4 && e.column == 3) exact = e.exact;
    };
    ASSERT_THAT(judge(problem_, out(), contract_, bound.options), Passes());
    ASSERT_GT(bound.value, 0);
    store(o.view(), o.view().at(0, 1, 4, 3), exact + times * bound.value);
    const AttentionOutput changed{o.view(), lse_.view()};
    const std::string said =
        message_of([&] { EXPECT_THAT(changed, IsWithinBoundOf(problem_, contract_)); });
    if (std::fabs(times) < 1) {
      EXPECT_THAT(said, IsEmpty());
    } else {
      EXPECT_THAT(said,
                  AllOf(HasSubstr("fails: O is outside its bound: O[b=0, h=1, row=4, column=3]"),
                        HasSubstr("the largest error/bound is"),
                        HasSubstr("1 element: O is outside its bound"), Not(HasSubstr("case:"))));
      EXPECT_THAT(judge(problem_, changed, contract_),
                  FailsWith("O is outside its bound: O[b=0, h=1, row=4, column=3]"));
    }
  }
}

TEST_F(Matchers, LseIsNamed) {
  BoundOf bound(Output::lse, 0, 2, -1);
  ASSERT_THAT(judge(problem_, out(), contract_, bound.options), Passes());
  ASSERT_GT(bound.value, 0);
  add_to(lse_.view(), lse_.view().at(0, 0, 2, 0), 3 * bound.value);
  EXPECT_THAT(message(), HasSubstr("LSE is outside its bound: LSE[b=0, h=0, row=2]"));
}

TEST_F(Matchers, PoisonIsNamed) {
  JudgeOptions options;
  options.untouched = [&](const TensorView& t, Index at) {
    return t.data == o_.view().data && at == o_.view().at(0, 0, 4, 1);
  };
  const std::string said =
      message_of([&] { EXPECT_THAT(out(), IsWithinBoundOf(problem_, contract_, options)); });
  EXPECT_THAT(said, HasSubstr("O was not written: O[b=0, h=0, row=4, column=1]"));
  EXPECT_THAT(judge(problem_, out(), contract_, options), FailsWith("O was not written"));
}

TEST_F(Matchers, AMissingLseFails) {
  const AttentionOutput without{o_.view(), {}};
  const std::string said =
      message_of([&] { EXPECT_THAT(without, IsWithinBoundOf(problem_, contract_)); });
  EXPECT_THAT(said, AllOf(HasSubstr("no LSE"), HasSubstr("gives no LSE")));
}

TEST_F(Matchers, GradientsAreNamed) {
  const auto said = [&] {
    return message_of(
        [&] { EXPECT_THAT(gradients(), IsWithinBoundOf(problem_, input(), contract_).on(case_)); });
  };
  BoundOf bound(Output::dk, 0, 6, 1);
  const Verdict right = judge_backward(problem_, input(), gradients(), contract_, bound.options);
  ASSERT_THAT(right, Passes());
  ASSERT_GT(bound.value, 0);
  const Index at = dk_.view().at(0, 0, 6, 1);
  const double kept = load(dk_.view(), at);
  store(dk_.view(), at, kept + 3 * bound.value);
  EXPECT_THAT(said(), AllOf(HasSubstr("dK is outside its bound: dK[b=0, h=0, key=6, column=1]"),
                            HasSubstr("dV: 36 of 36 elements inside their bounds"),
                            HasSubstr("dK: 35 of 36 elements inside their bounds"),
                            HasSubstr("case: backward")));
  store(dk_.view(), at, kept);
  store(dv_.view(), dv_.view().at(0, 0, 0, 3), nan);
  EXPECT_THAT(said(), HasSubstr("dV is NaN: dV[b=0, h=0, key=0, column=3]"));
}

// An inconclusive answer is no pass, and does not fail with any words either.
TEST_F(Matchers, NothingComparedMatchesNothing) {
  const Case nothing = parse_case("attention b=0 h=1 l=4 d=4");
  const Inputs in(nothing);
  const Tensor o = contiguous({0, 1, 4, 4}), lse = contiguous({0, 1, 4, 1});
  const AttentionOutput none{o.view(), lse.view()};
  const Verdict v = judge(in.problem, none, contract_);
  EXPECT_THAT(v, IsInconclusive("no output element"));
  EXPECT_THAT(v, HasNothingOutside());
  EXPECT_THAT(v, Not(Passes()));
  EXPECT_THAT(v, Not(Fails()));
  EXPECT_THAT(none, Not(IsWithinBoundOf(in.problem, contract_)));
}

TEST_F(Matchers, VerdictsAreHeldToTheirWords) {
  const Verdict right = judge(problem_, out(), contract_);
  EXPECT_THAT(right, Passes());
  EXPECT_THAT(right, HasNothingOutside());
  EXPECT_THAT(
      message_of([&] { EXPECT_THAT(right, FailsWith("O is NaN")); }),
      AllOf(HasSubstr("Expected: fails with \"O is NaN\" in the reason"),
            HasSubstr("which passes: every element is inside its bound"),
            HasSubstr("O: 40 of 40 elements inside their bounds; the largest error/bound is"),
            HasSubstr(": O[b=0, h=")));
  store(o_.view(), o_.view().at(0, 0, 0, 0), nan);
  const Verdict wrong = judge(problem_, out(), contract_);
  EXPECT_THAT(wrong, FailsWith("O is NaN: O[b=0, h=0, row=0, column=0]"));
  EXPECT_THAT(message_of([&] { EXPECT_THAT(wrong, FailsWith("O is infinite")); }),
              HasSubstr("which fails: O is NaN"));
  EXPECT_THAT(message_of([&] { EXPECT_THAT(wrong, Passes()); }), HasSubstr("O is NaN"));
  EXPECT_THAT(message_of([&] { EXPECT_THAT(wrong, HasNothingOutside()); }), HasSubstr("O is NaN"));
}

// A verdict that fails, compared something and found no element outside its bound is a mistake of
// the judge. It matches nothing that a test expects.
TEST_F(Matchers, AFailureWithoutAnElementMatchesNothing) {
  Verdict v = judge(problem_, out(), contract_);
  v.outcome = Outcome::fail;
  EXPECT_THAT(v, Not(Fails()));
  EXPECT_THAT(v, Not(Passes()));
  EXPECT_THAT(v, Not(HasNothingOutside()));
  v.outside = 1;
  EXPECT_THAT(v, Fails());
}

// The result of a case also tells the line of the case.
TEST_F(Matchers, ResultsTellTheirCase) {
  struct Result {
    std::string line;
    Outcome outcome = Outcome::fail;
    std::string reason;
    Verdict verdict;
  };
  Result r{print_case(case_), Outcome::fail, "o: a guard band was overwritten",
           judge(problem_, out(), contract_)};
  EXPECT_THAT(r, FailsWith("guard band"));
  EXPECT_THAT(r, Not(HasNothingOutside())) << "it fails, although every element is inside";
  EXPECT_THAT(message_of([&] { EXPECT_THAT(r, Passes()); }),
              AllOf(HasSubstr("fails: o: a guard band was overwritten"),
                    HasSubstr("case: " + print_case(case_))));
  r.outcome = Outcome::unsupported;
  EXPECT_THAT(r, IsUnsupported("guard band"));
  EXPECT_THAT(r, HasNothingOutside());
  r.outcome = Outcome::error;
  EXPECT_THAT(r, Not(HasNothingOutside()));
  r.outcome = Outcome::inconclusive;
  r.verdict.outside = 1;
  EXPECT_THAT(r, Not(HasNothingOutside()));
}

// A property fails with the message of the matcher.
TEST_F(Matchers, PropertiesFailWithTheMatchersWords) {
  EXPECT_TRUE(rc::check([&] { require_that(judge(problem_, out(), contract_), Passes()); }));
  store(o_.view(), o_.view().at(0, 0, 0, 0), nan);
  const Verdict wrong = judge(problem_, out(), contract_);
  const auto result = rc::detail::checkTestable([&] { require_that(wrong, HasNothingOutside()); });
  ASSERT_TRUE(result.is<rc::detail::FailureResult>());
  EXPECT_THAT(result.get<rc::detail::FailureResult>().description,
              AllOf(HasSubstr("expected: a value that has no element outside its bound"),
                    HasSubstr("found: one which fails: O is NaN: O[b=0, h=0, row=0, column=0]")));
}

TEST(MatchersOfMerges, AWrongMergeIsNamed) {
  const Tensor o = contiguous({1, 1, 3, 2}), other = contiguous({1, 1, 3, 2}),
               merged = contiguous({1, 1, 3, 2});
  const Tensor lse = contiguous({1, 1, 3, 1}), other_lse = contiguous({1, 1, 3, 1}),
               merged_lse = contiguous({1, 1, 3, 1});
  for (Index i = 0; i < 3; ++i) {
    store(lse.view(), i, 0.25 * static_cast<double>(i));
    store(other_lse.view(), i, 0.5);
    for (Index c = 0; c < 2; ++c) {
      store(o.view(), 2 * i + c, 1.0 / static_cast<double>(2 * i + c + 1));
      store(other.view(), 2 * i + c, static_cast<double>(c - i));
    }
  }
  const AttentionOutput parts[] = {{o.view(), lse.view()}, {other.view(), other_lse.view()}};
  const AttentionOutput out{merged.view(), merged_lse.view()};
  ASSERT_TRUE(kernels::attention_merge(parts, kernels::LogBase::natural, out).ok());
  Contract contract;
  contract.name = "merging in binary64";
  contract.roundoff = 0x1p-53;
  EXPECT_THAT(out, IsWithinBoundOf({parts}, contract));
  add_to(merged.view(), 3, 1e-6);
  EXPECT_THAT(message_of([&] { EXPECT_THAT(out, IsWithinBoundOf({parts}, contract)); }),
              AllOf(HasSubstr("O is outside its bound: O[b=0, h=0, row=1, column=1]"),
                    HasSubstr("merging in binary64")));
}

TEST(MatchersOfProducts, AWrongProductIsNamed) {
  const Case c = parse_case("product m=3 n=5 k=40 dtype=f32 w=mxfp4");
  const ProductInputs in(c);
  const ProductContract contract = host_product_contract("AVX2");
  const Tensor out = contiguous({1, 1, 3, 5});
  for (Index m = 0; m < 3; ++m)
    for (Index n = 0; n < 5; ++n)
      store(out.view(), out.view().at(0, 0, m, n), exact_product(in.problem, m, n).high);
  EXPECT_THAT(out.view(), IsWithinBoundOf(in.problem, contract).on(c));
  BoundOf bound(Output::c, 0, 2, 4);
  ASSERT_THAT(judge_product(in.problem, out.view(), contract, bound.options), Passes());
  ASSERT_GT(bound.value, 0);
  add_to(out.view(), out.view().at(0, 0, 2, 4), 3 * bound.value);
  EXPECT_THAT(
      message_of([&] { EXPECT_THAT(out.view(), IsWithinBoundOf(in.problem, contract).on(c)); }),
      AllOf(HasSubstr("Actual: tensor f32 [1, 1, 3, 5]"),
            HasSubstr("C is outside its bound: C[row=2, column=4]"),
            HasSubstr("C: 14 of 15 elements inside their bounds"),
            HasSubstr("contract: " + contract.name), HasSubstr("case: " + print_case(c))));
}

}  // namespace
}  // namespace assay
