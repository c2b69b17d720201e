#include "judge/arithmetic.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <sstream>
#include <variant>
#include <vector>

#include "harness/candidates/library_arithmetic.h"
#include "judge/answers.h"
#include "harness/records/safetensors.h"

namespace assay::judging {
namespace {

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
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stopped != end)
    throw Refused(fmt::format("options.arithmetic: '{}' has no {}", shown(word.c_str()),
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
    throw Refused(fmt::format("options.arithmetic: '{}' is no FIELD=NUMBER; the fields are {}",
                              shown(word.c_str()), fmt::join(names, ", ")));
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
  if (!wrong.empty()) throw Refused("options.arithmetic: " + wrong);
  return c;
}

}  // namespace

Contract declared_contract(const std::string& text, Dtype dtype) {
  if (text.find('=') != std::string::npos) return contract_of_fields(text);
  std::vector<Contract> ladder = contract_ladder(dtype, 64);
  const auto rung = std::ranges::find(ladder, text, &Contract::name);
  if (rung != ladder.end()) return *rung;
  std::vector<std::string> names;
  for (const Contract& c : ladder) names.push_back(c.name);
  throw Refused(fmt::format("options.arithmetic is '{}', which is none for {}: {}",
                            shown(text.c_str()), format(dtype).name, fmt::join(names, "; ")));
}

}  // namespace assay::judging
