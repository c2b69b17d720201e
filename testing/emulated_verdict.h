// The verdict, with evidence, on what an emulated kernel computes of a case.
#pragma once

#include "oracle/verdict.h"
#include "problem/case.h"
#include "testing/emulated_kernel.h"

namespace assay {

// The kernel declares its arithmetic, and means by masks what our documents do; or it declares
// nothing. The case is of attention or of a backward pass.
Verdict emulated_verdict(const Case& c, const Emulation& e, bool declared);

// What a kernel that declares nothing may not compute, because it is a fault of such a kernel:
// weights in 8 bits, and sums in f16 of what f16 does not hold.
bool must_be_declared(const Emulation& e, Dtype dtype);

}  // namespace assay
