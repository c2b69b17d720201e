// A store of runs over time in one SQLite file: what was asked of which candidate on which machine,
// and how near every case came to its bound, also if it passed.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "harness/results/bench_run.h"
#include "harness/results/faults_score.h"
#include "harness/results/fuzz_summary.h"
#include "harness/results/run.h"
#include "reports/stored_run.h"

struct sqlite3;

namespace assay {

// An error in a store or in what is to be added to it. It names the file.
struct StoreError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// The machine could not read or write the file: its disk is full, for example. It names the file.
struct StoreFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The run as a store keeps it, which begins now.
StoredRun stored(const Run& run);

// A line in the list of runs.
struct RunEntry {
  std::int64_t id = 0;
  std::string kind, started, title, candidate, commit, sentence;
  Json machine;
  std::int64_t results = 0;
};

// What is measured over time of a result. A number may be infinite or NaN.
struct StoredValues {
  std::int64_t run = 0;
  std::string_view name;  // until the next result is read
  std::optional<double> worst_ratio, evidence, seconds;
};

// A store survives kill -9: a run, or a part of one that goes on, is in it as a whole or not at all
// (one transaction in a write-ahead log). Several processes may append at the same time.
class Store {
 public:
  // A reader asks for runs alone.
  enum class Use { write, read };
  // A writer makes the file if there is none. An older schema is brought up to date. Where the file
  // or its folder cannot be written, a reader reads the file into memory. Throws StoreError for a
  // newer schema, a damaged file, and a file that is no store. It does not change such files.
  // Every function throws StoreFailure if the machine fails.
  explicit Store(const std::string& path, Use use = Use::write);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Each of these functions returns the number of the run.
  std::int64_t append(const Run& run);
  // Adds the results of this part to run `id`, behind those that it has, and gives it the sentence
  // of the part, in one transaction.
  void extend(std::int64_t id, const Run& part);
  std::int64_t append(const FaultsScore& score, const Machine& machine);
  std::int64_t append(const FuzzSummary& summary, const Machine& machine);
  std::int64_t append(const BenchRun& measured);
  // Appends what Google Benchmark writes with --benchmark_out_format=json. Returns the number of
  // the run.
  std::int64_t append_benchmarks(const Json& report, const std::string& title);

  std::vector<RunEntry> runs() const;
  // The run, with the fields that a store keeps. Throws StoreError if there is no such run.
  StoredRun run(std::int64_t id) const;

  // Reads what is measured of all results, run by run, without the rest.
  void each_result(const std::function<void(const StoredValues&)>& take) const;
  // The command that runs this result again; empty if none is known.
  std::string reproduce(std::int64_t run, const std::string& name) const;

  // Writes one run a line.
  void export_lines(std::ostream& out) const;
  // Imports all lines or none. Returns their number.
  std::size_t import_lines(std::istream& in);

 private:
  struct Close {
    void operator()(sqlite3* db) const;
  };
  void open_file(Use use);
  void read_into_memory();
  void prepare();
  StoredRun read_run(std::int64_t id) const;
  std::int64_t insert(const StoredRun& run);
  void insert_results(std::int64_t id, std::int64_t first,
                      const std::vector<StoredResult>& results);
  std::size_t insert_lines(std::istream& in);
  // Inserts the whole run in a transaction of its own.
  std::int64_t insert_alone(const StoredRun& run);
  // Does the work in a transaction: all of it, or nothing if it throws.
  void in_transaction(const std::function<void()>& work);
  void execute(const char* sql) const;
  [[noreturn]] void fail(const std::string& what) const;

  const std::string path_;
  std::unique_ptr<sqlite3, Close> db_;
};

}  // namespace assay
