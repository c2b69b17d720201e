// Gradients that may be NaN because a kernel adds 0 times a NaN at masked pairs. Plain loops that
// do so, in two ways, say which elements these are: the judge has to permit NaN in all of them, and
// in no others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "harness/candidates/contracts.h"
#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "oracle/backward_verdict.h"
#include "oracle/visibility.h"
#include "testing/matchers.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// How a kernel masks a score: it adds -inf, which leaves NaN in it, or it writes -inf.
enum class Masking { adds, writes };

// The forward and the backward pass over all pairs of a sequence. O and LSE become those of such a
// kernel where they are NaN.
class SpreadingKernel {
 public:
  SpreadingKernel(const Attention& p, const TensorView& d_o, Masking masking)
      : p_(p), d_o_(d_o), masking_(masking) {}

  void spoil_forward(const AttentionOutput& out) {
    for_each_row([&](Index b, Index h, Index i) {
      double sum = 0;
      std::vector<double> o(usize(p_.shape.value_dim), 0);
      for_each_key(b, h, i, [&](Index j, double s) {
        const double weight = s == -inf ? 0 : std::exp(s);
        sum += weight;
        for (Index c = 0; c < p_.shape.value_dim; ++c)
          o[usize(c)] += weight * at(p_.v, b, h / p_.shape.group(), j, c);
      });
      if (std::isnan(sum)) store(out.lse, out.lse.at(b, h, i, 0), nan);
      for (Index c = 0; c < p_.shape.value_dim; ++c)
        if (std::isnan(sum) || std::isnan(o[usize(c)])) store(out.o, out.o.at(b, h, i, c), nan);
    });
  }

  // Adds its gradients to `to`, whose elements are all 0 before.
  void add_gradients(const AttentionOutput& given, const AttentionGradients& to) {
    const AttentionShape& s = p_.shape;
    for_each_row([&](Index b, Index h, Index i) {
      const Index g = h / s.group();
      double delta = 0;
      for (Index c = 0; c < s.value_dim; ++c)
        delta += at(d_o_, b, h, i, c) * at(given.o, b, h, i, c);
      for_each_key(b, h, i, [&](Index j, double score) {
        // A row that sees no key has an LSE of -inf, to which kernels give weights of 0.
        const double lse = at(given.lse, b, h, i, 0);
        const double weight = lse == -inf ? (std::isnan(score) ? nan : 0) : std::exp(score - lse);
        double dp = 0;
        for (Index c = 0; c < s.value_dim; ++c) dp += at(d_o_, b, h, i, c) * at(p_.v, b, g, j, c);
        const double ds = weight * (dp - delta);
        for (Index d = 0; d < s.dim; ++d) {
          add(to.dq, to.dq.at(b, h, i, d), ds * at(p_.k, b, g, j, d));
          add(to.dk, to.dk.at(b, g, j, d), ds * at(p_.q, b, h, i, d));
        }
        for (Index c = 0; c < s.value_dim; ++c)
          add(to.dv, to.dv.at(b, g, j, c), weight * at(d_o_, b, h, i, c));
        if (to.d_bias) add(to.d_bias, to.d_bias.at(b, h, i, j), ds);
      });
      if (to.d_sink)
        add(to.d_sink, to.d_sink.at(0, h, 0, 0),
            std::exp(static_cast<double>(p_.sink[usize(h)]) - at(given.lse, b, h, i, 0)) * delta);
    });
  }

 private:
  static double at(const TensorView& t, Index b, Index h, Index i, Index d) {
    return load(t, t.at(b, h, i, d));
  }
  static void add(const TensorView& t, Index position, double x) {
    store(t, position, load(t, position) + x);
  }
  void for_each_row(const std::function<void(Index, Index, Index)>& f) {
    for_each_index(p_.shape.lse_extents(), [&](Index b, Index h, Index i, Index) { f(b, h, i); });
  }
  // Calls f(key, score) for the keys of the sequence.
  void for_each_key(Index b, Index h, Index i, const std::function<void(Index, double)>& f) {
    evaluate_visibility(p_, b, h, i, seen_);
    const Index begin = p_.key_starts.empty() ? 0 : p_.key_starts[usize(b)],
                end = p_.key_lengths.empty() ? p_.shape.keys : p_.key_lengths[usize(b)];
    for (Index j = begin; j < end; ++j) {
      double s = extended_score(p_, b, h, i, j);
      const double bias = seen_.bias[usize(j)];
      if (bias != -inf) s += bias;
      else s = masking_ == Masking::adds && !std::isfinite(s) ? nan : -inf;
      f(j, s);
    }
  }

  const Attention& p_;
  const TensorView& d_o_;
  const Masking masking_;
  RowVisibility seen_;
};

void clear(const NamedOutputs& outputs) {
  for (const auto& named : outputs) {
    const TensorView& t = named.tensor->view();
    for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
      if (t) store(t, t.at(b, h, i, d), 0);
    });
  }
}

struct Counts {
  Index compared = 0, permitted = 0;
};

// Compares element by element where the judge takes NaN with where some kernel has it. The judge is
// asked with right gradients, of which this one is replaced.
Counts compare_permitted(const std::string& line, bool spoilt_forward) {
  const Case c = parse_case(line);
  const Inputs in(c);
  const Outputs forward(c);
  EXPECT_TRUE(kernels::attention_forward(in.problem, forward.view(), 1).ok());
  if (spoilt_forward)
    for (const Masking how : {Masking::adds, Masking::writes})
      SpreadingKernel(in.problem, in.d_o.view(), how).spoil_forward(forward.view());
  const AttentionBackwardInput input = {forward.o.view(), forward.lse.view(), in.d_o.view()};
  const GradientOutputs right(c, in), added(c, in), written(c, in);
  EXPECT_TRUE(kernels::attention_backward(in.problem, input, right.view(), 1).ok());
  clear(added.named()), clear(written.named());
  SpreadingKernel(in.problem, in.d_o.view(), Masking::adds)
      .add_gradients(forward.view(), added.view());
  SpreadingKernel(in.problem, in.d_o.view(), Masking::writes)
      .add_gradients(forward.view(), written.view());
  JudgeOptions options;
  options.conventions.declare(MaskedNan::spreads);
  options.power = false;
  options.evidence = EvidenceRule::off;
  JudgeOptions ours = options;
  ours.conventions = Conventions::ours();
  const auto is_right = [&](const JudgeOptions& o) {
    return judge_backward(in.problem, input, right.view(), host_contract(in.problem, "AVX2"), o)
               .outside == 0;
  };
  EXPECT_TRUE(is_right(options)) << line;
  Counts counts;
  for (std::size_t k = 0; k < right.named().size(); ++k) {
    const TensorView& t = right.named()[k].tensor->view();
    const TensorView &a = added.named()[k].tensor->view(), &w = written.named()[k].tensor->view();
    for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
      if (!t) return;
      const Index at = t.at(b, h, i, d);
      const bool spread = std::isnan(load(a, at)) || std::isnan(load(w, at));
      const double kept = load(t, at);
      store(t, at, nan);
      EXPECT_EQ(is_right(options), spread) << line << ": " << name_of(right.named()[k].output)
                                           << " " << b << " " << h << " " << i << " " << d;
      ++counts.compared;
      if (!is_right(ours) && spread) ++counts.permitted;
      store(t, at, kept);
    });
  }
  return counts;
}

TEST(SpreadGradients, AreThoseOfKernelsThatMultiplyBy0) {
  for (const char* fields :
       {"causal poke=v:0:0:4:1=nan", "causal poke=k:0:0:4:1=nan", "causal poke=k:0:0:2:0=nan",
        "causal poke=v:0:0:2:1=nan", "causal poke=q:0:1:1:0=nan", "causal poke=g:0:0:1:1=nan",
        "causal lengths=4 poke=v:0:0:4:1=nan;k:0:0:5:0=nan", "causal starts=2 poke=v:0:0:1:1=nan",
        "causal starts=2 poke=v:0:0:5:1=nan", "causal starts=2 poke=g:0:1:0:1=nan",
        "causal bias=normal@hij poke=v:0:0:4:1=nan", "causal bias=normal@j poke=k:0:0:4:1=nan",
        "causal sink=0.5 poke=v:0:0:4:1=nan", "causal sink=0.5 poke=k:0:0:4:1=nan",
        "window=1,0 poke=v:0:0:2:0=nan"})
    for (const bool spoilt : {false, true}) {
      const Counts counts = compare_permitted(
          std::string("backward b=1 h=2/1 l=3x6 d=2/2 dtype=f32 ") + fields, spoilt);
      EXPECT_GT(counts.compared, 30) << fields;
      const bool beyond = std::string(fields).find("lengths=4") != std::string::npos ||
                          std::string(fields).find("v:0:0:1:1") != std::string::npos;
      EXPECT_EQ(counts.permitted > 0, !beyond) << fields << ", spoilt " << spoilt;
    }
}

}  // namespace
}  // namespace assay
