#include "harness/contracts.h"

#include "kernels/attention.h"

namespace assay {

Contract host_contract(const Attention& problem, const std::string& target) {
  Contract c;
  c.name = "host, fp32 accumulation and weights, " + target;
  c.ordered = true;
  // Before AVX2 there is no FMA.
  c.products_rounded = target == "SCALAR" || target == "SSSE3" || target == "SSE4" || target == "SSE2";
  c.exp_ulp = 1.5;
  c.tanh_ulp = 4;
  c.exp_floor = 0x1p-125;  // e^-87
  const kernels::ForwardTiling tiling = kernels::forward_tiling(problem.shape.dim, problem.shape.value_dim);
  c.tile = tiling.keys;
  c.row_tile = tiling.rows;
  c.split_keys = tiling.split_keys;
  const kernels::BackwardTiling backward = kernels::backward_tiling(problem.shape.dim, problem.shape.value_dim);
  c.backward_row_tile = backward.rows;
  c.backward_tile = backward.keys;
  c.backward_split = backward.split_keys;
  return c;
}

}  // namespace assay
