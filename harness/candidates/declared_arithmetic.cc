#include "harness/candidates/declared_arithmetic.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <stdexcept>
#include <variant>
#include <vector>

#include "harness/text.h"
#include "oracle/product.h"
#include "problem/read_number.h"

namespace assay {
namespace {

std::optional<Dtype> dtype_of_bits(int bits, std::string& wrong) {
  if (bits == 16) return Dtype::f16;
  if (bits == -16) return Dtype::bf16;
  if (bits != 0) wrong = fmt::format("{} bits: a dtype is 0 (none), 16 (f16) or -16 (bf16)", bits);
  return std::nullopt;
}

// The orders of products by their number in kernel.h.
constexpr std::array c_orders = {ProductOrder::any, ProductOrder::groups,
                                 ProductOrder::groups_in_order};
static_assert(ASSAY_SUMS_IN_ANY_ORDER == 0 && ASSAY_SUMS_BY_GROUP == 1 &&
              ASSAY_SUMS_BY_GROUP_IN_ORDER == 2);

template <class Declared>
struct Field {
  const char* name;
  std::variant<double Declared::*, std::int32_t Declared::*, std::int64_t Declared::*> member;
};

constexpr Field<assay_arithmetic> attention_fields[] = {
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

// `reserved` has no name, because it says nothing.
constexpr Field<assay_product_arithmetic> product_fields[] = {
    {"roundoff", &assay_product_arithmetic::roundoff},
    {"largest", &assay_product_arithmetic::largest},
    {"order", &assay_product_arithmetic::order},
    {"block", &assay_product_arithmetic::block},
    {"products_rounded", &assay_product_arithmetic::products_rounded},
    {"scales_weights", &assay_product_arithmetic::scales_weights},
    {"weight_bits", &assay_product_arithmetic::weight_bits},
};

// Bytes of fields, which are all that a struct has behind its version and size, but for those that
// are reserved.
template <class Declared, std::size_t n>
constexpr std::size_t bytes_of(const Field<Declared> (&fields)[n]) {
  std::size_t bytes = 0;
  for (const auto& f : fields)
    bytes += std::visit([]<class Number>(Number Declared::*) { return sizeof(Number); }, f.member);
  return bytes;
}
constexpr std::size_t head_bytes = 2 * sizeof(std::uint32_t);
static_assert(bytes_of(attention_fields) + head_bytes == sizeof(assay_arithmetic));
static_assert(bytes_of(product_fields) + sizeof(assay_product_arithmetic::reserved) + head_bytes ==
              sizeof(assay_product_arithmetic));

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

template <class Declared, std::size_t n>
void set(Declared& a, const Field<Declared> (&fields)[n], const std::string& word) {
  const std::size_t equals = word.find('=');
  const std::string name = word.substr(0, equals);
  const auto* const field = std::ranges::find(fields, name, &Field<Declared>::name);
  if (field == std::end(fields) || equals == std::string::npos) {
    std::vector<std::string> names;
    for (const auto& f : fields) names.emplace_back(f.name);
    throw std::invalid_argument(
        fmt::format("arithmetic: '{}' is no FIELD=NUMBER; the fields are {}", visible(word),
                    fmt::join(names, ", ")));
  }
  std::visit(
      [&]<class Number>(Number Declared::* member) {
        a.*member = number_of<Number>(word, word.substr(equals + 1));
      },
      field->member);
}

// The contract of fields in `text`; those that it does not name are those of `a`.
template <class Declared, std::size_t n>
auto contract_of_fields(const std::string& text, Declared a, const Field<Declared> (&fields)[n]) {
  std::istringstream words(text);
  for (std::string word; words >> word;) set(a, fields, word);
  std::string wrong;
  auto c = contract_of(fmt::format("declared: {}", text), a, wrong);
  if (!wrong.empty()) throw std::invalid_argument("arithmetic: " + wrong);
  return c;
}

// The rung of a ladder with this name.
template <class AnyContract>
AnyContract rung_named(const std::string& text, Dtype dtype,
                       const std::vector<AnyContract>& ladder) {
  const auto rung = std::ranges::find(ladder, text, &AnyContract::name);
  if (rung != ladder.end()) return *rung;
  std::vector<std::string> names;
  for (const AnyContract& c : ladder) names.push_back(c.name);
  throw std::invalid_argument(fmt::format("arithmetic is '{}', which is none for {}: {}",
                                          visible(text), format(dtype).name,
                                          fmt::join(names, "; ")));
}

// Every rung that products with an A in this dtype can have; those with a low-bit A are the ones of
// f32.
std::vector<ProductContract> every_rung_of_products(Dtype dtype) {
  Product p;
  static constexpr std::byte nothing{};  // a matrix without codes is none
  if (dtype == Dtype::f32) {
    p.a_low.format = p.w.format = LowBit::f8e4m3;
    p.a_low.codes = &nothing;
  } else {
    p.a.dtype = dtype;
  }
  p.w.tensor_scale = 2;
  return product_ladder(p);
}

bool names_fields(const std::string& text) {
  if (text.find_first_not_of(' ') == std::string::npos)
    throw std::invalid_argument("arithmetic is empty");
  return text.find('=') != std::string::npos;
}

// Notes the first value that is outside its limits.
class Limits {
 public:
  explicit Limits(std::string& wrong) : wrong_(wrong) {}
  double operator()(const char* what, double value, double low, double high) const {
    if (!(value >= low && value <= high) && wrong_.empty())
      wrong_ = fmt::format("{} = {:g} is outside [{:g}, {:g}]", what, value, low, high);
    return value;
  }

 private:
  std::string& wrong_;
};

}  // namespace

Contract contract_of(const std::string& name, const assay_arithmetic& a, std::string& wrong) {
  Contract c;
  c.name = name;
  const Limits in(wrong);
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

ProductContract contract_of(const std::string& name, const assay_product_arithmetic& a,
                            std::string& wrong) {
  ProductContract c;
  c.name = name;
  const Limits in(wrong);
  c.roundoff = in("roundoff", a.roundoff, 0x1p-53, 0.25);
  c.largest = in("largest", a.largest, 1, 0x1.fffffep127);
  if (c.roundoff >= 0x1p-11 && c.largest <= 65504)
    c.floor = 0x1p-24;  // sums in f16 underflow at the subnormals of f16
  const double order = in("order", a.order, 0, c_orders.size() - 1);
  if (wrong.empty()) c.order = c_orders[static_cast<std::size_t>(order)];
  c.block = static_cast<int>(in("block", a.block, 0, 4096));
  // The products of a block are exact until they are aligned.
  c.products_rounded = in("products_rounded", a.products_rounded, 0, 1) != 0 && c.block == 0;
  c.scales_weights = in("scales_weights", a.scales_weights, 0, 1) != 0;
  c.weight_dtype = dtype_of_bits(a.weight_bits, wrong);
  in("reserved", a.reserved, 0, 0);
  if (c.scales_weights && c.weight_dtype && wrong.empty())
    wrong = fmt::format(
        "weight_bits = {} goes with no scales_weights = 1: it rounds weights before their tensor "
        "scale",
        a.weight_bits);
  // The bounds of groups hold neither of them.
  if (c.order != ProductOrder::any && wrong.empty() &&
      (c.block > 0 || c.scales_weights || c.weight_dtype))
    wrong = fmt::format(
        "order = {} goes with neither block, scales_weights nor weight_bits: they need sums in any "
        "order (0)",
        a.order);
  return c;
}

Contract declared_contract(const std::string& text, Dtype dtype) {
  if (!names_fields(text)) return rung_named(text, dtype, contract_ladder(dtype, 64));
  assay_arithmetic a;
  assay_arithmetic_init(&a);
  return contract_of_fields(text, a, attention_fields);
}

ProductContract declared_product_contract(const std::string& text, Dtype dtype) {
  if (!names_fields(text)) return rung_named(text, dtype, every_rung_of_products(dtype));
  assay_product_arithmetic a;
  assay_product_arithmetic_init(&a);
  return contract_of_fields(text, a, product_fields);
}

}  // namespace assay
