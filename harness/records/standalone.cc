#include "harness/records/standalone.h"

#include <fmt/format.h>

#include <cmath>

#include "harness/candidates/contracts.h"
#include "kernels/simd/targets.h"
#include "oracle/reference.h"
#include "problem/generate.h"

namespace assay {
namespace {

std::string literal(double x) {
  if (std::isnan(x)) return "NAN";
  if (std::isinf(x)) return x > 0 ? "INFINITY" : "-INFINITY";
  return fmt::format("{:a}", x);
}

template <class Get>
std::string array(const char* type, const char* name, const Extents& shape, const Get& get) {
  std::string text = fmt::format("static const {} {}[{}][{}][{}][{}] = {{", type, name, shape[0],
                                 shape[1], shape[2], shape[3]);
  Index n = 0;
  for (Index b = 0; b < shape[0]; ++b)
    for (Index h = 0; h < shape[1]; ++h)
      for (Index i = 0; i < shape[2]; ++i)
        for (Index d = 0; d < shape[3]; ++d)
          text += fmt::format("{}{},", n++ % 6 == 0 ? "\n    " : " ", literal(get(b, h, i, d)));
  return text + "\n};\n";
}

double value_of(const Certified& x) {
  switch (x.kind) {
    case Kind::nan: return NAN;
    case Kind::plus_infinity: return INFINITY;
    case Kind::minus_infinity: return -INFINITY;
    case Kind::finite: break;
  }
  return x.value;
}

}  // namespace

std::optional<std::string> has_no_standalone(const Case& c) {
  if (c.operation != Operation::attention)
    return "standalone files exist for the operation attention only";
  const AttentionShape& s = c.shape;
  const Index elements = s.batch * (s.query_heads * s.rows * (s.dim + 2 * s.value_dim + s.keys) +
                                    s.kv_heads * s.keys * (s.dim + s.value_dim));
  if (elements > 65536)
    return fmt::format(
        "the case has {} elements; a standalone file takes at most 65536, so shrink it first",
        elements);
  return std::nullopt;
}

std::string standalone_program(const Case& c) {
  if (const auto why = has_no_standalone(c)) throw CaseError(0, *why);
  const AttentionShape& s = c.shape;
  const Inputs inputs(c);
  const ProjectedAttention& p = inputs.problem;
  const Contract contract = host_contract(p, kernels::Target().name());
  const Reference reference(p, contract);

  std::vector<double> o(usize(s.batch * s.query_heads * s.rows * s.value_dim)), bound(o.size());
  std::vector<double> lse(usize(s.batch * s.query_heads * s.rows)), lse_bound(lse.size());
  for (Index b = 0; b < s.batch; ++b)
    for (Index g = 0; g < s.kv_heads; ++g) {
      const KeyValuesPointer kv = reference.load_head(b, g);
      for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h)
        for (Index i = 0; i < s.rows; ++i) {
          const Block block = reference.evaluate(*kv, h, {&i, 1});
          const BlockRow& row = block.row(0);
          const auto at = usize((b * s.query_heads + h) * s.rows + i);
          lse[at] = value_of(row.lse);
          lse_bound[at] = row.lse.kind == Kind::finite ? row.lse.bound + row.lse.radius : 0;
          for (Index d = 0; d < s.value_dim; ++d) {
            const BlockElement& e = block.element(0, d);
            const std::size_t to = at * usize(s.value_dim) + usize(d);
            o[to] = value_of(e);
            const double computed = row.domain == Domain::bounded ? e.bound + e.radius : INFINITY;
            const double rounding = c.out_dtype() == Dtype::f32
                                        ? 0
                                        : half_ulp(c.out_dtype(), std::fabs(e.value) + computed);
            bound[to] = e.kind == Kind::finite ? computed + rounding : 0;
          }
        }
    }

  std::string text = fmt::format(
      "// {}\n//\n"
      "// Everything of one case of attention: inputs, exact outputs (rounded to double) and, for "
      "every element, the\n"
      "// largest error that fp32 arithmetic can make. Write attention_under_test(), compile, run: "
      "exit status 0\n"
      "// means that every element is within its bound.\n"
      "//\n"
      "// Inputs are values of {}; the output is to be rounded to {}. bias is what is added to the "
      "scaled{} scores:\n"
      "// every mask of the case in one array, -INFINITY where a key is masked.\n"
      "#include <math.h>\n#include <stdio.h>\n\n"
      "enum {{ B = {}, HQ = {}, HKV = {}, LQ = {}, LK = {}, D = {}, DV = {} }};\n"
      "static const double scale = {}, softcap = {};  // softcap 0: none\n",
      print_case(c), format(c.dtype).name, format(c.out_dtype()).name,
      c.softcap > 0 ? " and capped" : "", s.batch, s.query_heads, s.kv_heads, s.rows, s.keys, s.dim,
      s.value_dim, literal(p.scale), literal(p.softcap));
  auto from = [](const TensorView& t) {
    return [&t](Index b, Index h, Index i, Index d) { return load(t, t.at(b, h, i, d)); };
  };
  text += array("double", "q", p.q.shape, from(p.q)) + array("double", "k", p.k.shape, from(p.k)) +
          array("double", "v", p.v.shape, from(p.v));
  RowVisibility row;
  text += array("double", "bias", {s.batch, s.query_heads, s.rows, s.keys},
                [&](Index b, Index h, Index i, Index j) {
                  if (j == 0) evaluate_visibility(p, b, h, i, row);
                  return row.bias[usize(j)];
                });
  text += array("double", "sink", {1, 1, 1, s.query_heads}, [&](Index, Index, Index, Index h) {
    return p.sink.empty() ? -INFINITY : p.sink[usize(h)];
  });
  const Extents o_shape{s.batch, s.query_heads, s.rows, s.value_dim},
      lse_shape{s.batch, s.query_heads, s.rows, 1};
  auto pick = [](const std::vector<double>& data, const Extents& e) {
    return [&data, e](Index b, Index h, Index i, Index d) {
      return data[usize(((b * e[1] + h) * e[2] + i) * e[3] + d)];
    };
  };
  text += array("double", "exact_o", o_shape, pick(o, o_shape)) +
          array("double", "bound_o", o_shape, pick(bound, o_shape));
  text += array("double", "exact_lse", lse_shape, pick(lse, lse_shape)) +
          array("double", "bound_lse", lse_shape, pick(lse_bound, lse_shape));
  text +=
      "\n// Yours: fill o and lse.\n"
      "#ifdef __cplusplus\nextern \"C\"\n#endif\n"
      "void attention_under_test(const double* q, const double* k, const double* v, const double* "
      "bias, const double* sink,\n"
      "                          double scale, double softcap, double* o, double* lse);\n\n"
      "static double o[B * HQ * LQ * DV], lse[B * HQ * LQ];\n\n"
      "static int wrong(const char* what, int index, double got, double exact, double bound) {\n"
      "  if (isnan(exact) ? isnan(got) : isinf(exact) ? got == exact : fabs(got - exact) <= bound) "
      "return 0;\n"
      "  printf(\"%s[%d] = %.17g, exact %.17g, bound %.3g\\n\", what, index, got, exact, bound);\n"
      "  return 1;\n}\n\n"
      "int main(void) {\n  int failures = 0, i;\n"
      "  for (i = 0; i < B * HQ * LQ * DV; ++i) o[i] = NAN;\n  for (i = 0; i < B * HQ * LQ; ++i) "
      "lse[i] = NAN;\n"
      "  attention_under_test(&q[0][0][0][0], &k[0][0][0][0], &v[0][0][0][0], &bias[0][0][0][0], "
      "&sink[0][0][0][0], scale, softcap, o, lse);\n"
      "  for (i = 0; i < B * HQ * LQ * DV; ++i) failures += wrong(\"O\", i, o[i], "
      "(&exact_o[0][0][0][0])[i], (&bound_o[0][0][0][0])[i]);\n"
      "  for (i = 0; i < B * HQ * LQ; ++i) failures += wrong(\"LSE\", i, lse[i], "
      "(&exact_lse[0][0][0][0])[i], (&bound_lse[0][0][0][0])[i]);\n"
      "  printf(\"%d of %d elements are outside their bounds\\n\", failures, B * HQ * LQ * (DV + "
      "1));\n"
      "  return failures != 0;\n}\n";
  return text;
}

}  // namespace assay
