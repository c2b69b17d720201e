// Inside cli/: what commands do with the files that their options name.
#pragma once

#include <CLI/CLI.hpp>

namespace assay {

// Each of these says what an option or positional argument names. It is added with Option::check().

// A file that is written. Checks, before anything is computed, that it can be: it opens no existing
// file and leaves nothing behind.
CLI::Validator writable();
// A store that a run is appended to. Checks the same.
CLI::Validator appended();
// A flag. What it writes is appended to the file that the environment variable GITHUB_STEP_SUMMARY
// names; it is an error if it names none.
CLI::Validator step_summary();
// A store that is read, and perhaps appended to.
CLI::Validator stored();
// A file that is read.
CLI::Validator read_only();
// STORE#RUN
CLI::Validator read_run();
// A candidate, which is a file if it is lib:PATH.
CLI::Validator judged();
// A folder of programs.
CLI::Validator programs();

// Throws UsageError if a file that the parsed command would write is one that it also reads, or
// that it also writes for another option. What counts is the file, however its path is spelt.
// Pipes, terminals and devices can take more than one output.
void refuse_shared_files(const CLI::App& command);

}  // namespace assay
