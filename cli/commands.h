#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/run_report.h"
#include "cli/selection.h"
#include "fuzz/jobs.h"
#include "harness/judging/workers.h"

namespace assay {

// What a command leaves to its caller; --help lists the same.
enum ExitStatus { all_passed = 0, some_failed = 1, bad_usage = 2, machine_failed = 3 };

struct CheckOptions {
  SelectionOptions selection;
  std::string candidate = "host";
  std::string device;   // instead of a candidate: device:NAME
  std::string library;  // likewise: lib:PATH
  double time_seconds = 0;  // repeat with new seeds until then; 0: once
  double most_unsupported = 100;  // percent of the cases
  bool list = false;
  bool no_shrink = false;
  ReportFiles files;
  std::string standalone;
  WorkerOptions workers;
};
int check(const CheckOptions& options);

// Writes a project for a kernel library into a folder that is not there yet, or empty.
int new_kernel(const std::string& folder);

struct RecordOptions {
  SelectionOptions selection;
  std::string candidate;      // empty: inputs alone
  std::string file;
};
int record(const RecordOptions& options);

struct VerifyCommandOptions {
  std::vector<std::string> files;
  std::string record;  // empty: all of them
  Index rows = 0;
  std::uint64_t seed = 1;
  int threads = 1;
  bool list = false;
  ReportFiles files_to_write;
};
int verify(const VerifyCommandOptions& options);

struct TraceOptions {
  std::string line;
  std::string candidate = "host";
  int timeout_seconds = 120;
};
int trace(const TraceOptions& options);

struct StoreOptions {
  std::string file;
  std::string import, benchmarks, export_to, dashboard;  // none of them: list the runs
};
int store(const StoreOptions& options);

struct CompareOptions {
  std::string a, b;                               // STORE#RUN
  double accuracy_margin = 5, time_margin = 10;  // percent
  std::string markdown;
};
int compare(const CompareOptions& options);

struct FaultsOptions {
  std::string suite;  // empty: each fault's own
  std::string only;   // one fault by name
  std::uint64_t seed = 1;
  std::string json, html, store;
  bool list = false;
  WorkerOptions workers;
};
int faults(const FaultsOptions& options);

struct FuzzCommandOptions {
  FuzzOptions jobs;
  double hours = 1;
  bool faults = false;        // instead: how long each planted fault takes to be found
  double fault_seconds = 600;
  std::string only, json, html, store;
};
int fuzz_command(const FuzzCommandOptions& options);

struct BenchOptions {
  std::vector<std::string> modes;  // none: all
  std::vector<int> threads;        // none: 1 and 2
  std::string shapes = "quick", filter;
  int repetitions = 6;
  double min_time = 0.15;  // seconds of a repetition
  bool list = false;
  std::string bin, json, store;
};
std::vector<std::string> bench_modes();
int bench(const BenchOptions& options);

}  // namespace assay
