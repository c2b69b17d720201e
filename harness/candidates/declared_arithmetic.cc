#include "harness/candidates/declared_arithmetic.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <variant>
#include <vector>

#include "harness/text.h"
#include "problem/read_number.h"

namespace assay {
namespace {

std::optional<Dtype> dtype_of_bits(int bits, std::string& wrong) {
  if (bits == 16) return Dtype::f16;
  if (bits == -16) return Dtype::bf16;
  if (bits != 0) wrong = fmt::format("{} bits", bits);
  return std::nullopt;
}

struct Field {
  const char* name;
  std::variant<double assay_arithmetic::*, std::int32_t assay_arithmetic::*,
               std::int64_t assay_arithmetic::*>
      member;
};

constexpr Field fields[] = {
    {"dot_roundoff", &assay_arithmetic::dot_roundoff},
    {"largest", &assay_arithmetic::largest},
    {"roundoff", &assay_arithmetic::roundoff},
    {"exp_ulp", &assay_arithmetic::exp_ulp},
    {"log_ulp", &assay_arithmetic::log_ulp},
    {"tanh_ulp", &assay_arithmetic::tanh_ulp},
    {"exp_ulp_per_unit", &assay_arithmetic::exp_ulp_per_unit},
    {"exp_floor", &assay_arithmetic::exp_floor},
    {"scale_error", &assay_arithmetic::scale_error},
    {"argument_roundings", &assay_arithmetic::argument_roundings},
    {"dot_block", &assay_arithmetic::dot_block},
    {"products_rounded", &assay_arithmetic::products_rounded},
    {"fused_argument", &assay_arithmetic::fused_argument},
    {"weight_bits", &assay_arithmetic::weight_bits},
    {"score_bits", &assay_arithmetic::score_bits},
    {"sum_from_rounded", &assay_arithmetic::sum_from_rounded},
    {"division_roundings", &assay_arithmetic::division_roundings},
    {"ordered", &assay_arithmetic::ordered},
    {"tile", &assay_arithmetic::tile},
    {"row_tile", &assay_arithmetic::row_tile},
};

// Bytes of the fields, which are all that the struct has behind its version and size.
constexpr std::size_t bytes_of_fields() {
  std::size_t bytes = 0;
  for (const Field& f : fields)
    bytes += std::visit([]<class Number>(Number assay_arithmetic::*) { return sizeof(Number); },
                        f.member);
  return bytes;
}
static_assert(bytes_of_fields() + 2 * sizeof(std::uint32_t) == sizeof(assay_arithmetic));

template <class Number>
Number number_of(const std::string& word, const std::string& text) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = read_number(text.data(), end, value);
  if (error != std::errc{} || stopped != end)
    throw std::invalid_argument(
        fmt::format("arithmetic: '{}' has no {}", visible(word),
                    std::is_floating_point_v<Number> ? "number" : "whole number"));
  return value;
}

void set(assay_arithmetic& a, const std::string& word) {
  const std::size_t equals = word.find('=');
  const std::string name = word.substr(0, equals);
  const auto* const field = std::ranges::find(fields, name, &Field::name);
  if (field == std::end(fields) || equals == std::string::npos) {
    std::vector<std::string> names;
    for (const Field& f : fields) names.emplace_back(f.name);
    throw std::invalid_argument(
        fmt::format("arithmetic: '{}' is no FIELD=NUMBER; the fields are {}", visible(word),
                    fmt::join(names, ", ")));
  }
  std::visit(
      [&]<class Number>(Number assay_arithmetic::* member) {
        a.*member = number_of<Number>(word, word.substr(equals + 1));
      },
      field->member);
}

Contract contract_of_fields(const std::string& text) {
  assay_arithmetic a;
  assay_arithmetic_init(&a);
  std::istringstream words(text);
  for (std::string word; words >> word;) set(a, word);
  std::string wrong;
  const Contract c = contract_of(fmt::format("declared: {}", text), a, wrong);
  if (!wrong.empty()) throw std::invalid_argument("arithmetic: " + wrong);
  return c;
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

Contract declared_contract(const std::string& text, Dtype dtype) {
  if (text.find_first_not_of(' ') == std::string::npos)
    throw std::invalid_argument("arithmetic is empty");
  if (text.find('=') != std::string::npos) return contract_of_fields(text);
  std::vector<Contract> ladder = contract_ladder(dtype, 64);
  const auto rung = std::ranges::find(ladder, text, &Contract::name);
  if (rung != ladder.end()) return *rung;
  std::vector<std::string> names;
  for (const Contract& c : ladder) names.push_back(c.name);
  throw std::invalid_argument(fmt::format("arithmetic is '{}', which is none for {}: {}",
                                          visible(text), format(dtype).name,
                                          fmt::join(names, "; ")));
}

}  // namespace assay
