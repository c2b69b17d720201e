#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "cli/commands.h"
#include "harness/kernel_process.h"
#include "harness/safetensors.h"
#include "problem/case.h"
#include "reports/store.h"

namespace assay {

// Bad usage or input, as a sentence.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The exit status of a command: what the user gave is wrong, or what the machine lacks, becomes a sentence on standard error.
template <class Command>
int exit_status_of(const Command& command) {
  const auto say = [](const std::exception& e, int status) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return status;
  };
  try {
    return command();
  } catch (const UsageError& e) {
    return say(e, bad_usage);
  } catch (const CaseError& e) {
    return say(e, bad_usage);
  } catch (const FileError& e) {
    return say(e, bad_usage);
  } catch (const StoreError& e) {
    return say(e, bad_usage);
  } catch (const LibraryError& e) {
    return say(e, bad_usage);
  } catch (const std::system_error& e) {
    // A path that cannot be is the user's; a full disk is the machine's.
    const int number = e.code().value();
    const bool named_wrong = e.code().category() == std::generic_category() && (number == ENOENT || number == EACCES || number == ENOTDIR || number == EISDIR || number == EROFS);
    return say(e, named_wrong ? bad_usage : machine_failed);
  } catch (const std::invalid_argument& e) {
    return say(e, bad_usage);
  } catch (const std::exception& e) {
    return say(e, machine_failed);
  }
}

}  // namespace assay
