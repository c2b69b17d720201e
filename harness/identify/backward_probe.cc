#include "harness/identify/backward_probe.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "harness/judging/step.h"

namespace assay {
namespace {

void fill(const TensorView& t, const HeadEntries& element) {
  for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
    store(t, t.at(b, h, i, d), round_to(t.dtype, element(h, i, d)));
  });
}

std::vector<double> of_first_head(const TensorView& t) {
  std::vector<double> all;
  for (Index i = 0; i < t.shape[2]; ++i)
    for (Index d = 0; d < t.shape[3]; ++d) all.push_back(load(t, t.at(0, 0, i, d)));
  return all;
}

}  // namespace

BackwardProbe::BackwardProbe(Candidate& candidate, Dtype dtype, Index group)
    : candidate_(candidate) {
  std::string refused;
  // Most kernels take a head of 64. With it, the scale of 1/8 rounds nothing.
  for (const int dim : {64, 128, 32, 256}) {
    const std::string line =
        fmt::format("backward b=1 h={}/1 l=128x128 d={} dtype={}", group, dim, format(dtype).name);
    case_ = parse_case(line);
    const Inputs in(case_);
    const Outputs forward(case_, true, in.around);
    const BackwardStep step{case_, in, forward};
    const std::string why = why_unsupported(candidate, step.call(step.outputs()));
    const std::string missing = candidate.features().missing(case_);
    refused += fmt::format("\n  {}: {}", line, missing.empty() ? why : "no " + missing);
    if (!why.empty() || !missing.empty()) continue;
    scale_ = static_cast<double>(in.problem.scale);
    const HeadEntries zero = [](Index, Index, Index) { return 0.0; };
    const double lse = std::log(static_cast<double>(keys()));
    try {
      (void)ask({zero, zero, zero, zero, zero, [=](Index, Index) { return lse; }});
      return;
    } catch (const CandidateDeclined& e) {  // some say so only when they are called
      refused += e.what();
    }
  }
  throw CandidateDeclined("the kernel takes none of the shapes that inputs are made for:" +
                          refused);
}

GradientAnswer BackwardProbe::ask(const GradientQuestion& question) const {
  const Inputs in(case_);
  const Outputs forward(case_, true, in.around);
  fill(in.q.view(), question.q);
  fill(in.k.view(), question.k);
  fill(in.v.view(), question.v);
  fill(in.d_o.view(), question.d_o);
  fill(forward.o.view(), question.o);
  fill(forward.lse.view(), [&](Index h, Index i, Index) { return question.lse(h, i); });
  const BackwardStep step{case_, in, forward};
  const GradientOutputs out = step.outputs();
  const std::string wrong = run_guarded(step, candidate_, out, Poison::nan, execution_of(case_));
  if (!wrong.empty()) throw CandidateError(wrong);
  const AttentionGradients view = out.view();
  return {view.dq.shape, of_first_head(view.dq), of_first_head(view.dk), of_first_head(view.dv)};
}

}  // namespace assay
