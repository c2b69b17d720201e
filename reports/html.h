// Pages that need only a browser: the report of a run, and the dashboard of a store.
#pragma once

#include <optional>
#include <string>

#include "harness/results/faults_score.h"
#include "harness/results/fuzz_summary.h"
#include "harness/results/run.h"
#include "reports/alarms.h"
#include "reports/store.h"

namespace assay {

// The sections that a page shows besides the cases of a run.
struct PageSections {
  std::optional<FaultsScore> faults;
  std::optional<FuzzSummary> fuzz;
};

// A run as one self-contained page. It shows the verdict, the failures with the line that
// reproduces each and their heat maps, the power of the suite, the worst error/bound of every case,
// the machine, and the given sections. The page of a run without results has only the sections.
std::string html_report(const Run& run, const PageSections& sections = {});

// The runs of a store as one page: accuracy and speed over time, down to the history of one case,
// with the change points that were found. A browser draws the last 40 runs before it reads the
// others.
std::string html_dashboard(const Store& store, const Alarms& alarms, const std::string& generated);

}  // namespace assay
