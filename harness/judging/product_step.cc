#include <limits>

#include "harness/judging/step.h"

namespace assay {

Call ProductStep::call(const Out& out) const { return ProductCall{in.problem, out.c.view()}; }

WatchedInputs ProductStep::watched() const {
  return {{{"a", &in.a},
           {"a.codes", &in.a_low.codes()},
           {"a.scales", &in.a_low.scales()},
           {"w.codes", &in.w.codes()},
           {"w.scales", &in.w.scales()},
           {"w.extra", &in.w.extra()}}};
}

Verdict ProductStep::judge(const Out& out, const std::optional<Arithmetic>& arithmetic,
                           const JudgeOptions& options) const {
  if (!arithmetic) return judge_product_by_ladder(in.problem, out.c.view(), options);
  const auto& contract = std::get<ProductContract>(*arithmetic);
  return judge_product(in.problem, out.c.view(), contract, options);
}

Diagnosis ProductStep::diagnose(const Out& out, const std::optional<Arithmetic>& arithmetic,
                                const Verdict& failed, const JudgeOptions& options) const {
  const ProductContract* contract = arithmetic ? &std::get<ProductContract>(*arithmetic) : nullptr;
  return diagnose_product(in.problem, out.c.view(), contract, failed, options);
}

void ProductStep::add_to(CaseResult& result, const Verdict& v) const {
  result.verdict = v;
  if (c.product.weights == Weights::quantized)
    result.quantization =
        quantization_error(in.problem, [&](Index k, Index n) { return original_weight(c, k, n); });
}

namespace {

using AskedProduct = Asked<ProductStep>;

// The product for row m alone.
Product row_of(const Product& p, Index m) {
  Product part = p;
  part.m = 1;
  if (p.a) {
    part.a.origin = p.a.at(0, 0, m, 0);
    part.a.shape[2] = 1;
    return part;
  }
  // The bytes of a low-bit A hold each row of A as a column.
  const LowBitSizes row = sizes_of(p.a_low.format, p.k, 1, p.a_low.group);
  part.a_low.n = 1;
  part.a_low.codes += m * row.codes;
  if (part.a_low.scales) part.a_low.scales += m * row.scales;
  return part;
}

// Computes each row in a call of its own.
Relation single_rows(const AskedProduct& asked) {
  const ProductStep& step = asked.step;
  if (step.c.product.m < 2) return Relation::not_applicable("there is one row");
  Case one = step.c;
  one.product.m = 1;
  asked.begins(one);
  const ProductOutput out = step.outputs();
  for (Index m = 0; m < step.c.product.m; ++m) {
    TensorView row = out.c.view();
    row.origin = row.at(0, 0, m, 0);
    row.shape[2] = 1;
    const Product problem = row_of(step.in.problem, m);
    const Request request{ProductCall{problem, row}, execution_of(step.c)};
    if (const std::string why = asked.candidate.unsupported(request.call); !why.empty())
      return Relation::not_applicable(why);
    const std::string wrong = call_plainly(asked.candidate, request);
    if (!wrong.empty()) return Relation::violated(wrong);
  }
  return Relation::unless(first_difference(asked.base, out));
}

// Every row is row 0. The kernels for many rows must make the same sums as those for few rows.
Relation many_rows(const AskedProduct& asked) {
  const ProductStep& step = asked.step;
  if (!step.in.problem.a || step.c.product.m == 0)
    return Relation::not_applicable("A is low-bit, or empty");
  constexpr Index times = 97;
  Case larger = step.c;
  larger.product.m = times;
  asked.begins(larger);
  const Index n = step.c.product.n;
  Product many = row_of(step.in.problem, 0);
  many.m = times;
  many.a.stride[2] = 0;
  many.a.shape[2] = times;
  const Layout layout{{0, 0, n, 1}, 0, times * n};
  const Tensor out(step.c.out_dtype(), {1, 1, times, n}, layout, step.in.around);
  const Request request{ProductCall{many, out.view()}, execution_of(step.c)};
  if (const std::string why = asked.candidate.unsupported(request.call); !why.empty())
    return Relation::not_applicable(why);
  const std::string wrong =
      call_guarded(asked.candidate, request, step.watched(), {{Output::c, &out}}, Poison::nan);
  if (!wrong.empty()) return Relation::violated(wrong);
  std::string difference;
  for (Index m = 0; m < times && difference.empty(); ++m)
    difference = first_difference_of_rows("C", asked.base.c.view(), 0, out.view(), m);
  return Relation::unless(difference);
}

// Runs the product on changed activations. `change(a)` returns the number of rows of C to compare.
template <class Change, class Undo>
Relation with_activations(const AskedProduct& asked, const Change& change, const Undo& undo) {
  const ProductStep& step = asked.step;
  if (!step.in.problem.a) return Relation::not_applicable("A is low-bit");
  const ProductInputs changed(step.in);
  const Index rows = change(changed.problem.a);
  if (rows == 0) return Relation::not_applicable("no such rows");
  const ProductStep other{step.c, changed};
  return same_after(asked, other, execution_of(step.c), undo, rows);
}

// -A instead of A gives -C instead of C.
Relation negated_activations(const AskedProduct& asked) {
  return with_activations(
      asked, [](const TensorView& a) { return negate_elements(a), a.shape[2]; },
      [](const ProductOutput& out) { negate_elements(out.c.view()); });
}

// NaN in the second half of the rows must not reach the first half.
Relation rows_apart(const AskedProduct& asked) {
  return with_activations(
      asked,
      [](const TensorView& a) {
        const Index rows = a.shape[2] / 2;
        for (Index m = rows; m < a.shape[2]; ++m)
          for (Index k = 0; k < a.shape[3]; ++k)
            store(a, a.at(0, 0, m, k), std::numeric_limits<double>::quiet_NaN());
        return rows;
      },
      [](const ProductOutput&) {});
}

constexpr RelationOf<ProductStep> product_relations[] = {
    {"threads", same_on_other_threads<ProductStep>},
    {"single-rows", single_rows, true},
    {"many-rows", many_rows, true},
    {"negated-activations", negated_activations},
    {"rows-apart", rows_apart},
};

}  // namespace

std::span<const RelationOf<ProductStep>> ProductStep::relations() const {
  return product_relations;
}

}  // namespace assay
