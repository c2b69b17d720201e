// assay record and assay verify.
#include "harness/record.h"

#include <fmt/format.h>

#include <chrono>

#include "cli/exit_status.h"
#include "cli/progress.h"

namespace assay {
int record(const RecordOptions& o) {
  return exit_status_of([&] {
    const std::vector<Case> cases = select_cases(o.selection, o.selection.seed).cases;
    const std::unique_ptr<Candidate> candidate = o.candidate.empty() ? nullptr : make_candidate(o.candidate);
    write_records(o.file, cases, candidate.get());
    fmt::print("{}: {} record{}, {}\n", o.file, cases.size(), cases.size() == 1 ? "" : "s",
               candidate ? "with outputs of " + candidate->name() : "inputs alone; docs/records.md says which tensors your kernel's answer becomes");
    return static_cast<int>(all_passed);
  });
}

int verify(const VerifyCommandOptions& o) {
  return exit_status_of([&] {
    const auto start = std::chrono::steady_clock::now();
    Json results = Json::array();
    std::string kernels;
    for (const std::string& path : o.files) {
      const RecordFile file(path);
      std::vector<std::string> names = file.names();
      if (!o.record.empty()) names = {o.record};
      if (o.list) {
        for (const std::string& name : names) {
          const Record r = file.read(name);
          fmt::print("{}{}{}{}\n", name, name.empty() ? "" : ": ", r.line, r.case_line.empty() ? "" : "  (" + r.case_line + ")");
        }
        continue;
      }
      Progress progress("verify", names.size());
      for (const std::string& name : names) {
        const Record r = file.read(name);
        const CaseResult result = verify(file, r, {.threads = o.threads, .sample_rows = o.rows, .seed = o.seed});
        if (result.outcome == Outcome::fail) progress.say(fmt::format("fail: {}\n  {}", result.reason, result.reproduce));
        progress.advance(name);
        if (kernels.find(r.kernel) == std::string::npos) kernels += (kernels.empty() ? "" : ", ") + r.kernel;
        results.push_back(to_json(result));
      }
    }
    if (o.list) return static_cast<int>(all_passed);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report_run({.title = o.files.size() == 1 ? o.files[0] : fmt::format("{} files", o.files.size()), .candidate = kernels, .unit = "records", .seed = o.seed, .seconds = seconds, .files = o.files_to_write}, results);
  });
}

}  // namespace assay
