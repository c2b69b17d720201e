// Attention with one head, for callers of an older interface: its arrays of rank 2 or 4, its
// limits, its order of checks, and its messages. It runs on the same dispatcher as everything else.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/dispatch/dispatch.h"

namespace assay::kernels {

// An array [S, D], or [B, S, H, D] with H = 1. Strides and origin count elements, as in TensorView.
struct Array {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape, stride;
  Index origin = 0;
};

inline constexpr Index single_head_max_length = 65535, single_head_max_dim = 1024,
                       single_head_max_batch = 1024;

struct SingleHeadOptions {
  std::optional<float> scale;  // none: 1 / sqrt(D)
  bool causal = false;         // the diagonal starts at the top left: row i sees the keys up to i
  int threads = 0;
};

// Computes O, which has the shape of Q. The arguments are checked in this order, each before any
// number is narrowed: that ranks are equal; rank 2 or 4; one head; the dtype of Q (f32, f16, bf16);
// the lengths of Q and of K; the head dimension; the batch. Then follow the checks that the older
// interface did not have: dtypes, batches and dimensions of K, V and O, the lengths of K and V,
// empty arrays, a scale that is not finite, and what the dispatcher refuses.
//
// The detail of a failure is the sentence that callers know, with its prefix. Brackets follow with
// the argument, its value and the limit, or, for a failure on the device, with the status and the
// native code:
//   Metal SDPA Backend Error: Sequence length too large (max 65535) [key.shape[0] = 70000]
//   Metal SDPA Backend Error: Failed to create key buffer [2, Memory allocation failed: ...]
// Several heads are `unsupported`, as other dtypes are; they are never read as one head.
Status single_head_attention(Dispatcher& dispatcher, const Array& q, const Array& k, const Array& v,
                             const Array& o, const SingleHeadOptions& options = {});

// Returns "Metal Flash Attention forward pass failed with code 2 (Memory allocation failed)". The
// texts in brackets are not those of message_of() but a table of their own.
std::string forward_failure_message(int code);

}  // namespace assay::kernels
