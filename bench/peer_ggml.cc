// ggml's flash attention on the CPU and its MXFP4 product, behind kernel.h.
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstring>
#include <limits>

#include "bench/mxfp4_call.h"

namespace assay::bench {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

bool is_f16(const assay_dtype& d) { return d.code == ASSAY_FLOAT && d.bits == 16; }

assay_status supports(std::int32_t, const assay_attention* p, const assay_dtype* output,
                      const char** reason) {
  const auto why = [&]() -> const char* {
    if (!is_f32(p->q->dtype) && !is_f16(p->q->dtype)) return "bf16";
    if (!is_f32(*output) && !is_f16(*output)) return "an output in bf16";
    if (p->dropout != 0) return "dropout";
    if (p->alibi_slope_count) return "ALiBi by slopes of one's own";
    if (p->bias && !is_f16(p->bias->dtype)) return "a bias in another dtype than fp16";
    for (const assay_tensor* t : {p->q, p->k, p->v})
      if (count_of(*t) == 0) return "no element";
    return nullptr;
  }();
  return answer(why, reason);
}
assay_status supports_product(const assay_tensor* a, const assay_low_bit* w,
                              const assay_dtype* output, const char** reason) {
  return answer(w->k % 32 != 0 ? "K that is no multiple of 32" : why_not_mxfp4(*a, *w, *output),
                reason);
}

float as_float(const assay_tensor& t, std::int64_t at) {
  return is_f32(t.dtype) ? static_cast<const float*>(t.data)[at]
                         : ggml_fp16_to_fp32(static_cast<const ggml_fp16_t*>(t.data)[at]);
}

class Context {
 public:
  explicit Context(std::size_t bytes)
      : context_(ggml_init({bytes + (std::size_t{4} << 20), nullptr, false})) {}
  ~Context() { ggml_free(context_); }
  operator ggml_context*() const { return context_; }

 private:
  ggml_context* context_;
};

// Makes a contiguous tensor [d, i, h, b], in ggml's order and in the given type.
ggml_tensor* tensor_of(ggml_context* context, ggml_type type, const assay_tensor& t) {
  ggml_tensor* to =
      ggml_new_tensor_4d(context, type, t.shape[3], t.shape[2], t.shape[1], t.shape[0]);
  for_each_element(t, [&](std::int64_t n, std::int64_t at) {
    if (type == GGML_TYPE_F32) static_cast<float*>(to->data)[n] = as_float(t, at);
    else static_cast<ggml_fp16_t*>(to->data)[n] = static_cast<const ggml_fp16_t*>(t.data)[at];
  });
  return to;
}

// Writes all masks of a problem as one mask of ggml: numbers in fp16 that are added to the scores.
ggml_tensor* mask_of(ggml_context* context, const assay_attention& p) {
  const std::int64_t batch = p.q->shape[0], heads = p.q->shape[1], rows = p.q->shape[2],
                     keys = p.k->shape[2];
  ggml_tensor* mask = ggml_new_tensor_4d(context, GGML_TYPE_F16, keys, rows, heads, batch);
  auto* to = static_cast<ggml_fp16_t*>(mask->data);
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < keys; ++j) {
          const std::int64_t diagonal = i + (p.offset_count ? p.offset[b] : 0);
          const auto at = [&](const assay_tensor& t) {
            return t.offset + b * t.strides[0] + h * t.strides[1] + i * t.strides[2] +
                   j * t.strides[3];
          };
          float bias = p.bias ? as_float(*p.bias, at(*p.bias)) : 0;
          if ((p.flags & ASSAY_FINITE_MIN_MASKS) && bias == -65504.0f) bias = minus_infinity;
          const bool hidden =
              ((p.flags & ASSAY_CAUSAL) && j > diagonal) ||
              (p.window_left >= 0 && j < diagonal - p.window_left) ||
              (p.window_right >= 0 && j - p.window_right > diagonal) ||
              (p.key_length_count && j >= p.key_lengths[b]) ||
              (p.key_start_count && j < p.key_starts[b]) ||
              (p.query_segment_count &&
               p.query_segment[b * rows + i] != p.key_segment[b * keys + j]) ||
              (p.keep && !static_cast<const std::uint8_t*>(p.keep->data)[at(*p.keep)]);
          *to++ = ggml_fp32_to_fp16(hidden ? minus_infinity : bias);
        }
  return mask;
}

assay_status forward(const assay_attention* p, const assay_tensor* o, const assay_tensor*,
                     const assay_run* run) {
  const std::int64_t pairs = p->q->shape[0] * p->q->shape[1] * p->q->shape[2] * p->k->shape[2];
  const Context context(static_cast<std::size_t>(
      8 * (count_of(*p->q) + count_of(*p->k) + count_of(*p->v) + count_of(*o)) + 4 * pairs));
  const ggml_type type = is_f32(p->k->dtype) ? GGML_TYPE_F32 : GGML_TYPE_F16;
  ggml_tensor* out = ggml_flash_attn_ext(
      context, tensor_of(context, GGML_TYPE_F32, *p->q), tensor_of(context, type, *p->k),
      tensor_of(context, type, *p->v), mask_of(context, *p), p->scale, 0, p->softcap);
  ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
  if (p->sink_count) {
    ggml_tensor* sinks = ggml_new_tensor_1d(context, GGML_TYPE_F32, p->sink_count);
    std::memcpy(sinks->data, p->sink, sizeof(float) * static_cast<std::size_t>(p->sink_count));
    ggml_flash_attn_ext_add_sinks(out, sinks);
  }
  ggml_cgraph* graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, out);
  ggml_cplan plan = ggml_graph_plan(graph, std::max(run->threads, 1), nullptr);
  std::vector<std::uint8_t> work(plan.work_size);
  plan.work_data = work.data();
  if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) return ASSAY_EXECUTION_FAILED;
  // ggml's result is [c, head, row, batch].
  const auto* from = static_cast<const float*>(out->data);
  const std::int64_t heads = o->shape[1], rows = o->shape[2], columns = o->shape[3];
  for_each_element(*o, [&](std::int64_t n, std::int64_t at) {
    const std::int64_t c = n % columns, i = n / columns % rows, h = n / columns / rows % heads,
                       b = n / columns / rows / heads;
    const float x = from[((b * rows + i) * heads + h) * columns + c];
    if (is_f32(o->dtype)) static_cast<float*>(o->data)[at] = x;
    else static_cast<ggml_fp16_t*>(o->data)[at] = ggml_fp32_to_fp16(x);
  });
  return ASSAY_SUCCESS;
}

// Packs ggml's own blocks: a scale, and 16 bytes whose low nibbles are the first 16 elements and
// whose high nibbles are the others.
assay_status product(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                     const assay_run* run) {
  const Context context(static_cast<std::size_t>(w->k * w->n + 8 * (count_of(*a) + count_of(*c))));
  ggml_tensor* weights = ggml_new_tensor_2d(context, GGML_TYPE_MXFP4, w->k, w->n);
  auto* to = static_cast<std::uint8_t*>(weights->data);
  const auto *codes = static_cast<const std::uint8_t*>(w->codes),
             *scales = static_cast<const std::uint8_t*>(w->scales);
  for (std::int64_t n = 0; n < w->n; ++n)
    for (std::int64_t t = 0; t < w->k / 32; ++t) {
      const auto nibble = [&](std::int64_t k) {
        return codes[n * (w->k / 2) + (t * 32 + k) / 2] >> (k % 2 * 4) & 15;
      };
      *to++ = scales[n * (w->k / 32) + t];
      for (std::int64_t k = 0; k < 16; ++k)
        *to++ = static_cast<std::uint8_t>(nibble(k) | nibble(k + 16) << 4);
    }
  ggml_tensor* activations = ggml_new_tensor_2d(context, GGML_TYPE_F32, w->k, a->shape[2]);
  for_each_element(*a, [&](std::int64_t n, std::int64_t at) {
    static_cast<float*>(activations->data)[n] = static_cast<const float*>(a->data)[at];
  });
  ggml_tensor* out = ggml_mul_mat(context, weights, activations);
  ggml_cgraph* graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, out);
  ggml_cplan plan = ggml_graph_plan(graph, std::max(run->threads, 1), nullptr);
  std::vector<std::uint8_t> work(plan.work_size);
  plan.work_data = work.data();
  if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) return ASSAY_EXECUTION_FAILED;
  for_each_element(*c, [&](std::int64_t n, std::int64_t at) {
    static_cast<float*>(c->data)[at] = static_cast<const float*>(out->data)[n];
  });
  return ASSAY_SUCCESS;
}

}  // namespace
}  // namespace assay::bench

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  using namespace assay::bench;
  return table_of_peer(version, "ggml", [](assay_kernel& table) {
    table.no_lse = 1;
    table.supports = supports;
    table.supports_product = supports_product;
    table.forward = forward;
    table.product = product;
  });
}
