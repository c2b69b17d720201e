#include "harness/trace.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <string_view>

#include "cli/exit_status.h"

namespace assay {

namespace {

// A library may hang in ways that nothing else notices; its process ends with this one.
void end_in_time(int) {
  constexpr std::string_view words = "assay: the candidate did not finish within --timeout\n";
  (void)!write(STDERR_FILENO, words.data(), words.size());
  _exit(some_failed);
}

}  // namespace

int trace(const TraceOptions& o) {
  std::signal(SIGALRM, end_in_time);
  alarm(static_cast<unsigned>(o.timeout_seconds));
  return exit_status_of([&] {
    const std::unique_ptr<Candidate> candidate = make_candidate(o.candidate);
    const Case c = parse_case(o.line);
    try {
      const Trace t = trace_case(c, *candidate);
      fmt::print("{}", describe(t, c));
      if (t.first || t.verdict.outcome == Outcome::fail) return static_cast<int>(some_failed);
      if (t.compared() == 0) return static_cast<int>(bad_usage);
      return static_cast<int>(t.verdict.outcome == Outcome::pass || t.verdict.outcome == Outcome::suspect ? all_passed : bad_usage);
    } catch (const CandidateError& e) {
      fmt::print("{}\n  {}\n", print_case(c), e.what());
      return static_cast<int>(some_failed);
    }
  });
}

}  // namespace assay
