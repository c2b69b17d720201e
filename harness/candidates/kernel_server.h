// The process in which a kernel library of another author runs.
#pragma once

#include <cstddef>
#include <string>

namespace assay {

// Loads the library and answers the requests of a KernelProcess: `assay serve-kernel` runs this.
// The code of the library runs in a child of this process. This process watches the child from
// outside and ends all that the library has started. `base` is the address of the tensors.
// Returns the exit status only if there is no child.
int serve_kernel(const std::string& library, std::size_t base);

}  // namespace assay
