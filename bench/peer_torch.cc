// libtorch's scaled_dot_product_attention on the CPU, behind kernel.h. In version 1.13 this is the
// composed one: in fp32 and bf16, with the default scale only, and without LSE.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "bench/table_views.h"

namespace assay::bench {
namespace {

at::ScalarType type_of(const assay_dtype& d) {
  return d.code == ASSAY_BFLOAT ? at::kBFloat16 : at::kFloat;
}

// A view of the caller's memory. Tensors with negative strides, which torch does not have, were
// declined before.
at::Tensor tensor_of(const assay_tensor& t) {
  const std::size_t width = t.dtype.bits / 8;
  return at::from_blob(static_cast<char*>(t.data) + t.offset * static_cast<std::int64_t>(width),
                       at::IntArrayRef(t.shape, 4), at::IntArrayRef(t.strides, 4),
                       at::TensorOptions(type_of(t.dtype)));
}

assay_status supports(std::int32_t, const assay_attention* p, const assay_dtype* output,
                      const char** reason) {
  const auto why = [&]() -> const char* {
    const assay_dtype& d = p->q->dtype;
    if (!is_f32(d) && d.code != ASSAY_BFLOAT) return "fp16 on the CPU";
    if (output->code != d.code || output->bits != d.bits) return "an output in another dtype";
    if (p->scale != 1 / std::sqrt(static_cast<float>(p->q->shape[3])))
      return "another scale than 1 / sqrt(D)";
    if (p->dropout != 0) return "dropout";
    if (p->softcap != 0) return "a softcap";
    if (p->window_left >= 0 || p->window_right >= 0 || p->key_length_count || p->key_start_count ||
        p->alibi_slope_count || p->sink_count || p->query_segment_count)
      return "a mask other than causal, boolean or additive";
    if ((p->flags & ASSAY_CAUSAL) && (p->keep || p->bias)) return "causality together with a mask";
    if (p->keep && p->bias) return "two masks";
    if (p->flags & ASSAY_FINITE_MIN_MASKS) return "finite minima that mask";
    for (std::int64_t b = 0; (p->flags & ASSAY_CAUSAL) && b < p->offset_count; ++b)
      if (p->offset[b] != 0) return "a diagonal that is not anchored at the top left";
    for (const assay_tensor* t : {p->q, p->k, p->v})
      for (const std::int64_t stride : t->strides)
        if (stride < 0) return "a negative stride";
    return nullptr;
  }();
  return answer(why, reason);
}

at::Tensor attend(const assay_attention* p, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v) {
  const std::int64_t group = p->q->shape[1] / p->k->shape[1];
  const at::Tensor keys = group == 1 ? k : k.repeat_interleave(group, 1),
                   values = group == 1 ? v : v.repeat_interleave(group, 1);
  c10::optional<at::Tensor> mask;
  if (p->bias) mask = tensor_of(*p->bias);
  if (p->keep)
    mask = at::from_blob(static_cast<char*>(p->keep->data) + p->keep->offset,
                         at::IntArrayRef(p->keep->shape, 4), at::IntArrayRef(p->keep->strides, 4),
                         at::TensorOptions(at::kByte))
               .ne(0);
  return std::get<0>(at::_scaled_dot_product_attention(q, keys, values, mask, 0.0, false,
                                                       (p->flags & ASSAY_CAUSAL) != 0));
}

void set_threads(const assay_run* run) { at::set_num_threads(std::max(run->threads, 1)); }

assay_status forward(const assay_attention* p, const assay_tensor* o, const assay_tensor*,
                     const assay_run* run) {
  const at::NoGradGuard no_gradients;
  set_threads(run);
  tensor_of(*o).copy_(attend(p, tensor_of(*p->q), tensor_of(*p->k), tensor_of(*p->v)));
  return ASSAY_SUCCESS;
}

}  // namespace
}  // namespace assay::bench

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  using namespace assay::bench;
  return table_of_peer(version, "libtorch", [](assay_kernel& table) {
    table.no_lse = 1;
    table.supports = supports;
    table.forward = forward;
  });
}
