#include "reports/store.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sqlite3.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <istream>
#include <ostream>
#include <thread>

namespace assay {
namespace {

constexpr int application = 0x41535359;  // "ASSY", in the header of the file

// Each brings a store from the version of its index to the next.
constexpr const char* migrations[] = {
    R"(
CREATE TABLE run(
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,       -- check, faults, fuzz or benchmark
  started TEXT NOT NULL,    -- UTC
  title TEXT NOT NULL,
  candidate TEXT NOT NULL,
  seed INTEGER NOT NULL,
  commit_id TEXT NOT NULL,
  machine TEXT NOT NULL,    -- JSON: processor, threads, compiler, flags
  sentence TEXT NOT NULL);
CREATE TABLE result(
  run INTEGER NOT NULL REFERENCES run(id),
  number INTEGER NOT NULL,
  name TEXT NOT NULL,       -- the case line, or the benchmark
  dtype TEXT,
  outcome TEXT,
  reason TEXT,
  reproduce TEXT,
  worst_output TEXT,
  worst_ratio REAL,         -- largest error/bound of any output, on a pass too
  bias REAL, slope REAL,
  seconds REAL,             -- of the candidate, or of an iteration
  judge_seconds REAL,
  counters TEXT,            -- JSON, of a benchmark
  PRIMARY KEY(run, number));
CREATE INDEX result_name ON result(name);
)",
    // A pass says as much as was compared; of earlier runs it is not known.
    "ALTER TABLE result ADD COLUMN compared INTEGER",
};
constexpr int newest = static_cast<int>(std::size(migrations));

// Somebody else is at it: worth another try.
struct Busy : StoreError {
  using StoreError::StoreError;
};
[[noreturn]] void raise(sqlite3* db, const std::string& what) {
  if ((sqlite3_errcode(db) & 0xFF) == SQLITE_BUSY) throw Busy(what);
  throw StoreError(what);
}

class Statement {
 public:
  Statement(sqlite3* db, const char* sql) : db_(db) {
    if (sqlite3_prepare_v2(db, sql, -1, &s_, nullptr) != SQLITE_OK) raise(db, sqlite3_errmsg(db));
  }
  ~Statement() { sqlite3_finalize(s_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& bind(const std::string& text) {
    sqlite3_bind_text(s_, ++at_, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& bind(std::int64_t n) {
    sqlite3_bind_int64(s_, ++at_, n);
    return *this;
  }
  Statement& bind(const Json& j) {
    if (j.is_string()) return bind(j.get<std::string>());
    if (j.is_number_integer()) return bind(j.get<std::int64_t>());
    if (j.is_number()) sqlite3_bind_double(s_, ++at_, j.get<double>());
    else sqlite3_bind_null(s_, ++at_);
    return *this;
  }
  bool step() {
    const int code = sqlite3_step(s_);
    if (code != SQLITE_ROW && code != SQLITE_DONE) raise(db_, sqlite3_errmsg(db_));
    return code == SQLITE_ROW;
  }
  std::int64_t integer(int column) const { return sqlite3_column_int64(s_, column); }
  std::string text(int column) const {
    const auto* p = reinterpret_cast<const char*>(sqlite3_column_text(s_, column));
    return p ? std::string(p, static_cast<std::size_t>(sqlite3_column_bytes(s_, column))) : "";
  }
  Json json(int column) const {
    switch (sqlite3_column_type(s_, column)) {
      case SQLITE_NULL: return nullptr;
      case SQLITE_TEXT: return text(column);
      case SQLITE_INTEGER: return integer(column);
      default: return sqlite3_column_double(s_, column);
    }
  }

 private:
  sqlite3* db_;
  sqlite3_stmt* s_ = nullptr;
  int at_ = 0;
};

Json at(const Json& j, const char* key) { return j.is_object() && j.contains(key) ? j[key] : Json(); }

// What a store keeps of a result of `assay check --json`.
Json kept(const Json& r) {
  Json k = {{"name", r["case"]}, {"dtype", at(r, "dtype")}, {"outcome", r["outcome"]}, {"reason", at(r, "reason")}, {"reproduce", at(r, "reproduce")}};
  double worst = -1;
  if (r.contains("worst"))
    for (const auto& [output, w] : r["worst"].items()) {
      // JSON has no infinity but the text "inf", which SQLite puts above every number.
      const double ratio = w["ratio"].is_number() ? w["ratio"].get<double>() : INFINITY;
      if (!(ratio > worst)) continue;
      worst = ratio;
      k["worst_ratio"] = w["ratio"];
      k["worst_output"] = output;
    }
  if (r.contains("elements")) {
    std::int64_t compared = 0;
    for (const auto& [output, n] : r["elements"]["compared"].items()) compared += n.get<std::int64_t>();
    k["compared"] = compared;
  }
  if (r.contains("bias")) k["bias"] = r["bias"]["mean_ratio"], k["slope"] = r["bias"]["slope_t"];
  if (r.contains("seconds")) k["seconds"] = r["seconds"]["candidate"], k["judge_seconds"] = r["seconds"]["judge"];
  return k;
}

std::string now() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now()))); }

constexpr const char* fields[] = {"name", "dtype", "outcome", "reason", "reproduce", "worst_output", "worst_ratio", "bias", "slope", "seconds", "judge_seconds", "counters", "compared"};

}  // namespace

void Store::Close::operator()(sqlite3* db) const { sqlite3_close_v2(db); }

void Store::fail(const std::string& what) const { throw StoreError(fmt::format("{}: {}", path_, what)); }

void Store::execute(const char* sql) const {
  char* message = nullptr;
  if (sqlite3_exec(db_.get(), sql, nullptr, nullptr, &message) == SQLITE_OK) return;
  const std::string what = message ? message : sqlite3_errmsg(db_.get());
  sqlite3_free(message);
  raise(db_.get(), fmt::format("{}: {}", path_, what));
}

Store::Store(const std::string& path) : path_(path) {
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  db_.reset(db);
  if (code != SQLITE_OK) fail(db ? sqlite3_errmsg(db) : "cannot be opened");
  sqlite3_busy_timeout(db, 30000);
  // SQLite waits for a lock, but not for the one that changes the journal of a new file.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  for (;;) {
    try {
      prepare();
      return;
    } catch (const StoreError& e) {
      sqlite3_exec(db, "ROLLBACK", nullptr, nullptr, nullptr);
      if (!dynamic_cast<const Busy*>(&e) || std::chrono::steady_clock::now() > deadline) {
        if (std::string(e.what()).starts_with(path_)) throw;
        fail(e.what());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
}

// Looks whether it is a store, and brings it up to date.
void Store::prepare() {
  sqlite3* db = db_.get();
  const auto number = [&](const char* pragma) {
    Statement s(db, pragma);
    s.step();
    return s.integer(0);
  };
  const std::int64_t tables = number("SELECT count(*) FROM sqlite_master"), mine = number("PRAGMA application_id"), version = number("PRAGMA user_version");
  if (tables > 0 && mine != application) fail("is a database of something else");
  if (version > newest) fail(fmt::format("has schema {}, this program knows up to {}: use a newer one", version, newest));
  if (Statement check(db, "PRAGMA quick_check(1)"); check.step() && check.text(0) != "ok") fail("is damaged: " + check.text(0));
  execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON");
  if (version == newest) return;
  // Somebody else may be at it, too: the version counts that is read under the lock.
  execute("BEGIN IMMEDIATE");
  for (std::int64_t v = number("PRAGMA user_version"); v < newest; ++v) execute(migrations[v]);
  execute(fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}; COMMIT", application, newest).c_str());
}

Store::~Store() = default;

std::int64_t Store::insert(const Json& run) {
  Statement(db_.get(), "INSERT INTO run(kind, started, title, candidate, seed, commit_id, machine, sentence) VALUES(?, ?, ?, ?, ?, ?, ?, ?)")
      .bind(run.at("kind").get<std::string>())
      .bind(run.at("started").get<std::string>())
      .bind(run.at("title").get<std::string>())
      .bind(run.at("candidate").get<std::string>())
      .bind(run.at("seed").get<std::int64_t>())
      .bind(run.at("commit").get<std::string>())
      .bind(run.at("machine").dump())
      .bind(run.at("sentence").get<std::string>())
      .step();
  const std::int64_t id = sqlite3_last_insert_rowid(db_.get());
  std::int64_t index = 0;
  std::string values;
  for ([[maybe_unused]] const char* field : fields) values += ", ?";
  const std::string insert_result = fmt::format("INSERT INTO result(run, number, {}) VALUES(?, ?{})", fmt::join(fields, ", "), values);
  for (const Json& r : run.at("results")) {
    Statement s(db_.get(), insert_result.c_str());
    s.bind(id).bind(index++);
    for (const char* field : fields) {
      const Json value = at(r, field);
      s.bind(value.is_object() ? Json(value.dump()) : value);
    }
    s.step();
  }
  return id;
}

std::int64_t Store::append(const Json& run) {
  if (!run.contains("results") || run["results"].empty()) fail("a run without results is not stored");
  Json whole = {{"kind", "check"},
                {"started", now()},
                {"title", run["suite"]},
                {"candidate", run["candidate"]},
                {"seed", run["seed"]},
                {"commit", run["machine"].value("commit", "unknown")},
                {"machine", run["machine"]},
                {"sentence", run["summary"]["sentence"]},
                {"results", Json::array()}};
  for (const Json& r : run["results"]) whole["results"].push_back(kept(r));
  return insert_alone(whole);
}

std::int64_t Store::append_faults(const Json& score, const Json& machine) {
  Json whole = {{"kind", "faults"}, {"started", now()}, {"title", "planted faults"}, {"candidate", "faults"}, {"seed", score.at("seed")}, {"commit", machine.value("commit", "unknown")},
                {"machine", machine}, {"results", Json::array()}};
  for (const Json& f : score.at("faults"))
    whole["results"].push_back({{"name", f.at("fault")},
                                {"outcome", f.at("killed").get<bool>() ? "killed" : "survived"},
                                {"reason", f.at("reason")},
                                {"reproduce", f.at("case")},
                                {"seconds", f.at("seconds")},
                                {"counters", {{"class", f.at("class")}, {"suite", f.at("suite")}, {"cases", f.at("cases")}}}});
  for (const Json& f : score.at("equivalent"))
    whole["results"].push_back({{"name", f.at("fault")}, {"outcome", "equivalent"}, {"reason", f.at("proof")}, {"counters", {{"class", f.at("class")}}}});
  whole["sentence"] = fmt::format("{} of {} faults killed", score.at("killed").get<std::size_t>(), score.at("faults").size());
  return insert_alone(whole);
}

std::int64_t Store::append_fuzz(const Json& summary, const Json& machine) {
  Json whole = {{"kind", "fuzz"}, {"started", now()}, {"title", "fuzz jobs"}, {"candidate", "fuzz"}, {"seed", summary.at("seed")}, {"commit", machine.value("commit", "unknown")},
                {"machine", machine}, {"results", Json::array()}};
  for (const Json& t : summary.at("targets"))
    whole["results"].push_back({{"name", t.at("target")},
                                {"outcome", t.at("findings") == 0 ? "clean" : "finding"},
                                {"seconds", t.at("seconds")},
                                {"counters",
                                 {{"executions", t.at("executions")}, {"executions_per_second", t.at("executions_per_second")}, {"coverage", t.at("coverage")}, {"corpus", t.at("corpus")}, {"findings", t.at("findings")}}}});
  if (whole["results"].empty()) fail("fuzz jobs without targets are not stored");
  whole["sentence"] = fmt::format("{} targets, {:.0f} s, {} findings", whole["results"].size(), summary.at("seconds").get<double>(), summary.at("findings").size());
  return insert_alone(whole);
}

std::int64_t Store::append_bench(const Json& measured) {
  const Json& machine = measured.at("machine");
  Json whole = {{"kind", "benchmark"}, {"started", now()}, {"candidate", "bench"}, {"seed", 0}, {"commit", machine.value("commit", "unknown")}, {"machine", machine}, {"results", Json::array()}};
  std::vector<std::string> modes;
  std::size_t failed = 0;
  for (const Json& part : measured.at("modes")) {
    modes.push_back(part.at("mode"));
    for (const Json& m : part.at("measured")) {
      Json r = {{"name", m.at("name")}};
      if (m.contains("failed")) {
        ++failed;
        r["outcome"] = "error", r["reason"] = m["failed"];
      } else {
        Json counters = Json::object();
        for (const char* name : {"GFLOP/s", "GB/s", "fraction", "fraction_low", "fraction_high", "limit"})
          if (m.contains(name)) counters[name] = m[name];
        // mode/candidate/problem: the candidate tells the ratios of a line apart.
        for (const Json& ratio : m.at("ratios")) {
          const std::string over = ratio.at("over"), rest = over.substr(over.find('/') + 1);
          counters["over " + rest.substr(0, rest.find('/'))] = ratio.at("ratio");
        }
        r["seconds"] = m.at("seconds"), r["counters"] = counters;
      }
      whole["results"].push_back(std::move(r));
    }
  }
  if (whole["results"].empty()) fail("benchmarks without results are not stored");
  whole["title"] = fmt::format("{}", fmt::join(modes, " "));
  whole["sentence"] = fmt::format("{} measured, {} failed", whole["results"].size() - failed, failed);
  return insert_alone(whole);
}

std::int64_t Store::insert_alone(const Json& run) {
  execute("BEGIN IMMEDIATE");
  try {
    const std::int64_t id = insert(run);
    execute("COMMIT");
    return id;
  } catch (const std::exception& e) {
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    fail(e.what());
  }
}

std::int64_t Store::append_benchmarks(const Json& report, const std::string& title) {
  if (!report.is_object() || !report.contains("benchmarks") || !report.contains("context")) fail(fmt::format("{} is no report of Google Benchmark: it has no context or no benchmarks", title));
  Json whole;
  try {
    const Json& context = report.at("context");
    whole = {{"kind", "benchmark"}, {"started", context.value("date", now())},     {"title", title},      {"candidate", context.value("executable", "unknown")},
             {"seed", 0},           {"commit", context.value("commit", "unknown")}, {"machine", context}, {"sentence", ""},
             {"results", Json::array()}};
    for (const Json& b : report.at("benchmarks")) {
      if (b.value("run_type", "iteration") != "iteration" || !b.contains("real_time") || b.value("error_occurred", false)) continue;
      const std::string unit = b.value("time_unit", "ns");
      const double to_seconds = unit == "ns" ? 1e-9 : unit == "us" ? 1e-6 : unit == "ms" ? 1e-3 : 1;
      Json counters = Json::object();
      for (const auto& [name, value] : b.items())
        if (value.is_number() && name != "real_time" && name != "cpu_time") counters[name] = value;
      whole["results"].push_back({{"name", b.at("name")}, {"seconds", b.at("real_time").get<double>() * to_seconds}, {"counters", counters}});
    }
  } catch (const Json::exception& e) {
    fail(fmt::format("{} is no report of Google Benchmark: {}", title, e.what()));
  }
  if (whole["results"].empty()) fail(fmt::format("{} has no iteration of a benchmark", title));
  whole["sentence"] = fmt::format("{} measurements", whole["results"].size());
  return insert_alone(whole);
}

std::vector<StoredRun> Store::runs() const {
  std::vector<StoredRun> all;
  Statement s(db_.get(), "SELECT id, kind, started, title, candidate, commit_id, sentence, (SELECT count(*) FROM result WHERE run = id) FROM run ORDER BY id");
  while (s.step()) all.push_back({s.integer(0), s.text(1), s.text(2), s.text(3), s.text(4), s.text(5), s.text(6), s.integer(7)});
  return all;
}

Json Store::run(std::int64_t id) const {
  Statement s(db_.get(), "SELECT kind, started, title, candidate, seed, commit_id, machine, sentence FROM run WHERE id = ?");
  s.bind(id);
  if (!s.step()) fail(fmt::format("has no run {}", id));
  Json run = {{"id", id},          {"kind", s.text(0)},   {"started", s.text(1)},           {"title", s.text(2)},   {"candidate", s.text(3)},
              {"seed", s.integer(4)}, {"commit", s.text(5)}, {"machine", Json::parse(s.text(6))}, {"sentence", s.text(7)}, {"results", Json::array()}};
  Statement r(db_.get(), fmt::format("SELECT {} FROM result WHERE run = ? ORDER BY number", fmt::join(fields, ", ")).c_str());
  r.bind(id);
  while (r.step()) {
    Json result;
    for (std::size_t k = 0; k < std::size(fields); ++k)
      if (Json value = r.json(static_cast<int>(k)); !value.is_null()) result[fields[k]] = std::string_view(fields[k]) == "counters" ? Json::parse(value.get<std::string>()) : std::move(value);
    run["results"].push_back(std::move(result));
  }
  return run;
}

void Store::export_lines(std::ostream& out) const {
  for (const StoredRun& r : runs()) out << run(r.id).dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
}

std::size_t Store::import_lines(std::istream& in) {
  std::size_t count = 0, number = 0;
  execute("BEGIN IMMEDIATE");
  try {
    for (std::string line; std::getline(in, line);) {
      ++number;
      if (line.empty()) continue;
      const Json run = Json::parse(line);
      if (!run.is_object()) throw StoreError("no JSON object");
      if (!run.contains("results") || !run["results"].is_array() || run["results"].empty()) throw StoreError("a run without results");
      for (const char* field : {"kind", "started", "title", "candidate", "seed", "commit", "machine", "sentence"})
        if (!run.contains(field)) throw StoreError(fmt::format("no field \"{}\", so it is no run of a store (what `assay check --json` wrote goes in by --store of that command)", field));
      insert(run);
      ++count;
    }
    if (count == 0) throw StoreError("there is no run");
    execute("COMMIT");
  } catch (const Json::parse_error& e) {
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    fail(fmt::format("line {} of what is imported: no JSON from byte {} on; nothing was imported", number, e.byte));
  } catch (const std::exception& e) {
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    fail(fmt::format("line {} of what is imported: {}; nothing was imported", number, e.what()));
  }
  return count;
}

}  // namespace assay
