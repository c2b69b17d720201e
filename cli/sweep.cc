// The commands assay sweep plan, write, run, status and merge.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>

#include "cli/commands.h"
#include "cli/answer_files.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "cli/run_report.h"
#include "cli/sweep_engines.h"
#include "cli/sweep_run.h"
#include "cli/sweep_state.h"
#include "cli/tell.h"
#include "harness/files.h"
#include "harness/results/merge_shards.h"
#include "harness/results/schema.h"
#include "problem/parallel.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

// ---- The command that is divided ----------------------------------------------------------------

// The commands that have a Division.
const std::map<std::string, Command (*)(CLI::App&)>& divided_commands() {
  static const std::map<std::string, Command (*)(CLI::App&)> commands = {
      {"check", add_check}, {"verify", add_verify}, {"faults", add_faults}, {"fuzz", add_fuzz}};
  return commands;
}

// A command with its options, parsed as main() does it.
struct Divided {
  CLI::App app;
  Command command;
};

std::unique_ptr<Divided> parsed(const std::string& name, std::vector<std::string> arguments) {
  const auto found = divided_commands().find(name);
  if (found == divided_commands().end()) {
    std::vector<std::string> names;
    for (const auto& [known, add] : divided_commands()) names.push_back(known);
    throw UsageError(fmt::format("'{}': no command that can be divided; there are {}", name,
                                 fmt::join(names, ", ")));
  }
  auto divided = std::make_unique<Divided>();
  divided->command = found->second(divided->app);
  refuse_empty_values(divided->app);
  std::ranges::reverse(arguments);  // the parser takes them from the end
  arguments.push_back(name);
  try {
    divided->app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    throw UsageError(
        fmt::format("{}: {}\nRun `assay {} --help` for more information.", name, e.what(), name));
  }
  return divided;
}

// ---- plan ---------------------------------------------------------------------------------------

struct PlanOptions {
  std::string file;
  std::size_t shards = 0;
  std::vector<std::string> words;  // the command and its arguments
};

// What belongs to a shard, to merging, or to a run that cannot be divided.
void refuse_undividable(const CLI::App& command) {
  for (const char* name :
       {"--shard", "--list", "--time", "--stop-at-first-failure", "--in-process"})
    if (const CLI::Option* o = command.get_option_no_throw(name); o && o->count() > 0)
      throw UsageError(fmt::format("{}: not in a sweep, whose shards are parts of one run", name));
  for (const char* name :
       {"--json", "--junit", "--html", "--markdown", "--sarif", "--openmetrics", "--github",
        "--store", "--standalone", "--with-faults", "--with-fuzz", "--explain"})
    if (const CLI::Option* o = command.get_option_no_throw(name); o && o->count() > 0)
      throw UsageError(
          fmt::format("{}: a shard has no outputs; `assay sweep merge` writes them", name));
}

int plan(const PlanOptions& o) {
  SweepPlan plan;
  plan.command = o.words.front();
  plan.arguments.assign(o.words.begin() + 1, o.words.end());
  plan.shards = o.shards;
  plan.build = build_of(this_machine());
  const std::unique_ptr<Divided> divided = parsed(plan.command, plan.arguments);
  refuse_undividable(*divided->command.app);
  for (const std::string& path : files_of_answers(*divided->command.app))
    plan.files[path] = hash_of_file(path);
  plan.seed = divided->command.app->get_option("--seed")->as<std::uint64_t>();
  if (const std::size_t pieces = divided->command.division->pieces(); pieces < plan.shards)
    throw UsageError(fmt::format("--shards={}: the work has {}, so there can be no more shards",
                                 plan.shards, counted(pieces, "piece")));
  write_file(o.file, to_json(plan).dump(1) + "\n");
  tell("{}: {} of {} {}; seed {}; plan {}\n", o.file, counted(plan.shards, "shard"), plan.command,
       fmt::format("{}", fmt::join(plan.arguments, " ")), plan.seed, hash_of(plan));
  return all_passed;
}

// ---- write --------------------------------------------------------------------------------------

struct WriteOptions {
  std::string plan, folder, only, program, image, claim, output;
  Engine engine = Engine::local;
  int jobs = 0;
  bool elsewhere = false;
};

bool on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');)
    if (access((fs::path(folder) / program).c_str(), X_OK) == 0) return true;
  return false;
}

std::vector<std::size_t> numbers(const std::string& only, const SweepPlan& plan) {
  return numbers_of_text(only.empty() ? fmt::format("0-{}", plan.shards - 1) : only, plan.shards);
}

// Pods see the folder of the plan as /sweep. Other machines see the paths of this one.
void place(EngineWork& work, const WriteOptions& o, const PlanFile& file) {
  if (o.engine != Engine::k8s) {
    if (!o.image.empty() || !o.claim.empty())
      throw UsageError("--image and --claim belong to --engine k8s");
    work.program = o.program.empty() ? fs::read_symlink("/proc/self/exe").string() : o.program;
    work.directory = fs::current_path();
    work.plan = o.plan;
    work.folder = o.folder;
    work.logs = folder_of(file, o.folder) + "/logs";
    return;
  }
  if (o.image.empty() || o.claim.empty() || !o.folder.empty())
    throw UsageError(
        "--engine=k8s: --image names an image with the program, and --claim a volume with the "
        "plan, into which the shards go; it takes no --folder");
  work.program = o.program.empty() ? "assay" : o.program;
  work.directory = "/sweep";
  work.plan = fs::path(o.plan).filename();
  work.image = o.image;
  work.claim = o.claim;
}

int write_engine(const WriteOptions& o) {
  const PlanFile file = read_plan(o.plan);
  EngineWork work;
  work.numbers = numbers(o.only, file.plan);
  work.name = "assay-" + file.hash;
  work.jobs = o.jobs > 0 || o.engine != Engine::local ? o.jobs : hardware_threads();
  place(work, o, file);
  if (!o.elsewhere && !on_path(program_of(o.engine)))
    throw std::runtime_error(
        fmt::format("--engine={}: {} is not installed here; with --elsewhere the script is written "
                    "for another machine",
                    name_of(o.engine), program_of(o.engine)));
  const std::string text = text_for(o.engine, work);
  if (o.output.empty()) std::fwrite(text.data(), 1, text.size(), stdout);
  else write_file(o.output, text);
  return all_passed;
}

// ---- run ----------------------------------------------------------------------------------------

struct RunOptions {
  std::string plan, folder, numbers;
  std::optional<std::size_t> nth;
};

int run(const RunOptions& o) {
  const PlanFile file = read_plan(o.plan);
  require_same_build(file);
  require_same_files(file);
  std::vector<std::size_t> asked = numbers_of_text(o.numbers, file.plan.shards);
  if (o.nth) {
    if (*o.nth >= asked.size())
      throw UsageError(fmt::format("--nth={}: the list {} has {}", *o.nth, o.numbers,
                                   counted(asked.size(), "shard")));
    asked = {asked[*o.nth]};
  }
  int worst = all_passed;
  for (const std::size_t shard : asked)
    worst = std::max(worst, run_shard(file, shard, folder_of(file, o.folder)));
  return worst;
}

// ---- status and merge ---------------------------------------------------------------------------

struct ReadOptions {
  std::string plan;
  std::vector<std::string> folders;
  bool accept_errors = false;  // of merge
};

SweepState read_folders(const PlanFile& file, const ReadOptions& o) {
  return read_sweep(file, o.folders.empty() ? std::vector{folder_of(file, "")} : o.folders);
}

int status(const ReadOptions& o) {
  const PlanFile file = read_plan(o.plan);
  const SweepState state = read_folders(file, o);
  bool whole = true;
  for (const SweepTrouble& t : state.troubles) {
    tell("{}\n  {}\n", t.words, t.command);
    whole = whole && t.harmless;
  }
  const auto there =
      std::ranges::count_if(state.shards, [](const auto& s) { return s.has_value(); });
  tell("{}: {} of {} {}: {}\n", o.plan, there, counted(file.plan.shards, "shard"),
       there == 1 ? "is there" : "are there",
       whole ? "`assay sweep merge` puts them together" : "the commands above mend the rest");
  return whole ? all_passed : some_failed;
}

// The options of `merge` that are those of the command, as they were given.
std::vector<std::string> passed_on(const CLI::App& merge) {
  std::vector<std::string> words;
  for (const CLI::Option* option : merge.get_options()) {
    const std::string name = option->get_name();
    if (option->count() == 0 || option->get_positional() || name == "--folder" ||
        name == "--accept-errors")
      continue;
    words.push_back(name);
    if (option->get_items_expected_max() > 0) words.push_back(option->as<std::string>());
  }
  return words;
}

int merge(const CLI::App& app, const ReadOptions& o) {
  const PlanFile file = read_plan(o.plan);
  require_same_build(file);
  std::vector<std::string> arguments = file.plan.arguments;
  const std::vector<std::string> more = passed_on(app);
  arguments.insert(arguments.end(), more.begin(), more.end());
  const std::unique_ptr<Divided> divided = parsed(file.plan.command, arguments);
  refuse_shared_files(*divided->command.app);

  const SweepState state = read_folders(file, o);
  std::vector<std::string> lines;
  for (const SweepTrouble& t : state.troubles)
    if (!t.harmless && !(t.machine_failed && o.accept_errors))
      lines.push_back(fmt::format("\n{}\n  {}", t.words, t.command));
  if (!lines.empty())
    throw UsageError(fmt::format("{}: nothing was merged:{}", o.plan, fmt::join(lines, "")));
  std::vector<Json> documents;
  std::vector<Machine> machines;
  for (const auto& shard : state.shards) {
    documents.push_back(shard->document);
    machines.push_back(shard->machine);
  }
  try {
    return divided->command.division->merge(documents, merged(machines));
  } catch (const SchemaError& e) {
    throw UsageError(fmt::format("{}: the shards are not those of one run: {}", o.plan, e.what()));
  }
}

// ---- Declarations -------------------------------------------------------------------------------

constexpr const char* plan_help = "The plan, which `assay sweep plan` wrote";

void add_plan(CLI::App& sweep, std::function<int()>& chosen) {
  const auto o = std::make_shared<PlanOptions>();
  CLI::App* command = sweep.add_subcommand(
      "plan", "Divide the work of a command into shards, and write that into a file");
  command->add_option("PLAN", o->file, "The file that is written")->check(writable())->required();
  command->add_option("--shards", o->shards, "How many shards")
      ->transform(number_in(1, 1 << 20))
      ->required();
  command
      ->add_option("COMMAND", o->words,
                   "Behind --: check, verify, faults or fuzz, with its options, but without "
                   "outputs")
      ->required();
  command->footer(
      "Exit status: 0 written, 2 bad usage or fewer pieces of work than shards, 3 the machine "
      "failed.\n\nExamples:\n"
      "  assay sweep plan sweep.json --shards 40 -- check --suite standard --jobs 1\n"
      "  assay sweep plan records.json --shards 8 -- verify answers.safetensors --threads 1\n"
      "  assay sweep plan hunt.json --shards 20 -- faults --jobs 1");
  command->callback([o, &chosen] { chosen = [o] { return plan(*o); }; });
}

void add_write(CLI::App& sweep, std::function<int()>& chosen) {
  const auto o = std::make_shared<WriteOptions>();
  CLI::App* command =
      sweep.add_subcommand("write", "Write what an engine needs in order to run the shards");
  command->add_option("PLAN", o->plan, plan_help)->check(read_only())->required();
  std::map<std::string, Engine> engines;
  for (const auto& row : table_of<Engine>) engines.emplace(row.name, row.value);
  command
      ->add_option("--engine", o->engine,
                   "slurm: a job array for sbatch; parallel: a command a line for GNU parallel; "
                   "gridengine: an array job for qsub;\nk8s: an Indexed Job for kubectl create; "
                   "local: a script for this machine")
      ->transform(
          CLI::CheckedTransformer(engines).description("slurm|parallel|gridengine|k8s|local"))
      ->required();
  command->add_option("--only", o->only, "Only these shards, as 3,17-20");
  command
      ->add_option("--jobs", o->jobs,
                   "How many shards run at a time; 0: as many as the engine likes (local: the "
                   "hardware threads)")
      ->transform(number_in(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--program", o->program,
                      "The program on the machines of the engine; the default is this one (k8s: "
                      "assay)");
  command->add_option("--folder", o->folder, "Where the shards go; the default is PLAN.shards");
  command->add_option("--image", o->image, "With k8s: an image with the program");
  command->add_option("--claim", o->claim,
                      "With k8s: the claim of a volume that many pods may write, with the plan");
  command->add_flag("--elsewhere", o->elsewhere,
                    "The engine is on another machine, so it is not looked for here");
  command->add_option("-o,--output", o->output, "The file; the default is standard output")
      ->check(writable());
  command->footer(
      "Exit status: 0 written, 2 bad usage or input, 3 the engine is not installed, or the machine "
      "failed.\n\nExamples:\n"
      "  assay sweep write sweep.json --engine slurm | sbatch\n"
      "  assay sweep write sweep.json --engine parallel | parallel --retries 3\n"
      "  assay sweep write sweep.json --engine local | sh\n"
      "  assay sweep write sweep.json --engine gridengine --only 3,17-20 --elsewhere -o again.sh\n"
      "  assay sweep write sweep.json --engine k8s --image me/assay --claim sweeps --elsewhere");
  command->callback([o, &chosen] { chosen = [o] { return write_engine(*o); }; });
}

void add_run(CLI::App& sweep, std::function<int()>& chosen) {
  const auto o = std::make_shared<RunOptions>();
  CLI::App* command =
      sweep.add_subcommand("run", "Run shards, one after the other, unless they are there");
  command->add_option("PLAN", o->plan, plan_help)->check(read_only())->required();
  command->add_option("NUMBERS", o->numbers, "The shards, from 0 on, as 3,17-20")->required();
  command->add_option("--nth", o->nth, "Only the n-th shard of the list, counted from 0")
      ->transform(number_in(0, 1 << 20));
  command->add_option("--folder", o->folder, "Where the shards go; the default is PLAN.shards");
  command->footer(
      "Exit status: 0 the shards are there, 1 and a candidate was wrong, 2 bad usage, another "
      "build or a foreign file in the place,\n3 the machine failed. The worst of several "
      "counts.\n\nExamples:\n"
      "  assay sweep run sweep.json 17\n"
      "  assay sweep run sweep.json 3,17-20 --nth 1");
  command->callback([o, &chosen] { chosen = [o] { return run(*o); }; });
}

void add_reading(CLI::App& command, ReadOptions& o) {
  command.add_option("PLAN", o.plan, plan_help)->check(read_only())->required();
  command.add_option("--folder", o.folders,
                     "A folder with shards (repeatable); the default is PLAN.shards");
}

void add_status(CLI::App& sweep, std::function<int()>& chosen) {
  const auto o = std::make_shared<ReadOptions>();
  CLI::App* command = sweep.add_subcommand("status",
                                           "Tell which shards are missing, cut off, foreign or "
                                           "double, with the command that mends each");
  add_reading(*command, *o);
  command->footer(
      "Exit status: 0 all shards are there, 1 not all, 2 the plan cannot be read, 3 the machine "
      "failed.\n\nExamples:\n"
      "  assay sweep status sweep.json\n"
      "  assay sweep status sweep.json --folder from_a --folder from_b");
  command->callback([o, &chosen] { chosen = [o] { return status(*o); }; });
}

void add_merge(CLI::App& sweep, std::function<int()>& chosen) {
  const auto o = std::make_shared<ReadOptions>();
  CLI::App* command =
      sweep.add_subcommand("merge", "Report all shards as the command would have, in one process");
  add_reading(*command, *o);
  command->add_flag("--accept-errors", o->accept_errors,
                    "Take shards with errors of the machine as they are");
  // These options go to the command, which reads them.
  const auto files = std::make_shared<ReportFiles>();
  const auto flags = std::make_shared<std::pair<bool, bool>>();
  add_report_files(*command, *files);
  add_explain(*command, flags->first);
  command->add_flag("--no-shrink", flags->second,
                    "Of check: report failures as they are, without making them smaller");
  command->footer(
      "check and verify have all of these outputs, faults and fuzz have --json, --html and "
      "--store. Exit status: that of the command; 2 also\nif shards are missing, and then nothing "
      "is written.\n\nExamples:\n"
      "  assay sweep merge sweep.json --store runs.db\n"
      "  assay sweep merge sweep.json --json run.json --html run.html");
  command->callback([command, o, files, flags, &chosen] {
    chosen = [command, o] { return merge(*command, *o); };
  });
}

}  // namespace

Command add_sweep(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "sweep",
      "Divide a suite, records, a fault hunt or fuzz jobs among machines, and put the answers "
      "together; docs/sweeps.md");
  command->require_subcommand(1);
  command->footer(
      "Each of these commands has a help text of its own.\n\nExamples:\n"
      "  assay sweep plan sweep.json --shards 40 -- check --suite standard --jobs 1\n"
      "  assay sweep write sweep.json --engine slurm | sbatch\n"
      "  assay sweep status sweep.json\n"
      "  assay sweep merge sweep.json --store runs.db");
  const auto chosen = std::make_shared<std::function<int()>>();
  add_plan(*command, *chosen);
  add_write(*command, *chosen);
  add_run(*command, *chosen);
  add_status(*command, *chosen);
  add_merge(*command, *chosen);
  return {.app = command, .run = [chosen] { return (*chosen)(); }};
}

}  // namespace assay
