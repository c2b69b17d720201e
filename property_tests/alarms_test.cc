// Alarms over a store: which series there are, what is told of a change, and what is none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <random>
#include <sstream>

#include "harness/results/schema.h"
#include "reports/alarms.h"
#include "reports/html.h"
#include "reports/store.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class AlarmsOfStores : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-alarms-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
    store_.emplace(folder_ / "runs.db");
  }
  void TearDown() override {
    store_.reset();
    fs::remove_all(folder_);
  }

  // A run a day, of the 28 days of as many months as are needed.
  StoredRun day(int n) const {
    StoredRun run;
    run.kind = "check";
    char started[32];
    snprintf(started, sizeof started, "2026-%02d-%02dT00:00:00Z", n / 28 + 1, n % 28 + 1);
    run.started = started;
    run.title = "standard";
    run.candidate = "host";
    run.commit = "commit" + std::to_string(n);
    run.machine = {{"cpu", "a processor"}, {"threads", 2}};
    return run;
  }
  static StoredResult passing(const std::string& name, double ratio, double seconds = 1) {
    StoredResult r;
    r.name = name;
    r.outcome = "pass";
    r.reproduce = "assay check --case '" + name + "'";
    r.worst_ratio = ratio;
    r.seconds = seconds;
    return r;
  }
  void append(const StoredRun& run) {
    std::istringstream line(to_json(run).dump());
    store_->import_lines(line);
  }
  // Days on which each case has an error/bound.
  void days(int count, const std::function<double(int day, int number)>& ratio, int cases = 1) {
    for (int n = 0; n < count; ++n) {
      StoredRun run = day(n);
      for (int k = 0; k < cases; ++k)
        run.results.push_back(passing("case " + std::to_string(k), ratio(n, k)));
      append(run);
    }
  }
  Alarms alarms(const AlarmRule& rule = {}) const { return find_alarms(*store_, rule); }
  static AlarmRule of(Measure measure) {
    AlarmRule rule;
    rule.measures = {measure};
    return rule;
  }
  static AlarmRule since(std::int64_t run, const std::string& time = "") {
    AlarmRule rule;
    rule.since = run;
    rule.since_time = time;
    return rule;
  }

  fs::path folder_;
  std::optional<Store> store_;
};

TEST_F(AlarmsOfStores, ATwofoldDriftOfAPassingCaseIsToldAtOnceWithEverythingAboutIt) {
  days(30, [](int n, int k) { return 0.1 * (1 + k) * (n >= 29 && k == 1 ? 2 : 1); }, 100);
  const Alarms found = alarms();
  ASSERT_EQ(found.worse.size(), 1u) << "the mean of 100 cases moved by less than its margin";
  const Alarm& a = found.worse[0];
  EXPECT_EQ(a.measure, Measure::accuracy);
  EXPECT_EQ(a.name, "case 1");
  EXPECT_EQ(a.suite, "standard");
  EXPECT_NEAR(a.before, 0.2, 1e-12);
  EXPECT_NEAR(a.after, 0.4, 1e-12);
  EXPECT_EQ(a.last_before.id, 29);
  EXPECT_EQ(a.last_before.commit, "commit28");
  EXPECT_EQ(a.first_after.id, 30);
  EXPECT_EQ(a.first_after.commit, "commit29");
  EXPECT_TRUE(a.certain);
  EXPECT_EQ(a.reproduce, "assay check --case 'case 1'");
  EXPECT_EQ(a.link, "#run=30&case=case%201");
  EXPECT_TRUE(found.better.empty());
  const std::string text = text_of(found, "runs.html");
  for (const char* part :
       {"run 29 (2026-02-01T00:00:00Z, commit28) to run 30", "error/bound x 2, 0.2 to 0.4, certain",
        "reproduce: assay check --case 'case 1'", "dashboard: runs.html#run=30&case=case%201",
        "1 alarm, 0 changes for the better"})
    EXPECT_THAT(text, HasSubstr(part));
  const Json json = to_json(found);
  EXPECT_EQ(json["alarms"].size(), 1u);
  EXPECT_EQ(json["alarms"][0]["first_after"]["commit"], "commit29");
  EXPECT_THAT(html_dashboard(*store_, found, "now"), HasSubstr("commit29"));
}

// The bytes that a text in base64 stands for.
std::string bytes_of(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  unsigned held = 0;
  int bits = 0;
  for (const char c : text.substr(0, text.find('='))) {
    held = held << 6 | static_cast<unsigned>(digits.find(c));
    if ((bits += 6) < 8) continue;
    bits -= 8;
    bytes += static_cast<char>(held >> bits & 255);
  }
  return bytes;
}

// The last 40 runs by date stand in the page as they are, and those before them packed. Here runs
// are added that are as old as the first, as an import adds them.
TEST_F(AlarmsOfStores, APageOfManyRunsHasTheEarlierOnesPacked) {
  const std::string start = "<script type=\"text/plain\" id=\"earlier\">";
  for (const int earlier : {0, 1, 2, 3}) {
    if (earlier == 0) days(40, [](int n, int) { return 0.25 + n; }, 3);
    else days(1, [](int, int) { return 0.5; }, 3);
    const std::string page = html_dashboard(*store_, alarms(), "now");
    const auto text_at = [&](std::size_t from) {
      return page.substr(from, page.find("</script>", from) - from);
    };
    const std::string mark = "id=\"data\">";
    const Json last = Json::parse(text_at(page.find(mark) + mark.size()));
    ASSERT_EQ(last["runs"].size(), 40u);
    EXPECT_EQ(last["runs"][39]["id"], 40);
    EXPECT_EQ(last["earlier"], earlier);
    EXPECT_EQ(last["generated"], "now");
    const std::size_t at = page.find(start);
    ASSERT_EQ(at != std::string::npos, earlier > 0);
    if (earlier == 0) continue;
    EXPECT_EQ(page.substr(page.find("</script>", at)), "</script>\n</body>\n</html>\n");
    const std::string bytes = bytes_of(text_at(at + start.size()));
    std::string data(1 << 20, ' ');
    uLongf size = data.size();
    ASSERT_EQ(uncompress(reinterpret_cast<Bytef*>(data.data()), &size,
                         reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()),
              Z_OK);
    const Json first = Json::parse(data.substr(0, size));
    ASSERT_EQ(first["runs"].size(), earlier);
    for (int k = 0; k < earlier; ++k) {
      EXPECT_EQ(first["runs"][k]["id"], k == 0 ? 1 : 40 + k);
      const auto column = first["runs"][k]["worst_ratio"].get<std::size_t>();
      EXPECT_EQ(first["columns"][column][0], k == 0 ? 0.25 : 0.5);
    }
  }
}

TEST_F(AlarmsOfStores, ANoisyCaseIsToldWithinFiveRuns) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  const auto ratio = [&](int n, int) {
    return 0.1 * std::exp(0.1 * normal(random)) * (n < 60 ? 1 : 2);
  };
  days(60, ratio);
  EXPECT_TRUE(alarms().worse.empty()) << "nothing has changed yet";
  for (int n = 60; n < 65; ++n) {
    StoredRun run = day(n);
    run.results = {passing("case 0", ratio(n, 0))};
    append(run);
  }
  const Alarms found = alarms();
  ASSERT_EQ(found.worse.size(), 1u);
  EXPECT_EQ(found.worse[0].first_after.id, 61);
  EXPECT_LE(found.worse[0].found.id, 65);
  EXPECT_FALSE(found.worse[0].certain);
}

TEST_F(AlarmsOfStores, ManyCasesThatWorsenALittleAreAnAlarmOfTheSuite) {
  days(20, [](int n, int k) { return 0.1 * (1 + k) * (n < 15 ? 1 : 1.1); }, 40);
  const Alarms found = alarms();
  ASSERT_EQ(found.worse.size(), 1u);
  EXPECT_EQ(found.worse[0].name, "");
  EXPECT_NEAR(found.worse[0].ratio(), 1.1, 1e-9);
  EXPECT_EQ(found.worse[0].link, "#run=16");
}

TEST_F(AlarmsOfStores, ManySmallStepsAreToldTogether) {
  days(60, [](int n, int) { return 0.1 * std::pow(1.2, n / 12); });
  const Alarms found = alarms();
  ASSERT_GE(found.worse.size(), 1u);
  EXPECT_NEAR(found.worse[0].before, 0.1, 1e-12);
  EXPECT_GE(found.worse[0].ratio(), 1.5);
}

TEST_F(AlarmsOfStores, WhatBecomesBetterIsNoAlarm) {
  days(20, [](int n, int) { return n < 15 ? 0.2 : 0.1; });
  const Alarms found = alarms();
  EXPECT_TRUE(found.worse.empty());
  ASSERT_EQ(found.better.size(), 1u);
  EXPECT_EQ(to_json(found)["better"].size(), 1u);
}

TEST_F(AlarmsOfStores, MachinesCandidatesAndSuitesAreSeriesOfTheirOwn) {
  for (int n = 0; n < 60; ++n) {
    StoredRun run = day(n);
    run.machine["cpu"] = n % 3 ? "a processor" : "another";
    run.candidate = n % 2 ? "host" : "unfused";
    run.results = {passing("case", n % 3 ? 0.1 : 0.4, n % 2 ? 1 : 3)};
    append(run);
  }
  EXPECT_TRUE(alarms().worse.empty());
  EXPECT_TRUE(alarms().better.empty());
}

TEST_F(AlarmsOfStores, ACompilerBeginsNoSeriesOfItsOwn) {
  for (int n = 0; n < 20; ++n) {
    StoredRun run = day(n);
    run.machine["compiler"] = n < 15 ? "gcc 12" : "gcc 13";
    run.results = {passing("case", n < 15 ? 0.1 : 0.3)};
    append(run);
  }
  EXPECT_EQ(alarms().worse.size(), 1u);
}

TEST_F(AlarmsOfStores, ZerosInfinitiesAndCasesWithoutAnAnswerArePlaced) {
  const double inf = std::numeric_limits<double>::infinity(),
               nan = std::numeric_limits<double>::quiet_NaN();
  for (int n = 0; n < 40; ++n) {
    StoredRun run = day(n);
    run.results = {passing("exact", n < 20 ? 0 : 0.01), passing("fails", n < 20 ? 0.1 : inf),
                   passing("is no number", n < 20 ? 0.1 : nan), passing("unsupported", 0.1),
                   passing("always exact", 0)};
    if (n % 2) run.results[3].worst_ratio.reset();
    run.results[4].seconds.reset();
    append(run);
  }
  const Alarms found = alarms(of(Measure::accuracy));
  ASSERT_EQ(found.worse.size(), 4u) << text_of(found, "");  // three cases and the suite
  for (const Alarm& a : found.worse) EXPECT_EQ(a.first_after.id, 21);
  EXPECT_EQ(found.series, 6u);
}

TEST_F(AlarmsOfStores, EvidenceAndTimeAreAskedByName) {
  for (int n = 0; n < 20; ++n) {
    StoredRun run = day(n);
    run.results = {passing("case", 0.1, n < 15 ? 1 : 2)};
    if (n > 2) run.results[0].evidence = n < 15 ? 0.3 : 0.9;
    append(run);
  }
  EXPECT_EQ(alarms().worse.size(), 2u);
  EXPECT_TRUE(alarms(of(Measure::accuracy)).worse.empty());
  ASSERT_EQ(alarms(of(Measure::time)).worse.size(), 1u);
  EXPECT_EQ(alarms(of(Measure::time)).worse[0].measure, Measure::time);
  EXPECT_EQ(alarms(of(Measure::evidence)).worse[0].measure, Measure::evidence);
  AlarmRule wide;
  wide.accuracy_margin = 500;
  wide.time_margin = 500;
  EXPECT_TRUE(alarms(wide).worse.empty());
}

TEST_F(AlarmsOfStores, SinceLeavesOutWhatChangedBefore) {
  days(40, [](int n, int) { return n < 15 ? 0.1 : n < 30 ? 0.2 : 0.4; });
  EXPECT_EQ(alarms().worse.size(), 2u);
  EXPECT_EQ(alarms(since(16)).worse.size(), 2u);
  EXPECT_EQ(alarms(since(17)).worse.size(), 1u);
  EXPECT_EQ(alarms(since(0, "2026-01-16")).worse.size(), 2u);
  EXPECT_EQ(alarms(since(0, "2026-01-17")).worse.size(), 1u);
  EXPECT_TRUE(alarms(since(32)).worse.empty());
}

// The mean moves with the cases that both runs have.
TEST_F(AlarmsOfStores, ACaseThatIsAddedMovesNoSuite) {
  for (int n = 0; n < 30; ++n) {
    StoredRun run = day(n);
    for (int k = 0; k < (n < 15 ? 4 : 6); ++k)
      run.results.push_back(passing("case " + std::to_string(k), k < 4 ? 0.1 : 0.9));
    append(run);
  }
  EXPECT_TRUE(alarms().worse.empty()) << text_of(alarms(), "");
}

// Suites of another seed have other cases, and their means are compared.
TEST_F(AlarmsOfStores, SuitesOfAnotherSeedEachDayAreComparedByTheirMeans) {
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal;
  for (int n = 0; n < 70; ++n) {
    StoredRun run = day(n);
    for (int k = 0; k < 50; ++k)
      run.results.push_back(passing("case " + std::to_string(n) + " " + std::to_string(k),
                                    0.1 * std::exp(0.3 * normal(random)) * (n < 60 ? 1 : 2)));
    append(run);
  }
  const Alarms found = alarms(of(Measure::accuracy));
  ASSERT_EQ(found.worse.size(), 1u);
  EXPECT_EQ(found.worse[0].name, "");
  EXPECT_EQ(found.worse[0].first_after.id, 61);
}

// Each repetition of a benchmark is a result; their median counts.
TEST_F(AlarmsOfStores, RepetitionsAreOneValueOfARun) {
  for (int n = 0; n < 20; ++n) {
    StoredRun run = day(n);
    run.kind = "benchmark";
    for (const double seconds : {1.0, 9.0, n < 15 ? 1.0 : 3.0})
      run.results.push_back(passing("forward", 0, seconds));
    for (StoredResult& r : run.results) r.worst_ratio.reset();
    append(run);
  }
  const Alarms found = alarms();
  ASSERT_EQ(found.worse.size(), 1u);
  EXPECT_DOUBLE_EQ(found.worse[0].before, 1);
  EXPECT_DOUBLE_EQ(found.worse[0].after, 3);
}

TEST_F(AlarmsOfStores, AlarmsOfOnePairOfRunsStandTogetherAndManyAreCounted) {
  days(20, [](int n, int k) { return 0.1 * (1 + k) * (n < 15 ? 1 : 2); }, 30);
  const std::string text = text_of(alarms(), "");
  EXPECT_THAT(text, HasSubstr("31 alarms"));
  EXPECT_THAT(text, HasSubstr("and 21 more, which --json lists"));
  EXPECT_EQ(text.find("run 15 ("), text.rfind("run 15 ("));
}

TEST_F(AlarmsOfStores, TextsOfOthersStayTexts) {
  days(20, [](int n, int) { return n < 15 ? 0.1 : 0.2; });
  for (int n = 20; n < 40; ++n) {
    StoredRun run = day(n);
    run.candidate = "\x1b[2J</script>";
    run.commit = "\x1b[31m";
    run.results = {passing("a\nb\x1b", n < 35 ? 0.1 : 0.2)};
    append(run);
  }
  const Alarms found = alarms();
  EXPECT_EQ(found.worse.size(), 2u);
  EXPECT_THAT(text_of(found, ""), Not(HasSubstr("\x1b")));
}

TEST_F(AlarmsOfStores, AStoreWithoutRunsHasNone) {
  const Alarms found = alarms();
  EXPECT_EQ(found.series, 0u);
  EXPECT_TRUE(found.worse.empty());
}

}  // namespace
}  // namespace assay
