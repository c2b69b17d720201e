// The commands assay record and assay verify.
#include "harness/records/record.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/run_report.h"
#include "cli/selection.h"
#include "cli/tell.h"
#include "cli/time_limit.h"
#include "harness/results/told_outcome.h"
#include "problem/clock.h"
#include "problem/parallel.h"

namespace assay {
namespace {

struct RecordOptions {
  SelectionOptions selection;
  std::string candidate;  // empty: only the inputs are written
  std::string file;
  double timeout_seconds = 120;  // for loading the candidate, and for each case
};

struct VerifyCommandOptions {
  std::vector<std::string> files;
  std::string record;  // empty: all records
  Index rows = 0;
  std::uint64_t seed = 1;
  int threads = hardware_threads();
  bool list = false;
  EvidenceRule evidence = EvidenceRule::fail;
  ConventionOptions conventions;
  bool explain = false;
  ReportFiles files_to_write;
};

int record(const RecordOptions& o) {
  const std::vector<Case> cases = select_cases(o.selection, o.selection.seed).cases;
  std::unique_ptr<Candidate> candidate;
  if (!o.candidate.empty()) {
    const TimeLimit limit("loading " + o.candidate, o.timeout_seconds, bad_usage);
    candidate = make_candidate(o.candidate);
  }
  write_records(o.file, cases, candidate.get(), [&](const Case& c, const auto& run) {
    const TimeLimit limit(fmt::format("{} on '{}'", o.candidate, print_case(c)), o.timeout_seconds,
                          bad_usage);
    run();
  });
  tell("{}: {}, {}\n", o.file, counted(cases.size(), "record"),
       candidate ? "with outputs of " + candidate->name()
                 : "inputs alone; docs/records.md says which tensors your kernel's answer becomes");
  return static_cast<int>(all_passed);
}

int verify(const VerifyCommandOptions& o) {
  const auto start = Clock::now();
  std::vector<CaseResult> results;
  std::vector<std::pair<std::string, std::string>> places;  // file and record of each result
  std::set<std::string> kernels;
  // A record that cannot be judged gives a result too, so that the other results are kept.
  const auto refuse = [&](const std::string& path, const std::string& name,
                          const std::exception& e) {
    tell(stderr, "assay: {}\n", e.what());
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
      for (const std::string& name : names)
        tell("{}{}{}\n", name, name.empty() ? "" : ": ", file->line(name));
      continue;
    }
    Progress progress("verify", names.size());
    for (const std::string& name : names) {
      try {
        const Record r = file->read(name);
        const CaseResult result = verify(*file, r,
                                         {.threads = o.threads,
                                          .sample_rows = o.rows,
                                          .seed = o.seed,
                                          .evidence = o.evidence,
                                          .conventions = o.conventions.accepted});
        if (result.outcome == Outcome::fail)
          progress.say(told_in("{}\n  {}", told_outcome(result), result.reproduce));
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
    for (const std::size_t k : worth_drawing(results)) {  // they are judged once more
      try {
        const RecordFile file(places[k].first);
        const VerifyOptions drawing{.threads = o.threads,
                                    .sample_rows = o.rows,
                                    .seed = o.seed,
                                    .power = false,
                                    .evidence = o.evidence,
                                    .pictures = true,
                                    .conventions = o.conventions.accepted};
        take_pictures(results[k], verify(file, file.read(places[k].second), drawing));
      } catch (const FileError& e) {
        tell(stderr, "assay: nothing is drawn of what changed since it was judged: {}\n", e.what());
      }
    }
  return report_run(
      {.title = o.files.size() == 1 ? o.files[0] : fmt::format("{} files", o.files.size()),
       .candidate = fmt::format("{}", fmt::join(kernels, ", ")),
       .unit = "record",
       .seed = o.seed,
       .seconds = seconds_since(start),
       .conventions = o.conventions.rule,
       .explain = o.explain,
       .files = o.files_to_write,
       .sections = {}},
      results);
}

}  // namespace

Command add_record(CLI::App& app) {
  const auto o = std::make_shared<RecordOptions>();
  CLI::App* command = app.add_subcommand("record",
                                         "Write the inputs of cases as tensors for another machine "
                                         "or framework, whose answers `assay verify` judges");
  add_selection(*command, o->selection);
  command
      ->add_option("--candidate", o->candidate,
                   "Also write the outputs of this candidate: host, lib:PATH, fault:NAME, ...")
      ->check(judged());
  command->add_option("-o,--output", o->file, "The file: NAME.safetensors")
      ->check(writable())
      ->required();
  command
      ->add_option("--timeout", o->timeout_seconds,
                   "Seconds that loading the candidate may take, and then each case")
      ->transform(seconds_number())
      ->capture_default_str();
  command->footer(
      "Caches and dtype=f64 have no record. Exit status: 0 written, 2 bad usage or input, 3 the "
      "file could not be written.\n\nExamples:\n"
      "  assay record --case 'attention b=1 h=4 l=300 d=64 dtype=bf16 causal' -o "
      "inputs.safetensors\n"
      "  assay record --suite tiny --candidate host -o answers.safetensors && assay verify "
      "answers.safetensors");
  return {command, [o] { return record(*o); }};
}

Command add_verify(CLI::App& app) {
  const auto o = std::make_shared<VerifyCommandOptions>();
  CLI::App* command = app.add_subcommand("verify",
                                         "Judge recorded tensors: inputs and outputs in "
                                         "safetensors files, from any program; docs/records.md");
  command->add_option("FILE", o->files, "A file of one or more records")
      ->check(read_only())
      ->required();
  command->add_option("--record", o->record, "Only the record of this name");
  command->add_flag("--list", o->list, "Print the lines of the records, and judge nothing");
  command
      ->add_option("--rows", o->rows,
                   "Judge only so many rows of each head (or of C), drawn with --seed; 0: all")
      ->transform(number_in(Index{0}, Index{1} << 40))
      ->capture_default_str();
  command->add_option("--seed", o->seed, "The seed with which --rows are drawn")
      ->transform(any_number())
      ->capture_default_str();
  command->add_option("--threads", o->threads, "Threads of the oracle")
      ->transform(number_in(1, 1024))
      ->capture_default_str();
  add_evidence(*command, o->evidence);
  add_conventions(*command, o->conventions);
  add_explain(*command, o->explain);
  add_report_files(*command, o->files_to_write);
  command->footer(
      "Exit status: 0 all passed, 1 a record failed, 2 a file or record cannot be read, or nothing "
      "was compared, 3 the machine failed.\n\nExamples:\n"
      "  assay record --suite tiny --candidate host -o answers.safetensors\n"
      "  assay verify answers.safetensors --list\n"
      "  assay verify answers.safetensors --record 00 --html run.html\n"
      "  assay verify answers.safetensors --rows 16 --seed 7");
  return {command, [o] { return verify(*o); }};
}

}  // namespace assay
