// The oracle's gradients by three ways that share no formula: fp64 with a radius against ball
// arithmetic, balls against finite differences of the forward balls, and identities between the
// outputs alone.
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "oracle/backward.h"
#include "oracle/ball_backward.h"
#include "problem/parallel.h"

namespace assay {
namespace {

const char* const masks[] = {"",
                             " causal offset=end",
                             " window=9,4 bool=random",
                             " bias=normal@bij alibi",
                             " softcap=3 sink=1",
                             " lengths=31 starts=4",
                             " docs=9,11 dropout=0.3:5 bias=minus-infinity@ij",
                             " bias=minimum-rows finite-min-masks bool=empty-rows",
                             " bias=large@j sink=-4 softcap=40 dropout=0.2:8"};

Contract fp32() {
  Contract c;
  c.ordered = true;
  return c;
}

// A case whose O and LSE are those of the host kernel.
struct Prepared {
  explicit Prepared(const Case& c)
      : inputs(c),
        forward(c),
        gradients(c, inputs),
        in{forward.o.view(), forward.lse.view(), inputs.d_o.view(), inputs.d_lse.view()} {
    EXPECT_TRUE(kernels::attention_forward(inputs.problem, forward.view(), 1).ok());
    for (Index i = 0; i < c.shape.rows; ++i) rows.push_back(i);
  }
  Inputs inputs;
  Outputs forward;
  GradientOutputs gradients;
  AttentionBackwardInput in;
  std::vector<Index> rows;
};

TEST(GradientEnclosure, OfFp64ContainsTheBallsEverywhere) {
  std::vector<Case> cases;
  for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
    for (int s = 0; s < count_of<Scores>; ++s)
      for (std::size_t m = 0; m < std::size(masks); ++m) {
        Case c = parse_case(std::string("backward b=1 h=2/1 l=7x43 d=16/8") + masks[m]);
        c.dtype = dtype;
        c.scores = static_cast<Scores>(s);
        c.values = static_cast<Values>((usize(s) * 5 + m) % count_of<Values>);
        c.gradient = static_cast<Values>((usize(s) * 7 + 3 * m) % count_of<Values>);
        if ((usize(s) + m) % 2 == 0)
          c.lse_gradient = static_cast<Values>((usize(s) * 3 + 5 * m) % count_of<Values>);
        c.seed = cases.size() + 1;
        cases.push_back(c);
      }
  std::mutex mutex;
  std::int64_t elements = 0, tainted = 0;
  double largest = 0;
  std::int64_t wide = 0;  // the number of radii above a thousandth of the bound
  parallel_for(static_cast<Index>(cases.size()), 0, [&](Index k) {
    const Case& c = cases[usize(k)];
    const Prepared x(c);
    const BackwardReference reference(x.inputs.problem, x.in, x.gradients.view(), fp32());
    SharedGradients shared = reference.no_shared_gradients();
    const GroupGradients fp64 = reference.evaluate(0, 0, x.rows, shared);
    const std::vector<double> bias = shared.d_bias.value;
    reference.finish(shared);
    const BallGradients balls(x.inputs.problem, x.in.d_o, x.in.d_lse, 0, 0, 256);
    const std::lock_guard lock(mutex);
    auto check = [&](const char* what, const Gradient& g, Index row, Index column,
                     const BallRow::Enclosure& ball) {
      const auto e = usize(row * g.columns + column);
      if (g.taint[e] != Taint::none) {
        ++tainted;
        return;
      }
      ++elements;
      const double radius = g.ratio[usize(row)] * g.bound[e],
                   error = std::fabs((g.value[e] - ball.value) - ball.low);
      EXPECT_TRUE(error <= radius + ball.radius)
          << what << " " << row << " " << column << ": " << g.value[e] << " and " << ball.value
          << ", radius " << radius << "\n"
          << print_case(c);
      if (radius > 0) largest = std::max(largest, error / radius);
      wide += g.ratio[usize(row)] > 1e-3;
    };
    for (Index head = 0; head < 2; ++head)
      for (Index i = 0; i < c.shape.rows; ++i)
        for (Index d = 0; d < c.shape.dim; ++d)
          check("dQ", fp64.dq[usize(head)], i, d, balls.dq(head, i, d));
    for (Index j = 0; j < c.shape.keys; ++j) {
      for (Index d = 0; d < c.shape.dim; ++d) check("dK", fp64.dk, j, d, balls.dk(j, d));
      for (Index d = 0; d < c.shape.value_dim; ++d) check("dV", fp64.dv, j, d, balls.dv(j, d));
    }
    for (Index head = 0; head < shared.d_sink.rows; ++head)
      check("dSink", shared.d_sink, head, 0, balls.d_sink(head));
    if (shared.d_bias.rows > 0) {
      // Balls give dS of every pair. Their sum over the broadcast dimensions is computed in double
      // and has an error of its own.
      std::vector<BallRow::Enclosure> sums(usize(shared.d_bias.rows));
      for (Index head = 0; head < 2; ++head)
        for (Index i = 0; i < c.shape.rows; ++i)
          for (Index j = 0; j < c.shape.keys; ++j) {
            BallRow::Enclosure& sum = sums[usize(reference.bias_element(0, head, i, j))];
            sum.value += balls.ds(head, i, j).value;
            sum.radius += 0x1p-49 * std::fabs(balls.ds(head, i, j).value);
          }
      for (Index e = 0; e < shared.d_bias.rows; ++e)
        check("dBias", shared.d_bias, e, 0, sums[usize(e)]);
    }
  });
  printf(
      "%ld elements, %ld more that an infinity or an overflow reaches; largest error over radius "
      "%.3f, %ld radii above 1/1000 of the bound\n",
      static_cast<long>(elements), static_cast<long>(tainted), largest, static_cast<long>(wide));
  EXPECT_GT(elements, 500000);
  EXPECT_LT(tainted, elements / 3);
  EXPECT_LT(wide, elements / 100);
}

// d(<dO, O> + <dLSE, LSE>)/dx by a five-point rule on the forward balls. The arithmetic is exact
// except for an error of order h^4.
TEST(GradientEnclosure, BallsAgreeWithFiniteDifferencesOfTheForwardBalls) {
  constexpr double h = 0x1p-18;
  std::int64_t compared = 0;
  double largest = 0;
  for (const char* features :
       {"", " causal offset=end", " softcap=2 sink=0.5", " bias=normal@hij alibi", " dropout=0.4:3",
        " starts=2 window=5,1 bias=normal@j softcap=1.5 sink=2 dropout=0.3:4", " dlse=normal",
        " causal starts=2 sink=0.25 softcap=2 dlse=uniform"}) {
    const Case c = parse_case(std::string("backward b=1 h=2/1 l=5x7 d=4/3 dtype=f64") + features);
    Inputs inputs(c);
    Attention& p = inputs.problem;
    const BallGradients balls(p, inputs.d_o.view(), inputs.d_lse.view(), 0, 0, 256);
    // <dO, O> + <dLSE, LSE> as a pair of doubles.
    auto objective = [&] {
      double value = 0, low = 0;
      const auto add = [&](double x, double y, double y_low) {
        const double product = x * y, error = std::fma(x, y, -product);
        const double sum = value + product, back = sum - value;  // TwoSum
        low += ((value - (sum - back)) + (product - back)) + error + x * y_low;
        value = sum;
      };
      for (Index head = 0; head < 2; ++head)
        for (Index i = 0; i < c.shape.rows; ++i) {
          const BallRow row(p, 0, head, i, 256);
          for (Index d = 0; d < c.shape.value_dim; ++d)
            add(load(inputs.d_o.view(), inputs.d_o.view().at(0, head, i, d)), row.o(d),
                row.o_low(d));
          if (const TensorView& d_lse = inputs.d_lse.view())
            add(load(d_lse, d_lse.at(0, head, i, 0)), row.lse(), row.lse_low());
        }
      return std::pair{value, low};
    };
    // The values at the four points are so close to each other that their high parts subtract
    // exactly.
    const double base = objective().first;
    auto difference = [&](auto set, double x) {
      double slope = 0;
      for (const auto& [step, weight] : {std::pair{1, 8.0}, {-1, -8.0}, {2, -1.0}, {-2, 1.0}}) {
        set(x + step * h);
        const auto [value, low] = objective();
        slope += weight * ((value - base) + low) / (12 * h);
      }
      set(x);
      return slope;
    };
    auto check = [&](const char* what, double slope, double gradient) {
      ++compared;
      const double error = std::fabs(slope - gradient);
      largest = std::max(largest, error);
      EXPECT_TRUE(error <= 1e-13) << what << ": " << slope << " and " << gradient << "\n"
                                  << print_case(c);
    };
    auto element = [&](const TensorView& t, Index b, Index head, Index i, Index d, const char* what,
                       double gradient) {
      const Index at = t.at(b, head, i, d);
      check(what, difference([&](double x) { store(t, at, x); }, load(t, at)), gradient);
    };
    for (Index head = 0; head < 2; ++head)
      for (Index i = 0; i < c.shape.rows; ++i)
        for (Index d = 0; d < c.shape.dim; ++d)
          element(p.q, 0, head, i, d, "dQ", balls.dq(head, i, d).value);
    for (Index j = 0; j < c.shape.keys; ++j) {
      for (Index d = 0; d < c.shape.dim; ++d) element(p.k, 0, 0, j, d, "dK", balls.dk(j, d).value);
      for (Index d = 0; d < c.shape.value_dim; ++d)
        element(p.v, 0, 0, j, d, "dV", balls.dv(j, d).value);
    }
    if (p.bias && p.bias.stride[2] != 0)
      for (Index j = 0; j < c.shape.keys; ++j)
        if (std::isfinite(load(p.bias, p.bias.at(0, 1, 2, j))))
          element(p.bias, 0, 1, 2, j, "dBias", balls.ds(1, 2, j).value);
    if (!p.sink.empty())
      for (Index head = 0; head < 2; ++head) {
        // Sinks are binary32 numbers, on a grid of which h is a multiple.
        float& z = p.sink[usize(head)];
        check("dSink", difference([&](double x) { z = static_cast<float>(x); }, z),
              balls.d_sink(head).value);
      }
  }
  printf("%ld derivatives, largest difference %.3g\n", static_cast<long>(compared), largest);
  EXPECT_GT(compared, 400);
}

// Without a sink or dropout, sum_j dV_j = sum_i dO_i over the rows that see a key. Without a sink
// or softcap, sum_j dK_j = 0 if all queries are equal. Always <Q, dQ> = <K, dK> and <V, dV> = <O,
// dO>, per kv head.
TEST(GradientEnclosure, IdentitiesHoldWithinTheRadii) {
  std::int64_t compared = 0;
  double largest = 0;
  for (std::size_t m = 0; m < std::size(masks); ++m)
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      Case c = parse_case(std::string("backward b=1 h=2/1 l=19x43 d=16/8") + masks[m]);
      c.seed = seed;
      const Prepared x(c);
      const Attention& p = x.inputs.problem;
      const BackwardReference reference(p, x.in, x.gradients.view(), fp32());
      SharedGradients shared = reference.no_shared_gradients();
      const GroupGradients g = reference.evaluate(0, 0, x.rows, shared);
      const Reference forward(p, fp32());
      const KeyValuesPointer kv = forward.load_head(0, 0);
      auto radius = [](const Gradient& gradient, Index row, Index column) {
        return gradient.ratio[usize(row)] * gradient.bound[usize(row * gradient.columns + column)];
      };
      auto value = [](const Gradient& gradient, Index row, Index column) {
        return gradient.value[usize(row * gradient.columns + column)];
      };
      auto check = [&](const char* what, double a, double b, double tolerance) {
        ++compared;
        EXPECT_TRUE(std::fabs(a - b) <= tolerance)
            << what << ": " << a << " and " << b << ", tolerance " << tolerance << "\n"
            << print_case(c);
        largest = std::max(largest, std::fabs(a - b) / tolerance);
      };
      double q_dq = 0, k_dk = 0, v_dv = 0, o_do = 0, scores_tolerance = 1e-12,
             values_tolerance = 1e-12;
      std::vector<double> d_o_sum(usize(c.shape.value_dim), 0), dv_sum(d_o_sum),
          dv_tolerance(d_o_sum);
      for (Index head = 0; head < 2; ++head)
        for (Index i = 0; i < c.shape.rows; ++i) {
          const Block block = forward.evaluate(*kv, head, {&i, 1});
          for (Index d = 0; d < c.shape.dim; ++d) {
            const double q = load(p.q, p.q.at(0, head, i, d));
            q_dq += q * value(g.dq[usize(head)], i, d);
            scores_tolerance += std::fabs(q) * radius(g.dq[usize(head)], i, d);
          }
          for (Index d = 0; d < c.shape.value_dim; ++d) {
            const double d_o = load(x.in.d_o, x.in.d_o.at(0, head, i, d));
            o_do += d_o * block.o[usize(d)].value;
            values_tolerance += std::fabs(d_o) * block.o[usize(d)].radius;
            if (!block.row(0).fully_masked) d_o_sum[usize(d)] += d_o;
          }
        }
      for (Index j = 0; j < c.shape.keys; ++j) {
        for (Index d = 0; d < c.shape.dim; ++d) {
          const double k = load(p.k, p.k.at(0, 0, j, d));
          k_dk += k * value(g.dk, j, d);
          scores_tolerance += std::fabs(k) * radius(g.dk, j, d);
        }
        for (Index d = 0; d < c.shape.value_dim; ++d) {
          const double v = load(p.v, p.v.at(0, 0, j, d));
          v_dv += v * value(g.dv, j, d);
          values_tolerance += std::fabs(v) * radius(g.dv, j, d);
          dv_sum[usize(d)] += value(g.dv, j, d);
          dv_tolerance[usize(d)] += radius(g.dv, j, d);
        }
      }
      check("<Q, dQ> = <K, dK>", q_dq, k_dk, scores_tolerance);
      check("<V, dV> = <O, dO>", v_dv, o_do, values_tolerance);
      if (p.sink.empty() && p.dropout == 0)
        for (std::size_t d = 0; d < d_o_sum.size(); ++d)
          check("sum dV = sum dO", dv_sum[d], d_o_sum[d], dv_tolerance[d] + 1e-12);
    }
  printf("%ld identities, largest residual over tolerance %.3g\n", static_cast<long>(compared),
         largest);
  EXPECT_GT(compared, 300);
}

}  // namespace
}  // namespace assay
