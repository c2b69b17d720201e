#include "fuzz/jobs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "harness/files.h"
#include "harness/shrink.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

std::string read_whole(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// ---- A process ----------------------------------------------------------------------------------

// A process that ends when its parent ends, however that happens, so that nothing continues after a
// kill.
class Process {
 public:
  Process(const std::vector<std::string>& arguments, const fs::path& output, const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    std::vector<char*> argv;
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) throw std::system_error(errno, std::generic_category(), "starting " + arguments[0]);
    if (pid_ > 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    const int file = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666), null = open("/dev/null", O_RDONLY);
    if (file < 0 || dup2(file, STDOUT_FILENO) < 0 || dup2(file, STDERR_FILENO) < 0 || null < 0 || dup2(null, STDIN_FILENO) < 0) _exit(127);
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    execv(argv[0], argv.data());
    _exit(127);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (!done_) kill(pid_, SIGKILL);
    wait();
  }
  // Returns nullopt while the process runs.
  std::optional<int> poll() {
    if (!done_ && waitpid(pid_, &status_, WNOHANG) == pid_) done_ = true;
    return done_ ? std::optional(status_) : std::nullopt;
  }
  int wait() {
    if (!done_) waitpid(pid_, &status_, 0);
    done_ = true;
    return status_;
  }
  // Waits for the rest of the time, and then kills the process. Returns false if it was killed.
  bool wait_for(double seconds) {
    for (const auto start = Clock::now(); !poll();) {
      if (since(start) > seconds) {
        kill(pid_, SIGKILL);
        wait();
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  bool done_ = false;
};

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
  for (auto at = std::sregex_iterator(text.begin(), text.end(), status); at != std::sregex_iterator(); ++at) {
    said.executions = std::max(said.executions, std::stod((*at)[1]));
    said.coverage = std::max(said.coverage, std::stod((*at)[2]));
    said.corpus = std::stod((*at)[3]);
  }
  if (const std::string units = after(text, "stat::number_of_executed_units:"); !units.empty()) said.executions = std::max(said.executions, std::strtod(units.c_str(), nullptr));
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
  for (const auto& e : fs::directory_iterator(folder, gone)) bytes += e.is_regular_file(gone) ? e.file_size(gone) : 0;
  return bytes;
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw std::invalid_argument(fmt::format("{}: cannot be made: {}", folder.string(), error.message()));
  const fs::path probe = folder / ".assay-writes-here";
  std::ofstream out(probe);
  out << "x";
  out.close();
  if (!out) throw std::invalid_argument(fmt::format("{}: cannot be written to: {}", folder.string(), std::strerror(errno)));
  fs::remove(probe, error);
}

// libFuzzer silently drops inputs when a disk is full, so this is checked here.
void require_space(const fs::path& folder) {
  struct statvfs s{};
  if (statvfs(folder.c_str(), &s) != 0) return;
  constexpr std::uintmax_t least = 64u << 20;
  const std::uintmax_t left = static_cast<std::uintmax_t>(s.f_bavail) * s.f_frsize;
  if (left < least)
    throw std::system_error(ENOSPC, std::generic_category(),
                            fmt::format("{}: {} MiB are left of its disk, at least {} are wanted; nothing was removed, the same command goes on from here", folder.string(), left >> 20, least >> 20));
}

// ---- The jobs -----------------------------------------------------------------------------------

struct TargetState {
  double seconds = 0, executions = 0, coverage = 0, corpus = 0;
  int slices = 0;
  double gain = 0;    // new coverage per second in its last slice
  int last_slice = 0;  // the number of that slice
};

class Jobs {
 public:
  explicit Jobs(const FuzzOptions& o) : o_(o) {
    for (const char* folder : {"corpus", "findings", "logs", "tmp"}) make_folder(o_.work / folder);
    for (const std::string& t : o_.targets)
      for (const char* folder : {"corpus", "findings"}) make_folder(o_.work / folder / t);
    load();
  }

  Json run() {
    // These findings come from a run that was killed before it reached them.
    for (const std::string& t : o_.targets) take_findings(t);
    while (spent_ < o_.seconds) {
      require_space(o_.work);
      const std::string target = next_target();
      run_slice(target, std::min(o_.slice, o_.seconds - spent_));
      take_findings(target);
      if (bytes_in(o_.work / "corpus" / target) >> 20 > static_cast<std::uintmax_t>(o_.corpus_mib)) merge(target);
      save();
    }
    for (const std::string& t : o_.targets) merge(t);
    save();
    return summary();
  }

 private:
  fs::path program(const std::string& target) const { return o_.binaries / (target + "_fuzz"); }

  void load() {
    const fs::path path = o_.work / "state.json";
    if (!fs::exists(path)) return;
    Json j;
    try {
      j = Json::parse(read_whole(path));
      spent_ = j.at("seconds");
      slice_ = j.at("slices");
      for (const auto& [name, t] : j.at("targets").items())
        states_[name] = {t.at("seconds"), t.at("executions"), t.at("coverage"), t.at("corpus"), t.at("slices"), t.at("gain"), t.at("last_slice")};
    } catch (const Json::exception& e) {
      throw std::invalid_argument(fmt::format("{}: is no state of fuzz jobs ({}); nothing was changed", path.string(), e.what()));
    }
    for (std::ifstream in(o_.work / "findings.jsonl"); in;) {
      std::string line;
      if (!std::getline(in, line)) break;
      const Json f = Json::parse(line, nullptr, false);
      if (f.is_object() && f.contains("file")) findings_.push_back(f), known_.insert(f.value("target", "") + "/" + f.value("file", ""));
    }
    if (spent_ > 0) say(fmt::format("going on after {:.0f} s and {} findings", spent_, findings_.size()));
  }

  void save() const {
    Json targets = Json::object();
    for (const auto& [name, t] : states_)
      targets[name] = {{"seconds", t.seconds}, {"executions", t.executions}, {"coverage", t.coverage}, {"corpus", t.corpus}, {"slices", t.slices}, {"gain", t.gain}, {"last_slice", t.last_slice}};
    write_file(o_.work / "state.json", Json{{"seconds", spent_}, {"slices", slice_}, {"targets", targets}}.dump(1) + "\n");
  }

  void say(const std::string& line) const {
    if (o_.say) o_.say(line);
  }

  // Each target runs once first. Then the target that found most per second in its last slice runs;
  // every fourth slice goes to the target that has waited longest.
  std::string next_target() {
    const auto state = [&](const std::string& t) -> const TargetState& { return states_[t]; };
    for (const std::string& t : o_.targets)
      if (state(t).slices == 0) return t;
    if (slice_ % 4 == 3) return *std::ranges::min_element(o_.targets, {}, [&](const std::string& t) { return state(t).last_slice; });
    return *std::ranges::max_element(o_.targets, {}, [&](const std::string& t) { return std::pair(state(t).gain, -state(t).last_slice); });
  }

  void run_slice(const std::string& target, double seconds) {
    TargetState& state = states_[target];
    const auto start = Clock::now();
    struct Job {
      std::unique_ptr<Process> process;
      fs::path output;
    };
    std::vector<Job> jobs(static_cast<std::size_t>(o_.jobs));
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
    for (int started = 0; since(start) < seconds && (started < most_starts || std::ranges::any_of(jobs, [](const Job& j) { return j.process != nullptr; }));) {
      for (std::size_t n = 0; n < jobs.size(); ++n) {
        Job& job = jobs[n];
        if (job.process && !job.process->poll()) continue;
        const auto left = static_cast<int>(seconds - since(start));
        if (job.process) {
          hear(job.output);
          job.process.reset();
          if (executions == 0 && started > o_.jobs + 5)
            throw std::runtime_error(fmt::format("{} ends before it has run anything: {}", program(target).string(), read_whole(job.output).substr(0, 500)));
        }
        if (left < 1 || started >= most_starts) continue;
        job.output = o_.work / "logs" / fmt::format("{}.{}.txt", target, n);
        job.process = std::make_unique<Process>(arguments(target, left, started), job.output, environment());
        ++started;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    for (Job& job : jobs)
      if (job.process) {
        job.process->wait_for(15);
        hear(job.output);
      }
    const double took = since(start);
    state.gain = std::max(0.0, coverage - state.coverage) / took;
    state.coverage = std::max(state.coverage, coverage);
    state.executions += executions;
    state.corpus = corpus;
    state.seconds += took;
    state.last_slice = ++slice_;
    ++state.slices;
    spent_ += took;
    const std::string line = fmt::format("{:>6.0f} s  {:<10} {:>9.0f} executions, {:>6.0f} a second, coverage {:.0f} (+{:.2f} a second), corpus {:.0f}, findings {}", spent_, target, executions,
                                         executions / took, state.coverage, state.gain, corpus, findings_.size());
    std::ofstream(o_.work / "log.txt", std::ios::app) << line << "\n";
    say(line);
  }

  std::vector<std::string> arguments(const std::string& target, int seconds, int number) const {
    std::vector<std::string> a = {program(target), fmt::format("-max_total_time={}", seconds), fmt::format("-rss_limit_mb={}", o_.memory_mib), "-timeout=60", "-print_final_stats=1", "-reload=5",
                                  "-max_len=4096", fmt::format("-seed={}", o_.seed + static_cast<std::uint64_t>(slice_ * 1000 + number)), fmt::format("-artifact_prefix={}/", (o_.work / "findings" / target).string()),
                                  o_.work / "corpus" / target};
    if (const fs::path seeds = o_.seeds / target; !o_.seeds.empty() && fs::is_directory(seeds)) a.push_back(seeds);
    return a;
  }
  std::vector<std::pair<std::string, std::string>> environment() const {
    return {{"TMPDIR", o_.work / "tmp"}, {"ASAN_OPTIONS", "allocator_may_return_null=1:detect_leaks=0"}};
  }

  // Runs the target on one input. Returns what it printed if it did not end normally.
  std::optional<Said> said_on(const std::string& target, const fs::path& input, double seconds) const {
    const fs::path output = o_.work / "logs" / (target + ".reproduce.txt");
    Process p({program(target), "-timeout=60", fmt::format("-rss_limit_mb={}", o_.memory_mib), fmt::format("-artifact_prefix={}/", (o_.work / "tmp").string()), input}, output, environment());
    const bool ended = p.wait_for(seconds);
    if (ended && WIFEXITED(p.wait()) && WEXITSTATUS(p.wait()) == 0) return std::nullopt;
    Said said = listen(read_whole(output));
    if (!ended) said.reason = fmt::format("no end after {:.0f} s", seconds);
    return said;
  }

  void take_findings(const std::string& target) {
    std::vector<fs::path> files;
    for (const auto& e : fs::directory_iterator(o_.work / "findings" / target))
      if (e.is_regular_file()) files.push_back(e.path());
    std::ranges::sort(files);
    for (const fs::path& file : files) {
      const std::string name = file.filename();
      if (known_.contains(target + "/" + name)) continue;
      Json f = {{"target", target}, {"file", name}};
      // not a file of libFuzzer
      if (name.find('-') == std::string::npos || name.starts_with('.')) continue;
      const std::optional<Said> said = said_on(target, file, 90);
      f["reason"] = said ? said->reason : "does not happen again on its own";
      const std::string signature = without_numbers(f["reason"]);
      const auto same = std::ranges::count_if(findings_, [&](const Json& other) { return other["target"] == target && without_numbers(other["reason"]) == signature; });
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
        say(fmt::format("FINDING in {}: {}\n  {}\n  reproduce: {} {}", target, f["reason"].get<std::string>(), f.contains("shrunk") ? f["shrunk"].get<std::string>() : name, program(target).string(),
                        f.contains("kept") ? f["kept"].get<std::string>() : file.string()));
    }
  }

  void shrink_by_meaning(const std::string& target, const Said& said, Json& f) const {
    const auto deadline = Clock::now() + std::chrono::duration<double>(o_.shrink_seconds);
    const fs::path trial = o_.work / "tmp" / "shrinking";
    const auto fails = [&](const Case& c) {
      write_file(trial, print_case(c));
      return said_on(target, trial, 60).has_value();
    };
    f["case"] = said.line;
    f["shrunk"] = print_case(shrink(parse_case(said.line), fails, [&] { return Clock::now() < deadline; }));
    keep(target, f, f["shrunk"]);
  }

  void shrink_by_bytes(const std::string& target, const fs::path& file, Json& f) const {
    const fs::path to = o_.work / "tmp" / "minimised";
    std::error_code ignored;
    fs::remove(to, ignored);
    Process p({program(target), "-minimize_crash=1", fmt::format("-max_total_time={:.0f}", o_.shrink_seconds), "-timeout=60", fmt::format("-exact_artifact_path={}", to.string()), file},
              o_.work / "logs" / (target + ".minimise.txt"), environment());
    p.wait_for(o_.shrink_seconds + 30);
    const bool smaller = fs::exists(to) && said_on(target, to, 90).has_value();
    keep(target, f, read_whole(smaller ? to : file));
  }

  // From now on this input is a regression test.
  void keep(const std::string& target, Json& f, const std::string& bytes) const {
    const fs::path folder = (o_.keep.empty() ? o_.work / "regressions" : o_.keep) / target;
    make_folder(folder);
    const fs::path to = folder / ("finding-" + f["file"].get<std::string>().substr(0, 24));
    write_file(to, bytes);
    f["kept"] = to.string();
  }

  void write_findings() const {
    std::string lines;
    for (const Json& f : findings_) lines += f.dump() + "\n";
    write_file(o_.work / "findings.jsonl", lines);
  }

  // Keeps only inputs that add coverage. The merged folder is whole before anything is removed, and
  // files of other programs are not touched.
  void merge(const std::string& target) {
    const fs::path corpus = o_.work / "corpus" / target, merged = o_.work / "tmp" / (target + ".merged");
    std::error_code ignored;
    fs::remove_all(merged, ignored);
    make_folder(merged);
    Process p({program(target), "-merge=1", "-timeout=60", "-max_len=4096", fmt::format("-rss_limit_mb={}", o_.memory_mib), fmt::format("-artifact_prefix={}/", (o_.work / "tmp").string()), merged, corpus},
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
    states_[target].corpus = static_cast<double>(stay.size());
  }

  Json summary() {
    Json targets = Json::array();
    for (const std::string& name : o_.targets) {
      const TargetState& t = states_[name];  // zeros, if there was no time left for it
      const auto found = std::ranges::count_if(findings_, [&](const Json& f) { return f["target"] == name; });
      targets.push_back({{"target", name},
                         {"seconds", t.seconds},
                         {"executions", t.executions},
                         {"executions_per_second", t.seconds > 0 ? t.executions / t.seconds : 0},
                         {"coverage", t.coverage},
                         {"corpus", t.corpus},
                         {"findings", found}});
    }
    return {{"format", 1}, {"seconds", spent_}, {"seed", o_.seed}, {"targets", targets}, {"findings", findings_}};
  }

  const FuzzOptions& o_;
  double spent_ = 0;
  int slice_ = 0;
  std::map<std::string, TargetState> states_;
  std::vector<Json> findings_;
  std::set<std::string> known_;
};

}  // namespace

std::vector<std::string> fuzz_targets(const fs::path& binaries) {
  std::vector<std::string> targets;
  std::error_code error;
  for (const auto& e : fs::directory_iterator(binaries, error)) {
    const std::string name = e.path().filename();
    if (e.is_regular_file() && name.ends_with("_fuzz") && access(e.path().c_str(), X_OK) == 0) targets.push_back(name.substr(0, name.size() - 5));
  }
  if (targets.empty()) throw std::invalid_argument(fmt::format("{}: no fuzz target (TARGET_fuzz) is there", binaries.string()));
  std::ranges::sort(targets);
  return targets;
}

Json fuzz(const FuzzOptions& options) {
  const std::vector<std::string> known = fuzz_targets(options.binaries);
  FuzzOptions o = options;
  if (o.targets.empty()) o.targets = known;
  for (const std::string& t : o.targets)
    if (std::ranges::find(known, t) == known.end()) throw std::invalid_argument(fmt::format("unknown target '{}'; there are {}", t, fmt::join(known, ", ")));
  return Jobs(o).run();
}

TimeToFind time_to_find(const fs::path& program, const std::string& candidate, const fs::path& work, double seconds, std::uint64_t seed) {
  make_folder(work);
  const fs::path output = work / "output.txt";
  const auto start = Clock::now();
  Process p({program, fmt::format("-max_total_time={:.0f}", seconds), "-max_len=4096", "-print_final_stats=1", "-timeout=60", fmt::format("-seed={}", seed), fmt::format("-artifact_prefix={}/", work.string())}, output,
            {{"ASSAY_FUZZ_CANDIDATE", candidate}});
  p.wait_for(seconds + 60);
  const Said said = listen(read_whole(output));
  return {!said.line.empty(), since(start), said.executions, said.line, said.reason};
}

}  // namespace assay
