// Many numbers in binary32, rounded to another format.
#pragma once

#include <span>

#include "problem/dtype.h"

namespace assay {

// Rounds every number as round_to() does, but faster; for the formats of at most 16 bits. Numbers
// keep their values in formats that are wider. A NaN stays the NaN that it is.
void round_all(Dtype dtype, std::span<float> numbers);

}  // namespace assay
