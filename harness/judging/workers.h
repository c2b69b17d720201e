// Runs cases in worker processes, which are started by exec and take one case at a time. A
// candidate that crashes, hangs, throws or exits costs one case, not the run.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "harness/candidates/library_file.h"
#include "harness/judging/execute.h"

namespace assay {

struct WorkerOptions {
  std::string executable = "/proc/self/exe";  // each worker runs as `executable worker ...`
  int jobs = 1;
  double timeout_seconds = 120;  // for one case
  Index memory_mib = 0;          // private memory of a worker; 0: no limit
  // Runs no workers, for debuggers and emulators. A crash then ends the run.
  bool in_process = false;
  ExecuteOptions execute;
  // The library that is judged, if the run must notice that its file changes.
  std::shared_ptr<LibraryFile> library;
};

struct WorkItem {
  std::string line;
  std::string candidate;
};

// Called in the parent, in order of completion. It returns false to stop the run; cases that have
// not started are then not run.
using OnResult = std::function<bool(std::size_t item, CaseResult result)>;

// A worker loads a library once, for all of its cases. A case that fails there after others is
// tried again in a fresh process, and the reason tells both results. When the file of the library
// has changed, no result counts any more: the cases that are left are errors. Throws
// std::system_error if no worker can be started.
void run_in_workers(const std::vector<WorkItem>& items, const WorkerOptions& options,
                    const OnResult& on_result);

// Serves as a worker: reads work from standard input and writes results to descriptor 3, until the
// input ends.
int worker_main(Index memory_mib, const ExecuteOptions& options);

}  // namespace assay
