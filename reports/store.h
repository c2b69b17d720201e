// Runs over time, in one SQLite file: what was asked, of whom, on which machine, and how near every
// case came to its bound, on a pass too.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness/results/faults_score.h"
#include "harness/results/fuzz_summary.h"
#include "harness/results/run.h"
#include "reports/stored_run.h"

struct sqlite3;

namespace assay {

// What is wrong with a store or with what is to enter it, naming the file.
struct StoreError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A line of the list of runs.
struct RunEntry {
  std::int64_t id = 0;
  std::string kind, started, title, candidate, commit, sentence;
  std::int64_t results = 0;
};

// Safe against kill -9: a run is there whole or not at all (one transaction in a write-ahead log).
// Several processes may append at the same time.
class Store {
 public:
  // Makes the file if there is none, and brings an older schema up to date. Throws StoreError for a
  // newer schema, a damaged file, and a file that is no store, all of which it leaves as they are.
  explicit Store(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Each returns the number of the run.
  std::int64_t append(const Run& run);
  std::int64_t append(const FaultsScore& score, const Machine& machine);
  std::int64_t append(const FuzzSummary& summary, const Machine& machine);
  // What `assay bench --json` writes.
  std::int64_t append_bench(const Json& measured);
  // What Google Benchmark writes with --benchmark_out_format=json. Returns the run's number.
  std::int64_t append_benchmarks(const Json& report, const std::string& title);

  std::vector<RunEntry> runs() const;
  // As it was appended, in what a store keeps of it. Throws StoreError if there is none.
  StoredRun run(std::int64_t id) const;

  // A run a line.
  void export_lines(std::ostream& out) const;
  // All lines or none. Returns how many.
  std::size_t import_lines(std::istream& in);

 private:
  struct Close {
    void operator()(sqlite3* db) const;
  };
  void prepare();
  std::int64_t insert(const StoredRun& run);
  std::int64_t insert_alone(const StoredRun& run);  // whole, in a transaction of its own
  void execute(const char* sql) const;
  [[noreturn]] void fail(const std::string& what) const;

  const std::string path_;
  std::unique_ptr<sqlite3, Close> db_;
};

}  // namespace assay
