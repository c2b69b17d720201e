#include "harness/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "problem/clock.h"

extern char** environ;

namespace assay {
namespace {

constexpr int cannot_run = 127;  // shells use this status too; nothing reads it here

[[noreturn]] void fail(int error, const std::string& purpose) {
  throw std::system_error(error, std::generic_category(), purpose);
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

std::vector<std::string> environment_with(const std::vector<std::string>& more) {
  std::vector<std::string> all = more;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry, name = text.substr(0, text.find('=') + 1);
    if (std::ranges::none_of(more, [&](const std::string& m) { return m.starts_with(name); }))
      all.push_back(text);
  }
  return all;
}

// Everything that the new process needs before the program runs. It is complete before the fork,
// because between fork and exec the child of a process with threads may call very little.
class Preparation {
 public:
  explicit Preparation(const ProcessStart& how)
      : how_(how),
        arguments_(how.arguments),
        environment_(environment_with(how.environment)),
        argv_(pointers_to(arguments_)),
        envp_(pointers_to(environment_)),
        failure_(make_pipe("starting " + how.program)) {
    int highest = STDERR_FILENO;
    for (const auto& d : how.descriptors) highest = std::max(highest, d.theirs);
    // All sources lie above all targets, so that no copy overwrites a source that is still needed.
    for (const auto& d : how.descriptors) sources_.push_back(above(highest, d.ours));
    failure_.in = above(highest, failure_.in.number());
  }

  // Called in the new process.
  [[noreturn]] void run(pid_t parent) const {
    for (std::size_t k = 0; k < sources_.size(); ++k)
      if (dup2(sources_[k].number(), how_.descriptors[k].theirs) < 0) give_up();
    if (how_.dies_with_thread) {
      if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) give_up();
      if (getppid() != parent) _exit(cannot_run);  // the parent had already ended
    }
    execve(how_.program.c_str(), argv_.data(), envp_.data());
    give_up();
  }

  // Called in the old process. Returns 0 if the program runs, otherwise the error that prevented
  // it.
  int error() {
    failure_.in.close();
    int error = 0;
    while (read(failure_.out.number(), &error, sizeof error) < 0 && errno == EINTR) {
    }
    return error;
  }

 private:
  static Descriptor above(int highest, int number) {
    Descriptor copy(fcntl(number, F_DUPFD_CLOEXEC, highest + 1));
    if (copy.number() < 0) fail(errno, "a descriptor for a new process");
    return copy;
  }

  [[noreturn]] void give_up() const {
    const int error = errno;
    // If this write fails too, only the status tells about the failure.
    [[maybe_unused]] const ssize_t n = write(failure_.in.number(), &error, sizeof error);
    _exit(cannot_run);
  }

  const ProcessStart& how_;
  std::vector<std::string> arguments_, environment_;
  std::vector<char*> argv_, envp_;
  std::vector<Descriptor> sources_;
  Channel failure_;  // it closes when the program runs; otherwise the error comes through it
};

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

void Descriptor::close() {
  if (number_ >= 0) ::close(number_);
  number_ = -1;
}

int Descriptor::release() { return std::exchange(number_, -1); }

Channel make_pipe(const std::string& purpose) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) fail(errno, purpose);
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

Channel make_socket_pair(const std::string& purpose) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) fail(errno, purpose);
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

Descriptor open_nothing(const std::string& purpose) {
  Descriptor nothing(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (nothing.number() < 0) fail(errno, purpose);
  return nothing;
}

Process::Process(const ProcessStart& how) : ends_others_(how.ends_others) {
  Preparation preparation(how);
  const pid_t parent = getpid();
  id_ = fork();
  if (id_ < 0) fail(errno, "starting " + how.program);
  if (id_ == 0) preparation.run(parent);
  if (const int error = preparation.error(); error != 0) {
    wait();
    fail(error, "starting " + how.program);
  }
}

Process::~Process() { end(); }

void Process::end() {
  constexpr double seconds_to_end_others = 5;
  if (ends_others_ && !poll()) {
    ::kill(id_, SIGTERM);
    if (ends_within(seconds_to_end_others)) return;
  }
  kill();
  wait();
}

void Process::kill() {
  if (!status_) ::kill(id_, SIGKILL);
}

std::optional<int> Process::poll() {
  if (!status_) look(WNOHANG);
  return status_;
}

int Process::wait() {
  while (!status_) look(0);
  return *status_;
}

void Process::look(int options) {
  int status = 0;
  const pid_t ended = waitpid(id_, &status, options);
  if (ended == id_) status_ = status;
  // Where SIGCHLD is ignored, the system keeps no status. Then only the end of the process is
  // known.
  else if (ended < 0 && errno == ECHILD) status_ = 0;
}

bool Process::ends_within(double seconds) {
  for (const auto deadline = seconds_from_now(seconds); !poll();) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

bool Process::wait_for(double seconds) {
  const bool ended = ends_within(seconds);
  if (!ended) end();
  return ended;
}

bool was_killed(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL; }

std::string how_it_ended(int status) {
  if (!WIFSIGNALED(status)) return fmt::format("exited with status {}", WEXITSTATUS(status));
  return fmt::format("was killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
}

}  // namespace assay
