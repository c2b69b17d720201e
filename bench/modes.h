// What attention_bench can be asked for; every mode prints tables of its own.
#pragma once

#include <vector>

#include "bench/rounds.h"
#include "problem/tensor.h"

namespace assay::bench {

struct Settings {
  bool full = false;  // every shape, not a few
  std::vector<int> threads;
};

// Fractions of the multiply-add rate, of fp32, fp16 and bf16 and of the peers.
void forward_mode(Rounds& rounds, const Settings& settings);
void backward_mode(Rounds& rounds, const Settings& settings);
// Milliseconds of forward, and of forward and backward together, at the lengths of the source document.
void times_mode(Rounds& rounds, const Settings& settings);
// One row over long keys, from tensors and from caches, as a fraction of the rate of plain reads.
void decode_mode(Rounds& rounds, const Settings& settings);
// Low-bit products of one row, as a fraction of plain reads, and of several, of the multiply-add rate.
void products_mode(Rounds& rounds, const Settings& settings);
// What validation, dispatch and the C interface add to a tiny call.
void overhead_mode(Rounds& rounds, const Settings& settings);
// First calls of a process against later ones, and memory over calls of growing length.
void steady_mode(Rounds& rounds, const Settings& settings);

}  // namespace assay::bench
