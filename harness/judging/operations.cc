#include "harness/judging/operations.h"

#include <memory>

#include "harness/judging/append.h"
#include "harness/judging/quantization.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

// What an operation W has of its own. It is made of a CaseRun, and then holds the inputs, the
// steps, and fresh outputs of theirs.
//   bool supported() const                   the candidate does the calls of the steps
//   void paint(painter) const                makes a painter for what is judged
//   bool judge(Painter*)                     judges the steps in turn; whether the case may go on
//   step, outputs                            the last step: the relations are asked of it
//   std::vector<BitsOperation> bits() const  what a rule gives bit for bit
//   weights() const                          of outputs that fail: what a report draws of weights

struct AttentionWork {
  const CaseRun& run;
  const Inputs inputs{run.c, run.options.around};
  ForwardStep step{run.c, inputs, run.candidate.abilities().lse, run.conventions()};
  const Outputs outputs = step.outputs();

  bool supported() const { return run.supported({step.call(outputs)}); }
  void paint(std::optional<Painter>& painter) const { painter.emplace(inputs.problem); }
  bool judge(Painter* painter) {
    const bool goes_on = judge_step(run, step, outputs, painter);
    step.conventions = run.conventions();
    return goes_on;
  }
  std::vector<BitsOperation> bits() const { return {appending(inputs)}; }
  std::optional<LackingWeights> weights() const {
    const auto own = declared<Contract>(run.candidate, step.call(outputs), run.how);
    return weights_of(anchored(step.in.problem, step.conventions), outputs.view(),
                      own ? &*own : nullptr, run.result.verdict, run.options.oracle_threads);
  }
};

ExecuteOptions without_evidence(ExecuteOptions options) {
  options.evidence = EvidenceRule::off;
  return options;
}

// The gradients are computed from the candidate's own O and LSE, or from those of the host. They
// are judged first. What evidence says of the host's is nothing that the candidate did, and the
// verdict on gradients takes their errors into account.
struct BackwardWork {
  const CaseRun& run;
  const std::unique_ptr<Candidate> host = forward_by_host(run.candidate, run.c);
  const ExecuteOptions of_host = without_evidence(run.options);
  const CaseRun first =
      host ? CaseRun{run.c, *host, of_host, run.how, run.result, host->conventions()} : run;
  const Inputs inputs{run.c, run.options.around};
  const ForwardStep forward{run.c, inputs, first.candidate.abilities().lse, first.conventions()};
  const Outputs forward_outputs = forward.outputs();
  BackwardStep step{run.c, inputs, forward_outputs, run.conventions(),
                    run.candidate.abilities().d_sink};
  const GradientOutputs outputs = step.outputs();

  bool supported() const {
    const Call gradients = step.call(outputs), before = forward.call(forward_outputs);
    if (!host) return run.supported({gradients, before});
    return run.supported({gradients}) && first.supported({before});
  }
  void paint(std::optional<Painter>& painter) const { painter.emplace(inputs.problem); }
  bool judge(Painter* painter) {
    if (!judge_step(first, forward, forward_outputs, painter)) return false;
    step.conventions = run.conventions();
    const bool goes_on = judge_step(run, step, outputs, painter);
    step.conventions = run.conventions();
    return goes_on;
  }
  std::vector<BitsOperation> bits() const { return {}; }
  std::optional<LackingWeights> weights() const { return std::nullopt; }
};

struct ProductWork {
  const CaseRun& run;
  const ProductInputs inputs{run.c, run.options.around};
  const ProductStep step{run.c, inputs};
  const ProductOutput outputs = step.outputs();

  bool supported() const { return run.supported({step.call(outputs)}); }
  void paint(std::optional<Painter>& painter) const {
    painter.emplace(run.c.product.m, run.c.product.n);
  }
  bool judge(Painter* painter) const { return judge_step(run, step, outputs, painter); }
  std::vector<BitsOperation> bits() const { return {quantizing(), dequantizing(inputs)}; }
  std::optional<LackingWeights> weights() const { return std::nullopt; }
};

template <class Work>
void judge_operation(const CaseRun& run) {
  run.turn(Turn::inputs);
  const auto start = Clock::now();
  Work work{run};
  CaseResult& result = run.result;
  result.seconds.generate = seconds_since(start);
  if (!work.supported()) {
    // A candidate that does not read such a cache may write it, and one without this product may
    // have a quantizer or a dequantizer.
    if (result.outcome == Outcome::unsupported) judge_bits(run, work.bits(), Bits::alone);
    return;
  }
  std::optional<Painter> painter;
  if (run.options.pictures) work.paint(painter);
  if (work.judge(painter ? &*painter : nullptr)) {
    judge_bits(run, work.bits(), Bits::besides);
    if (result.outcome != Outcome::fail) ask_relations(run, work.step, work.outputs);
  }
  if (!painter || !result.was_compared()) return;
  result.pictures = painter->pictures(result.verdict.row_tile);
  if (result.verdict.outcome == Outcome::fail) result.pictures->weights = work.weights();
}

constexpr JudgedOperation operations[] = {
    {Operation::attention, judge_operation<AttentionWork>},
    {Operation::backward, judge_operation<BackwardWork>},
    {Operation::product, judge_operation<ProductWork>},
};

}  // namespace

const JudgedOperation& row_of(Operation operation) {
  return *std::ranges::find(operations, operation, &JudgedOperation::operation);
}

}  // namespace assay
