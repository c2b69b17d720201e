#include "harness/candidates/library_arithmetic.h"

#include <fmt/format.h>

namespace assay {
namespace {

std::optional<Dtype> dtype_of_bits(int bits, std::string& wrong) {
  if (bits == 16) return Dtype::f16;
  if (bits == -16) return Dtype::bf16;
  if (bits != 0) wrong = fmt::format("{} bits", bits);
  return std::nullopt;
}

}  // namespace

Contract contract_of(const std::string& name, const assay_arithmetic& a, std::string& wrong) {
  Contract c;
  c.name = name;
  const auto in = [&](const char* what, double value, double low, double high) {
    if (!(value >= low && value <= high) && wrong.empty())
      wrong = fmt::format("{} = {:g} is outside [{:g}, {:g}]", what, value, low, high);
    return value;
  };
  c.dot_roundoff = in("dot_roundoff", a.dot_roundoff, 0x1p-53, 0.25);
  c.roundoff = in("roundoff", a.roundoff, 0x1p-53, 0.25);
  c.largest = in("largest", a.largest, 1, 0x1.fffffep127);
  if (c.dot_roundoff >= 0x1p-11 && c.largest <= 65504)
    c.product_floor = 0x1p-25;  // sums in f16 underflow at the subnormals of f16
  c.exp_ulp = in("exp_ulp", a.exp_ulp, 0.5, 1e6);
  c.log_ulp = in("log_ulp", a.log_ulp, 0.5, 1e6);
  c.tanh_ulp = in("tanh_ulp", a.tanh_ulp, 0.5, 1e6);
  c.exp_ulp_per_unit = in("exp_ulp_per_unit", a.exp_ulp_per_unit, 0, 1e6);
  c.exp_floor = in("exp_floor", a.exp_floor, 0, 1);
  c.scale_error = in("scale_error", a.scale_error, 0, 0.25);
  c.argument_roundings = in("argument_roundings", a.argument_roundings, 0, 16);
  c.dot_block = static_cast<int>(in("dot_block", a.dot_block, 0, 4096));
  c.division_roundings = static_cast<int>(in("division_roundings", a.division_roundings, 1, 64));
  c.tile = static_cast<Index>(in("tile", static_cast<double>(a.tile), 1, 1 << 20));
  c.row_tile = static_cast<Index>(in("row_tile", static_cast<double>(a.row_tile), 1, 1 << 20));
  c.products_rounded = in("products_rounded", a.products_rounded, 0, 1) != 0;
  c.fused_argument = in("fused_argument", a.fused_argument, 0, 1) != 0;
  c.sum_from_rounded = in("sum_from_rounded", a.sum_from_rounded, 0, 1) != 0;
  c.ordered = in("ordered", a.ordered, 0, 1) != 0;
  c.weight_dtype = dtype_of_bits(a.weight_bits, wrong);
  c.score_dtype = dtype_of_bits(a.score_bits, wrong);
  return c;
}

}  // namespace assay
