// Inside cli/: the report of a run: the summary on the terminal, and the files that were asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/machine.h"
#include "harness/results/run.h"
#include "reports/html.h"

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

// Prints and writes the results of a run, and returns its exit status.
int report_run(const RunFacts& run, const std::vector<CaseResult>& results);

}  // namespace assay
