#include "testing/emulated_verdict.h"

#include "harness/judging/outputs.h"
#include "oracle/backward_verdict.h"

namespace assay {

Verdict emulated_verdict(const Case& c, const Emulation& e, bool declared) {
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  if (!declared) options.conventions = {};
  const Inputs in(c);
  const Outputs out(c);
  run_emulated(e, in.problem, out.view());
  if (c.operation != Operation::backward)
    return declared ? judge(in.problem, out.view(), e.contract, options)
                    : judge_by_ladder(in.problem, out.view(), 64, options);
  const GradientOutputs gradients(c, in);
  const AttentionBackwardInput input{out.o.view(), out.lse.view(), in.d_o.view(), in.d_lse.view()};
  run_emulated_backward(e, in.problem, input, gradients.view());
  return declared ? judge_backward(in.problem, input, gradients.view(), e.contract, options)
                  : judge_backward_by_ladder(in.problem, input, gradients.view(), options);
}

bool must_be_declared(const Emulation& e, Dtype dtype) {
  return e.contract.weight_dtype == Dtype::f8e4m3 ||
         (e.accumulation == Accumulation::half && dtype != Dtype::f16);
}

}  // namespace assay
