#include "harness/judging/pages.h"

#include <fmt/format.h>

#include <algorithm>

#include "harness/candidates/cached.h"
#include "harness/judging/state.h"

namespace assay {
namespace {

using AskedForward = Asked<ForwardStep>;

constexpr const char* no_pages = "the candidate reads no pages that others fill";

ForwardStep with_pages(ForwardStep step, PagesFrom pages) {
  step.pages = pages;
  return step;
}

// Runs a step whose outputs should be those of another one.
Relation same_or_right(const AskedForward& asked, const ForwardStep& step, const Outputs& other,
                       const char* what) {
  const Outputs out = step.outputs();
  std::string wrong = run_guarded(step, asked.candidate, out, Poison::nan, execution_of(step.c));
  if (!wrong.empty()) return Relation::violated(fmt::format("{}: {}", what, wrong));
  const std::string difference = first_difference(other, out);
  if (difference.empty()) return Relation::held();
  wrong = wrong_outputs(asked, asked.candidate, step, out);
  if (!wrong.empty()) return Relation::violated(fmt::format("{}: {}", what, wrong));
  if ((asked.bound & bit_of(Promise::pages)) != 0)
    return Relation::violated(fmt::format("{}: {}", what, difference));
  return Relation::held();
}

// Gives to sequence b the first `count` tokens of sequence 0, and what they mean.
void copy_prefix(const Inputs& in, Index b, Index count) {
  for (const Tensor* tensor : {&in.token_k, &in.token_v, &in.k, &in.v, &in.k_scales, &in.v_scales,
                               &in.k_absolute, &in.v_absolute}) {
    const TensorView& t = tensor->view();
    if (!t) continue;
    for_each_index({1, t.shape[1], count, t.shape[3]}, [&](Index, Index h, Index j, Index d) {
      store(t, t.at(b, h, j, d), load(t, t.at(0, h, j, d)));
    });
  }
}

// The tokens of the pages that two sequences both fill.
Index in_whole_pages(const Case& c, Index b) {
  return std::min(length_of(c, 0), length_of(c, b)) / c.cache.page * c.cache.page;
}

}  // namespace

Relation own_pages(const AskedForward& asked) {
  const Abilities can = asked.candidate.abilities();
  if (!can.pages) return Relation::not_applicable(no_pages);
  if (!can.append) return Relation::not_applicable("the candidate does not append");
  const ForwardStep own = with_pages(asked.step, PagesFrom::writer);
  if (const std::string why = asked.candidate.unsupported(own.call(asked.base)); !why.empty())
    return Relation::not_applicable(why);
  return same_or_right(asked, own, asked.base, "over pages that its own append wrote");
}

Relation shared_pages(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  const Case& c = step.c;
  if (!asked.candidate.abilities().pages) return Relation::not_applicable(no_pages);
  if (c.cache.kind != CacheSpec::Kind::paged)
    return Relation::not_applicable("a sequence has one page");
  const Inputs changed(step.in);
  Index shared = 0;
  for (Index b = 1; b < c.shape.batch; ++b) {
    const Index first = std::max(start_of(c, 0), start_of(c, b)), count = in_whole_pages(c, b);
    copy_prefix(changed, b, count);
    shared += std::max<Index>(0, count - first) / c.cache.page;
  }
  if (shared == 0) return Relation::not_applicable("no two sequences have whole pages");
  const ForwardStep apart{c, changed, step.with_lse, step.conventions};
  const Outputs out = apart.outputs();
  const std::string wrong = run_guarded(apart, asked.candidate, out, Poison::nan, execution_of(c));
  if (!wrong.empty()) return Relation::violated(wrong);
  return same_or_right(asked, with_pages(apart, PagesFrom::sharing), out,
                       "sequences share pages with the same tokens");
}

}  // namespace assay
