#include "fuzz/jobs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "harness/files.h"
#include "harness/process.h"
#include "harness/results/schema.h"
#include "harness/text.h"
#include "harness/cases/shrink.h"
#include "problem/clock.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

// An option of libFuzzer: what takes long is mutated less often.
constexpr const char* small_inputs_first = "-entropic_scale_per_exec_time=1";

std::string read_whole(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// ---- A process ----------------------------------------------------------------------------------

Descriptor opened(const fs::path& path, int flags) {
  Descriptor file(open(path.c_str(), flags | O_CLOEXEC, 0666));
  if (file.number() < 0) throw std::system_error(errno, std::generic_category(), path.string());
  return file;
}

// Starts a program whose output goes to a file. It dies with this thread, so that nothing runs on
// after a kill.
Process started(std::vector<std::string> arguments, const fs::path& output,
                std::vector<std::string> environment) {
  const Descriptor nothing = opened("/dev/null", O_RDONLY);
  const Descriptor file = opened(output, O_WRONLY | O_CREAT | O_TRUNC);
  return Process({.program = arguments[0],
                  .arguments = arguments,
                  .descriptors = {{nothing.number(), STDIN_FILENO},
                                  {file.number(), STDOUT_FILENO},
                                  {file.number(), STDERR_FILENO}},
                  .environment = std::move(environment),
                  .dies_with_thread = true});
}

// ---- What libFuzzer says ------------------------------------------------------------------------

struct Said {
  double executions = 0, coverage = 0, corpus = 0;
  std::string reason, line;  // of a finding
};

std::string after(const std::string& text, const std::string& mark) {
  const auto at = text.rfind(mark);
  if (at == std::string::npos) return {};
  const auto begin = at + mark.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

Said listen(const std::string& text) {
  Said said;
  static const std::regex status(R"(#(\d+)\t.* cov: (\d+) .* corp: (\d+))");
  for (auto at = std::sregex_iterator(text.begin(), text.end(), status);
       at != std::sregex_iterator(); ++at) {
    said.executions = std::max(said.executions, std::stod((*at)[1]));
    said.coverage = std::max(said.coverage, std::stod((*at)[2]));
    said.corpus = std::stod((*at)[3]);
  }
  if (const std::string units = after(text, "stat::number_of_executed_units:"); !units.empty())
    said.executions = std::max(said.executions, std::strtod(units.c_str(), nullptr));
  said.line = after(text, "finding case: ");
  said.reason = after(text, "finding: ");
  if (said.reason.empty()) said.reason = after(text, "SUMMARY: ");
  if (said.reason.empty()) said.reason = after(text, "runtime error: ");
  if (said.reason.empty()) said.reason = after(text, "ERROR: ");
  return said;
}

// Findings whose reasons differ only in numbers count as one.
std::string without_numbers(const std::string& reason) {
  static const std::regex number(R"([-+]?(0x)?[0-9][0-9a-fA-F.]*(e[-+]?[0-9]+)?|-?nan|-?inf)");
  return std::regex_replace(reason, number, "#");
}

// ---- Files --------------------------------------------------------------------------------------

bool named_by_hash(const fs::path& p) {
  const std::string name = p.filename();
  return name.size() == 40 && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::uintmax_t bytes_in(const fs::path& folder) {
  std::uintmax_t bytes = 0;
  std::error_code gone;
  for (const auto& e : fs::directory_iterator(folder, gone))
    bytes += e.is_regular_file(gone) ? e.file_size(gone) : 0;
  return bytes;
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw std::invalid_argument(
        fmt::format("{}: cannot be made: {}", folder.string(), error.message()));
  const fs::path probe = folder / ".assay-writes-here";
  std::ofstream out(probe);
  out << "x";
  out.close();
  if (!out)
    throw std::invalid_argument(
        fmt::format("{}: cannot be written to: {}", folder.string(), std::strerror(errno)));
  fs::remove(probe, error);
}

// Two processes would spoil each other's state. The lock ends with the descriptor.
Descriptor locked(const fs::path& folder) {
  Descriptor lock = opened(folder, O_RDONLY | O_DIRECTORY);
  // A file system may have no locks.
  if (flock(lock.number(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    throw std::system_error(EBUSY, std::generic_category(),
                            folder.string() + ": another process runs jobs in this folder");
  return lock;
}

// libFuzzer silently drops inputs when a disk is full, so this is checked here.
void require_space(const fs::path& folder) {
  struct statvfs s{};
  if (statvfs(folder.c_str(), &s) != 0) return;
  constexpr std::uintmax_t least = 64u << 20;
  const std::uintmax_t left = static_cast<std::uintmax_t>(s.f_bavail) * s.f_frsize;
  if (left < least)
    throw std::system_error(ENOSPC, std::generic_category(),
                            fmt::format("{}: {} MiB are left of its disk, at least {} are wanted; "
                                        "nothing was removed, the same command goes on from here",
                                        folder.string(), left >> 20, least >> 20));
}

// ---- The jobs -----------------------------------------------------------------------------------

struct TargetState {
  double seconds = 0, executions = 0, coverage = 0, corpus = 0;
  int slices = 0;
  double gain = 0;     // new coverage a second in its last slice
  int last_slice = 0;  // its number
};

template <class Fields, Described<TargetState> Value>
void describe_fields(Fields& fields, Value& t) {
  fields("seconds", t.seconds);
  fields("executions", t.executions);
  fields("coverage", t.coverage);
  fields("corpus", t.corpus);
  fields("slices", t.slices);
  fields("gain", t.gain);
  fields("last_slice", t.last_slice);
}

// state.json.
struct JobsState {
  double seconds = 0;  // spent so far
  int slices = 0;
  std::map<std::string, TargetState> targets;
};

template <class Fields, Described<JobsState> Value>
void describe_fields(Fields& fields, Value& s) {
  fields("seconds", s.seconds);
  fields("slices", s.slices);
  fields("targets", s.targets);
}

class Jobs {
 public:
  explicit Jobs(const FuzzOptions& o) : o_(o) {
    for (const char* folder : {"corpus", "findings", "logs", "tmp"}) make_folder(o_.work / folder);
    for (const std::string& t : o_.targets)
      for (const char* folder : {"corpus", "findings"}) make_folder(o_.work / folder / t);
    lock_ = locked(o_.work);
    load();
  }

  FuzzSummary run() {
    // These findings come from a run that was killed before it reached them.
    for (const std::string& t : o_.targets) take_findings(t);
    while (state_.seconds < o_.seconds) {
      require_space(o_.work);
      const std::string target = next_target();
      run_slice(target, std::min(o_.slice, o_.seconds - state_.seconds));
      take_findings(target);
      if (bytes_in(o_.work / "corpus" / target) >> 20 > static_cast<std::uintmax_t>(o_.corpus_mib))
        merge(target);
      save();
    }
    for (const std::string& t : o_.targets) merge(t);
    save();
    return summary();
  }

 private:
  fs::path program(const std::string& target) const { return o_.binaries / (target + "_fuzz"); }

  void load() {
    load_file("state.json", "state of fuzz jobs", [&](const std::string& text) {
      state_ = from_json<JobsState>(parse_json(text, "state"), "state");
    });
    load_file("findings.jsonl", "list of findings", [&](const std::string& text) {
      std::istringstream lines(text);
      for (std::string line; std::getline(lines, line);) {
        findings_.push_back(from_json<FuzzFinding>(parse_json(line, "finding"), "finding"));
        known_.insert(findings_.back().target + "/" + findings_.back().file);
      }
    });
    if (state_.seconds > 0)
      say(fmt::format("going on after {:.0f} s and {}", state_.seconds,
                      counted(findings_.size(), "finding")));
  }

  // Reads a file of the working folder, if it is there.
  template <class Read>
  void load_file(const char* name, const char* what, const Read& read) const {
    const fs::path path = o_.work / name;
    if (!fs::exists(path)) return;
    try {
      read(read_whole(path));
    } catch (const SchemaError& e) {
      throw std::invalid_argument(
          fmt::format("{}: is no {} ({}); nothing was changed", path.string(), what, e.what()));
    }
  }

  void save() const { write_file(o_.work / "state.json", to_json(state_).dump(1) + "\n"); }

  void say(const std::string& line) const {
    if (o_.say) o_.say(line);
  }

  // Each target runs once first. Then the target that found most per second in its last slice runs;
  // every fourth slice goes to the target that has waited longest.
  std::string next_target() {
    const auto state = [&](const std::string& t) -> const TargetState& {
      return state_.targets[t];
    };
    for (const std::string& t : o_.targets)
      if (state(t).slices == 0) return t;
    if (state_.slices % 4 == 3)
      return *std::ranges::min_element(o_.targets, {},
                                       [&](const std::string& t) { return state(t).last_slice; });
    return *std::ranges::max_element(o_.targets, {}, [&](const std::string& t) {
      return std::pair(state(t).gain, -state(t).last_slice);
    });
  }

  void run_slice(const std::string& target, double seconds) {
    TargetState& state = state_.targets[target];
    const auto start = Clock::now();
    struct Job {
      std::unique_ptr<Process> process;
      fs::path output;
    };
    std::vector<Job> jobs(usize(o_.jobs));
    double executions = 0, coverage = 0, corpus = 0;
    const auto hear = [&](const fs::path& output) {
      const Said said = listen(read_whole(output));
      executions += said.executions;
      coverage = std::max(coverage, said.coverage);
      corpus = std::max(corpus, said.corpus);
    };
    // A process ends when its time is over or when it has a finding. A target that finds the same
    // again and again waits for its next slice.
    const int most_starts = 100 + o_.jobs;
    for (int starts = 0;
         seconds_since(start) < seconds &&
         (starts < most_starts ||
          std::ranges::any_of(jobs, [](const Job& j) { return j.process != nullptr; }));) {
      for (std::size_t n = 0; n < jobs.size(); ++n) {
        Job& job = jobs[n];
        if (job.process && !job.process->poll()) continue;
        const auto left = static_cast<int>(seconds - seconds_since(start));
        if (job.process) {
          hear(job.output);
          job.process.reset();
          if (executions == 0 && starts > o_.jobs + 5)
            throw std::runtime_error(fmt::format("{} ends before it has run anything: {}",
                                                 program(target).string(),
                                                 read_whole(job.output).substr(0, 500)));
        }
        if (left < 1 || starts >= most_starts) continue;
        job.output = o_.work / "logs" / fmt::format("{}.{}.txt", target, n);
        job.process.reset(
            new Process(started(arguments(target, left, starts), job.output, environment())));
        ++starts;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    for (Job& job : jobs)
      if (job.process) {
        job.process->wait_for(15);
        hear(job.output);
      }
    const double took = seconds_since(start);
    state.gain = std::max(0.0, coverage - state.coverage) / took;
    state.coverage = std::max(state.coverage, coverage);
    state.executions += executions;
    state.corpus = corpus;
    state.seconds += took;
    state.last_slice = ++state_.slices;
    ++state.slices;
    state_.seconds += took;
    const std::string line = fmt::format(
        "{:>6.0f} s  {:<10} {:>9.0f} executions, {:>6.0f} a second, coverage {:.0f} (+{:.2f} a "
        "second), corpus {:.0f}, findings {}",
        state_.seconds, target, executions, executions / took, state.coverage, state.gain, corpus,
        findings_.size());
    std::ofstream(o_.work / "log.txt", std::ios::app) << line << "\n";
    say(line);
  }

  std::vector<std::string> arguments(const std::string& target, int seconds, int number) const {
    std::vector<std::string> a = {
        program(target),
        fmt::format("-max_total_time={}", seconds),
        fmt::format("-rss_limit_mb={}", o_.memory_mib),
        "-timeout=60",
        "-print_final_stats=1",
        small_inputs_first,
        "-reload=5",
        "-max_len=4096",
        fmt::format("-seed={}",
                    o_.seed + static_cast<std::uint64_t>(state_.slices * 1000 + number)),
        fmt::format("-artifact_prefix={}/", (o_.work / "findings" / target).string()),
        o_.work / "corpus" / target};
    if (const fs::path seeds = o_.seeds / target; !o_.seeds.empty() && fs::is_directory(seeds))
      a.push_back(seeds);
    // Targets whose mutators move by meaning need no words.
    if (const fs::path words = o_.seeds.parent_path() / "dictionaries" / (target + ".dict");
        !o_.seeds.empty() && fs::is_regular_file(words))
      a.push_back(fmt::format("-dict={}", words.string()));
    return a;
  }
  std::vector<std::string> environment() const {
    return {"TMPDIR=" + (o_.work / "tmp").string(),
            "ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0"};
  }

  // Runs the target on one input. Returns what it printed if it did not end normally.
  std::optional<Said> said_on(const std::string& target, const fs::path& input,
                              double seconds) const {
    const fs::path output = o_.work / "logs" / (target + ".reproduce.txt");
    Process p =
        started({program(target), "-timeout=60", fmt::format("-rss_limit_mb={}", o_.memory_mib),
                 fmt::format("-artifact_prefix={}/", (o_.work / "tmp").string()), input},
                output, environment());
    const bool ended = p.wait_for(seconds);
    if (ended && WIFEXITED(p.wait()) && WEXITSTATUS(p.wait()) == 0) return std::nullopt;
    Said said = listen(read_whole(output));
    if (!ended) said.reason = fmt::format("no end after {:.0f} s", seconds);
    return said;
  }

  void take_findings(const std::string& target) {
    std::vector<fs::path> files;
    for (const auto& e : fs::directory_iterator(o_.work / "findings" / target))
      if (std::error_code unknown; e.is_regular_file(unknown)) files.push_back(e.path());
    std::ranges::sort(files);
    for (const fs::path& file : files) {
      const std::string name = file.filename();
      if (known_.contains(target + "/" + name)) continue;
      if (name.find('-') == std::string::npos || name.starts_with('.'))
        continue;  // not libFuzzer's
      // not a file of libFuzzer
      FuzzFinding f{target, name, {}, {}, {}, {}};
      const std::optional<Said> said = said_on(target, file, 90);
      f.reason = said ? said->reason : "does not happen again on its own";
      const std::string signature = without_numbers(f.reason);
      const auto same = std::ranges::count_if(findings_, [&](const FuzzFinding& other) {
        return other.target == target && without_numbers(other.reason) == signature;
      });
      const bool seen = said && same > 0;
      // Twenty findings of one kind say as much as a thousand.
      if (seen && same >= 20) {
        fs::remove(file);
        continue;
      }
      if (said && !seen) {
        if (!said->line.empty()) shrink_by_meaning(target, *said, f);
        else shrink_by_bytes(target, file, f);
      }
      findings_.push_back(f);
      known_.insert(target + "/" + name);
      write_findings();
      if (!seen)
        say(fmt::format("FINDING in {}: {}\n  {}\n  reproduce: {} {}", target, f.reason,
                        f.shrunk.empty() ? name : f.shrunk, shell_word(program(target).string()),
                        shell_word(f.kept.empty() ? file.string() : f.kept)));
    }
  }

  void shrink_by_meaning(const std::string& target, const Said& said, FuzzFinding& f) const {
    const auto deadline = seconds_from_now(o_.shrink_seconds);
    const fs::path trial = o_.work / "tmp" / "shrinking";
    const auto fails = [&](const Case& c) {
      write_file(trial, print_case(c));
      return said_on(target, trial, 60).has_value();
    };
    f.line = said.line;
    f.shrunk =
        print_case(shrink(parse_case(said.line), fails, [&] { return Clock::now() < deadline; }));
    keep(target, f, f.shrunk);
  }

  void shrink_by_bytes(const std::string& target, const fs::path& file, FuzzFinding& f) const {
    const fs::path to = o_.work / "tmp" / "minimised";
    std::error_code ignored;
    fs::remove(to, ignored);
    Process p = started({program(target), "-minimize_crash=1",
                         fmt::format("-max_total_time={:.0f}", o_.shrink_seconds), "-timeout=60",
                         fmt::format("-exact_artifact_path={}", to.string()), file},
                        o_.work / "logs" / (target + ".minimise.txt"), environment());
    p.wait_for(o_.shrink_seconds + 30);
    const bool smaller = fs::exists(to) && said_on(target, to, 90).has_value();
    keep(target, f, read_whole(smaller ? to : file));
  }

  // From now on this input is a regression test.
  void keep(const std::string& target, FuzzFinding& f, const std::string& bytes) const {
    const fs::path folder = (o_.keep.empty() ? o_.work / "regressions" : o_.keep) / target;
    make_folder(folder);
    const fs::path to = folder / ("finding-" + f.file.substr(0, 24));
    write_file(to, bytes);
    f.kept = to.string();
  }

  void write_findings() const {
    std::string lines;
    for (const FuzzFinding& f : findings_)
      lines += to_json(f).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    write_file(o_.work / "findings.jsonl", lines);
  }

  // Keeps only inputs that add coverage. The merged folder is whole before anything is removed, and
  // files of other programs are not touched.
  void merge(const std::string& target) {
    const fs::path corpus = o_.work / "corpus" / target,
                   merged = o_.work / "tmp" / (target + ".merged");
    std::error_code ignored;
    fs::remove_all(merged, ignored);
    make_folder(merged);
    Process p =
        started({program(target), "-merge=1", "-timeout=60", "-max_len=4096",
                 fmt::format("-rss_limit_mb={}", o_.memory_mib),
                 fmt::format("-artifact_prefix={}/", (o_.work / "tmp").string()), merged, corpus},
                o_.work / "logs" / (target + ".merge.txt"), environment());
    // the corpus stays as it was
    if (!p.wait_for(600) || !WIFEXITED(p.wait()) || WEXITSTATUS(p.wait()) != 0) return;
    std::set<std::string> stay;
    for (const auto& e : fs::directory_iterator(merged)) stay.insert(e.path().filename());
    if (stay.empty()) return;
    for (const std::string& name : stay) fs::rename(merged / name, corpus / name, ignored);
    std::vector<fs::path> gone;
    for (const auto& e : fs::directory_iterator(corpus))
      if (named_by_hash(e.path()) && !stay.contains(e.path().filename())) gone.push_back(e.path());
    for (const fs::path& path : gone) fs::remove(path, ignored);
    state_.targets[target].corpus = static_cast<double>(stay.size());
  }

  FuzzSummary summary() const {
    FuzzSummary summary{state_.seconds, o_.seed, {}, findings_};
    for (const std::string& name : o_.targets) {
      const auto found = state_.targets.find(name);
      // zeros, if there was no time left for it
      const TargetState t = found == state_.targets.end() ? TargetState() : found->second;
      const auto findings = std::ranges::count(findings_, name, &FuzzFinding::target);
      summary.targets.push_back({name, t.seconds, t.executions,
                                 t.seconds > 0 ? t.executions / t.seconds : 0, t.coverage, t.corpus,
                                 usize(findings)});
    }
    return summary;
  }

  const FuzzOptions& o_;
  Descriptor lock_;
  JobsState state_;
  std::vector<FuzzFinding> findings_;
  std::set<std::string> known_;
};

}  // namespace

std::vector<std::string> fuzz_targets(const fs::path& binaries) {
  std::vector<std::string> targets;
  std::error_code error;
  for (const auto& e : fs::directory_iterator(binaries, error)) {
    const std::string name = e.path().filename();
    // A link that leads nowhere, or in a circle, is no program.
    std::error_code unknown;
    if (e.is_regular_file(unknown) && name.ends_with("_fuzz") &&
        access(e.path().c_str(), X_OK) == 0)
      targets.push_back(name.substr(0, name.size() - 5));
  }
  if (targets.empty())
    throw std::invalid_argument(
        fmt::format("{}: no fuzz target (TARGET_fuzz) is there", binaries.string()));
  std::ranges::sort(targets);
  return targets;
}

std::vector<std::string> chosen_targets(const FuzzOptions& options) {
  std::vector<std::string> known = fuzz_targets(options.binaries);
  if (options.targets.empty()) return known;
  for (const std::string& t : options.targets)
    if (std::ranges::find(known, t) == known.end())
      throw std::invalid_argument(
          fmt::format("unknown target '{}'; there are {}", t, fmt::join(known, ", ")));
  return options.targets;
}

FuzzSummary fuzz(const FuzzOptions& options) {
  FuzzOptions o = options;
  o.targets = chosen_targets(options);
  return Jobs(o).run();
}

TimeToFind time_to_find(const fs::path& program, const std::string& candidate, const fs::path& work,
                        double seconds, std::uint64_t seed) {
  make_folder(work);
  const fs::path output = work / "output.txt";
  const auto start = Clock::now();
  Process p =
      started({program, fmt::format("-max_total_time={:.0f}", seconds), "-max_len=4096",
               "-print_final_stats=1", small_inputs_first, "-timeout=60",
               fmt::format("-seed={}", seed), fmt::format("-artifact_prefix={}/", work.string())},
              output, {"ASSAY_FUZZ_CANDIDATE=" + candidate});
  p.wait_for(seconds + 60);
  const Said said = listen(read_whole(output));
  return {!said.line.empty(), seconds_since(start), said.executions, said.line, said.reason};
}

}  // namespace assay
