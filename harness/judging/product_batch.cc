#include "harness/judging/product_batch.h"

#include <fmt/format.h>

#include <cmath>
#include <deque>

#include "harness/judging/state.h"

namespace assay {
namespace {

constexpr Index batch_size = 3;

// Three products, and a C for each. This object must not move.
struct Batch {
  explicit Batch(const Asked<ProductStep>& asked) {
    const Case& c = asked.step.c;
    const Surroundings around = asked.step.in.around;
    const ProductSpec& p = c.product;
    const Case other = with_other_contents(c, asked.candidate);
    for (Index b = 0; b < batch_size; ++b) {
      Case element = b == 0 ? c : other;
      element.seed += static_cast<std::uint64_t>(b);
      products.push_back(inputs.emplace_back(element, around).problem);
    }
    const Extents shape{batch_size, 1, p.m, p.k}, c_shape{batch_size, 1, p.m, p.n};
    out = Tensor(c.out_dtype(), c_shape, make_layout(c.o_layout, c_shape, 1), around);
    if (p.a_format) return;
    a = Tensor(c.dtype, shape, make_layout(c.q_layout, shape, 1), around);
    // The storage between the rows holds NaN, because it must never be read.
    const TensorView to = a.view();
    for (Index e = 0; e < static_cast<Index>(a.size_in_bytes()) * 8 / format(c.dtype).bits; ++e)
      store(to, e, std::nan(""));
    for (Index b = 0; b < batch_size; ++b)
      for (Index m = 0; m < p.m; ++m)
        for (Index k = 0; k < p.k; ++k) {
          const TensorView& from = products[usize(b)].a;
          store(to, to.at(b, 0, m, k), load(from, from.at(0, 0, m, k)));
        }
  }
  Batch(const Batch&) = delete;

  ProductBatch call() const { return {products, a.view(), out.view()}; }
  WatchedInputs watched() const {
    WatchedInputs all{{{"a", &a}}};
    for (const ProductInputs& in : inputs)
      for (const auto& [name, tensor] : {WatchedInputs::Named{"a.codes", &in.a_low.codes()},
                                         {"a.scales", &in.a_low.scales()},
                                         {"w.codes", &in.w.codes()},
                                         {"w.scales", &in.w.scales()},
                                         {"w.extra", &in.w.extra()}})
        all.tensors.push_back({name, tensor});
    return all;
  }
  TensorView c_of(Index b) const {
    TensorView part = out.view();
    part.origin = part.at(b, 0, 0, 0);
    part.shape[0] = 1;
    return part;
  }

  std::deque<ProductInputs> inputs;
  std::vector<Product> products;
  Tensor a, out;
};

}  // namespace

Relation product_batch(const Asked<ProductStep>& asked) {
  Guest& guest = *asked.candidate.guest();
  const Batch batch(asked);
  const ProductBatch call = batch.call();
  if (const std::string why = guest.declines(call); !why.empty())
    return Relation::not_applicable(why);
  const kernels::Execution how = execution_of(asked.step.c);
  const auto run = [&] { return failure_in([&] { return guest.run(call, how); }); };
  if (std::string wrong =
          call_guarded(run, batch.watched(), {{Output::c, &batch.out}}, Poison::nan);
      !wrong.empty())
    return Relation::violated(fmt::format("a batch of {}: {}", batch_size, wrong));
  // What the candidate declared when it was asked about the batch.
  const auto contract = declared<ProductContract>(
      asked.candidate, ProductCall{batch.products[0], batch.c_of(0)}, how);
  for (Index b = 0; b < batch_size; ++b) {
    const Product& p = batch.products[usize(b)];
    const Verdict v = contract ? judge_product(p, batch.c_of(b), *contract, asked.judging)
                               : judge_product_by_ladder(p, batch.c_of(b), asked.judging);
    if (v.outcome == Outcome::fail)
      return Relation::violated(
          fmt::format("product {} of a batch of {}: {}", b, batch_size, v.reason));
  }
  return Relation::held();
}

}  // namespace assay
