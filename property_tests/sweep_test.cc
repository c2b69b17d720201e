// Sweeps: what the shards answered, put together, is what one process answers; whatever keeps a
// sweep from being whole is named with the command that mends it; engines get what they read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "harness/results/merge_shards.h"
#include "harness/results/schema.h"
#include "harness/results/sweep.h"
#include "property_tests/run_command.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class Sweep : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-sweep-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const std::string& name) const { return folder_ / name; }
  std::string shard(std::size_t k) const {
    return file("plan.shards/" + std::to_string(k) + ".json");
  }
  void write(const std::string& path, const std::string& text) const {
    std::ofstream(path) << text;
  }
  void write_program(const std::string& name, const std::string& body) const {
    write(file(name), "#!/bin/sh\n" + body + "\n");
    fs::permissions(file(name), fs::perms::owner_all);
  }
  // Runs a line of a shell in which `assay` is the program.
  Ran shell(const std::string& line) const {
    write(file("line"), "assay() { " ASSAY_COMMAND " \"$@\"; }\n" + line + "\n");
    return run(file("line"), "sh");
  }
  void plan(int shards, const std::string& command) const {
    const Ran r = run("sweep plan " + file("plan") + " --shards " + std::to_string(shards) +
                      " -- " + command);
    ASSERT_EQ(r.status, 0) << r.output;
  }
  Ran run_shards(const std::string& numbers) const {
    return run("sweep run " + file("plan") + " " + numbers);
  }
  Ran status() const { return run("sweep status " + file("plan")); }
  Ran merge(const std::string& options) const {
    return run("sweep merge " + file("plan") + " " + options);
  }

  // The runs of a store without what time changes: the times of rows, when a run started, and its
  // sentence, which ends with seconds.
  std::vector<Json> rows(const std::string& store) const {
    EXPECT_EQ(run("store " + store + " --export " + file("rows")).status, 0);
    std::istringstream lines(read(file("rows")));
    std::vector<Json> runs;
    for (std::string line; std::getline(lines, line);) {
      Json run = Json::parse(line);
      run["started"] = "";
      std::string sentence = run["sentence"];
      if (const auto at = sentence.rfind("; "); sentence.ends_with(" s")) sentence.resize(at);
      for (Json& result : run["results"]) {
        result.erase("seconds");
        result.erase("judge_seconds");
      }
      run["sentence"] = sentence;
      runs.push_back(run);
    }
    return runs;
  }

  // Runs all shards in some order, several of them twice, and compares what merging gives with what
  // the command gives in one process: rows of the store, documents, exit statuses.
  void expect_the_same(int shards, const std::string& command, std::size_t least_rows) {
    plan(shards, command);
    std::vector<int> order;
    for (int k = 0; k < shards; ++k) order.insert(order.end(), k % 3 == 0 ? 2 : 1, k);
    constexpr unsigned seed = 7;
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    for (const int k : order) EXPECT_LE(run_shards(std::to_string(k)).status, 1) << k;
    EXPECT_EQ(status().status, 0) << status().output;
    const Ran one = run(command + " --store " + file("one.db") + " --json " + file("one.json"));
    const Ran whole = merge("--store " + file("whole.db") + " --json " + file("whole.json"));
    EXPECT_LE(one.status, 1) << one.output;
    EXPECT_EQ(whole.status, one.status) << whole.output << one.output;
    const std::vector<Json> expected = rows(file("one.db")), merged = rows(file("whole.db"));
    ASSERT_EQ(expected.size(), 1u);
    EXPECT_GE(expected[0]["results"].size(), least_rows);
    EXPECT_EQ(merged, expected) << Json::diff(Json(expected), Json(merged)).dump(1);
    const Json a = without_times(Json::parse(read(file("one.json")))),
               b = without_times(Json::parse(read(file("whole.json"))));
    EXPECT_EQ(a, b) << Json::diff(a, b).dump(1);
  }

  fs::path folder_;
};

TEST_F(Sweep, ASuiteMergesToWhatOneProcessGives) {
  expect_the_same(5, "check --suite tiny --jobs 1", 13);
  // What is compared is enough to tell another run.
  ASSERT_EQ(run("check --suite tiny --jobs 1 --seed 2 --store " + file("other.db")).status, 0);
  EXPECT_NE(rows(file("other.db"))[0]["results"], rows(file("one.db"))[0]["results"]);
}

// Failures of the whole run are shrunk, the first three of them, wherever they were found.
TEST_F(Sweep, FailuresMergeToWhatOneProcessGives) {
  expect_the_same(4, "check --suite tiny --jobs 1 --candidate fault:scale-off-by-one-percent", 13);
  EXPECT_THAT(read(file("whole.json")), HasSubstr("\"shrunk\""));
}

TEST_F(Sweep, RecordsMergeToWhatOneProcessGives) {
  for (const char* candidate : {"host", "fault:scale-off-by-one-percent"})
    ASSERT_EQ(run("record --suite tiny --filter attention --candidate " + std::string(candidate) +
                  " -o " + file(candidate))
                  .status,
              0);
  // With several threads, sums of statistics are not the same twice, in one process neither.
  expect_the_same(
      6, "verify --threads 1 " + file("host") + " " + file("fault:scale-off-by-one-percent"), 16);
  const Ran none = run("verify " + file("host") + " --shard 20/21");
  EXPECT_EQ(none.status, 2) << none.output;
  EXPECT_THAT(none.output, HasSubstr("--shard=20/21: no record of 11 falls into it"));
}

// With one job, the cases of a hunt run in order, so which one kills is the same each time.
TEST_F(Sweep, AHuntMergesToWhatOneProcessGives) {
  expect_the_same(7, "faults --suite tiny --jobs 1", 50);
  const Ran none = run("faults --suite tiny --only causal-off-by-one --shard 2/3");
  EXPECT_EQ(none.status, 2) << none.output;
  EXPECT_THAT(none.output,
              HasSubstr("nothing of 1 hunt and 1 suite without a fault falls into it"));
}

// Targets that always say the same.
constexpr const char* target = R"(for a; do
  case "$a" in
    -merge=1) exit 0 ;;
    -artifact_prefix=*) prefix=${a#*=} ;;
    -max_total_time=*) time=${a#*=} ;;
  esac
done
name=$(basename "$0")
if [ -f "$a" ]; then echo "finding: of $name"; exit 77; fi
[ "$name" != b_fuzz ] || [ -e "$prefix"crash-1 ] || echo x >"$prefix"crash-1
printf '#%s\tNEW    cov: 50 ft: 60 corp: 7/9b exec/s: 10 rss: 5Mb\n' 100 >&2
sleep "$time")";

TEST_F(Sweep, FuzzJobsMergeToWhatOneProcessGives) {
  for (const char* name : {"a_fuzz", "b_fuzz", "c_fuzz"}) write_program(name, target);
  const std::string jobs = " --jobs 1 --slice 2 --bin " + file("") + " --work ";
  plan(2, "fuzz --hours 0.003" + jobs + file("parts"));
  for (const char* k : {"1", "0", "1"}) EXPECT_LE(run_shards(k).status, 1) << k;
  const Ran whole = merge("--store " + file("whole.db")),
            one = run("fuzz --hours 0.003" + jobs + file("one") + " --store " + file("one.db"));
  EXPECT_EQ(whole.status, 1) << whole.output;
  EXPECT_EQ(one.status, 1) << one.output;
  // How often a target was started depends on time; what it found does not.
  const auto facts = [&](const std::string& store) {
    std::vector<std::string> lines;
    const std::vector<Json> stored = rows(file(store));
    for (const Json& r : stored.at(0)["results"])
      lines.push_back(r["name"].get<std::string>() + " " + r["outcome"].get<std::string>() + " " +
                      r["counters"]["coverage"].dump() + " " + r["counters"]["findings"].dump());
    return lines;
  };
  EXPECT_THAT(facts("one.db"), ElementsAre("a clean 50.0 0", "b finding 50.0 1", "c clean 50.0 0"));
  EXPECT_EQ(facts("whole.db"), facts("one.db"));
}

// More shards than targets: each has one target and a seed of its own, and their sums are told.
TEST(MergedShards, FuzzTargetsOfSeveralShardsAreAddedUp) {
  const FuzzSummary first{
      10, 1, {{"a", 10, 100, 10, 50, 7, 1}}, {{"a", "crash-1", "x", {}, {}, {}}}},
      second{10, 2, {{"b", 10, 300, 30, 20, 3, 0}}, {}},
      third{30, 3, {{"a", 30, 500, 16, 60, 9, 1}}, {{"a", "crash-1", "x", {}, {}, {}}}};
  const FuzzSummary whole = merged(std::vector{first, second, third});
  ASSERT_EQ(whole.targets.size(), 2u);
  const FuzzTarget& a = whole.targets[0];
  EXPECT_EQ(a.target, "a");
  EXPECT_EQ(a.seconds, 40);
  EXPECT_EQ(a.executions, 600);
  EXPECT_EQ(a.executions_per_second, 15);
  EXPECT_EQ(a.coverage, 60);
  EXPECT_EQ(a.findings, 1u);
  EXPECT_EQ(whole.findings.size(), 1u);
  EXPECT_EQ(whole.seconds, 50);
}

TEST(MergedShards, PiecesOfAnotherNumberAreRefused) {
  assay::Run two, none;
  two.results.resize(2);
  EXPECT_EQ(merged(std::vector{two, two, two}).results.size(), 6u);
  EXPECT_THROW(merged(std::vector{two, none}), SchemaError);
  EXPECT_THROW(merged(std::vector{none, two}), SchemaError);
}

// ---- What keeps a sweep from being whole --------------------------------------------------------

class BrokenSweep : public Sweep {
 protected:
  void SetUp() override {
    Sweep::SetUp();
    plan(5, "check --suite tiny --jobs 1");
    ASSERT_EQ(run_shards("0-4").status, 0);
    ASSERT_EQ(status().status, 0) << status().output;
  }
  // Runs the commands that are told, and nothing else; then the sweep is whole.
  void mend() {
    const Ran broken = status();
    std::istringstream lines(broken.output);
    int commands = 0;
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("  ")) {
        ++commands;
        const Ran r = shell(line);
        EXPECT_EQ(r.status, 0) << line << "\n" << r.output;
      }
    EXPECT_GT(commands, 0) << broken.output;
    const Ran mended = status();
    EXPECT_EQ(mended.status, 0) << mended.output;
    EXPECT_THAT(mended.output, HasSubstr("5 of 5 shards are there")) << broken.output;
    EXPECT_EQ(merge("").status, 0);
  }
  // The sweep cannot be merged, and both commands say why; nothing is written.
  void expect_told(const std::string& words) {
    EXPECT_EQ(status().status, 1);
    EXPECT_THAT(status().output, HasSubstr(words));
    const Ran r = merge("--store " + file("not.db") + " --json " + file("not.json"));
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr(words));
    EXPECT_FALSE(fs::exists(file("not.db")) || fs::exists(file("not.json")));
  }
  Json document(std::size_t k) const { return Json::parse(read(shard(k))); }
};

TEST_F(BrokenSweep, MissingShards) {
  for (const std::size_t k : {1u, 3u, 4u}) fs::remove(shard(k));
  expect_told("missing: 3 shards: 1,3-4\n  assay sweep run " + file("plan") + " 1,3-4");
  mend();
}

TEST_F(BrokenSweep, AShardThatIsCutOff) {
  const std::string whole = read(shard(2));
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, whole.size() / 2, whole.size() - 2}) {
    write(shard(2), whole.substr(0, bytes));
    expect_told("cut off: " + shard(2));
    mend();
  }
}

TEST_F(BrokenSweep, ShardsOfAnotherPlanOrBuildOrNone) {
  Json other = document(0);
  other["plan"] = "0123456789abcdef";
  write(shard(0), other.dump());
  expect_told("foreign: " + shard(0) + ": of plan 0123456789abcdef");
  const Ran kept = run_shards("0");
  EXPECT_EQ(kept.status, 2) << kept.output;
  EXPECT_THAT(kept.output, HasSubstr("is not replaced: remove it first"));
  EXPECT_EQ(Json::parse(read(shard(0))), other);
  mend();
  other = document(1);
  other["machine"]["commit"] = "another";
  write(shard(1), other.dump());
  expect_told("of build another");
  mend();
  other = document(1);
  other["shard"] = 5;
  write(shard(1), other.dump());
  expect_told("shard 5, the plan has 0 to 4");
  mend();
  write(file("plan.shards/notes.json"), "[1]");
  expect_told("foreign: " + file("plan.shards/notes.json"));
  mend();
  EXPECT_FALSE(fs::exists(file("plan.shards/notes.json")));
}

TEST_F(BrokenSweep, DoubleShards) {
  fs::create_directory(file("elsewhere"));
  fs::copy_file(shard(3), file("plan.shards/3 (copy).json"));
  EXPECT_THAT(status().output, HasSubstr("double: shard 3"));
  EXPECT_THAT(status().output, HasSubstr("which agree"));
  EXPECT_EQ(status().status, 0);
  EXPECT_EQ(merge("").status, 0);
  mend();
  // Times may differ.
  Json other = document(3);
  other["document"]["results"][0]["seconds"]["judge"] = 99;
  write(file("plan.shards/x.json"), other.dump());
  EXPECT_EQ(status().status, 0);
  other["document"]["results"][0]["reason"] = "another";
  write(file("plan.shards/x.json"), other.dump());
  expect_told("which differ at /results/0/reason");
  mend();
}

TEST_F(BrokenSweep, ErrorsOfTheMachine) {
  Json failed = document(4);
  failed["status"] = 3;
  failed["document"]["results"][0]["outcome"] = "error";
  failed["document"]["results"][0]["reason"] = "out of memory";
  write(shard(4), failed.dump());
  expect_told("the machine failed in shard 4: " + shard(4) + ": 1 error, the first: out of memory");
  EXPECT_EQ(merge("--accept-errors").status, 3);
  mend();
}

TEST_F(BrokenSweep, LeftByAKill) {
  write(file("plan.shards/2.json.a1b2c3.tmp"), "half");
  EXPECT_THAT(status().output, HasSubstr("left by a kill"));
  EXPECT_EQ(merge("").status, 0);
  mend();
}

// The shards of several folders, as machines without a common file system leave them.
TEST_F(BrokenSweep, FoldersAreReadTogether) {
  fs::create_directory(file("other"));
  for (const std::size_t k : {1u, 2u})
    fs::rename(shard(k), file("other/" + std::to_string(k) + ".json"));
  EXPECT_EQ(status().status, 1);
  const std::string both = "--folder " + file("plan.shards") + " --folder " + file("other");
  EXPECT_EQ(run("sweep status " + file("plan") + " " + both).status, 0);
  EXPECT_EQ(merge(both).status, 0);
}

TEST_F(BrokenSweep, AShardIsRunOnce) {
  const std::string before = read(shard(1));
  const Ran again = run_shards("1");
  EXPECT_EQ(again.status, 0);
  EXPECT_THAT(again.output, HasSubstr("shard 1 is there"));
  EXPECT_EQ(read(shard(1)), before);
}

TEST_F(BrokenSweep, AFullDiskLeavesNothing) {
  fs::remove(shard(0));
  // Files cannot grow beyond one block.
  const std::string full = "trap '' XFSZ; ulimit -f 1; assay sweep ";
  const Ran r = shell(full + "run " + file("plan") + " 0");
  EXPECT_EQ(r.status, 3) << r.output;
  EXPECT_THAT(r.output, HasSubstr("assay: writing " + shard(0)));
  EXPECT_FALSE(fs::exists(shard(0)));
  mend();
  ASSERT_EQ(merge("--store " + file("runs.db")).status, 0);
  const Ran stored = shell(full + "merge " + file("plan") + " --store " + file("runs.db"));
  EXPECT_EQ(stored.status, 3) << stored.output;
  EXPECT_EQ(rows(file("runs.db")).size(), 1u);
}

// A kill at any time leaves the shard missing or whole.
TEST_F(BrokenSweep, AKillLeavesNothingHalf) {
  for (int milliseconds = 0; milliseconds < 200; milliseconds += 20) {
    fs::remove(shard(2));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      execl(ASSAY_COMMAND, "assay", "sweep", "run", file("plan").c_str(), "2", nullptr);
      _exit(127);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    EXPECT_THAT(status().output, Not(HasSubstr("cut off"))) << milliseconds;
    EXPECT_THAT(status().output, Not(HasSubstr("left by a kill"))) << milliseconds;
  }
}

// ---- Bad input ----------------------------------------------------------------------------------

TEST_F(Sweep, WhatCannotBePlannedIsRefused) {
  const auto refused = [&](const std::string& words, const std::string& sentence) {
    const Ran r = run("sweep plan " + file("plan") + " --shards " + words);
    EXPECT_EQ(r.status, 2) << words << "\n" << r.output;
    EXPECT_THAT(r.output, HasSubstr(sentence)) << words;
    EXPECT_FALSE(fs::exists(file("plan"))) << words;
  };
  refused("0 -- check --suite tiny", "--shards");
  refused("15 -- check --suite tiny", "--shards=15: the work has 14 pieces");
  refused("2 -- check --suite none", "none");
  refused("2 -- check --sweet tiny", "--sweet");
  refused("2 -- trace x", "'trace': no command that can be divided; there are check, f");
  refused("2 -- check --suite tiny --store " + file("runs.db"), "--store: a shard has no outputs");
  refused("2 -- check --suite tiny --time 5", "--time: not in a sweep");
  refused("2 -- check --suite tiny --shard 0/2", "--shard: not in a sweep");
  refused("2 -- check --suite tiny --case ''", "the value is empty");
  refused("2 -- verify " + file("none"), file("none"));
  refused("2 -- fuzz --bin " + file("") + " --work " + file("w"), "no fuzz target");
  refused("2 -- faults --only none", "--only=none: no such fault");
}

TEST_F(Sweep, PlansOfOthersAreRefused) {
  plan(3, "check --suite tiny --jobs 1");
  const Json mine = Json::parse(read(file("plan")));
  const auto refused = [&](const Json& plan, const std::string& sentence) {
    write(file("plan"), plan.dump());
    for (const Ran& r : {run_shards("0"), merge("")}) {
      EXPECT_EQ(r.status, 2) << r.output;
      EXPECT_THAT(r.output, HasSubstr(sentence));
    }
    EXPECT_FALSE(fs::exists(file("plan.shards")));
  };
  Json other = mine;
  other["format"] = 2;
  refused(other, ".format: not 1, which is known; this is no plan that this program knows");
  other = mine;
  other["build"]["commit"] = "0000000";
  refused(other, "the plan is of build 0000000");
  other = mine;
  other["shards"] = 0;
  refused(other, "0, which is no number of shards");
  other = mine;
  other.erase("seed");
  refused(other, "no field \"seed\"");
  refused("{", "no plan");
  write(file("plan"), mine.dump());
  for (const char* numbers : {"3", "0-3", "x", "2-1", "1,,2", ","})
    EXPECT_EQ(run_shards(numbers).status, 2) << numbers;
  EXPECT_EQ(run_shards("0-1 --nth 2").status, 2);
}

TEST_F(Sweep, FilesThatChangedArePlannedAgain) {
  write(file("cases"), "attention b=1 h=1 l=4 d=4\nattention b=1 h=1 l=5 d=4\n");
  plan(2, "check --jobs 1 --cases " + file("cases"));
  EXPECT_EQ(run_shards("0").status, 0);
  write(file("cases"), "attention b=1 h=1 l=4 d=4\nattention b=1 h=1 l=6 d=4\n");
  const Ran changed = run_shards("1");
  EXPECT_EQ(changed.status, 2) << changed.output;
  EXPECT_THAT(changed.output, HasSubstr(file("cases") + " has changed since it was planned"));
  EXPECT_FALSE(fs::exists(shard(1)));
  // What was answered before is of another plan then.
  plan(2, "check --jobs 1 --cases " + file("cases"));
  EXPECT_THAT(status().output, HasSubstr("foreign: " + shard(0)));
  fs::remove(file("cases"));
  EXPECT_EQ(run_shards("1").status, 2);
}

TEST_F(Sweep, AnEngineThatIsNotInstalledIsTheMachines) {
  plan(3, "check --suite tiny --jobs 1");
  for (const char* engine : {"slurm", "parallel", "gridengine", "local"}) {
    const std::string words =
        "sweep write " + file("plan") + " --engine " + engine + " -o " + file("script");
    const Ran r = run(words, "PATH=/none " ASSAY_COMMAND);
    EXPECT_EQ(r.status, 3) << engine << r.output;
    EXPECT_THAT(r.output, HasSubstr("is not installed here")) << engine;
    EXPECT_FALSE(fs::exists(file("script"))) << engine;
    EXPECT_EQ(run(words + " --elsewhere", "PATH=/none " ASSAY_COMMAND).status, 0) << engine;
    fs::remove(file("script"));
  }
  const std::string words = "sweep write " + file("plan") + " --engine ";
  EXPECT_EQ(run(words + "lsf").status, 2);
  EXPECT_THAT(run(words + "k8s --elsewhere").output, HasSubstr("--image names an image"));
  EXPECT_THAT(run(words + "local --image x").output, HasSubstr("belong to --engine k8s"));
}

// ---- What engines get ---------------------------------------------------------------------------

// A program in the place of assay that ends with the statuses of a file, one after the other, and
// notes what it was asked for.
class EngineScripts : public Sweep {
 protected:
  void SetUp() override {
    Sweep::SetUp();
    plan(14, "check --suite tiny --jobs 1");
    write_program("program", "echo \"$*\" >>" + file("asked") + "; s=$(head -n 1 " +
                                 file("statuses") + "); sed -i 1d " + file("statuses") +
                                 "; exit ${s:-0}");
    write_program("scontrol", "echo \"$*\" >>" + file("requeued"));
  }
  void engine(const std::string& options) const {
    const Ran r = run("sweep write " + file("plan") + " --elsewhere --program " + file("program") +
                      " -o " + file("script") + " --engine " + options);
    ASSERT_EQ(r.status, 0) << r.output;
  }
  // The exit status of a line of a shell, whose program ends with these statuses.
  int status_of(const std::string& line, const std::string& statuses) const {
    fs::remove(file("asked"));
    fs::remove(file("requeued"));
    write(file("statuses"), statuses);
    return run("", "PATH=" + folder_.string() + ":$PATH; " + line).status;
  }
  // The lists of shards that the program was asked for.
  std::string asked() const {
    std::string all = read(file("asked")), words = "sweep run " + file("plan") + " ";
    for (std::size_t at; (at = all.find(words)) != std::string::npos;) all.erase(at, words.size());
    std::ranges::replace(all, '\n', ';');
    return all;
  }
};

TEST_F(EngineScripts, Slurm) {
  engine("slurm --jobs 3 --only 2,4-6");
  EXPECT_THAT(read(file("script")), HasSubstr("#SBATCH --array=2,4-6%3\n"));
  const std::string task = "SLURM_ARRAY_TASK_ID=5 SLURM_JOB_ID=77 ";
  EXPECT_EQ(status_of(task + "sh " + file("script"), "0"), 0);
  EXPECT_EQ(asked(), "5;");
  EXPECT_EQ(status_of(task + "sh " + file("script"), "1"), 0);
  EXPECT_EQ(status_of(task + "sh " + file("script"), "2"), 2);
  EXPECT_FALSE(fs::exists(file("requeued")));
  EXPECT_EQ(status_of(task + "sh " + file("script"), "3"), 3);
  EXPECT_EQ(read(file("requeued")), "requeue 77\n");
  EXPECT_EQ(status_of(task + "sh " + file("script"), "137"), 137);
  EXPECT_EQ(read(file("requeued")), "requeue 77\n");
  EXPECT_EQ(status_of(task + "SLURM_RESTART_COUNT=2 sh " + file("script"), "3"), 3);
  EXPECT_FALSE(fs::exists(file("requeued")));
}

TEST_F(EngineScripts, GridEngine) {
  engine("gridengine --only 2,4-6");
  EXPECT_THAT(read(file("script")), HasSubstr("#$ -t 1-4\n"));
  const std::string task = "SGE_TASK_ID=3 ";
  EXPECT_EQ(status_of(task + "sh " + file("script"), "1"), 0);
  EXPECT_EQ(asked(), "2,4-6 --nth 2;");
  EXPECT_EQ(status_of(task + "sh " + file("script"), "2"), 2);
  EXPECT_EQ(status_of(task + "sh " + file("script"), "3"), 99);
  EXPECT_EQ(status_of(task + "RESTARTED=1 sh " + file("script"), "3"), 3);
}

TEST_F(EngineScripts, Parallel) {
  engine("parallel --only 2,4-5");
  std::istringstream lines(read(file("script")));
  std::vector<std::string> commands;
  for (std::string line; std::getline(lines, line);) commands.push_back(line);
  ASSERT_EQ(commands.size(), 3u);
  for (const auto& [status, expected] : {std::pair{0, 0}, {1, 0}, {2, 2}, {3, 3}, {137, 137}}) {
    write(file("line"), commands[1]);
    EXPECT_EQ(status_of("sh " + file("line"), std::to_string(status)), expected) << status;
    EXPECT_EQ(asked(), "4;");
  }
}

TEST_F(EngineScripts, Local) {
  engine("local --jobs 1 --only 2,4");
  const std::string last = "sweep status " + file("plan") + ";";
  EXPECT_EQ(status_of("sh " + file("script"), "1\n0\n0"), 0);
  EXPECT_EQ(asked(), "2;4;" + last);
  EXPECT_EQ(status_of("sh " + file("script"), "3\n3\n0\n3\n3\n3\n1"), 1);
  EXPECT_EQ(asked(), "2;2;2;4;4;4;" + last);
  // Bad usage is that of all.
  EXPECT_EQ(status_of("sh " + file("script"), "2\n1"), 1);
  EXPECT_EQ(asked(), "2;" + last);
}

// What Kubernetes does with an Indexed Job: a pod for each index, with JOB_COMPLETION_INDEX, and
// for a pod that failed the first rule that its exit status meets. `pod` returns that status.
struct IndexedJob {
  std::vector<int> started;  // pods of each index
  bool failed = false;       // the whole job
  std::vector<std::size_t> failed_indexes;
};
template <class Pod>
IndexedJob run_indexed_job(const Json& job, const Pod& pod) {
  const Json& spec = job["spec"];
  IndexedJob ran;
  const std::size_t completions = spec["completions"];
  ran.started.resize(completions);
  for (std::size_t index = 0; index < completions && !ran.failed; ++index) {
    int counted = 0;
    for (;;) {
      ++ran.started[index];
      const int status = pod(index, spec["template"]["spec"]["containers"][0]["command"]);
      if (status == 0) break;
      std::string action = "Count";
      for (const Json& rule : spec["podFailurePolicy"]["rules"]) {
        if (!rule.contains("onExitCodes")) continue;
        const Json& codes = rule["onExitCodes"];
        const bool among = std::ranges::count(codes["values"], Json(status)) > 0;
        if (among == (codes["operator"] == "In")) {
          action = rule["action"];
          break;
        }
      }
      if (action == "FailJob") ran.failed = true;
      if (action == "Count" && ++counted <= spec["backoffLimitPerIndex"].get<int>()) continue;
      if (!ran.failed) ran.failed_indexes.push_back(index);
      break;
    }
  }
  return ran;
}

TEST_F(EngineScripts, Kubernetes) {
  engine("k8s --image registry/assay:1 --claim sweeps --only 2,4-6");
  const Json job = Json::parse(read(file("script")));
  EXPECT_EQ(job["apiVersion"], "batch/v1");
  EXPECT_EQ(job["kind"], "Job");
  const Json& spec = job["spec"];
  EXPECT_EQ(spec["completionMode"], "Indexed");
  EXPECT_EQ(spec["completions"], 4);
  // A policy of failures is allowed only with it.
  EXPECT_EQ(spec["template"]["spec"]["restartPolicy"], "Never");
  const std::string name = job["metadata"]["generateName"];
  EXPECT_EQ(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-"), std::string::npos);
  // The folder /sweep of a pod is the folder of the plan here.
  const auto pod = [&](const std::string& statuses) {
    write(file("statuses"), statuses);
    fs::remove(file("asked"));
    return run_indexed_job(job, [&](std::size_t index, const Json& command) {
      write(file("pod"), command[2]);
      return run("", "cd " + folder_.string() +
                         " && JOB_COMPLETION_INDEX=" + std::to_string(index) + " " +
                         command[0].get<std::string>() + " " + file("pod"))
          .status;
    });
  };
  IndexedJob ran = pod("0\n1\n3\n3\n0\n137\n137\n137");
  EXPECT_THAT(ran.started, ElementsAre(1, 1, 3, 3));
  EXPECT_THAT(ran.failed_indexes, ElementsAre(3u));
  EXPECT_FALSE(ran.failed);
  EXPECT_THAT(read(file("asked")), HasSubstr("sweep run plan 2,4-6 --nth 3"));
  ran = pod("0\n2\n0\n0");
  EXPECT_TRUE(ran.failed);
  EXPECT_THAT(ran.started, ElementsAre(1, 1, 0, 0));
}

// The client of Kubernetes knows every field: it reads the manifest into its own types and writes
// it again.
TEST_F(EngineScripts, TheClientOfKubernetesReadsTheManifest) {
  if (run("version --client", "kubectl").status != 0) GTEST_SKIP() << "kubectl is not installed";
  engine("k8s --image registry/assay:1 --claim sweeps --jobs 2");
  const Ran r = run("label --local -f " + file("script") + " seen=yes -o json", "kubectl");
  ASSERT_EQ(r.status, 0) << r.output;
  const Json mine = Json::parse(read(file("script"))), theirs = Json::parse(r.output);
  for (const Json& change : Json::diff(mine, theirs))
    EXPECT_EQ(change["op"], "add") << change.dump();
}

}  // namespace
}  // namespace assay
