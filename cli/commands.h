#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/workers.h"

namespace assay {

// What a command leaves to its caller; --help lists the same.
enum ExitStatus { all_passed = 0, some_failed = 1, bad_usage = 2, machine_failed = 3 };

struct CheckOptions {
  std::string suite;               // a suite, or
  std::vector<std::string> cases;  // case lines
  std::string cases_file;          // one line each
  std::string candidate = "host";
  std::string device;   // instead of a candidate: device:NAME
  std::string library;  // likewise: lib:PATH
  std::string filter;  // substring of the line
  std::uint64_t seed = 1;
  std::string shard;        // i/n, i from 0
  double time_seconds = 0;  // repeat with new seeds until then; 0: once
  double most_unsupported = 100;  // percent of the cases
  bool list = false;
  bool no_shrink = false;
  std::string json, junit, html, standalone;
  WorkerOptions workers;
};
int check(const CheckOptions& options);

// Writes a project for a kernel library into a folder that is not there yet, or empty.
int new_kernel(const std::string& folder);

struct FaultsOptions {
  std::string suite;  // empty: each fault's own
  std::string only;   // one fault by name
  std::uint64_t seed = 1;
  std::string json;
  bool list = false;
  WorkerOptions workers;
};
int faults(const FaultsOptions& options);

}  // namespace assay
