// The command assay identify.
#include "harness/identify/identify.h"

#include <fmt/format.h>

#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "cli/tell.h"
#include "cli/time_limit.h"
#include "harness/files.h"
#include "harness/identify/fit.h"
#include "harness/results/schema.h"
#include "problem/parallel.h"

namespace assay {
namespace {

struct IdentifyOptions {
  std::string candidate = "host";
  std::string library;  // it takes the place of a candidate, as lib:PATH
  std::string python;   // likewise, as python:FILE::FUNCTION
  std::string device;   // where the inputs of a Python function lie
  std::string record;   // a file of records, instead of a candidate
  std::string name;     // of one record
  std::string dtype;    // empty: each of f16, bf16 and f32 that the candidate takes
  std::string line;     // what is asked; empty: attention in these dtypes
  std::string json;
  int timeout_seconds = 120;
};

// What --json holds: the answers of a candidate by dtype, or the fits by record.
struct IdentifyRun {
  std::vector<Identification> candidates;
  std::map<std::string, std::vector<ArithmeticFit>> records;
};
template <class Fields, Described<IdentifyRun> Value>
void describe_fields(Fields& fields, Value& run) {
  fields("candidates", run.candidates);
  fields("records", run.records);
}

void print(const Identification& told) {
  tell("{}, {}\n", told.candidate, told.line);
  if (told.outcome == Asking::fail) tell("  fail: {}\n", told.reason);
  for (const Statement& s : told.statements)
    tell("  {:<22}{}\n      {}\n", s.subject, s.answer, s.input);
  for (const std::string& why : told.not_told) tell("  not told: {}\n", why);
}

std::vector<Case> questions(const IdentifyOptions& o) {
  if (!o.line.empty()) return {parse_case(o.line)};
  std::vector<Case> all;
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::f32})
    if (o.dtype.empty() || o.dtype == format(dtype).name) all.emplace_back().dtype = dtype;
  return all;
}

// Asks every question that the candidate takes. Throws UsageError if it takes none.
std::vector<Identification> identify_candidate(const IdentifyOptions& o, const std::string& name) {
  const TimeLimit limit("identifying " + name, o.timeout_seconds, some_failed);
  const std::unique_ptr<Candidate> candidate = make_candidate(name);
  std::vector<Identification> all;
  std::string declined;
  for (const Case& asked : questions(o)) {
    Identification told = identify(*candidate, asked);
    if (told.outcome == Asking::unsupported) {
      declined += "\n" + told.reason;
      continue;
    }
    print(told);
    all.push_back(std::move(told));
  }
  if (all.empty()) throw UsageError(name + " cannot be asked:" + declined);
  return all;
}

void print(const std::string& name, const std::vector<ArithmeticFit>& fits) {
  tell("{}\n", name);
  for (const ArithmeticFit& fit : fits) {
    tell("  {:<8}  {}\n", fit.refuted ? "refuted" : fit.typical ? "fits" : "", fit.arithmetic);
    if (fit.of_limit > 0)
      tell("      errors of rows are at most {:.2g} of the limit\n", fit.of_limit);
    if (!fit.why.empty()) tell("      {}\n", fit.why);
  }
}

std::map<std::string, std::vector<ArithmeticFit>> identify_records(const IdentifyOptions& o) {
  const RecordFile file(o.record);
  std::vector<std::string> names = file.names();
  if (!o.name.empty()) names = {o.name};
  std::map<std::string, std::vector<ArithmeticFit>> all;
  for (const std::string& name : names) {
    all[name] = fit_arithmetics(file.read(name), hardware_threads());
    print(name.empty() ? o.record : name, all[name]);
  }
  return all;
}

int run(const IdentifyOptions& o) {
  IdentifyRun run;
  bool right = true;
  if (!o.record.empty()) {
    run.records = identify_records(o);
    for (const auto& [name, fits] : run.records)
      right = right && std::ranges::any_of(fits, &ArithmeticFit::typical);
  } else {
    const std::string name = !o.library.empty() ? candidate_of_library(o.library)
                             : !o.python.empty()
                                 ? "python:" + o.python + (o.device.empty() ? "" : "@" + o.device)
                                 : o.candidate;
    run.candidates = identify_candidate(o, name);
    right = std::ranges::none_of(
        run.candidates, [](const Identification& told) { return told.outcome == Asking::fail; });
  }
  if (!o.json.empty()) write_file(o.json, to_json(run).dump(1) + "\n");
  return static_cast<int>(right ? all_passed : some_failed);
}

}  // namespace

Command add_identify(CLI::App& app) {
  const auto o = std::make_shared<IdentifyOptions>();
  CLI::App* command = app.add_subcommand(
      "identify",
      "Tell the arithmetic of a kernel from its answers to chosen inputs, or which arithmetic fits "
      "recorded outputs; docs/identify.md");
  auto* candidate = command
                        ->add_option("--candidate", o->candidate,
                                     "host, host-undeclared, unfused, device:NAME, lib:PATH or "
                                     "python:FILE::FUNCTION")
                        ->check(judged())
                        ->capture_default_str();
  auto* library = command->add_option("--kernel", o->library, "A shared library of yours")
                      ->check(read_only())
                      ->excludes(candidate);
  auto* python = command->add_option("--python", o->python, "FILE::FUNCTION, a Python function")
                     ->excludes(candidate)
                     ->excludes(library);
  command
      ->add_option("--device", o->device, "With --python: where its inputs lie (cpu, cuda, cuda:1)")
      ->needs(python);
  auto* record = command->add_option("--record", o->record, "A safetensors file of records")
                     ->check(read_only())
                     ->excludes(candidate)
                     ->excludes(library)
                     ->excludes(python);
  command->add_option("--name", o->name, "With --record: only the record of this name")
      ->needs(record);
  auto* dtype = command
                    ->add_option("--dtype", o->dtype,
                                 "f16, bf16 or f32; without it, each of them that the kernel takes")
                    ->check(CLI::IsMember({"f16", "bf16", "f32"}))
                    ->excludes(record);
  command
      ->add_option(
          "--case", o->line,
          "What is asked, as words of a case line: 'backward dtype=bf16', 'product dtype=f16 "
          "w=int4:64'. Shapes and inputs are chosen")
      ->excludes(record)
      ->excludes(dtype);
  command->add_option("--json", o->json, "Write the answers to this file")->check(writable());
  command
      ->add_option("--timeout", o->timeout_seconds,
                   "Seconds that a candidate may take; if it takes longer, the exit status is 1")
      ->transform(number_in(1, 86400))
      ->capture_default_str();
  command->footer(
      "Exit status: 0 told, 1 a record that no arithmetic fits, or a candidate that did what no "
      "kernel may do,\n2 bad usage, or a kernel that takes none of the inputs, 3 the machine "
      "failed.\n\nExamples:\n"
      "  assay identify --candidate host --dtype bf16\n"
      "  assay identify --kernel mine/build/libmy_kernel.so --json arithmetic.json\n"
      "  assay identify --case 'backward dtype=bf16'\n"
      "  assay identify --case 'product dtype=bf16 w=nvfp4'\n"
      "  assay identify --record dump.safetensors");
  return {command, [o] { return run(*o); }};
}

}  // namespace assay
