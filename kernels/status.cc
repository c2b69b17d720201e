#include "kernels/status.h"

namespace assay::kernels {

std::string_view message_of(StatusCode code) {
  switch (code) {
    case StatusCode::success: return "Success";
    case StatusCode::invalid_arguments: return "Invalid arguments";
    case StatusCode::memory_allocation_failed: return "Memory allocation failed";
    case StatusCode::device_not_supported: return "Device not supported";
    case StatusCode::kernel_compilation_failed: return "Kernel compilation failed";
    case StatusCode::execution_failed: return "Execution failed";
    case StatusCode::unsupported: return "Unsupported configuration";
    case StatusCode::invalid_cache_state: return "Invalid cache state";
    default: return "Unknown error";
  }
}

}  // namespace assay::kernels
