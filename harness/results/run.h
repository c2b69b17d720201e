// The document of a run: what ran, on which machine, the summary of the outcomes, and the result of
// every case. `assay check --json` and `assay verify --json` write it; docs/results.md says what
// each field is.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/results/adequacy.h"
#include "harness/results/invariance.h"
#include "harness/results/conventions_seen.h"
#include "harness/results/machine.h"
#include "harness/results/shared_features.h"

namespace assay {

// The number of results with each outcome.
struct OutcomeCounts {
  std::size_t pass = 0, fail = 0, suspect = 0, inconclusive = 0, unsupported = 0, error = 0,
              convention = 0;
  std::size_t compared() const { return pass + fail + suspect + convention; }
  std::size_t& of(Outcome outcome);
};

struct RunSummary {
  std::string sentence;  // the last line that is printed
  OutcomeCounts counts;
  std::size_t not_run = 0;  // cases that were left out because the time was over
  std::size_t untold = 0;   // results that are counted here, and that the run does not hold
  std::int64_t elements = 0;
  double seconds = 0;
  std::map<std::string, AdequacyCells> adequacy;
  SharedFeatures shared;      // of the failing cases; without features: nothing separates them
  std::vector<Cause> causes;  // of failures and errors
  std::vector<Invariance> invariances;  // what the bits of a row do not depend on, if it was asked
  std::vector<ConventionSeen> conventions;
};

struct Run {
  std::string suite, candidate;
  std::uint64_t seed = 1;
  Machine machine;
  RunSummary summary;
  std::vector<CaseResult> results;
};

Json to_json(const Run& run);
// Throws SchemaError, whose message begins with `where`.
void read_json(const Json& json, const std::string& where, Run& run);

OutcomeCounts count_outcomes(const std::vector<CaseResult>& results);

// The results of a run that goes on, and the sums over all of them. A suite that is repeated for
// days has more results than fit in memory.
class RunTally {
 public:
  static constexpr std::size_t kept_of_an_outcome = 10000;
  // The first results are kept as they are; of later ones, the first of each outcome, and of those
  // that differ by a convention the first of each convention.
  void add(std::vector<CaseResult> more);

  std::vector<CaseResult> kept;
  const OutcomeCounts& counts() const { return counts_; }
  std::size_t cases() const { return kept.size() + untold_; }
  // What the sums over all results are; the other fields are left as they are.
  void write_to(RunSummary& summary) const;

 private:
  bool begun_ = false;
  std::map<std::pair<Outcome, std::vector<std::string>>, std::size_t> seen_;
  OutcomeCounts counts_;
  std::size_t untold_ = 0;
  std::int64_t elements_ = 0;
  Adequacy adequacy_;
};

}  // namespace assay
