#include "harness/identify/probe.h"

#include <fmt/format.h>

#include "harness/judging/step.h"

namespace assay {
namespace {

void fill(const Tensor& t, const Entries& element) {
  const TensorView& view = t.view();
  for_each_index(view.shape, [&](Index b, Index h, Index i, Index d) {
    store(view, view.at(b, h, i, d), round_to(view.dtype, element(i, d)));
  });
}

}  // namespace

Probe::Probe(Candidate& candidate, Dtype dtype) : candidate_(candidate) {
  const bool lse = candidate.abilities().lse;
  std::string refused;
  // Most kernels take a head of 64. With it, the scale of 1/8 rounds nothing.
  for (const int dim : {64, 128, 32, 256})
    for (const int rows : {64, 1}) {
      const std::string line =
          fmt::format("attention b=1 h=1 l={}x128 d={} dtype={}", rows, dim, format(dtype).name);
      case_ = parse_case(line);
      const Inputs in(case_);
      const ForwardStep step{case_, in, lse};
      const std::string why = why_unsupported(candidate, step.call(step.outputs()));
      const std::string missing = candidate.features().missing(case_);
      refused += fmt::format("\n  {}: {}", line, missing.empty() ? why : "no " + missing);
      if (!why.empty() || !missing.empty()) continue;
      scale_ = static_cast<double>(in.problem.scale);
      const Entries zero = [](Index, Index) { return 0.0; };
      try {
        (void)ask(zero, zero, zero);
        return;
      } catch (const CandidateDeclined& e) {  // some say so only when they are called
        refused += e.what();
      }
    }
  throw CandidateDeclined("the kernel takes none of the shapes that inputs are made for:" +
                          refused);
}

ProbeAnswer Probe::ask(const Entries& q, const Entries& k, const Entries& v) const {
  const Inputs in(case_);
  fill(in.q, q);
  fill(in.k, k);
  fill(in.v, v);
  const ForwardStep step{case_, in, candidate_.abilities().lse};
  const Outputs out = step.outputs();
  const std::string wrong = run_guarded(step, candidate_, out, Poison::nan, execution_of(case_));
  if (!wrong.empty()) throw CandidateError(wrong);
  const AttentionOutput view = out.view();
  ProbeAnswer answer;
  answer.columns = case_.shape.value_dim;
  for_each_index(view.o.shape, [&](Index b, Index h, Index i, Index c) {
    answer.o.push_back(load(view.o, view.o.at(b, h, i, c)));
  });
  for (Index i = 0; view.lse && i < rows(); ++i)
    answer.lse.push_back(load(view.lse, view.lse.at(0, 0, i, 0)));
  return answer;
}

}  // namespace assay
