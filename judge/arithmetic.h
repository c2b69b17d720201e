// Inside judge/: arithmetic that a caller declares in words.
#pragma once

#include <string>

#include "oracle/contract.h"

namespace assay::judging {

// The arithmetic of `text`, as judge.h describes it, of a kernel whose inputs have this dtype.
// Throws Refused with the names that there are.
Contract declared_contract(const std::string& text, Dtype dtype);

}  // namespace assay::judging
