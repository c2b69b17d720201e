#include <limits>

#include "harness/judging/step.h"
#include "oracle/backward_verdict.h"
#include "oracle/visibility.h"

namespace assay {

Call BackwardStep::call(const Out& out) const {
  return BackwardCall{in.problem, input(), out.view()};
}

WatchedInputs BackwardStep::watched() const {
  return {{{"q", &in.q},
           {"k", &in.k},
           {"v", &in.v},
           {"bias", &in.bias},
           {"o", &forward.o},
           {"lse", &forward.lse},
           {"d_o", &in.d_o},
           {"d_lse", &in.d_lse}},
          &in.keep};
}

Verdict BackwardStep::judge(const Out& out, const std::optional<Arithmetic>& arithmetic,
                            const JudgeOptions& options) const {
  if (!arithmetic) return judge_backward_by_ladder(in.problem, input(), out.view(), options);
  const auto& contract = std::get<Contract>(*arithmetic);
  return judge_backward(in.problem, input(), out.view(), contract, options);
}

Diagnosis BackwardStep::diagnose(const Out& out, const std::optional<Arithmetic>& arithmetic,
                                 const Verdict& failed, const JudgeOptions& options) const {
  const Contract* contract = arithmetic ? &std::get<Contract>(*arithmetic) : nullptr;
  return diagnose_backward(anchored<Attention>(in.problem, conventions), input(), out.view(),
                           contract, failed, options);
}

void BackwardStep::add_to(CaseResult& result, const Verdict& v) const {
  add_gradients(result.verdict, v);
}

namespace {

using AskedBackward = Asked<BackwardStep>;

BackwardStep with_inputs(const BackwardStep& step, const Inputs& in) {
  return {step.c, in, step.forward, step.conventions, step.with_d_sink};
}

void negate_gradients(const GradientOutputs& out) {
  for (const Tensor* t : {&out.dq, &out.dk, &out.dv, &out.d_sink}) negate_elements(t->view());
  // Visits every element of the storage once, even if several indices share it.
  const TensorView& flat = out.d_bias.view();
  const auto elements = static_cast<Index>(out.d_bias.size_in_bytes()) / 4;
  for (Index e = 0; flat && e < elements; ++e) store(flat, e, -load(flat, e));
}

// -dO and -dLSE instead of dO and dLSE negate every gradient.
Relation negated_gradient(const AskedBackward& asked) {
  const BackwardStep& step = asked.step;
  const Inputs changed(step.in);
  if (!scale_exactly(changed.d_o, -1)) return Relation::not_applicable("dO is not finite");
  if (changed.d_lse.view() && !scale_exactly(changed.d_lse, -1))
    return Relation::not_applicable("dLSE is not finite");
  return same_after(asked, with_inputs(step, changed), execution_of(step.c), negate_gradients);
}

Relation unseen_keys_nan(const AskedBackward& asked) {
  const BackwardStep& step = asked.step;
  if (shares_keys(step.c)) return Relation::not_applicable("keys are shared");
  if (a_key_may_spread(step.conventions, step.in.problem))
    return Relation::not_applicable("a key holds NaN or an infinity, which may spread");
  return ask_with_nan(step.conventions, step.in.problem, [&](const UnseenFill& fill) {
    const Inputs changed(step.in);
    if (overwrite_unseen_keys(step.c, changed, step.conventions, step.c.shape.rows, fill) == 0)
      return Relation::not_applicable("every key is seen");
    return same_after(asked, with_inputs(step, changed), execution_of(step.c));
  });
}

constexpr RelationOf<BackwardStep> backward_relations[] = {
    {"threads", same_on_other_threads<BackwardStep>},
    {"negated-gradient", negated_gradient},
    {"unseen-keys-nan", unseen_keys_nan},
};

}  // namespace

std::span<const RelationOf<BackwardStep>> BackwardStep::relations() const {
  return backward_relations;
}

}  // namespace assay
