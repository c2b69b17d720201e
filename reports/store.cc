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

#include "problem/clock.h"

namespace assay {
namespace {

constexpr int application = 0x41535359;  // "ASSY", in the header of the file

// Each migration brings a store from one version of the schema, which is its index here, to the
// next.
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
    // A pass tells as much as was compared. For earlier runs that number is not known.
    "ALTER TABLE result ADD COLUMN compared INTEGER",
};
constexpr int newest = static_cast<int>(std::size(migrations));

// Another process uses the store, so the call can be tried again.
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
    return p ? std::string(p, usize(sqlite3_column_bytes(s_, column))) : "";
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

Json at(const Json& j, const char* key) {
  return j.is_object() && j.contains(key) ? j[key] : Json();
}

// The part of a result of `assay check` that a store keeps.
StoredResult kept(const CaseResult& r) {
  StoredResult k;
  k.name = r.line;
  if (!r.dtype.empty()) k.dtype = r.dtype;
  k.outcome = name_of(r.outcome);
  k.reason = r.reason;
  k.reproduce = r.reproduce;
  if (const auto worst = worst_ratio(r)) {
    k.worst_output = name_of(worst->first);
    k.worst_ratio = worst->second;
  }
  if (r.was_compared()) {
    k.compared = r.elements_compared();
    k.bias = r.verdict.mean_ratio;
    k.slope = r.verdict.slope_t;
  }
  if (r.seconds != Seconds()) {
    k.seconds = r.seconds.candidate;
    k.judge_seconds = r.seconds.judge;
  }
  return k;
}

std::string now() {
  return fmt::format(
      "{:%Y-%m-%dT%H:%M:%SZ}",
      fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())));
}

// A run of this kind that begins now, without results.
StoredRun begun(const char* kind, const char* candidate, std::int64_t seed, const Json& machine) {
  StoredRun run;
  run.kind = kind;
  run.started = now();
  run.candidate = candidate;
  run.seed = seed;
  run.commit = machine.value("commit", "unknown");
  run.machine = machine;
  return run;
}

// The columns of a result are the fields of its description.
struct ColumnNames {
  std::vector<const char*> names;
  void operator()(const char* name, const auto&) { names.push_back(name); }
  void optional(const char* name, const auto&) { names.push_back(name); }
  void unless(const char* name, const auto&, const auto&) { names.push_back(name); }
};
const std::vector<const char*>& result_columns() {
  static const std::vector<const char*> columns = [] {
    ColumnNames all;
    const StoredResult any;
    describe_fields(all, any);
    return all.names;
  }();
  return columns;
}

}  // namespace

void Store::Close::operator()(sqlite3* db) const { sqlite3_close_v2(db); }

void Store::fail(const std::string& what) const {
  throw StoreError(fmt::format("{}: {}", path_, what));
}

void Store::execute(const char* sql) const {
  char* message = nullptr;
  if (sqlite3_exec(db_.get(), sql, nullptr, nullptr, &message) == SQLITE_OK) return;
  const std::string what = message ? message : sqlite3_errmsg(db_.get());
  sqlite3_free(message);
  raise(db_.get(), fmt::format("{}: {}", path_, what));
}

Store::Store(const std::string& path) : path_(path) {
  sqlite3* db = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  db_.reset(db);
  if (code != SQLITE_OK) fail(db ? sqlite3_errmsg(db) : "cannot be opened");
  sqlite3_busy_timeout(db, 30000);
  // SQLite waits for a lock, but not for the one that changes the journal of a new file.
  const auto deadline = seconds_from_now(30);
  for (;;) {
    try {
      prepare();
      return;
    } catch (const StoreError& e) {
      sqlite3_exec(db, "ROLLBACK", nullptr, nullptr, nullptr);
      if (!dynamic_cast<const Busy*>(&e) || Clock::now() > deadline) {
        if (std::string(e.what()).starts_with(path_)) throw;
        fail(e.what());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
}

// Checks that the file is a store, and brings it up to date.
void Store::prepare() {
  sqlite3* db = db_.get();
  const auto number = [&](const char* pragma) {
    Statement s(db, pragma);
    s.step();
    return s.integer(0);
  };
  const std::int64_t tables = number("SELECT count(*) FROM sqlite_master"),
                     mine = number("PRAGMA application_id"),
                     version = number("PRAGMA user_version");
  if (tables > 0 && mine != application) fail("is a database of something else");
  if (version > newest)
    fail(fmt::format("has schema {}, this program knows up to {}: use a newer one", version,
                     newest));
  if (Statement check(db, "PRAGMA quick_check(1)"); check.step() && check.text(0) != "ok")
    fail("is damaged: " + check.text(0));
  execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON");
  if (version == newest) return;
  // Another process may do the same. The version that is read under the lock counts.
  execute("BEGIN IMMEDIATE");
  for (std::int64_t v = number("PRAGMA user_version"); v < newest; ++v) execute(migrations[v]);
  execute(fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}; COMMIT", application,
                      newest)
              .c_str());
}

Store::~Store() = default;

std::int64_t Store::insert(const StoredRun& run) {
  Statement(db_.get(),
            "INSERT INTO run(kind, started, title, candidate, seed, commit_id, machine, "
            "sentence) VALUES(?, ?, ?, ?, ?, ?, ?, ?)")
      .bind(run.kind)
      .bind(run.started)
      .bind(run.title)
      .bind(run.candidate)
      .bind(run.seed)
      .bind(run.commit)
      .bind(run.machine.dump())
      .bind(run.sentence)
      .step();
  const std::int64_t id = sqlite3_last_insert_rowid(db_.get());
  const auto& columns = result_columns();
  std::string values;
  for (std::size_t k = 0; k < columns.size(); ++k) values += ", ?";
  const std::string insert_result = fmt::format(
      "INSERT INTO result(run, number, {}) VALUES(?, ?{})", fmt::join(columns, ", "), values);
  std::int64_t index = 0;
  for (const StoredResult& r : run.results) {
    const Json row = to_json(r);
    Statement s(db_.get(), insert_result.c_str());
    s.bind(id).bind(index++);
    for (const char* column : columns) {
      const Json value = at(row, column);
      s.bind(value.is_object() ? Json(value.dump()) : value);
    }
    s.step();
  }
  return id;
}

std::int64_t Store::append(const Run& run) {
  if (run.results.empty()) fail("a run without results is not stored");
  StoredRun whole = begun("check", run.candidate.c_str(), static_cast<std::int64_t>(run.seed),
                          to_json(run.machine));
  whole.title = run.suite;
  whole.sentence = run.summary.sentence;
  for (const CaseResult& r : run.results) whole.results.push_back(kept(r));
  return insert_alone(whole);
}

std::int64_t Store::append(const FaultsScore& score, const Machine& machine) {
  StoredRun whole =
      begun("faults", "faults", static_cast<std::int64_t>(score.seed), to_json(machine));
  whole.title = "planted faults";
  for (const FaultHunt& f : score.faults) {
    StoredResult& r = whole.results.emplace_back();
    r.name = f.fault;
    r.outcome = f.killed ? "killed" : "survived";
    r.reason = f.reason;
    r.reproduce = f.line;
    r.seconds = f.seconds;
    r.counters = {{"class", f.fault_class}, {"suite", f.suite}, {"cases", f.cases}};
  }
  for (const EquivalentFault& f : score.equivalent) {
    StoredResult& r = whole.results.emplace_back();
    r.name = f.fault;
    r.outcome = "equivalent";
    r.reason = f.proof;
    r.counters = {{"class", f.fault_class}};
  }
  whole.sentence = fmt::format("{} of {} faults killed", score.killed, score.faults.size());
  return insert_alone(whole);
}

std::int64_t Store::append(const FuzzSummary& summary, const Machine& machine) {
  if (summary.targets.empty()) fail("fuzz jobs without targets are not stored");
  StoredRun whole =
      begun("fuzz", "fuzz", static_cast<std::int64_t>(summary.seed), to_json(machine));
  whole.title = "fuzz jobs";
  for (const FuzzTarget& t : summary.targets) {
    StoredResult& r = whole.results.emplace_back();
    r.name = t.target;
    r.outcome = t.findings == 0 ? "clean" : "finding";
    r.seconds = t.seconds;
    r.counters = {{"executions", t.executions},
                  {"executions_per_second", t.executions_per_second},
                  {"coverage", t.coverage},
                  {"corpus", t.corpus},
                  {"findings", t.findings}};
  }
  whole.sentence = fmt::format("{} targets, {:.0f} s, {} findings", summary.targets.size(),
                               summary.seconds, summary.findings.size());
  return insert_alone(whole);
}

std::int64_t Store::append(const BenchRun& run) {
  StoredRun whole = begun("benchmark", "bench", 0, to_json(run.machine));
  std::vector<std::string> modes;
  std::size_t failed = 0;
  for (const BenchMode& mode : run.modes) {
    modes.push_back(mode.mode);
    for (const Measurement& m : mode.measured) {
      StoredResult& r = whole.results.emplace_back();
      r.name = m.name;
      if (m.failed) {
        ++failed;
        r.outcome = "error";
        r.reason = m.failed;
        continue;
      }
      r.seconds = m.seconds;
      r.counters = Json::object();
      for (const auto& [rate, value] : m.rates) r.counters[rate] = value;
      for (const auto& [name, value] : {std::pair{"fraction", m.fraction},
                                        {"fraction_low", m.fraction_low},
                                        {"fraction_high", m.fraction_high},
                                        {"limit", m.limit}})
        if (value) r.counters[name] = *value;
      // The name of a ratio is mode/candidate/problem; the candidate distinguishes the ratios of a
      // line.
      for (const BenchRatio& ratio : m.ratios) {
        const std::string rest = ratio.over.substr(ratio.over.find('/') + 1);
        r.counters["over " + rest.substr(0, rest.find('/'))] = ratio.ratio;
      }
    }
  }
  if (whole.results.empty()) fail("benchmarks without results are not stored");
  whole.title = fmt::format("{}", fmt::join(modes, " "));
  whole.sentence = fmt::format("{} measured, {} failed", whole.results.size() - failed, failed);
  return insert_alone(whole);
}

std::int64_t Store::insert_alone(const StoredRun& run) {
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
  if (!report.is_object() || !report.contains("benchmarks") || !report.contains("context"))
    fail(fmt::format("{} is no report of Google Benchmark: it has no context or no benchmarks",
                     title));
  StoredRun whole;
  try {
    const Json& context = report.at("context");
    const std::string executable = context.value("executable", "unknown");
    whole = begun("benchmark", executable.c_str(), 0, context);
    whole.started = context.value("date", whole.started);
    whole.title = title;
    for (const Json& b : report.at("benchmarks")) {
      if (b.value("run_type", "iteration") != "iteration" || !b.contains("real_time") ||
          b.value("error_occurred", false))
        continue;
      const std::string unit = b.value("time_unit", "ns");
      const double to_seconds = unit == "ns" ? 1e-9 : unit == "us" ? 1e-6 : unit == "ms" ? 1e-3 : 1;
      StoredResult& r = whole.results.emplace_back();
      r.name = b.at("name");
      r.seconds = b.at("real_time").get<double>() * to_seconds;
      r.counters = Json::object();
      for (const auto& [name, value] : b.items())
        if (value.is_number() && name != "real_time" && name != "cpu_time")
          r.counters[name] = value;
    }
  } catch (const Json::exception& e) {
    fail(fmt::format("{} is no report of Google Benchmark: {}", title, e.what()));
  }
  if (whole.results.empty()) fail(fmt::format("{} has no iteration of a benchmark", title));
  whole.sentence = fmt::format("{} measurements", whole.results.size());
  return insert_alone(whole);
}

std::vector<RunEntry> Store::runs() const {
  std::vector<RunEntry> all;
  Statement s(db_.get(),
              "SELECT id, kind, started, title, candidate, commit_id, sentence, (SELECT count(*) "
              "FROM result WHERE run = id) FROM run ORDER BY id");
  while (s.step())
    all.push_back({s.integer(0), s.text(1), s.text(2), s.text(3), s.text(4), s.text(5), s.text(6),
                   s.integer(7)});
  return all;
}

StoredRun Store::run(std::int64_t id) const {
  Statement s(db_.get(),
              "SELECT kind, started, title, candidate, seed, commit_id, machine, sentence "
              "FROM run WHERE id = ?");
  s.bind(id);
  if (!s.step()) fail(fmt::format("has no run {}", id));
  StoredRun run{id,        s.text(0),
                s.text(1), s.text(2),
                s.text(3), s.integer(4),
                s.text(5), Json::parse(s.text(6)),
                s.text(7), {}};
  const auto& columns = result_columns();
  const std::string select =
      fmt::format("SELECT {} FROM result WHERE run = ? ORDER BY number", fmt::join(columns, ", "));
  Statement r(db_.get(), select.c_str());
  r.bind(id);
  while (r.step()) {
    Json row = Json::object();
    for (std::size_t k = 0; k < columns.size(); ++k) {
      Json value = r.json(static_cast<int>(k));
      if (value.is_null()) continue;
      const bool json = std::string_view(columns[k]) == "counters";
      row[columns[k]] = json ? Json::parse(value.get<std::string>()) : std::move(value);
    }
    run.results.push_back(from_json<StoredResult>(row, fmt::format("{}: run {}", path_, id)));
  }
  return run;
}

void Store::export_lines(std::ostream& out) const {
  for (const RunEntry& r : runs())
    out << to_json(run(r.id)).dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
}

std::size_t Store::import_lines(std::istream& in) {
  std::size_t count = 0, number = 0;
  execute("BEGIN IMMEDIATE");
  try {
    for (std::string line; std::getline(in, line);) {
      ++number;
      if (line.empty()) continue;
      const Json json = Json::parse(line);
      if (json.is_object() && at(json, "results").empty())
        throw StoreError("a run without results");
      const auto run = from_json<StoredRun>(json, "run");
      insert(run);
      ++count;
    }
    if (count == 0) throw StoreError("there is no run");
    execute("COMMIT");
  } catch (const Json::parse_error& e) {
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    fail(fmt::format("line {} of what is imported: no JSON from byte {} on; nothing was imported",
                     number, e.byte));
  } catch (const SchemaError& e) {
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    fail(fmt::format(
        "line {} of what is imported: {}, so it is no run of a store (what `assay check "
        "--json` wrote goes in by --store of that command); nothing was imported",
        number, e.what()));
  } catch (const std::exception& e) {
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    fail(fmt::format("line {} of what is imported: {}; nothing was imported", number, e.what()));
  }
  return count;
}

}  // namespace assay
