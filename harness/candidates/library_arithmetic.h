// The arithmetic that a kernel declares through the C interface, as a contract.
#pragma once

#include <assay/kernel.h>

#include <string>

#include "oracle/contract.h"

namespace assay {

// `wrong` says which value no kernel can mean, and is left alone if there is none.
Contract contract_of(const std::string& name, const assay_arithmetic& a, std::string& wrong);

}  // namespace assay
