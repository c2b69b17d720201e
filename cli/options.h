// Inside cli/: options that several commands share, and the readers of option values.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "harness/judging/workers.h"
#include "harness/results/conventions_seen.h"

namespace assay {

// Reads the whole text as one decimal number from `low` to `high`, both included. NaN is in no
// range. The number is replaced by its printed form, so that a later reader cannot read it in
// another way (octal, hexadecimal, wrapped around). For Option::transform.
CLI::Validator number_in(int low, int high);
CLI::Validator number_in(Index low, Index high);
CLI::Validator number_in(double low, double high);
// The same for seeds, which are any number of 64 bits. The help text says nothing of the range.
CLI::Validator any_number();
// Reads seconds, from a millisecond to ten years. Ten years are as good as no limit, and they can
// be printed.
CLI::Validator seconds_number();

// Makes an empty value an error, for every option and positional of every command below `app`.
void refuse_empty_values(CLI::App& app);

// Adds --jobs, --timeout, --in-process and --memory.
void add_workers(CLI::App& command, WorkerOptions& workers);
// Adds --evidence.
void add_evidence(CLI::App& command, EvidenceRule& rule);
// Adds --require, whose value names promises: batch-invariant,deterministic.
void add_required(CLI::App& command, Promises& required);
// Adds --accept-convention and --conventions.
struct ConventionOptions {
  Conventions accepted;
  ConventionRule rule = ConventionRule::usual;
};
void add_conventions(CLI::App& command, ConventionOptions& o);
void add_guard_pages(CLI::App& command, ExecuteOptions& execute);

// The name of the candidate that --kernel means. A bare name means a library of this folder, if
// there is one; the loader would look only in the system's folders.
std::string candidate_of_library(const std::string& library);

}  // namespace assay
