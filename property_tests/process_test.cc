// Processes that the harness starts: the descriptors that they have, how failures are told, and
// what ends with them.
#include "harness/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iterator>
#include <system_error>

#include "harness/keeper.h"

namespace assay {
namespace {

using testing::HasSubstr;

ProcessStart shell(const std::string& script) {
  return {.program = "/bin/sh", .arguments = {"sh", "-c", script}};
}

std::string read_all(const Descriptor& from) {
  std::string text;
  char chunk[256];
  for (ssize_t n; (n = read(from.number(), chunk, sizeof chunk)) > 0;)
    text.append(chunk, static_cast<std::size_t>(n));
  return text;
}

// The text that a script writes to its standard output.
std::string said_by(ProcessStart how) {
  Channel pipe = make_pipe("a test");
  how.descriptors.push_back({pipe.in.number(), STDOUT_FILENO});
  Process process(how);
  pipe.in.close();
  return read_all(pipe.out);
}

std::ptrdiff_t open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

TEST(Process, DescriptorsThatAreExchangedArriveWhereTheyShould) {
  Channel first = make_pipe("a test"), second = make_pipe("a test");
  const int a = first.in.number(), b = second.in.number();
  ASSERT_LT(std::max(a, b), 10) << "the shell takes one digit";
  ProcessStart how = shell(fmt::format("echo first >&{}; echo second >&{}", b, a));
  how.descriptors = {{a, b}, {b, a}};
  Process process(how);
  first.in.close();
  second.in.close();
  EXPECT_EQ(read_all(first.out), "first\n");
  EXPECT_EQ(read_all(second.out), "second\n");
  EXPECT_EQ(how_it_ended(process.wait()), "exited with status 0");
}

TEST(Process, StandardStreamsCanBeExchangedToo) {
  Channel pipe = make_pipe("a test");
  ProcessStart how = shell("echo out; echo error >&2");
  how.descriptors = {{pipe.in.number(), STDERR_FILENO}, {STDERR_FILENO, STDOUT_FILENO}};
  Process process(how);
  pipe.in.close();
  EXPECT_EQ(read_all(pipe.out), "error\n");
}

TEST(Process, InheritsNoOtherDescriptorOfOurs) {
  const Channel kept = make_pipe("a test");
  const std::string there =
      said_by(shell(fmt::format("test -e /proc/self/fd/{} && echo there", kept.in.number())));
  EXPECT_EQ(there, "");
}

TEST(Process, LeavesNoDescriptorOpen) {
  const auto before = open_descriptors();
  said_by(shell("echo"));
  ProcessStart missing = shell("");
  missing.program = "/no/such/program";
  EXPECT_THROW(Process{missing}, std::system_error);
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Process, AProgramThatIsMissingIsNamed) {
  try {
    Process process({.program = "/no/such/program", .arguments = {"program"}});
    FAIL() << "it was started";
  } catch (const std::system_error& e) {
    EXPECT_EQ(e.code().value(), ENOENT);
    EXPECT_THAT(e.what(), HasSubstr("starting /no/such/program"));
  }
}

// Allows only so many more descriptors, until the end of the scope.
class Room {
 public:
  explicit Room(rlim_t more) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const Descriptor next(dup(STDIN_FILENO));
    const rlimit limit{static_cast<rlim_t>(next.number()) + more, before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  ~Room() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

TEST(Process, AShortageOfDescriptorsIsAnErrorOfOursAndNoAnswerOfTheChild) {
  Channel pipe = make_pipe("a test");
  ProcessStart how = shell("exit 0");
  how.descriptors = {{pipe.in.number(), 3}, {pipe.out.number(), 4}};
  int refused = 0;
  for (rlim_t more = 0;; ++more) {
    const Room room(more);
    try {
      Process process(how);
      EXPECT_EQ(how_it_ended(process.wait()), "exited with status 0");
      break;
    } catch (const std::system_error& e) {
      ++refused;
      EXPECT_EQ(e.code().value(), EMFILE);
    }
  }
  // There are two ends of the channel for errors, and a copy of each of the two that are passed on.
  EXPECT_GE(refused, 4);
}

TEST(Process, TheEnvironmentIsReplacedByName) {
  setenv("ASSAY_PROCESS_TEST", "ours", 1);
  ProcessStart how = shell("echo $ASSAY_PROCESS_TEST; env | grep -c ^ASSAY_PROCESS_TEST=");
  EXPECT_EQ(said_by(how), "ours\n1\n");
  how.environment = {"ASSAY_PROCESS_TEST=theirs"};
  EXPECT_EQ(said_by(how), "theirs\n1\n");
  unsetenv("ASSAY_PROCESS_TEST");
}

// Runs the body as run_and_end_all() does, in a process of its own, and returns how that one ended.
int status_with_all_ended(const std::function<int()>& body) {
  const pid_t keeper = fork();
  if (keeper == 0) run_and_end_all(body);
  int status = 0;
  waitpid(keeper, &status, 0);
  return status;
}

TEST(Keeper, EndsAsItsChildDoes) {
  EXPECT_EQ(how_it_ended(status_with_all_ended([] { return 5; })), "exited with status 5");
  for (const int signal : {SIGSEGV, SIGKILL, SIGTERM}) {
    const int status = status_with_all_ended([&] { return raise(signal), 0; });
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << how_it_ended(status);
  }
}

// Children, their children, and daemons. All of them hold the pipe open.
TEST(Keeper, EndsWhatItsChildHasLeft) {
  Channel pipe = make_pipe("a test");
  const int status = status_with_all_ended([&] {
    for (int k = 0; k < 3; ++k)
      if (fork() == 0) {
        if (k > 0) setsid();
        if (k > 1 && fork() != 0) _exit(0);
        for (;;) pause();
      }
    return 5;
  });
  EXPECT_EQ(how_it_ended(status), "exited with status 5");
  pipe.in.close();
  pollfd end{pipe.out.number(), POLLIN, 0};
  EXPECT_EQ(poll(&end, 1, 0), 1);
  EXPECT_EQ(end.revents, POLLHUP);
}

TEST(Keeper, EndsItsChildWhenItIsToldTo) {
  Channel pipe = make_pipe("a test");
  const auto before = signal(SIGHUP, SIG_IGN);  // as nohup does
  const pid_t keeper = fork();
  if (keeper == 0) run_and_end_all([] { return pause(); });
  signal(SIGHUP, before);
  pipe.in.close();
  kill(keeper, SIGHUP);
  EXPECT_EQ(waitpid(keeper, nullptr, WNOHANG), 0);
  kill(keeper, SIGTERM);
  int status = 0;
  waitpid(keeper, &status, 0);
  pollfd end{pipe.out.number(), POLLIN, 0};
  EXPECT_EQ(poll(&end, 1, 0), 1);
  EXPECT_EQ(end.revents, POLLHUP);
}

TEST(Process, SaysHowItEnded) {
  EXPECT_EQ(how_it_ended(Process(shell("exit 3")).wait()), "exited with status 3");
  EXPECT_EQ(how_it_ended(Process(shell("kill -SEGV $$")).wait()),
            "was killed by signal 11 (Segmentation fault)");
  Process slow(shell("exec sleep 60"));
  EXPECT_FALSE(slow.poll());
  EXPECT_FALSE(slow.wait_for(0.05));
  EXPECT_EQ(how_it_ended(slow.wait()), "was killed by signal 9 (Killed)");
  EXPECT_TRUE(Process(shell("exit 0")).wait_for(60));
}

}  // namespace
}  // namespace assay
