#include "harness/judging/case_run.h"

#include <algorithm>

namespace assay {

bool CaseRun::supported(std::initializer_list<Call> calls) const {
  turn(Turn::candidate);
  const Abilities& has = candidate.abilities();
  const auto why_not = [&](int variant) {
    candidate.use_variant(variant);
    for (const Call& call : calls)
      if (std::string why = lacking_ability(candidate, call); !why.empty()) return why;
    for (const Call& call : calls)
      if (std::string why = candidate.unsupported(call); !why.empty()) return why;
    return std::string();
  };
  try {
    const std::string why = why_not(0);
    if (why.empty()) return true;
    for (int variant = 1; has.variants_differ && variant < has.variants; ++variant)
      if (why_not(variant).empty()) return true;
    end(Outcome::unsupported, why);
  } catch (const CandidateError& e) {
    end(Outcome::fail, e.what());
  }
  return false;
}

JudgeOptions CaseRun::judging(Painter* painter) const {
  JudgeOptions judging;
  judging.conventions = conventions();
  judging.threads = options.oracle_threads;
  judging.sample_rows = c.sample_rows;
  judging.seed = c.seed;
  judging.ball_rows = options.ball_rows;
  judging.power = options.power;
  judging.evidence = options.evidence;
  judging.statistics = has_independent_zero_mean(c);
  judging.without_lse = !candidate.abilities().lse;
  if (painter) judging.judged = [painter](const Element& e) { painter->add(e); };
  judging.untouched = [](const TensorView& t, Index at) {
    return holds_poison(t, at, Poison::nan);
  };
  return judging;
}

bool is_drawn(const CaseRun& run) {
  for (const LayoutKind l : {run.c.q_layout, run.c.k_layout, run.c.v_layout, run.c.o_layout})
    if (l == LayoutKind::distant) return false;  // there is no room for two such calls
  return run.candidate.abilities().own_process &&
         is_asked_of_state(run.result.line, run.options.state_of_every);
}

Promises bound_of(const CaseRun& run) {
  return run.candidate.abilities().promises | run.options.required;
}

bool is_bound_to(const CaseRun& run, std::string_view relation) {
  const AsksPromise* row = promise_of(relation);
  return row && (bound_of(run) & bit_of(row->promise)) != 0;
}

std::size_t take_refusals(const CaseRun& run, const Relations& found) {
  std::string names, first;
  std::size_t answered = 0, wrong = 0;
  for (const auto& [name, relation] : found) {
    if (relation.how == Relation::How::not_applicable) continue;
    ++answered;
    if (relation.how == Relation::How::held) continue;
    ++wrong;
    names += ' ' + name;
    if (first.empty()) first = relation.why;
  }
  run.result.relations.insert(found.begin(), found.end());
  if (wrong > 0)
    run.end(Outcome::fail, fmt::format("{} of {} calls that cannot be are not refused:{}; {}",
                                       wrong, answered, names, first));
  return answered;
}

namespace {

// Counts what was judged bit for bit. Returns false, and completes the result, if something was
// wrong.
bool take_bits(const CaseRun& run, Output output, const JudgedBits& judged) {
  Verdict& v = run.result.verdict;
  Compared& of = v.outputs[output];
  of.elements += judged.elements;
  if (judged.wrong.empty()) {
    of.inside += judged.elements;
    v.inside += judged.elements;
    v.exact += judged.elements;
  }
  if (judged.wrong.empty()) return true;
  if (judged.cause && run.options.diagnosis) explain_by(*judged.cause, run.result.diagnosis);
  run.end(Outcome::fail, judged.wrong);
  return false;
}

// Asks what is asked of an operation beside its bits. Returns whether nothing was wrong.
bool ask_more(const CaseRun& run, const BitsOperation& of) {
  if (!run.options.relations) return true;
  if (is_drawn(run)) {
    const Relations found = ask_state(of, run.c, run.candidate, [&](const std::string& relation) {
      run.asks(relation.c_str(), run.c);
    });
    run.result.relations.insert(found.begin(), found.end());
    for (const auto& [name, relation] : found)
      if (relation.how == Relation::How::violated)
        return run.end(Outcome::fail, fmt::format("relation {} {}", name, text_of(relation))),
               false;
  }
  if (!run.options.refusals) return true;
  run.asks("refuses", run.c);
  take_refusals(run, ask_for_refusals(of, run.c, run.candidate));
  return run.result.outcome != Outcome::fail;
}

}  // namespace

void judge_bits(const CaseRun& run, const std::vector<BitsOperation>& operations, Bits how) {
  const char* right = nullptr;
  try {
    for (const BitsOperation& of : operations) {
      run.turn(Turn::candidate);
      const JudgedBits judged = of.judge(run.c, run.candidate);
      if (!judged.asked) continue;
      right = of.right;
      if (!take_bits(run, of.output, judged) || !ask_more(run, of)) return;
    }
  } catch (const CandidateError& e) {
    return run.end(Outcome::fail, e.what());
  }
  if (how == Bits::besides || !right) return;
  Verdict& v = run.result.verdict;
  v.outcome = Outcome::pass;
  v.reason = right;
  v.contract = "the rule, bit for bit";
  run.end(v.outcome, v.reason);
}

}  // namespace assay
