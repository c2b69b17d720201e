// The command assay trace.
#include "harness/judging/trace.h"

#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "cli/tell.h"
#include "cli/time_limit.h"

namespace assay {

namespace {

struct TraceOptions {
  std::string line;
  std::string candidate = "host";
  std::string library;  // it takes the place of a candidate, as lib:PATH
  int timeout_seconds = 120;
};

int trace(const TraceOptions& o) {
  const std::string name = o.library.empty() ? o.candidate : candidate_of_library(o.library);
  const TimeLimit limit("the trace of " + name, o.timeout_seconds, some_failed);
  const std::unique_ptr<Candidate> candidate = make_candidate(name);
  const Case c = parse_case(o.line);
  try {
    const Trace t = trace_case(c, *candidate);
    std::fputs(visible_lines(describe(t, c)).c_str(), stdout);
    if (t.first || t.verdict.outcome == Outcome::fail) return static_cast<int>(some_failed);
    if (t.compared() == 0) return static_cast<int>(bad_usage);
    return static_cast<int>(
        t.verdict.outcome == Outcome::pass || t.verdict.outcome == Outcome::suspect ? all_passed
                                                                                    : bad_usage);
  } catch (const CandidateError& e) {
    tell("{}\n  {}\n", print_case(c), e.what());
    return static_cast<int>(some_failed);
  }
}

}  // namespace

Command add_trace(CLI::App& app) {
  const auto o = std::make_shared<TraceOptions>();
  CLI::App* command = app.add_subcommand(
      "trace",
      "Follow one case stage by stage: the first stage, tile, row and lane that leaves its "
      "enclosure; docs/trace.md");
  command->add_option("CASE", o->line, "A case line, as `assay check` prints it")->required();
  command
      ->add_option("--candidate", o->candidate,
                   "host, fault:NAME or lib:PATH (of a library that calls the probe)")
      ->check(judged())
      ->capture_default_str();
  command->add_option("--kernel", o->library, "A shared library of yours that calls the probe")
      ->check(read_only())
      ->excludes("--candidate");
  command
      ->add_option("--timeout", o->timeout_seconds,
                   "Seconds that the trace may take; if it takes longer, the exit status is 1")
      ->transform(number_in(1, 86400))
      ->capture_default_str();
  command->footer(
      "At most 4,194,304 (row, key) pairs over all heads. Exit status: 0 every stage and output "
      "holds, 1 a stage or an output is wrong,\n"
      "2 bad usage, or nothing could be compared.\n\nExamples:\n"
      "  assay trace 'attention b=1 h=1 l=70x200 d=16'\n"
      "  assay trace --candidate fault:row-max-arguments-swapped 'attention b=1 h=1 l=70x200 "
      "d=16'\n"
      "  assay trace --kernel mine/build/libmy_kernel.so 'attention b=1 h=1 l=9x13 d=8 causal'");
  return {command, [o] { return trace(*o); }};
}

}  // namespace assay
