#include "harness/candidates/contracts.h"

#include <fmt/format.h>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs.h"
#include "kernels/device/kernel_parameters.h"
#include "kernels/product/product_amx.h"
#include "kernels/simd/bf16_dots.h"

namespace assay {

namespace {

// Targets before AVX2 have no FMA. EMU128, which stands for SCALAR in some builds, multiplies and
// then adds.
bool lacks_fma(const std::string& target) {
  return target == "SCALAR" || target == "EMU128" || target == "SSSE3" || target == "SSE4" ||
         target == "SSE2";
}

// The arithmetic that both kernels share: fp32 sums, and exp_of_nonpositive and tanh_of of
// kernels/simd/elementary-inl.h.
Contract fp32_contract(const std::string& kernel, const std::string& target) {
  Contract c;
  c.name = kernel + ", fp32 accumulation and weights, " + target;
  c.products_rounded = lacks_fma(target);
  c.exp_ulp = 1.5;
  c.tanh_ulp = 4;
  c.exp_floor = 0x1p-125;  // e^-87
  return c;
}

}  // namespace

Contract host_contract(const ProjectedAttention& problem, const std::string& target) {
  Contract c = fp32_contract("host", target);
  c.ordered = true;
  const kernels::ForwardTiling tiling =
      kernels::forward_tiling(problem.shape.dim, problem.shape.value_dim);
  c.tile = tiling.keys;
  c.row_tile = tiling.rows;
  c.split_keys = tiling.split_keys;
  const kernels::BackwardTiling backward =
      kernels::backward_tiling(problem.shape.dim, problem.shape.value_dim);
  c.backward_row_tile = backward.rows;
  c.backward_tile = backward.keys;
  c.backward_split = backward.split_keys;
  if (problem.projection) {
    // Scores are computed against the latent vector and outputs are projected at the end, so sums
    // are longer and in another order, in the narrower tiles.
    c.name += ", absorbed projections";
    c.absorbed = true;
    c.ordered = false;
    c.tile = 64;
  }
  return c;
}

namespace {

// What pairs of bf16 change: weights (in the backward pass P and dS) are rounded to bf16, and all
// products flush. AMX adds the products of 32 summands from 0, in two chains, before they meet the
// rest.
void multiply_in_pairs(Contract& c, const kernels::Target& target) {
  const bool amx = kernels::has_amx(target);
  c.name = fmt::format("host, {} of bf16 that flush, weights in bf16, {}",
                       amx ? "matrix products" : "pairs", target.name());
  c.weight_dtype = Dtype::bf16;
  c.product_floor = c.operand_floor = 0x1p-126;
  if (amx) c.ordered = false;
}

}  // namespace

Contract host_forward_contract(const ProjectedAttention& problem, Dtype stored,
                               const kernels::Target& target) {
  Contract c = host_contract(problem, target.name());
  if (problem.projection || !kernels::computes_in_pairs(target, problem.q.dtype, stored, stored))
    return c;
  multiply_in_pairs(c, target);
  c.tile = kernels::forward_tiling_of_pairs(problem.shape.dim, problem.shape.value_dim).keys;
  return c;
}

Contract host_backward_contract(const Attention& problem, Dtype d_o,
                                const kernels::Target& target) {
  Contract c = host_contract(problem, target.name());
  if (!kernels::computes_gradients_in_pairs(target, problem, d_o)) return c;
  multiply_in_pairs(c, target);
  if (kernels::has_amx(target)) {
    // Each chunk is a sum of its own. A tile of 48 rows has two.
    c.backward_row_tile = c.backward_row_tile % 32 == 0 ? 32 : 24;
    c.backward_tile = 32;
  }
  return c;
}

Contract unfused_contract(const std::string& target) {
  Contract c = fp32_contract("unfused", target);
  c.division_roundings = 1;
  // The kernel has no tiles. This is the widest tile with which a verdict can name the places of
  // keys. The bound allows one rescaling for each tile; the kernel makes none.
  c.tile = 256;
  return c;
}

Contract device_contract(const std::string& device) {
  Contract c;
  c.name = "OpenCL, fp32 accumulation and weights, " + device;
  // Section 7.4 of the OpenCL C specification allows these errors for the built-in functions of
  // single precision: exp and log 3 ulp, tanh 5 ulp, division 2.5 ulp, which is 5 units of
  // roundoff. fma, + and * only round (contraction is off).
  c.exp_ulp = 3;
  c.log_ulp = 3;
  c.tanh_ulp = 5;
  c.division_roundings = 5;
  c.exp_floor = 0x1p-125;  // e^-87; weights below it are 0
  c.ordered = true;
  c.tile = kernels::device_tile_keys;
  c.row_tile = kernels::device_tile_rows;
  return c;
}

ProductContract device_product_contract(const std::string& device) {
  ProductContract c;
  c.name = "OpenCL, fp32 sums by group in order, " + device;
  c.order = ProductOrder::groups_in_order;
  return c;
}

ProductContract host_product_contract(const std::string& target) {
  ProductContract c;
  c.name = "host, fp32 sums by group in order, " + target;
  c.order = ProductOrder::groups_in_order;
  c.products_rounded = lacks_fma(target);
  return c;
}

ProductContract host_product_contract(const Product& p, const kernels::Target& target) {
  ProductContract c = host_product_contract(target.name());
  if (!p.a || !kernels::multiplies_with_amx(target, p.a.dtype)) return c;
  c.name = "host, matrix products of bf16 that flush, sums by group, " + target.name();
  c.order = ProductOrder::groups;
  c.floor = c.operand_floor = 0x1p-126;
  return c;
}

}  // namespace assay
