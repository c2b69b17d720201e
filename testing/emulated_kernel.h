// Attention as kernels with other arithmetic compute it, one scalar operation at a time: to see
// that the bound of every contract holds, and how close errors come to it. Nothing here is fast,
// and nothing is production.
#pragma once

#include "oracle/contract.h"
#include "problem/attention.h"

namespace assay {

enum class Accumulation { fma, rounded_products, half, truncating_block };
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
