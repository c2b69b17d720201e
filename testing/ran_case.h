// Helpers for properties of drawn cases: tensors of any shape, a case with its inputs, the results
// of a kernel for problems like it, and the oracle's enclosures of them.
#pragma once

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/judging/outputs.h"
#include "oracle/backward.h"
#include "testing/any_case.h"
#include "testing/contract_of.h"

namespace assay {

inline Tensor contiguous(Dtype dtype, const Extents& shape) {
  return Tensor(dtype, shape, make_layout(LayoutKind::bhsd, shape, 1));
}

// Makes a contiguous tensor of this shape, whose element (b, h, i, d) is from(b, h, i, d).
template <class From>
Tensor made(Dtype dtype, const Extents& shape, const From& from) {
  Tensor t = contiguous(dtype, shape);
  for_each_index(shape, [&](Index b, Index h, Index i, Index d) {
    store(t.view(), t.view().at(b, h, i, d), from(b, h, i, d));
  });
  return t;
}
inline double at(const TensorView& t, Index b, Index h, Index i, Index d) {
  return load(t, t.at(b, h, i, d));
}

inline Candidate& production_kernel() {
  static const auto host = make_candidate("host");
  return *host;
}

// A case with its inputs, and a kernel that run() calls for problems of this kind.
struct Ran {
  explicit Ran(const Case& of, Candidate& by = production_kernel())
      : c(of), in(of), how(execution_of(of)), kernel(by) {}
  Ran(const Ran&) = delete;
  Ran& operator=(const Ran&) = delete;

  Outputs run(const Attention& p, int threads = 1) const {
    Case shape = c;
    shape.shape = p.shape;
    shape.o_layout = LayoutKind::bhsd;  // a packed layout would depend on the number of heads
    Outputs out(shape);
    const kernels::Status status = kernel.run({ForwardCall{p, out.view()}, {threads, how.target}});
    RC_ASSERT(status.ok());
    return out;
  }

  const Case c;
  const Inputs in;
  const kernels::Execution how;  // on one thread, unless run() is told otherwise
  Candidate& kernel;
};

// Requires that two outputs are equal. A failure names the first element that differs.
inline void require_same(const Outputs& a, const Outputs& b) {
  RC_ASSERT(first_difference(a, b) == std::string());
}

// The results that a kernel that keeps its contract may give for an element. They differ from
// `exact` by at most `bound`, which includes the rounding to the output dtype.
struct Enclosed {
  double exact = 0, bound = 0;  // exact is NaN where NaN belongs
  // If false, the bound decides nothing, because a sum may leave the range or only the hull of V is
  // asked.
  bool known = false;

  bool holds(double y) const { return std::fabs(y - exact) <= bound; }
};

inline Enclosed enclosed(double exact, double bound, Dtype out, const Contract& contract) {
  if (unit_roundoff(out) > contract.roundoff) bound += half_ulp(out, std::fabs(exact) + bound);
  return {exact, bound, std::fabs(exact) + bound < overflow_threshold(out)};
}

// The enclosures of every row of O and LSE of a problem.
class Enclosures {
 public:
  Enclosures(const Attention& p, const Contract& contract, Dtype out)
      : shape_(p.shape), o_(count(p.shape.value_dim)), lse_(count(1)) {
    const Reference reference(p, contract);
    for (Index b = 0; b < shape_.batch; ++b)
      for (Index h = 0; h < shape_.query_heads; ++h) {
        const KeyValuesPointer kv = reference.load_head(b, h / shape_.group());
        for (Index i = 0; i < shape_.rows; ++i) {
          Block block = reference.evaluate(*kv, h, {&i, 1});
          const BlockRow& row = block.row(0);
          if (row.needs_ball) RC_ASSERT(reference.refine(*kv, block, 0, 128));
          const double slack = 1 + std::min(row.slack, 1.0);
          const bool decided = row.domain == Domain::bounded;
          Enclosed& l = lse_[index(b, h, i, 1)];
          if (row.lse.kind == Kind::finite) {
            l = enclosed(row.lse.value, row.lse.bound * slack + row.lse.radius, Dtype::f32,
                         contract);
            l.known = l.known && decided;
          } else {
            l = {row.lse.kind == Kind::nan ? std::nan("") : -INFINITY, 0, false};
          }
          for (Index c = 0; c < shape_.value_dim; ++c) {
            Enclosed& e = o_[index(b, h, i, shape_.value_dim) + usize(c)];
            const BlockElement& exact = block.element(0, c);
            if (row.fully_masked) e = {0, 0, true};
            else if (exact.kind != Kind::finite)
              e = {exact.kind == Kind::nan             ? std::nan("")
                   : exact.kind == Kind::plus_infinity ? INFINITY
                                                       : -INFINITY,
                   0, false};
            else {
              e = enclosed(exact.value, exact.bound * slack + exact.radius, out, contract);
              e.known = e.known && decided && !exact.value_overflow;
            }
          }
        }
      }
  }
  const Enclosed& o(Index b, Index h, Index i, Index c) const {
    return o_[index(b, h, i, shape_.value_dim) + usize(c)];
  }
  const Enclosed& lse(Index b, Index h, Index i) const { return lse_[index(b, h, i, 1)]; }

 private:
  std::size_t count(Index columns) const { return index(shape_.batch, 0, 0, columns); }
  std::size_t index(Index b, Index h, Index i, Index columns) const {
    return usize(((b * shape_.query_heads + h) * shape_.rows + i) * columns);
  }
  AttentionShape shape_;
  std::vector<Enclosed> o_, lse_;
};

// The gradients of a problem as the kernel of a case computes them, and their enclosures. dBias has
// an element for every pair.
class RanBackward {
 public:
  RanBackward(const Ran& r, const Attention& p, const TensorView& d_o)
      : shape_(p.shape),
        forward_(r.run(p)),
        contract_(contract_of(r.kernel, p, {1, r.how.target})),
        storage_(r.c, r.in),
        d_bias_(contiguous(Dtype::f32, shape_.pair_extents())),
        out_(storage_.view()) {
    out_.d_bias = d_bias_.view();
    const AttentionBackwardInput input{forward_.o.view(), forward_.lse.view(), d_o};
    const kernels::Status status = r.kernel.run({BackwardCall{p, input, out_}, {1, r.how.target}});
    RC_ASSERT(status.ok());
    const BackwardReference reference(p, input, out_, contract_);
    shared_ = reference.no_shared_gradients();
    std::vector<Index> rows(usize(shape_.rows));
    std::iota(rows.begin(), rows.end(), Index{0});
    for (Index b = 0; b < shape_.batch; ++b)
      for (Index g = 0; g < shape_.kv_heads; ++g)
        groups_.push_back(reference.evaluate(b, g, rows, shared_));
    reference.finish(shared_);
    for_each_index(out_.d_bias.shape, [&](Index b, Index h, Index i, Index j) {
      bias_element_.push_back(reference.bias_element(b, h, i, j));
    });
  }
  const Outputs& forward() const { return forward_; }
  const AttentionGradients& out() const { return out_; }

  Enclosed dq(Index b, Index h, Index i, Index d) const {
    return enclosure(group(b, h / shape_.group()).dq[usize(h % shape_.group())], i, d,
                     out_.dq.dtype);
  }
  Enclosed dk(Index b, Index g, Index j, Index d) const {
    return enclosure(group(b, g).dk, j, d, out_.dk.dtype);
  }
  Enclosed dv(Index b, Index g, Index j, Index d) const {
    return enclosure(group(b, g).dv, j, d, out_.dv.dtype);
  }
  Enclosed d_bias(Index b, Index h, Index i, Index j) const {
    return enclosure(
        shared_.d_bias,
        bias_element_[usize(((b * shape_.query_heads + h) * shape_.rows + i) * shape_.keys + j)], 0,
        Dtype::f32);
  }
  Enclosed d_sink(Index h) const { return enclosure(shared_.d_sink, h, 0, Dtype::f32); }

 private:
  const GroupGradients& group(Index b, Index g) const {
    return groups_[usize(b * shape_.kv_heads + g)];
  }
  Enclosed enclosure(const Gradient& g, Index row, Index column, Dtype dtype) const {
    const auto r = usize(row), e = usize(row * g.columns + column);
    if (!g.touched[r]) return {0, 0, true};
    if (g.taint[e] == Taint::nan) return {std::nan(""), 0, false};
    Enclosed of = enclosed(g.value[e], g.bound[e] * (1 + std::min(g.slack[r], 1.0) + g.ratio[r]),
                           dtype, contract_);
    of.known = of.known && g.taint[e] == Taint::none && !g.may_overflow[e];
    return of;
  }

  const AttentionShape shape_;
  const Outputs forward_;
  const Contract contract_;
  const GradientOutputs storage_;
  const Tensor d_bias_;
  AttentionGradients out_;
  std::vector<GroupGradients> groups_;
  SharedGradients shared_;
  std::vector<Index> bias_element_;
};

}  // namespace assay
