#include "harness/results/told_arithmetic.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <string_view>

namespace assay {
namespace {

// "2^-24" for a power of two, and otherwise the number.
std::string number(double x) {
  int exponent = 0;
  const bool is_power = x > 0 && std::isfinite(x) && std::frexp(x, &exponent) == 0.5;
  const bool is_plain = x >= 0.5 && x <= 1024;
  return is_power && !is_plain ? fmt::format("2^{}", exponent - 1) : fmt::format("{:.6g}", x);
}

std::string_view name_or(const std::optional<Dtype>& dtype, std::string_view otherwise) {
  return dtype ? format(*dtype).name : otherwise;
}

std::string_view told_order(ProductOrder order) {
  switch (order) {
    case ProductOrder::groups_in_order: return "each group in order, then the groups in order";
    case ProductOrder::groups: return "each group, then the groups, in any order";
    case ProductOrder::any: return "in any order";
  }
  return "";
}

// The step of a sum.
std::string told_step(double roundoff, int block, bool products_rounded) {
  if (block > 0)
    return fmt::format("{} products are aligned and added at once, each such step errs by {}",
                       block, number(roundoff));
  return fmt::format("each step rounds by {}, products {}", number(roundoff),
                     products_rounded ? "are rounded first" : "are not rounded (FMA)");
}

std::string told_splits(const Contract& c) {
  if (c.split_keys > 0) return fmt::format("splits of {} keys", c.split_keys);
  return c.splits > 1 ? fmt::format("{} splits", c.splits) : std::string("no splits of keys");
}

std::string brief(const Contract& c) {
  std::vector<std::string> parts = {
      fmt::format("sums {}{}{}", number(c.dot_roundoff), c.ordered ? " in order" : "",
                  c.dot_block > 0 ? fmt::format(" by {}", c.dot_block) : ""),
      fmt::format(
          "exp {}{} ulp", number(c.exp_ulp),
          c.exp_ulp_per_unit > 0 ? fmt::format(" + {}|x|", number(c.exp_ulp_per_unit)) : "")};
  if (c.roundoff != 0x1p-24) parts.push_back(fmt::format("softmax {}", number(c.roundoff)));
  if (c.score_dtype) parts.push_back(fmt::format("scores {}", format(*c.score_dtype).name));
  if (c.weight_dtype) parts.push_back(fmt::format("weights {}", format(*c.weight_dtype).name));
  parts.push_back(fmt::format("tile {}", c.tile));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string brief(const ProductContract& c) {
  return fmt::format(
      "sums {}{}{}", number(c.roundoff),
      c.order == ProductOrder::groups_in_order ? " by group in order"
      : c.order == ProductOrder::groups        ? " by group"
                                               : " in any order",
      c.weight_dtype ? fmt::format(", weights {}", format(*c.weight_dtype).name) : "");
}

std::string read_as_0(double floor) {
  return fmt::format("numbers below {} are read as 0", number(floor));
}

std::vector<std::string> listed(const Contract& c) {
  std::vector<std::string> lines = {
      fmt::format(
          "sums of Q K^T and P V: {}; {}; largest number {}; a product that underflows errs "
          "by {}",
          told_step(c.dot_roundoff, c.dot_block, c.products_rounded),
          c.ordered ? "in order, the row sum tile by tile" : "in any order", number(c.largest),
          number(c.product_floor)),
      fmt::format("softmax: each step rounds by {}; exp {} ulp + {} ulp per unit, {} where it "
                  "underflows; log {} ulp, tanh {} ulp",
                  number(c.roundoff), number(c.exp_ulp), number(c.exp_ulp_per_unit),
                  number(c.exp_floor), number(c.log_ulp), number(c.tanh_ulp)),
      fmt::format("argument of exp: {} roundings{}; a folded constant errs by {}",
                  number(c.argument_roundings), c.fused_argument ? ", fused" : "",
                  number(c.scale_error)),
      fmt::format("stored: queries {}, scores {}, weights {}; the row sum adds weights {}; {}, {} "
                  "roundings",
                  name_or(c.query_dtype, "as given"), name_or(c.score_dtype, "unrounded"),
                  name_or(c.weight_dtype, "unrounded"),
                  c.sum_from_rounded ? "as stored" : "unrounded",
                  c.weights_from_lse ? "weights are e^(s - LSE)"
                  : c.divides_first  ? "weights are divided before P V"
                                     : "O is divided at the end",
                  c.division_roundings),
      fmt::format("tiles: {} keys, {} rows; {}", c.tile, c.row_tile, told_splits(c))};
  if (c.score_dtype && c.stores_score_parts)
    lines.emplace_back("q.k is stored like scores, and so is its product with the scale");
  if (c.operand_floor > 0) lines.push_back(read_as_0(c.operand_floor));
  if (c.absorbed) lines.emplace_back("Q is multiplied by the projection of the cache first");
  if (c.backward_tile > 0 || c.backward_row_tile > 0 || c.backward_split > 0)
    lines.push_back(fmt::format("gradients: tiles of {} rows and {} keys, splits of {} keys",
                                c.backward_row_tile, c.backward_tile, c.backward_split));
  if (c.score_gradients_late)
    lines.emplace_back(
        "gradients: dS comes from rounded weights, and is scaled before it is "
        "rounded");
  if (c.dp_dtype)
    lines.push_back(fmt::format("dP and dS are stored in {}, and D is the sum of P dP",
                                format(*c.dp_dtype).name));
  if (c.head_gradient_dtype)
    lines.push_back(
        fmt::format("gradients of heads are stored in {}", format(*c.head_gradient_dtype).name));
  return lines;
}

std::vector<std::string> listed(const ProductContract& c) {
  std::string line =
      fmt::format("sums: {}; {}; largest number {}; a step that underflows errs by {}",
                  told_step(c.roundoff, c.block, c.products_rounded), told_order(c.order),
                  number(c.largest), number(c.floor));
  std::vector<std::string> lines = {
      std::move(line),
      fmt::format("weights: {}{}", name_or(c.weight_dtype, "unrounded"),
                  c.scales_weights ? ", each multiplied by the tensor scale" : "")};
  if (c.operand_floor > 0) lines.push_back(read_as_0(c.operand_floor));
  return lines;
}

}  // namespace

std::string told_contract(const Verdict& v) {
  if (!v.arithmetic) return v.contract;
  const std::string numbers = std::visit([](const auto& c) { return brief(c); }, *v.arithmetic);
  return fmt::format("{} ({})", v.contract, numbers);
}

std::vector<std::string> listed_arithmetic(const Arithmetic& arithmetic) {
  return std::visit([](const auto& c) { return listed(c); }, arithmetic);
}

}  // namespace assay
