#include "cli/time_limit.h"

#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmath>

#include "cli/tell.h"

namespace assay {
namespace {

// What the handler says. It may neither allocate nor lock anything.
std::string sentence;
int exit_status = machine_failed;

void end_process(int) {
  (void)!write(STDERR_FILENO, sentence.data(), sentence.size());
  _exit(exit_status);
}

void set_timer(double seconds) {
  itimerval timer{};
  timer.it_value.tv_sec = static_cast<time_t>(seconds);
  timer.it_value.tv_usec = static_cast<suseconds_t>((seconds - std::floor(seconds)) * 1e6);
  setitimer(ITIMER_REAL, &timer, nullptr);
}

}  // namespace

TimeLimit::TimeLimit(const std::string& work, double seconds, ExitStatus status) {
  sentence = told_in("assay: {} did not end within the {} s of --timeout\n", work, seconds);
  exit_status = status;
  signal(SIGALRM, end_process);
  set_timer(seconds);
}

TimeLimit::~TimeLimit() {
  set_timer(0);
  signal(SIGALRM, SIG_DFL);
}

}  // namespace assay
