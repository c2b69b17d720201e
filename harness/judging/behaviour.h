// Causes of a failure that the candidate's behaviour shows and its numbers do not: it reads its
// outputs, it writes beside them, or it keeps something from one call to the next.
#pragma once

#include <array>
#include <cmath>
#include <optional>
#include <string_view>
#include <variant>

#include "harness/judging/step.h"

namespace assay {

struct Behaviour {
  std::string_view name, words;
};
inline constexpr Behaviour adds_to_output{
    "adds-to-output", "what lay in an output takes part: with zeros there the outputs are right"};
inline constexpr Behaviour writes_beside{"writes-beside",
                                         "the outputs are right, and other memory was overwritten"};
inline constexpr Behaviour keeps_a_call{"call-before-kept",
                                        "something of a call for another problem is kept"};
inline constexpr Behaviour sums_otherwise{
    "another-order-than-declared",
    "sums go in another order than is declared: in any order, every element is inside its bound"};
inline constexpr std::array behaviours = {adds_to_output, writes_beside, keeps_a_call,
                                          sums_otherwise};

// Makes this the only explanation.
inline void explain_by(Explanation e, Diagnosis& d) {
  d.explanations = {std::move(e)};
  d.rows_asked = std::max<Index>(d.rows_asked, 1);
  d.not_asked.clear();
}
// A behaviour, because the other explanations were found without it. Its limit of s is 0, because
// it was not found by the size of errors.
inline void explain_by(const Behaviour& behaviour, Diagnosis& d) {
  Explanation e;
  e.hypothesis = behaviour.name;
  e.words = behaviour.words;
  explain_by(std::move(e), d);
}

// Whether some element is a NaN that the candidate computed.
inline bool has_computed_nan(const NamedOutputs& outputs) {
  for (const auto& [output, t] : outputs) {
    if (!t->view()) continue;
    bool found = false;
    for_each_index(t->view().shape, [&](Index b, Index h, Index i, Index j) {
      const Index at = t->view().at(b, h, i, j);
      found =
          found || (std::isnan(load(t->view(), at)) && !holds_poison(t->view(), at, Poison::nan));
    });
    if (found) return true;
  }
  return false;
}

// The declared arithmetic with its sums in any order; nothing if no order is declared.
inline std::optional<Arithmetic> in_any_order(const std::optional<Arithmetic>& declared) {
  if (!declared) return std::nullopt;
  if (const auto* attention = std::get_if<Contract>(&*declared); attention && attention->ordered) {
    Contract c = *attention;
    c.ordered = false;
    return c;
  }
  const auto* product = std::get_if<ProductContract>(&*declared);
  if (!product || product->order == ProductOrder::any) return std::nullopt;
  ProductContract c = *product;
  c.order = ProductOrder::any;
  return c;
}

// Whether outputs that fail under the declared order of sums are right in any order.
template <class Step>
bool is_right_in_any_order(const Step& step, const typename Step::Out& out,
                           const std::optional<Arithmetic>& declared, JudgeOptions judging) {
  const std::optional<Arithmetic> any = in_any_order(declared);
  if (!any) return false;
  judging.power = judging.statistics = false;
  judging.judged = nullptr;
  return step.judge(out, any, judging).outcome == Outcome::pass;
}

// Whether outputs that are NaN after poison of NaN are right after zeros.
template <class Step>
bool is_right_on_zeros(const Step& step, Candidate& candidate, const kernels::Execution& how,
                       const typename Step::Out& first, const std::optional<Arithmetic>& arithmetic,
                       JudgeOptions judging) {
  if (!has_computed_nan(first.named())) return false;
  const typename Step::Out zeroed = step.outputs();
  if (!run_guarded(step, candidate, zeroed, Poison::zero, how).empty()) return false;
  judging.power = judging.statistics = false;
  judging.judged = nullptr;
  judging.untouched = nullptr;
  return step.judge(zeroed, arithmetic, judging).outcome == Outcome::pass;
}

}  // namespace assay
