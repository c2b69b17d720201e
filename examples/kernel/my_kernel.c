/* Attention, one row after the other: right, and slow. Put your kernel in the place of forward(), and say in supports() what it does. */
#include "kernel.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static float* element(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  return (float*)t->data + t->offset + b * t->strides[0] + h * t->strides[1] + i * t->strides[2] + d * t->strides[3];
}

/* What is not supported is counted by its reason; it is never a pass. */
static assay_status supports(int32_t operation, const assay_attention* p, const assay_dtype* output, const char** reason) {
  /* Q, K, V and the bias have one dtype. */
  if (p->q->dtype.code != ASSAY_FLOAT || p->q->dtype.bits != 32 || output->code != ASSAY_FLOAT || output->bits != 32) *reason = "another dtype than fp32";
  else if (operation != ASSAY_FORWARD) *reason = "another operation than forward";
  else if (p->dropout != 0) *reason = "dropout";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

/* How forward() computes; the bound follows from it. Leave the function out and a ladder of arithmetics is tried. */
static assay_status arithmetic(const assay_attention* problem, assay_arithmetic* a) {
  (void)problem;
  a->division_roundings = 1; /* O is divided by the sum; the rest are the defaults: fp32, exp of libm within an ulp */
  return ASSAY_SUCCESS;
}

/* What is added to the score of a pair; -INFINITY masks it. Every mask that is there counts. */
static float bias_of(const assay_attention* p, int64_t b, int64_t h, int64_t i, int64_t j, int64_t diagonal) {
  float sum = p->alibi_slope_count ? p->alibi_slopes[h] * (float)(j - diagonal) : 0;
  if (p->bias) {
    const float x = *element(p->bias, b, h, i, j);
    if ((p->flags & ASSAY_FINITE_MIN_MASKS) && x == -FLT_MAX) return -INFINITY;
    sum += x;
  }
  if (p->keep && !((const uint8_t*)p->keep->data)[p->keep->offset + b * p->keep->strides[0] + h * p->keep->strides[1] + i * p->keep->strides[2] +
                                                   j * p->keep->strides[3]])
    return -INFINITY;
  if (p->query_segment_count && p->query_segment[b * p->q->shape[2] + i] != p->key_segment[b * p->k->shape[2] + j]) return -INFINITY;
  return sum;
}

static assay_status forward(const assay_attention* p, const assay_tensor* o, const assay_tensor* lse, const assay_run* run) {
  const int64_t batch = p->q->shape[0], heads = p->q->shape[1], rows = p->q->shape[2], dim = p->q->shape[3];
  const int64_t kv_heads = p->k->shape[1], keys = p->k->shape[2], value_dim = p->v->shape[3];
  int64_t b, h, i, j, c;
  float* score = (float*)malloc((size_t)(keys > 0 ? keys : 1) * (sizeof(float) + 1));
  char* seen = (char*)(score + (keys > 0 ? keys : 1));
  (void)run;
  if (!score) return ASSAY_MEMORY_ALLOCATION_FAILED;
  for (b = 0; b < batch; ++b)
    for (h = 0; h < heads; ++h)
      for (i = 0; i < rows; ++i) {
        const int64_t g = h / (heads / kv_heads), diagonal = i + (p->offset_count ? p->offset[b] : 0);
        int64_t begin = p->key_start_count ? p->key_starts[b] : 0, end = p->key_length_count ? p->key_lengths[b] : keys;
        /* A sink is a key that every row sees and that has no value. */
        const float sink = p->sink_count ? p->sink[h] : -INFINITY;
        float max = sink, sum = 0;
        int sees = 0;
        if ((p->flags & ASSAY_CAUSAL) && end > diagonal + 1) end = diagonal + 1;
        if (p->window_left >= 0 && begin < diagonal - p->window_left) begin = diagonal - p->window_left;
        if (p->window_right >= 0 && end > diagonal + p->window_right + 1) end = diagonal + p->window_right + 1;
        for (j = begin; j < end; ++j) {
          const float bias = bias_of(p, b, h, i, j, diagonal);
          float dot = 0;
          seen[j] = bias != -INFINITY;
          if (!seen[j]) continue; /* whatever K and V hold there */
          sees = 1;
          for (c = 0; c < dim; ++c) dot += *element(p->q, b, h, i, c) * *element(p->k, b, g, j, c);
          score[j] = dot * p->scale;
          if (p->softcap > 0) score[j] = p->softcap * tanhf(score[j] / p->softcap);
          score[j] += bias;
          if (score[j] > max) max = score[j];
        }
        if (p->sink_count) sum = expf(sink - max);
        for (j = begin; j < end; ++j)
          if (seen[j]) sum += score[j] = expf(score[j] - max);
        for (c = 0; c < value_dim; ++c) {
          float value = 0;
          for (j = begin; j < end; ++j)
            if (seen[j]) value += score[j] * *element(p->v, b, g, j, c);
          /* A row that sees no key is 0, and its LSE -infinity. */
          *element(o, b, h, i, c) = sees ? value / sum : 0;
        }
        *element(lse, b, h, i, 0) = sees ? max + logf(sum) : sink;
      }
  free(score);
  return ASSAY_SUCCESS;
}

const assay_kernel* assay_kernel_entry(uint32_t version) {
  static assay_kernel table;
  if (version < ASSAY_VERSION) return NULL;
  assay_kernel_init(&table, "my kernel");
  table.supports = supports;
  table.arithmetic = arithmetic;
  table.forward = forward;
  return &table;
}
