// exp and tanh of the kernels are compared with double precision on every SIMD target: every float
// in the range of exp on the best target, a dense sample on the others. The contract declares the
// errors that are measured here, rounded up.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "property_tests/elementary_test.cc"
#include <hwy/foreach_target.h>

#include "kernels/attention/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void exp_all(const float* x, float* y, std::size_t n) {
  const Lanes d;
  for (std::size_t i = 0; i < n; i += hn::Lanes(d))
    hn::StoreU(exp_of_nonpositive(d, hn::LoadU(d, x + i)), d, y + i);
}
void tanh_all(const float* x, float* y, std::size_t n) {
  const Lanes d;
  for (std::size_t i = 0; i < n; i += hn::Lanes(d))
    hn::StoreU(tanh_of(d, hn::LoadU(d, x + i)), d, y + i);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <bit>
#include <mutex>

#include "harness/candidates/contracts.h"
#include "kernels/simd/by_target.h"

namespace assay {
namespace kernels {
HWY_EXPORT(exp_all);
HWY_EXPORT(tanh_all);
auto exp_of(const Target& target) { return ASSAY_OF_TARGET(exp_all, target); }
auto tanh_of(const Target& target) { return ASSAY_OF_TARGET(tanh_all, target); }
}  // namespace kernels

namespace {

// The largest error in units of 2^-23 of the exact value (an ulp in the contract). It tries every
// `step`-th float in bit order from `first` to `last` (positive floats, which are negated on
// request).
double largest_error(void (*f)(const float*, float*, std::size_t), double (*exact)(double),
                     float first, float last, bool negative, std::uint32_t step) {
  constexpr Index chunk = 1 << 14;
  const Index begin = std::bit_cast<std::uint32_t>(first), end = std::bit_cast<std::uint32_t>(last);
  const Index count = (end - begin) / step + 1;
  std::mutex mutex;
  double worst = 0;
  parallel_for((count + chunk - 1) / chunk, 0, [&](Index k) {
    std::vector<float> x(chunk), y(chunk);
    for (Index i = 0; i < chunk; ++i) {
      const float magnitude = std::bit_cast<float>(
          static_cast<std::uint32_t>(std::min(begin + (k * chunk + i) * step, end)));
      x[usize(i)] = negative ? -magnitude : magnitude;
    }
    f(x.data(), y.data(), x.size());
    double here = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double e = exact(x[i]);
      const double error = std::fabs(y[i] - e) / (std::fabs(e) * 0x1p-23);
      here = std::max(here, error == error ? error : 1e9);
    }
    const std::lock_guard lock(mutex);
    worst = std::max(worst, here);
  });
  return worst;
}

class Elementary : public testing::TestWithParam<std::string> {
 protected:
  static kernels::Target target() { return kernels::Target::named(GetParam()).value(); }
  Contract contract() const { return host_contract(Attention{}, GetParam()); }
  bool best() const { return GetParam() == kernels::runnable_targets()[0]; }
};

TEST_P(Elementary, ExpStaysWithinTheContract) {
#ifdef ASSAY_SANITIZED
  const std::uint32_t step = 9973;
#else
  const std::uint32_t step = best() ? 1 : 997;
#endif
  // The range goes from the smallest float whose exponential differs from 1 in fp32 down to -87,
  // where the exponential is flushed to 0.
  const double worst = largest_error(
      kernels::exp_of(target()), [](double x) { return std::exp(x); }, 0x1p-30f, 87.0f, true, step);
  printf("%s: exp, every %u-th float of [-87, 0]: largest error %.4f ulp\n", GetParam().c_str(),
         step, worst);
  EXPECT_LE(worst, contract().exp_ulp);
  EXPECT_GT(worst, 0.4);
}

TEST_P(Elementary, TanhStaysWithinTheContract) {
  const double worst = largest_error(
      kernels::tanh_of(target()), [](double x) { return std::tanh(x); }, 0x1p-60f, 40.0f, false,
      251);
  printf("%s: tanh, every 251st float of [2^-60, 40]: largest error %.4f ulp\n", GetParam().c_str(),
         worst);
  EXPECT_LE(worst, contract().tanh_ulp);
  EXPECT_LE(largest_error(
                kernels::tanh_of(target()), [](double x) { return std::tanh(x); }, 0x1p-60f, 40.0f,
                true, 2501),
            contract().tanh_ulp);
}

TEST_P(Elementary, ExpAtTheEdges) {
  const float inf = INFINITY;
  const std::vector<float> x = {
      0.0f,    -0.0f,   -inf,  NAN,        -87.0f, std::nextafter(-87.0f, -inf),
      -88,     -104,    -126,  -150,       -1000,  -3e38f,
      -1e-30f, -1e-45f, -0.5f, -0.6931472f};
  std::vector<float> y(x.size());
  kernels::exp_of(target())(x.data(), y.data(), x.size());
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 1);
  EXPECT_EQ(y[2], 0);
  EXPECT_TRUE(std::isnan(y[3]));
  EXPECT_GT(y[4], 0);
  EXPECT_LT(std::exp(-87.0), contract().exp_floor);  // the flush drops these values
  for (std::size_t i = 5; i < 12; ++i) EXPECT_EQ(y[i], 0) << x[i];
  EXPECT_EQ(y[12], 1);
  EXPECT_EQ(y[13], 1);
}

INSTANTIATE_TEST_SUITE_P(Targets, Elementary, testing::ValuesIn(kernels::runnable_targets()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace assay
#endif  // HWY_ONCE
