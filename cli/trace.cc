#include "harness/trace.h"

#include <fmt/format.h>

#include "cli/exit_status.h"

namespace assay {

int trace(const TraceOptions& o) {
  return exit_status_of([&] {
    const std::unique_ptr<Candidate> candidate = make_candidate(o.candidate);
    const Case c = parse_case(o.line);
    try {
      const Trace t = trace_case(c, *candidate);
      fmt::print("{}", describe(t, c));
      if (t.first || t.verdict.outcome == Outcome::fail) return static_cast<int>(some_failed);
      return static_cast<int>(t.verdict.outcome == Outcome::pass || t.verdict.outcome == Outcome::suspect ? all_passed : bad_usage);
    } catch (const CandidateError& e) {
      fmt::print("{}\n  {}\n", print_case(c), e.what());
      return static_cast<int>(some_failed);
    }
  });
}

}  // namespace assay
