// Attention with one head, as callers of an older interface know it: arrays of rank 2 or 4, its limits, the order in which it refuses, and its
// words. It runs on the same dispatcher as everything else.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/dispatch.h"

namespace assay::kernels {

// [S, D], or [B, S, H, D] with H = 1. Strides and origin in elements, as in TensorView.
struct Array {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape, stride;
  Index origin = 0;
};

inline constexpr Index single_head_max_length = 65535, single_head_max_dim = 1024, single_head_max_batch = 1024;

struct SingleHeadOptions {
  std::optional<float> scale;  // none: 1 / sqrt(D)
  bool causal = false;         // top left: row i sees the keys up to i
  int threads = 0;
};

// O has the shape of Q. Checked in this order, each before any number is narrowed: ranks equal; rank 2 or 4; one head; the dtype of Q (f32, f16,
// bf16); lengths of Q and of K; head dimension; batch; and then what callers were never told: dtypes, batches and dimensions of
// K, V and O, lengths of K and V, empty arrays, a scale that is not finite, and what the dispatcher refuses.
//
// The detail of a failure is the sentence that callers know, prefix included, then in brackets the argument, its value and the limit; of a
// failure on the device, the status and the native code too:
//   Metal SDPA Backend Error: Sequence length too large (max 65535) [key.shape[0] = 70000]
//   Metal SDPA Backend Error: Failed to create key buffer [2, Memory allocation failed: opencl: allocate key failed with ...]
// Several heads are `unsupported`, as other dtypes are; they are never read as one.
Status single_head_attention(Dispatcher& dispatcher, const Array& q, const Array& k, const Array& v, const Array& o, const SingleHeadOptions& options = {});

// "Metal Flash Attention forward pass failed with code 2 (Memory allocation failed)"; the texts in brackets are another table than
// message_of().
std::string forward_failure_message(int code);

}  // namespace assay::kernels
