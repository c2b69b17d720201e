// Inside harness/judging/: the variants of a kernel, each of which is judged.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "harness/judging/product_batch.h"
#include "harness/judging/state.h"

namespace assay {

// Computes by a variant while it lives.
class UsedVariant {
 public:
  UsedVariant(Candidate& candidate, int variant)
      : candidate_(candidate), before_(candidate.variant()) {
    candidate.use_variant(variant);
  }
  ~UsedVariant() { candidate_.use_variant(before_); }
  UsedVariant(const UsedVariant&) = delete;
  UsedVariant& operator=(const UsedVariant&) = delete;

 private:
  Candidate& candidate_;
  const int before_;
};

// What is wrong with the outputs of the variant in use; empty if nothing is. Throws
// CandidateDeclined if it does not do the case.
template <class Step>
std::string wrong_in_variant(const Asked<Step>& asked) {
  const Step& step = asked.step;
  const typename Step::Out out = step.outputs();
  if (const std::string why = asked.candidate.unsupported(step.call(out)); !why.empty())
    throw CandidateDeclined(why);
  std::string wrong = run_guarded(step, asked.candidate, out, Poison::nan, execution_of(step.c));
  if (wrong.empty()) wrong = wrong_outputs(asked, asked.candidate, step, out);
  if constexpr (std::is_same_v<Step, ProductStep>)
    if (wrong.empty() && asked.candidate.abilities().batches)
      if (const Relation batch = product_batch(asked); batch.how == Relation::How::violated)
        return batch.why;
  return wrong;
}

// Judges the variants beside the one in use, which the step itself has judged. Of many, each case
// judges eight that its line chooses, so that the cases of a suite judge all. One that declines the
// case is counted, and leaves its place to the next.
template <class Step>
Relation every_variant(const Asked<Step>& asked) {
  constexpr int most = 8;
  Candidate& candidate = asked.candidate;
  const int all = candidate.abilities().variants, base = candidate.variant();
  const auto others = static_cast<std::uint64_t>(all - 1);
  const std::uint64_t first = hash_of_line(print_case(asked.step.c)) % others;
  Relation found = Relation::held();
  int judged = 0;
  for (std::uint64_t k = 0; k < others && judged < most; ++k) {
    const int variant = (base + 1 + static_cast<int>((first + k) % others)) % all;
    const UsedVariant used(candidate, variant);
    try {
      if (const std::string wrong = wrong_in_variant(asked); !wrong.empty())
        return Relation::violated(fmt::format("variant {}: {}", variant, wrong));
      ++judged;
    } catch (const CandidateDeclined& e) {
      ++found.declined[e.what()];
    }
  }
  if (judged > 0) return found;
  Relation nothing = Relation::not_applicable("no other variant does this case");
  nothing.declined = found.declined;
  return nothing;
}

}  // namespace assay
