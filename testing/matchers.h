// Matchers for outputs and for verdicts. Their messages name the reason, the contract, the worst
// element of each output and, where it is known, the case line.
//
//   EXPECT_THAT(out.view(), IsWithinBoundOf(problem, contract).on(c));
//   EXPECT_THAT(judge(problem, out.view(), contract), FailsWith("O is NaN: O[b=1, h=2"));
#pragma once

#include <gmock/gmock.h>

#include <functional>
#include <ostream>
#include <string>
#include <type_traits>
#include <utility>

#include "oracle/backward_verdict.h"
#include "oracle/merge.h"
#include "oracle/product.h"
#include "oracle/verdict.h"
#include "problem/case.h"

namespace assay {

// Describes the outcome, its reason and the contract. For each output it says how many elements are
// inside their bounds, and which element comes nearest to its bound or exceeds it most.
std::string explain(Outcome outcome, const std::string& reason, const Verdict& verdict);

// A result that a test can compare with an outcome: it has a verdict, and names its case.
template <class Judged>
concept HasVerdict = requires(const Judged& j) {
  j.outcome;
  j.line;
  j.verdict;
};
inline std::string explain(const Verdict& v) { return explain(v.outcome, v.reason, v); }
template <HasVerdict Result>
std::string explain(const Result& r) {
  return explain(r.outcome, r.reason, r.verdict) + "\n  case: " + r.line;
}

// GoogleTest prints these types by the following functions, instead of their bytes.
void PrintTo(const TensorView& t, std::ostream* to);
void PrintTo(const AttentionOutput& out, std::ostream* to);
void PrintTo(const AttentionGradients& gradients, std::ostream* to);
void PrintTo(const Verdict&, std::ostream* to);
template <HasVerdict Result>
void PrintTo(const Result&, std::ostream* to) {
  *to << "the result of a case";
}

// Whether a verdict that fails has an element outside its bound, unless nothing could be compared.
inline bool is_consistent(const Verdict& v) {
  return v.outcome != Outcome::fail || v.outside > 0 || v.by_evidence || v.outputs.empty();
}

// Matches a verdict, or the result of a case, that has the expected outcome and reason.
class EndsAs {
 public:
  using is_gtest_matcher = void;
  EndsAs(Outcome outcome, std::string words) : outcome_(outcome), words_(std::move(words)) {}

  template <class Judged>
  bool MatchAndExplain(const Judged& judged, testing::MatchResultListener* listener) const {
    if (listener->IsInterested()) *listener << explain(judged);
    if constexpr (std::is_same_v<Judged, Verdict>)
      if (!is_consistent(judged)) return false;
    return judged.outcome == outcome_ && judged.reason.find(words_) != std::string::npos;
  }
  void DescribeTo(std::ostream* to) const;
  void DescribeNegationTo(std::ostream* to) const;

 private:
  Outcome outcome_;
  std::string words_;  // part of the reason
};

inline EndsAs Passes() { return {Outcome::pass, ""}; }
inline EndsAs Fails() { return {Outcome::fail, ""}; }
inline EndsAs FailsWith(std::string words) { return {Outcome::fail, std::move(words)}; }
inline EndsAs IsInconclusive(std::string words = "") {
  return {Outcome::inconclusive, std::move(words)};
}
inline EndsAs IsUnsupported(std::string words = "") {
  return {Outcome::unsupported, std::move(words)};
}

// Matches a verdict, or the result of a case, that found no element outside its bound, even if it
// could not judge any. It is neither a failure nor an error.
class HasNothingOutside {
 public:
  using is_gtest_matcher = void;

  template <class Judged>
  bool MatchAndExplain(const Judged& judged, testing::MatchResultListener* listener) const {
    if (listener->IsInterested()) *listener << explain(judged);
    if (verdict_of(judged).outside > 0) return false;
    return judged.outcome != Outcome::fail && judged.outcome != Outcome::error;
  }
  void DescribeTo(std::ostream* to) const { *to << "has no element outside its bound"; }
  void DescribeNegationTo(std::ostream* to) const { *to << "has an element outside its bound"; }

 private:
  static const Verdict& verdict_of(const Verdict& v) { return v; }
  static const Verdict& verdict_of(const HasVerdict auto& result) { return result.verdict; }
};

// Matches an answer that passes the oracle's verdict on every element.
template <class Answer>
class IsWithinBound {
 public:
  using is_gtest_matcher = void;
  IsWithinBound(std::string contract, std::function<Verdict(const Answer&)> judge)
      : contract_(std::move(contract)), judge_(std::move(judge)) {}

  // Adds the case to the message.
  IsWithinBound on(const Case& c) && {
    line_ = print_case(c);
    return std::move(*this);
  }

  bool MatchAndExplain(const Answer& answer, testing::MatchResultListener* listener) const {
    const Verdict v = judge_(answer);
    if (listener->IsInterested()) *listener << explain(v);
    if (!line_.empty()) *listener << "\n  case: " << line_;
    return v.outcome == Outcome::pass;
  }
  void DescribeTo(std::ostream* to) const {
    *to << "has every element within its bound under the contract " << contract_;
  }
  void DescribeNegationTo(std::ostream* to) const {
    *to << "is no pass under the contract " << contract_;
  }

 private:
  std::string contract_, line_;
  std::function<Verdict(const Answer&)> judge_;
};

IsWithinBound<AttentionOutput> IsWithinBoundOf(Attention problem, Contract contract,
                                               JudgeOptions options = {});
IsWithinBound<AttentionGradients> IsWithinBoundOf(Attention problem, AttentionBackwardInput input,
                                                  Contract contract, JudgeOptions options = {});
// The parts belong to the caller, and have to live as long as the matcher.
IsWithinBound<AttentionOutput> IsWithinBoundOf(MergeProblem problem, Contract contract);
IsWithinBound<TensorView> IsWithinBoundOf(Product problem, ProductContract contract,
                                          JudgeOptions options = {});

}  // namespace assay
