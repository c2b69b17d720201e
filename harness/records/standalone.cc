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

// The exact outputs of a case, and the largest error that fp32 arithmetic can make.
struct ExactOutputs {
  std::vector<double> o, o_bound;      // [B, Hq, Lq, Dv]
  std::vector<double> lse, lse_bound;  // [B, Hq, Lq]
};

ExactOutputs exact_outputs(const ProjectedAttention& p, Dtype out_dtype) {
  const AttentionShape& s = p.shape;
  const Reference reference(p, host_contract(p, kernels::Target().name()));
  const auto bound_of = [&](const BlockElement& e, Domain domain) {
    if (e.kind != Kind::finite) return 0.0;
    const double computed = domain == Domain::bounded ? e.bound + e.radius : INFINITY;
    const double reach = std::fabs(e.value) + computed;
    return computed + (out_dtype == Dtype::f32 ? 0 : half_ulp(out_dtype, reach));
  };
  ExactOutputs exact;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h) {
      const KeyValuesPointer kv = reference.load_head(b, h / s.group());
      for (Index i = 0; i < s.rows; ++i) {
        const Block block = reference.evaluate(*kv, h, {&i, 1});
        const BlockRow& row = block.row(0);
        const Certified& lse = row.lse;
        exact.lse.push_back(value_of(lse));
        exact.lse_bound.push_back(lse.kind == Kind::finite ? lse.bound + lse.radius : 0);
        for (const BlockElement& e : block.o) {
          exact.o.push_back(value_of(e));
          exact.o_bound.push_back(bound_of(e, row.domain));
        }
      }
    }
  return exact;
}

std::string introduction(const Case& c, const Attention& p) {
  const AttentionShape& s = c.shape;
  return fmt::format(
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
}

std::string inputs_text(const Attention& p) {
  const AttentionShape& s = p.shape;
  std::string text;
  for (const auto& [name, t] : {std::pair{"q", &p.q}, {"k", &p.k}, {"v", &p.v}})
    text += array("double", name, t->shape, [&view = *t](Index b, Index h, Index i, Index d) {
      return load(view, view.at(b, h, i, d));
    });
  RowVisibility row;
  text += array("double", "bias", s.pair_extents(), [&](Index b, Index h, Index i, Index j) {
    if (j == 0) evaluate_visibility(p, b, h, i, row);
    return row.bias[usize(j)];
  });
  text += array("double", "sink", {1, 1, 1, s.query_heads}, [&](Index, Index, Index, Index h) {
    return p.sink.empty() ? -INFINITY : p.sink[usize(h)];
  });
  return text;
}

std::string outputs_text(const ExactOutputs& exact, const AttentionShape& s) {
  const auto numbers = [](const char* name, const Extents& e, const std::vector<double>& data) {
    return array("double", name, e, [&](Index b, Index h, Index i, Index d) {
      return data[usize(((b * e[1] + h) * e[2] + i) * e[3] + d)];
    });
  };
  return numbers("exact_o", s.o_extents(), exact.o) +
         numbers("bound_o", s.o_extents(), exact.o_bound) +
         numbers("exact_lse", s.lse_extents(), exact.lse) +
         numbers("bound_lse", s.lse_extents(), exact.lse_bound);
}

// The comparison, which is the same for every case.
constexpr const char* comparison =
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
  const Inputs inputs(c);
  const ProjectedAttention& p = inputs.problem;
  return introduction(c, p) + inputs_text(p) +
         outputs_text(exact_outputs(p, c.out_dtype()), c.shape) + comparison;
}

}  // namespace assay
