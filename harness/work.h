// How much work a case is.
#pragma once

#include "problem/case.h"

namespace assay {

// The multiply-adds of the product, or of the forward pass, without regard to masks.
double multiply_adds(const Case& c);

}  // namespace assay
