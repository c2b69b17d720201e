// Faults of the backward pass. They change a stage of the kernel, the tensors that the kernel
// reads, or the gradients that it wrote.
#include <cmath>

#include "harness/faults/faulty_stages.h"

namespace assay {
namespace {

Layout dense(const Extents& e) { return make_layout(LayoutKind::bhsd, e, 1); }
float& float_at(const TensorView& t, Index b, Index h, Index i, Index j) {
  return static_cast<float*>(t.data)[t.at(b, h, i, j)];
}

// LSE as the buggy kernel reads it.
Tensor misread_lse(Fault fault, const Attention& p, const TensorView& lse) {
  Tensor changed(Dtype::f32, lse.shape, dense(lse.shape));
  for_each_index(lse.shape, [&](Index b, Index h, Index i, Index j) {
    double x = float_at(lse, b, h, i, j);
    if (fault == "backward-lse-in-base-two"_fault) x *= 0.6931471805599453;
    if (fault == "backward-lse-without-sink"_fault && !p.sink.empty())
      x += std::log1p(-std::exp(static_cast<double>(p.sink[usize(h)]) - x));
    float_at(changed.view(), b, h, i, j) = static_cast<float>(x);
  });
  return changed;
}

}  // namespace

kernels::Status run_planted_backward(const PlantedFault& planted, const Attention& problem,
                                     const AttentionBackwardInput& in,
                                     const AttentionGradients& out, const kernels::Execution& how,
                                     StageObserver* observer) {
  const Fault fault = planted.fault;
  Attention p = problem;
  AttentionBackwardInput read = in;
  AttentionGradients written = out;
  if (fault == "backward-without-bias"_fault) p.bias = {};
  if (fault == "backward-without-dropout"_fault) p.dropout = 0;
  if (fault == "backward-draws-anew"_fault) ++p.dropout_seed;
  if (fault == "dlse-ignored"_fault) read.d_lse = {};
  const Tensor lse = misread_lse(fault, p, in.lse);
  read.lse = lse.view();
  Tensor d_bias;
  if (fault == "bias-gradient-overwritten"_fault && out.d_bias) {
    d_bias = Tensor(Dtype::f32, out.d_bias.shape, dense(out.d_bias.shape));
    written.d_bias = d_bias.view();
  }

  FaultyStages stages(fault, p);
  stages.observer = observer;
  stages.backward_tile = kernels::backward_tiling(p.shape.dim, p.shape.value_dim).keys;
  if (kernels::Status status = kernels::plan_and_run_backward(p, read, written, how.threads,
                                                              faulty_backward(how.target), &stages);
      !status.ok())
    return status;
  if (fault == "key-gradients-with-inverted-triangle"_fault) {
    // Only dK and dV are to be wrong. The second run has no fault and writes the other gradients
    // again; its dK and dV are thrown away.
    const Tensor d_k(out.dk.dtype, out.dk.shape, dense(out.dk.shape)),
        d_v(out.dv.dtype, out.dv.shape, dense(out.dv.shape));
    written.dk = d_k.view(), written.dv = d_v.view();
    stages.fault = no_fault;
    stages.observer = nullptr;
    if (kernels::Status status = kernels::plan_and_run_backward(
            p, read, written, how.threads, faulty_backward(how.target), &stages);
        !status.ok())
      return status;
  }

  // Several indices share one element of dBias. The fault overwrites it instead of adding, so the
  // last of them stays.
  if (d_bias.view())
    for_each_index(out.d_bias.shape, [&](Index b, Index h, Index i, Index j) {
      float_at(out.d_bias, b, h, i, j) = float_at(d_bias.view(), b, h, i, j);
    });
  if (fault == "sink-gradient-sign"_fault && out.d_sink)
    for (Index h = 0; h < p.shape.query_heads; ++h) float_at(out.d_sink, 0, h, 0, 0) *= -1;
  return {};
}

}  // namespace assay
