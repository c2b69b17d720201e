// Inside harness/judging/: one case on its way through the judging, and what is done with each of
// its steps.
#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "harness/judging/behaviour.h"
#include "harness/judging/execute.h"
#include "harness/judging/invariance.h"
#include "harness/judging/judged_bits.h"
#include "harness/judging/painter.h"
#include "harness/judging/product_batch.h"
#include "harness/judging/refusals.h"
#include "harness/judging/state.h"
#include "harness/judging/variants.h"
#include "problem/clock.h"

namespace assay {

// One case on its way through the judging.
struct CaseRun {
  const Case& c;
  Candidate& candidate;
  const ExecuteOptions& options;
  const kernels::Execution how;
  CaseResult& result;
  // What is declared: by the line, or else by the candidate.
  const Conventions declared = c.conventions.over(candidate.conventions());

  // What is declared, and what the verdict has found instead.
  Conventions conventions() const { return declared.over(result.verdict.differs); }

  void turn(Turn whose) const {
    if (options.begins) options.begins({whose, "", print_case(c)});
  }
  // The candidate computes this problem for a relation.
  void asks(const char* relation, const Case& problem) const {
    if (options.begins) options.begins({Turn::candidate, relation, print_case(problem)});
  }
  void end(Outcome outcome, std::string reason) const {
    result.outcome = outcome;
    result.reason = std::move(reason);
  }
  // A single run may pass by chance, so the line that reproduces this makes each call often.
  void not_deterministic(const std::string& why) const {
    constexpr int often = 100;
    end(Outcome::fail, fmt::format("not deterministic: {}", why));
    result.reproduce += fmt::format(" --repeat {}", std::max(often, options.repeat));
  }
  // Takes the first variant that does all of the calls. Returns false, and puts the reason into the
  // result, if there is none.
  bool supported(std::initializer_list<Call> calls) const;
  JudgeOptions judging(Painter* painter) const;
};

// Whether the case is one of those that are asked more: its line decides (is_asked_of_state).
bool is_drawn(const CaseRun& run);
Promises bound_of(const CaseRun& run);
// Whether the candidate must hold a relation that asks for what only some kernels promise.
bool is_bound_to(const CaseRun& run, std::string_view relation);
// The wrong calls that the kernel does not refuse are told together. Returns how many calls there
// were.
std::size_t take_refusals(const CaseRun& run, const Relations& found);

// Judges what a rule gives bit for bit, as far as the candidate does it. What is wrong completes
// the result. With `alone`, nothing else of the case is judged, and the case passes if all of it is
// right.
enum class Bits : bool { besides, alone };
void judge_bits(const CaseRun& run, const std::vector<BitsOperation>& operations, Bits how);

// How the runs after the first compare with it.
struct Repeated {
  std::string wrong;       // what a call did wrong
  bool answered = true;    // that call said OK
  std::string difference;  // between the first run and the earliest one that differs from it
  int runs = 1, others = 0;
  // All runs with the same poison agree; all runs but the first agree.
  bool by_poison = true, first_alone = true;
};

// Repeats a guarded call with large numbers and NaN in turn. If a run differs from the first, there
// are at least 8 runs in all, so that what follows from the poison alone can be told from chance.
template <class Step>
Repeated run_again(const CaseRun& run, const Step& step, const typename Step::Out& first) {
  constexpr int enough = 8;
  std::optional<typename Step::Out> second;
  Repeated r;
  for (int k = 1; k < run.options.repeat || (r.others > 0 && k < enough); ++k) {
    const bool even = k % 2 == 0;
    typename Step::Out out = step.outputs();
    r.wrong = run_guarded(step, run.candidate, out, even ? Poison::nan : Poison::large, run.how,
                          &r.answered);
    if (!r.wrong.empty()) return r;
    const std::string difference = first_difference(first, out);
    if (!difference.empty() && r.difference.empty()) r.difference = difference;
    if (!difference.empty()) ++r.others;
    const bool as_second = !second || first_difference(*second, out).empty();
    r.by_poison = r.by_poison && (even ? difference.empty() : as_second);
    r.first_alone = r.first_alone && !difference.empty() && as_second;
    ++r.runs;
    if (!second) second = std::move(out);
  }
  return r;
}

// Looks for the cause of outputs that fail.
template <class Step>
void look_for_cause(const CaseRun& run, const Step& step, const typename Step::Out& first,
                    const std::optional<Arithmetic>& arithmetic, const Verdict& failed,
                    const JudgeOptions& judging) {
  if (!run.options.diagnosis) return;
  Diagnosis& d = run.result.diagnosis;
  d = step.diagnose(first, arithmetic, failed, judging);
  if (d.explanations.empty() && is_right_in_any_order(step, first, arithmetic, judging))
    explain_by(sums_otherwise, d);
  run.turn(Turn::candidate);
  if (is_right_on_zeros(step, run.candidate, run.how, first, arithmetic, judging))
    explain_by(adds_to_output, d);
  run.turn(Turn::verdict);
}

// The same where the candidate has overwritten what it should not. Its outputs are judged only to
// find the cause.
template <class Step>
void look_for_cause_of_writes(const CaseRun& run, const Step& step, const typename Step::Out& first,
                              JudgeOptions judging) {
  judging.judged = nullptr;
  judging.power = judging.statistics = false;
  run.turn(Turn::verdict);
  const std::optional<Arithmetic> arithmetic = run.candidate.arithmetic(step.call(first), run.how);
  const Verdict own = step.judge(first, arithmetic, judging);
  if (own.outcome == Outcome::fail) look_for_cause(run, step, first, arithmetic, own, judging);
  else if (run.options.diagnosis) explain_by(writes_beside, run.result.diagnosis);
}

// Makes the guarded calls, judges the outputs of the first, and compares the outputs of all.
// Returns whether the case may go on; if it may not, its result is complete.
template <class Step>
bool judge_step(const CaseRun& run, const Step& step, const typename Step::Out& first,
                Painter* painter) {
  const JudgeOptions judging = run.judging(painter);
  run.turn(Turn::candidate);
  auto start = Clock::now();
  bool answered = false;
  const std::string wrong =
      run_guarded(step, run.candidate, first, Poison::nan, run.how, &answered);
  if (!wrong.empty()) {
    if (answered) look_for_cause_of_writes(run, step, first, judging);
    return run.end(Outcome::fail, wrong), false;
  }
  run.result.seconds.candidate += seconds_since(start);
  const Repeated repeated = run_again(run, step, first);
  if (!repeated.wrong.empty()) {
    if (repeated.answered) look_for_cause_of_writes(run, step, first, judging);
    return run.end(Outcome::fail, repeated.wrong), false;
  }

  start = Clock::now();
  run.turn(Turn::verdict);
  const std::optional<Arithmetic> arithmetic = run.candidate.arithmetic(step.call(first), run.how);
  const Verdict own = step.judge(first, arithmetic, judging);
  step.add_to(run.result, own);
  if (own.outcome == Outcome::fail) look_for_cause(run, step, first, arithmetic, own, judging);
  run.result.seconds.judge += seconds_since(start);
  const Verdict& v = run.result.verdict;
  run.end(v.outcome, v.reason);
  if (v.outcome == Outcome::fail || v.outcome == Outcome::error) return false;
  if (repeated.difference.empty()) return true;
  if (repeated.by_poison)
    run.end(Outcome::fail,
            fmt::format("poison: two runs whose {} were poisoned differently disagree: {}",
                        Step::what, repeated.difference));
  else if (repeated.first_alone)
    run.end(Outcome::fail,
            fmt::format("the first of {} runs differs from the others, which agree: {}",
                        repeated.runs, repeated.difference));
  else
    run.not_deterministic(fmt::format("{} of {} runs differ from the first: {}", repeated.others,
                                      repeated.runs, repeated.difference));
  return false;
}

// The relations of a step, those about the bits of a row, and those about what the candidate keeps.
template <class Step>
std::vector<RelationOf<Step>> relations_of(const CaseRun& run, const Step& step) {
  const auto own = step.relations();
  std::vector<RelationOf<Step>> all(own.begin(), own.end());
  for (const RelationOf<Step>& r : invariances_of(step))
    if (is_drawn(run) || is_bound_to(run, r.name)) all.push_back(r);
  if constexpr (std::is_same_v<Step, ProductStep>)
    if (run.candidate.abilities().batches) all.push_back({"batch", product_batch});
  if (run.candidate.abilities().variants > 1) all.push_back({"variants", every_variant<Step>});
  if (is_drawn(run))
    for (const RelationOf<Step>& r : state_relations<Step>) all.push_back(r);
  return all;
}

inline constexpr const char* other_order = "the candidate may add up in another order there";

// Asks a relation. One that the candidate need not hold is asked only of the cases that are asked
// more, and its answer tells what the bits of the candidate depend on.
template <class Step>
Relation ask(const CaseRun& run, const RelationOf<Step>& relation, const Asked<Step>& asked) {
  const bool bound = !relation.needs_promise || run.candidate.abilities().promises_bits ||
                     is_bound_to(run, relation.name);
  if (!bound && !is_drawn(run)) return Relation::not_applicable(other_order);
  Relation found = relation.ask(asked);
  if (!bound && found.how == Relation::How::violated)
    return Relation::differs_unpromised(found.why);
  return found;
}

template <class Step>
void ask_refusals(const CaseRun& run, const Asked<Step>& asked) {
  if (take_refusals(run, ask_for_refusals(asked)) == 0)
    run.end(Outcome::unsupported, "only a library can be called wrongly");
}

template <class Step>
void ask_relations(const CaseRun& run, const Step& step, const typename Step::Out& base) {
  if (!run.options.relations) return;
  JudgeOptions judging = run.judging(nullptr);
  judging.power = judging.statistics = false;
  judging.evidence = EvidenceRule::off;
  Relations& found = run.result.relations;
  for (const RelationOf<Step>& relation : relations_of(run, step)) {
    const std::function<void(const Case&)> begins = [&](const Case& problem) {
      run.asks(relation.name, problem);
    };
    const auto ask_it = [&] {
      begins(run.c);
      return ask<Step>(run, relation, {step, run.candidate, base, begins, judging, bound_of(run)});
    };
    try {
      found[relation.name] = ask_it();
      if (found[relation.name].how != Relation::How::violated) continue;
      if (ask_it().how != Relation::How::held) continue;
      return run.not_deterministic(
          fmt::format("relation {} was {}, and held when it was asked again", relation.name,
                      text_of(found[relation.name])));
    } catch (const CandidateDeclined& e) {
      found[relation.name] = Relation::not_applicable(e.what());
    } catch (const CandidateError& e) {
      found[relation.name] = Relation::violated(e.what());
    }
  }
  for (const auto& [name, relation] : found)
    if (relation.how == Relation::How::violated) {
      if (name == "after-another") explain_by(keeps_a_call, run.result.diagnosis);
      return run.end(Outcome::fail, fmt::format("relation {} {}", name, text_of(relation)));
    }
  if (!run.options.refusals) return;
  const std::function<void(const Case&)> begins = [](const Case&) {};
  run.asks("refuses", run.c);
  ask_refusals<Step>(run, {step, run.candidate, base, begins, judging});
}

}  // namespace assay
