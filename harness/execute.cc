#include "harness/execute.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <exception>

#include "harness/relations.h"
#include "harness/run.h"
#include "oracle/backward_verdict.h"

namespace assay {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

void check_memory(const Case& c) {
  const Index available = static_cast<Index>(sysconf(_SC_PHYS_PAGES)) * static_cast<Index>(sysconf(_SC_PAGESIZE));
  // Inputs and their snapshot, two sets of outputs, and the oracle's doubles of one head.
  const Index needed = 4 * case_bytes(c) + (c.operation == Operation::product ? 0 : 32 * c.shape.keys * (c.shape.dim + c.shape.value_dim));
  if (needed > available) throw CaseError(0, fmt::format("the case needs about {} MiB; this machine has {} MiB of memory", needed >> 20, available >> 20));
}

// After a forward pass that was judged: the gradients for its O and LSE. `result` holds the verdict on those.
CaseResult execute_backward(const Case& c, Candidate& candidate, const ExecuteOptions& options, const JudgeOptions& judging, const Inputs& inputs,
                            const kernels::Execution& how, const Outputs& forward, CaseResult result) {
  const GradientOutputs first(c, inputs), second(c, inputs);
  auto failed = [&](std::string reason) {
    result.outcome = Outcome::fail;
    result.reason = std::move(reason);
    return result;
  };
  auto start = std::chrono::steady_clock::now();
  options.turn_of("candidate");
  if (std::string wrong = call_backward_guarded(candidate, inputs, forward, first, Poison::nan, how); !wrong.empty()) return failed(std::move(wrong));
  result.candidate_seconds += seconds_since(start);
  if (std::string wrong = call_backward_guarded(candidate, inputs, forward, second, Poison::large, how); !wrong.empty()) return failed(std::move(wrong));
  const std::string differs = first_difference(first, second);

  start = std::chrono::steady_clock::now();
  options.turn_of("verdict");
  const AttentionBackwardInput in{forward.o.view(), forward.lse.view(), inputs.d_o.view()};
  const std::optional<Contract> contract = candidate.contract(inputs.problem, how.target);
  const Verdict gradients =
      contract ? judge_backward(inputs.problem, in, first.view(), *contract, judging) : judge_backward_by_ladder(inputs.problem, in, first.view(), judging);
  result.judge_seconds += seconds_since(start);
  add_gradients(result.verdict, gradients);
  result.outcome = result.verdict.outcome;
  result.reason = result.verdict.reason;
  if (result.outcome == Outcome::fail || result.outcome == Outcome::error) return result;
  if (!differs.empty()) return failed("poison: two runs whose gradients were poisoned differently disagree: " + differs);
  if (options.relations) {
    options.turn_of("candidate");
    result.relations = check_backward_relations(c, inputs, forward, candidate, first);
    for (const auto& [name, found] : result.relations)
      if (found.starts_with("violated")) return failed("relation " + name + " " + found);
  }
  return result;
}

}  // namespace

std::string check_command(const std::string& candidate, const std::string& line, Surroundings around) {
  const char* pages = around == Surroundings::page_behind ? " --guard-pages behind" : around == Surroundings::page_before ? " --guard-pages before" : "";
  return fmt::format("assay check --candidate {}{} --case '{}'", candidate, pages, line);
}

// Rows that share a few keys err together.
bool has_independent_zero_mean(const Case& c) {
  return c.shape.keys * 4 >= c.shape.rows && c.values == Values::normal &&
         (c.scores == Scores::normal || c.scores == Scores::flat || c.scores == Scores::huge) && c.pokes.empty() && !c.sink && c.hidden == Hidden::generated;
}

CaseResult execute(const Case& c, Candidate& candidate, const ExecuteOptions& options) {
  CaseResult result;
  result.line = print_case(c);
  result.candidate = candidate.name();
  result.reproduce = check_command(result.candidate, result.line, options.around);
  result.dtype = c.operation == Operation::product ? traits(c.product.format).name : format(c.dtype).name;
  check_memory(c);
  const kernels::Execution how = execution_of(c);

  if (c.operation == Operation::product) return execute_product(c, candidate, options, std::move(result));

  auto start = std::chrono::steady_clock::now();
  options.turn_of("inputs");
  const Inputs inputs(c, options.around);
  const Outputs first(c, candidate.gives_lse(), options.around), second(c, candidate.gives_lse(), options.around);
  result.generate_seconds = seconds_since(start);
  options.turn_of("candidate");
  if (c.operation == Operation::backward && !candidate.has_backward()) {
    result.outcome = Outcome::unsupported;
    result.reason = "no backward pass";
    return result;
  }
  if (c.cache && !candidate.has_cache()) {
    result.outcome = Outcome::unsupported;
    result.reason = "no cache";
    return result;
  }
  try {
    std::string why = c.cache ? candidate.unsupported_cached(c, inputs.problem, c.out_dtype()) : candidate.unsupported(inputs.problem, c.out_dtype());
    if (why.empty() && c.operation == Operation::backward) why = candidate.unsupported_backward(inputs.problem, c.out_dtype());
    if (!why.empty()) {
      result.outcome = Outcome::unsupported;
      result.reason = why;
      return result;
    }
  } catch (const CandidateError& e) {
    result.outcome = Outcome::fail;
    result.reason = e.what();
    return result;
  }

  auto failed = [&](std::string reason) {
    result.outcome = Outcome::fail;
    result.reason = std::move(reason);
    return result;
  };
  start = std::chrono::steady_clock::now();
  if (std::string wrong = call_guarded(candidate, c, inputs, first, Poison::nan, how); !wrong.empty()) return failed(std::move(wrong));
  result.candidate_seconds = seconds_since(start);
  if (std::string wrong = call_guarded(candidate, c, inputs, second, Poison::large, how); !wrong.empty())
    return failed(std::move(wrong));
  const std::string differs = first_difference(first, second);

  start = std::chrono::steady_clock::now();
  options.turn_of("verdict");
  JudgeOptions judging;
  judging.threads = options.oracle_threads;
  judging.sample_rows = c.sample_rows;
  judging.seed = c.seed;
  judging.ball_rows = options.ball_rows;
  judging.power = options.power;
  judging.statistics = has_independent_zero_mean(c);
  judging.without_lse = !candidate.gives_lse();
  if (options.pictures) {
    result.pictures = std::make_shared<Pictures>(inputs.problem);
    judging.judged = [pictures = result.pictures.get()](const Element& e) { pictures->add(e); };
  }
  judging.untouched = [](const TensorView& t, Index position) { return holds_poison(t, position, Poison::nan); };
  const std::optional<Contract> contract = candidate.contract(inputs.problem, how.target);
  result.verdict = contract ? judge(inputs.problem, first.view(), *contract, judging) : judge_by_ladder(inputs.problem, first.view(), 64, judging);
  result.judge_seconds = seconds_since(start);
  result.outcome = result.verdict.outcome;
  result.reason = result.verdict.reason;
  if (result.outcome == Outcome::fail || result.outcome == Outcome::error) return result;
  if (!differs.empty()) return failed("poison: two runs whose outputs were poisoned differently disagree: " + differs);
  if (c.operation == Operation::backward) return execute_backward(c, candidate, options, judging, inputs, how, first, std::move(result));
  if (options.relations) {
    options.turn_of("candidate");
    result.relations = c.cache ? check_cache_relations(c, inputs, candidate, first) : check_relations(c, inputs, candidate, first);
    for (const auto& [name, found] : result.relations)
      if (found.starts_with("violated")) return failed("relation " + name + " " + found);
  }
  return result;
}

}  // namespace assay
