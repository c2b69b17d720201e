// The processes of kernel libraries: what they reach, how they end, and what they keep from one
// call or case to the next.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <thread>

#include "property_tests/kernel_library.h"

namespace assay {
namespace {

using testing::HasSubstr;

// Waits for what must happen soon, and for much longer on a busy machine.
bool happens(const std::function<bool()>& what) {
  for (int k = 0; k < 6000 && !what(); ++k)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return what();
}

// The library tries to write a result into every process of Assay, to open its descriptors, to read
// its memory and to trace it.
TEST_F(Library, ItReachesNothingThatCarriesVerdicts) {
  const std::string one = "--case 'attention b=1 h=1 l=7x9 d=5/3'", json = folder_ / "passed.json";
  ASSERT_EQ(check(built("none"), one + " --json " + json).status, 0);
  const std::string forgery = folder_ / "forgery";
  std::ofstream(forgery) << nlohmann::json::parse(std::ifstream(json))["results"][0] << "\n"
                         << "host\tattention b=1 h=1 l=7x9 d=5/3\n";
  setenv("ASSAY_TEST_FORGERY", forgery.c_str(), 1);
  const std::string library = built("forges");
  int kept[2];  // the command inherits it, and its library must not
  ASSERT_EQ(pipe(kept), 0);
  for (const std::string how : {"", " --in-process"}) {
    const Ran r = check(library, one + how + " --timeout 60");
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_THAT(r.output, HasSubstr("was not written"));
    EXPECT_THAT(r.output, testing::Not(HasSubstr("forged:")));
  }
  close(kept[0]);
  close(kept[1]);
  unsetenv("ASSAY_TEST_FORGERY");
}

TEST_F(Library, ItCannotTakeTheMemoryAway) {
  const Ran r = check(built("shrinks_the_memory"));
  EXPECT_EQ(r.status, 0) << r.output;
}

// Processes that it has left hold its connection open. Its end is told all the same, and theirs
// follows.
TEST_F(Library, WhatItHasStartedEndsWithIt) {
  const Ran crash = check(built("leaves_a_child_and_crashes"));
  EXPECT_EQ(crash.status, 1);
  EXPECT_THAT(
      crash.output,
      HasSubstr("the library's process was killed by signal 11 (Segmentation fault) in forward"));
  EXPECT_GE(left_ids(), 1u);
  EXPECT_TRUE(happens([&] { return left().empty(); }));
  const Ran daemon =
      check(built("leaves_daemons"), "--timeout 20 --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_THAT(daemon.output, HasSubstr("the candidate did not finish within 20 s"));
  EXPECT_GE(left_ids(), 3u);
  EXPECT_TRUE(happens([&] { return left().empty(); }));
}

TEST_F(Library, ACrashAtLoadIsNoHang) {
  const Ran r = check(built("crashes_at_load"));
  EXPECT_EQ(r.status, 2) << r.output;
  EXPECT_THAT(
      r.output,
      HasSubstr("the library's process was killed by signal 11 (Segmentation fault) in loading"));
}

// The command, its worker and the library's processes are one process group. A daemon of the
// library has left the group. What loses its parent becomes a child of this process, so that it is
// seen when it has ended.
TEST_F(Library, WhateverEndsTheCommandEndsAllThatItStarted) {
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  const std::string library = built("leaves_daemons");
  for (const int signal : {SIGTERM, SIGHUP, SIGINT, SIGKILL})
    for (const char* how : {"--jobs=2", "--in-process"}) {
      const std::size_t before = left_ids();
      const pid_t command = fork();
      if (command == 0) {
        setpgid(0, 0);
        dup2(open("/dev/null", O_RDWR), STDOUT_FILENO);
        dup2(STDOUT_FILENO, STDERR_FILENO);
        execl(ASSAY_COMMAND, "assay", "check", "--kernel", library.c_str(), how, "--case",
              "attention b=1 h=1 l=7x9 d=5/3", static_cast<char*>(nullptr));
        _exit(127);
      }
      ASSERT_TRUE(happens([&] { return left_ids() == before + 2; })) << how;
      EXPECT_EQ(left().size(), 2u);
      kill(command, signal);
      int status = 0;
      waitpid(command, &status, 0);
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << status;
      const auto all_ended = [&] {
        while (waitpid(-1, nullptr, WNOHANG) > 0) {
        }
        return kill(-command, 0) != 0 && errno == ESRCH && left().empty();
      };
      EXPECT_TRUE(happens(all_ended)) << how << " after signal " << signal;
    }
  prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
}

TEST_F(Library, LoadingHasALimit) {
  const std::string entry = built("hangs_at_load"), constructor = built("none", "-DIN_CONSTRUCTOR"),
                    call = built("hangs");
  const std::string of_case = " --case 'attention b=1 h=1 l=7x9 d=5/3' ",
                    one = " --timeout 1" + of_case;
  for (const std::string& library : {entry, constructor}) {
    const Ran r = check(library, one);
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr("assay: loading lib:" + library +
                                    " did not end within the 1 s of --timeout"));
  }
  const std::string coloured = folder_ / "lib\033[31m.so";
  fs::copy(entry, coloured);
  EXPECT_THAT(check("'" + coloured + "'", one).output,
              HasSubstr("/lib\\x1b[31m.so did not end within the 1 s of --timeout"));
  // The library that hangs in a call has to be loaded in its time.
  const struct {
    std::string library, what, seconds;
  } records[] = {{entry, "loading lib:", "1"}, {call, "lib:", "20"}};
  for (const auto& [library, what, seconds] : records) {
    const std::string record = folder_ / "record.safetensors";
    const Ran r = run_line(std::string(ASSAY_COMMAND) + " record --candidate lib:" + library +
                           " --timeout " + seconds + of_case + "-o " + record);
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr("assay: " + what + library));
    EXPECT_THAT(r.output, HasSubstr("did not end within the " + seconds + " s of --timeout"));
    EXPECT_FALSE(fs::exists(record));
  }
  EXPECT_TRUE(happens([&] { return left().empty(); }));
}

// What the machine lacks is an error of the run, not a failure of the kernel.
TEST_F(Library, AShortageIsNoFailure) {
  const Ran memory = check(built("has_no_memory"));
  EXPECT_EQ(memory.status, 3) << memory.output;
  EXPECT_THAT(memory.output, HasSubstr("error: not judged: status 2 (Memory allocation failed)"));
  const Ran killed = check(built("is_killed"));
  EXPECT_EQ(killed.status, 3) << killed.output;
  EXPECT_THAT(killed.output, HasSubstr("error: not judged: the library's process was killed by "
                                       "signal 9 (Killed) in forward, as processes are when "
                                       "memory is short"));
#ifndef ASSAY_SANITIZED  // sanitizers need more descriptors, and have no limit of memory
  const std::string right = built("none"), one = "--case 'attention b=1 h=1 l=7x9 d=5/3'";
  for (const int mib : {1, 2, 4, 8, 16}) {
    const Ran r = check(right, one + " --timeout 60 --jobs 1 --memory " + std::to_string(mib));
    EXPECT_THAT(r.status, testing::AnyOf(0, 3)) << mib << " MiB: " << r.output;
  }
  for (int descriptors = 8; descriptors < 16; ++descriptors) {
    const Ran r = run_line("(ulimit -n " + std::to_string(descriptors) + "; exec " ASSAY_COMMAND +
                           " check --no-shrink --jobs 1 --kernel " + right + " " + one + ")");
    EXPECT_THAT(r.status, testing::AnyOf(0, 3)) << descriptors << ": " << r.output;
  }
#endif
}

// The case comes back. What hangs is the problem of a relation, and the last line runs this
// problem.
TEST_F(Library, AHangNamesTheProblemThatHangs) {
  const std::string library = built("hangs_with_causality");
  const Ran r = check(library, "--timeout 20 --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(r.status, 1);
  EXPECT_THAT(r.output,
              testing::ContainsRegex("fail: the candidate did not finish within 20 s, in relation "
                                     "after-another, on 'attention b=1 h=1 l=7x9 [^']* causal"));
  EXPECT_THAT(r.output, testing::ContainsRegex("reproduce: assay check --candidate lib:[^ ]* "
                                               "--case 'attention b=1 h=1 l=7x9 [^']* causal"));
}

TEST_F(Library, AHangEndsWithItsTime) {
  const Ran r = check(built("hangs"), "--timeout 10 --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("the candidate did not finish within 10 s"));
}

TEST_F(Library, ATraceEndsInItsTime) {
  const Ran r = run_line(std::string(ASSAY_COMMAND) + " trace --timeout 2 --kernel " +
                         built("hangs", "-DTELLS") + " 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(r.status, 1);
  EXPECT_THAT(r.output, HasSubstr("did not end within the 2 s of --timeout"));
}

// One bad case costs only one case.
TEST_F(Library, TheNextCaseIsJudged) {
  std::ofstream(folder_ / "cases")
      << "attention b=1 h=1 l=7x9 d=5/3\nattention b=1 h=1 l=8x9 d=5/3\n";
  const Ran r = check(built("crashes"), "--jobs 1 --cases " + (folder_ / "cases").string());
  EXPECT_THAT(r.output, HasSubstr("2 cases: 0 passed, 2 failed")) << r.output;
}

TEST_F(Library, IsLoadedOnceForEachWorker) {
  std::ofstream cases(folder_ / "cases");
  for (int rows = 2; rows < 8; ++rows) cases << "attention b=1 h=1 l=" << rows << "x9 d=5/3\n";
  cases.close();
  const std::string all = " --cases " + (folder_ / "cases").string();
  const Ran r = check(built("counts_its_loads"), "--jobs 1" + all);
  EXPECT_THAT(r.output, HasSubstr("6 cases: 6 passed")) << r.output;
  // The command has loaded it too, to see whether it can be loaded. Each case has asked a fresh
  // process for its first call, and another worker has run the cases in the other order.
  EXPECT_EQ(left_ids(), 2u + 6u + 1u);
}

// A case that fails after others, and passes alone, is told as what it is, and the command that
// reproduces it does reproduce it.
TEST_F(Library, AFailureIsTriedAgainInAFreshProcess) {
  std::ofstream cases(folder_ / "cases");
  for (int rows = 5; rows > 1; --rows) cases << "attention b=1 h=1 l=" << rows << "x9 d=5/3\n";
  cases.close();
  const std::string all = "--jobs 1 --cases " + (folder_ / "cases").string();
  const std::string library = folder_ / "it's wrong later.so";
  fs::rename(built("is_wrong_after_more_rows"), library);
  const Ran later = check('"' + library + '"', all);
  EXPECT_EQ(later.status, 1) << later.output;
  EXPECT_THAT(later.output, HasSubstr("; in a fresh process: pass, so what the library keeps from "
                                      "the "));
  const std::string mark = "reproduce: assay ";
  const auto at = later.output.find(mark);
  ASSERT_NE(at, std::string::npos) << later.output;
  const auto begin = at + mark.size();
  const Ran again =
      run_line(ASSAY_COMMAND " " + later.output.substr(begin, later.output.find('\n', at) - begin));
  EXPECT_EQ(again.status, 1) << again.output;
  const Ran always = check(built("writes_nothing"), all);
  EXPECT_THAT(always.output, HasSubstr("4 cases: 0 passed, 4 failed"));
  EXPECT_THAT(always.output, HasSubstr("(in a fresh process too)"));
}

// The cases pass in their order, in one process. In the other order they do not.
TEST_F(Library, CasesRunInTheOtherOrderToo) {
  std::ofstream cases(folder_ / "cases");
  for (int rows = 2; rows < 6; ++rows) cases << "attention b=1 h=1 l=" << rows << "x9 d=5/3\n";
  cases.close();
  const std::string all = "--jobs 1 --cases " + (folder_ / "cases").string();
  const Ran r = check(built("is_wrong_after_more_rows"), all);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output,
              HasSubstr("; in a fresh process: pass, so what the library keeps from the "));
  EXPECT_THAT(r.output, HasSubstr("4 cases: 1 passed, 3 failed"));
  const Ran right = check(built("none"), all);
  EXPECT_EQ(right.status, 0) << right.output;
  EXPECT_THAT(right.output, HasSubstr("state between calls: asked of 4 of 4 cases"));
}

TEST_F(Library, WhatItKeepsBetweenCallsIsFound) {
  for (const auto& [mistake, words] : std::vector<std::pair<const char*, const char*>>{
           {"is_wrong_from_call_51", "fail: relation many-calls violated: from call "},
           {"is_wrong_in_its_first_call", "is outside its bound: O[b=0, h=0, row=0"},
           {"is_an_ulp_off_in_its_first_call",
            "fail: the first of 8 runs differs from the others, which agree: O[b=0, h=0, row=0"},
           {"keeps_values_by_address", "relation negated-values violated: O["},
           {"uses_a_static_buffer", "fail: relation two-at-once violated: "},
           {"leaks_descriptors",
            "fail: relation many-calls violated: 150 calls of the same problem keep 150 "
            "descriptors"},
#ifndef ASSAY_SANITIZED  // whose allocator does not say what it has given away
           {"leaks", "fail: relation many-calls violated: 150 calls of the same problem keep "},
#endif
       }) {
    const Ran r = check(built(mistake));
    EXPECT_EQ(r.status, 1) << mistake << ": " << r.output;
    EXPECT_THAT(r.output, HasSubstr(words)) << mistake;
  }
  const Ran said = check(built("says_that_it_uses_a_static_buffer"));
  EXPECT_EQ(said.status, 0) << said.output;
  const Ran right = check(built("none"), "--json " + (folder_ / "run.json").string() +
                                             " --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(right.status, 0) << right.output;
  const auto relations =
      nlohmann::json::parse(std::ifstream(folder_ / "run.json"))["results"][0]["relations"];
  for (const char* name : {"other-contents", "first-call", "two-at-once", "many-calls"})
    EXPECT_EQ(relations[name]["result"], "held") << name << relations;
}

TEST_F(Library, MustStayAsItIsDuringTheRun) {
  const std::string library = built("is_written_to");
  setenv("ASSAY_TEST_LIBRARY", library.c_str(), 1);
  const Ran r = check(library,
                      "--jobs 1 --case 'attention b=1 h=1 l=7x9 d=5/3' --case 'attention b=1 h=1 "
                      "l=8x9 d=5/3'");
  EXPECT_EQ(r.status, 3) << r.output;
  EXPECT_THAT(r.output, HasSubstr("2 cases: 0 passed, 0 failed, 2 errors"));
  EXPECT_THAT(r.output, HasSubstr("not judged: the library's file changed during the run"));
  unsetenv("ASSAY_TEST_LIBRARY");
}

}  // namespace
}  // namespace assay
