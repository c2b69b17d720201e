// Inside harness/judging/: relations about what a candidate keeps from one call to the next. They
// are asked of candidates that run in a process of their own, as in the program that will use them.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "harness/judging/step.h"
#include "harness/work.h"

namespace assay {

// A case of the same shapes, dtypes and layouts, so that its tensors lie at the same addresses in
// the process of a library. All that may be called contents differs: elements, masks, lengths,
// starts, offsets, documents, sinks, the scale, as far as the candidate does such a case.
Case with_other_contents(const Case& c, Candidate& candidate);

// A number that the line determines, on any machine. It chooses which questions a case is asked.
std::uint64_t hash_of_line(const std::string& line);

// Says what grew from each of these moments to the next, between which there were so many calls, by
// at least a smallest block of memory, a page or a descriptor for each call; empty if nothing did.
std::string growth_of(const std::vector<UsedMemory>& seen, int calls_between);

// A step of the case that with_other_contents() gives. It must not move, because its parts refer to
// one another.
template <class Step>
struct Changed;

template <>
struct Changed<ForwardStep> {
  explicit Changed(const Asked<ForwardStep>& like);
  Case c;
  Inputs in;
  ForwardStep step;
  std::string wrong;  // what the candidate did wrong while the step was made
};
template <>
struct Changed<BackwardStep> {
  explicit Changed(const Asked<BackwardStep>& like);
  Case c;
  Inputs in;
  Outputs forward;  // what the candidate computes, or the host for it
  BackwardStep step;
  std::string wrong;
};
template <>
struct Changed<ProductStep> {
  explicit Changed(const Asked<ProductStep>& like);
  Case c;
  ProductInputs in;
  ProductStep step;
  std::string wrong;
};

// What is wrong with these outputs; empty if their bounds hold.
template <class Step>
std::string wrong_outputs(const Asked<Step>& asked, Candidate& candidate, const Step& step,
                          const typename Step::Out& out) {
  const std::optional<Arithmetic> arithmetic =
      candidate.arithmetic(step.call(out), execution_of(step.c));
  const Verdict v = step.judge(out, arithmetic, asked.judging);
  return v.outcome == Outcome::fail ? v.reason : std::string();
}

// Says how another problem is wrong: by itself, in a fresh process too, or only after the first
// one.
template <class Step>
std::string told_of_other(const Asked<Step>& asked, const Changed<Step>& other,
                          const std::string& wrong) {
  const std::string line = print_case(other.c);
  if (const Guest* guest = asked.candidate.guest()) {
    const std::unique_ptr<Candidate> fresh = guest->fresh();
    const typename Step::Out out = other.step.outputs();
    // It is asked first, so that it declares its arithmetic.
    std::string alone = fresh->unsupported(other.step.call(out));
    if (alone.empty())
      alone = run_guarded(other.step, *fresh, out, Poison::nan, execution_of(other.c));
    if (alone.empty()) alone = wrong_outputs(asked, *fresh, other.step, out);
    if (!alone.empty())
      return fmt::format("another case is wrong, and by itself, in a fresh process: '{}': {}", line,
                         alone);
  }
  return fmt::format("'{}', computed next at the same addresses: {}", line, wrong);
}

// Other contents at the same addresses, judged by their bounds; then the first ones again. It finds
// what is kept by the address of a tensor: packed weights, masks, lengths, scales.
template <class Step>
Relation other_contents(const Asked<Step>& asked) {
  const Changed<Step> other(asked);
  if (!other.wrong.empty()) return Relation::violated(other.wrong);
  asked.begins(other.c);
  const typename Step::Out out = other.step.outputs();
  if (const std::string why = asked.candidate.unsupported(other.step.call(out)); !why.empty())
    return Relation::not_applicable(why);
  const auto how = execution_of(other.c);
  std::string wrong = run_guarded(other.step, asked.candidate, out, Poison::nan, how);
  if (wrong.empty()) wrong = wrong_outputs(asked, asked.candidate, other.step, out);
  if (!wrong.empty()) return Relation::violated(told_of_other(asked, other, wrong));
  asked.begins(asked.step.c);
  return same_after(asked, asked.step, how);
}

// The first call in a process. Other bits that are inside their bounds are no fault of a candidate
// that promises no bits: it may have chosen another algorithm.
template <class Step>
Relation first_call(const Asked<Step>& asked) {
  const Guest* guest = asked.candidate.guest();
  if (!guest) return Relation::not_applicable("a process of this kind takes seconds to start");
  const std::unique_ptr<Candidate> fresh = guest->fresh();
  const Step& step = asked.step;
  const typename Step::Out out = step.outputs();
  if (const std::string why = fresh->unsupported(step.call(out)); !why.empty())
    return Relation::violated("a fresh process declines the call: " + why);
  std::string wrong = run_guarded(step, *fresh, out, Poison::nan, execution_of(step.c));
  if (!wrong.empty()) return Relation::violated(wrong);
  const std::string difference = first_difference(asked.base, out);
  if (difference.empty()) return Relation::held();
  wrong = wrong_outputs(asked, *fresh, step, out);
  if (!wrong.empty()) return Relation::violated("in a fresh process: " + wrong);
  if ((asked.bound & bit_of(Promise::runs)) != 0) return Relation::violated(difference);
  return Relation::not_applicable(
      fmt::format("other bits, inside their bounds, and none are promised: {}", difference));
}

// The same call, so many times that a counter, a pool or a leak shows.
template <class Step>
Relation many_calls(const Asked<Step>& asked) {
  constexpr int calls = 200, window = 50;
  constexpr double most_work = 1 << 16;
  if (multiply_adds(asked.step.c) > most_work)
    return Relation::not_applicable("the case is too large to be computed 200 times");
  const typename Step::Out out = asked.step.outputs();
  const auto how = execution_of(asked.step.c);
  std::vector<UsedMemory> seen;
  int first = 0, differing = 0;
  std::string difference;
  for (int k = 1; k <= calls; ++k) {
    const std::string wrong = run_guarded(asked.step, asked.candidate, out, Poison::nan, how);
    if (!wrong.empty()) return Relation::violated(fmt::format("call {}: {}", k, wrong));
    const std::string now = first_difference(asked.base, out);
    if (!now.empty() && differing++ == 0) first = k, difference = now;
    if (Guest* guest = asked.candidate.guest(); guest && k % window == 0)
      seen.push_back(guest->used_memory());
  }
  if (differing > 0 && differing == calls - first + 1)
    return Relation::violated(fmt::format("from call {} on: {}", first, difference));
  if (differing > 0)
    return Relation::violated(fmt::format("not deterministic: {} of {} calls differ: call {}: {}",
                                          differing, calls, first, difference));
  return Relation::unless(growth_of(seen, window));
}

// The call and one with other contents at once, from two threads, each compared with itself alone.
template <class Step>
Relation two_at_once(const Asked<Step>& asked) {
  Guest* guest = asked.candidate.guest();
  if (!guest || !asked.candidate.abilities().at_once)
    return Relation::not_applicable("the candidate does not allow two calls at once");
  constexpr double most_work = 1 << 22, work_of_all_rounds = 1 << 22;
  const double work = std::max(1.0, multiply_adds(asked.step.c));
  if (work > most_work) return Relation::not_applicable("the case is too large to be repeated");
  const int rounds = static_cast<int>(std::clamp(work_of_all_rounds / work, 4.0, 64.0));
  const Changed<Step> other(asked);
  if (!other.wrong.empty()) return Relation::violated(other.wrong);
  const typename Step::Out alone = other.step.outputs(), one = asked.step.outputs(),
                           two = other.step.outputs();
  if (const std::string why = asked.candidate.unsupported(other.step.call(two)); !why.empty())
    return Relation::not_applicable(why);
  const auto how = execution_of(asked.step.c);
  std::string wrong = run_guarded(other.step, asked.candidate, alone, Poison::nan, how);
  for (const auto* out : {&one, &two})
    for (const auto& [output, t] : out->named()) poison(*t, Poison::nan);
  if (wrong.empty())
    wrong = failure_in([&] {
      return guest->run_at_once({asked.step.call(one), how}, {other.step.call(two), how}, rounds);
    });
  if (!wrong.empty()) return Relation::violated(wrong);
  clear_unread(asked.step, one);
  clear_unread(other.step, two);
  std::string difference = first_difference(asked.base, one);
  if (difference.empty()) difference = first_difference(alone, two);
  return Relation::unless(difference);
}

template <class Step>
constexpr RelationOf<Step> state_relations[] = {
    {"many-calls", many_calls<Step>},
    {"other-contents", other_contents<Step>},
    {"first-call", first_call<Step>},
    {"two-at-once", two_at_once<Step>},
};

}  // namespace assay
