// Inside cli/: the report of a run: the summary on the terminal, and the files that were asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/machine.h"
#include "harness/results/run.h"
#include "problem/clock.h"
#include "reports/html.h"
#include "reports/store.h"

namespace CLI {
class App;
}

namespace assay {

// The files that a run is written to, besides the terminal. An empty name means no file.
struct ReportFiles {
  std::string json, junit, html, markdown, sarif, openmetrics;
  bool github = false;  // annotations are printed, and the summary of the step is appended to
  std::string store;    // the run is appended to it
  std::string faults,
      fuzz;  // read: what `assay faults --json` and `assay fuzz --json` wrote, for the page
};

// Adds --json, --junit, --html, --markdown, --sarif, --openmetrics, --github and --store.
void add_report_files(CLI::App& command, ReportFiles& files);

// The sections that a page shows besides a run, if there are files for them. Throws UsageError for
// a file that holds something else.
PageSections sections_of_page(const ReportFiles& files);

// Adds --explain.
void add_explain(CLI::App& command, bool& explain);

struct RunFacts {
  std::string title, candidate;
  std::string unit = "case";  // in the singular
  std::uint64_t seed = 1;
  std::string left_out = {};  // what the candidate declined, and so was not drawn
  double share_drawn = 1;     // cases of the suite that was drawn, of as many as the whole one has
  std::vector<std::string> remarks = {};  // of the candidate
  std::string state = {};                 // what was asked about state between calls
  std::size_t not_run = 0;                // cases that did not run
  std::string why_not_run = "for lack of time";
  double seconds = 0;
  bool goes_on = false;                                // the suite is repeated
  Promises required = 0;                               // what --require names
  double most_unsupported = 100;                       // in percent
  ConventionRule conventions = ConventionRule::usual;  // what follows from undeclared ones
  bool explain = false;                                // every case is told in full
  Machine machine = this_machine();
  ReportFiles files;
  PageSections sections;
};

// The results of a run that a page draws: the first failures, and the passes that came nearest to
// their bounds.
std::vector<std::size_t> worth_drawing(const std::vector<CaseResult>& results);
// Takes the pictures from the same case judged once more. If the second answer differs, its
// pictures do not show the first one, so none are taken.
void take_pictures(CaseResult& result, const CaseResult& drawn);

// The report of a run. One that goes on for long is written to its store part by part.
class RunReport {
 public:
  explicit RunReport(RunFacts known) : facts(std::move(known)) {}
  RunFacts facts;  // what is known of the run so far
  RunTally tally;

  void add(std::vector<CaseResult> results);
  // Writes what was added to the store, unless that was done a moment ago: the store may take a
  // twentieth of the time. What cannot be written is said, and written later.
  void store_part();
  // Prints and writes the whole run, and returns its exit status.
  int finish();

 private:
  Run run_of(RunSummary summary, std::vector<CaseResult> results) const;
  // Returns the number of the run. Throws as Store does.
  std::int64_t store(const Run& part);

  std::vector<CaseResult> not_stored_;  // if the run goes on, and has a store
  std::unique_ptr<Store> store_;        // opening it again would read all of it
  std::optional<std::int64_t> stored_as_;
  Clock::time_point next_part_ = seconds_from_now(first_part_after);
  static constexpr double first_part_after = 10, share_of_store = 0.05;
};

}  // namespace assay
