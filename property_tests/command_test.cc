// Runs the command `assay` as a user does: exit statuses, messages, files.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "harness/judging/workers.h"
#include "kernels/simd/targets.h"
#include "property_tests/run_command.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::AnyOf;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;
using testing::StartsWith;

class Command : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-command-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const char* name) const { return folder_ / name; }
  fs::path folder_;
};

TEST_F(Command, PassesAndSaysSo) {
  const Ran r = run("check --case 'attention b=1 h=2 l=9x13 d=8 causal'");
  EXPECT_EQ(r.status, 0) << r.output;
  EXPECT_THAT(r.output, HasSubstr("pass: every element is inside its bound"));
  EXPECT_THAT(r.output, HasSubstr("1 case: 1 passed, 0 failed"));
  EXPECT_THAT(r.output, HasSubstr("seed"));
  // One line tells the progress, five tell the case, and one tells the run.
  EXPECT_EQ(std::ranges::count(r.output, '\n'), 7) << r.output;
  const Ran full = run("check --explain --case 'attention b=1 h=2 l=9x13 d=8 causal'");
  EXPECT_EQ(full.status, 0) << full.output;
  EXPECT_THAT(full.output, ContainsRegex("\n  bias: .*\n      whether errors lean to one side"));
}

TEST_F(Command, AWrongKernelFailsShrunkToOneLineThatReproducesIt) {
  const Ran r =
      run("check --candidate fault:kv-head-modulo --case 'attention b=2 h=6/2 l=37x53 d=16 "
          "dtype=f16 causal window=20,0 scores=growing'");
  EXPECT_EQ(r.status, 1) << r.output;
  const auto at = r.output.find("reproduce: assay ");
  ASSERT_NE(at, std::string::npos) << r.output;
  const std::string line = r.output.substr(at + 17, r.output.find('\n', at) - at - 17);
  EXPECT_THAT(line, HasSubstr("l=1 d=1 dtype=f32'"));
  const Ran again = run(line + " --no-shrink");
  EXPECT_EQ(again.status, 1) << again.output;
  EXPECT_THAT(again.output, HasSubstr("is outside its bound"));
}

TEST_F(Command, RecordsTravel) {
  const Ran written =
      run("record --case 'attention b=1 h=2 l=9x13 d=8 causal' --case 'product m=2 n=3 k=32' "
          "--candidate host -o " +
          file("good"));
  EXPECT_EQ(written.status, 0) << written.output;
  const Ran good = run("verify " + file("good") + " --json " + file("j") + " --junit " + file("x") +
                       " --html " + file("h"));
  EXPECT_EQ(good.status, 0) << good.output;
  EXPECT_THAT(good.output, HasSubstr("2 records: 2 passed, 0 failed"));
  const nlohmann::json whole = nlohmann::json::parse(read(file("j")));
  EXPECT_EQ(whole["results"][0]["reproduce"], "assay verify '" + file("good") + "' --record 0");
  EXPECT_THAT(read(file("h")), HasSubstr("attention b=1 h=2 l=9x13 d=8 dtype=f32 causal"));
  // The page draws what was judged: maps of every output, and the mask.
  EXPECT_THAT(read(file("h")), AllOf(HasSubstr("\"maps\":[{"), HasSubstr("\"mask\":[{"),
                                     HasSubstr("\"output\":\"C\"")));
  EXPECT_THAT(run("verify --list " + file("good")).output,
              HasSubstr("1: product m=2 n=3 k=32 w=mxfp4 kernel=host"));
  EXPECT_EQ(run("record --case 'attention b=1 h=2 l=9x13 d=8 causal' --candidate "
                "fault:causal-off-by-one -o " +
                file("bad"))
                .status,
            0);
  // A wrong record, a right one, and a file that is no record each have a result.
  std::ofstream(file("none")) << "{}";
  const Ran all = run("verify " + file("bad") + " " + file("good") + " " + file("none") +
                      " --junit " + file("x"));
  EXPECT_EQ(all.status, 1) << all.output;
  EXPECT_THAT(all.output, HasSubstr("4 records: 2 passed, 1 failed, 1 error;"));
  EXPECT_THAT(all.output, HasSubstr("reproduce: assay verify '" + file("bad") + "'"));
  EXPECT_THAT(read(file("x")), HasSubstr("failures=\"1\" errors=\"1\""));
  const Ran inputs = run("record --case 'attention b=1 h=2 l=9x13 d=8 causal' -o " +
                         file("inputs") + " && " ASSAY_COMMAND " verify " + file("inputs"));
  EXPECT_EQ(inputs.status, 2);
  EXPECT_THAT(inputs.output, HasSubstr("tensor o is missing; the record holds inputs only"));
  EXPECT_EQ(run("record --case 'attention b=1 h=1 l=4 d=4' -o /no/such/folder/x").status, 2);
}

TEST_F(Command, RunsAreStoredAndCompared) {
  const std::string check = "check --suite smoke --filter dtype=f32 --store " + file("runs.db");
  for (const char* candidate : {"host", "host", "fault:scale-off-by-one-percent"})
    run(check + " --no-shrink --candidate " + candidate);
  const Ran list = run("store " + file("runs.db") + " --export " + file("lines"));
  EXPECT_EQ(list.status, 0) << list.output;
  EXPECT_THAT(run("store " + file("runs.db")).output,
              HasSubstr("fault:scale-off-by-one-percent on smoke"));
  EXPECT_THAT(run("store " + file("other.db") + " --import " + file("lines")).output,
              HasSubstr("3 runs imported"));
  const Ran same =
      run("compare " + file("runs.db") + "#1 " + file("other.db") + "#2 --time-margin 100000");
  EXPECT_EQ(same.status, 0) << same.output;
  EXPECT_THAT(same.output, HasSubstr("largest error/bound: x 1 [1, 1]"));
  const Ran worse =
      run("compare " + file("runs.db") + "#1 " + file("runs.db") + "#3 --time-margin 100000");
  EXPECT_EQ(worse.status, 1) << worse.output;
  EXPECT_THAT(worse.output, HasSubstr("beyond the margin of 5%"));
  EXPECT_THAT(worse.output, HasSubstr("pass -> fail: attention"));
}

// Every format is written; the summary of a step keeps what was there before.
TEST_F(Command, RunsGoToOtherPrograms) {
  const std::string in_a_step = "GITHUB_STEP_SUMMARY=" + file("step.md") + " " ASSAY_COMMAND;
  const std::string wrong =
      "check --no-shrink --candidate fault:scale-off-by-one-percent --case "
      "'attention b=1 h=2 l=9x13 d=8' --case 'product m=2 n=3 k=32'";
  std::ofstream(file("step.md")) << "before\n";
  const Ran r = run(wrong + " --github --sarif " + file("s") + " --openmetrics " + file("o") +
                        " --store " + file("runs.db"),
                    in_a_step);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("\n::error title=fault%3Ascale-off-by-one-percent%3A 1 x fail%2C "
                                  "proved::"));
  EXPECT_THAT(read(file("step.md")), StartsWith("before\n### Assay: "));
  const auto log = nlohmann::json::parse(read(file("s")));
  EXPECT_EQ(log["runs"][0]["results"][0]["ruleId"], "proved");
  EXPECT_THAT(read(file("o")), AllOf(HasSubstr("outcome=\"fail\"} 1\n"), HasSubstr("\n# EOF\n")));
  const Ran store = run("store " + file("runs.db") + " --openmetrics " + file("series") +
                        " --otava " + file("otava") + " --bencher " + file("bencher"));
  EXPECT_EQ(store.status, 0) << store.output;
  EXPECT_THAT(read(file("series")), testing::ContainsRegex("outcome=\"fail\"} 1 [0-9]+\n"));
  EXPECT_EQ(nlohmann::json::parse(read(file("otava"))).size(), 1u);
  EXPECT_EQ(nlohmann::json::parse(read(file("bencher"))).size(), 2u);

  // The summary is an output like another, and has to be named.
  for (const auto& [program, options, words] :
       {std::tuple{"env -u GITHUB_STEP_SUMMARY " ASSAY_COMMAND, std::string(" --github"),
                   std::string("--github: the environment variable GITHUB_STEP_SUMMARY names no")},
        std::tuple{in_a_step.c_str(), " --github --json " + file("step.md"),
                   std::string("would be one file")}}) {
    const Ran refused = run(wrong + options, program);
    EXPECT_EQ(refused.status, 2) << refused.output;
    EXPECT_THAT(refused.output, HasSubstr(words));
    EXPECT_THAT(refused.output, Not(HasSubstr("failed")));
  }
  const Ran read_too = run("store " + file("runs.db") + " --otava " + file("runs.db"));
  EXPECT_EQ(read_too.status, 2);
  EXPECT_THAT(read_too.output, HasSubstr("would overwrite a file of STORE="));
}

// The exit status of an alarm is 1, and everything that says how alarms are told is checked first.
TEST_F(Command, AStoreRaisesAlarms) {
  std::ofstream lines(file("lines"));
  for (int n = 0; n < 12; ++n)
    lines << nlohmann::json{{"kind", "check"},
                            {"started", "2026-01-" + std::to_string(10 + n) + "T00:00:00Z"},
                            {"title", "tiny"},
                            {"candidate", "host"},
                            {"seed", 1},
                            {"commit", "c" + std::to_string(n)},
                            {"machine", nlohmann::json::object()},
                            {"sentence", ""},
                            {"results",
                             {{{"name", "a"},
                               {"outcome", "pass"},
                               {"worst_ratio", n < 11 ? 0.1 : 0.2}}}}}
                 .dump()
          << '\n';
  lines.close();
  const std::string store = "store " + file("runs.db");
  ASSERT_EQ(run(store + " --import " + file("lines")).status, 0);
  const Ran alarm =
      run(store + " --alarms --json " + file("json") + " --dashboard " + file("page"));
  EXPECT_EQ(alarm.status, 1) << alarm.output;
  EXPECT_THAT(alarm.output, HasSubstr("run 11 (2026-01-20T00:00:00Z, c10) to run 12"));
  EXPECT_THAT(alarm.output, HasSubstr("dashboard: " + file("page") + "#run=12&case=a"));
  EXPECT_EQ(nlohmann::json::parse(read(file("json")))["alarms"][0]["name"], "a");
  EXPECT_THAT(read(file("page")), HasSubstr("\"first_after\":{\"commit\":\"c11\""));
  for (const char* none :
       {"--alarms --measures time", "--alarms --measures=time,evidence", "--alarms --since 13",
        "--alarms --since 2026-01-22", "--alarms --accuracy-margin 200"})
    EXPECT_EQ(run(store + " " + none).status, 0) << none;
  for (const auto& [options, words] :
       {std::pair{"--alarms --measures speed", "'speed' is none of accuracy, evidence and time"},
        {"--alarms --since 0", "--since=0: the number of a run, or a time as"},
        {"--alarms --since 2026-13-01", "--since=2026-13-01: the number of a run"},
        {"--since 3", "--since says how --alarms answers"},
        {"--json x", "--json says how --alarms answers"},
        {"--measures time", "--measures says how --alarms answers"}}) {
    const Ran refused = run(store + " " + options);
    EXPECT_EQ(refused.status, 2) << options << refused.output;
    EXPECT_THAT(refused.output, HasSubstr(words));
  }
}

// What failing cases share stands above them; failures of one cause are told once.
TEST_F(Command, FailuresOfARunAreToldByCause) {
  std::ofstream cases(file("cases"));
  for (int seed = 1; seed <= 60; ++seed)
    cases << "attention b=1 h=1 l=2 d=" << (seed % 3 == 0 ? "192/8" : "16/8") << " seed=" << seed
          << '\n';
  cases.close();
  const Ran r = run("check --no-shrink --candidate fault:wide-heads-return-ok --cases " +
                    file("cases") + " --json " + file("j"));
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("\nall 20 failing cases have at least 192 dimensions; none of 40 "
                                  "passing ones has it\n"
                                  "20 x fail, proved: LSE was not written\n"
                                  "  looks like: nothing is written (20 of 20)\n"
                                  "  with at least 192 dimensions\n"
                                  "  the first: attention b=1 h=1 l=2 d=192/8 dtype=f32 seed=3\n"));
  EXPECT_EQ(r.output.find("reproduce:"), r.output.rfind("reproduce:"));
  const auto summary = nlohmann::json::parse(read(file("j")))["summary"];
  EXPECT_EQ(summary["shared"]["features"][0], "at least 192 dimensions");
  ASSERT_EQ(summary["causes"].size(), 1u);
  EXPECT_EQ(summary["causes"][0]["cases"], 20);
  EXPECT_EQ(summary["causes"][0]["looks like"], "nothing is written (20 of 20)");
}

// A pipe may never end.
TEST_F(Command, AStoreImportsRegularFilesAlone) {
  const std::string pipe = file("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string option : {"--import", "--benchmarks"})
    for (const std::string& from : {pipe, std::string("/dev/zero")}) {
      const Ran r = run("600 " ASSAY_COMMAND " store " + file("new.db") + " " + option + " " + from,
                        "timeout");
      EXPECT_EQ(r.status, 2) << r.output;
      EXPECT_THAT(r.output, HasSubstr("assay: " + option + "=" + from + ": is no regular file"));
      EXPECT_FALSE(fs::exists(file("new.db")));
    }
  for (const std::string& arguments :
       {"store " + pipe, "compare " + pipe + "#1 " + pipe + "#2",
        "store " + pipe + " --import " ASSAY_SOURCE_DIR "/README.md"}) {
    const Ran r = run("600 " ASSAY_COMMAND " " + arguments, "timeout");
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr("assay: " + pipe + ": is no regular file"));
  }
  EXPECT_THAT(run("store " + file("new.db") + " --import /no/such/file").output,
              HasSubstr("--import=/no/such/file: cannot be read"));
}

TEST_F(Command, ATraceNamesTheFirstStage) {
  EXPECT_THAT(run("trace 'attention b=1 h=1 l=0x13 d=8'").output,
              HasSubstr("a case without rows has no stages"));
  const Ran wrong =
      run("trace --candidate fault:row-max-arguments-swapped 'attention b=1 h=1 l=70x200 d=16'");
  EXPECT_EQ(wrong.status, 1) << wrong.output;
  EXPECT_THAT(wrong.output,
              HasSubstr("first wrong: row_max at b=0 h=0 row=0, tile 0 (keys 0 to 127)"));
  const Ran right = run("trace 'backward b=1 h=2 l=20 d=16 causal'");
  EXPECT_EQ(right.status, 0) << right.output;
  EXPECT_THAT(right.output, HasSubstr("every stage holds; outputs: pass"));
}

TEST_F(Command, DevicesAreFoundOrWhatWasLookedForIsTold) {
  const std::string line = " --case 'attention b=1 h=2 l=9x13 d=8 causal'";
  const Ran good = run("check --device host" + line);
  EXPECT_EQ(good.status, 0) << good.output;
  const Ran none = run("check --device opencl:no-such-device" + line);
  EXPECT_EQ(none.status, 3) << none.output;
  EXPECT_THAT(none.output, HasSubstr("none of these devices is 'no-such-device': "));
  EXPECT_THAT(none.output, HasSubstr("CL_DEVICE_NOT_FOUND (-1)"));
  const Ran no_driver =
      run("check --device opencl" + line, "OCL_ICD_VENDORS=/nowhere " ASSAY_COMMAND);
  EXPECT_EQ(no_driver.status, 3) << no_driver.output;
  EXPECT_THAT(no_driver.output, HasSubstr("CL_PLATFORM_NOT_FOUND_KHR (-1001)"));
  EXPECT_THAT(no_driver.output, HasSubstr("no driver is installed"));
  const Ran unknown = run("check --device cuda" + line);
  EXPECT_EQ(unknown.status, 2) << unknown.output;
  EXPECT_THAT(unknown.output,
              HasSubstr("unknown device 'cuda'; there are host, opencl, opencl:TEXT"));
  const Ran both = run("check --device host --candidate unfused" + line);
  EXPECT_EQ(both.status, 2) << both.output;
  // Cases that a device does not support are counted with the reason. If there are no others, the
  // run does not pass.
  const Ran dropped =
      run("check --device host --case 'attention b=1 h=2 l=9x13 d=8 dropout=0.1:7'");
  EXPECT_EQ(dropped.status, 2) << dropped.output;
  EXPECT_THAT(dropped.output, HasSubstr("unsupported: dropout on a device"));
}

TEST_F(Command, BadInputIsStatusTwoAndNamesTheField) {
  const std::pair<const char*, const char*> table[] = {
      {"check",
       "--suite, --case or --cases is needed; the suites are smoke, standard, models, padding"},
      {"record -o /tmp/x", "--suite, --case or --cases is needed"},
      {"record --suite smok -o /tmp/x", "unknown suite 'smok'"},
      {"record --case 'attention b=1 h=1 l=4 d=4'", "--output is required"},
      {"record --case 'attention b=1 h=1 l=4 d=4 cache=paged:4' -o /tmp/x",
       "a record holds keys and values, not a cache"},
      {"record --case 'attention b=1 h=1 l=4 d=4' --candidate nobody -o /tmp/x",
       "unknown candidate 'nobody'"},
      {"verify", "FILE is required"},
      {"verify /no/such/file", "/no/such/file: No such file or directory"},
      {"verify /proc", "/proc: is no regular file"},
      {"verify " ASSAY_COMMAND, "no safetensors file"},
      {"trace", "CASE is required"},
      {"trace 'attention b=1 h=1 l=4 d=4 wat=3'", "unknown field 'wat'"},
      {"trace 'product m=2 n=2 k=32'", "stages are those of attention"},
      {"trace --candidate unfused 'attention b=1 h=1 l=4 d=4'", "unfused does not tell its stages"},
      {"check --suite smok", "unknown suite 'smok'"},
      {"check --suite smoke --filter no-such-text", "--filter=no-such-text: none of"},
      {"check --suite smoke --shard 4/4", "--shard=4/4: expected i/n with 0 <= i < n"},
      {"check --suite smoke --shard 99/100", "no case"},
      {"check --suite smoke --candidate nobody", "unknown candidate 'nobody'"},
      {"check --suite smoke --time -1", "--time: Value -1 not in range"},
      {"check --suite smoke --memory -1", "--memory: Value -1 not in range"},
      {"check --case 'attention b=1 h=3/2 l=4 d=4'",
       "h=3/2: query heads must be a multiple of kv heads"},
      {"check --case 'attention b=1 h=1 l=-4 d=4'", "l=-4 is outside [0, "},
      {"check --case 'attention b=1 h=1 l=4 d=1025'", "d=1025 is outside [1, 1024]"},
      {"check --case 'attention b=99999999 h=99999999 l=99999999 d=4'", "overflows 64 bits"},
      {"check --case 'attention b=1 h=1 l=4 d=4 wat=3'", "column 27: unknown field 'wat'"},
      {"check --case 'attention b=1 h=64 l=4194304 d=1024'", "MiB of memory"},
      {"check --case 'attention b=1 h=1 l=4 d=4 target=MMX'",
       "target=MMX is not one that this machine runs"},
      {"check --case 'attention b=0 h=1 l=4 d=4'", "nothing was compared"},
      {"check --case 'attention b=1 h=1 l=4 d=4 dtype=f64'", "nothing was compared"},
      {"check --cases /no/such/file", "--cases=/no/such/file: cannot be read"},
      {"faults --only no-such-fault", "--only=no-such-fault: no such fault"},
      {"faults --suite smok", "unknown suite 'smok'"},
      {"faults --target MMX", "--target: MMX not in {"},
      {"faults --only max-starts-at-lowest", "nothing to hunt: 1 of 1 fault named is equivalent"},
      {"faults --only delta-omitted --suite smoke",
       "nothing to hunt: suite smoke runs no case of 1 of 1 fault named"},
      {"store /no/such/store", "/no/such/store: there is no such store"},
      {"store " ASSAY_COMMAND " --export /tmp/x", "file is not a database"},
      {"compare a b", "'a': STORE#RUN is wanted"},
      {"compare a#x b#1", "'a#x': x is no number of a run"},
      {"frobnicate", "A subcommand is required"},
      {"", "A subcommand is required"},
  };
  for (const auto& [arguments, words] : table) {
    const Ran r = run(arguments);
    EXPECT_EQ(r.status, 2) << arguments << "\n" << r.output;
    EXPECT_THAT(r.output, HasSubstr(words)) << arguments;
    // Every sentence of an error begins like this, whoever noticed it; that of one case stands with
    // the case.
    EXPECT_THAT(r.output, ContainsRegex("(^|\n)(assay|  error): ")) << arguments;
    EXPECT_THAT(r.output, Not(HasSubstr("json.exception"))) << arguments;
  }
}

TEST_F(Command, WritesJsonJunitAndHtml) {
  const Ran r = run("check --suite smoke --filter dtype=f16 --shard 0/6 --json " + file("r.json") +
                    " --junit " + file("r.xml") + " --html " + file("r.html"));
  EXPECT_EQ(r.status, 0) << r.output;
  const auto json = nlohmann::json::parse(read(file("r.json")));
  EXPECT_EQ(json["summary"]["failed"], 0);
  EXPECT_EQ(json["summary"]["cases"], json["results"].size());
  EXPECT_GT(json["results"].size(), 0u);
  EXPECT_THAT(json["machine"]["compiler"].get<std::string>(),
              AnyOf(StartsWith("gcc "), StartsWith("clang ")));
  for (const auto& result : json["results"]) {
    EXPECT_EQ(result["dtype"], "f16");
    EXPECT_GT(result["elements"]["compared"]["O"], 0);
    EXPECT_TRUE(result.contains("power") && result.contains("relations"));
  }
  EXPECT_THAT(read(file("r.xml")), HasSubstr("<testsuite name=\"assay smoke\" tests=\""));
  EXPECT_THAT(read(file("r.html")), HasSubstr("\"suite\":\"smoke\""));
}

// Planted faults have a page of their own and a section on the page of a check. A file that holds
// something else is refused before anything runs.
TEST_F(Command, FaultsAndFuzzersAreShownOnPages) {
  const Ran faults = run("faults --only causal-off-by-one --suite smoke --json " +
                         file("score.json") + " --html " + file("score.html"));
  EXPECT_EQ(faults.status, 0) << faults.output;
  const std::string slowest = kernels::runnable_targets().back();
  const Ran there = run("faults --only causal-off-by-one --suite smoke --target " + slowest);
  EXPECT_EQ(there.status, 0) << there.output;
  EXPECT_THAT(there.output,
              AllOf(HasSubstr(" target=" + slowest), HasSubstr("; SIMD target " + slowest + "\n")));
  EXPECT_THAT(read(file("score.html")),
              AllOf(HasSubstr("\"fault\":\"causal-off-by-one\""), HasSubstr("\"machine\":{"),
                    Not(HasSubstr("\"results\":"))));
  std::ofstream(file("fuzz.json")) << R"({"format": 1, "seconds": 9, "seed": 1,
    "targets": [{"target": "forward", "seconds": 4, "executions": 7, "executions_per_second": 1, "coverage": 2, "corpus": 3, "findings": 0},
                {"target": "case", "seconds": 5, "executions": 8, "executions_per_second": 1, "coverage": 2, "corpus": 3, "findings": 1}],
    "findings": [{"target": "case", "file": "crash-1", "reason": "it ends in a signal"}]})";
  const std::string check = "check --case 'attention b=1 h=1 l=4 d=4' ";
  const Ran both = run(check + "--html " + file("run.html") + " --with-faults " +
                       file("score.json") + " --with-fuzz " + file("fuzz.json"));
  EXPECT_EQ(both.status, 0) << both.output;
  EXPECT_THAT(read(file("run.html")),
              AllOf(HasSubstr("\"fault\":\"causal-off-by-one\""), HasSubstr("\"results\":[{"),
                    HasSubstr("\"findings\":[],\"seconds\":4.0,\"target\":\"forward\"}"),
                    HasSubstr("\"findings\":[{\"case\":\"crash-1\",\"reason\":\"it ends in a "
                              "signal\"}],\"seconds\":5.0,\"target\":\"case\"}")));
  std::ofstream(file("odd.json"))
      << R"({"format": 1, "targets": [{}], "findings": [{"reason": 7}]})";
  const std::string html = check + "--html " + file("other.html");
  for (const auto& [arguments, words] :
       {std::pair{html + " --with-faults " + file("fuzz.json"),
                  "--with-faults=" + file("fuzz.json") + ": not what `assay faults --json` writes"},
        {html + " --with-fuzz " + file("none.json"),
         "--with-fuzz=" + file("none.json") + ": No such file or directory"},
        {html + " --with-fuzz " + file("odd.json"),
         "--with-fuzz=" + file("odd.json") +
             ": not what `assay fuzz --json` writes: the file: no field \"seconds\""},
        {html + " --with-fuzz " + file("run.html"), "not what `assay fuzz --json` writes"},
        {check + "--with-fuzz " + file("fuzz.json"), std::string("--with-fuzz requires --html")}}) {
    const Ran r = run(arguments);
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr(words));
    EXPECT_THAT(r.output, Not(HasSubstr("passed")));
  }
  EXPECT_FALSE(fs::exists(file("other.html")));
}

// No output overwrites what the command reads, and no two outputs are one file, however their paths
// are spelt. Nothing runs, and every file stays as it is.
TEST_F(Command, AnOutputIsNeitherAnInputNorAnotherOutput) {
  const std::string line = " --case 'attention b=1 h=1 l=4 d=4' ";
  std::ofstream(file("cases")) << "attention b=1 h=1 l=4 d=4\n";
  ASSERT_EQ(run("check" + line + "--store " + file("s.db")).status, 0);
  ASSERT_EQ(run("record" + line + "--candidate host -o " + file("r")).status, 0);
  ASSERT_EQ(run("faults --only causal-off-by-one --suite smoke --json " + file("score")).status, 0);
  std::ofstream(file("k.so")) << "a library";
  std::ofstream(file("bench.json")) << "{}";
  fs::create_symlink(file("cases"), file("link"));
  fs::create_hard_link(file("cases"), file("hard"));
  fs::create_symlink(file("fresh"), file("dangling"));
  fs::create_directory(file("folder"));
  std::ofstream(file("folder/attention_bench")) << "a program";
  fs::permissions(file("folder/attention_bench"), fs::perms::owner_all);
  std::map<std::string, std::string> before;
  const auto contents = [&] {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder_))
      if (entry.is_regular_file()) all[entry.path()] = read(entry.path());
    return all;
  };
  before = contents();
  const auto f = [&](const char* name) { return file(name) + " "; };
  for (const std::string& arguments : {
           "store " + f("s.db") + "--export " + f("s.db"),
           "store " + f("s.db") + "--dashboard " + f("folder/../s.db"),
           "store " + f("s.db") + "--dashboard " + f("s.db-wal"),
           "store " + f("s.db") + "--benchmarks " + f("bench.json") + "--export " + f("bench.json"),
           "store " + f("s.db") + "--import " + f("bench.json") + "--dashboard " + f("bench.json"),
           "compare " + file("s.db") + "#1 " + file("s.db") + "#1 --markdown " + f("s.db"),
           "check" + line + "--store " + f("s.db") + "--json " + f("s.db"),
           "check" + line + "--store " + f("new.db") + "--json " + f("new.db"),
           "check" + line + "--json " + f("x") + "--html " + f("folder/../x"),
           "check" + line + "--json " + f("fresh") + "--html " + f("dangling"),
           "check" + line + "--junit " + f("x") + "--markdown " + f("x"),
           "check" + line + "--standalone " + f("x") + "--markdown " + f("x"),
           "check --cases " + f("cases") + "--json " + f("cases"),
           "check --cases " + f("cases") + "--json " + f("link"),
           "check --cases " + f("link") + "--json " + f("hard"),
           "check" + line + "--kernel " + f("k.so") + "--html " + f("k.so"),
           "check" + line + "--candidate lib:" + f("k.so") + "--html " + f("k.so"),
           "check" + line + "--html " + f("score") + "--with-faults " + f("score"),
           "record --cases " + f("cases") + "-o " + f("cases"),
           "record" + line + "--candidate lib:" + f("k.so") + "-o " + f("k.so"),
           "verify " + f("cases") + f("r") + "--json " + f("r"),
           "verify " + f("r") + "--store " + f("r"),
           "faults --only causal-off-by-one --json " + f("x") + "--html " + f("x"),
           "bench overhead --bin " + f("folder") + "--json " + f("folder/attention_bench"),
           "bench overhead --json " + f("x") + "--store " + f("x"),
       }) {
    const Ran r = run(arguments);
    EXPECT_EQ(r.status, 2) << arguments << "\n" << r.output;
    EXPECT_THAT(r.output,
                AnyOf(HasSubstr("would overwrite a file of"), HasSubstr("would be one file")))
        << arguments;
    EXPECT_EQ(contents(), before) << arguments;
  }
  // Relative paths of files that are not there yet.
  const Ran relative =
      run("check" + line + "--json x --html ./x", "cd " + folder_.string() + " && " ASSAY_COMMAND);
  EXPECT_EQ(relative.status, 2) << relative.output;
  // A device takes any number of outputs, and so does standard output, also if it is a file.
  EXPECT_EQ(run("check" + line + "--json /dev/null --html /dev/null").status, 0);
  const Ran both = run("check" + line + "--json /dev/stdout --junit /dev/stdout >" + file("both") +
                       " 2>&1; cat " + file("both"));
  EXPECT_THAT(both.output, AllOf(HasSubstr("pass: every element"), HasSubstr("\"summary\""),
                                 HasSubstr("<testsuite")));
}

// A library's reason, a candidate's name and a case line are texts; they control no terminal, and
// they cannot look like lines of this program.
TEST_F(Command, TextsOfOthersAreShownAsTexts) {
  std::ofstream(file("kernel.c"))
      << "#include <assay/kernel.h>\n"
         "static assay_status supports(int32_t o, const assay_attention* p, const assay_dtype* t, "
         "const char** reason) {\n"
         "  (void)o, (void)p, (void)t; *reason = \"\\033[2Jno\\n1 case: 1 passed\"; return "
         "ASSAY_UNSUPPORTED; }\n"
         "static assay_status forward(const assay_attention* p, const assay_tensor* o, const "
         "assay_tensor* l, const assay_run* r) { (void)p, (void)o, (void)l, (void)r; return "
         "ASSAY_SUCCESS; }\n"
         "static assay_kernel k;\n"
         "const assay_kernel* assay_kernel_entry(uint32_t v) { (void)v; assay_kernel_init(&k, "
         "\"\\033[31mred\"); k.supports = supports; k.forward = forward; return &k; }\n";
  const std::string library = file("it's a $kernel.so");
  const Ran compiled = run("-x c -shared -fPIC -I" ASSAY_SOURCE_DIR "/include " + file("kernel.c") +
                               " -o \"" + folder_.string() + "/it's a \\$kernel.so\"",
                           ASSAY_CXX);
  ASSERT_EQ(compiled.status, 0) << compiled.output;
  std::ofstream(file("case")) << "attention b=1 h=1 \033[31ml=4\n";
  const std::string quoted = "'" + file("it'\\''s a $kernel.so") + "'";
  for (const std::string& arguments :
       {"check --kernel " + quoted + " --case 'attention b=1 h=1 l=4 d=4'",
        "check --kernel " + quoted + " --case 'attention b=1 h=1 l=4 d=4' --markdown /dev/stdout",
        "trace --kernel " + quoted + " 'attention b=1 h=1 l=4 d=4'",
        "check --cases " + file("case"), std::string("check --suite \"$(printf 'a\\033[31mb')\""),
        std::string("check --\"$(printf 'a\\033[31mb')\""),
        std::string("verify \"$(printf 'a\\033[31mb')\""),
        std::string("check --candidate \"$(printf 'lib:a\\033[31mb')\" --case 'attention b=1 h=1 "
                    "l=4 d=4'")}) {
    const Ran r = run(arguments);
    EXPECT_NE(r.status, 0) << arguments;
    EXPECT_THAT(r.output, Not(HasSubstr("\033"))) << arguments;
    EXPECT_THAT(r.output, Not(HasSubstr("\n1 case: 1 passed\n"))) << arguments;
    // This library tells no stages, and has a harmless path.
    if (!arguments.starts_with("trace")) EXPECT_THAT(r.output, HasSubstr("\\x1b[")) << arguments;
  }
}

// The line that reproduces a failure is one that a shell can run, whatever the path.
TEST_F(Command, ReproducingLinesQuotePaths) {
  const std::string record = "'" + file("it'\\''s a $record") + "'";
  ASSERT_EQ(run("record --case 'attention b=1 h=2 l=9x13 d=8 causal' --candidate "
                "fault:causal-off-by-one -o " +
                record)
                .status,
            0);
  const Ran wrong = run("verify " + record);
  EXPECT_EQ(wrong.status, 1) << wrong.output;
  const auto at = wrong.output.find("reproduce: assay ");
  ASSERT_NE(at, std::string::npos) << wrong.output;
  const std::string line = wrong.output.substr(at + 17, wrong.output.find('\n', at) - at - 17);
  const Ran again = run(line);
  EXPECT_EQ(again.status, 1) << line << again.output;
  EXPECT_THAT(again.output, HasSubstr("is outside its bound"));
}

// If a file cannot be written, the error comes before anything runs, and nothing is left behind.
TEST_F(Command, FilesThatCannotBeWrittenAreToldFirst) {
  for (const char* option : {"--json ", "--junit ", "--html ", "--markdown ", "--sarif ",
                             "--openmetrics ", "--store ", "--standalone "}) {
    const Ran r =
        run("check --case 'attention b=1 h=1 l=4 d=4' " + std::string(option) + file("none/r"));
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr("none/r: No such file or directory"));
    EXPECT_THAT(r.output, HasSubstr(std::string(option, strlen(option) - 1) + ": "));
    EXPECT_THAT(r.output, Not(HasSubstr("passed")));
  }
  EXPECT_EQ(run("record --case 'attention b=1 h=1 l=4 d=4' -o " + file("none/r")).status, 2);
  // The standalone case is chosen among the cases. If no case can stand alone, the run is written
  // all the same.
  const Ran products = run("check --suite tiny --filter product --json " + file("kept.json") +
                           " --standalone " + file("s.cc"));
  EXPECT_EQ(products.status, 2);
  EXPECT_THAT(
      products.output,
      HasSubstr("nothing was written: standalone files exist for the operation attention only"));
  EXPECT_TRUE(fs::exists(file("kept.json")));
  EXPECT_EQ(run("check --suite tiny --standalone " + file("s.cc")).status, 0);
}

// A candidate whose judging takes long has not failed. A candidate that answers late has failed.
TEST_F(Command, ASlowVerdictIsNoFailureOfTheCandidate) {
  // Ball arithmetic takes 40 s here. The candidate takes a hundredth of a second, but some seconds
  // if every access is instrumented.
#ifdef ASSAY_SANITIZED
  const std::string seconds = "20";
#else
  const std::string seconds = "8";
#endif
  const Ran r = run("check --timeout " + seconds +
                    " --no-shrink --ball-rows 100000 --case 'attention b=1 h=4 l=1024 d=64'");
  EXPECT_EQ(r.status, 3) << r.output;
  EXPECT_THAT(r.output, HasSubstr("error: not judged: the candidate had answered; oracle and bound "
                                  "were not ready within the " +
                                  seconds + " s of --timeout"));
}

TEST_F(Command, ACaseIsReproducedAsItWasRun) {
  const Ran r =
      run("check --no-shrink --candidate fault:row-beyond-the-last-stored --guard-pages behind "
          "--case 'product m=3 n=40 k=32 w=mxfp4'");
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output,
              HasSubstr("reproduce: assay check --candidate fault:row-beyond-the-last-stored "
                        "--guard-pages behind --case 'product"));
  // The crash is told as that of a library is, with the tensor.
  EXPECT_THAT(r.output, ContainsRegex("fail: the candidate's process was killed by signal 11 "
                                      "\\(Segmentation fault\\): an? (write|access) directly "
                                      "behind the end of c\n"));
}

TEST_F(Command, ListsAndExplains) {
  const Ran list = run("check --suite padding --list");
  EXPECT_EQ(list.status, 0);
  EXPECT_THAT(list.output, HasSubstr("l=11 d=16 dtype=f32 causal starts=2,9"));
  EXPECT_THAT(run("notation").output, HasSubstr("lengths"));
  EXPECT_THAT(run("--help").output, HasSubstr("Exit status: 0 all passed"));
  EXPECT_THAT(
      run("faults --list").output,
      HasSubstr("causal-off-by-one                      F01  standard  row i sees key i + 1"));
  EXPECT_EQ(run("--version").status, 0);
}

TEST_F(Command, UndeclaredKernelsAreHeldToTheLadder) {
  const Ran r =
      run("check --candidate host-undeclared --case 'attention b=1 h=2 l=9x13 d=8 dtype=f16'");
  EXPECT_EQ(r.status, 0) << r.output;
  EXPECT_THAT(r.output, HasSubstr("contract: fp32 accumulation, fp32 weights"));
}

// The file compiles without changes, and distinguishes a right kernel from a wrong one.
TEST_F(Command, StandaloneProgramCompilesAndJudges) {
  const Ran r =
      run("check --candidate fault:causal-off-by-one --case 'attention b=1 h=2/1 l=9x13 d=8 causal "
          "sink=1' --standalone " +
          file("case.cc"));
  EXPECT_EQ(r.status, 1) << r.output;
  for (const bool right : {true, false}) {
    std::ofstream kernel(file("kernel.cc"));
    kernel << "#include \"case.cc\"\n#include <vector>\n"
              "void attention_under_test(const double* q, const double* k, const double* v, const "
              "double* bias, const double* sink, double scale, double "
              "softcap, double* o, double* lse) {\n"
              "  for (int b = 0; b < B; ++b) for (int h = 0; h < HQ; ++h) for (int i = 0; i < LQ; "
              "++i) {\n"
              "    const int g = h / (HQ / HKV), row = (b * HQ + h) * LQ + i;\n"
              "    std::vector<double> s(LK); double m = sink[h];\n"
              "    for (int j = 0; j < LK; ++j) { double t = 0; for (int d = 0; d < D; ++d) t += "
              "q[row * D + d] * k[((b * HKV + g) * LK + j) * D + d];\n"
              "      t *= scale; if (softcap > 0) t = softcap * tanh(t / softcap); s[j] = t + "
              "bias[row * LK + j]; if (s[j] > m) m = s[j]; }\n"
           << (right ? "" : "    s[0] += 0.01;\n")
           << "    double sum = m > -INFINITY ? exp(sink[h] - m) : 0; for (int j = 0; j < LK; ++j) "
              "sum += m > -INFINITY ? exp(s[j] - m) : 0;\n"
              "    lse[row] = sum > 0 ? m + log(sum) : -INFINITY;\n"
              "    for (int c = 0; c < DV; ++c) { double a = 0; for (int j = 0; j < LK; ++j) if "
              "(s[j] > -INFINITY) a += exp(s[j] - m) * v[((b * HKV + g) * LK "
              "+ j) * DV + c]; o[row * DV + c] = sum > 0 ? a / sum : 0; }\n"
              "  }\n}\n";
    kernel.close();
    const Ran compiled = run("-Wall -o " + file("kernel") + " " + file("kernel.cc"), ASSAY_CXX);
    ASSERT_EQ(compiled.status, 0) << compiled.output;
    const Ran judged = run("", file("kernel"));
    EXPECT_EQ(judged.status, right ? 0 : 1) << judged.output;
    EXPECT_THAT(judged.output, HasSubstr("elements are outside their bounds"));
  }
}

// A worker that dies, hangs or lies in the middle of a case costs only that case.
TEST_F(Command, AWorkerThatMisbehavesIsAFailedCase) {
  auto worker = [&](const char* name, const char* body) {
    std::ofstream script(file(name));
    script << "#!/bin/sh\n" << body << "\n";
    script.close();
    fs::permissions(file(name), fs::perms::owner_all);
    return file(name);
  };
  auto outcome_of = [&](const std::string& executable, double timeout) {
    WorkerOptions options;
    options.executable = executable;
    options.jobs = 2;
    options.timeout_seconds = timeout;
    std::vector<CaseResult> results;
    run_in_workers({{"attention b=1 h=1 l=4 d=4", "host"},
                    {"attention b=1 h=1 l=5 d=4", "host"},
                    {"attention b=1 h=1 l=6 d=4", "host"}},
                   options, [&](std::size_t, CaseResult r) {
                     results.push_back(std::move(r));
                     return true;
                   });
    EXPECT_EQ(results.size(), 3u);
    for (const CaseResult& r : results) EXPECT_EQ(r.outcome, Outcome::fail);
    return results.empty() ? std::string() : results[0].reason;
  };
  EXPECT_THAT(outcome_of(worker("crash", "read line; kill -SEGV $$"), 20),
              HasSubstr("killed by signal 11"));
  EXPECT_THAT(outcome_of(worker("parent", "read line; sleep 30 & kill -SEGV $$"), 20),
              HasSubstr("killed by signal 11"));
  EXPECT_THAT(outcome_of(worker("exit", "read line; exit 7"), 20),
              HasSubstr("exited with status 7"));
  EXPECT_THAT(outcome_of(worker("hang", "exec sleep 60"), 0.5),
              HasSubstr("did not finish within 0.5 s"));
  // What the system kills has not failed, and the results that are there are kept if no other
  // worker starts.
  const auto errors_of = [&](const std::string& executable) {
    WorkerOptions options;
    options.executable = executable;
    std::vector<std::string> reasons;
    run_in_workers({{"attention b=1 h=1 l=4 d=4", "host"}, {"attention b=1 h=1 l=5 d=4", "host"}},
                   options, [&](std::size_t, const CaseResult& r) {
                     EXPECT_EQ(r.outcome, Outcome::error) << r.reason;
                     reasons.push_back(r.reason);
                     return true;
                   });
    EXPECT_EQ(reasons.size(), 2u);
    return reasons.empty() ? std::string() : reasons.back();
  };
  EXPECT_THAT(errors_of(worker("killed", "read line; kill -KILL $$")),
              HasSubstr("not judged: the worker was killed by signal 9"));
  EXPECT_THAT(errors_of(worker("lacks", "read line; echo '!' >&3; exec sleep 60")),
              HasSubstr("out of memory (--memory limits a worker)"));
  EXPECT_THAT(errors_of(worker("once", "read line; rm \"$0\"; kill -KILL $$")),
              HasSubstr("not judged: starting " + file("once") + ": No such file"));
  WorkerOptions missing;
  missing.executable = file("not-there");
  EXPECT_THROW(run_in_workers({{"attention b=1 h=1 l=4 d=4", "host"}}, missing,
                              [](std::size_t, const CaseResult&) { return true; }),
               std::system_error);
}

}  // namespace
}  // namespace assay
