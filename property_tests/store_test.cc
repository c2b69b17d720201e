// The store of runs: what goes in comes out, even if a process is killed meanwhile. A file that is
// no store is left as it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>
#include <thread>

#include "harness/results/schema.h"
#include "reports/compare.h"
#include "reports/store.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

CaseResult result(const std::string& line, double ratio, double seconds,
                  Outcome outcome = Outcome::pass) {
  CaseResult r;
  r.line = line;
  r.candidate = "host";
  r.reproduce = "assay check --case '" + line + "'";
  r.outcome = outcome;
  r.reason = "so it is";
  r.dtype = "f32";
  r.seconds = {0.1, seconds, 0.3};
  Verdict& v = r.verdict;
  v.mean_ratio = 0.25;
  v.slope_t = -1.5;
  v.outputs[Output::o].elements = 30;
  v.outputs[Output::lse].elements = 5;
  v.outputs[Output::lse].worst.bound = v.outputs[Output::o].worst.bound = 1;
  v.outputs[Output::o].worst.ratio = ratio;
  v.outputs[Output::lse].worst.ratio = ratio / 2;
  v.evidence.rows[Output::o].s = 1.5;
  v.evidence.rows[Output::o].limit = 3;
  v.evidence.rows[Output::lse].s = 1;
  v.evidence.rows[Output::lse].limit = 4;
  return r;
}

Machine some_machine() {
  Machine m;
  m.cpu = "a processor";
  m.commit = "abc";
  return m;
}

Run run_of(std::vector<CaseResult> results) {
  Run run{"smoke", "host", 7, some_machine(), {}, std::move(results)};
  run.summary.sentence = "so many cases";
  return run;
}

class Stores : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-store-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const char* name = "runs.db") const { return folder_ / name; }
  std::string refusal(const std::string& path) const {
    try {
      Store s(path);
    } catch (const StoreError& e) {
      return e.what();
    }
    return "opened";
  }
  void sql(const char* name, const std::string& statements) const {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(file(name).c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, statements.c_str(), nullptr, nullptr, nullptr), SQLITE_OK);
    sqlite3_close(db);
  }
  std::string text_of(const char* name) const {
    std::ifstream in(file(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // A store that a program of schema 1 wrote, with a check that passed and one that failed.
  void old_store(const char* name = "runs.db") const {
    std::ifstream dump(ASSAY_STORE_SCHEMA_1);
    ASSERT_TRUE(dump) << ASSAY_STORE_SCHEMA_1;
    sql(name, {std::istreambuf_iterator<char>(dump), {}});
  }
  std::int64_t schema(const char* name = "runs.db") const {
    sqlite3* db = nullptr;
    sqlite3_stmt* s = nullptr;
    EXPECT_EQ(sqlite3_open_v2(file(name).c_str(), &db, SQLITE_OPEN_READONLY, nullptr), SQLITE_OK);
    EXPECT_EQ(sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &s, nullptr), SQLITE_OK);
    EXPECT_EQ(sqlite3_step(s), SQLITE_ROW);
    const std::int64_t version = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    sqlite3_close(db);
    return version;
  }
  fs::path folder_;
};

TEST_F(Stores, WhatGoesInComesOut) {
  const double inf = std::numeric_limits<double>::infinity();
  const CaseResult infinite = result("c", inf, 1, Outcome::fail);
  {
    Store s(file());
    EXPECT_EQ(s.append(run_of({result("a", 0.5, 2), result("b", 0.25, 3)})), 1);
    EXPECT_EQ(s.append(run_of({infinite})), 2);
    EXPECT_THROW(s.append(run_of({})), StoreError);
  }
  const Store s(file());
  ASSERT_EQ(s.runs().size(), 2u);
  EXPECT_EQ(s.runs()[0].results, 2);
  EXPECT_EQ(s.runs()[0].commit, "abc");
  const StoredRun run = s.run(1);
  EXPECT_EQ(run.title, "smoke");
  EXPECT_EQ(run.machine["cpu"], "a processor");
  ASSERT_EQ(run.results.size(), 2u);
  EXPECT_EQ(run.results[1].name, "b");
  const StoredResult& first = run.results[0];
  EXPECT_EQ(first.worst_ratio, 0.5);
  EXPECT_EQ(first.worst_output, "O");
  EXPECT_EQ(first.bias, 0.25);
  EXPECT_EQ(first.compared, 35);
  EXPECT_EQ(first.seconds, 2);
  EXPECT_EQ(first.evidence, 0.5);
  EXPECT_EQ(s.reproduce(1, "b"), "assay check --case 'b'");
  EXPECT_EQ(s.reproduce(1, "c"), "");
  std::vector<double> ratios;
  s.each_result([&](const StoredValues& v) { ratios.push_back(v.worst_ratio.value()); });
  EXPECT_EQ(ratios, (std::vector{0.5, 0.25, inf}));
  EXPECT_EQ(s.run(2).results[0].worst_ratio, inf);
  EXPECT_THROW(s.run(3), StoreError);
}

TEST_F(Stores, ARunThatGoesOnIsExtended) {
  Store s(file());
  const std::int64_t other = s.append(run_of({result("z", 0.5, 2)})),
                     id = s.append(run_of({result("a", 0.5, 2), result("b", 0.25, 2)}));
  assay::Run part = run_of({result("c", 0.75, 2)});
  part.summary.sentence = "one more";
  s.extend(id, part);
  part.results.clear();
  part.summary.sentence = "and its end";
  s.extend(id, part);
  const StoredRun whole = s.run(id);
  EXPECT_EQ(whole.sentence, "and its end");
  ASSERT_EQ(whole.results.size(), 3u);
  EXPECT_EQ(whole.results[0].name, "a");
  EXPECT_EQ(whole.results[2].name, "c");
  EXPECT_EQ(whole.results[2].worst_ratio, 0.75);
  EXPECT_EQ(s.run(other).results.size(), 1u);
  try {
    s.extend(77, run_of({result("d", 0.5, 2)}));
    FAIL() << "a run that is not there was extended";
  } catch (const StoreError& e) {
    EXPECT_THAT(e.what(), HasSubstr("has no run 77"));
  }
  EXPECT_EQ(s.runs().size(), 2u);
}

TEST_F(Stores, LinesTravelAndAreAllOrNone) {
  Store a(file());
  a.append(run_of({result("a", 0.5, 2), result("b", 0.25, 3)}));
  a.append(run_of({result("c", 0.125, 1)}));
  std::stringstream lines;
  a.export_lines(lines);
  Store b(file("b"));
  EXPECT_EQ(b.import_lines(lines), 2u);
  EXPECT_EQ(to_json(a.run(1)), to_json(b.run(1)));
  EXPECT_EQ(to_json(a.run(2)), to_json(b.run(2)));
  lines.clear();
  lines.seekg(0);
  const auto refused = [&](const std::string& text) -> std::string {
    std::stringstream in(text);
    try {
      return std::to_string(b.import_lines(in)) + " imported";
    } catch (const StoreError& e) {
      return e.what();
    }
  };
  EXPECT_THAT(refused(lines.str() + "{\"kind\":\"check\"}\n"),
              HasSubstr("line 3 of what is imported: a run without results; nothing was imported"));
  EXPECT_THAT(
      refused(lines.str() + "{\"results\":[{}]}\n"),
      HasSubstr("line 3 of what is imported: run: no field \"kind\", so it is no run of a store"));
  EXPECT_THAT(
      refused(lines.str() + "no JSON\n"),
      HasSubstr("line 3 of what is imported: no JSON from byte 2 on; nothing was imported"));
  EXPECT_THAT(
      refused(lines.str() + "[]\n"),
      HasSubstr("line 3 of what is imported: run: no JSON object, so it is no run of a store"));
  EXPECT_THAT(refused("\n"), HasSubstr("there is no run; nothing was imported"));
  EXPECT_EQ(b.runs().size(), 2u);
}

// Runs the work in a process of a user without rights, because nothing is read-only for root.
template <class Work>
int status_without_rights(const Work& work) {
  const pid_t child = fork();
  if (child == 0) {
    constexpr uid_t nobody = 65534;
    if (geteuid() == 0 && (setgid(nobody) != 0 || setuid(nobody) != 0)) _exit(99);
    _exit(work());
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

TEST_F(Stores, CanBeReadWhereNothingCanBeWritten) {
  Store(file()).append(run_of({result("a", 0.5, 2)}));
  old_store("old.db");
  const std::string before = text_of("runs.db"), old = text_of("old.db");
  fs::permissions(file(), fs::perms(0444));
  fs::permissions(file("old.db"), fs::perms(0444));
  fs::permissions(folder_, fs::perms(0555));
  EXPECT_EQ(status_without_rights([&] {
              const Store s(file(), Store::Use::read);
              return s.runs().size() == 1 && s.run(1).results.at(0).worst_ratio == 0.5 ? 0 : 1;
            }),
            0);
  // A store of an older schema is brought up to date in memory alone.
  EXPECT_EQ(status_without_rights([&] {
              const Store s(file("old.db"), Store::Use::read);
              return s.runs().empty() ? 1 : s.run(s.runs()[0].id).results.empty();
            }),
            0);
  // Who wants to write is told why that cannot be.
  EXPECT_EQ(status_without_rights(
                [&] { return refusal(file()) == file() + ": Permission denied" ? 0 : 1; }),
            0);
  EXPECT_EQ(text_of("runs.db"), before);
  EXPECT_EQ(text_of("old.db"), old);
  fs::permissions(folder_, fs::perms(0755));
  // What is in a write-ahead log is not silently left out.
  std::ofstream(file("runs.db-wal")) << "not empty";
  fs::permissions(folder_, fs::perms(0555));
  EXPECT_EQ(status_without_rights([&] {
              try {
                const Store s(file(), Store::Use::read);
              } catch (const StoreError& e) {
                return std::string(e.what()).find("write-ahead log") != std::string::npos ? 0 : 1;
              }
              return 2;
            }),
            0);
  fs::permissions(folder_, fs::perms(0755));
}

// A limit for files stands for a full disk.
TEST_F(Stores, AFullDiskIsAFailureOfTheMachineThatNamesTheFileOnce) {
  Store(file()).append(run_of({result("a", 0.5, 2)}));
  const auto told = [&](const auto& work) {
    return status_without_rights([&] {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit no_growth{4096, 4096};
      setrlimit(RLIMIT_FSIZE, &no_growth);
      try {
        work();
      } catch (const StoreFailure& e) {
        const std::string text = e.what();
        const bool once = text.starts_with(file()) && text.find(file(), 1) == std::string::npos;
        return once ? 0 : 1;
      } catch (const std::exception&) {
        return 2;
      }
      return 3;
    });
  };
  fs::permissions(folder_, fs::perms(0777));
  fs::permissions(file(), fs::perms(0666));
  std::vector<CaseResult> many;
  for (int k = 0; k < 2000; ++k) many.push_back(result("case " + std::to_string(k), 0.5, 1));
  EXPECT_EQ(told([&] { Store(file()).append(run_of(many)); }), 0);
  std::stringstream lines;
  Store(file()).export_lines(lines);
  EXPECT_EQ(told([&] {
              std::stringstream again;
              for (int k = 0; k < 500; ++k) again << lines.str();
              Store(file()).import_lines(again);
            }),
            0);
  EXPECT_EQ(Store(file()).runs().size(), 1u);
}

TEST_F(Stores, BenchmarksOfGoogle) {
  Store s(file());
  const Json report = {
      {"context", {{"date", "2026-11-25T00:00:00+00:00"}, {"executable", "bench"}}},
      {"benchmarks",
       {{{"name", "x"},
         {"run_type", "iteration"},
         {"real_time", 2.5},
         {"cpu_time", 2.4},
         {"time_unit", "us"},
         {"GFLOP/s", 70.0}},
        {{"name", "x_mean"}, {"run_type", "aggregate"}, {"real_time", 2.5}, {"time_unit", "us"}}}}};
  const StoredRun run = s.run(s.append_benchmarks(report, "bench.json"));
  ASSERT_EQ(run.results.size(), 1u);
  EXPECT_DOUBLE_EQ(run.results[0].seconds.value(), 2.5e-6);
  EXPECT_EQ(run.results[0].counters["GFLOP/s"], 70.0);
  EXPECT_THROW(
      s.append_benchmarks({{"context", Json::object()}, {"benchmarks", Json::array()}}, "empty"),
      StoreError);
  EXPECT_THROW(s.append_benchmarks(Json::array(), "none"), StoreError);
}

TEST_F(Stores, WhatIsNoStoreIsRefusedAndLeftAlone) {
  std::ofstream(file("text"))
      << "no database, but long enough to be taken for something that has a header of its own";
  EXPECT_THAT(refusal(file("text")), HasSubstr("file is not a database"));
  sql("other", "CREATE TABLE t(x)");
  EXPECT_THAT(refusal(file("other")), HasSubstr("is a database of something else"));
  {
    Store s(file());
    s.append(run_of({result("a", 0.5, 2)}));
  }
  sql("runs.db", "PRAGMA user_version = 99");
  EXPECT_THAT(refusal(file()), HasSubstr("has schema 99, this program knows up to 3"));
  sql("runs.db", "PRAGMA user_version = 3");
  EXPECT_EQ(Store(file()).runs().size(), 1u);
  // Overwrites a page that holds rows.
  {
    Store s(file("damaged"));
    for (int k = 0; k < 50; ++k) s.append(run_of({result(std::string(500, 'a'), 0.5, 2)}));
  }
  const auto size = fs::file_size(file("damaged"));
  std::fstream damage(file("damaged"), std::ios::in | std::ios::out | std::ios::binary);
  damage.seekp(static_cast<std::streamoff>(size / 4096 / 2 * 4096));
  damage << std::string(4096, '\x5A');
  damage.close();
  EXPECT_THAT(refusal(file("damaged")), HasSubstr("is damaged"));
  EXPECT_THAT(refusal("/no/such/folder/runs.db"), HasSubstr("unable to open"));
}

TEST_F(Stores, AnOlderSchemaIsBroughtUpToDateAndKeepsItsRuns) {
  old_store();
  ASSERT_EQ(schema(), 1);
  {
    Store s(file());
    ASSERT_EQ(s.runs().size(), 2u);
    const StoredResult passed = s.run(1).results.at(0), failed = s.run(2).results.at(0);
    EXPECT_EQ(passed.name, "attention b=1 h=2/1 l=5x7 d=8 dtype=bf16 causal");
    EXPECT_EQ(passed.worst_ratio, 0.99463570564201087);
    EXPECT_EQ(passed.bias, 0.053064306656730578);
    EXPECT_EQ(failed.outcome, "fail");
    EXPECT_THAT(failed.reason.value(), HasSubstr("-2.01450345"));
    EXPECT_FALSE(passed.compared) << "nobody had counted";
    EXPECT_EQ(s.append(run_of({result("a", 0.5, 2)})), 3);
  }
  EXPECT_EQ(schema(), 3);
  EXPECT_EQ(Store(file()).run(3).results.at(0).compared, 35);
}

TEST_F(Stores, AMigrationThatFailsLeavesTheOldStore) {
  old_store();
  // A store of schema 1 does not have this column.
  sql("runs.db", "ALTER TABLE result ADD COLUMN compared INTEGER");
  EXPECT_THAT(refusal(file()), HasSubstr("duplicate column name: compared"));
  EXPECT_EQ(schema(), 1);
}

TEST_F(Stores, SeveralOpenAnOlderSchemaAtATime) {
  old_store();
  std::vector<std::thread> threads;
  for (int k = 0; k < 8; ++k)
    threads.emplace_back(
        [&, k] { Store(file()).append(run_of({result("case " + std::to_string(k), 0.5, 2)})); });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(schema(), 3);
  EXPECT_EQ(Store(file()).runs().size(), 10u);
}

TEST_F(Stores, SeveralAppendAtATime) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int k = 0; k < 10; ++k)
        Store(file()).append(run_of({result("a", 0.5, 2), result("b", 0.5, 2)}));
    });
  for (std::thread& t : threads) t.join();
  const Store s(file());
  ASSERT_EQ(s.runs().size(), 40u);
  for (const RunEntry& r : s.runs()) EXPECT_EQ(r.results, 2);
}

// If a process is killed at any point, the store opens, every run is whole, and no run is lost for
// which append() had returned.
TEST_F(Stores, SurviveAKill) {
  std::mt19937 random(20261125);
  std::int64_t answered = 0;
  constexpr int results = 200;
  int kills = 0;
  // A kill comes at a random time after one to three runs were answered, however slow the machine
  // is.
  for (; kills < 25; ++kills) {
    int channel[2];
    ASSERT_EQ(pipe(channel), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(channel[0]);
      const std::vector<CaseResult> many(results, result("attention b=1 h=1 l=4 d=4", 0.5, 2));
      Store s(file());
      for (;;) {
        const std::int64_t id = s.append(run_of(many));
        if (write(channel[1], &id, sizeof id) != sizeof id) _exit(1);
      }
    }
    close(channel[1]);
    const auto read_id = [&] {
      std::int64_t id;
      if (read(channel[0], &id, sizeof id) != sizeof id) return false;
      answered = std::max(answered, id);
      return true;
    };
    for (auto left = 1 + random() % 3; left > 0; --left) ASSERT_TRUE(read_id());
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 60000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read_id()) {
    }
    close(channel[0]);
    const Store s(file());
    const std::vector<RunEntry> runs = s.runs();
    ASSERT_GE(static_cast<std::int64_t>(runs.size()), answered) << kills;
    for (const RunEntry& r : runs) ASSERT_EQ(r.results, results) << kills;
  }
  printf("%ld runs were answered over %d kills\n", static_cast<long>(answered), kills);
  EXPECT_GT(answered, 25);
}

StoredResult stored(const std::string& name, const char* outcome) {
  StoredResult r;
  r.name = name;
  r.outcome = outcome;
  return r;
}

TEST(Compare, TellsEffectsFromNoise) {
  StoredRun a, b, another;
  std::mt19937 random(1);
  std::normal_distribution<double> noise(0, 0.2);
  for (int k = 0; k < 200; ++k) {
    const std::string line = "case " + std::to_string(k);
    const double ratio = 0.1 + 0.001 * k, seconds = 1e-3 * (1 + k);
    StoredResult before = stored(line, "pass"), after = stored(line, k == 3 ? "fail" : "pass");
    before.worst_ratio = ratio;
    after.worst_ratio = 2 * ratio;
    before.seconds = seconds * std::exp(noise(random));
    after.seconds = seconds * std::exp(noise(random));
    a.results.push_back(before);
    b.results.push_back(after);
  }
  a.results.push_back(stored("only here", "pass"));
  another.results.push_back(stored("another", "pass"));
  const Comparison c = compare_runs(a, b);
  EXPECT_EQ(c.shared, 200u);
  EXPECT_EQ(c.only_a, 1u);
  EXPECT_NEAR(c.accuracy.mean, 2, 1e-9);
  EXPECT_NEAR(c.accuracy.low, 2, 1e-9);
  // The speed is the same, so 1 lies within the interval, whose width is about that of the noise.
  EXPECT_LT(c.seconds.low, 1);
  EXPECT_GT(c.seconds.high, 1);
  EXPECT_NEAR(std::log(c.seconds.high / c.seconds.low), 2 * 1.96 * 0.2 * std::sqrt(2.0 / 200),
              0.02);
  EXPECT_EQ(c.changed, std::vector<std::string>{"pass -> fail: case 3"});
  EXPECT_THROW(compare_runs(a, another), std::invalid_argument);
}

TEST_F(Stores, FaultsAndFuzzJobsAreRunsToo) {
  Store s(file());
  FaultsScore score;
  score.seed = 3;
  score.killed = 1;
  score.faults = {{"a", "F01", "smoke", true, 4, 0.5, "attention", "outside"},
                  {"b", "F02", "smoke", false, 9, 1, "", ""}};
  score.equivalent = {{"c", "F11", "because"}};
  const StoredRun faults = s.run(s.append(score, some_machine()));
  EXPECT_EQ(faults.kind, "faults");
  EXPECT_EQ(faults.sentence, "1 of 2 faults killed");
  ASSERT_EQ(faults.results.size(), 3u);
  EXPECT_EQ(faults.results[0].outcome, "killed");
  EXPECT_EQ(faults.results[1].outcome, "survived");
  EXPECT_EQ(faults.results[2].outcome, "equivalent");
  FuzzSummary summary{60, 3, {{"forward", 60, 1000, 16.5, 77, 5, 1}}, {}};
  const StoredRun fuzz = s.run(s.append(summary, some_machine()));
  EXPECT_EQ(fuzz.kind, "fuzz");
  EXPECT_EQ(fuzz.results.at(0).outcome, "finding");
  summary.targets.clear();
  EXPECT_THROW(s.append(summary, some_machine()), StoreError);
}

// If a file of imports lacks something, this is told and nothing is stored.
TEST_F(Stores, ImportsThatLackSomething) {
  Store s(file());
  std::istringstream lines("{\"results\": [{}]}\n");
  EXPECT_THROW(s.import_lines(lines), StoreError);
  EXPECT_THROW(
      s.append_benchmarks(
          Json::parse(
              R"({"context": {}, "benchmarks": [{"run_type": "iteration", "real_time": 1}]})"),
          "x"),
      StoreError);
  EXPECT_TRUE(s.runs().empty());
}

}  // namespace
}  // namespace assay
