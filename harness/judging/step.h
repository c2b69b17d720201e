// Inside harness/: the steps of a case. A step is one call of the candidate whose outputs are
// judged: O and LSE, the gradients, or a product. A case of attention or of a product has one step;
// a case of a backward pass has two.
//
// A step type S says:
//   S::Out                            its outputs, a set of named tensors
//   S::what                           how messages call them
//   Out outputs() const               fresh ones
//   Call call(const Out&) const       the call that fills them
//   WatchedInputs watched() const     what that call reads
//   Verdict judge(out, arithmetic, options) const
//   Diagnosis diagnose(out, arithmetic, failed, options) const
//   void add_to(result, verdict) const  puts the verdict into the result of the case
//   std::span<const RelationOf<S>> relations() const
#pragma once

#include <functional>
#include <span>
#include <string>

#include "harness/judging/guarded_call.h"
#include "harness/results/result.h"

namespace assay {

// A step that has run, and the outputs that its relations are compared with.
template <class Step>
struct Asked {
  const Step& step;
  Candidate& candidate;
  const typename Step::Out& base;
  // Called before the candidate computes another problem than that of the step.
  const std::function<void(const Case& problem)>& begins;
  const JudgeOptions& judging;  // for a relation whose second problem is judged too
  Promises bound = 0;           // what the candidate promises, or is required to hold
};

// A metamorphic relation: a second problem whose outputs follow bit for bit from those of the
// first, whatever these are. It needs no bound, so it finds errors that stay within the bound.
// docs/verdict.md lists the relations.
template <class Step>
struct RelationOf {
  const char* name;
  Relation (*ask)(const Asked<Step>&);
  bool needs_promise = false;  // it holds only for a candidate that promises bits
};

template <class Step>
void clear_unread(const Step& step, const typename Step::Out& out) {
  if constexpr (requires { step.clear_unread(out); }) step.clear_unread(out);
}

template <class Step>
std::string run_guarded(const Step& step, Candidate& candidate, const typename Step::Out& out,
                        Poison with, const kernels::Execution& how, bool* answered = nullptr) {
  std::string wrong =
      call_guarded(candidate, {step.call(out), how}, step.watched(), out.named(), with, answered);
  clear_unread(step, out);
  return wrong;
}

// Runs a changed step and calls `undo(outputs)`, which reverses the effect of the change. Then
// compares the first `rows` rows of every head (negative: all).
template <class Step, class Undo>
Relation same_after(const Asked<Step>& asked, const Step& changed, const kernels::Execution& how,
                    const Undo& undo, Index rows = -1) {
  asked.begins(changed.c);
  const typename Step::Out out = changed.outputs();
  const std::string wrong = run_guarded(changed, asked.candidate, out, Poison::nan, how);
  if (!wrong.empty()) return Relation::violated(wrong);
  undo(out);
  return Relation::unless(first_difference(asked.base, out, rows));
}
template <class Step>
Relation same_after(const Asked<Step>& asked, const Step& changed, const kernels::Execution& how,
                    Index rows = -1) {
  return same_after(asked, changed, how, [](const auto&) {}, rows);
}

template <class Step>
Relation same_on_other_threads(const Asked<Step>& asked) {
  return same_after(asked, asked.step, on_other_threads(asked.step.c));
}

// Computes O and LSE, directly or through a cache.
struct ForwardStep {
  using Out = Outputs;
  static constexpr const char* what = "outputs";

  const Case& c;
  const Inputs& in;
  bool with_lse = true;
  // The step is judged, and its relations are asked, under these conventions.
  Conventions conventions = Conventions::ours();
  PagesFrom pages = PagesFrom::encoder;  // of a cached case

  Out outputs() const { return Out(c, with_lse, in.around); }
  Call call(const Out& out) const;
  WatchedInputs watched() const;
  Verdict judge(const Out& out, const std::optional<Arithmetic>& arithmetic,
                const JudgeOptions& options) const;
  Diagnosis diagnose(const Out& out, const std::optional<Arithmetic>& arithmetic,
                     const Verdict& failed, const JudgeOptions& options) const;
  void add_to(CaseResult& result, const Verdict& v) const { result.verdict = v; }
  // Clears what may be anything by convention, so that runs can be compared.
  void clear_unread(const Out& out) const;
  std::span<const RelationOf<ForwardStep>> relations() const;
};

// Computes the gradients from the O and LSE of a forward step that was judged, of the candidate or
// of the host (forward_by_host).
struct BackwardStep {
  using Out = GradientOutputs;
  static constexpr const char* what = "gradients";

  const Case& c;
  const Inputs& in;
  const Outputs& forward;
  Conventions conventions = Conventions::ours();
  bool with_d_sink = true;

  Out outputs() const { return Out(c, in, with_d_sink); }
  Call call(const Out& out) const;
  WatchedInputs watched() const;
  AttentionBackwardInput input() const {
    return {forward.o.view(), forward.lse.view(), in.d_o.view(), in.d_lse.view()};
  }
  Verdict judge(const Out& out, const std::optional<Arithmetic>& arithmetic,
                const JudgeOptions& options) const;
  Diagnosis diagnose(const Out& out, const std::optional<Arithmetic>& arithmetic,
                     const Verdict& failed, const JudgeOptions& options) const;
  void add_to(CaseResult& result, const Verdict& v) const;
  std::span<const RelationOf<BackwardStep>> relations() const;
};

// Computes C = A W.
struct ProductStep {
  using Out = ProductOutput;
  static constexpr const char* what = "outputs";

  const Case& c;
  const ProductInputs& in;

  Out outputs() const { return Out(c, in.around); }
  Call call(const Out& out) const;
  WatchedInputs watched() const;
  Verdict judge(const Out& out, const std::optional<Arithmetic>& arithmetic,
                const JudgeOptions& options) const;
  Diagnosis diagnose(const Out& out, const std::optional<Arithmetic>& arithmetic,
                     const Verdict& failed, const JudgeOptions& options) const;
  void add_to(CaseResult& result, const Verdict& v) const;
  std::span<const RelationOf<ProductStep>> relations() const;
};

// Whether every element of a tensor can be multiplied by the factor without rounding. If so,
// multiplies them.
bool scale_exactly(const Tensor& t, double factor);
void negate_elements(const TensorView& t);
// What is written to keys that no row sees: those outside the length of their sequence, and others.
struct UnseenFill {
  double padding, masked;
};
// Fills K and V at the keys that no row of the first `rows` sees, under the conventions. Returns
// the number of these keys.
Index overwrite_unseen_keys(const Case& c, const Inputs& changed, const Conventions& conventions,
                            Index rows, const UnseenFill& fill);
// Asks `ask(fill)` with NaN. Most kernels of other libraries add 0 times NaN, so NaN at a masked
// key spreads to their outputs. If finite numbers there change nothing, the masks are right, and
// the spreading is a convention. It is a fault in two cases: beyond the length of a sequence, where
// memory may hold anything, and in a candidate that is declared to ignore such NaN.
Relation ask_with_nan(const Conventions& conventions, const Attention& p,
                      const std::function<Relation(const UnseenFill&)>& ask);
// Whether the outputs may hold, by convention, the NaN or infinity of a masked key. Then no masked
// key can be overwritten without a trace.
bool a_key_may_spread(const Conventions& conventions, const Attention& p);
// Whether several keys share one place in memory, so that no key can be overwritten alone.
bool shares_keys(const Case& c);

}  // namespace assay
