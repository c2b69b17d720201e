// A peer behind kernel.h, loaded from its shared library.
#pragma once

#include <functional>
#include <string>

#include "bench/data.h"

struct assay_kernel;

namespace assay::bench {

// The library libassay_peer_NAME.so beside this program, or null if there is none.
const assay_kernel* load_peer(const std::string& name);

// One call: O and LSE, or dQ, dK and dV from the O and LSE that are there. The first call of a problem prepares it.
Run peer_forward(const assay_kernel& peer, const Data& data, int threads);
Run peer_backward(const assay_kernel& peer, const Data& data, int threads);

}  // namespace assay::bench
