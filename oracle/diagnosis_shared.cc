// The known faults of the gradients that are summed over a whole problem, dBias and dSink. Errors
// are held against their bounds, because no replicates run for these sums.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "oracle/backward.h"
#include "oracle/diagnosis.h"
#include "oracle/explain.h"

namespace assay {
namespace {

// All pairs are summed again, one by one.
constexpr Index most_pairs = Index{1} << 20;

// dBias and dSink, as they are laid out.
struct SharedSums {
  Eigen::RowVectorXd bias, sink;
};

// What the terms are: dS of every pair, and what every batch element adds to dSink.
struct SharedTerms {
  std::vector<double> ds;  // in the order of pair_extents()
  Eigen::MatrixXd sink;    // batch elements x heads
};

void evaluate_groups(const BackwardReference& reference, const AttentionShape& s, Index b,
                     SharedGradients& shared) {
  std::vector<Index> rows(usize(s.rows));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<Index>(i);
  for (Index g = 0; g < s.kv_heads; ++g) reference.evaluate(b, g, rows, shared);
}

SharedTerms terms_of(const Attention& p, const AttentionBackwardInput& input,
                     const AttentionGradients& out, const Contract& contract) {
  const AttentionShape& s = p.shape;
  const Extents e = s.pair_extents();
  AttentionGradients single = out;
  if (out.d_bias) single.d_bias.stride = {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1};
  const BackwardReference reference(p, input, single, contract);
  SharedTerms terms{{}, Eigen::MatrixXd::Zero(s.batch, s.query_heads)};
  if (out.d_bias) terms.ds.assign(usize(element_count(e)), 0);
  for (Index b = 0; b < s.batch; ++b) {
    SharedGradients shared = reference.no_shared_gradients();
    evaluate_groups(reference, s, b, shared);
    for (Index h = 0; h < shared.d_sink.rows; ++h) terms.sink(b, h) = shared.d_sink.value[usize(h)];
    for (std::size_t k = 0; k < terms.ds.size(); ++k) terms.ds[k] += shared.d_bias.value[k];
  }
  return terms;
}

// How a faulty kernel adds.
struct SharedFormula {
  double factor_of_bias = 1, factor_of_sink = 1;
  bool overwrites_bias = false, overwrites_sink = false;  // the last term stays
};

struct SharedHypothesis {
  std::string_view name;
  std::string_view words;
  bool (*alter)(SharedFormula& f, const Attention& p, const AttentionGradients& out);
};

bool is_summed(const AttentionGradients& out, const AttentionShape& s) {
  const Extents e = s.pair_extents();
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (out.d_bias && out.d_bias.stride[axis] == 0 && e[axis] > 1) return true;
  return false;
}

constexpr SharedHypothesis hypotheses[] = {
    {"dbias-overwritten",
     "an element of dBias that several pairs share is overwritten, not added to",
     [](SharedFormula& f, const Attention& p, const AttentionGradients& out) {
       return f.overwrites_bias = is_summed(out, p.shape);
     }},
    {"dbias-scaled", "dBias is multiplied by the scale of the scores",
     [](SharedFormula& f, const Attention& p, const AttentionGradients& out) {
       f.factor_of_bias = static_cast<double>(p.scale);
       return bool{out.d_bias};
     }},
    {"dbias-sign", "dBias has the wrong sign",
     [](SharedFormula& f, const Attention&, const AttentionGradients& out) {
       f.factor_of_bias = -1;
       return bool{out.d_bias};
     }},
    {"dbias-zero", "dBias is 0",
     [](SharedFormula& f, const Attention&, const AttentionGradients& out) {
       f.factor_of_bias = 0;
       return bool{out.d_bias};
     }},
    {"dsink-sign", "dSink has the wrong sign",
     [](SharedFormula& f, const Attention&, const AttentionGradients& out) {
       f.factor_of_sink = -1;
       return bool{out.d_sink};
     }},
    {"dsink-zero", "dSink is 0",
     [](SharedFormula& f, const Attention&, const AttentionGradients& out) {
       f.factor_of_sink = 0;
       return bool{out.d_sink};
     }},
    {"dsink-of-last-batch", "dSink is that of the last batch element",
     [](SharedFormula& f, const Attention& p, const AttentionGradients& out) {
       f.overwrites_sink = bool{out.d_sink} && p.shape.batch > 1;
       return f.overwrites_sink;
     }},
};

// The numbers that a kernel gave, the bounds of each, and the right ones.
struct SharedOutputs {
  SharedSums got, bound;
};

class SharedGradientSums {
 public:
  SharedGradientSums(const Attention& p, const AttentionBackwardInput& input,
                     const AttentionGradients& out, const Contract& contract)
      : p_(p),
        reference_(p, input, out, contract),
        terms_(terms_of(p, input, out, contract)),
        exact_(reference_.no_shared_gradients()) {
    for (Index b = 0; b < p.shape.batch; ++b) evaluate_groups(reference_, p.shape, b, exact_);
    reference_.finish(exact_);
    take_outputs(out, contract);
  }

  SharedSums compute(const SharedFormula& f) const {
    SharedSums x{Eigen::RowVectorXd::Zero(std::ssize(exact_.d_bias.value)),
                 Eigen::RowVectorXd::Zero(std::ssize(exact_.d_sink.value))};
    std::size_t at = 0;
    if (!terms_.ds.empty())
      for_each_index(p_.shape.pair_extents(), [&](Index b, Index h, Index i, Index j) {
        double& sum = x.bias(reference_.bias_element(b, h, i, j));
        const double term = f.factor_of_bias * terms_.ds[at++];
        sum = f.overwrites_bias ? term : sum + term;
      });
    for (Index h = 0; h < x.sink.size(); ++h)
      x.sink(h) = f.factor_of_sink * (f.overwrites_sink ? terms_.sink(p_.shape.batch - 1, h)
                                                        : terms_.sink.col(h).sum());
    return x;
  }

  Fits fits(const SharedSums& x, const SharedSums& right) const {
    Fits fits;
    const auto add = [&](const Eigen::RowVectorXd& got, const Eigen::RowVectorXd& bound,
                         const Eigen::RowVectorXd& predicted, const Eigen::RowVectorXd& exact) {
      for (Index k = 0; k < got.size(); ++k)
        if (std::isfinite(bound(k)))
          fits.add(error_of(got(k), predicted(k)), error_of(got(k), exact(k)), bound(k), 1);
    };
    add(outputs_.got.bias, outputs_.bound.bias, x.bias, right.bias);
    add(outputs_.got.sink, outputs_.bound.sink, x.sink, right.sink);
    return fits;
  }

  Index elements() const { return outputs_.got.bias.size() + outputs_.got.sink.size(); }

 private:
  void take_outputs(const AttentionGradients& out, const Contract& contract) {
    const auto bounds = [&](const Gradient& g, Dtype dtype) {
      Eigen::RowVectorXd m(std::ssize(g.value));
      for (Index k = 0; k < m.size(); ++k)
        m(k) = g.bound[usize(k)] + half_ulp(dtype, g.value[usize(k)]) +
               contract.roundoff * std::fabs(g.value[usize(k)]);
      return m;
    };
    outputs_.bound = {bounds(exact_.d_bias, out.d_bias ? out.d_bias.dtype : Dtype::f32),
                      bounds(exact_.d_sink, out.d_sink ? out.d_sink.dtype : Dtype::f32)};
    outputs_.got = {Eigen::RowVectorXd::Zero(outputs_.bound.bias.size()),
                    Eigen::RowVectorXd::Zero(outputs_.bound.sink.size())};
    if (out.d_bias)
      for_each_index(p_.shape.pair_extents(), [&](Index b, Index h, Index i, Index j) {
        outputs_.got.bias(reference_.bias_element(b, h, i, j)) =
            load(out.d_bias, out.d_bias.at(b, h, i, j));
      });
    for (Index h = 0; h < outputs_.got.sink.size(); ++h)
      outputs_.got.sink(h) = load(out.d_sink, out.d_sink.at(0, h, 0, 0));
  }

  const Attention& p_;
  BackwardReference reference_;
  SharedTerms terms_;
  SharedGradients exact_;
  SharedOutputs outputs_;
};

bool same(const SharedSums& a, const SharedSums& b) {
  return same_numbers(a.bias, b.bias) && same_numbers(a.sink, b.sink);
}

}  // namespace

void add_shared_hypotheses(std::vector<std::string_view>& names) {
  for (const SharedHypothesis& h : hypotheses) names.push_back(h.name);
}

Diagnosis diagnose_shared(const Attention& problem, const AttentionBackwardInput& input,
                          const AttentionGradients& out, const Contract& contract) {
  if (element_count(problem.shape.pair_extents()) > most_pairs)
    return undiagnosed("there are too many pairs");
  const SharedGradientSums sums(problem, input, out, contract);
  const SharedSums right = sums.compute({});
  Trials<SharedSums> trials;
  for (const SharedHypothesis& h : hypotheses) {
    SharedFormula f;
    if (!h.alter(f, problem, out)) continue;
    SharedSums x = sums.compute(f);
    if (same(x, right)) continue;
    const double distance = sums.fits(x, right).given.excess();
    trials.add({h.name, std::string(h.words), distance, std::move(x)});
  }
  return trials.explain(sums.elements(), same, [&](const SharedSums& x, const auto& take) {
    take(std::string(), sums.fits(x, right));
  });
}

}  // namespace assay
