// Options that several commands share, and how the values of options are read.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "harness/judging/workers.h"

namespace assay {

// Reads the whole text as one decimal number from `low` to `high`, both included. NaN is in no
// range. What follows reads the number as it is printed here, so that no second way of reading it
// (octal, hexadecimal, wrapped around) counts. For Option::transform.
CLI::Validator number_in(int low, int high);
CLI::Validator number_in(Index low, Index high);
CLI::Validator number_in(double low, double high);
// The same for seeds: whatever 64 bits hold, about which the help text says nothing.
CLI::Validator any_number();
// Seconds, from a millisecond to ten years, which are as good as no limit and can be printed.
CLI::Validator seconds_number();

// Whether a file can be written there: told before anything is computed. It opens nothing that is
// there, and leaves nothing behind.
CLI::Validator writable();

// Makes an empty value an error of its option, for every option and positional of every command.
void refuse_empty_values(CLI::App& app);

// --jobs, --timeout, --in-process, --memory.
void add_workers(CLI::App& command, WorkerOptions& workers);
void add_guard_pages(CLI::App& command, ExecuteOptions& execute);

// The name of the candidate that --kernel means. A bare name is a library of this folder, where
// there is one; the loader would look for it in the system's folders alone.
std::string candidate_of_library(const std::string& library);

}  // namespace assay
