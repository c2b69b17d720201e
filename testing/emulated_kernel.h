// Attention as kernels with other arithmetic compute it, one scalar operation at a time. Tests use
// this to check that the bound of every contract holds, and how close errors come to it. It is not
// fast, and it is only for tests.
#pragma once

#include "oracle/contract.h"
#include "problem/attention.h"

namespace assay {

// flushing_lanes: chunks of 32 in two lanes, as AMX adds them (kernels/simd/amx.h).
enum class Accumulation {
  fma,
  flushing_fma,
  flushing_lanes,
  rounded_products,
  half,
  truncating_block
};
// Whether it reads and writes subnormal numbers as 0.
inline bool flushes(Accumulation a) {
  return a == Accumulation::flushing_fma || a == Accumulation::flushing_lanes;
}
enum class ExpModel { precise, base_two_fused, noisy };

struct Emulation {
  Contract contract;
  Accumulation accumulation = Accumulation::fma;
  ExpModel exp = ExpModel::precise;
};

// One emulation for each kind of arithmetic that the bound knows, with the contract that describes
// it.
std::vector<Emulation> emulations(Dtype dtype);

void run_emulated(const Emulation& e, const Attention& p, const AttentionOutput& out);
void run_emulated_backward(const Emulation& e, const Attention& p, const AttentionBackwardInput& in,
                           const AttentionGradients& out);

}  // namespace assay
