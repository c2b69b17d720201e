// Tests the judge of gradients: wrong gradients must fail with the right words, and right ones must
// pass.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "harness/candidates/contracts.h"
#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "oracle/backward.h"
#include "oracle/backward_verdict.h"
#include "testing/matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

// A case with O and LSE of the host kernel, and with the exact gradients, rounded.
class BackwardVerdict : public testing::Test {
 protected:
  void prepare(const std::string& line) {
    case_ = parse_case(line);
    inputs_ = std::make_unique<Inputs>(case_);
    forward_ = std::make_unique<Outputs>(case_);
    out_ = std::make_unique<GradientOutputs>(case_, *inputs_);
    ASSERT_TRUE(kernels::attention_forward(inputs_->problem, forward_->view(), 1).ok());
    contract_ = host_contract(inputs_->problem, "AVX2");
    input_ = {forward_->o.view(), forward_->lse.view(), inputs_->d_o.view()};
    const AttentionShape& s = case_.shape;
    reference_ =
        std::make_unique<BackwardReference>(inputs_->problem, input_, out_->view(), contract_);
    std::vector<Index> rows;
    for (Index i = 0; i < s.rows; ++i) rows.push_back(i);
    SharedGradients shared = reference_->no_shared_gradients();
    groups_.clear();
    for (Index b = 0; b < s.batch; ++b)
      for (Index g = 0; g < s.kv_heads; ++g) {
        groups_.push_back(reference_->evaluate(b, g, rows, shared));
        for (Index head = 0; head < s.group(); ++head)
          fill(out_->dq.view(), b, g * s.group() + head, groups_.back().dq[usize(head)]);
        fill(out_->dk.view(), b, g, groups_.back().dk);
        fill(out_->dv.view(), b, g, groups_.back().dv);
      }
    reference_->finish(shared);
    for (Index h = 0; h < shared.d_sink.rows; ++h)
      store(out_->d_sink.view(), out_->d_sink.view().at(0, h, 0, 0), shared.d_sink.value[usize(h)]);
    if (shared.d_bias.rows > 0)
      for (Index b = 0; b < s.batch; ++b)
        for (Index h = 0; h < s.query_heads; ++h)
          for (Index i = 0; i < s.rows; ++i)
            for (Index j = 0; j < s.keys; ++j)
              store(out_->d_bias.view(), out_->d_bias.view().at(b, h, i, j),
                    shared.d_bias.value[usize(reference_->bias_element(b, h, i, j))]);
  }
  static void fill(const TensorView& t, Index b, Index h, const Gradient& g) {
    for (Index i = 0; i < g.rows; ++i)
      for (Index d = 0; d < g.columns; ++d)
        store(t, t.at(b, h, i, d), g.value[usize(i * g.columns + d)]);
  }
  template <class Change>
  static void change(const TensorView& t, const Change& to) {
    for (Index b = 0; b < t.shape[0]; ++b)
      for (Index h = 0; h < t.shape[1]; ++h)
        for (Index i = 0; i < t.shape[2]; ++i)
          for (Index d = 0; d < t.shape[3]; ++d) store(t, t.at(b, h, i, d), to(b, h, i, d));
  }
  Verdict verdict() const {
    return judge_backward(inputs_->problem, input_, out_->view(), contract_);
  }
  const TensorView& dq() const { return out_->dq.view(); }
  const TensorView& dk() const { return out_->dk.view(); }
  const TensorView& dv() const { return out_->dv.view(); }

  Case case_;
  std::unique_ptr<Inputs> inputs_;
  std::unique_ptr<Outputs> forward_;
  std::unique_ptr<GradientOutputs> out_;
  AttentionBackwardInput input_;
  Contract contract_;
  std::unique_ptr<BackwardReference> reference_;
  std::vector<GroupGradients> groups_;
};

constexpr const char* plain = "backward b=2 h=4/2 l=9x13 d=8/6 causal offset=end seed=2";

TEST_F(BackwardVerdict, RoundedExactGradientsPass) {
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* rest : {"", " causal", " scores=huge values=cancel grad=cancel",
                             " grad=tiny values=offset", " sink=3 softcap=5 alibi bias=normal@hj",
                             " bool=empty-rows lengths=7,0", " dropout=0.3:4 bias=normal"}) {
      prepare(std::string("backward b=2 h=4/2 l=9x13 d=8/6 dtype=") + dtype + rest);
      const Verdict v = verdict();
      EXPECT_THAT(v, Passes()) << print_case(case_);
      EXPECT_EQ(v.outputs.at(Output::dq).elements, 2 * 4 * 9 * 8);
      EXPECT_EQ(v.outputs.at(Output::dk).elements, 2 * 2 * 13 * 8);
      EXPECT_EQ(v.outputs.at(Output::dv).elements, 2 * 2 * 13 * 6);
      EXPECT_EQ(v.outputs.contains(Output::d_bias), case_.bias.pattern != MaskPattern::none);
      EXPECT_EQ(v.outputs.contains(Output::d_sink), case_.sink.has_value());
    }
}

// The bounds allow for what O and LSE are off, and under another diagonal these are far off.
TEST_F(BackwardVerdict, WrongGradientsAreNoConventionThatOContradicts) {
  for (const char* dtype : {"f32", "f16", "bf16"}) {
    prepare(std::string("backward b=1 h=2 l=9x24 d=16 causal dtype=") + dtype);
    change(dq(), [&](Index b, Index h, Index i, Index d) {
      return 0.5 + 2 * load(dq(), dq().at(b, h, i, d));
    });
    JudgeOptions undeclared;
    undeclared.conventions = {};
    EXPECT_THAT(judge_backward(inputs_->problem, input_, out_->view(), contract_, undeclared),
                FailsWith("dQ is outside its bound"));
    EXPECT_THAT(judge_backward_by_ladder(inputs_->problem, input_, out_->view(), undeclared),
                FailsWith("dQ is outside its bound"));
  }
}

// A GPU flushes results and reads subnormal operands of matrix products. Beside keys near the
// largest number, an arithmetic that flushes operands too may give anything, so that nothing would
// be judged.
TEST_F(BackwardVerdict, FlushedGradientsBesideHugeKeysAreJudged) {
  prepare(
      "backward b=1 h=4/2 l=64 d=32 dtype=bf16 causal scores=near-overflow values=heavy-tail "
      "grad=ones seed=44");
  input_.lse = {};  // as most kernels keep it
  Index flushed = 0;
  change(dq(), [&](Index b, Index h, Index i, Index d) {
    const double x = load(dq(), dq().at(b, h, i, d));
    const bool subnormal = x != 0 && std::fabs(x) < 0x1p-126;
    flushed += subnormal;
    return subnormal ? 0 : x;
  });
  EXPECT_GT(flushed, 0);
  EXPECT_THAT(verdict(), FailsWith("dQ is outside its bound"));
  JudgeOptions options;
  options.conventions = {};
  Verdict v = judge_backward_by_ladder(inputs_->problem, input_, out_->view(), options);
  EXPECT_EQ(v.outcome, Outcome::convention) << v.reason;
  EXPECT_EQ(v.differs.of<Subnormals>(), Subnormals::flushed);
  JudgeOptions declared = options;
  declared.conventions.declare(Subnormals::flushed);
  const auto judged = [&](bool ladder) {
    return ladder ? judge_backward_by_ladder(inputs_->problem, input_, out_->view(), declared)
                  : judge_backward(inputs_->problem, input_, out_->view(), contract_, declared);
  };
  for (const bool ladder : {false, true}) {
    v = judged(ladder);
    EXPECT_THAT(v, Passes());
    EXPECT_GT(v.inside, 1000);
  }
  // What only lost operands could explain is not right, and no convention either.
  store(dq(), dq().at(0, 1, 41, 13), 1);
  for (const bool ladder : {false, true}) EXPECT_EQ(judged(ladder).outcome, Outcome::inconclusive);
  EXPECT_THAT(judge_backward_by_ladder(inputs_->problem, input_, out_->view(), options),
              FailsWith("dQ is outside its bound"));
}

// Under another diagonal dP overflows in every row, and nothing could be judged: that explains no
// NaN at keys that no row sees.
TEST_F(BackwardVerdict, WhatCannotBeJudgedIsNoConvention) {
  prepare(
      "backward b=1 h=1 l=1x131 d=128 dtype=bf16 scale=0.25 causal scores=negative "
      "values=head-number grad=near-overflow seed=45");
  for (const TensorView* t : {&dq(), &dk()})
    change(*t, [](Index, Index, Index, Index) { return nan; });
  input_.lse = {};
  JudgeOptions undeclared;
  undeclared.conventions = {};
  EXPECT_THAT(judge_backward_by_ladder(inputs_->problem, input_, out_->view(), undeclared),
              FailsWith("dK is not 0 where no gradient passes"));
}

// What a kernel without subnormal numbers loses is not typical of any arithmetic, and no fault.
TEST_F(BackwardVerdict, FlushedGradientsAreNoEvidence) {
  for (const char* line :
       {"backward b=2 h=3/1 l=1x131 d=96 dtype=bf16 scores=tiny values=subnormal "
        "grad=head-number seed=7",
        "backward b=1 h=2 l=24x40 d=32 dtype=bf16 values=subnormal seed=3",
        "backward b=1 h=2 l=24x40 d=32 dtype=bf16 scores=near-overflow grad=tiny seed=4"}) {
    prepare(line);
    for (const TensorView* t : {&dq(), &dk()})
      change(*t, [&](Index b, Index h, Index i, Index d) {
        const double x = load(*t, t->at(b, h, i, d));
        return std::fabs(x) < 0x1p-126 ? 0 : x;
      });
    JudgeOptions options;
    options.conventions = {};
    options.evidence = EvidenceRule::fail;
    const Verdict v = judge_backward_by_ladder(inputs_->problem, input_, out_->view(), options);
    EXPECT_NE(v.outcome, Outcome::fail) << line << ": " << v.reason;
  }
}

// A kernel in fp32 that computes every head alone stores the gradients of the heads in the dtype.
TEST_F(BackwardVerdict, HeadsStoredFromFp32WeightsPass) {
  prepare(
      "backward b=2 h=3/1 l=1x131 d=96 dtype=bf16 scores=tiny values=subnormal grad=head-number "
      "seed=7");
  const Attention& p = inputs_->problem;
  const auto weight = [&](Index b, Index h, Index j) {
    double dot = 0;
    for (Index d = 0; d < p.shape.dim; ++d)
      dot += load(p.q, p.q.at(b, h, 0, d)) * load(p.k, p.k.at(b, 0, j, d));
    return std::exp(static_cast<double>(p.scale) * dot -
                    load(input_.lse, input_.lse.at(b, h, 0, 0)));
  };
  change(dv(), [&](Index b, Index, Index j, Index c) {
    double sum = 0;
    for (Index h = 0; h < p.shape.query_heads; ++h)
      sum += round_to(Dtype::bf16, weight(b, h, j) * load(input_.d_o, input_.d_o.at(b, h, 0, c)));
    return sum;
  });
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  EXPECT_THAT(judge_backward_by_ladder(p, input_, out_->view(), options), Passes());
}

// A backward pass over weights that the forward pass kept, all in fp32. One error of the largest
// score of a row is in all of its weights, and no stored LSE tells of it.
TEST_F(BackwardVerdict, KeptWeightsAreTypicalWhereThereIsNoLse) {
  for (int seed : {7, 28, 31}) {
    prepare("backward b=1 h=1 l=41 d=192/128 dtype=f32 causal scores=heavy-tail values=ramp seed=" +
            std::to_string(seed));
    input_.lse = {};
    const Attention& p = inputs_->problem;
    const auto rows = usize(p.shape.rows);
    const auto dot = [](const TensorView& x, Index i, const TensorView& y, Index j) {
      float sum = 0;
      for (Index d = 0; d < x.shape[3]; ++d)
        sum += static_cast<float>(load(x, x.at(0, 0, i, d)) * load(y, y.at(0, 0, j, d)));
      return sum;
    };
    std::vector<std::vector<float>> weight(rows, std::vector<float>(rows)), ds = weight;
    for (std::size_t i = 0; i < rows; ++i) {
      std::vector<float>& w = weight[i];
      float max = -std::numeric_limits<float>::infinity(), sum = 0, delta = 0;
      for (std::size_t j = 0; j <= i; ++j) {
        w[j] = p.scale * dot(p.q, static_cast<Index>(i), p.k, static_cast<Index>(j));
        max = std::max(max, w[j]);
      }
      for (std::size_t j = 0; j <= i; ++j) sum += w[j] = std::exp(w[j] - max);
      for (std::size_t j = 0; j <= i; ++j) {
        w[j] /= sum;
        ds[i][j] = dot(input_.d_o, static_cast<Index>(i), p.v, static_cast<Index>(j));
        delta += w[j] * ds[i][j];
      }
      for (std::size_t j = 0; j <= i; ++j) ds[i][j] = w[j] * (ds[i][j] - delta);
    }
    const auto of_key = [&](const std::vector<std::vector<float>>& part, const TensorView& given) {
      return [&](Index, Index, Index j, Index d) {
        float sum = 0;
        for (std::size_t i = usize(j); i < rows; ++i)
          sum += part[i][usize(j)] *
                 static_cast<float>(load(given, given.at(0, 0, static_cast<Index>(i), d)));
        return sum;
      };
    };
    change(dv(), of_key(weight, input_.d_o));
    const auto dk_of = of_key(ds, p.q);
    change(dk(), [&](Index b, Index h, Index j, Index d) { return p.scale * dk_of(b, h, j, d); });
    change(dq(), [&](Index, Index, Index i, Index d) {
      float sum = 0;
      for (Index j = 0; j <= i; ++j)
        sum += ds[usize(i)][usize(j)] * static_cast<float>(load(p.k, p.k.at(0, 0, j, d)));
      return p.scale * sum;
    });
    JudgeOptions options;
    options.evidence = EvidenceRule::fail;
    const Verdict v = judge_backward_by_ladder(p, input_, out_->view(), options);
    EXPECT_THAT(v, Passes()) << "seed " << seed;
  }
}

TEST_F(BackwardVerdict, NanInOneElementOfAnyGradientFails) {
  for (auto [words, member] :
       {std::pair{"dQ is NaN: dQ[b=1, h=1, row=3, column=4]", &GradientOutputs::dq},
        {"dK is NaN: dK[b=1, h=1, key=3, column=4]", &GradientOutputs::dk},
        {"dV is NaN: dV[b=1, h=1, key=3, column=4]", &GradientOutputs::dv}}) {
    prepare(plain);
    const TensorView& t = ((*out_).*member).view();
    store(t, t.at(1, 1, 3, 4), nan);
    EXPECT_THAT(verdict(), FailsWith(words));
  }
  prepare(std::string(plain) + " sink=1 bias=normal@hj");
  store(out_->d_sink.view(), out_->d_sink.view().at(0, 2, 0, 0), nan);
  EXPECT_THAT(verdict(), FailsWith("dSink is NaN: dSink[h=2]"));
  prepare(std::string(plain) + " sink=1 bias=normal@hj");
  store(out_->d_bias.view(), out_->d_bias.view().at(0, 3, 0, 5), nan);
  EXPECT_THAT(verdict(), FailsWith("dBias is NaN: dBias[b=0, h=3, row=0, key=5]"));
}

TEST_F(BackwardVerdict, InfinitiesFail) {
  prepare(plain);
  store(dk(), dk().at(0, 1, 2, 3), -inf);
  EXPECT_THAT(verdict(), FailsWith("dK is infinite: dK[b=0, h=1, key=2, column=3]"));
}

TEST_F(BackwardVerdict, ZerosAndConstantsFail) {
  for (auto member : {&GradientOutputs::dq, &GradientOutputs::dk, &GradientOutputs::dv})
    for (double x : {0.0, 0.25}) {
      prepare(plain);
      change(((*out_).*member).view(), [&](Index, Index, Index, Index) { return x; });
      EXPECT_THAT(verdict(), FailsWith("is outside its bound"));
      // Nearly all elements are outside, not only one here or there.
      EXPECT_GT(verdict().outside, element_count(((*out_).*member).view().shape) * 3 / 4);
    }
}

TEST_F(BackwardVerdict, UntouchedOutputsFail) {
  for (auto [name, member] : {std::pair{"dQ was not written", &GradientOutputs::dq},
                              {"dK was not written", &GradientOutputs::dk},
                              {"dV was not written", &GradientOutputs::dv}}) {
    prepare(plain);
    poison((*out_).*member, Poison::nan);
    JudgeOptions options;
    options.untouched = [](const TensorView& t, Index position) {
      return holds_poison(t, position, Poison::nan);
    };
    const Verdict v = judge_backward(inputs_->problem, input_, out_->view(), contract_, options);
    EXPECT_THAT(v, FailsWith(name));
  }
}

TEST_F(BackwardVerdict, SwappedRowsHeadsAndTransposesFail) {
  for (auto member : {&GradientOutputs::dq, &GradientOutputs::dk, &GradientOutputs::dv}) {
    for (int what = 0; what < 3; ++what) {
      prepare("backward b=1 h=2 l=8 d=8 seed=3");
      const TensorView& t = ((*out_).*member).view();
      std::vector<double> old;
      change(t, [&](Index b, Index h, Index i, Index d) {
        return old.push_back(load(t, t.at(b, h, i, d))), old.back();
      });
      change(t, [&](Index, Index h, Index i, Index d) {
        if (what == 0 && i < 2) i = 1 - i;
        if (what == 1) h = 1 - h;
        if (what == 2) std::swap(i, d);
        return old[usize((h * 8 + i) * 8 + d)];
      });
      EXPECT_THAT(verdict(), FailsWith("is outside its bound"));
    }
  }
}

TEST_F(BackwardVerdict, WrongByAFactorFails) {
  for (double factor : {1.01, -1.0, 2.0, 0.99}) {
    prepare(plain);
    change(dk(), [&](Index b, Index h, Index i, Index d) {
      return factor * load(dk(), dk().at(b, h, i, d));
    });
    EXPECT_THAT(verdict(), FailsWith("dK is outside its bound"));
  }
}

// Tries the edge of the bound of every element, a thousandth inside it and a thousandth outside it.
TEST_F(BackwardVerdict, DecidesAtTheEdge) {
  for (const char* dtype : {"f32", "bf16"}) {
    const std::string line =
        std::string("backward b=1 h=2/1 l=9x13 d=8/6 seed=2 out=f32 softcap=4 dtype=") + dtype;
    for (double side : {-1.0, 1.0}) {
      for (auto member : {&GradientOutputs::dq, &GradientOutputs::dk, &GradientOutputs::dv}) {
        for (double reach : {0.995, 1.005}) {
          prepare(line);
          const GroupGradients& g = groups_[0];
          const TensorView& t = ((*out_).*member).view();
          std::int64_t moved = 0;
          change(t, [&](Index, Index h, Index i, Index d) {
            const Gradient& x = member == &GradientOutputs::dq   ? g.dq[usize(h)]
                                : member == &GradientOutputs::dk ? g.dk
                                                                 : g.dv;
            const auto e = usize(i * x.columns + d);
            const double y = x.value[e] + side * reach * x.bound[e];
            // This is only possible where fp32 resolves a five-thousandth of the bound.
            if (std::fabs(static_cast<double>(static_cast<float>(y)) - y) > 0.001 * x.bound[e])
              return x.value[e];
            ++moved;
            return y;
          });
          EXPECT_GT(moved, 20) << line;
          const Verdict v = verdict();
          EXPECT_EQ(v.outside, reach < 1 ? 0 : moved) << line << " " << v.reason;
        }
      }
    }
  }
}

TEST_F(BackwardVerdict, NoGradientPassesWhereNothingIsSeen) {
  // Row 1 sees no key, and no row sees key 12.
  prepare("backward b=1 h=1 l=4x13 d=8/6 bool=empty-rows@ij lengths=12 hidden=nan");
  EXPECT_THAT(verdict(), Passes());
  store(dq(), dq().at(0, 0, 1, 2), 1e-30);
  EXPECT_THAT(verdict(),
              FailsWith("dQ is not 0 where no gradient passes: dQ[b=0, h=0, row=1, column=2]"));
  prepare("backward b=1 h=1 l=4x13 d=8/6 bool=empty-rows@ij lengths=12 hidden=nan");
  store(dv(), dv().at(0, 0, 12, 2), nan);
  EXPECT_THAT(verdict(),
              FailsWith("dV is not 0 where no gradient passes: dV[b=0, h=0, key=12, column=2]"));
}

// NaN must be in the elements that it belongs to, and in no others.
TEST_F(BackwardVerdict, NanOfAVisibleKeyReachesItsRowsAlone) {
  // The last two rows see key 9.
  prepare("backward b=1 h=1 l=3x10 d=8/6 causal offset=end poke=v:0:0:9:2=nan");
  const TensorView& t = dq();
  for (Index d = 0; d < 8; ++d) store(t, t.at(0, 0, 2, d), nan);
  change(dk(), [](Index, Index, Index, Index) { return nan; });  // row 2 sees every key
  EXPECT_THAT(verdict(), Passes());
  EXPECT_EQ(verdict().nan_expected, 8 + 10 * 8);
  store(t, t.at(0, 0, 2, 5), 0.5);
  EXPECT_THAT(verdict(),
              FailsWith("dQ is a number where NaN belongs: dQ[b=0, h=0, row=2, column=5]"));
  store(t, t.at(0, 0, 2, 5), nan);
  store(dv(), dv().at(0, 0, 9, 2), nan);  // dV does not read V
  EXPECT_THAT(verdict(), FailsWith("dV is NaN"));
}

// Row 15 has no determined weight, because its scores reach 1e38. That does not make dV uncertain
// where its dO is NaN: dV is NaN in that column alone.
TEST_F(BackwardVerdict, NanOfDoInARowWithoutDeterminedWeightsStaysInItsColumn) {
  prepare("backward b=1 h=1 l=16x55 d=21/8 poke=g:0:0:15:7=nan;k:0:0:54:20=3e+38 seed=530109");
  ASSERT_TRUE(kernels::attention_backward(inputs_->problem, input_, out_->view(), 1).ok());
  const Verdict v = verdict();
  EXPECT_THAT(v, HasNothingOutside());
  EXPECT_GT(v.nan_expected, 0);
}

// Every visible score is -inf, so O is 0/0 and LSE is -inf. A kernel that reads this LSE as the
// sign of an empty row gives 0; another kernel gives NaN.
TEST_F(BackwardVerdict, RowsWithoutWeightAreExcused) {
  prepare("backward b=1 h=1 l=2x1 d=1 poke=k:0:0:0:0=1;q:0:0:1:0=-inf");
  ASSERT_TRUE(kernels::attention_backward(inputs_->problem, input_, out_->view(), 1).ok());
  EXPECT_THAT(verdict(), HasNothingOutside());
  store(dq(), dq().at(0, 0, 1, 0), nan), store(dk(), 0, nan), store(dv(), 0, nan);
  EXPECT_THAT(verdict(), HasNothingOutside());
}

// Products of 2^-151 all round to 0. A thousand of them are lost, even if the chains that add them
// are short.
TEST_F(BackwardVerdict, EveryProductOfASumMayUnderflow) {
  prepare("backward b=1 h=1 l=1000x4 d=1 scores=equal");
  change(inputs_->d_o.view(), [](Index, Index, Index, Index) { return 0x1p-149; });
  ASSERT_TRUE(kernels::attention_backward(inputs_->problem, input_, out_->view(), 1).ok());
  EXPECT_EQ(load(dv(), 0), 0);
  EXPECT_THAT(verdict(), HasNothingOutside());
}

// A subnormal weight has its absolute error. Its product with 1/(1 - p) is then rounded once more.
TEST_F(BackwardVerdict, DropoutRoundsSubnormalWeightsOnceMore) {
  for (int k = 0; k < 40; ++k) {
    prepare("backward b=1 h=1 l=1 d=1 scale=0 sink=" + std::to_string(101 + 0.04 * k) +
            " dropout=0.1:1");
    contract_ = Contract{};
    store(inputs_->d_o.view(), 0, 0x1p100);
    store(inputs_->problem.v, 0, 0), store(dq(), 0, 0), store(dk(), 0, 0);
    store(out_->d_sink.view(), 0, 0), store(forward_->o.view(), 0, 0);
    if (load(dv(), 0) == 0) continue;  // the weight was dropped
    const double p = 1 / (1 + std::exp(static_cast<double>(inputs_->problem.sink[0])));
    const float weight = static_cast<float>(std::ceil(p * 0x1p149) * 0x1p-149),
                kept = weight * (1.0f / (1.0f - 0.1f));
    store(dv(), 0, static_cast<double>(kept) * 0x1p100);
    EXPECT_THAT(verdict(), HasNothingOutside()) << k;
  }
}

// In exp2(fma(z, log2 e, -L log2 e)) the product with L is rounded, however near z is to L.
TEST_F(BackwardVerdict, FusedArgumentsOfASinkRoundTheProductWithLse) {
  for (int k = 0; k < 20; ++k) {
    prepare("backward b=1 h=1 l=1x5 d=1/4 scores=large-scores values=offset grad=offset sink=" +
            std::to_string(59800 + 10 * k));
    contract_ = Contract{};
    contract_.fused_argument = true;
    contract_.argument_roundings = 2;
    contract_.scale_error = 0x1.03p-24;
    float delta = 0;
    for (Index c = 0; c < 4; ++c)
      delta = std::fma(static_cast<float>(load(input_.d_o, c)),
                       static_cast<float>(load(input_.o, c)), delta);
    const float log2e = 1.44269504f, lse = static_cast<float>(load(input_.lse, 0)),
                product = lse * log2e;
    const float weight = std::exp2(std::fma(inputs_->problem.sink[0], log2e, -product));
    store(out_->d_sink.view(), 0, -weight * delta);
    EXPECT_THAT(verdict(), HasNothingOutside()) << k;
  }
}

TEST_F(BackwardVerdict, ErrorsOfTheGivenOutputsAreTakenIntoAccountNotForgiven) {
  // LSE is off by 2^-10. The gradients that follow from this LSE are right, and those of the exact
  // LSE are still inside the bound.
  prepare("backward b=1 h=1 l=9x13 d=8/6 seed=5");
  const TensorView& lse = forward_->lse.view();
  for (Index i = 0; i < 9; ++i)
    store(lse, lse.at(0, 0, i, 0), load(lse, lse.at(0, 0, i, 0)) + 0x1p-10);
  EXPECT_THAT(verdict(), Passes());
  ASSERT_TRUE(kernels::attention_backward(inputs_->problem, input_, out_->view(), 1).ok());
  EXPECT_THAT(verdict(), Passes());
  // With the right LSE these gradients are not inside.
  ASSERT_TRUE(kernels::attention_forward(inputs_->problem, forward_->view(), 1).ok());
  EXPECT_THAT(verdict(), FailsWith("is outside its bound"));
}

TEST_F(BackwardVerdict, SampledRowsJudgeDqAloneAndSaySo) {
  prepare("backward b=1 h=2 l=40 d=8 seed=5");
  JudgeOptions options;
  options.sample_rows = 4;
  poison(out_->dk, Poison::large);
  const Verdict v = judge_backward(inputs_->problem, input_, out_->view(), contract_, options);
  EXPECT_THAT(v, Passes());
  EXPECT_THAT(v.reason, HasSubstr("dQ of 4 rows a head only"));
  EXPECT_EQ(v.outputs.size(), 1u);
  EXPECT_EQ(v.outputs.at(Output::dq).elements, 2 * 4 * 8);
}

// There is one row, so leaving out its pair with key j leaves 0 in dV_j or dK_j.
TEST_F(BackwardVerdict, PairsThatPowerShowsAreMissed) {
  const char* line = "backward b=1 h=1 l=1x60 d=8 scale=2 scores=huge values=offset seed=4";
  prepare(line);
  const GradientPower power = verdict().gradient_power;
  EXPECT_EQ(power.pairs, 60);
  std::int64_t missed_dk = 0, missed_dv = 0;
  for (Index j = 0; j < 60; ++j)
    for (auto [member, missed] :
         {std::pair{&GradientOutputs::dk, &missed_dk}, {&GradientOutputs::dv, &missed_dv}}) {
      prepare(line);
      const TensorView& t = ((*out_).*member).view();
      for (Index d = 0; d < 8; ++d) store(t, t.at(0, 0, j, d), 0);
      *missed += verdict().outcome == Outcome::fail;
    }
  EXPECT_GT(power.by_dv, 3);
  EXPECT_LT(power.by_dv, 60);
  // A shown pair moves the output by twice the bound. A pair that moves it by more than once the
  // bound is missed as well.
  EXPECT_LE(power.by_dk, missed_dk);
  EXPECT_LE(power.by_dv, missed_dv);
  EXPECT_GE(power.by_dv + 6, missed_dv);
  EXPECT_GE(power.by_any, std::max({power.by_dq, power.by_dk, power.by_dv}));
}

TEST_F(BackwardVerdict, NothingComparedIsNeverAPass) {
  prepare("backward b=0 h=1 l=4 d=8");
  EXPECT_THAT(verdict(), IsInconclusive());
}

}  // namespace
}  // namespace assay
