// How every entry point of the kernels says whether it did what it was asked.
#pragma once

#include <string>
#include <string_view>

namespace assay::kernels {

// The codes of the C interface; docs/semantics.md, "Status".
enum class StatusCode : int {
  success = 0,
  invalid_arguments = 1,
  memory_allocation_failed = 2,
  device_not_supported = 3,
  kernel_compilation_failed = 4,
  execution_failed = 5,
  unsupported = 6,
  invalid_cache_state = 7,
  unknown = 255,
};

std::string_view message_of(StatusCode code);

// On failure nothing was written; `detail` names the argument, the value that was refused and the limit.
struct Status {
  StatusCode code = StatusCode::success;
  std::string detail;
  std::string origin = {};  // of a failure on a device: the call and what it was for ("allocate query"); otherwise empty
  bool ok() const { return code == StatusCode::success; }
};

}  // namespace assay::kernels
