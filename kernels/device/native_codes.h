// Native codes of devices, and the status that each becomes. There is one table for each interface;
// it is complete for the vendor's header that it names.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace assay::kernels {

using NativeCode = int;  // 0 is success in every table

struct NativeEntry {
  NativeCode code;
  std::string_view name;  // as the header spells it
  StatusCode status;
  // After such a code nothing on the device works until the device is opened again.
  bool sticky = false;
};

struct NativeTable {
  std::string_view interface;
  std::span<const NativeEntry> entries;  // without the code of success
};

const NativeTable& opencl_codes();  // of CL/cl.h, and -1001 of the loader (CL/cl_ext.h)
const NativeTable& cuda_codes();    // cudaError of driver_types.h, runtime 13.0
// MTLCommandBufferError as it is, MTLLibraryError + 100, and + 200 for creations that answer nil
// and give no code.
const NativeTable& metal_codes();
const NativeTable& posix_codes();  // errno of POSIX.1-2017
std::span<const NativeTable* const> native_tables();

// Returns null if the table does not have the code.
const NativeEntry* find_native(const NativeTable& table, NativeCode code);
// Returns unknown for a code that the table does not have.
StatusCode status_of(const NativeTable& table, NativeCode code);
// Returns "CL_OUT_OF_RESOURCES (-5)", or "code -9999, which opencl does not define".
std::string describe(const NativeTable& table, NativeCode code);

}  // namespace assay::kernels
