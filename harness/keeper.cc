#include "harness/keeper.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "harness/confinement.h"
#include "harness/process.h"

namespace assay {
namespace {

// The parent of a process, as /proc/ID/stat tells it: "id (name) state parent ...". The name may
// hold anything. Returns 0 if the process is gone.
pid_t parent_of(const std::string& process) {
  const Descriptor file(open(("/proc/" + process + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
  if (file.number() < 0) return 0;
  char text[512];
  const ssize_t n = read(file.number(), text, sizeof text);
  const std::string_view stat(text, n > 0 ? static_cast<std::size_t>(n) : 0);
  const std::size_t name_end = stat.rfind(')');
  if (name_end == std::string_view::npos || name_end + 4 > stat.size()) return 0;
  pid_t parent = 0;
  std::from_chars(stat.data() + name_end + 4, stat.data() + stat.size(), parent);
  return parent;
}

void kill_children() {
  DIR* folder = opendir("/proc");
  if (!folder) return;
  while (const dirent* entry = readdir(folder)) {
    pid_t process = 0;
    const std::string name = entry->d_name;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), process);
    if (error == std::errc() && end == name.data() + name.size() && parent_of(name) == getpid())
      kill(process, SIGKILL);
  }
  closedir(folder);
}

// The children of a killed child become children of this process. So this ends when the last
// descendant has ended.
void kill_descendants() {
  for (auto pause = std::chrono::milliseconds(1);;) {
    pid_t ended = 0;
    while ((ended = waitpid(-1, nullptr, WNOHANG)) > 0) {
    }
    if (ended < 0 && errno == ECHILD) return;
    kill_children();
    std::this_thread::sleep_for(pause);
    if (pause < std::chrono::milliseconds(50)) pause *= 2;
  }
}

// Waits until the child ends and returns its status. If something else asks for the end, kills the
// child first.
int wait_for(pid_t child, const sigset_t& signals) {
  for (;;) {
    const int signal = sigwaitinfo(&signals, nullptr);
    if (signal < 0) continue;  // a debugger stopped this process
    int status = 0;
    if (signal != SIGCHLD) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return status;
    }
    // Other children are processes that the child has left.
    for (pid_t ended = 0; (ended = waitpid(-1, &status, WNOHANG)) > 0;)
      if (ended == child) return status;
  }
}

// Whether the process was started so, as by nohup. Then the whole command goes on.
bool is_ignored(int signal) {
  struct sigaction now{};
  return sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

[[noreturn]] void end_with(int status) {
  if (WIFSIGNALED(status)) {
    const rlimit none{0, 0};  // the child has written its core file, if any
    setrlimit(RLIMIT_CORE, &none);
    signal(WTERMSIG(status), SIG_DFL);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_UNBLOCK, &all, nullptr);
    raise(WTERMSIG(status));
  }
  _exit(WEXITSTATUS(status));
}

}  // namespace

void run_and_end_all(const std::function<int()>& body) {
  sigset_t signals, before;
  sigemptyset(&signals);
  sigaddset(&signals, SIGCHLD);
  sigaddset(&signals, SIGTERM);
  for (const int s : {SIGINT, SIGHUP})
    if (!is_ignored(s)) sigaddset(&signals, s);
  sigprocmask(SIG_BLOCK, &signals, &before);
  signal(SIGCHLD, SIG_DFL);  // if it is ignored, the status of a child is lost
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
  const pid_t keeper = getpid(), child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != keeper) _exit(0);  // it has ended already
    sigprocmask(SIG_SETMASK, &before, nullptr);
    _exit(body());
  }
  if (child < 0)
    throw std::system_error(errno, std::generic_category(), "starting a process of its own");
  close_from(STDERR_FILENO + 1);  // who waits for the end of a stream of the child must hear it
  const int status = wait_for(child, signals);
  kill_descendants();
  end_with(status);
}

}  // namespace assay
