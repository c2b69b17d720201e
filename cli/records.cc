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
#include "harness/results/merge_shards.h"
#include "harness/results/schema.h"
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
  std::string shard;  // i/n
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

// A record, or a file that cannot be read.
struct Place {
  std::string path, name;
  std::string unreadable;  // why it cannot be read
};

// What the options ask for, in the order of the files. The shard has its part of it.
std::vector<Place> places(const VerifyCommandOptions& o) {
  std::vector<Place> all;
  for (const std::string& path : o.files) {
    try {
      std::vector<std::string> names = RecordFile(path).names();
      if (!o.record.empty()) names = {o.record};
      for (const std::string& name : names) all.push_back({path, name, {}});
    } catch (const FileError& e) {
      all.push_back({path, {}, e.what()});
    }
  }
  const Shard shard = parse_shard(o.shard);
  std::vector<Place> mine;
  for (std::size_t k = shard.i; k < all.size(); k += shard.n) mine.push_back(all[k]);
  if (mine.empty() && !o.shard.empty())
    throw UsageError(fmt::format("--shard={}: no record of {} falls into it", o.shard, all.size()));
  return mine;
}

VerifyOptions options_of(const VerifyCommandOptions& o) {
  return {.threads = o.threads,
          .sample_rows = o.rows,
          .seed = o.seed,
          .evidence = o.evidence,
          .conventions = o.conventions.accepted};
}

// A record that cannot be judged gives a result too, so that the other results are kept.
CaseResult refused(const Place& at, const std::string& why) {
  tell(stderr, "assay: {}\n", why);
  CaseResult result;
  result.line = at.path + (at.name.empty() ? "" : ", record " + at.name);
  result.candidate = "recorded";
  result.reproduce = verify_command(at.path, at.name);
  result.reason = why;
  result.bad_input = true;
  return result;
}

// Keeps the file that was read last, because records of one file follow one another.
class Files {
 public:
  const RecordFile& at(const std::string& path) {
    if (!last_ || last_->path() != path) last_.emplace(path);
    return *last_;
  }

 private:
  std::optional<RecordFile> last_;
};

CaseResult judged_at(const Place& at, Files& files, const VerifyCommandOptions& o) {
  if (!at.unreadable.empty()) return refused(at, at.unreadable);
  try {
    const RecordFile& file = files.at(at.path);
    return verify(file, file.read(at.name), options_of(o));
  } catch (const FileError& e) {
    return refused(at, e.what());
  }
}

ExitStatus list(const VerifyCommandOptions& o) {
  ExitStatus status = all_passed;
  Files files;
  for (const Place& at : places(o)) {
    if (!at.unreadable.empty()) {
      tell(stderr, "assay: {}\n", at.unreadable);
      status = bad_usage;
      continue;
    }
    tell("{}{}{}\n", at.name, at.name.empty() ? "" : ": ", files.at(at.path).line(at.name));
  }
  return status;
}

// Judges some records once more, for their pictures.
void add_pictures(std::vector<CaseResult>& results, const VerifyCommandOptions& o) {
  const std::vector<Place> of_results = places(o);
  VerifyOptions drawing = options_of(o);
  drawing.power = false;
  drawing.pictures = true;
  Files files;
  for (const std::size_t k : worth_drawing(results)) {
    try {
      const RecordFile& file = files.at(of_results.at(k).path);
      take_pictures(results[k], verify(file, file.read(of_results[k].name), drawing));
    } catch (const FileError& e) {
      tell(stderr, "assay: nothing is drawn of what changed since it was judged: {}\n", e.what());
    }
  }
}

int report(const VerifyCommandOptions& o, std::vector<CaseResult> results, double seconds,
           const Machine& machine) {
  if (!o.files_to_write.html.empty()) add_pictures(results, o);
  std::set<std::string> kernels;
  for (const CaseResult& r : results)
    if (!r.bad_input) kernels.insert(r.candidate);
  RunReport report(
      {.title = o.files.size() == 1 ? o.files[0] : fmt::format("{} files", o.files.size()),
       .candidate = fmt::format("{}", fmt::join(kernels, ", ")),
       .unit = "record",
       .seed = o.seed,
       .seconds = seconds,
       .conventions = o.conventions.rule,
       .explain = o.explain,
       .machine = machine,
       .files = o.files_to_write,
       .sections = {}});
  report.add(std::move(results));
  return report.finish();
}

int verify(const VerifyCommandOptions& o) {
  if (o.list) return list(o);
  const auto start = Clock::now();
  const std::vector<Place> records = places(o);
  std::vector<CaseResult> results;
  Files files;
  Progress progress("verify", records.size());
  for (const Place& at : records) {
    results.push_back(judged_at(at, files, o));
    if (const CaseResult& r = results.back(); r.outcome == Outcome::fail)
      progress.say(told_in("{}\n  {}", told_outcome(r), r.reproduce));
    progress.advance(at.name);
  }
  return report(o, std::move(results), seconds_since(start), this_machine());
}

// A file that cannot be read is no work that could be divided.
std::size_t pieces(const VerifyCommandOptions& o) {
  const std::vector<Place> all = places(o);
  for (const Place& at : all)
    if (!at.unreadable.empty()) throw UsageError(at.unreadable);
  return all.size();
}

int merge(const VerifyCommandOptions& o, const std::vector<Json>& shards, const Machine& machine) {
  std::vector<Run> runs;
  for (const Json& shard : shards) runs.push_back(from_json<Run>(shard, "run"));
  Run whole = merged(runs);
  return report(o, std::move(whole.results), whole.summary.seconds, machine);
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
  add_shard(*command, o->shard, "record");
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
  return {.app = command,
          .run = [o] { return verify(*o); },
          .division = Division{
              .pieces = [o] { return pieces(*o); },
              .merge = [o](const auto& shards, const Machine& m) { return merge(*o, shards, m); }}};
}

}  // namespace assay
