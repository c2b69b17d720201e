// Long fuzz jobs: what is found is shrunk, kept and told; a kill at any point loses nothing and
// leaves nothing running. The target is a script that says what libFuzzer says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "fuzz/jobs.h"
#include "harness/results/schema.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// On a file: fails on what holds "d=2", and names a case. On folders: leaves an input, and the
// first time a crash.
constexpr const char* script = R"(#!/bin/sh
prefix=; time=1; merge=; first=; second=
for a; do
  case "$a" in
    -artifact_prefix=*) prefix=${a#*=} ;;
    -max_total_time=*) time=${a#*=} ;;
    -merge=1) merge=1 ;;
    -*) ;;
    *) if [ -z "$first" ]; then first=$a; else second=$a; fi ;;
  esac
done
if [ -n "$merge" ]; then cp "$second"/????????????????????????????????????????  "$first"/ 2>/dev/null; exit 0; fi
if [ -f "$first" ]; then
  if grep -q d=2 "$first"; then echo "finding: O is 1.5 off"; echo "finding case: attention b=3 h=4/2 l=9x20 d=2 dtype=f32 causal"; exit 77; fi
  exit 0
fi
echo $$ > "$prefix.pid"
echo input > "$first/0123456789012345678901234567890123456789"
printf '#100\tNEW    cov: 50 ft: 60 corp: 7/9b exec/s: 10 rss: 5Mb\n' >&2
if [ ! -e "$prefix"crash-1 ]; then echo d=2 > "$prefix.crash"; mv "$prefix.crash" "$prefix"crash-1; sleep ${ASSAY_TEST_SLEEP:-0}; exit 77; fi
sleep "$time"
)";

class FuzzJobs : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-fuzz-test-" + std::to_string(getpid()));
    fs::create_directories(folder_ / "bin");
    for (const char* target : {"one", "two"}) {
      const fs::path path = folder_ / "bin" / (std::string(target) + "_fuzz");
      std::ofstream(path) << script;
      fs::permissions(path, fs::perms::owner_all);
    }
    options_.binaries = folder_ / "bin";
    options_.work = folder_ / "work";
    options_.targets = {"one"};
    options_.seconds = 3;
    options_.slice = 3;
    options_.shrink_seconds = 3600;
  }
  void TearDown() override {
    unsetenv("ASSAY_TEST_SLEEP");
    fs::remove_all(folder_);
  }
  std::string refusal(const FuzzOptions& o) const {
    try {
      fuzz(o);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "done";
  }
  fs::path folder_;
  FuzzOptions options_;
};

TEST_F(FuzzJobs, AFindingEndsAsACaseLine) {
  fs::create_directories(folder_ / "work" / "corpus" / "one");
  std::ofstream(folder_ / "work" / "corpus" / "one" / "notes.txt") << "of somebody";
  std::vector<std::string> said;
  options_.say = [&](const std::string& line) { said.push_back(line); };
  const FuzzSummary summary = fuzz(options_);
  ASSERT_EQ(summary.findings.size(), 1u) << to_json(summary).dump(1);
  const FuzzFinding& f = summary.findings[0];
  EXPECT_EQ(f.reason, "O is 1.5 off");
  EXPECT_EQ(f.shrunk, "attention b=1 h=1 l=1 d=2/1 dtype=f32");
  std::ifstream kept(f.kept);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(kept), {}),
            "attention b=1 h=1 l=1 d=2/1 dtype=f32");
  EXPECT_GT(summary.targets.at(0).executions, 99);
  EXPECT_EQ(summary.targets.at(0).coverage, 50);
  EXPECT_TRUE(fs::exists(folder_ / "work" / "corpus" / "one" / "notes.txt"))
      << "a foreign file is gone";
  EXPECT_TRUE(std::ranges::any_of(said, [](const std::string& line) {
    return line.find("FINDING in one: O is 1.5 off") != std::string::npos;
  }));
}

TEST_F(FuzzJobs, AKillLosesNothingAndLeavesNothingRunning) {
  setenv("ASSAY_TEST_SLEEP", "20", 1);
  options_.seconds = options_.slice = 30;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      fuzz(options_);
    } catch (...) {
    }
    _exit(0);
  }
  const fs::path crash = folder_ / "work" / "findings" / "one" / "crash-1",
                 pid_file = folder_ / "work" / "findings" / "one" / ".pid";
  for (int tries = 0; tries < 12000 && !fs::exists(crash); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE(fs::exists(crash));
  pid_t fuzzer = 0;
  std::ifstream(pid_file) >> fuzzer;
  ASSERT_GT(fuzzer, 0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  bool gone = false;
  for (int tries = 0; tries < 12000 && !gone; ++tries) {
    gone = kill(fuzzer, 0) != 0;
    // A zombie that init has not collected yet does nothing any more.
    std::ifstream stat("/proc/" + std::to_string(fuzzer) + "/stat");
    std::string text;
    std::getline(stat, text);
    gone = gone || text.find(") Z") != std::string::npos;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(gone) << "a fuzzer runs on";
  EXPECT_FALSE(fs::exists(folder_ / "work" / "findings.jsonl"));
  unsetenv("ASSAY_TEST_SLEEP");
  options_.seconds = options_.slice = 2;
  const FuzzSummary summary = fuzz(options_);
  ASSERT_EQ(summary.findings.size(), 1u);
  EXPECT_EQ(summary.findings[0].shrunk, "attention b=1 h=1 l=1 d=2/1 dtype=f32");
  // And once more: the time is spent, what was found is still known and told once.
  const FuzzSummary again = fuzz(options_);
  EXPECT_EQ(again.findings.size(), 1u);
  EXPECT_EQ(again.seconds, summary.seconds);
  // A target that no time is left for is told as such.
  options_.targets = {"two"};
  EXPECT_EQ(fuzz(options_).targets.at(0).seconds, 0);
}

TEST_F(FuzzJobs, EveryTargetGetsItsTurn) {
  options_.targets.clear();
  options_.seconds = 10;
  options_.slice = 2;
  const FuzzSummary summary = fuzz(options_);
  ASSERT_EQ(summary.targets.size(), 2u);
  for (const FuzzTarget& t : summary.targets) EXPECT_GT(t.seconds, 0) << t.target;
}

// A folder of targets may hold links that lead in a circle or nowhere.
TEST_F(FuzzJobs, LinksThatLeadNowhereAreNoTargets) {
  fs::create_symlink("loop_fuzz", folder_ / "bin" / "loop_fuzz");
  fs::create_symlink("nothing", folder_ / "bin" / "dangling_fuzz");
  EXPECT_EQ(fuzz_targets(folder_ / "bin"), (std::vector<std::string>{"one", "two"}));
}

// Of two processes in one folder, the second is refused.
TEST_F(FuzzJobs, AFolderBelongsToOneProcess) {
  fs::create_directories(options_.work);
  const int folder = open(options_.work.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(flock(folder, LOCK_EX), 0);
  try {
    fuzz(options_);
    ADD_FAILURE() << "the jobs ran";
  } catch (const std::system_error& e) {
    EXPECT_THAT(e.what(), HasSubstr("another process runs jobs in this folder"));
  }
  EXPECT_FALSE(fs::exists(options_.work / "state.json"));
  close(folder);
  EXPECT_GT(fuzz(options_).seconds, 0);
}

TEST_F(FuzzJobs, BadInputIsRefusedByName) {
  FuzzOptions o = options_;
  o.targets = {"three"};
  EXPECT_THAT(refusal(o), HasSubstr("unknown target 'three'; there are one, two"));
  o = options_;
  o.binaries = folder_ / "nowhere";
  EXPECT_THAT(refusal(o), HasSubstr("no fuzz target (TARGET_fuzz) is there"));
  o = options_;
  o.work = "/proc/assay";
  EXPECT_THAT(refusal(o), HasSubstr("/proc/assay/corpus: cannot be made"));
  fs::create_directories(options_.work);
  std::ofstream(options_.work / "state.json") << "{\"seconds\": 3";
  EXPECT_THAT(refusal(options_), HasSubstr("is no state of fuzz jobs"));
  std::ifstream state(options_.work / "state.json");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(state), {}), "{\"seconds\": 3");
  fs::remove(options_.work / "state.json");
  std::ofstream(options_.work / "findings.jsonl")
      << R"({"target": "one", "file": "a", "reson": "b"})";
  EXPECT_THAT(refusal(options_),
              HasSubstr("is no list of findings (finding: no field \"reason\")"));
}

}  // namespace
}  // namespace assay
