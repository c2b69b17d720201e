// Tries the bound of low-bit products on emulated kernels of every declared arithmetic: none of
// them ever leaves the bound, but some leave a quarter of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>

#include "harness/judging/outputs.h"
#include "oracle/product.h"
#include "problem/generate.h"
#include "testing/low_bit_parts.h"
#include "testing/matchers.h"

namespace assay {
namespace {

// One rounding of a real number, which is given as a double or as an exact sum of doubles.
float truncated(double x) {
  float f = static_cast<float>(x);
  if (std::fabs(static_cast<double>(f)) > std::fabs(x)) f = std::nextafter(f, 0.0f);
  return f;
}
float in_f16(double x) { return static_cast<float>(round_to(Dtype::f16, x)); }

// All that an emulated kernel of one element reads.
struct Element {
  const std::vector<double>& a;       // the row
  const std::vector<double>& weight;  // the column
  std::vector<double> code, scale;    // weight = code * scale
  Index group;
};

using Kernel = std::function<double(const Element&, std::mt19937&)>;

struct Emulation {
  ProductContract contract;
  Kernel kernel;
};

// Adds the terms pairwise in a random tree; `round` is the rounding of an addition.
template <class Round>
double random_tree(std::vector<double> terms, std::mt19937& random, const Round& round) {
  if (terms.empty()) return 0;
  std::shuffle(terms.begin(), terms.end(), random);
  while (terms.size() > 1) {
    const std::size_t i = random() % (terms.size() - 1);
    terms[i] = round(terms[i] + terms[i + 1]);
    terms.erase(terms.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
  return terms[0];
}

std::vector<Emulation> emulations() {
  const auto fp32 = [](double x) { return static_cast<double>(static_cast<float>(x)); };
  std::vector<Emulation> list;
  const auto add = [&](const char* name, ProductOrder order, double roundoff, bool rounded,
                       std::optional<Dtype> weights, Kernel kernel) {
    ProductContract c;
    c.name = name;
    c.order = order;
    c.roundoff = roundoff;
    c.products_rounded = rounded;
    c.weight_dtype = weights;
    if (roundoff > 0x1p-20) c.largest = 65504, c.floor = 0x1p-24;
    list.push_back({c, std::move(kernel)});
  };
  const auto in_order = [](bool fused) {
    return [fused](const Element& e, std::mt19937&) {
      float total = 0;
      for (std::size_t t = 0; t < e.scale.size(); ++t) {
        float sum = 0;
        const std::size_t begin = t * usize(e.group),
                          end = std::min(begin + usize(e.group), e.a.size());
        for (std::size_t k = begin; k < end; ++k) {
          const auto a = static_cast<float>(e.a[k]), code = static_cast<float>(e.code[k]);
          sum = fused ? std::fma(a, code, sum) : sum + a * code;
        }
        const auto scale = static_cast<float>(e.scale[t]);
        total = fused ? std::fma(sum, scale, total) : total + sum * scale;
      }
      return static_cast<double>(total);
    };
  };
  add("groups in order, FMA", ProductOrder::groups_in_order, 0x1p-24, false, {}, in_order(true));
  add("groups in order, products rounded", ProductOrder::groups_in_order, 0x1p-24, true, {},
      in_order(false));
  add("groups in trees", ProductOrder::groups, 0x1p-24, true, {},
      [fp32](const Element& e, std::mt19937& random) {
        std::vector<double> groups;
        for (std::size_t t = 0; t < e.scale.size(); ++t) {
          std::vector<double> terms;
          const std::size_t begin = t * usize(e.group),
                            end = std::min(begin + usize(e.group), e.a.size());
          for (std::size_t k = begin; k < end; ++k) terms.push_back(fp32(e.a[k] * e.code[k]));
          groups.push_back(fp32(random_tree(terms, random, fp32) * e.scale[t]));
        }
        return random_tree(groups, random, fp32);
      });
  const auto any = [](const auto& round, const auto& round_weight) {
    return [=](const Element& e, std::mt19937& random) {
      std::vector<double> terms;
      for (std::size_t k = 0; k < e.a.size(); ++k)
        terms.push_back(round(e.a[k] * round_weight(e.weight[k])));
      return random_tree(terms, random, round);
    };
  };
  const auto exactly = [](double x) { return x; };
  const auto bf16 = [](double x) { return round_to(Dtype::bf16, x); };
  add("trees", ProductOrder::any, 0x1p-24, true, {}, any(fp32, exactly));
  add("trees, truncating", ProductOrder::any, 0x1p-23, true, {},
      any([](double x) { return static_cast<double>(truncated(x)); }, exactly));
  add("trees, weights in bf16", ProductOrder::any, 0x1p-24, true, Dtype::bf16, any(fp32, bf16));
  add("trees in fp16", ProductOrder::any, 0x1p-11, true, {},
      any([](double x) { return static_cast<double>(in_f16(x)); }, exactly));
  return list;
}

// The cases of the emulations: every format, group, tail and family of values that fp32 holds.
std::vector<Case> cases() {
  std::vector<Case> list;
  std::uint64_t seed = 1;
  for (const LowBit f : values_of<LowBit>)
    for (Values values :
         {Values::normal, Values::uniform, Values::cancel, Values::heavy_tail, Values::tiny,
          Values::integers, Values::subnormal, Values::biased, Values::ramp})
      for (Index k : {Index{1}, Index{5}, Index{64}, Index{300}}) {
        Case c;
        c.operation = Operation::product;
        c.product.m = 3;
        c.product.n = 6;
        c.product.format = f;
        c.product.k = c.product.format == LowBit::fp4_sparse ? (k + 3) / 4 * 4 : k;
        if (traits(c.product.format).group_free) c.product.group = seed % 2 == 0 ? 8 : 64;
        c.product.weights = seed % 3 == 0 ? Weights::cancel : Weights::codes;
        c.product.scales = seed % 5 == 0 ? ScaleFamily::smallest : ScaleFamily::random;
        c.values = values;
        c.dtype = seed % 4 == 0 ? Dtype::bf16 : Dtype::f32;
        c.seed = seed++;
        check_case(c);
        list.push_back(c);
      }
  return list;
}

struct Tally {
  std::int64_t elements = 0, outside = 0, exact = 0;
  double worst = 0;
};

// Runs an emulation over all cases and judges its outputs by a contract.
Tally run(const Emulation& emulation, const ProductContract& judged_by) {
  Tally total;
  std::mt19937 random(7);
  for (const Case& c : cases()) {
    const ProductInputs in(c);
    const Product& p = in.problem;
    const std::vector<double> a = decode_activations(p), w = decode_weights(p.w);
    const LowBitParts parts = parts_of(p.w);
    const Tensor out(Dtype::f32, {1, 1, p.m, p.n}, {{0, 0, p.n, 1}, 0, p.m * p.n});
    for (Index n = 0; n < p.n; ++n) {
      std::vector<double> column, code, scale;
      for (Index k = 0; k < p.k; ++k) {
        column.push_back(w[usize(k * p.n + n)] / static_cast<double>(p.w.tensor_scale));
        code.push_back(parts.code[usize(k * p.n + n)]);
      }
      for (Index t = 0; t < parts.groups; ++t) scale.push_back(parts.scale[usize(t * p.n + n)]);
      for (Index m = 0; m < p.m; ++m) {
        const std::vector<double> row(a.begin() + m * p.k, a.begin() + (m + 1) * p.k);
        double y = emulation.kernel({row, column, code, scale, parts.group}, random);
        y = static_cast<double>(static_cast<float>(y) * p.w.tensor_scale);
        store(out.view(), m * p.n + n, y);
      }
    }
    const Verdict v = judge_product(p, out.view(), judged_by);
    total.outside += v.outside;
    total.exact += v.exact;
    for (const auto& [output, compared] : v.outputs) {
      total.elements += compared.elements;
      total.worst = std::max(total.worst, compared.worst.ratio);
    }
    if (&judged_by == &emulation.contract) EXPECT_THAT(v, HasNothingOutside()) << print_case(c);
  }
  return total;
}

TEST(ProductBound, NoCorrectKernelIsOutside) {
  for (const Emulation& e : emulations()) {
    const Tally o = run(e, e.contract);
    EXPECT_EQ(o.outside, 0) << e.contract.name;
    EXPECT_GT(o.elements, 5000) << e.contract.name;
    // With rounded weights no element is exact.
    if (!e.contract.weight_dtype) EXPECT_GT(o.exact, 100) << e.contract.name;
    std::printf("%-36s %lld elements, %lld in the exact tier, largest error/bound %.3f\n",
                e.contract.name.c_str(), static_cast<long long>(o.elements),
                static_cast<long long>(o.exact), o.worst);
  }
}

// Checks that the bound is not so large that no kernel can violate it.
TEST(ProductBound, AQuarterOfItIsViolated) {
  for (const Emulation& e : emulations()) {
    ProductContract strict = e.contract;
    if (strict.weight_dtype) strict.weight_dtype = Dtype::f16;  // an eighth of the roundoff of bf16
    else strict.roundoff /= 4;
    EXPECT_GT(run(e, strict).outside, 0) << e.contract.name;
  }
}

}  // namespace
}  // namespace assay
