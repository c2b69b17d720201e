// Native codes of devices and the status that each becomes. One table for each interface, complete for the vendor's header that it names.
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
  // After it nothing on the device works until it is opened again.
  bool sticky = false;
};

struct NativeTable {
  std::string_view interface;
  std::span<const NativeEntry> entries;  // without success
};

const NativeTable& opencl_codes();  // CL/cl.h, and the loader's -1001 of CL/cl_ext.h
const NativeTable& cuda_codes();    // cudaError of driver_types.h, runtime 13.0
// MTLCommandBufferError as it is, MTLLibraryError + 100, and + 200 the creations that answer nil without any code.
const NativeTable& metal_codes();
const NativeTable& posix_codes();  // errno of POSIX.1-2017
std::span<const NativeTable* const> native_tables();

// Null: the table does not have it.
const NativeEntry* find_native(const NativeTable& table, NativeCode code);
// unknown for codes that the table does not have.
StatusCode status_of(const NativeTable& table, NativeCode code);
// "CL_OUT_OF_RESOURCES (-5)", or "code -9999, which opencl does not define".
std::string describe(const NativeTable& table, NativeCode code);

}  // namespace assay::kernels
