#include "harness/judging/execute.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "harness/judging/operations.h"
#include "harness/text.h"

namespace assay {
namespace {

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
    row_of(c.operation).judge(run);
  } catch (const CandidateDeclined& e) {
    run.end(Outcome::unsupported, e.what());
  }
  const bool flushes = result.verdict.differs.of<Subnormals>() == Subnormals::flushed;
  if (const Guest* guest = candidate.guest(); guest && (result.outcome == Outcome::fail || flushes))
    if (const std::string remark = guest->remark(); !remark.empty()) result.reason += "; " + remark;
  return result;
}

}  // namespace assay
