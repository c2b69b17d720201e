#include "harness/workers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <optional>
#include <system_error>

extern char** environ;

namespace assay {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int result_descriptor = 3;
constexpr char turn_mark = '@';  // begins a line that says whose turn it is; a result begins with a brace

// False if nobody reads any more.
bool send(std::string line) {
  line += '\n';
  for (std::size_t at = 0; at < line.size();) {
    const ssize_t n = write(result_descriptor, line.data() + at, line.size() - at);
    if (n < 0 && errno != EINTR) return false;
    if (n > 0) at += static_cast<std::size_t>(n);
  }
  return true;
}

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

class Worker {
 public:
  explicit Worker(const WorkerOptions& options) {
    int to_child[2], from_child[2];
    // A socket: writing to one whose reader is gone need not raise SIGPIPE, whose disposition belongs to the whole process.
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, to_child) != 0) fail("socket for a worker");
    if (pipe2(from_child, O_CLOEXEC) != 0) {
      close(to_child[0]), close(to_child[1]);
      fail("pipe for a worker");
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    // The child's own ends may already be descriptor 3: go by way of a number that nobody uses.
    posix_spawn_file_actions_adddup2(&actions, from_child[1], 200);
    posix_spawn_file_actions_adddup2(&actions, to_child[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, 200, result_descriptor);
    posix_spawn_file_actions_addclose(&actions, 200);
    std::vector<std::string> arguments = {"assay", "worker", fmt::format("--memory={}", options.memory_mib),
                                          fmt::format("--ball-rows={}", options.execute.ball_rows)};
    if (!options.execute.power) arguments.push_back("--no-power");
    if (!options.execute.relations) arguments.push_back("--no-relations");
    if (options.execute.pictures) arguments.push_back("--pictures");
    if (options.execute.around != Surroundings::bands)
      arguments.push_back(options.execute.around == Surroundings::page_behind ? "--guard-pages=behind" : "--guard-pages=before");
    if (options.execute.oracle_threads != 1) arguments.push_back(fmt::format("--oracle-threads={}", options.execute.oracle_threads));
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    const int error = posix_spawn(&pid_, options.executable.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to_child[0]);
    close(from_child[1]);
    if (error != 0) {
      close(to_child[1]), close(from_child[0]);
      throw std::system_error(error, std::generic_category(), "starting a worker");
    }
    in_ = to_child[1];
    out_ = from_child[0];
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    close(in_);
    close(out_);
    if (pid_ > 0) {
      if (item) kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  int descriptor() const { return out_; }
  std::optional<std::size_t> item;
  Clock::time_point deadline;
  std::string turn;  // whose it is; that of the candidate, unless something else is said

  void give(std::size_t index, const WorkItem& work, double timeout) {
    item = index;
    turn = "candidate";
    deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout));
    const std::string text = work.candidate + '\t' + work.line + '\n';
    // A worker that is already gone shows as the end of its output.
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t n = ::send(in_, text.data() + at, text.size() - at, MSG_NOSIGNAL);
      if (n < 0 && errno != EINTR) return;
      if (n > 0) at += static_cast<std::size_t>(n);
    }
  }

  // Appends what can be read; false at the end of the output.
  bool read_some() {
    char chunk[65536];
    const ssize_t n = read(out_, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) return true;
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<std::size_t>(n));
    return true;
  }
  std::optional<std::string> line() {
    const auto end = buffer_.find('\n');
    if (end == std::string::npos) return std::nullopt;
    std::string text = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    return text;
  }

  void end() { kill(pid_, SIGKILL); }
  std::string how_it_ended() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    if (WIFSIGNALED(status)) return fmt::format("the candidate's process was killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
    return fmt::format("the candidate's process exited with status {} in the middle of the case", WEXITSTATUS(status));
  }

 private:
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1;
  std::string buffer_;
};

// What can be told of one case; nothing that a candidate throws gets past this.
Json run_item(const std::string& line, const std::string& name, const ExecuteOptions& options) {
  Json result;
  try {
    const Case c = parse_case(line);
    const std::unique_ptr<Candidate> candidate = make_candidate(name);
    return to_json(execute(c, *candidate, options));
  } catch (const CaseError& e) {
    result = failed_result(line, name, Outcome::error, e.what(), options.around);
    result["bad_input"] = true;
  } catch (const std::bad_alloc&) {
    result = failed_result(line, name, Outcome::error, "out of memory (--memory limits a worker)", options.around);
  } catch (const std::exception& e) {
    result = failed_result(line, name, Outcome::error, e.what(), options.around);
  }
  return result;
}

}  // namespace

void run_in_workers(const std::vector<WorkItem>& items, const WorkerOptions& options, const OnResult& on_result) {
  if (options.in_process) {
    for (std::size_t k = 0; k < items.size(); ++k)
      if (!on_result(k, run_item(items[k].line, items[k].candidate, options.execute))) return;
    return;
  }
  std::vector<std::unique_ptr<Worker>> workers;
  std::size_t next = 0, open = 0;
  bool stopped = false;
  auto feed = [&](std::unique_ptr<Worker>& w) {
    if (stopped || next >= items.size()) return;
    if (!w) w = std::make_unique<Worker>(options);
    w->give(next, items[next], options.timeout_seconds);
    ++next;
    ++open;
  };
  auto finish = [&](std::unique_ptr<Worker>& w, Json result) {
    const std::size_t item = *w->item;
    w->item.reset();
    --open;
    if (!stopped && !on_result(item, std::move(result))) stopped = true;
  };
  workers.resize(static_cast<std::size_t>(std::max(1, options.jobs)));
  for (auto& w : workers) feed(w);
  while (open > 0 && !stopped) {
    std::vector<pollfd> polled;
    std::vector<std::size_t> who;
    auto wake = Clock::now() + std::chrono::seconds(1);
    for (std::size_t k = 0; k < workers.size(); ++k)
      if (workers[k] && workers[k]->item) {
        polled.push_back({workers[k]->descriptor(), POLLIN, 0});
        who.push_back(k);
        wake = std::min(wake, workers[k]->deadline);
      }
    const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(wake - Clock::now()).count();
    if (poll(polled.data(), polled.size(), static_cast<int>(std::max<long>(0, wait) + 1)) < 0 && errno != EINTR) fail("waiting for workers");
    for (std::size_t k = 0; k < polled.size(); ++k) {
      std::unique_ptr<Worker>& w = workers[who[k]];
      const WorkItem& work = items[*w->item];
      if (polled[k].revents != 0) {
        const bool alive = w->read_some();
        std::optional<std::string> text = w->line();
        for (; text && text->starts_with(turn_mark); text = w->line()) w->turn = text->substr(1);
        if (text) {
          finish(w, Json::parse(*text));
          feed(w);
        } else if (!alive) {
          finish(w, failed_result(work.line, work.candidate, Outcome::fail, w->how_it_ended(), options.execute.around));
          w.reset();
          feed(w);
        }
      } else if (Clock::now() >= w->deadline) {
        w->end();
        // Who takes long to judge has not failed.
        finish(w, w->turn == "candidate" ? failed_result(work.line, work.candidate, Outcome::fail, fmt::format("the candidate did not finish within {} s", options.timeout_seconds), options.execute.around)
                                         : failed_result(work.line, work.candidate, Outcome::error,
                                                         fmt::format("not judged: the {} were not ready within the {} s of --timeout", w->turn == "verdict" ? "candidate had answered; oracle and bound" : w->turn, options.timeout_seconds),
                                                         options.execute.around));
        w.reset();
        feed(w);
      }
    }
  }
}

int worker_main(Index memory_mib, const ExecuteOptions& options) {
#ifndef ASSAY_SANITIZED  // sanitizers reserve far more address space than they use
  if (memory_mib > 0) {
    const rlimit limit{static_cast<rlim_t>(memory_mib) << 20, static_cast<rlim_t>(memory_mib) << 20};
    setrlimit(RLIMIT_DATA, &limit);
  }
#else
  (void)memory_mib;
#endif
  ExecuteOptions telling = options;
  telling.turn = [](const char* whose) { send(std::string(1, turn_mark) + whose); };
  std::string text;
  while (std::getline(std::cin, text)) {
    const auto tab = text.find('\t');
    const std::string name = text.substr(0, tab), line = text.substr(tab + 1);
    if (!send(run_item(line, name, telling).dump(-1, ' ', false, Json::error_handler_t::replace))) return 3;
  }
  return 0;
}

}  // namespace assay
