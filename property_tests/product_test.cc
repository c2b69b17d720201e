// The low-bit product and its packed weights: every target, every refusal, and what the judge says
// of wrong outputs.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "harness/candidates/candidate.h"
#include "harness/candidates/contracts.h"
#include "harness/judging/execute.h"
#include "harness/faults/planted_faults.h"
#include "harness/judging/outputs.h"
#include "harness/cases/shrink.h"
#include "harness/cases/suites.h"
#include "kernels/cache/cache_storage.h"
#include "kernels/product/product.h"
#include "kernels/product/product_amx.h"
#include "kernels/simd/targets.h"
#include "testing/matchers.h"
#include "testing/require_that.h"

namespace assay {
namespace {

// Runs every third case of the suite on every target of this machine. The targets with FMA agree
// bit for bit.
TEST(ProductKernel, EveryTargetStaysWithinItsBound) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  const std::vector<Case> cases = make_suite("products", 5).cases;
  for (const std::string& target : kernels::runnable_targets()) {
    int judged = 0;
    for (std::size_t i = 0; i < cases.size(); i += 3) {
      Case c = cases[i];
      c.target = target;
      ExecuteOptions options;
      options.power = false;
      const CaseResult r = execute(c, *host, options);
      ASSERT_THAT(r, HasNothingOutside());
      judged += r.outcome == Outcome::pass;
    }
    EXPECT_GT(judged, 250) << target;
    std::printf("target %s: %d cases passed\n", target.c_str(), judged);
  }
  for (const std::string& target : kernels::compiled_targets())
    if (!std::ranges::count(kernels::runnable_targets(), target))
      std::printf("target %s: not run on this machine\n", target.c_str());
}

// AMX flushes, and has an order of its own.
TEST(ProductKernel, TargetsWithFmaAgreeBitForBit) {
  std::vector<std::string> fused;
  for (const std::string& t : kernels::runnable_targets())
    if (!host_product_contract(t).products_rounded &&
        !kernels::multiplies_with_amx(kernels::Target::named(t).value(), Dtype::bf16))
      fused.push_back(t);
  const Case c =
      parse_case("product m=45 n=70 k=300 dtype=bf16 out=f32 w=nvfp4 weights=codes scales=random");
  const ProductInputs in(c);
  const std::unique_ptr<Candidate> host = make_candidate("host");
  std::vector<ProductOutput> outputs;
  for (const std::string& target : fused) {
    outputs.emplace_back(c);
    const ProductCall call{in.problem, outputs.back().c.view()};
    ASSERT_TRUE(host->run({call, {1, kernels::Target::named(target).value()}}).ok());
    EXPECT_EQ(first_difference(outputs.front(), outputs.back()), "") << target;
  }
  std::printf("%zu targets with FMA compared\n", fused.size());
}

// The policy itself changes nothing: with a fault of another kernel planted, the bits are those of
// the production kernel.
TEST(ProductKernel, TheFaultyInstantiationWithoutAFaultIsTheKernel) {
  const PlantedFault& other = planted_faults[0];
  ASSERT_EQ(other.about, FaultSubject::forward);
  const std::unique_ptr<Candidate> host = make_candidate("host");
  int compared = 0;
  for (const Case& c : make_suite("products", 3).cases) {
    if (++compared % 5 != 0) continue;
    const ProductInputs in(c);
    const ProductOutput mine(c), theirs(c);
    const kernels::Execution how(1, planted_fault_target(kernels::Target()));
    ASSERT_TRUE(host->run({ProductCall{in.problem, mine.c.view()}, how}).ok());
    ASSERT_TRUE(run_planted_product(other, in.problem, theirs.c.view(), how).ok());
    EXPECT_EQ(first_difference(mine, theirs), "") << print_case(c);
  }
}

// Packing and unpacking gives the same bytes, except for those behind K.
RC_GTEST_PROP(PackedWeights, RoundTrip, ()) {
  Case c;
  c.operation = Operation::product;
  c.product.format = static_cast<LowBit>(*rc::gen::inRange(0, count_of<LowBit>));
  c.product.n = *rc::gen::inRange<Index>(1, 140);
  c.product.k = *rc::gen::inRange<Index>(1, 70) * (c.product.format == LowBit::fp4_sparse ? 4 : 1);
  if (traits(c.product.format).group_free) c.product.group = 8 * *rc::gen::inRange<Index>(1, 9);
  c.product.weights = Weights::codes;
  c.product.scales = static_cast<ScaleFamily>(*rc::gen::inRange(0, 5));
  c.seed = *rc::gen::inRange<std::uint64_t>(0, 1000);
  check_case(c);
  const ProductInputs in(c);
  std::shared_ptr<const kernels::PackedWeights> packed;
  RC_ASSERT(kernels::PackedWeights::pack(in.problem.w, packed).ok());
  std::vector<std::byte> codes(in.w.codes().size_in_bytes()), scales(in.w.scales().size_in_bytes()),
      extra(in.w.extra().size_in_bytes());
  RC_ASSERT(packed->unpack(codes.data(), scales.data(), extra.data()).ok());
  LowBitView again = in.problem.w;
  again.codes = codes.data();
  again.scales = scales.empty() ? nullptr : scales.data();
  again.extra = extra.empty() ? nullptr : extra.data();
  RC_ASSERT(decode_weights(again) == decode_weights(in.problem.w));
  // Either side may be empty, and memcmp() takes no null pointer.
  const auto same = [](const std::vector<std::byte>& bytes, const std::byte* others) {
    return std::equal(bytes.begin(), bytes.end(), others);
  };
  RC_ASSERT(same(scales, in.w.scales().bytes()));
  if (c.product.k % 32 == 0) {
    RC_ASSERT(same(codes, in.w.codes().bytes()));
    RC_ASSERT(same(extra, in.w.extra().bytes()));
  }
}

// Random products of any shape pass. Rows computed alone equal the rows computed together (these
// are relations of execute()).
RC_GTEST_PROP(ProductKernel, RandomCasesPass, ()) {
  Case c;
  c.operation = Operation::product;
  ProductSpec& p = c.product;
  p.format = static_cast<LowBit>(*rc::gen::inRange(0, count_of<LowBit>));
  p.m = *rc::gen::inRange<Index>(1, 50);
  p.n = *rc::gen::inRange<Index>(1, 140);
  p.k = *rc::gen::inRange<Index>(1, 100) * (p.format == LowBit::fp4_sparse ? 4 : 1);
  if (traits(p.format).group_free) p.group = 8 * *rc::gen::inRange<Index>(1, 9);
  c.dtype = *rc::gen::element(Dtype::f32, Dtype::f16, Dtype::bf16);
  c.out = *rc::gen::element(Dtype::f32, Dtype::f16, Dtype::bf16);
  c.values = static_cast<Values>(*rc::gen::inRange(0, count_of<Values>));
  p.weights =
      *rc::gen::element(Weights::quantized, Weights::codes, Weights::largest, Weights::cancel);
  c.seed = *rc::gen::inRange<std::uint64_t>(0, 1000);
  check_case(c);
  ExecuteOptions options;
  options.power = false;
  require_that(execute(c, *make_candidate("host"), options), HasNothingOutside());
}

// A cache of E2M1 with a scale for each 32 elements stores a token as MXFP4 stores a column. The
// product reads the cache's own bytes as weights.
TEST(PackedWeights, ACachedTokenIsAColumnOfMxfp4) {
  constexpr Index tokens = 21, dim = 64;
  kernels::CacheConfig config;
  config.dim = config.value_dim = dim;
  config.capacity = tokens;
  config.dtype = Dtype::f4e2m1;
  config.group_size = 32;
  kernels::PagedCache cache(config);
  const Tensor k(Dtype::f32, {1, 1, tokens, dim}, {{0, 0, dim, 1}, 0, tokens * dim});
  for (Index i = 0; i < tokens; ++i)
    for (Index d = 0; d < dim; ++d) {
      // The largest element of every group is 5 times a power of two. For it both declared scale
      // rules choose the same scale.
      const double x = d % 32 == 7 ? 5 : static_cast<double>((i * 37 + d * 11) % 19 - 9) / 2;
      store(k.view(), i * dim + d, std::ldexp(x, static_cast<int>(i % 7 - d / 32 * 3)));
    }
  ASSERT_TRUE(cache.append(0, k.view(), k.view()).ok());
  const kernels::StoredColumns stored = cache.stored(0, 0).keys.columns;
  const LowBitView cached{LowBit::mxfp4, dim,
                          tokens,        32,
                          stored.data,   reinterpret_cast<const std::byte*>(stored.scales),
                          nullptr,       1};

  TensorView columns = k.view();  // [dim, tokens]
  std::swap(columns.shape[2], columns.shape[3]);
  std::swap(columns.stride[2], columns.stride[3]);
  kernels::LowBitBytes quantized;
  ASSERT_TRUE(kernels::quantize_weights(columns, LowBit::mxfp4, {}, quantized).ok());
  EXPECT_EQ(std::memcmp(quantized.codes.data(), cached.codes, quantized.codes.size()), 0);
  EXPECT_EQ(std::memcmp(quantized.scales.data(), cached.scales, quantized.scales.size()), 0);

  std::shared_ptr<const kernels::PackedWeights> packed;
  ASSERT_TRUE(kernels::PackedWeights::pack(cached, packed).ok());
  const Tensor q(Dtype::f32, {1, 1, 1, dim}, {{0, 0, dim, 1}, 0, dim}),
      scores(Dtype::f32, {1, 1, 1, tokens}, {{0, 0, tokens, 1}, 0, tokens});
  for (Index d = 0; d < dim; ++d) store(q.view(), d, static_cast<double>(d % 5) - 2);
  ASSERT_TRUE(kernels::product(q.view(), *packed, scores.view()).ok());
  Product p;
  p.m = 1;
  p.n = tokens;
  p.k = dim;
  p.a = q.view();
  p.w = cached;
  EXPECT_THAT(scores.view(), IsWithinBoundOf(p, host_product_contract(p, kernels::Target())));
}

// ---- The judge ----

struct Judged {
  explicit Judged(const std::string& line) : c(parse_case(line)), in(c), out(c) {
    EXPECT_TRUE(make_candidate("host")->run({ProductCall{in.problem, out.c.view()}}).ok());
  }
  Verdict verdict(const JudgeOptions& options = {}) const {
    return judge_product(in.problem, out.c.view(),
                         host_product_contract(in.problem, kernels::Target()), options);
  }
  double get(Index m, Index n) const { return load(out.c.view(), out.c.view().at(0, 0, m, n)); }
  void set(Index m, Index n, double x) const {
    store(out.c.view(), out.c.view().at(0, 0, m, n), x);
  }
  Case c;
  ProductInputs in;
  ProductOutput out;
};

TEST(ProductVerdict, SampledRowsAreJudgedAloneAndSaySo) {
  const Judged judged("product m=40 n=20 k=100 dtype=f32 w=nvfp4");
  JudgeOptions options;
  options.sample_rows = 4;
  options.seed = 7;
  const Verdict v = judged.verdict(options);
  EXPECT_THAT(v, Passes());
  EXPECT_EQ(v.reason,
            "every element is inside its bound; 4 of 40 rows were judged: one of each equal "
            "stretch, seed 7");
  EXPECT_EQ(v.outputs.at(Output::c).elements, 4 * 20);
  ASSERT_EQ(v.sampled.size(), 4u);
  // A wrong row is found if and only if it is in the sample.
  for (Index m = 0; m < 40; ++m) {
    const double right = judged.get(m, 3);
    judged.set(m, 3, right + 100);
    EXPECT_EQ(judged.verdict(options).outcome == Outcome::fail,
              std::ranges::find(v.sampled, m) != v.sampled.end())
        << m;
    judged.set(m, 3, right);
  }
}

TEST(ProductVerdict, WrongOutputsFail) {
  const char* line = "product m=3 n=20 k=100 dtype=f32 w=nvfp4";
  const Judged good(line);
  ASSERT_THAT(good.verdict(), Passes());
  auto expect_failure = [&](const char* what, const auto& change) {
    const Judged bad(line);
    change(bad);
    EXPECT_THAT(bad.verdict(), Fails()) << what;
  };
  expect_failure("NaN", [](const Judged& x) { x.set(1, 7, std::nan("")); });
  expect_failure("infinity",
                 [](const Judged& x) { x.set(2, 19, std::numeric_limits<double>::infinity()); });
  expect_failure("zero", [](const Judged& x) { x.set(0, 0, 0); });
  expect_failure("a few bounds", [](const Judged& x) { x.set(1, 3, x.get(1, 3) + 5e-6); });
  expect_failure("rows exchanged", [](const Judged& x) {
    for (Index n = 0; n < 20; ++n) {
      const double kept = x.get(0, n);
      x.set(0, n, x.get(1, n));
      x.set(1, n, kept);
    }
  });
  expect_failure("a constant", [](const Judged& x) {
    for (Index m = 0; m < 3; ++m)
      for (Index n = 0; n < 20; ++n) x.set(m, n, 1);
  });
  const Judged nan(std::string(line) + " poke=a:0:0:1:5=nan");
  EXPECT_THAT(nan.verdict(), Passes());
  EXPECT_EQ(nan.verdict().nan_expected, 20);
  nan.set(1, 4, 0.5);
  EXPECT_THAT(nan.verdict(), Fails());
}

// If no order of additions rounds, no error is allowed, not even one ulp.
TEST(ProductVerdict, ExactTierForgivesNothing) {
  const Judged x(
      "product m=2 n=6 k=256 dtype=bf16 out=f32 w=mxfp4 weights=codes scales=distinct "
      "values=integers");
  const Verdict v = x.verdict();
  ASSERT_THAT(v, Passes());
  EXPECT_EQ(v.exact, 12);
  const double y = x.get(1, 5);
  x.set(1, 5, std::nextafter(static_cast<float>(y), 1e30f));
  EXPECT_THAT(x.verdict(), FailsWith("no rounding explains it"));
}

TEST(ProductVerdict, IntegersOfEveryWidthAreUsed) {
  auto bits = [](const char* line) {
    const ProductInputs in(parse_case(line));
    return exact_product(in.problem, 0, 0).bits;
  };
  EXPECT_EQ(bits("product m=1 n=1 k=512 dtype=f32 w=nvfp4 a=nvfp4 weights=codes scales=random"),
            64);
  EXPECT_EQ(
      bits(
          "product m=1 n=1 k=512 dtype=f32 w=f8e5m2 weights=codes scales=random values=heavy-tail"),
      128);
  EXPECT_EQ(bits("product m=1 n=1 k=512 dtype=f32 w=mxfp4 weights=codes "
                 "poke=a:0:0:0:3=1e-40;a:0:0:0:4=1e30"),
            0);
  EXPECT_EQ(bits("product m=1 n=1 k=8 dtype=f32 w=mxfp4 poke=a:0:0:0:3=nan"), 0);
}

// 64 bits, 128 bits and big integers give the same answer for a long sum whose exponents are far
// apart, and whose terms cancel except for the smallest.
TEST(ProductVerdict, CancellationLeavesTheLeastTerm) {
  for (auto [large, small] : {std::pair{1024.0, 0x1p-10}, {0x1p60, 0x1p-30}, {0x1p126, 0x1p-149}}) {
    const Case c =
        parse_case(fmt::format("product m=1 n=1 k=3 dtype=f32 w=f8e4m3:0 weights=largest "
                               "poke=a:0:0:0:0={};a:0:0:0:1={};a:0:0:0:2={}",
                               large, small, -large));
    const ProductInputs in(c);
    LowBitMatrix w(LowBit::f8e4m3, 3, 1, 0);
    for (Index k = 0; k < 3; ++k) w.set_code(k, 0, 0x38);  // 1
    Product p = in.problem;
    p.w = w.view();
    const ExactSum s = exact_product(p, 0, 0);
    EXPECT_EQ(s.high, small);
    EXPECT_EQ(s.low, 0);
    EXPECT_EQ(s.radius, 0);
  }
}

TEST(ProductVerdict, NothingComparedIsNoPass) {
  const Judged x("product m=0 n=5 k=8 dtype=f32 w=mxfp4");
  EXPECT_THAT(x.verdict(), IsInconclusive());
}

// Errors that an earlier judge had: infinities that were not judged, and ranges that were too
// narrow or too wide.
class Ranges : public testing::Test {
 protected:
  // One column of equal weights of E4M3 (or E5M2) without scales, and C as a kernel would have
  // written it.
  Verdict judge_one(const std::vector<double>& a, double weight, double c,
                    const ProductContract& contract, Dtype code = Dtype::f8e4m3) {
    return judge_column(a, weight, c, code, [&](const Product& p, const TensorView& out) {
      return judge_product(p, out, contract);
    });
  }
  Verdict judge_column(const std::vector<double>& a, double weight, double c, Dtype code,
                       const std::function<Verdict(const Product&, const TensorView&)>& judge) {
    const Index k = std::ssize(a);
    LowBitMatrix w(code == Dtype::f8e4m3 ? LowBit::f8e4m3 : LowBit::f8e5m2, k, 1, 0);
    // encode() gives the largest number for infinity
    for (Index i = 0; i < k; ++i)
      w.set_code(i, 0,
                 std::isinf(weight) ? 0x7C : static_cast<std::uint32_t>(encode(code, weight)));
    const Tensor x(Dtype::f32, {1, 1, 1, k}, {{0, 0, k, 1}, 0, k}),
        y(Dtype::f32, {1, 1, 1, 1}, {{0, 0, 1, 1}, 0, 1});
    for (Index i = 0; i < k; ++i) store(x.view(), i, a[usize(i)]);
    store(y.view(), 0, c);
    Product p;
    p.m = p.n = 1;
    p.k = k;
    p.a = x.view();
    p.w = w.view();
    return judge(p, y.view());
  }
  const double inf = std::numeric_limits<double>::infinity();
  const ProductContract host = host_product_contract("AVX2");
};

TEST_F(Ranges, InfinitiesAreJudged) {
  std::vector<double> a(32, 1);
  a[5] = inf;
  EXPECT_EQ(judge_one(a, 1, inf, host).inside, 1);
  for (double wrong : {0.0, 42.0, -inf, std::nan("")})
    EXPECT_THAT(judge_one(a, 1, wrong, host), Fails()) << wrong;
  EXPECT_EQ(judge_one(a, 0, std::nan(""), host).inside, 1);
  EXPECT_THAT(judge_one(a, 0, inf, host), Fails());
}

// A kernel that reads subnormal numbers as 0 loses these terms, and no others.
TEST_F(Ranges, OperandsThatAreReadAs0AreCharged) {
  ProductContract flushes = host;
  flushes.floor = flushes.operand_floor = 0x1p-126;
  const std::vector<double> a = {0x1p-126, 0x1p-127, 0x1p-127};
  const double left = 256 * 0x1p-126, whole = 2 * left;
  EXPECT_THAT(judge_one(a, 256, left, flushes), HasNothingOutside());
  EXPECT_THAT(judge_one(a, 256, whole, flushes), HasNothingOutside());
  EXPECT_THAT(judge_one(a, 256, 0.9 * left, flushes), Fails());
  EXPECT_THAT(judge_one(a, 256, 1.6 * whole, flushes), Fails());
  EXPECT_THAT(judge_one(a, 256, left, host), Fails());
  // 0 times infinity
  for (const double term : {0x1p-127, 1.0}) {
    EXPECT_THAT(judge_one({term}, inf, std::nan(""), host, Dtype::f8e5m2), Fails());
    EXPECT_EQ(judge_one({term}, inf, std::nan(""), flushes, Dtype::f8e5m2).outside,
              term == 1 ? 1 : 0);
    EXPECT_THAT(judge_one({term}, inf, 42, flushes, Dtype::f8e5m2), Fails());
  }
  // An infinity of A meets no number that is read as 0.
  EXPECT_THAT(judge_one({inf, 0x1p-130}, 1, std::nan(""), flushes), Fails());
}

// The convention permits the same to every contract.
TEST_F(Ranges, FlushedSubnormalsAreAConvention) {
  const std::vector<double> a = {0x1p-126, 0x1p-127, 0x1p-127};
  const double left = 256 * 0x1p-126;
  JudgeOptions flushed;
  flushed.conventions.declare(Subnormals::flushed);
  const auto judge = [&](double c, const JudgeOptions& options) {
    return judge_column(a, 256, c, Dtype::f8e4m3, [&](const Product& p, const TensorView& out) {
      return judge_product_by_ladder(p, out, options);
    });
  };
  EXPECT_THAT(judge(left, {}), Fails());
  EXPECT_THAT(judge(left, flushed), HasNothingOutside());
  EXPECT_THAT(judge(0.9 * left, flushed), Fails());
}

// The ladder of products whose A has this dtype.
std::vector<ProductContract> ladder_of(Dtype a) {
  Product p;
  p.a.dtype = a;
  return product_ladder(p);
}

TEST_F(Ranges, SumsMayOverflowByTheirRoundings) {
  // Sequential sums in fp16 leave its range here, although the exact sum is 49,168.
  const ProductContract fp16 = ladder_of(Dtype::f16).back();
  ASSERT_EQ(fp16.roundoff, 0x1p-11);
  std::vector<double> a(1100, round_to(Dtype::f16, 16.02));
  a[0] = 32768;
  EXPECT_THAT(judge_one(a, 1, inf, fp16), HasNothingOutside());
  std::vector<double> b(131272, std::nextafter(0x1p103f, 1e38f));
  b[0] = 0x1.fcp127;
  EXPECT_THAT(judge_one(b, 1, inf, host), HasNothingOutside());
}

TEST_F(Ranges, NothingIsExcusedWhereNothingOverflows) {
  // With scaled weights the sum of the unscaled weights is never formed.
  const Judged x(
      "product m=1 n=1 k=32 dtype=f32 w=mxfp4 weights=largest scales=smallest values=ones");
  x.set(0, 0, inf);
  for (const ProductContract& c : ladder_of(Dtype::f32))
    EXPECT_THAT(judge_product(x.in.problem, x.out.c.view(), c), Fails()) << c.name;
  EXPECT_THAT(judge_one({0x1p126}, 0x1p-6, inf, host), Fails());
}

TEST_F(Ranges, RoundedWeightsMayOverflow) {
  LowBitMatrix w(LowBit::mxfp4, 1, 1, 32);
  w.set_code(0, 0, 7);
  w.set_scale(0, 0, 127 + 14);  // 98,304
  float one = 1, infinite = std::numeric_limits<float>::infinity();
  Product p;
  p.m = p.n = p.k = 1;
  p.a = {&one, Dtype::f32, {1, 1, 1, 1}, {0, 0, 1, 1}, 0};
  p.w = w.view();
  const TensorView c{&infinite, Dtype::f32, {1, 1, 1, 1}, {0, 0, 1, 1}, 0};
  for (const ProductContract& contract : ladder_of(Dtype::f16))
    EXPECT_EQ(judge_product(p, c, contract).outside, contract.weight_dtype ? 0 : 1)
        << contract.name;
}

TEST_F(Ranges, TwoTensorScalesOverflowTogether) {
  LowBitMatrix a(LowBit::nvfp4, 16, 1, 16), w(LowBit::nvfp4, 16, 1, 16);
  for (LowBitMatrix* m : {&a, &w}) {
    for (Index k = 0; k < 16; ++k) m->set_code(k, 0, 2);
    m->set_scale(0, 0, 0x38);
    m->set_tensor_scale(0x1.8p70f);
  }
  Product p;
  p.m = p.n = 1;
  p.k = 16;
  p.a_low = a.view();
  p.w = w.view();
  float out = 0;
  const TensorView c{&out, Dtype::f32, {1, 1, 1, 1}, {0, 0, 1, 1}, 0};
  ASSERT_TRUE(make_candidate("host")->run({ProductCall{p, c}}).ok());
  EXPECT_TRUE(std::isinf(out));
  EXPECT_THAT(judge_product(p, c, host), HasNothingOutside());
}

// ---- Bad input ----

class Refusals : public testing::Test {
 protected:
  Refusals() : c_(parse_case("product m=2 n=5 k=32 dtype=f32 w=mxfp4 weights=codes")), in_(c_) {}

  std::string pack(const LowBitView& w) {
    std::shared_ptr<const kernels::PackedWeights> packed;
    const kernels::Status s = kernels::PackedWeights::pack(w, packed);
    EXPECT_EQ(s.ok(), packed != nullptr);
    return s.ok() ? "" : fmt::format("{}: {}", static_cast<int>(s.code), s.detail);
  }
  std::string multiply(const TensorView& a, const TensorView& c) {
    std::shared_ptr<const kernels::PackedWeights> packed;
    EXPECT_EQ(pack(in_.problem.w), "");
    EXPECT_TRUE(kernels::PackedWeights::pack(in_.problem.w, packed).ok());
    const kernels::Status s = kernels::product(a, *packed, c);
    return s.ok() ? "" : fmt::format("{}: {}", static_cast<int>(s.code), s.detail);
  }

  Case c_;
  ProductInputs in_;
};

TEST_F(Refusals, OfWeightsNameArgumentValueAndLimit) {
  const LowBitView good = in_.problem.w;
  auto with = [&](const auto& change) {
    LowBitView w = good;
    change(w);
    return pack(w);
  };
  EXPECT_EQ(with([](LowBitView&) {}), "");
  EXPECT_EQ(with([](LowBitView& w) { w.k = 0; }), "1: k = 0 is outside [1, 1099511627776]");
  EXPECT_EQ(with([](LowBitView& w) { w.n = -3; }), "1: n = -3 is outside [1, 1099511627776]");
  EXPECT_EQ(with([](LowBitView& w) { w.k = w.n = Index{1} << 39; }),
            "2: k * n = 549755813888 * 549755813888 weights are above 2^46");
  EXPECT_EQ(with([](LowBitView& w) { w.group = 16; }), "1: group = 16: groups of mxfp4 have 32");
  EXPECT_EQ(with([](LowBitView& w) { w.codes = nullptr; }), "1: codes is null");
  EXPECT_EQ(with([](LowBitView& w) { w.scales = nullptr; }), "1: scales is null");
  EXPECT_EQ(with([](LowBitView& w) { w.tensor_scale = 2; }),
            "1: tensor_scale = 2: mxfp4 has none, so it must be 1");
  EXPECT_EQ(with([](LowBitView& w) { w.tensor_scale = std::nanf(""); }),
            "1: tensor_scale = nan is not finite");
  EXPECT_EQ(with([](LowBitView& w) { w.format = static_cast<LowBit>(77); }),
            "1: format = 77 is none of the 8");
  {
    const ProductInputs in(parse_case("product m=2 n=5 k=32 dtype=f32 w=int4:8 weights=codes"));
    LowBitView w = in.problem.w;
    w.group = 12;
    EXPECT_EQ(pack(w), "1: group = 12 is not a positive multiple of 8");
    w = in.problem.w;
    w.extra = nullptr;
    EXPECT_EQ(pack(w), "1: extra (zero points) is null");
    in.w.extra().bytes()[7] = std::byte{16};
    EXPECT_EQ(pack(in.problem.w),
              "1: extra: zero point 16 of group 1 of column 2 is outside [0, 15]");
  }
  {
    const ProductInputs in(parse_case("product m=2 n=5 k=32 dtype=f32 w=fp4:8 weights=codes"));
    for (const std::uint16_t infinite : {std::uint16_t{0x7C00}, std::uint16_t{0xFC00}}) {
      std::memcpy(in.w.scales().bytes() + 2 * 6, &infinite, 2);
      EXPECT_EQ(pack(in.problem.w),
                fmt::format("1: scales: code {:#x} of group 1 of column 1 is infinite; a scale is "
                            "finite, or NaN, and in E4M3 it is not negative",
                            infinite));
    }
  }
  {
    const ProductInputs in(parse_case("product m=2 n=5 k=32 dtype=f32 w=nvfp4 weights=codes"));
    in.w.scales().bytes()[3] = std::byte{0xB8};
    EXPECT_EQ(pack(in.problem.w),
              "1: scales: code 0xb8 of group 1 of column 1 is negative; a scale is finite, or NaN, "
              "and in E4M3 it is not negative");
  }
  {
    const ProductInputs in(parse_case("product m=2 n=1 k=32 dtype=f32 w=fp4-sparse weights=codes"));
    in.w.extra().bytes()[0] = std::byte{0x45};  // k = 0 has 5, so both kept positions are 1
    EXPECT_EQ(pack(in.problem.w),
              "1: extra: metadata 5 of k = 0 of column 0 is none of 4, 8, 9, 12, 13, 14");
    LowBitView w = in.problem.w;
    w.k = 30;
    EXPECT_EQ(pack(w), "1: k = 30 is not a multiple of 4, of which two are kept");
  }
}

TEST_F(Refusals, OfOperandsLeaveTheOutputAlone) {
  const ProductOutput out(c_);
  poison(out.c, Poison::large);
  const TensorView a = in_.problem.a, c = out.c.view();
  auto with = [&](const auto& change) {
    TensorView x = a, y = c;
    change(x, y);
    return multiply(x, y);
  };
  EXPECT_EQ(with([](TensorView& x, TensorView&) { x.shape[3] = 31; }),
            "1: a has shape [1, 1, 2, 31], not [1, 1, 2, 32]");
  EXPECT_EQ(with([](TensorView&, TensorView& y) { y.shape[2] = 3; }),
            "1: c has shape [1, 1, 3, 5], not [1, 1, 2, 5]");
  EXPECT_EQ(with([](TensorView& x, TensorView&) { x.shape[2] = -1; }), "1: m = -1 is negative");
  EXPECT_EQ(with([](TensorView& x, TensorView&) { x.data = nullptr; }), "1: a is null");
  EXPECT_EQ(with([](TensorView&, TensorView& y) { y.data = nullptr; }), "1: c is null");
  EXPECT_EQ(with([](TensorView& x, TensorView&) { x.dtype = Dtype::f64; }),
            "6: a is f64; products take f32, f16 and bf16");
  EXPECT_EQ(with([](TensorView&, TensorView& y) { y.dtype = Dtype::f8e4m3; }),
            "6: c is f8e4m3; products take f32, f16 and bf16");
  EXPECT_EQ(with([](TensorView&, TensorView& y) { y.stride[2] = 0; }),
            "1: c overlaps itself: shape 1, 1, 2, 5, strides 10, 10, 0, 1");
  EXPECT_EQ(with([](TensorView& x, TensorView& y) { y.data = x.data; }),
            "1: c overlaps a; an output may overlap nothing");
  EXPECT_EQ(with([](TensorView& x, TensorView&) { x.stride[2] = Index{1} << 60; }),
            "1: a with strides 64, 64, 1152921504606846976, 1 and origin 0 reaches more than 2^57 "
            "bytes from its pointer");
  for (Index e = 0; e < 10; ++e) EXPECT_TRUE(holds_poison(c, e, Poison::large));
  EXPECT_EQ(with([](TensorView&, TensorView&) {}), "");
  // A low-bit A has another depth, or has k in words.
  std::shared_ptr<const kernels::PackedWeights> packed;
  ASSERT_TRUE(kernels::PackedWeights::pack(in_.problem.w, packed).ok());
  const LowBitMatrix shorter(LowBit::mxfp4, 31, 2, 32), words(LowBit::fp4, 32, 2, 8);
  EXPECT_EQ(kernels::product(shorter.view(), *packed, c).detail,
            "a has k = 31, not the 32 of the weights");
  EXPECT_EQ(kernels::product(words.view(), *packed, c).detail,
            "a is fp4; a low-bit A is mxfp4, nvfp4, f8e4m3 or f8e5m2");
}

// Numbers that a hostile caller would choose.
TEST_F(Refusals, OfAbsurdNumbersNeverCrash) {
  constexpr Index absurd = 0x7ffffffffffffff8;
  LowBitView w = in_.problem.w;
  w.format = LowBit::f8e4m3;
  w.group = absurd;
  EXPECT_EQ(pack(w), "1: group = 9223372036854775800 is above 1099511627776");
  std::vector<float> data(64, 1);
  const TensorView plain{data.data(), Dtype::f32, {1, 1, 8, 8}, {0, 0, 8, 1}, 0};
  kernels::LowBitBytes bytes;
  EXPECT_EQ(kernels::quantize_weights(plain, LowBit::int8, {absurd}, bytes).detail,
            "group = 9223372036854775800 is above 1099511627776");
  TensorView tall = plain;
  tall.shape[2] = Index{1} << 62;
  tall.stride[2] = 0;
  EXPECT_EQ(kernels::quantize_weights(tall, LowBit::int8, {}, bytes).detail,
            "k = 4611686018427387904 is above 1099511627776");
  tall.shape[2] = tall.shape[3] = Index{1} << 24;
  const kernels::Status many = kernels::quantize_weights(tall, LowBit::int8, {}, bytes);
  EXPECT_EQ(many.code, kernels::StatusCode::memory_allocation_failed);
  EXPECT_EQ(many.detail, "k * n = 16777216 * 16777216 weights are above 2^46");
  TensorView odd = plain;
  odd.dtype = static_cast<Dtype>(77);
  EXPECT_EQ(kernels::quantize_weights(odd, LowBit::int8, {}, bytes).detail,
            "w is dtype 77; weights are quantized from f32, f16 and bf16");
  std::shared_ptr<const kernels::PackedWeights> packed;
  ASSERT_TRUE(kernels::PackedWeights::pack(in_.problem.w, packed).ok());
  // The product of the extents wraps to 0.
  TensorView a{data.data(), Dtype::f32, {1, 1, Index{1} << 62, 32}, {0, 0, 0, 1}, 0},
      c{data.data(), Dtype::f32, {1, 1, Index{1} << 62, 5}, {0, 0, 5, 1}, 0};
  EXPECT_FALSE(kernels::product(a, *packed, c).ok());
  LowBitView low = in_.problem.w;
  low.format = static_cast<LowBit>(200);
  EXPECT_EQ(kernels::product(low, *packed, c).detail,
            "a is format 200; a low-bit A is mxfp4, nvfp4, f8e4m3 or f8e5m2");
}

TEST_F(Refusals, OfAnOutputOverALowBitInput) {
  std::shared_ptr<const kernels::PackedWeights> packed;
  ASSERT_TRUE(kernels::PackedWeights::pack(in_.problem.w, packed).ok());
  LowBitMatrix a(LowBit::f8e4m3, 32, 2, 32);
  const TensorView over_codes{a.codes().bytes(), Dtype::f32, {1, 1, 2, 5}, {0, 0, 5, 1}, 0},
      over_scales{a.scales().bytes() - 8, Dtype::f32, {1, 1, 2, 5}, {0, 0, 5, 1}, 0};
  EXPECT_EQ(kernels::product(a.view(), *packed, over_codes).detail,
            "c overlaps the codes of a; an output may overlap nothing");
  EXPECT_EQ(kernels::product(a.view(), *packed, over_scales).detail,
            "c overlaps the scales of a; an output may overlap nothing");
  // A call without rows is allowed.
  LowBitView none = a.view();
  none.n = 0;
  float x = 0;
  EXPECT_TRUE(
      kernels::product(none, *packed, {&x, Dtype::f32, {1, 1, 0, 5}, {0, 0, 5, 1}, 0}).ok());
}

// ---- Case lines ----

TEST(ProductCase, LinesRoundTrip) {
  for (const Case& c : make_suite("products", 2).cases)
    EXPECT_EQ(parse_case(print_case(c)), c) << print_case(c);
  EXPECT_EQ(print_case(parse_case("product w=int4:48 m=3 zeros=edges weights=codes k=9 scales=nan "
                                  "dtype=bf16 layout=c:padded")),
            "product m=3 n=32 k=9 dtype=bf16 w=int4:48 weights=codes scales=nan zeros=edges "
            "layout=c:padded");
}

TEST(ProductCase, WhatCannotBeIsRefused) {
  auto refusal = [](const char* line) -> std::string {
    try {
      parse_case(line);
      return "";
    } catch (const CaseError& e) {
      return e.what();
    }
  };
  EXPECT_EQ(refusal("product m=-1"), "m=-1 is outside [0, 1099511627776]");
  EXPECT_EQ(refusal("product k=0"), "k=0 is outside [1, 1099511627776]");
  EXPECT_EQ(refusal("product w=int4:12"), "w=int4:12: a group is a multiple of 8");
  EXPECT_EQ(refusal("product w=nvfp4:32"), "w=nvfp4:32: its groups are of 16");
  EXPECT_EQ(refusal("product w=int4:0"), "w (group size)=0 is outside [8, 1099511627776]");
  EXPECT_EQ(refusal("product w=fp4-sparse k=6"),
            "k=6: two of each four are kept, so it is a multiple of 4");
  EXPECT_EQ(refusal("product a=int8"), "a=int8: A is mxfp4, nvfp4, f8e4m3 or f8e5m2");
  EXPECT_EQ(refusal("product scales=nan"),
            "scales and zeros of quantized weights follow from the weights");
  EXPECT_EQ(refusal("product weights=codes zeros=edges"), "zeros: mxfp4 has no zero points");
  EXPECT_EQ(refusal("product weights=special"),
            "weights=special: mxfp4 has neither NaN nor infinity");
  EXPECT_EQ(refusal("product dtype=f8e4m3"), "dtype=f8e4m3: products take f32, f16 and bf16");
  EXPECT_EQ(refusal("product layout=packed"),
            "layout=packed: A and C are bhsd, padded, strided or reversed");
  EXPECT_EQ(refusal("product m=1099511627776 n=1099511627776"),
            "m=1099511627776 n=1099511627776: a size overflows 64 bits");
  EXPECT_EQ(refusal("product poke=q:0:0:0:0=1"), "poke=q: the tensor is a");
  EXPECT_EQ(refusal("product m=2 poke=a:0:0:2:0=1"),
            "poke=a:...: index 2 of axis 2 is outside [0, 2)");
  EXPECT_EQ(refusal("attention m=3").substr(0, 24), "column 11: unknown field");
  EXPECT_EQ(refusal("product causal").substr(0, 23), "column 9: unknown field");
}

// A fault in the tail shrinks to a case with a tail.
TEST(ProductCase, ShrinksToWhatMatters) {
  const std::unique_ptr<Candidate> faulty = make_candidate("fault:depth-tail-dropped");
  auto fails = [&](const Case& c) {
    ExecuteOptions options;
    options.power = options.relations = false;
    return execute(c, *faulty, options).outcome == Outcome::fail;
  };
  const Case start =
      parse_case("product m=33 n=65 k=300 dtype=bf16 w=nvfp4 layout=padded threads=2 seed=9");
  ASSERT_TRUE(fails(start));
  const Case small = shrink(start, fails, [] { return true; });
  EXPECT_EQ(small.product.m, 1);
  EXPECT_EQ(small.product.n, 1);
  EXPECT_EQ(small.product.k, 1);
  EXPECT_EQ(small.dtype, Dtype::f32);
  EXPECT_EQ(small.q_layout, LayoutKind::bhsd);
}

}  // namespace
}  // namespace assay
