#include "harness/judging/execute.h"

#include <fmt/format.h>
#include <unistd.h>

#include <initializer_list>

#include "harness/judging/append.h"
#include "harness/judging/painter.h"
#include "harness/judging/quantization.h"
#include "harness/judging/step.h"
#include "harness/text.h"
#include "oracle/backward_verdict.h"
#include "problem/clock.h"

namespace assay {
namespace {

constexpr const char* other_order = "the candidate may add up in another order there";

// What the runs after the first gave.
struct Repeated {
  std::string wrong;       // what a call did wrong
  std::string difference;  // of the first run that differs from the first of all
  int runs = 1, others = 0;
  // All runs with the same poison agree.
  bool by_poison = true;
};

// One case on its way through the judging.
struct CaseRun {
  const Case& c;
  Candidate& candidate;
  const ExecuteOptions& options;
  const kernels::Execution how;
  CaseResult& result;

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
  // Returns false, and puts the reason into the result, if the candidate does not do one of the
  // calls.
  bool supported(std::initializer_list<Call> calls) const;
  JudgeOptions judging(Painter* painter) const;
};

bool CaseRun::supported(std::initializer_list<Call> calls) const {
  turn(Turn::candidate);
  try {
    std::string why;
    for (const Call& call : calls)
      if (why.empty()) why = lacking_ability(candidate, call);
    for (const Call& call : calls)
      if (why.empty()) why = candidate.unsupported(call);
    if (why.empty()) return true;
    end(Outcome::unsupported, why);
  } catch (const CandidateError& e) {
    end(Outcome::fail, e.what());
  }
  return false;
}

JudgeOptions CaseRun::judging(Painter* painter) const {
  JudgeOptions judging;
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
    r.wrong = run_guarded(step, run.candidate, out, even ? Poison::nan : Poison::large, run.how);
    if (!r.wrong.empty()) return r;
    const std::string difference = first_difference(first, out);
    if (!difference.empty() && r.difference.empty()) r.difference = difference;
    if (!difference.empty()) ++r.others;
    const bool as_poisoned =
        even ? difference.empty() : !second || first_difference(*second, out).empty();
    r.by_poison = r.by_poison && as_poisoned;
    ++r.runs;
    if (!second) second = std::move(out);
  }
  return r;
}

// Makes the guarded calls, judges the outputs of the first, and compares the outputs of all.
// `take(verdict)` puts the verdict into the result. Returns whether the case may go on; if it may
// not, its result is complete.
template <class Step, class Take>
bool judge_step(const CaseRun& run, const Step& step, const typename Step::Out& first,
                const JudgeOptions& judging, const Take& take) {
  run.turn(Turn::candidate);
  auto start = Clock::now();
  const std::string wrong = run_guarded(step, run.candidate, first, Poison::nan, run.how);
  if (!wrong.empty()) return run.end(Outcome::fail, wrong), false;
  run.result.seconds.candidate += seconds_since(start);
  const Repeated repeated = run_again(run, step, first);
  if (!repeated.wrong.empty()) return run.end(Outcome::fail, repeated.wrong), false;

  start = Clock::now();
  run.turn(Turn::verdict);
  const std::optional<Arithmetic> arithmetic = run.candidate.arithmetic(step.call(first), run.how);
  const Verdict own = step.judge(first, arithmetic, judging);
  take(own);
  if (own.outcome == Outcome::fail && run.options.diagnosis)
    run.result.diagnosis = step.diagnose(first, arithmetic, own, judging);
  run.result.seconds.judge += seconds_since(start);
  const Verdict& v = run.result.verdict;
  run.end(v.outcome, v.reason);
  if (v.outcome == Outcome::fail || v.outcome == Outcome::error) return false;
  if (repeated.difference.empty()) return true;
  if (repeated.by_poison)
    run.end(Outcome::fail,
            fmt::format("poison: two runs whose {} were poisoned differently disagree: {}",
                        Step::what, repeated.difference));
  else
    run.not_deterministic(fmt::format("{} of {} runs differ from the first: {}", repeated.others,
                                      repeated.runs, repeated.difference));
  return false;
}

template <class Step>
void ask_relations(const CaseRun& run, const Step& step, const typename Step::Out& base) {
  if (!run.options.relations) return;
  const bool promises = run.candidate.abilities().promises_bits;
  Relations& found = run.result.relations;
  for (const RelationOf<Step>& relation : step.relations()) {
    const std::function<void(const Case&)> begins = [&](const Case& problem) {
      run.asks(relation.name, problem);
    };
    const auto ask = [&] {
      begins(run.c);
      return relation.needs_promise && !promises
                 ? Relation::not_applicable(other_order)
                 : relation.ask({step, run.candidate, base, begins});
    };
    try {
      found[relation.name] = ask();
      if (found[relation.name].how != Relation::How::violated) continue;
      if (ask().how != Relation::How::held) continue;
      return run.not_deterministic(
          fmt::format("relation {} was {}, and held when it was asked again", relation.name,
                      text_of(found[relation.name])));
    } catch (const CandidateDeclined& e) {
      found[relation.name] = Relation::not_applicable(e.what());
    }
  }
  for (const auto& [name, relation] : found)
    if (relation.how == Relation::How::violated)
      return run.end(Outcome::fail, fmt::format("relation {} {}", name, text_of(relation)));
}

void keep_pictures(const CaseRun& run, const std::optional<Painter>& painter) {
  if (painter && run.result.was_compared())
    run.result.pictures = painter->pictures(run.result.verdict.row_tile);
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

// Judges what a candidate writes into pages. Returns whether it did and nothing was wrong.
bool judge_writer(const CaseRun& run, const Inputs& inputs) {
  run.turn(Turn::candidate);
  try {
    const JudgedBits stored = judge_append(run.c, run.candidate, inputs);
    return take_bits(run, Output::tokens, stored) && stored.asked;
  } catch (const CandidateError& e) {
    return run.end(Outcome::fail, e.what()), false;
  }
}

void run_attention(const CaseRun& run) {
  run.turn(Turn::inputs);
  auto start = Clock::now();
  const Inputs inputs(run.c, run.options.around);
  const ForwardStep step{run.c, inputs, run.candidate.abilities().lse};
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
  if (judge_step(run, step, outputs, run.judging(address_of(painter)), take)) {
    judge_writer(run, inputs);
    if (run.result.outcome != Outcome::fail) ask_relations(run, step, outputs);
  }
  keep_pictures(run, painter);
}

// The gradients are computed from the candidate's own O and LSE, which are judged first.
void run_backward(const CaseRun& run) {
  run.turn(Turn::inputs);
  auto start = Clock::now();
  const Inputs inputs(run.c, run.options.around);
  const ForwardStep forward{run.c, inputs, run.candidate.abilities().lse};
  const Outputs outputs = forward.outputs();
  const BackwardStep backward{run.c, inputs, outputs};
  const GradientOutputs gradients = backward.outputs();
  run.result.seconds.generate = seconds_since(start);
  if (!run.supported({backward.call(gradients), forward.call(outputs)})) return;
  std::optional<Painter> painter;
  if (run.options.pictures) painter.emplace(inputs.problem);
  const JudgeOptions judging = run.judging(address_of(painter));
  const auto take = [&](Verdict v) { run.result.verdict = std::move(v); };
  const auto add = [&](const Verdict& v) { add_gradients(run.result.verdict, v); };
  if (judge_step(run, forward, outputs, judging, take) &&
      judge_step(run, backward, gradients, judging, add))
    ask_relations(run, backward, gradients);
  keep_pictures(run, painter);
}

// Judges what a candidate does with weights apart from products. Returns whether it did something
// and nothing was wrong.
bool judge_weights(const CaseRun& run, const ProductInputs& inputs) {
  run.turn(Turn::candidate);
  try {
    const JudgedBits stored = judge_quantizer(run.c, run.candidate);
    if (!take_bits(run, Output::w, stored)) return false;
    const JudgedBits read = judge_dequantizer(run.c, run.candidate, inputs);
    return take_bits(run, Output::w, read) && (stored.asked || read.asked);
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
