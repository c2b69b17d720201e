// Inside harness/: the variants of a kernel, each of which is judged.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

#include "harness/judging/state.h"

namespace assay {

// Judges the variants beside the first, which the step itself has judged. Of many, each case judges
// eight that its line chooses, so that the cases of a suite judge all.
template <class Step>
Relation every_variant(const Asked<Step>& asked) {
  constexpr int most = 8;
  const Step& step = asked.step;
  const int others = asked.candidate.abilities().variants - 1;
  const auto how = execution_of(step.c);
  const auto first = hash_of_line(print_case(step.c)) % static_cast<std::uint64_t>(others);
  for (int k = 0; k < std::min(others, most); ++k) {
    const int variant = 1 + static_cast<int>((first + static_cast<std::uint64_t>(k)) %
                                             static_cast<std::uint64_t>(others));
    const typename Step::Out out = step.outputs();
    const Request request{step.call(out), how, nullptr, variant};
    std::string wrong =
        call_guarded(asked.candidate, request, step.watched(), out.named(), Poison::nan);
    if (wrong.empty()) wrong = wrong_outputs(asked, asked.candidate, step, out);
    if (!wrong.empty()) return Relation::violated(fmt::format("variant {}: {}", variant, wrong));
  }
  return Relation::held();
}

}  // namespace assay
