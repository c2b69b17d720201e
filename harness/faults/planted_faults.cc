#include "harness/faults/planted_faults.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "harness/faults/faulty_problem.h"
#include "harness/faults/faulty_stages.h"
#include "problem/parallel.h"

namespace assay {
namespace {

// Writes what remains when a kernel stores fp32 into a contiguous output of 16 bits. The second
// half would lie beyond the end of the output and is left out.
void write_as_floats(const TensorView& o) {
  if (o.dtype == Dtype::f32 || o.stride != make_layout(LayoutKind::bhsd, o.shape, 1).stride) return;
  std::vector<float> results;
  for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) {
    results.push_back(static_cast<float>(load(o, o.at(b, h, i, c))));
  });
  std::memcpy(static_cast<std::uint16_t*>(o.data) + o.at(0, 0, 0, 0), results.data(),
              results.size() / 2 * sizeof(float));
}

// Runs with an LSE of its own, and then writes that of every head where head 0 has its own.
template <class Run>
kernels::Status with_heads_in_one(const AttentionOutput& out, const Run& run) {
  const TensorView& lse = out.lse;
  if (!lse) return run(out);
  const Tensor own(lse.dtype, lse.shape, make_layout(LayoutKind::bhsd, lse.shape, 1));
  const kernels::Status status = run({out.o, own.view()});
  if (status.ok())
    for_each_index(lse.shape, [&](Index b, Index h, Index i, Index c) {
      store(lse, lse.at(b, 0, i, c), load(own.view(), own.view().at(b, h, i, c)));
    });
  return status;
}

}  // namespace

bool reaches(const PlantedFault& fault, const Case& c) {
  const bool is_product = c.operation == Operation::product;
  switch (fault.about) {
    case FaultSubject::product: return is_product;
    case FaultSubject::backward: return c.operation == Operation::backward;
    case FaultSubject::cache: return !is_product && c.cache;
    default: return !is_product;
  }
}

kernels::Status run_watched(Fault fault, const Attention& problem, const AttentionOutput& out,
                            const kernels::Target& target, StageObserver& observer) {
  const MisreadProblem misread(fault, problem, out);
  FaultyStages stages(fault, misread.problem());
  stages.observer = &observer;
  return kernels::plan_and_run(misread.problem(), misread.out(), 1, faulty_forward(target),
                               &stages);
}

kernels::Status run_planted_fault(const PlantedFault& fault, const Attention& problem,
                                  const AttentionOutput& out, const kernels::Execution& how) {
  if (fault.fault == "wide-heads-return-ok"_fault && problem.shape.dim > 128) return {};
  static std::atomic<bool> called = false;
  if (fault.fault == "first-call-writes-nothing"_fault && !called.exchange(true)) return {};
  if (fault.fault == "lse-of-all-heads-in-one"_fault)
    return with_heads_in_one(out, [&](const AttentionOutput& to) {
      const FaultyStages stages(no_fault, problem);
      return kernels::plan_and_run(problem, to, how.threads, faulty_forward(how.target), &stages);
    });
  const MisreadProblem misread(fault.fault, problem, out);
  FaultyStages stages(fault.fault, misread.problem());
  stages.threads = how.threads > 0 ? how.threads : hardware_threads();
  kernels::Status status = kernels::plan_and_run(misread.problem(), misread.out(), how.threads,
                                                 faulty_forward(how.target), &stages);
  if (fault.fault == "output-of-16-bits-written-as-f32"_fault && status.ok())
    write_as_floats(out.o);
  return status;
}

}  // namespace assay
