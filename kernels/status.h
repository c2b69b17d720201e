// The status that every kernel returns, and its codes.
#pragma once

#include <string>
#include <string_view>

namespace assay::kernels {

// The codes of the C interface; see "Status" in docs/semantics.md.
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

// The result of a call. If it is a failure, nothing was written, and `detail` names the argument,
// the value that was refused and the limit.
struct Status {
  StatusCode code = StatusCode::success;
  std::string detail;
  // for a failure on a device: the call and its purpose ("allocate query"); otherwise empty
  std::string origin = {};
  bool ok() const { return code == StatusCode::success; }
};

}  // namespace assay::kernels
