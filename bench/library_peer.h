// A peer behind kernel.h, loaded from its shared library.
#pragma once

#include <functional>
#include <string>

#include "bench/data.h"

struct assay_kernel;

namespace assay::bench {

// Loads the library libassay_peer_NAME.so beside this program. Returns null if there is none.
const assay_kernel* load_peer(const std::string& name);

// Makes one call, which computes O and LSE, or dQ, dK and dV from the given O and LSE. The first
// call for a problem also prepares it.
Run peer_forward(const assay_kernel& peer, const Data& data, int threads);
Run peer_backward(const assay_kernel& peer, const Data& data, int threads);

}  // namespace assay::bench
