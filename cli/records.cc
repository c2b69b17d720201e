// assay record and assay verify.
#include "harness/record.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cli/exit_status.h"
#include "cli/progress.h"
#include "problem/clock.h"

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
    const auto start = Clock::now();
    std::vector<CaseResult> results;
    std::vector<std::pair<std::string, std::string>> places;  // of each result: file and record
    std::set<std::string> kernels;
    // What cannot be judged is a result too: the others keep theirs.
    const auto refuse = [&](const std::string& path, const std::string& name, const std::exception& e) {
      fmt::print(stderr, "assay: {}\n", e.what());
      places.emplace_back(path, name);
      CaseResult refused;
      refused.line = path + (name.empty() ? "" : ", record " + name);
      refused.candidate = "recorded";
      refused.reproduce = verify_command(path, name);
      refused.reason = e.what();
      refused.bad_input = true;
      results.push_back(std::move(refused));
    };
    for (const std::string& path : o.files) {
      std::optional<RecordFile> file;
      try {
        file.emplace(path);
      } catch (const FileError& e) {
        refuse(path, "", e);
        continue;
      }
      std::vector<std::string> names = file->names();
      if (!o.record.empty()) names = {o.record};
      if (o.list) {
        for (const std::string& name : names) fmt::print("{}{}{}\n", name, name.empty() ? "" : ": ", file->line(name));
        continue;
      }
      Progress progress("verify", names.size());
      for (const std::string& name : names) {
        try {
          const Record r = file->read(name);
          const CaseResult result = verify(*file, r, {.threads = o.threads, .sample_rows = o.rows, .seed = o.seed});
          if (result.outcome == Outcome::fail) progress.say(fmt::format("fail: {}\n  {}", result.reason, result.reproduce));
          kernels.insert(r.kernel);
          places.emplace_back(path, name);
          results.push_back(result);
        } catch (const FileError& e) {
          refuse(path, name, e);
        }
        progress.advance(name);
      }
    }
    if (o.list) return static_cast<int>(results.empty() ? all_passed : bad_usage);
    if (!o.files_to_write.html.empty())
      for (const std::size_t k : worth_drawing(results)) {  // judged once more
        try {
          const RecordFile file(places[k].first);
          const VerifyOptions drawing{.threads = o.threads,
                                      .sample_rows = o.rows,
                                      .seed = o.seed,
                                      .power = false,
                                      .pictures = true};
          take_pictures(results[k], verify(file, file.read(places[k].second), drawing));
        } catch (const FileError& e) {
          fmt::print(stderr, "assay: nothing is drawn of what changed since it was judged: {}\n", e.what());
        }
      }
    return report_run({.title = o.files.size() == 1 ? o.files[0] : fmt::format("{} files", o.files.size()), .candidate = fmt::format("{}", fmt::join(kernels, ", ")), .unit = "records", .seed = o.seed, .seconds = seconds_since(start), .files = o.files_to_write}, results);
  });
}

}  // namespace assay
