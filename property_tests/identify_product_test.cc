// What identify() says of emulated products, whose arithmetic is known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "harness/candidates/named_candidate.h"
#include "harness/identify/identify.h"
#include "testing/low_bit_parts.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

enum class Scaling { weights, groups, end };

struct ProductArithmetic {
  std::string name;
  int bits = 24;
  bool nearest = true, fused = true, pairs = false;
  Index block = 0;  // products that are aligned and truncated to `block_bits` at once
  int block_bits = 0;
  Scaling scale = Scaling::weights, tensor_scale = Scaling::end;
  std::optional<Dtype> weights = {};
};

struct Term {
  double a, w;
};

double kept(double x, int bits, bool nearest, int exponent) {
  const double scaled = std::ldexp(x, bits - 1 - exponent);
  return std::ldexp(nearest ? std::nearbyint(scaled) : std::trunc(scaled), exponent + 1 - bits);
}
double rounded(const ProductArithmetic& e, double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double r = kept(x, e.bits, e.nearest, std::ilogb(x));
  const double largest = e.bits == 11 ? 65504 : 0x1.fffffep127;
  return std::fabs(r) > largest ? std::copysign(INFINITY, r) : r;
}

double sum_in_pairs(const ProductArithmetic& e, std::vector<double> x) {
  for (; x.size() > 1; x.resize((x.size() + 1) / 2))
    for (std::size_t n = 0; n < x.size(); n += 2)
      x[n / 2] = n + 1 < x.size() ? rounded(e, x[n] + x[n + 1]) : x[n];
  return x.empty() ? 0 : x[0];
}

double sum_in_blocks(const ProductArithmetic& e, const std::vector<Term>& terms) {
  double total = 0;
  for (std::size_t begin = 0; begin < terms.size(); begin += usize(e.block)) {
    std::vector<double> parts{total};
    for (std::size_t k = begin; k < std::min(begin + usize(e.block), terms.size()); ++k)
      parts.push_back(terms[k].a * terms[k].w);
    double largest = 0, sum = 0;
    for (const double x : parts) largest = std::max(largest, std::fabs(x));
    if (!std::isfinite(largest)) return largest;
    if (largest == 0) continue;
    for (const double x : parts) sum += kept(x, e.block_bits, false, std::ilogb(largest));
    total = rounded(e, sum);
  }
  return total;
}

double sum_of(const ProductArithmetic& e, const std::vector<Term>& terms) {
  if (e.block > 0) return sum_in_blocks(e, terms);
  std::vector<double> products;
  for (const Term& t : terms) products.push_back(rounded(e, t.a * t.w));
  if (e.pairs) return sum_in_pairs(e, products);
  double total = 0;
  for (std::size_t k = 0; k < terms.size(); ++k)
    total = rounded(e, total + (e.fused ? terms[k].a * terms[k].w : products[k]));
  return total;
}

double element(const ProductArithmetic& e, const Product& p, const LowBitParts& parts,
               const std::vector<double>& a, Index m, Index n) {
  const double tensor = static_cast<double>(p.w.tensor_scale);
  std::vector<std::vector<Term>> sums(1);
  std::vector<double> scales{1};
  for (Index k = 0; k < p.k; ++k) {
    const Index t = k / parts.group;
    const double scale = parts.scale[usize(t * p.n + n)], code = parts.code[usize(k * p.n + n)];
    if (e.scale == Scaling::groups && k > 0 && k % parts.group == 0)
      sums.emplace_back(), scales.push_back(1);
    double w = code;
    if (e.scale == Scaling::weights) w *= scale;
    else scales.back() = scale * (e.tensor_scale == Scaling::groups ? tensor : 1);
    if (e.tensor_scale == Scaling::weights) w *= tensor;
    if (e.weights) w = round_to(*e.weights, w);
    sums.back().push_back({a[usize(m * p.k + k)], w});
  }
  double total = 0;
  if (e.scale == Scaling::weights) total = sum_of(e, sums[0]);
  else
    for (std::size_t t = 0; t < sums.size(); ++t)
      total = rounded(e, total + rounded(e, sum_of(e, sums[t]) * scales[t]));
  return e.tensor_scale == Scaling::end ? rounded(e, total * tensor) : total;
}

class EmulatedProduct : public Candidate {
 public:
  explicit EmulatedProduct(ProductArithmetic e)
      : Candidate({.name = e.name, .abilities = {.forward = false, .product = true}}),
        e_(std::move(e)) {}
  std::string unsupported(const Call&) const override { return {}; }
  std::optional<Arithmetic> arithmetic(const Call&, const kernels::Execution&) const override {
    return std::nullopt;
  }
  kernels::Status run(const Request& request) override {
    const auto& [p, c] = std::get<ProductCall>(request.call);
    const LowBitParts parts = parts_of(p.w);
    const std::vector<double> a = decode_activations(p);
    for (Index m = 0; m < p.m; ++m)
      for (Index n = 0; n < p.n; ++n)
        store(c, c.at(0, 0, m, n), round_to(c.dtype, m == n ? element(e_, p, parts, a, m, n) : 0));
    return {};
  }

 private:
  ProductArithmetic e_;
};

std::map<std::string, std::string> told_of(const ProductArithmetic& e, const std::string& line) {
  EmulatedProduct candidate(e);
  const Identification told = identify(candidate, parse_case("product " + line));
  EXPECT_EQ(told.outcome, Asking::told) << told.reason;
  std::map<std::string, std::string> answers;
  for (const Statement& s : told.statements) {
    EXPECT_FALSE(s.input.empty()) << s.subject;
    answers[s.subject] = s.answer;
  }
  return answers;
}

constexpr const char* before = "multiplied in before the sum";
constexpr const char* into_groups = "multiplied into the sum of each group";
constexpr const char* binary32 = "24 bits, rounded to nearest (binary32)";

TEST(IdentifyProduct, TellsOrderAndBitsOfSums) {
  for (const char* line :
       {"dtype=f32 w=int8", "dtype=bf16 w=int4:64", "dtype=f16 w=nvfp4", "dtype=f16 w=fp4-sparse",
        "dtype=bf16 w=mxfp4", "dtype=f32 w=f8e4m3:0", "dtype=bf16 out=f32 w=f8e5m2 a=f8e4m3"}) {
    SCOPED_TRACE(line);
    auto told = told_of({.name = "in order"}, line);
    EXPECT_EQ(told["A W, order of sums"], "one term after another");
    EXPECT_EQ(told["A W, sums"], binary32);
    told = told_of({.name = "truncating", .nearest = false}, line);
    EXPECT_EQ(told["A W, sums"], "24 bits, truncated");
    told = told_of({.name = "pairs", .pairs = true}, line);
    EXPECT_EQ(told["A W, order of sums"], "in pairs, neighbours first");
    EXPECT_EQ(told["A W, sums"], binary32);
    told = told_of({.name = "binary16", .bits = 11}, line);
    EXPECT_EQ(told["A W, sums"], "11 bits, rounded to nearest (binary16)");
  }
}

TEST(IdentifyProduct, TellsMatrixInstructions) {
  auto told = told_of({.name = "Hopper", .nearest = false, .block = 16, .block_bits = 26},
                      "dtype=f16 w=int4");
  EXPECT_EQ(told["A W, order of sums"], "16 terms at once, one block after another");
  EXPECT_EQ(told["A W, inside 16 terms"], "26 bits, truncated");
  EXPECT_EQ(told["A W, sums"], "24 bits, truncated");
  EXPECT_EQ(told["scale"], before);
  told = told_of({.name = "FP8", .bits = 14, .nearest = false, .block = 32, .block_bits = 14},
                 "dtype=bf16 out=f32 w=f8e4m3:0 a=f8e4m3");
  EXPECT_EQ(told["A W, order of sums"], "32 terms at once, one block after another");
  EXPECT_EQ(told["A W, inside 32 terms"], "14 bits, truncated");
}

TEST(IdentifyProduct, TellsWhereScalesComeIn) {
  for (const char* line : {"dtype=f32 w=int8", "dtype=f16 w=int4:64", "dtype=f16 w=fp4",
                           "dtype=bf16 w=nvfp4", "dtype=f32 w=mxfp4", "dtype=bf16 w=f8e4m3"})
    for (const bool pairs : {true, false}) {
      SCOPED_TRACE(std::string(line) + (pairs ? " pairs" : ""));
      ProductArithmetic e{.name = "e", .pairs = pairs};
      EXPECT_EQ(told_of(e, line)["scale"], before);
      e.scale = Scaling::groups;
      EXPECT_EQ(told_of(e, line)["scale"], into_groups);
    }
  auto told = told_of({.name = "groups", .scale = Scaling::groups}, "dtype=f16 w=int4:64");
  EXPECT_EQ(told["A W, order of sums"],
            "tiles of 64 terms, each summed by itself, one term after another");
  ProductArithmetic matrix{.name = "m", .nearest = false, .block = 16, .block_bits = 26};
  for (const char* line : {"dtype=f16 w=int4:64", "dtype=bf16 w=nvfp4", "dtype=f32 w=int8"})
    for (const auto& [scale, words] :
         {std::pair(Scaling::weights, before), std::pair(Scaling::groups, into_groups)}) {
      SCOPED_TRACE(line);
      matrix.scale = scale;
      EXPECT_EQ(told_of(matrix, line)["scale"], words);
    }
}

TEST(IdentifyProduct, TellsWhereTheTensorScaleComesIn) {
  for (const char* line : {"dtype=f16 w=nvfp4", "dtype=bf16 w=nvfp4", "dtype=f32 w=nvfp4"}) {
    SCOPED_TRACE(line);
    ProductArithmetic e{.name = "e"};
    EXPECT_EQ(told_of(e, line)["tensor scale"], "multiplied into the finished sum");
    e.tensor_scale = Scaling::weights;
    EXPECT_EQ(told_of(e, line)["tensor scale"], before);
    e.scale = Scaling::groups;
    e.tensor_scale = Scaling::groups;
    EXPECT_EQ(told_of(e, line)["tensor scale"], into_groups);
    e.tensor_scale = Scaling::end;
    EXPECT_EQ(told_of(e, line)["tensor scale"], "multiplied into the finished sum");
  }
}

TEST(IdentifyProduct, TellsWhatIsRounded) {
  for (const char* line : {"dtype=f32 w=int8", "dtype=f16 w=int4", "dtype=bf16 w=fp4:32"}) {
    SCOPED_TRACE(line);
    EXPECT_EQ(told_of({.name = "e"}, line)["weights"], "not rounded");
    EXPECT_EQ(told_of({.name = "e", .weights = Dtype::f16}, line)["weights"], "rounded to f16");
    EXPECT_EQ(told_of({.name = "e", .weights = Dtype::bf16}, line)["weights"], "rounded to bf16");
  }
  constexpr const char* separate = "rounded before they are added";
  constexpr const char* fused = "not rounded before they are added";
  for (const char* line : {"dtype=f32 w=int8", "dtype=f32 w=mxfp4"}) {
    EXPECT_EQ(told_of({.name = "e"}, line)["products"], fused);
    EXPECT_EQ(told_of({.name = "e", .fused = false}, line)["products"], separate);
    EXPECT_EQ(told_of({.name = "e", .pairs = true}, line)["products"], separate);
    EXPECT_EQ(told_of({.name = "e", .nearest = false, .fused = false}, line)["products"], separate);
  }
  EXPECT_EQ(told_of({.name = "e", .bits = 11}, "dtype=f16 w=int4")["products"], fused);
  EXPECT_EQ(told_of({.name = "e", .bits = 11, .fused = false}, "dtype=f16 w=int4")["products"],
            separate);
  EXPECT_EQ(told_of({.name = "e"}, "dtype=f16 w=int4").count("products"), 0u);
}

// The host declares groups in order with FMA, and the tensor scale at the end.
TEST(IdentifyProduct, TellsTheHost) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  std::map<std::string, std::string> told;
  for (const Statement& s : identify(*host, parse_case("product dtype=f32 w=nvfp4")).statements)
    told[s.subject] = s.answer;
  EXPECT_EQ(told["A W, order of sums"],
            "tiles of 16 terms, each summed by itself, one term after another");
  EXPECT_EQ(told["A W, sums"], binary32);
  EXPECT_EQ(told["products"], "not rounded before they are added");
  EXPECT_EQ(told["scale"], into_groups);
  EXPECT_EQ(told["tensor scale"], "multiplied into the finished sum");
}

TEST(IdentifyProduct, WhatCannotBeToldIsRefusedOrSaid) {
  EmulatedProduct candidate({.name = "e"});
  const auto refused = [&](const char* line) {
    try {
      (void)identify(candidate, parse_case(line));
    } catch (const std::invalid_argument& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  EXPECT_THAT(refused("product w=mxfp4 a=mxfp4"), HasSubstr("a=mxfp4 w=mxfp4: codes of so few"));
  EXPECT_THAT(refused("product w=int8 values=ramp"), HasSubstr("inputs and shapes are chosen"));
  EXPECT_THAT(refused("backward dtype=f16 causal"), HasSubstr("the operation and the dtype"));
  const Identification fp8 = identify(candidate, parse_case("product w=f8e4m3 a=f8e4m3"));
  EXPECT_THAT(fp8.not_told, testing::Contains(StartsWith("scale: it is a power of two")));
  NamedCandidate none({.name = "none", .features = Features({"attention", "dtype=f16"})},
                      [](const NamedCall&) {});
  EXPECT_EQ(identify(none, parse_case("product w=int8")).outcome, Asking::unsupported);
}

}  // namespace
}  // namespace assay
