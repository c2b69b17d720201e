// The arithmetic that a kernel declares, by the C interface or in words, as a contract.
#pragma once

#include <assay/kernel.h>

#include <string>

#include "oracle/contract.h"

namespace assay {

// `wrong` says which value no kernel can mean, and is left alone if there is none.
Contract contract_of(const std::string& name, const assay_arithmetic& a, std::string& wrong);
ProductContract contract_of(const std::string& name, const assay_product_arithmetic& a,
                            std::string& wrong);

// The arithmetic of `text`, of a kernel whose inputs have this dtype: the name of a rung of the
// ladder, or fields of assay_arithmetic as words FIELD=NUMBER; those that are not named have the
// values of assay_arithmetic_init. Throws std::invalid_argument with the names that there are.
Contract declared_contract(const std::string& text, Dtype dtype);
// The same of a product, whose A has this dtype (f32 if it is low-bit), with the fields of
// assay_product_arithmetic.
ProductContract declared_product_contract(const std::string& text, Dtype dtype);

}  // namespace assay
