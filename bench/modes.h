// The modes of attention_bench. Every mode prints tables of its own.
#pragma once

#include <vector>

#include "bench/rounds.h"
#include "problem/tensor.h"

namespace assay::bench {

struct Settings {
  bool full = false;  // every shape instead of a few
  std::vector<int> threads;
};

// Forward and backward: fractions of the multiply-add rate, in fp32, fp16 and bf16, and for the
// peers.
void forward_mode(Rounds& rounds, const Settings& settings);
void backward_mode(Rounds& rounds, const Settings& settings);
// Milliseconds of forward, and of forward and backward together, at the lengths of the source
// document.
void times_mode(Rounds& rounds, const Settings& settings);
// One row over long keys, from tensors and from caches, as a fraction of the rate of plain reads.
void decode_mode(Rounds& rounds, const Settings& settings);
// Low-bit products: one row as a fraction of plain reads, several rows as a fraction of the
// multiply-add rate. Before them, how fast weights are quantized and packed.
void products_mode(Rounds& rounds, const Settings& settings);
// What validation, dispatch and the C interface add to a tiny call.
void overhead_mode(Rounds& rounds, const Settings& settings);
// The first calls of a process against later ones, and memory over calls of growing length.
void steady_mode(Rounds& rounds, const Settings& settings);

}  // namespace assay::bench
