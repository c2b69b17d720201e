#include "harness/judging/workers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <map>
#include <new>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "harness/crash_note.h"
#include "harness/process.h"
#include "harness/results/schema.h"
#include "harness/shortage.h"
#include "harness/text.h"
#include "problem/clock.h"

namespace assay {
namespace {

constexpr int result_descriptor = 3, crash_descriptor = 4;
// This mark begins a line that says what runs at present: the turn, the relation and the problem. A
// result begins with a brace.
constexpr char present_mark = '@';

// What a worker writes if it has no memory for a result. This text needs no memory.
constexpr std::string_view out_of_memory_line = "!\n";
constexpr const char* other_library = "not judged: the library's file changed during the run";
constexpr const char* out_of_memory = "out of memory (--memory limits a worker)";

std::string text_of(const Present& now) {
  return fmt::format("{}{}\t{}\t{}", present_mark, name_of(now.turn), now.relation, now.line);
}

// Reads what text_of() wrote.
Present present_of(const std::string& text) {
  const std::size_t first = text.find('\t'), second = text.find('\t', first + 1);
  Present now;
  if (const auto turn = value_named<Turn>(text.substr(1, first - 1))) now.turn = *turn;
  now.relation = text.substr(first + 1, second - first - 1);
  now.line = text.substr(second + 1);
  return now;
}

// Returns false if the other end is closed.
bool send(std::string line) {
  line += '\n';
  for (std::size_t at = 0; at < line.size();) {
    const ssize_t n = write(result_descriptor, line.data() + at, line.size() - at);
    if (n < 0 && errno != EINTR) return false;
    if (n > 0) at += usize(n);
  }
  return true;
}

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// Returns null if the descriptor is not one of this shared memory.
CrashPage* map_crash_page(int descriptor) {
  void* page = mmap(nullptr, sizeof(CrashPage), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  return page == MAP_FAILED ? nullptr : static_cast<CrashPage*>(page);
}

// The page on which a worker notes how it crashes. The worker gets a descriptor of its memory.
class SharedCrashPage {
 public:
  SharedCrashPage() : memory_(memfd_create("assay-crash", MFD_CLOEXEC)) {
    if (memory_.number() >= 0 && ftruncate(memory_.number(), sizeof(CrashPage)) == 0)
      page_ = map_crash_page(memory_.number());
    if (page_) return;
    // Where files may not grow, this memory may not either. A crash is told without its place then:
    // the worker cannot map this device.
    memory_ = Descriptor(open("/dev/null", O_RDWR | O_CLOEXEC));
    if (memory_.number() < 0) fail("a descriptor for a worker");
  }
  SharedCrashPage(const SharedCrashPage&) = delete;
  SharedCrashPage& operator=(const SharedCrashPage&) = delete;
  ~SharedCrashPage() {
    if (page_) munmap(page_, sizeof(CrashPage));
  }

  int descriptor() const { return memory_.number(); }
  // Where the worker crashed; empty if it did not.
  std::string where() const {
    return page_ ? where_it_crashed(page_->note, touched_bytes(*page_)) : std::string();
  }

 private:
  Descriptor memory_;
  CrashPage* page_ = nullptr;
};

class Worker {
 public:
  explicit Worker(const WorkerOptions& options) {
    // Nobody else can open a socket, as one could open a pipe in /proc.
    Channel ends = make_socket_pair("a socket for a worker");
    std::vector<std::string> arguments = {"assay", "worker",
                                          fmt::format("--memory={}", options.memory_mib),
                                          fmt::format("--ball-rows={}", options.execute.ball_rows)};
    if (!options.execute.power) arguments.push_back("--no-power");
    if (!options.execute.diagnosis) arguments.push_back("--no-diagnosis");
    if (!options.execute.relations) arguments.push_back("--no-relations");
    if (options.execute.evidence != EvidenceRule::fail)
      arguments.push_back(fmt::format("--evidence={}", name_of(options.execute.evidence)));
    if (options.execute.repeat != ExecuteOptions{}.repeat)
      arguments.push_back(fmt::format("--repeat={}", options.execute.repeat));
    if (options.execute.state_of_every > 0)
      arguments.push_back(fmt::format("--state-of-every={}", options.execute.state_of_every));
    if (options.execute.required != 0)
      arguments.push_back(fmt::format("--require={}", options.execute.required));
    if (options.execute.refusals) arguments.push_back("--refusals");
    if (options.execute.pictures) arguments.push_back("--pictures");
    if (options.execute.around != Surroundings::bands)
      arguments.push_back(options.execute.around == Surroundings::page_behind
                              ? "--guard-pages=behind"
                              : "--guard-pages=before");
    if (options.execute.oracle_threads != 1)
      arguments.push_back(fmt::format("--oracle-threads={}", options.execute.oracle_threads));
    process_.emplace(ProcessStart{.program = options.executable,
                                  .arguments = std::move(arguments),
                                  .descriptors = {{ends.in.number(), STDIN_FILENO},
                                                  {ends.in.number(), result_descriptor},
                                                  {crash_.descriptor(), crash_descriptor}},
                                  .dies_with_thread = true});
    socket_ = std::move(ends.out);
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    socket_.close();
    if (item) process_->kill();
    process_->wait();  // the worker ends when its input ends
  }

  int descriptor() const { return socket_.number(); }
  std::optional<std::size_t> item;
  std::vector<std::string> served;  // the lines of the cases that it has finished
  Clock::time_point deadline;
  Present now;  // as the worker told last

  void give(std::size_t index, const WorkItem& work, double timeout) {
    item = index;
    now = {};
    deadline = seconds_from_now(timeout);
    const std::string text = work.candidate + '\t' + work.line + '\n';
    // If the worker is already gone, the end of its output tells so.
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t n = write(socket_.number(), text.data() + at, text.size() - at);
      if (n < 0 && errno != EINTR) return;
      if (n > 0) at += usize(n);
    }
  }

  // Appends what can be read. Returns false at the end of the output.
  bool read_some() {
    char chunk[65536];
    const ssize_t n = read(socket_.number(), chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) return true;
    if (n <= 0) return false;
    buffer_.append(chunk, usize(n));
    return true;
  }
  std::optional<std::string> line() {
    const auto end = buffer_.find('\n');
    if (end == std::string::npos) return std::nullopt;
    std::string text = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    return text;
  }

  std::string where_it_crashed() const { return crash_.where(); }
  void end() { process_->kill(); }
  bool ended() { return process_->poll().has_value(); }
  // Waits for a worker that has closed its output, so that little is left to do.
  int wait() {
    constexpr double seconds_to_end = 5;
    process_->wait_for(seconds_to_end);
    return process_->wait();
  }

 private:
  SharedCrashPage crash_;
  std::optional<Process> process_;
  Descriptor socket_;
  std::string buffer_;
};

// The candidate of a worker. A library stays loaded from one case to the next, and so does a Python
// function, whose process takes seconds to start.
class KeptCandidate {
 public:
  Candidate& get(const std::string& name) {
    const bool stays = name.starts_with("lib:") || name.starts_with("python:");
    if (name != name_ || !stays) {
      drop();
      candidate_ = make_candidate(name);
      name_ = name;
    }
    return *candidate_;
  }
  void drop() {
    candidate_.reset();
    name_.clear();
  }

 private:
  std::string name_;
  std::unique_ptr<Candidate> candidate_;
};

// Runs one case and returns its result. No exception of a candidate leaves this function.
CaseResult run_item(const WorkItem& item, const ExecuteOptions& options, KeptCandidate& kept) {
  const auto refused = [&](const char* reason) {
    kept.drop();  // it may be in the middle of a call
    return failed_result(item.line, item.candidate, Outcome::error, reason, options.around);
  };
  try {
    const Case c = parse_case(item.line);
    return execute(c, kept.get(item.candidate), options);
  } catch (const CaseError& e) {
    CaseResult result = refused(e.what());
    result.bad_input = true;
    return result;
  } catch (const std::bad_alloc&) {
    return refused(out_of_memory);
  } catch (const ShortageError& e) {
    return refused(fmt::format("not judged: {}", e.what()).c_str());
  } catch (const std::exception& e) {
    return refused(e.what());
  }
}

// Gives items to workers, one at a time each, and receives their answers.
class Pool {
 public:
  Pool(const std::vector<WorkItem>& items, const WorkerOptions& options, const OnResult& on_result)
      : items_(items), options_(options), on_result_(on_result) {
    workers_.resize(usize(std::max(1, options.jobs)));
  }

  void run() {
    for (auto& worker : workers_) feed(worker);
    while (open_ > 0 && !stopped_)
      for (const auto& [worker, speaks, ended] : wait())
        if (speaks) hear(*worker);
        else if (ended) end_broken(*worker);  // what it has left holds its output open
        else if (Clock::now() >= (*worker)->deadline) end_late(*worker);
  }

 private:
  using Slot = std::unique_ptr<Worker>;

  void feed(Slot& w) {
    if (stopped_ || next_ >= items_.size()) return;
    if (library_changed() || (!w && !start(w))) return;
    w->give(next_, items_[next_], options_.timeout_seconds);
    ++next_;
    ++open_;
  }

  // If no worker can be started, the others go on. If there is no other, the cases that are left
  // are errors, so that the results that are there are kept. Throws std::system_error if there are
  // none.
  bool start(Slot& w) {
    try {
      w = std::make_unique<Worker>(options_);
      return true;
    } catch (const std::system_error& e) {
      if (open_ > 0) return false;
      if (next_ == 0) throw;
      refuse_the_rest(fmt::format("not judged: {}", e.what()));
      return false;
    }
  }

  void refuse_the_rest(const std::string& why) {
    while (!stopped_ && next_ < items_.size()) {
      const WorkItem& item = items_[next_];
      stopped_ = !on_result_(next_++, failed_result(item.line, item.candidate, Outcome::error, why,
                                                    options_.execute.around));
    }
  }

  bool library_changed() {
    if (!changed_ && options_.library && options_.library->changed()) {
      changed_ = true;
      refuse_the_rest(other_library);
    }
    return changed_;
  }

  void finish(Slot& w, CaseResult result) {
    const std::size_t item = *w->item;
    w->item.reset();
    w->served.push_back(items_[item].line);
    deliver(item, std::move(result));
  }

  void deliver(std::size_t item, CaseResult result) {
    if (const auto first = first_trials_.find(item); first != first_trials_.end()) {
      result = told_together(std::move(first->second), std::move(result));
      first_trials_.erase(first);
    }
    if (library_changed())
      result = failed_result(items_[item].line, items_[item].candidate, Outcome::error,
                             other_library, options_.execute.around);
    --open_;
    if (!stopped_ && !on_result_(item, std::move(result))) stopped_ = true;
  }

  // A result of a library that had computed other cases in the same process.
  struct Trial {
    CaseResult result;
    std::vector<std::string> before;  // the lines of those cases
  };

  bool should_try_again(const Worker& w, const CaseResult& result) const {
    return result.outcome == Outcome::fail && items_[*w.item].candidate.starts_with("lib:") &&
           !w.served.empty() && !first_trials_.contains(*w.item);
  }

  // Gives the item of a worker, which failed there, to a fresh one.
  void try_again(Slot& w, CaseResult result) {
    const std::size_t item = *w->item;
    Trial first{std::move(result), std::move(w->served)};
    w.reset();
    try {
      w = std::make_unique<Worker>(options_);
    } catch (const std::system_error& e) {
      first.result.reason += fmt::format("; not tried again: {}", e.what());
      deliver(item, std::move(first.result));
      return feed(w);
    }
    first_trials_.emplace(item, std::move(first));
    w->give(item, items_[item], options_.timeout_seconds);
  }

  // What the case gave after others and what it gave in a fresh process, as one failure.
  static CaseResult told_together(Trial first, CaseResult fresh) {
    const std::string reason = first.result.reason;
    if (fresh.outcome == Outcome::fail) {
      fresh.reason = fresh.reason == reason
                         ? fmt::format("{} (in a fresh process too)", reason)
                         : fmt::format("{}; in a fresh process: {}", reason, fresh.reason);
      return fresh;
    }
    CaseResult result = std::move(first.result);
    result.reason = fmt::format("{}; in a fresh process: {}", reason, name_of(fresh.outcome));
    if (passed(fresh.outcome)) tell_what_ran_before(result, first.before);
    else result.reason += ": " + fresh.reason;
    return result;
  }

  // The command runs these cases in the same order in one process.
  static void tell_what_ran_before(CaseResult& result, const std::vector<std::string>& lines) {
    constexpr std::size_t most = 20;
    const std::size_t count = lines.size(), first = count - std::min(count, most);
    result.reason +=
        fmt::format(", so what the library keeps from the {} before matters{}",
                    count == 1 ? "case" : counted(count, "case"),
                    first == 0 ? "" : fmt::format("; the command runs the last {} of them", most));
    std::string before = "--jobs 1 ";
    for (std::size_t k = first; k < count; ++k)
      before += fmt::format("--case {} ", shell_quoted(lines[k]));
    result.reproduce.insert(result.reproduce.rfind("--case"), before);
  }

  // Takes the result of a worker that goes on.
  void take(Slot& w, CaseResult result) {
    if (should_try_again(*w, result)) return try_again(w, std::move(result));
    finish(w, std::move(result));
    feed(w);
  }

  struct Busy {
    Slot* worker;
    bool speaks;  // there is something to read
    bool ended;   // it had ended before that was looked for
  };
  // Waits until a worker has something to say or a deadline has passed, but not longer than a
  // second. Returns the workers that have an item.
  std::vector<Busy> wait() {
    std::vector<pollfd> polled;
    std::vector<Busy> busy;
    auto wake = Clock::now() + std::chrono::seconds(1);
    for (Slot& w : workers_)
      if (w && w->item) {
        polled.push_back({w->descriptor(), POLLIN, 0});
        busy.push_back({&w, false, w->ended()});
        wake = std::min(wake, w->deadline);
      }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(wake - Clock::now());
    const auto wait = static_cast<int>(std::max<long>(0, left.count()) + 1);
    if (poll(polled.data(), polled.size(), wait) < 0 && errno != EINTR) fail("waiting for workers");
    for (std::size_t k = 0; k < polled.size(); ++k) busy[k].speaks = polled[k].revents != 0;
    return busy;
  }

  void hear(Slot& w) {
    const bool alive = w->read_some();
    std::optional<std::string> text = w->line();
    for (; text && text->starts_with(present_mark); text = w->line()) w->now = present_of(*text);
    if (text && *text + '\n' == out_of_memory_line) {
      w->end();
      replace(w, Outcome::error, out_of_memory);
    } else if (text) {
      take(w, from_json<CaseResult>(parse_json(*text, "result of a worker"), "result of a worker"));
    } else if (!alive) {
      end_broken(w);
    }
  }

  // A candidate that breaks its process fails. What the system kills for want of memory has not
  // failed, and neither has a candidate whose code does not run in the worker.
  void end_broken(Slot& w) {
    const int status = w->wait();
    const std::string crash = w->where_it_crashed();
    const std::string how =
        assay::how_it_ended(status) + (crash.empty() ? "" : fmt::format(": {}", crash));
    if (was_killed(status))
      return replace(
          w, Outcome::error,
          fmt::format("not judged: the worker {}, as processes are when memory is short", how));
    const bool of_library = items_[*w->item].candidate.starts_with("lib:");
    if (of_library || w->now.turn == Turn::inputs)
      return replace(w, Outcome::error, fmt::format("not judged: the worker {}", how));
    replace(w, Outcome::fail,
            fmt::format("the candidate's process {}{}{}", how,
                        WIFSIGNALED(status) ? "" : " in the middle of the case", where(*w)));
  }

  // The relation and the problem that ran, if the case itself had been computed already.
  static std::string where(const Worker& w) {
    if (w.now.relation.empty()) return "";
    return fmt::format(", in relation {}, on '{}'", w.now.relation, w.now.line);
  }

  // Only a candidate that is late fails. If the judging is late, the case is an error.
  void end_late(Slot& w) {
    w->end();
    if (w->now.turn == Turn::candidate)
      return replace(w, Outcome::fail,
                     fmt::format("the candidate did not finish within {} s{}",
                                 options_.timeout_seconds, where(*w)));
    const char* late = w->now.turn == Turn::verdict
                           ? "candidate had answered; oracle and bound were not ready"
                           : "inputs were not ready";
    replace(w, Outcome::error,
            fmt::format("not judged: the {} within the {} s of --timeout", late,
                        options_.timeout_seconds));
  }

  // The worker ended without a result of its item. Finishes the item and gives the next one to a
  // new worker.
  void replace(Slot& w, Outcome outcome, const std::string& reason) {
    const WorkItem& item = items_[*w->item];
    CaseResult result =
        failed_result(item.line, item.candidate, outcome, reason, options_.execute.around);
    if (!w->now.relation.empty())
      result.reproduce = check_command(item.candidate, w->now.line, options_.execute.around);
    result.reproduce += further_options(options_.execute);
    if (should_try_again(*w, result)) return try_again(w, std::move(result));
    finish(w, std::move(result));
    w.reset();
    feed(w);
  }

  const std::vector<WorkItem>& items_;
  const WorkerOptions& options_;
  const OnResult& on_result_;
  std::vector<Slot> workers_;
  std::size_t next_ = 0, open_ = 0;
  bool stopped_ = false, changed_ = false;
  std::map<std::size_t, Trial> first_trials_;  // of items that are tried again
};

}  // namespace

void run_in_workers(const std::vector<WorkItem>& items, const WorkerOptions& options,
                    const OnResult& on_result) {
  if (!options.in_process) {
    signal(SIGPIPE, SIG_IGN);
    return Pool(items, options, on_result).run();
  }
  KeptCandidate kept;
  for (std::size_t k = 0; k < items.size(); ++k) {
    if (items[k].candidate.starts_with("lib:")) kept.drop();
    if (!on_result(k, run_item(items[k], options.execute, kept))) return;
  }
}

int worker_main(Index memory_mib, const ExecuteOptions& options) {
#ifndef ASSAY_SANITIZED  // sanitizers reserve far more address space than they use
  if (memory_mib > 0) {
    const rlim_t bytes = static_cast<rlim_t>(memory_mib) << 20;
    const rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_DATA, &limit);
  }
#else
  (void)memory_mib;
#endif
  if (CrashPage* page = map_crash_page(crash_descriptor)) {
    note_crashes_on(*page);
    close(crash_descriptor);  // what the worker starts has no use for it
  }
  ExecuteOptions telling = options;
  telling.begins = [](const Present& now) { send(text_of(now)); };
  try {
    KeptCandidate kept;
    std::cin.exceptions(std::ios::badbit);  // a line for which there is no memory is not the end
    for (std::string text; std::getline(std::cin, text);) {
      const auto tab = text.find('\t');
      const CaseResult result =
          run_item({text.substr(tab + 1), text.substr(0, tab)}, telling, kept);
      const Json json = to_json(result);
      if (!send(json.dump(-1, ' ', false, Json::error_handler_t::replace))) return 3;
    }
    return 0;
  } catch (const std::bad_alloc&) {
    (void)!write(result_descriptor, out_of_memory_line.data(), out_of_memory_line.size());
    return 3;
  }
}

}  // namespace assay
