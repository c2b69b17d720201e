#include "harness/judging/execute.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <initializer_list>
#include <span>
#include <vector>

#include "harness/judging/append.h"
#include "harness/judging/behaviour.h"
#include "harness/judging/invariance.h"
#include "harness/judging/painter.h"
#include "harness/judging/quantization.h"
#include "harness/judging/refusals.h"
#include "harness/judging/variants.h"
#include "harness/text.h"
#include "oracle/backward_verdict.h"
#include "problem/clock.h"

namespace assay {
namespace {

constexpr const char* other_order = "the candidate may add up in another order there";

// What the runs after the first gave.
struct Repeated {
  std::string wrong;       // what a call did wrong
  bool answered = true;    // that call said OK
  std::string difference;  // of the first run that differs from the first of all
  int runs = 1, others = 0;
  // All runs with the same poison agree; all runs but the first agree.
  bool by_poison = true, first_alone = true;
};

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
  // By chance the line that reproduces this passes, so it runs each call often.
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

bool CaseRun::supported(std::initializer_list<Call> calls) const {
  turn(Turn::candidate);
  const Abilities has = candidate.abilities();
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

// The same where the candidate has overwritten what it should not: its outputs are judged for the
// cause alone.
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
// `take(verdict)` puts the verdict into the result. Returns whether the case may go on; if it may
// not, its result is complete.
template <class Step, class Take>
bool judge_step(const CaseRun& run, const Step& step, const typename Step::Out& first,
                const JudgeOptions& judging, const Take& take) {
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
  take(own);
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

// What is asked of a case whose line is drawn for it.
bool is_drawn(const CaseRun& run) {
  for (const LayoutKind l : {run.c.q_layout, run.c.k_layout, run.c.v_layout, run.c.o_layout})
    if (l == LayoutKind::distant) return false;  // there is no room for two such calls
  return run.candidate.abilities().own_process &&
         is_asked_of_state(run.result.line, run.options.state_of_every);
}

Promises bound_of(const CaseRun& run) {
  return run.candidate.abilities().promises | run.options.required;
}

// Whether the candidate must hold a relation that asks for what only some kernels promise.
bool is_bound_to(const CaseRun& run, std::string_view relation) {
  const AsksPromise* row = promise_of(relation);
  return row && (bound_of(run) & bit_of(row->promise)) != 0;
}

// The relations of a step, those about the bits of a row, and those about what the candidate keeps.
template <class Step>
std::vector<RelationOf<Step>> relations_of(const CaseRun& run, const Step& step) {
  const auto own = step.relations();
  std::vector<RelationOf<Step>> all(own.begin(), own.end());
  for (const RelationOf<Step>& r : invariances_of(step))
    if (is_drawn(run) || is_bound_to(run, r.name)) all.push_back(r);
  if (run.candidate.abilities().variants > 1) all.push_back({"variants", every_variant<Step>});
  if (is_drawn(run))
    for (const RelationOf<Step>& r : state_relations<Step>) all.push_back(r);
  return all;
}

// Asks a relation, as far as the candidate must hold it. What it need not hold is asked of drawn
// cases alone, and tells what its bits depend on.
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

// The wrong calls that the kernel does not refuse are told together. Returns how many calls there
// were.
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

void keep_pictures(const CaseRun& run, const std::optional<Painter>& painter) {
  if (painter && run.result.was_compared())
    run.result.pictures = painter->pictures(run.result.verdict.row_tile);
}

void keep_weights(const CaseRun& run, const ForwardStep& step, const Outputs& outputs) {
  const Verdict& v = run.result.verdict;
  if (!run.options.pictures || v.outcome != Outcome::fail || !run.result.pictures) return;
  const std::optional<Contract> own =
      declared<Contract>(run.candidate, step.call(outputs), run.how);
  run.result.pictures->weights = weights_of(step.in.problem, outputs.view(), own ? &*own : nullptr,
                                            v, run.options.oracle_threads);
}

Painter* address_of(std::optional<Painter>& painter) { return painter ? &*painter : nullptr; }

// Counts what was judged bit for bit. Returns false, and completes the result, if something was
// wrong.
bool take_bits(const CaseRun& run, Output output, const JudgedBits& judged) {
  if (!judged.asked) return true;
  Verdict& v = run.result.verdict;
  Compared& of = v.outputs[output];
  of.elements += judged.elements;
  if (judged.wrong.empty()) {
    of.inside += judged.elements;
    v.inside += judged.elements;
    v.exact += judged.elements;
  }
  if (!judged.wrong.empty()) run.end(Outcome::fail, judged.wrong);
  return judged.wrong.empty();
}

// Completes the result of a candidate that was judged for nothing else.
void pass_by_bits(const CaseRun& run, const char* reason) {
  Verdict& v = run.result.verdict;
  v.outcome = Outcome::pass;
  v.reason = reason;
  v.contract = "the rule, bit for bit";
  run.end(v.outcome, v.reason);
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

// Judges what a candidate writes into pages. Returns whether it did and nothing was wrong.
bool judge_writer(const CaseRun& run, const Inputs& inputs) {
  run.turn(Turn::candidate);
  try {
    const JudgedBits stored = judge_append(run.c, run.candidate, inputs);
    return take_bits(run, Output::tokens, stored) && stored.asked &&
           ask_more(run, appending(run.options.around));
  } catch (const CandidateError& e) {
    return run.end(Outcome::fail, e.what()), false;
  }
}

void run_attention(const CaseRun& run) {
  run.turn(Turn::inputs);
  auto start = Clock::now();
  const Inputs inputs(run.c, run.options.around);
  ForwardStep step{run.c, inputs, run.candidate.abilities().lse, run.conventions()};
  const Outputs outputs = step.outputs();
  run.result.seconds.generate = seconds_since(start);
  if (!run.supported({step.call(outputs)})) {
    // A candidate that does not read such a cache may write it, and is judged for that alone then.
    if (run.result.outcome == Outcome::unsupported && judge_writer(run, inputs))
      pass_by_bits(run, "every token is stored by the rule, bit for bit");
    return;
  }
  std::optional<Painter> painter;
  if (run.options.pictures) painter.emplace(inputs.problem);
  const auto take = [&](Verdict v) { run.result.verdict = std::move(v); };
  const bool goes_on = judge_step(run, step, outputs, run.judging(address_of(painter)), take);
  step.conventions = run.conventions();
  if (goes_on) {
    judge_writer(run, inputs);
    if (run.result.outcome != Outcome::fail) ask_relations(run, step, outputs);
  }
  keep_pictures(run, painter);
  keep_weights(run, step, outputs);
}

// The gradients are computed from the candidate's own O and LSE, or from those of the host. They
// are judged first.
void run_backward(const CaseRun& run) {
  run.turn(Turn::inputs);
  auto start = Clock::now();
  const std::unique_ptr<Candidate> host = forward_by_host(run.candidate, run.c);
  std::optional<CaseRun> of_host;
  if (host)
    of_host.emplace(CaseRun{run.c, *host, run.options, run.how, run.result, host->conventions()});
  const CaseRun& first = of_host ? *of_host : run;
  const Inputs inputs(run.c, run.options.around);
  const ForwardStep forward{run.c, inputs, first.candidate.abilities().lse, first.conventions()};
  const Outputs outputs = forward.outputs();
  BackwardStep backward{run.c, inputs, outputs, run.conventions(),
                        run.candidate.abilities().d_sink};
  const GradientOutputs gradients = backward.outputs();
  run.result.seconds.generate = seconds_since(start);
  if (!run.supported({backward.call(gradients)}) || !first.supported({forward.call(outputs)}))
    return;
  std::optional<Painter> painter;
  if (run.options.pictures) painter.emplace(inputs.problem);
  const auto take = [&](Verdict v) { run.result.verdict = std::move(v); };
  const auto add = [&](const Verdict& v) { add_gradients(run.result.verdict, v); };
  if (judge_step(first, forward, outputs, first.judging(address_of(painter)), take)) {
    backward.conventions = run.conventions();
    const bool goes_on =
        judge_step(run, backward, gradients, run.judging(address_of(painter)), add);
    backward.conventions = run.conventions();
    if (goes_on) ask_relations(run, backward, gradients);
  }
  keep_pictures(run, painter);
}

// Judges what a candidate does with weights apart from products. Returns whether it did something
// and nothing was wrong.
bool judge_weights(const CaseRun& run, const ProductInputs& inputs) {
  run.turn(Turn::candidate);
  try {
    const JudgedBits stored = judge_quantizer(run.c, run.candidate);
    if (!take_bits(run, Output::w, stored)) return false;
    if (stored.asked && !ask_more(run, quantizing())) return false;
    const JudgedBits read = judge_dequantizer(run.c, run.candidate, inputs);
    if (!take_bits(run, Output::w, read)) return false;
    if (read.asked && !ask_more(run, dequantizing(run.options.around))) return false;
    return stored.asked || read.asked;
  } catch (const CandidateError& e) {
    return run.end(Outcome::fail, e.what()), false;
  }
}

void run_product(const CaseRun& run) {
  run.turn(Turn::inputs);
  auto start = Clock::now();
  const ProductInputs inputs(run.c, run.options.around);
  const ProductStep step{run.c, inputs};
  const ProductOutput outputs = step.outputs();
  run.result.seconds.generate = seconds_since(start);
  if (!run.supported({step.call(outputs)})) {
    // A candidate without this product may have a quantizer or a dequantizer, which are judged
    // alone then.
    if (run.result.outcome == Outcome::unsupported && judge_weights(run, inputs))
      pass_by_bits(run, "every weight is that of the rule, bit for bit");
    return;
  }
  const bool quantized = run.c.product.weights == Weights::quantized;
  std::optional<Painter> painter;
  if (run.options.pictures) painter.emplace(run.c.product.m, run.c.product.n);
  const auto take = [&](Verdict v) {
    run.result.verdict = std::move(v);
    if (quantized)
      run.result.quantization = quantization_error(
          inputs.problem, [&](Index k, Index n) { return original_weight(run.c, k, n); });
  };
  if (judge_step(run, step, outputs, run.judging(address_of(painter)), take)) {
    judge_weights(run, inputs);
    if (run.result.outcome != Outcome::fail) ask_relations(run, step, outputs);
  }
  keep_pictures(run, painter);
}

constexpr struct {
  Operation operation;
  void (*run)(const CaseRun&);
} operations[] = {
    {Operation::attention, run_attention},
    {Operation::backward, run_backward},
    {Operation::product, run_product},
};

void check_memory(const Case& c) {
  const auto pages = static_cast<Index>(sysconf(_SC_PHYS_PAGES));
  const Index available = pages * static_cast<Index>(sysconf(_SC_PAGESIZE));
  // The case needs its inputs and a copy of them, two sets of outputs, and the oracle's doubles of
  // one head.
  const Index oracle = 32 * c.shape.keys * (c.shape.dim + c.shape.value_dim);
  const Index needed = 4 * case_bytes(c) + (c.operation == Operation::product ? 0 : oracle);
  if (needed > available)
    throw CaseError(0, fmt::format("the case needs about {} MiB; this machine has {} MiB of memory",
                                   needed >> 20, available >> 20));
}

}  // namespace

std::string check_command(const std::string& candidate, const std::string& line,
                          Surroundings around) {
  const char* pages = around == Surroundings::page_behind   ? " --guard-pages behind"
                      : around == Surroundings::page_before ? " --guard-pages before"
                                                            : "";
  return fmt::format("assay check --candidate {}{} --case {}", shell_word(candidate), pages,
                     shell_quoted(line));
}

std::string further_options(const ExecuteOptions& options) {
  std::vector<std::string> words;
  for (const auto& row : table_of<Promise>)
    if ((options.required & bit_of(row.value)) != 0) words.push_back(requirement_of(row.value));
  std::string text;
  if (!words.empty()) text = fmt::format(" --require {}", fmt::join(words, ","));
  if (options.refusals) text += " --refusals";
  return text;
}

bool is_asked_of_state(const std::string& line, int every) {
  return every > 0 && hash_of_line(line) % static_cast<std::uint64_t>(every) == 0;
}

bool has_independent_zero_mean(const Case& c) {
  // The errors of rows that share a few keys are not independent.
  const bool many_keys = c.shape.keys * 4 >= c.shape.rows;
  const bool even_scores =
      c.scores == Scores::normal || c.scores == Scores::flat || c.scores == Scores::huge;
  return many_keys && even_scores && c.values == Values::normal && c.pokes.empty() && !c.sink &&
         c.hidden == Hidden::generated;
}

CaseResult failed_result(const std::string& line, const std::string& candidate, Outcome outcome,
                         const std::string& reason, Surroundings around) {
  CaseResult result;
  result.line = line;
  result.candidate = candidate;
  result.reproduce = check_command(candidate, line, around);
  result.outcome = outcome;
  result.reason = reason;
  return result;
}

CaseResult execute(const Case& c, Candidate& candidate, const ExecuteOptions& options) {
  CaseResult result;
  result.line = print_case(c);
  result.candidate = candidate.name();
  result.reproduce = check_command(result.candidate, result.line, options.around);
  result.reproduce += further_options(options);
  const bool product = c.operation == Operation::product;
  result.dtype = product ? traits(c.product.format).name : format(c.dtype).name;
  if (product) result.tail_step = tail_step_of(c.product.format);
  check_memory(c);
  const CaseRun run{c, candidate, options, execution_of(c), result};
  if (const std::string missing = candidate.features().missing(c); !missing.empty()) {
    run.end(Outcome::unsupported, missing);
    return result;
  }
  try {
    for (const auto& row : operations)
      if (row.operation == c.operation) row.run(run);
  } catch (const CandidateDeclined& e) {
    run.end(Outcome::unsupported, e.what());
  }
  return result;
}

}  // namespace assay
