// What a run leaves behind: the summary on the terminal, and the files that were asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/results/run.h"
#include "reports/html.h"

namespace CLI {
class App;
}

namespace assay {

// Where a run is written besides the terminal; empty: nowhere.
struct ReportFiles {
  std::string json, junit, html, markdown;
  std::string store;  // appended to
  std::string faults,
      fuzz;  // read: what `assay faults --json` and `assay fuzz --json` wrote, for the page
};

// --json, --junit, --html, --markdown, --store.
void add_report_files(CLI::App& command, ReportFiles& files);

// What a page shows besides a run, as far as there are files for it. Throws UsageError for a file
// that is something else.
PageSections sections_of_page(const ReportFiles& files);

struct RunFacts {
  std::string title, candidate;
  std::string unit = "cases";
  std::uint64_t seed = 1;
  std::size_t not_run = 0;  // for lack of time
  double seconds = 0;
  double most_unsupported = 100;  // percent
  ReportFiles files;
  PageSections sections;
};

// Of a run's results, those that a page draws: the first failures, and the passes that came nearest
// to their bounds.
std::vector<std::size_t> worth_drawing(const std::vector<CaseResult>& results);
// Takes over what is drawn from the same case judged once more. An answer that differs the second
// time has nothing to draw of the first.
void take_pictures(CaseResult& result, const CaseResult& drawn);

// Prints and writes what came out of a run, and returns its exit status.
int report_run(const RunFacts& run, const std::vector<CaseResult>& results);

}  // namespace assay
