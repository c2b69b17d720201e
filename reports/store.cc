#include "reports/store.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sqlite3.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <istream>
#include <iterator>
#include <ostream>
#include <system_error>
#include <thread>

#include "harness/results/schema.h"
#include "harness/text.h"
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
    // The largest s over its limit. Earlier runs kept only whether it was beyond.
    "ALTER TABLE result ADD COLUMN evidence REAL",
};
constexpr int newest = static_cast<int>(std::size(migrations));

// What SQLite says, without the name of the file.
struct SqliteError : std::runtime_error {
  explicit SqliteError(sqlite3* db)
      : std::runtime_error(sqlite3_errmsg(db)), code(sqlite3_errcode(db) & 0xFF) {}
  const int code;  // a primary result code
};

// Does the work, and gives an error of SQLite or of what a row holds the name of the file.
template <class Work>
auto naming(const std::string& path, const Work& work) {
  try {
    return work();
  } catch (const SqliteError& e) {
    const std::string what = fmt::format("{}: {}", path, e.what());
    if (e.code == SQLITE_FULL || e.code == SQLITE_IOERR || e.code == SQLITE_NOMEM)
      throw StoreFailure(what);
    throw StoreError(what);
  } catch (const SchemaError& e) {
    throw StoreError(fmt::format("{}: is damaged: {}", path, e.what()));
  }
}

// Why the file, or a file beside it, cannot be written. SQLite writes files beside a store.
std::error_code why_not_writable(const std::string& path) {
  std::error_code error;
  const std::string file = std::filesystem::canonical(path, error);
  if (error) return error;
  const std::string folder = std::filesystem::path(file).parent_path();
  for (const std::string& written : {file, folder})
    if (faccessat(AT_FDCWD, written.c_str(), W_OK, AT_EACCESS) != 0)
      return {errno, std::generic_category()};
  return {};
}

class Statement {
 public:
  Statement(sqlite3* db, const char* sql) : db_(db) {
    if (sqlite3_prepare_v2(db, sql, -1, &s_, nullptr) != SQLITE_OK) throw SqliteError(db);
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
    if (code != SQLITE_ROW && code != SQLITE_DONE) throw SqliteError(db_);
    return code == SQLITE_ROW;
  }
  bool is_null(int column) const { return sqlite3_column_type(s_, column) == SQLITE_NULL; }
  std::int64_t integer(int column) const { return sqlite3_column_int64(s_, column); }
  std::string text(int column) const {
    const auto* p = reinterpret_cast<const char*>(sqlite3_column_text(s_, column));
    return p ? std::string(p, usize(sqlite3_column_bytes(s_, column))) : "";
  }
  // Valid until the next step.
  std::string_view view(int column) const {
    const auto* p = reinterpret_cast<const char*>(sqlite3_column_text(s_, column));
    return p ? std::string_view(p, usize(sqlite3_column_bytes(s_, column))) : "";
  }
  // What is infinite or no number is stored as a text.
  std::optional<double> number(int column) const {
    switch (sqlite3_column_type(s_, column)) {
      case SQLITE_NULL: return std::nullopt;
      case SQLITE_TEXT: return schema::read_number(text(column), "result");
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
  for (const auto& [output, row] : r.verdict.evidence.rows)
    if (row.limit > 0) k.evidence = std::max(k.evidence.value_or(0), row.s / row.limit);
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

// Reads a line that export_lines() wrote. Throws SchemaError, whose message begins with the place.
StoredRun imported_run(const std::string& line, const std::string& place) {
  const Json json = parse_json(line, place);
  if (json.is_object() && at(json, "results").empty())
    throw SchemaError(place + ": a run without results");
  try {
    return from_json<StoredRun>(json, place + ": run");
  } catch (const SchemaError& e) {
    throw SchemaError(
        fmt::format("{}, so it is no run of a store (what `assay check --json` wrote "
                    "goes in by --store of that command)",
                    e.what()));
  }
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

// Reads the columns of a row into the fields that they are named for, without a document between.
class RowReader {
 public:
  explicit RowReader(const Statement& row) : row_(row) {}
  void operator()(const char*, std::string& value) { value = row_.text(column_++); }
  void optional(const char*, std::optional<std::string>& value) {
    if (!row_.is_null(column_)) value = row_.text(column_);
    ++column_;
  }
  void optional(const char*, std::optional<double>& value) { value = row_.number(column_++); }
  void optional(const char*, std::optional<std::int64_t>& value) {
    if (!row_.is_null(column_)) value = row_.integer(column_);
    ++column_;
  }
  void unless(const char* name, Json& value, const Json&) {
    if (!row_.is_null(column_)) value = parse_json(row_.text(column_), name);
    ++column_;
  }

 private:
  const Statement& row_;
  int column_ = 0;
};

}  // namespace

void Store::Close::operator()(sqlite3* db) const { sqlite3_close_v2(db); }

void Store::fail(const std::string& what) const {
  throw StoreError(fmt::format("{}: {}", path_, what));
}

void Store::execute(const char* sql) const {
  if (sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr) != SQLITE_OK)
    throw SqliteError(db_.get());
}

Store::Store(const std::string& path, Use use) : path_(path) {
  naming(path_, [&] {
    open_file(use);
    sqlite3_busy_timeout(db_.get(), 30000);
    // SQLite waits for a lock, but not for the one that changes the journal of a new file.
    const auto deadline = seconds_from_now(30);
    for (;;) {
      try {
        prepare();
        return;
      } catch (const SqliteError& e) {
        sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
        if (e.code != SQLITE_BUSY || Clock::now() > deadline) throw;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
  });
}

void Store::open_file(Use use) {
  if (const std::error_code why = why_not_writable(path_);
      why && why != std::errc::no_such_file_or_directory) {
    if (use == Use::write) fail(why.message());
    read_into_memory();
    return;
  }
  sqlite3* db = nullptr;
  const int code =
      sqlite3_open_v2(path_.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  db_.reset(db);
  if (db == nullptr) fail("cannot be opened");
  if (code != SQLITE_OK) throw SqliteError(db);
}

// SQLite cannot open a store without files beside it, which cannot be made here.
void Store::read_into_memory() {
  std::error_code none;
  if (std::filesystem::file_size(std::filesystem::canonical(path_, none).string() + "-wal", none) >
          0 &&
      !none)
    fail(
        "has a write-ahead log beside it, which can be read only where files can be written; copy "
        "both to such a place");
  std::ifstream in(path_, std::ios::binary);
  if (!in) fail(std::generic_category().message(errno));
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  sqlite3* db = nullptr;
  sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  db_.reset(db);
  auto* copy = static_cast<unsigned char*>(sqlite3_malloc64(bytes.size()));
  if (db == nullptr || copy == nullptr) throw StoreFailure(path_ + ": out of memory");
  std::ranges::copy(bytes, copy);
  // The versions of the format for writing and reading: with 2, SQLite would look for a log.
  if (constexpr std::size_t versions = 18; bytes.size() > versions + 1)
    copy[versions] = copy[versions + 1] = 1;
  if (sqlite3_deserialize(db, "main", copy, static_cast<sqlite3_int64>(bytes.size()),
                          static_cast<sqlite3_int64>(bytes.size()),
                          SQLITE_DESERIALIZE_FREEONCLOSE | SQLITE_DESERIALIZE_RESIZEABLE) !=
      SQLITE_OK)
    throw SqliteError(db);
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
  insert_results(id, 0, run.results);
  return id;
}

void Store::insert_results(std::int64_t id, std::int64_t first,
                           const std::vector<StoredResult>& results) {
  const auto& columns = result_columns();
  std::string values;
  for (std::size_t k = 0; k < columns.size(); ++k) values += ", ?";
  const std::string insert_result = fmt::format(
      "INSERT INTO result(run, number, {}) VALUES(?, ?{})", fmt::join(columns, ", "), values);
  for (const StoredResult& r : results) {
    const Json row = to_json(r);
    Statement s(db_.get(), insert_result.c_str());
    s.bind(id).bind(first++);
    for (const char* column : columns) {
      const Json value = at(row, column);
      s.bind(value.is_object() ? Json(value.dump()) : value);
    }
    s.step();
  }
}

StoredRun stored(const Run& run) {
  StoredRun whole = begun("check", run.candidate.c_str(), static_cast<std::int64_t>(run.seed),
                          to_json(run.machine));
  whole.title = run.suite;
  whole.sentence = run.summary.sentence;
  for (const CaseResult& r : run.results) whole.results.push_back(kept(r));
  return whole;
}

std::int64_t Store::append(const Run& run) {
  if (run.results.empty()) fail("a run without results is not stored");
  return insert_alone(stored(run));
}

void Store::extend(std::int64_t id, const Run& part) {
  naming(path_, [&] {
    in_transaction([&] {
      Statement change(db_.get(), "UPDATE run SET sentence = ? WHERE id = ?");
      change.bind(part.summary.sentence).bind(id).step();
      if (sqlite3_changes(db_.get()) == 0) fail(fmt::format("has no run {}", id));
      Statement last(db_.get(), "SELECT max(number) FROM result WHERE run = ?");
      last.bind(id).step();
      insert_results(id, last.integer(0) + 1, stored(part).results);
    });
  });
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
  whole.sentence =
      fmt::format("{} of {} killed", score.killed, counted(score.faults.size(), "fault"));
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
  whole.sentence = fmt::format("{}, {:.0f} s, {}", counted(summary.targets.size(), "target"),
                               summary.seconds, counted(summary.findings.size(), "finding"));
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

void Store::in_transaction(const std::function<void()>& work) {
  execute("BEGIN IMMEDIATE");
  try {
    work();
    execute("COMMIT");
  } catch (...) {
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    throw;
  }
}

std::int64_t Store::insert_alone(const StoredRun& run) {
  return naming(path_, [&] {
    std::int64_t id = 0;
    in_transaction([&] { id = insert(run); });
    return id;
  });
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
  } catch (const Json::exception&) {
    fail(fmt::format(
        "{} is no report of Google Benchmark: a field is missing or has a value of another type",
        title));
  }
  if (whole.results.empty()) fail(fmt::format("{} has no iteration of a benchmark", title));
  whole.sentence = counted(whole.results.size(), "measurement");
  return insert_alone(whole);
}

std::vector<RunEntry> Store::runs() const {
  return naming(path_, [&] {
    std::vector<RunEntry> all;
    Statement s(db_.get(),
                "SELECT id, kind, started, title, candidate, commit_id, sentence, machine, "
                "(SELECT count(*) FROM result WHERE run = id) FROM run ORDER BY id");
    while (s.step())
      all.push_back({s.integer(0), s.text(1), s.text(2), s.text(3), s.text(4), s.text(5), s.text(6),
                     parse_json(s.text(7), "machine"), s.integer(8)});
    return all;
  });
}

StoredRun Store::run(std::int64_t id) const {
  return naming(path_, [&] {
    try {
      return read_run(id);
    } catch (const SchemaError& e) {
      fail(fmt::format("run {} is damaged: {}", id, e.what()));
    }
  });
}

StoredRun Store::read_run(std::int64_t id) const {
  Statement s(db_.get(),
              "SELECT kind, started, title, candidate, seed, commit_id, machine, sentence "
              "FROM run WHERE id = ?");
  s.bind(id);
  if (!s.step()) fail(fmt::format("has no run {}", id));
  StoredRun run{id,        s.text(0),
                s.text(1), s.text(2),
                s.text(3), s.integer(4),
                s.text(5), parse_json(s.text(6), "machine"),
                s.text(7), {}};
  const std::string select = fmt::format("SELECT {} FROM result WHERE run = ? ORDER BY number",
                                         fmt::join(result_columns(), ", "));
  Statement r(db_.get(), select.c_str());
  r.bind(id);
  while (r.step()) {
    RowReader fields(r);
    describe_fields(fields, run.results.emplace_back());
  }
  return run;
}

void Store::each_result(const std::function<void(const StoredValues&)>& take) const {
  naming(path_, [&] {
    Statement s(
        db_.get(),
        "SELECT run, name, worst_ratio, evidence, seconds FROM result ORDER BY run, number");
    while (s.step()) take({s.integer(0), s.view(1), s.number(2), s.number(3), s.number(4)});
  });
}

std::string Store::reproduce(std::int64_t run, const std::string& name) const {
  return naming(path_, [&] {
    Statement s(db_.get(), "SELECT reproduce FROM result WHERE run = ? AND name = ?");
    s.bind(run).bind(name);
    return s.step() ? s.text(0) : "";
  });
}

void Store::export_lines(std::ostream& out) const {
  for (const RunEntry& r : runs())
    out << to_json(run(r.id)).dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
}

std::size_t Store::import_lines(std::istream& in) {
  return naming(path_, [&] {
    std::size_t count = 0;
    try {
      in_transaction([&] { count = insert_lines(in); });
    } catch (const SchemaError& e) {
      fail(fmt::format("{}; nothing was imported", e.what()));
    }
    return count;
  });
}

std::size_t Store::insert_lines(std::istream& in) {
  std::size_t count = 0, number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty()) continue;
    insert(imported_run(line, fmt::format("line {} of what is imported", number)));
    ++count;
  }
  if (count == 0) throw SchemaError("in what is imported there is no run");
  return count;
}

}  // namespace assay
