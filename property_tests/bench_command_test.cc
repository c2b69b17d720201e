// Tests `assay bench`, and where its measurements go. It asserts no time, only that every
// measurement is in its place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <set>

#include "property_tests/run_command.h"
#include "reports/store.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
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
        EXPECT_GT(m["limit"], 0);
        EXPECT_NEAR(
            m["fraction"].get<double>() /
                (m[m["limited_by"].get<std::string>()].get<double>() / m["limit"].get<double>()),
            1, 0.9)
            << m;
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
