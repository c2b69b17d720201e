// Measures the least that an execution of the targets that judge cases can cost: the case is
// decoded from its bytes, its inputs are made, and the outputs are computed by plain loops in fp64.
// There is no kernel, no bound and no comparison. Sinks, dropout and the slope of the softcap cost
// nearly nothing, so they are left out.
#include <cmath>
#include <limits>
#include <string_view>

#include "fuzz/inputs.h"
#include "harness/cases/draw_case.h"
#include "harness/kept_memory.h"
#include "oracle/product.h"
#include "oracle/visibility.h"
#include "problem/generate.h"

namespace assay {
namespace {

using Matrix = std::vector<double>;

Matrix widened(const TensorView& t, Index b, Index h, Index rows, Index columns) {
  Matrix m(usize(rows * columns));
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) m[usize(i * columns + j)] = load(t, t.at(b, h, i, j));
  return m;
}

double dot(const double* a, const double* b, Index n) {
  double sum = 0;
  for (Index k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

// Returns a number that depends on every output, so that nothing is optimized away.
double plain_attention(const Attention& p, const TensorView& d_o) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const AttentionShape& s = p.shape;
  const auto at = [](Index row, Index width) { return usize(row * width); };
  double all = 0;
  RowVisibility row;
  std::vector<double> weight(usize(s.keys)), o(usize(s.value_dim));
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h) {
      const Index g = h / (s.query_heads / s.kv_heads);
      const Matrix q = widened(p.q, b, h, s.rows, s.dim), k = widened(p.k, b, g, s.keys, s.dim),
                   v = widened(p.v, b, g, s.keys, s.value_dim);
      Matrix dq, dk, dv, up;
      if (d_o)
        up = widened(d_o, b, h, s.rows, s.value_dim), dq.resize(q.size()), dk.resize(k.size()),
        dv.resize(v.size());
      for (Index i = 0; i < s.rows; ++i) {
        evaluate_visibility(p, b, h, i, row);
        double most = -infinity, sum = 0;
        for (Index j = row.begin; j < row.end; ++j) {
          double score = p.scale * dot(&q[at(i, s.dim)], &k[at(j, s.dim)], s.dim);
          if (p.softcap > 0) score = p.softcap * std::tanh(score / p.softcap);
          weight[usize(j)] = score + row.bias[usize(j)];
          most = std::max(most, weight[usize(j)]);
        }
        std::ranges::fill(o, 0);
        for (Index j = row.begin; j < row.end; ++j) {
          double& w = weight[usize(j)];
          sum += w = std::exp(w - most);
          for (Index c = 0; c < s.value_dim; ++c)
            o[usize(c)] += w * v[at(j, s.value_dim) + usize(c)];
        }
        all += most + std::log(sum);
        for (double& x : o) all += x /= sum;
        if (!d_o) continue;
        const double* go = &up[at(i, s.value_dim)];
        const double delta = dot(go, o.data(), s.value_dim);
        for (Index j = row.begin; j < row.end; ++j) {
          const double w = weight[usize(j)] / sum,
                       ds = p.scale * w * (dot(go, &v[at(j, s.value_dim)], s.value_dim) - delta);
          for (Index c = 0; c < s.value_dim; ++c) dv[at(j, s.value_dim) + usize(c)] += w * go[c];
          for (Index c = 0; c < s.dim; ++c) {
            dq[at(i, s.dim) + usize(c)] += ds * k[at(j, s.dim) + usize(c)];
            dk[at(j, s.dim) + usize(c)] += ds * q[at(i, s.dim) + usize(c)];
          }
        }
      }
      for (const Matrix* m : {&dq, &dk, &dv})
        for (const double x : *m) all += x;
    }
  return all;
}

double plain_product(const Product& p) {
  const Matrix a = decode_activations(p), w = decode_weights(p.w);
  Matrix c(usize(p.m * p.n));
  for (Index i = 0; i < p.m; ++i)
    for (Index k = 0; k < p.k; ++k)
      for (Index j = 0; j < p.n; ++j)
        c[usize(i * p.n + j)] += a[usize(i * p.k + k)] * w[usize(k * p.n + j)];
  double all = 0;
  for (const double x : c) all += x;
  return all;
}

volatile double kept;

void execute_plainly(CaseKind kind, const FuzzInput& input) {
  const Case c = case_of_bytes(kind, {input.bytes.get(), input.size});
  if (kind == CaseKind::product) {
    const ProductInputs in(c);
    kept = plain_product(in.problem);
  } else {
    const Inputs in(c);
    kept = plain_attention(in.problem,
                           c.operation == Operation::backward ? in.d_o.view() : TensorView{});
  }
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  assay::keep_freed_memory();
  using enum assay::CaseKind;
  const std::string_view name = argc > 1 ? argv[1] : "";
  for (const auto& [target, kind] : {std::pair{"forward", forward},
                                     {"backward", backward},
                                     {"cache", cached},
                                     {"product", product}})
    if (name == target)
      return assay::for_inputs(argc - 1, argv + 1, [&](const assay::FuzzInput& input) {
        assay::execute_plainly(kind, input);
      });
  std::fprintf(stderr,
               "usage: fuzz_limit forward|backward|cache|product [--seconds S] FOLDER...\n");
  return 2;
}
