/* A backward pass alone, behind the table of kernel.h: dQ, dK and dV from dO, O and LSE. The
 * library has no forward pass, so O and LSE are those of Assay's own kernel.
 *
 *     assay check --kernel build/libgradients.so --suite backward */
#include "kernel.h"

#include <math.h>

static float* element(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  return (float*)t->data + t->offset + b * t->strides[0] + h * t->strides[1] + i * t->strides[2] +
         d * t->strides[3];
}

static assay_status supports(int32_t operation, const assay_attention* p, const assay_dtype* output,
                             const char** reason) {
  (void)operation; /* the table has no other than backward */
  if (p->q->dtype.code != ASSAY_FLOAT || p->q->dtype.bits != 32 || output->code != ASSAY_FLOAT ||
      output->bits != 32)
    *reason = "another dtype than fp32";
  else if (p->window_left >= 0 || p->window_right >= 0 || p->keep || p->bias ||
           p->key_length_count || p->key_start_count || p->alibi_slope_count ||
           p->query_segment_count)
    *reason = "another mask than causality";
  else if (p->softcap != 0 || p->dropout != 0) *reason = "softcap or dropout";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

static void clear(const assay_tensor* t) {
  int64_t b, h, i, d;
  for (b = 0; b < t->shape[0]; ++b)
    for (h = 0; h < t->shape[1]; ++h)
      for (i = 0; i < t->shape[2]; ++i)
        for (d = 0; d < t->shape[3]; ++d) *element(t, b, h, i, d) = 0;
}

static float dot(const assay_tensor* x, int64_t h, int64_t i, const assay_tensor* y, int64_t g,
                 int64_t j, int64_t b) {
  float sum = 0;
  int64_t d;
  for (d = 0; d < x->shape[3]; ++d) sum += *element(x, b, h, i, d) * *element(y, b, g, j, d);
  return sum;
}

/* t[b, h, i] += factor x[b, g, j] */
static void add(const assay_tensor* t, int64_t h, int64_t i, float factor, const assay_tensor* x,
                int64_t g, int64_t j, int64_t b) {
  int64_t d;
  for (d = 0; d < x->shape[3]; ++d) *element(t, b, h, i, d) += factor * *element(x, b, g, j, d);
}

/* Adds what row i of head h gives. The weights follow from LSE, in which a sink is contained. */
static void add_row(const assay_attention* p, const assay_tensor* o, const assay_tensor* lse,
                    const assay_tensor* d_o, const assay_gradients* to, int64_t b, int64_t h,
                    int64_t i) {
  const int64_t g = h / (p->q->shape[1] / p->k->shape[1]);
  const int64_t diagonal = i + (p->offset_count ? p->offset[b] : 0);
  const float delta = dot(d_o, h, i, o, h, i, b);
  int64_t j, end = p->k->shape[2];
  if ((p->flags & ASSAY_CAUSAL) && end > diagonal + 1) end = diagonal + 1;
  for (j = 0; j < end; ++j) {
    const float score = dot(p->q, h, i, p->k, g, j, b) * p->scale;
    const float weight = expf(score - *element(lse, b, h, i, 0));
    const float d_score = weight * (dot(d_o, h, i, p->v, g, j, b) - delta) * p->scale;
    add(to->dq, h, i, d_score, p->k, g, j, b);
    add(to->dk, g, j, d_score, p->q, h, i, b);
    add(to->dv, g, j, weight, d_o, h, i, b);
  }
}

static assay_status backward(const assay_attention* p, const assay_tensor* o,
                             const assay_tensor* lse, const assay_tensor* d_o,
                             const assay_gradients* to, const assay_run* run) {
  int64_t b, h, i;
  (void)run;
  clear(to->dq);
  clear(to->dk);
  clear(to->dv);
  for (b = 0; b < p->q->shape[0]; ++b)
    for (h = 0; h < p->q->shape[1]; ++h)
      for (i = 0; i < p->q->shape[2]; ++i) add_row(p, o, lse, d_o, to, b, h, i);
  return ASSAY_SUCCESS;
}

const assay_kernel* assay_kernel_entry(uint32_t version) {
  static assay_kernel table;
  if (version < ASSAY_VERSION) return NULL;
  assay_kernel_init(&table, "gradients");
  table.supports = supports;
  table.backward = backward;
  table.no_d_sink = 1; /* where there is a sink, its gradient is not computed, and not judged */
  return &table;
}
