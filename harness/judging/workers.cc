#include "harness/judging/workers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <optional>
#include <system_error>
#include <utility>

#include "harness/process.h"
#include "problem/clock.h"

namespace assay {
namespace {

constexpr int result_descriptor = 3;
// This mark begins a line that names the present turn. A result begins with a brace.
constexpr char turn_mark = '@';

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

class Worker {
 public:
  explicit Worker(const WorkerOptions& options) {
    Channel to_child = make_pipe("pipe for a worker"), from_child = make_pipe("pipe for a worker");
    std::vector<std::string> arguments = {"assay", "worker",
                                          fmt::format("--memory={}", options.memory_mib),
                                          fmt::format("--ball-rows={}", options.execute.ball_rows)};
    if (!options.execute.power) arguments.push_back("--no-power");
    if (!options.execute.relations) arguments.push_back("--no-relations");
    if (options.execute.evidence != EvidenceRule::fail)
      arguments.push_back(fmt::format("--evidence={}", name_of(options.execute.evidence)));
    if (options.execute.pictures) arguments.push_back("--pictures");
    if (options.execute.around != Surroundings::bands)
      arguments.push_back(options.execute.around == Surroundings::page_behind
                              ? "--guard-pages=behind"
                              : "--guard-pages=before");
    if (options.execute.oracle_threads != 1)
      arguments.push_back(fmt::format("--oracle-threads={}", options.execute.oracle_threads));
    process_.emplace(ProcessStart{.program = options.executable,
                                  .arguments = std::move(arguments),
                                  .descriptors = {{to_child.out.number(), STDIN_FILENO},
                                                  {from_child.in.number(), result_descriptor}}});
    in_ = std::move(to_child.in);
    out_ = std::move(from_child.out);
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    in_.close();
    out_.close();
    if (item) process_->kill();
    process_->wait();  // the worker ends when its input ends
  }

  int descriptor() const { return out_.number(); }
  std::optional<std::size_t> item;
  Clock::time_point deadline;
  Turn turn = Turn::candidate;  // the last turn that the worker named

  void give(std::size_t index, const WorkItem& work, double timeout) {
    item = index;
    turn = Turn::candidate;
    deadline = seconds_from_now(timeout);
    const std::string text = work.candidate + '\t' + work.line + '\n';
    // If the worker is already gone, the end of its output tells so.
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t n = write(in_.number(), text.data() + at, text.size() - at);
      if (n < 0 && errno != EINTR) return;
      if (n > 0) at += usize(n);
    }
  }

  // Appends what can be read. Returns false at the end of the output.
  bool read_some() {
    char chunk[65536];
    const ssize_t n = read(out_.number(), chunk, sizeof chunk);
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

  void end() { process_->kill(); }
  std::string how_it_ended() {
    const int status = process_->wait();
    return fmt::format("the candidate's process {}{}", assay::how_it_ended(status),
                       WIFSIGNALED(status) ? "" : " in the middle of the case");
  }

 private:
  std::optional<Process> process_;
  Descriptor in_, out_;
  std::string buffer_;
};

// The Python function of the last item. Loading one takes seconds, so its process is kept; other
// candidates are made for every case.
struct Kept {
  std::string name;
  std::unique_ptr<Candidate> candidate;
};

CaseResult judge_item(const Case& c, const std::string& name, const ExecuteOptions& options,
                      Kept& kept) {
  if (!name.starts_with("python:")) return execute(c, *make_candidate(name), options);
  if (name != kept.name || !kept.candidate) {
    kept.candidate = make_candidate(name);
    kept.name = name;
  }
  return execute(c, *kept.candidate, options);
}

// Runs one case and returns its result. No exception of a candidate leaves this function.
CaseResult run_item(const WorkItem& item, const ExecuteOptions& options, Kept& kept) {
  const auto refused = [&](const char* reason) {
    return failed_result(item.line, item.candidate, Outcome::error, reason, options.around);
  };
  try {
    const Case c = parse_case(item.line);
    return judge_item(c, item.candidate, options, kept);
  } catch (const CaseError& e) {
    CaseResult result = refused(e.what());
    result.bad_input = true;
    return result;
  } catch (const std::bad_alloc&) {
    return refused("out of memory (--memory limits a worker)");
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
      for (const auto& [worker, speaks] : wait())
        if (speaks) hear(*worker);
        else if (Clock::now() >= (*worker)->deadline) end_late(*worker);
  }

 private:
  using Slot = std::unique_ptr<Worker>;

  void feed(Slot& w) {
    if (stopped_ || next_ >= items_.size()) return;
    if (!w) w = std::make_unique<Worker>(options_);
    w->give(next_, items_[next_], options_.timeout_seconds);
    ++next_;
    ++open_;
  }

  void finish(Slot& w, CaseResult result) {
    const std::size_t item = *w->item;
    w->item.reset();
    --open_;
    if (!stopped_ && !on_result_(item, std::move(result))) stopped_ = true;
  }

  // Waits until a worker has something to say or a deadline has passed, but not longer than a
  // second. Returns the workers that have an item, and whether each has something to say.
  std::vector<std::pair<Slot*, bool>> wait() {
    std::vector<pollfd> polled;
    std::vector<std::pair<Slot*, bool>> busy;
    auto wake = Clock::now() + std::chrono::seconds(1);
    for (Slot& w : workers_)
      if (w && w->item) {
        polled.push_back({w->descriptor(), POLLIN, 0});
        busy.emplace_back(&w, false);
        wake = std::min(wake, w->deadline);
      }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(wake - Clock::now());
    const auto wait = static_cast<int>(std::max<long>(0, left.count()) + 1);
    if (poll(polled.data(), polled.size(), wait) < 0 && errno != EINTR) fail("waiting for workers");
    for (std::size_t k = 0; k < polled.size(); ++k) busy[k].second = polled[k].revents != 0;
    return busy;
  }

  void hear(Slot& w) {
    const bool alive = w->read_some();
    std::optional<std::string> text = w->line();
    for (; text && text->starts_with(turn_mark); text = w->line())
      if (const auto turn = value_named<Turn>(text->substr(1))) w->turn = *turn;
    if (text) {
      finish(w, from_json<CaseResult>(Json::parse(*text), "result of a worker"));
      feed(w);
    } else if (!alive) {
      replace(w, Outcome::fail, w->how_it_ended());
    }
  }

  // Only a candidate that is late fails. If the judging is late, the case is an error.
  void end_late(Slot& w) {
    w->end();
    if (w->turn == Turn::candidate)
      return replace(
          w, Outcome::fail,
          fmt::format("the candidate did not finish within {} s", options_.timeout_seconds));
    const char* late = w->turn == Turn::verdict
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
    finish(w, failed_result(item.line, item.candidate, outcome, reason, options_.execute.around));
    w.reset();
    feed(w);
  }

  const std::vector<WorkItem>& items_;
  const WorkerOptions& options_;
  const OnResult& on_result_;
  std::vector<Slot> workers_;
  std::size_t next_ = 0, open_ = 0;
  bool stopped_ = false;
};

}  // namespace

void run_in_workers(const std::vector<WorkItem>& items, const WorkerOptions& options,
                    const OnResult& on_result) {
  if (!options.in_process) {
    signal(SIGPIPE, SIG_IGN);
    return Pool(items, options, on_result).run();
  }
  Kept kept;
  for (std::size_t k = 0; k < items.size(); ++k)
    if (!on_result(k, run_item(items[k], options.execute, kept))) return;
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
  ExecuteOptions telling = options;
  telling.turn = [](Turn turn) { send(fmt::format("{}{}", turn_mark, name_of(turn))); };
  std::string text;
  Kept kept;
  while (std::getline(std::cin, text)) {
    const auto tab = text.find('\t');
    const CaseResult result = run_item({text.substr(tab + 1), text.substr(0, tab)}, telling, kept);
    const Json json = to_json(result);
    if (!send(json.dump(-1, ' ', false, Json::error_handler_t::replace))) return 3;
  }
  return 0;
}

}  // namespace assay
