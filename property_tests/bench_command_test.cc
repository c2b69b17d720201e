// Tests `assay bench`, and where its measurements go. It asserts no time, only that every
// measurement is in its place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <map>
#include <set>
#include <sstream>
#include <tuple>
#include <vector>

#include "harness/results/schema.h"
#include "property_tests/run_command.h"
#include "reports/store.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::ContainsRegex;
using testing::HasSubstr;

class Bench : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const char* name) const { return folder_ / name; }
  // Writes a program that takes the place of another.
  void script(const char* name, const std::string& body) const {
    std::ofstream(folder_ / name) << "#!/bin/sh\n" << body;
    fs::permissions(folder_ / name, fs::perms::owner_all);
  }
  const fs::path folder_ =
      fs::temp_directory_path() / ("assay-bench-test-" + std::to_string(getpid()));
};

const char* const quick = " --repetitions 4 --min-time 0.001 --threads 1 ";

TEST_F(Bench, EveryKindIsMeasuredAndStored) {
  const Ran r = run(
      "bench forward backward decode products verdicts generators overhead" + std::string(quick) +
      "--filter "
      "'(forward|backward)/(fp32|openblas)/L:1024/D:64/causal:0|decode/(tensor|paged)-f32/H:8/"
      "2|products/(mxfp4|openblas-mxfp4)/M:1/|verdicts/[a-z0-9-]+/(attention|backward) b=1 h=8 "
      "l=512 d=64/|generators/normal|overhead/[^/]+/L:1/' --json " +
      file("b.json") + " --store " + file("b.db"));
  ASSERT_EQ(r.status, 0) << r.output;
  const Json whole = Json::parse(read(file("b.json")));
  std::set<std::string> seen;
  for (const Json& part : whole["modes"]) {
    std::size_t ratios = 0;
    for (const Json& m : part["measured"]) {
      seen.insert(part["mode"]);
      EXPECT_FALSE(m.contains("failed")) << m;
      EXPECT_GT(m["seconds"], 0) << m;
      EXPECT_LE(m["low"], m["seconds"]);
      EXPECT_GE(m["high"], m["seconds"]);
      EXPECT_EQ(m["repetitions"], 4);
      const bool limited = part["mode"] != "overhead";
      EXPECT_EQ(m.contains("fraction"), limited) << m;
      if (limited) {
        // A busy machine lengthens any of these bursts of a millisecond, so that medians over them
        // need not agree; what one repetition says, does (below).
        EXPECT_GT(m["limit"], 0);
        EXPECT_GT(m[m["limited_by"].get<std::string>()], 0) << m;
        EXPECT_GT(m["fraction"], 0) << m;
        EXPECT_LE(m["fraction_low"], m["fraction"]);
        EXPECT_GE(m["fraction_high"], m["fraction"]);
      }
      for (const Json& ratio : m["ratios"]) {
        ++ratios;
        EXPECT_LE(ratio["low"], ratio["ratio"]);
        EXPECT_GE(ratio["high"], ratio["ratio"]);
        EXPECT_GE(ratio["coverage"], 0.95);
      }
    }
    if (part["mode"] == "verdicts")
      // Eigen is compared with five others, and for gradients with two others.
      EXPECT_EQ(ratios, 7u) << part;
    if (part["mode"] != "overhead") EXPECT_FALSE(part["limits"].empty());
  }
  EXPECT_EQ(seen, (std::set<std::string>{"forward", "backward", "decode", "products", "verdicts",
                                         "generators", "overhead"}));

  const StoredRun stored = Store(file("b.db")).run(1);
  EXPECT_EQ(stored.kind, "benchmark");
  EXPECT_EQ(stored.title, "forward backward decode products verdicts generators overhead");
  bool over_verdict = false;
  for (const StoredResult& m : stored.results) over_verdict |= m.counters.contains("over verdict");
  EXPECT_TRUE(over_verdict);
  // Compares a run with itself.
  const Ran compared = run("compare " + file("b.db") + "#1 " + file("b.db") + "#1");
  EXPECT_EQ(compared.status, 0) << compared.output;
  EXPECT_THAT(compared.output, HasSubstr("time: x 1 [1, 1]"));
}

// "Parameter validation: ~microsecond overhead" is a claim; the table says what part of it was
// measured.
TEST_F(Bench, AFractionIsTheRateOverTheLimitOfItsRepetition) {
  const Ran r = run(
      "bench forward decode products --repetitions 1 --min-time 0.001 --threads 1 --filter "
      "'forward/fp32/L:1024/D:64/causal:0|decode/tensor-f32/H:8/2|products/mxfp4/M:1/' --json " +
      file("one.json"));
  ASSERT_EQ(r.status, 0) << r.output;
  std::set<std::string> limits;
  const Json whole = Json::parse(read(file("one.json")));
  for (const Json& part : whole["modes"])
    for (const Json& m : part["measured"]) {
      const std::string by = m.at("limited_by");
      limits.insert(by);
      const double expected = m.at(by).get<double>() / m.at("limit").get<double>();
      EXPECT_NEAR(m.at("fraction").get<double>() / expected, 1, 1e-9) << m;
    }
  EXPECT_THAT(limits, testing::ElementsAre("GB/s", "GFLOP/s"));
}

TEST_F(Bench, TheCostOfValidationIsMeasuredBesideTheClaim) {
  const Ran r = run("bench overhead" + std::string(quick) +
                    "--filter 'overhead/[^/]+/L:1/' --json " + file("b.json"));
  ASSERT_EQ(r.status, 0) << r.output;
  EXPECT_THAT(r.output, HasSubstr("in claimed microseconds"));
  EXPECT_THAT(r.output, ContainsRegex("validation +[0-9.]+ +[0-9.]+ +[0-9]+\\.[0-9]{3}\n"));
  double seconds = 0;
  const Json whole = Json::parse(read(file("b.json")));
  for (const Json& m : whole["modes"][0]["measured"])
    if (m["name"].get<std::string>().starts_with("overhead/validation/")) seconds = m["seconds"];
  EXPECT_GT(seconds, 0);
}

// The lengths of the source document, forward alone and with backward, in milliseconds.
TEST_F(Bench, TimesAreMeasuredAndStored) {
  const Ran list = run("bench times --list");
  for (const char* length : {"/L:128/", "/L:2048/", "/L:4096/"})
    EXPECT_THAT(list.output, HasSubstr(length));
  const Ran r = run("bench times" + std::string(quick) + "--filter 'L:128/D:64/causal:0' --store " +
                    file("b.db"));
  ASSERT_EQ(r.status, 0) << r.output;
  const StoredRun stored = Store(file("b.db")).run(1);
  std::set<std::string> seen;
  for (const StoredResult& m : stored.results) {
    EXPECT_GT(m.seconds.value_or(0), 0) << m.name;
    const std::string rest = m.name.substr(m.name.find('/') + 1);
    seen.insert(rest.substr(0, rest.find('/')));
  }
  for (const char* timed : {"fwd-fp32", "fwd-bf16", "fwd+bwd-fp32", "fwd+bwd-bf16"})
    EXPECT_TRUE(seen.contains(timed)) << timed << " in " << testing::PrintToString(seen);
}

// Prefill and decode of the small transformer, with caches and without, in a process for each
// configuration. The store takes what the program writes.
TEST_F(Bench, TheTransformerIsMeasuredAndStored) {
  const Ran help = run("--help", ASSAY_TRANSFORMER_BENCH);
  EXPECT_THAT(help.output, HasSubstr("by default 1 thread and 128,512,1024 tokens"));
  const Ran r = run("--tokens 8,16 --json " + file("t.json"), ASSAY_TRANSFORMER_BENCH);
  ASSERT_EQ(r.status, 0) << r.output;
  EXPECT_EQ(run("store " + file("b.db") + " --benchmarks " + file("t.json")).status, 0);
  std::set<std::string> seen;
  for (const StoredResult& m : Store(file("b.db")).run(1).results) {
    EXPECT_GT(m.seconds.value_or(0), 0) << m.name;
    EXPECT_GT(m.counters["peak_mib"], 0);
    seen.insert(m.name);
  }
  EXPECT_EQ(seen.size(), 8u * 4);
  for (const char* name :
       {"transformer/mxfp4/f32/8/prefill", "transformer/mxfp4/f32/16/first-prefill",
        "transformer/nvfp4/f32/16/decode", "transformer/int4/f32/8/decode-without-cache",
        "transformer/mxfp4/f4e2m1/16/decode"})
    EXPECT_TRUE(seen.contains(name)) << name;
  for (const char* wrong :
       {"--tokens 0", "--tokens 8,", "--tokens x", "--threads 2000", "--wat 1"}) {
    const Ran refused = run(wrong, ASSAY_TRANSFORMER_BENCH);
    EXPECT_EQ(refused.status, 2) << wrong << refused.output;
    EXPECT_THAT(refused.output, HasSubstr("transformer_bench: "));
  }
}

// The table of largest differences has a line for each dtype, with what was claimed, what was
// measured, and how exact the measure is.
TEST_F(Bench, LargestDifferencesAreToldBesideTheClaims) {
  const Ran r = run("1 64", ASSAY_DIFFERENCES_BENCH);
  ASSERT_EQ(r.status, 0) << r.output;
  std::istringstream lines(r.output);
  std::map<std::string, std::vector<std::string>> cells;
  for (std::string line, word; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string dtype;
    words >> dtype;
    if (dtype == "f32" || dtype == "f16" || dtype == "bf16")
      while (words >> word)
        if (word[0] != '[') cells[dtype].push_back(word);  // the magnitude stands in brackets
  }
  ASSERT_EQ(cells.size(), 3u) << r.output;
  for (const auto& [dtype, forward, backward] :
       {std::tuple{"f32", "1e-6", "1e-6"}, {"f16", "5e-4", "2e-3"}, {"bf16", "1e-3", "1e-3"}}) {
    const std::vector<std::string>& of = cells[dtype];
    ASSERT_EQ(of.size(), 8u) << dtype << r.output;
    EXPECT_EQ(of[0], forward);
    EXPECT_EQ(of[3], backward);
    const double oracle = std::stod(of[7]);
    for (const std::size_t measured : {1, 4, 5, 6}) {
      const double difference = std::stod(of[measured]);
      EXPECT_GT(difference, 10 * oracle)
          << dtype << " " << measured;  // the measure is exact enough
      EXPECT_LT(difference, 0.1) << dtype << " " << measured;
    }
  }
}

TEST_F(Bench, NamesAreListed) {
  const Ran r = run("bench overhead --list");
  EXPECT_EQ(r.status, 0);
  EXPECT_THAT(r.output, HasSubstr("overhead/validation/L:1/D:8/real_time"));
}

TEST_F(Bench, BadInputIsToldAndNothingIsStored) {
  for (const auto& [arguments, says] :
       {std::pair<std::string, const char*>{"bench fast",
                                            "'fast': no such benchmarks; there are forward, "},
        {"bench overhead --filter nothing-of-that-name",
         "nothing was measured: no benchmark has a name that --filter=nothing-of-that-name finds"},
        {"bench overhead --filter '('", "--filter=(: "},
        {"bench overhead --bin /nowhere",
         "/nowhere/attention_bench cannot be run (No such file or directory): --bin says where"},
        {"bench overhead --repetitions 0", "--repetitions"},
        {"bench overhead --threads 0", "--threads"},
        {"bench overhead --shapes huge", "--shapes"}}) {
    const Ran r = run(arguments + " --store " + file("none.db"));
    EXPECT_EQ(r.status, 2) << arguments << r.output;
    EXPECT_THAT(r.output, HasSubstr(says));
    EXPECT_FALSE(fs::exists(file("none.db")));
  }
}

TEST_F(Bench, FailuresOfCandidatesAndOfPrograms) {
  // The candidate threw. The other cases are measured, the status tells that something is wrong,
  // and the store keeps it.
  script("attention_bench",
         "while [ \"$1\" != --json ]; do shift; done; echo '{\"format\": 1, \"mode\": "
         "\"overhead\", \"limits\": [], \"limits with\": \"\", \"measured\": [{\"name\": "
         "\"overhead/a/L:1\", \"failed\": \"no memory\"}]}' > $2\n");
  Ran r = run("bench overhead --bin " + folder_.string() + " --store " + file("b.db"));
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("0 measured, 1 failed\n  overhead/a/L:1: no memory"));
  EXPECT_EQ(Store(file("b.db")).run(1).results.at(0).outcome, "error");
  for (const auto& [body, says] :
       {std::pair{"exit 1\n",
                  "attention_bench overhead ended with exit status 1; nothing was stored"},
        {"kill -9 $$\n", "attention_bench was ended by signal 9"}}) {
    script("attention_bench", body);
    r = run("bench overhead --bin " + folder_.string() + " --store " + file("b.db"));
    EXPECT_EQ(r.status, 3) << r.output;
    EXPECT_THAT(r.output, HasSubstr(says));
  }
  EXPECT_EQ(Store(file("b.db")).runs().size(), 1u);
}

}  // namespace
}  // namespace assay
