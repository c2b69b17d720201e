/* A right kernel for the tests of conventions: attention in fp32, forward and backward, with
 * causality, lengths, starts and a boolean mask. The environment says what it means where nobody
 * agreed (ASSAY_MEANS, words of the table below) and what it declares (ASSAY_DECLARES, as
 * masked_rows=2,masked_lse=3). With ASSAY_TABLE=1 its table is one of version 1, with ASSAY_TABLE=5
 * its conventions are the first five alone, and with ASSAY_TABLE=gradients it has no forward pass.
 */
#include <assay/kernel.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  rows_of_mean,
  rows_within,
  rows_unmasked,
  rows_of_nan,
  rows_of_seven, /* no convention */
  rows_of_both,  /* no convention: 0 in even rows, the mean of V in odd ones */
  lse_inf,
  lse_zero,
  lse_seven, /* no convention */
  spreads,
  spreads_beyond, /* a fault: NaN beyond the length spreads too */
  bottom_right,
  end_of_lengths,
  flushes,
  flushes_more, /* a fault: normal numbers are 0, too */
  nan_in_row_0, /* a fault */
  weightless_zero,
  weightless_times_v, /* 0, and 0 times V is added */
  weightless_mean,
  weightless_visible,
  weightless_seven, /* no convention */
  weightless_lse_inf,
  weightless_lse_zero,
  weightless_lse_nan,
  weightless_lse_seven, /* no convention */
  backward_spreads,     /* in the backward pass alone */
  backward_spreads_beyond,
  nan_in_dq, /* faults, of the first element of each gradient */
  nan_in_dk,
  nan_in_dv,
  seven_in_dq,
  takes_dlse, /* backward takes the gradient of LSE */
  ignores_dlse,
  means
};
static const char* const words[means] = {"rows-of-mean",
                                         "rows-within",
                                         "rows-unmasked",
                                         "rows-of-nan",
                                         "rows-of-seven",
                                         "rows-of-both",
                                         "lse-inf",
                                         "lse-zero",
                                         "lse-seven",
                                         "spreads",
                                         "spreads-beyond",
                                         "bottom-right",
                                         "end-of-lengths",
                                         "flushes",
                                         "flushes-more",
                                         "nan-in-row-0",
                                         "weightless-zero",
                                         "weightless-times-v",
                                         "weightless-mean",
                                         "weightless-visible",
                                         "weightless-seven",
                                         "weightless-lse-inf",
                                         "weightless-lse-zero",
                                         "weightless-lse-nan",
                                         "weightless-lse-seven",
                                         "backward-spreads",
                                         "backward-spreads-beyond",
                                         "nan-in-dq",
                                         "nan-in-dk",
                                         "nan-in-dv",
                                         "seven-in-dq",
                                         "takes-dlse",
                                         "ignores-dlse"};
static int meant[means];

static int64_t at(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  return t->offset + b * t->strides[0] + h * t->strides[1] + i * t->strides[2] + d * t->strides[3];
}
static float load(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  return ((const float*)t->data)[at(t, b, h, i, d)];
}

static assay_status supports(int32_t operation, const assay_attention* p, const assay_dtype* output,
                             const char** reason) {
  (void)operation;
  if (p->q->dtype.code != ASSAY_FLOAT || p->q->dtype.bits != 32 || output->bits != 32 ||
      output->code != ASSAY_FLOAT)
    *reason = "another dtype";
  else if (p->bias || p->softcap != 0 || p->dropout != 0 || p->sink_count || p->alibi_slope_count ||
           p->query_segment_count || p->window_left >= 0 || p->window_right >= 0)
    *reason = "another mask";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

/* Without it a lenient arithmetic of the ladder would excuse small outputs. */
static assay_status arithmetic(const assay_attention* p, assay_arithmetic* declared) {
  (void)p;
  declared->exp_ulp = declared->log_ulp = 2;
  return ASSAY_SUCCESS;
}

static int in_sequence(const assay_attention* p, int64_t b, int64_t j) {
  return (!p->key_length_count || j < p->key_lengths[b]) &&
         (!p->key_start_count || j >= p->key_starts[b]);
}

static int sees(const assay_attention* p, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t rows = p->q->shape[2], keys = p->k->shape[2];
  int64_t offset = p->offset_count ? p->offset[b] : 0;
  if (!p->offset_count && meant[bottom_right]) offset = keys - rows;
  if (!p->offset_count && meant[end_of_lengths])
    offset = (p->key_length_count ? p->key_lengths[b] : keys) - rows;
  if (!in_sequence(p, b, j)) return 0;
  if ((p->flags & ASSAY_CAUSAL) && j > i + offset) return 0;
  return !p->keep || ((const uint8_t*)p->keep->data)[at(p->keep, b, h, i, j)] != 0;
}

static float stored(float x) {
  const float least = meant[flushes_more] ? 1e-33f : 1.17549435e-38f;
  return (meant[flushes] || meant[flushes_more]) && fabsf(x) < least ? 0 : x;
}

/* The weight of each key before the division; returns their sum. */
static float weigh(const assay_attention* p, int64_t b, int64_t h, int64_t i, int no_mask, float* w,
                   float* lse) {
  const int64_t keys = p->k->shape[2], dim = p->q->shape[3],
                g = h / (p->q->shape[1] / p->k->shape[1]);
  float maximum = -INFINITY, sum = 0;
  int64_t j, d;
  for (j = 0; j < keys; ++j) {
    const int seen = no_mask || sees(p, b, h, i, j);
    float s = 0;
    for (d = 0; d < dim; ++d) s += load(p->q, b, h, i, d) * load(p->k, b, g, j, d);
    w[j] = s * p->scale;
    if (!seen) {
      const int added = meant[spreads_beyond] || (meant[spreads] && in_sequence(p, b, j));
      w[j] = added ? w[j] * 0 - INFINITY : -INFINITY;
    }
    maximum = w[j] > maximum || w[j] != w[j] ? w[j] : maximum;
  }
  for (j = 0; j < keys; ++j) sum += w[j] = w[j] == -INFINITY ? 0 : expf(w[j] - maximum);
  *lse = maximum + logf(sum);
  return sum;
}

static void weigh_masked_row(const assay_attention* p, int64_t b, int64_t h, int64_t i, float* w,
                             float* sum, float* lse) {
  const int64_t keys = p->k->shape[2];
  const int mean = meant[rows_of_mean] || (meant[rows_of_both] && i % 2);
  int64_t j;
  for (*sum = 0, j = 0; j < keys; ++j)
    *sum += w[j] = mean || (meant[rows_within] && in_sequence(p, b, j));
  if (meant[rows_unmasked]) *sum = weigh(p, b, h, i, 1, w, lse);
  if (meant[rows_of_nan]) *sum = NAN;
  *lse = meant[lse_inf] ? INFINITY : meant[lse_zero] ? 0 : meant[lse_seven] ? 7 : -INFINITY;
}

/* A row that sees keys, all of whose scores are -infinity. */
static void weigh_weightless_row(const assay_attention* p, int64_t b, int64_t h, int64_t i,
                                 float* w, float* sum, float* lse) {
  const int64_t keys = p->k->shape[2];
  int64_t j;
  for (*sum = 0, j = 0; j < keys; ++j)
    *sum += w[j] = meant[weightless_mean] || (meant[weightless_visible] && sees(p, b, h, i, j));
  if (meant[weightless_zero] || meant[weightless_times_v]) *sum = 1;
  if (meant[weightless_lse_inf]) *lse = INFINITY;
  if (meant[weightless_lse_zero]) *lse = 0;
  if (meant[weightless_lse_nan]) *lse = NAN;
  if (meant[weightless_lse_seven]) *lse = 7;
}

static assay_status forward(const assay_attention* p, const assay_tensor* o,
                            const assay_tensor* lse, const assay_run* run) {
  const int64_t keys = p->k->shape[2];
  float* w = malloc((size_t)(keys + 1) * sizeof(float));
  int64_t b, h, i, j, d;
  (void)run;
  if (!w) return ASSAY_MEMORY_ALLOCATION_FAILED;
  for (b = 0; b < o->shape[0]; ++b)
    for (h = 0; h < o->shape[1]; ++h)
      for (i = 0; i < o->shape[2]; ++i) {
        const int64_t g = h / (p->q->shape[1] / p->k->shape[1]);
        int masked = 1, weightless;
        float sum, l;
        for (j = 0; j < keys; ++j) masked = masked && !sees(p, b, h, i, j);
        if (masked) weigh_masked_row(p, b, h, i, w, &sum, &l);
        else sum = weigh(p, b, h, i, 0, w, &l);
        weightless = !masked && sum == 0;
        if (weightless) weigh_weightless_row(p, b, h, i, w, &sum, &l);
        ((float*)lse->data)[at(lse, b, h, i, 0)] = stored(l);
        for (d = 0; d < o->shape[3]; ++d) {
          float x = 0;
          for (j = 0; j < keys; ++j)
            if (w[j] != 0 || (weightless && meant[weightless_times_v] && sees(p, b, h, i, j)) ||
                meant[spreads_beyond] || (meant[spreads] && in_sequence(p, b, j)))
              x += w[j] * load(p->v, b, g, j, d);
          if (!(masked && sum == 0)) x /= sum;
          if (masked && meant[rows_of_seven]) x = 7;
          if (weightless && meant[weightless_seven]) x = 7;
          if (i == 0 && meant[nan_in_row_0]) x = NAN;
          ((float*)o->data)[at(o, b, h, i, d)] = stored(x);
        }
      }
  free(w);
  return ASSAY_SUCCESS;
}

static float* element(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  return (float*)t->data + at(t, b, h, i, d);
}

static void fill_with_0(const assay_tensor* t) {
  int64_t b, h, i, d;
  for (b = 0; b < t->shape[0]; ++b)
    for (h = 0; h < t->shape[1]; ++h)
      for (i = 0; i < t->shape[2]; ++i)
        for (d = 0; d < t->shape[3]; ++d) *element(t, b, h, i, d) = 0;
}

/* Whether a pair is added to the gradients: a masked one, whose weight is 0, only by convention. */
static int is_added(const assay_attention* p, int seen, int64_t b, int64_t j) {
  return seen || meant[spreads_beyond] || meant[backward_spreads_beyond] ||
         ((meant[spreads] || meant[backward_spreads]) && in_sequence(p, b, j));
}

static void add_pair(const assay_attention* p, const assay_tensor* d_o, const assay_gradients* to,
                     int seen, float lse, float delta, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t dim = p->q->shape[3], value_dim = p->v->shape[3],
                g = h / (p->q->shape[1] / p->k->shape[1]);
  float s = 0, weight, dp = 0, ds;
  int64_t d;
  for (d = 0; d < dim; ++d) s += load(p->q, b, h, i, d) * load(p->k, b, g, j, d);
  s = seen ? s * p->scale : s * 0 - INFINITY;
  weight = s == -INFINITY ? 0 : expf(s - lse);
  for (d = 0; d < value_dim; ++d) dp += load(d_o, b, h, i, d) * load(p->v, b, g, j, d);
  ds = weight * (dp - delta);
  for (d = 0; d < dim; ++d) {
    *element(to->dq, b, h, i, d) += p->scale * ds * load(p->k, b, g, j, d);
    *element(to->dk, b, g, j, d) += p->scale * ds * load(p->q, b, h, i, d);
  }
  for (d = 0; d < value_dim; ++d) *element(to->dv, b, g, j, d) += weight * load(d_o, b, h, i, d);
}

static assay_status backward(const assay_attention* p, const assay_tensor* o,
                             const assay_tensor* lse, const assay_tensor* d_o,
                             const assay_gradients* to, const assay_run* run) {
  int64_t b, h, i, j, d;
  (void)run;
  fill_with_0(to->dq);
  fill_with_0(to->dk);
  fill_with_0(to->dv);
  for (b = 0; b < o->shape[0]; ++b)
    for (h = 0; h < o->shape[1]; ++h)
      for (i = 0; i < o->shape[2]; ++i) {
        float delta = 0;
        for (d = 0; d < o->shape[3]; ++d) delta += load(d_o, b, h, i, d) * load(o, b, h, i, d);
        if (to->d_lse && !meant[ignores_dlse]) delta -= load(to->d_lse, b, h, i, 0);
        for (j = 0; j < p->k->shape[2]; ++j) {
          const int seen = sees(p, b, h, i, j);
          if (is_added(p, seen, b, j))
            add_pair(p, d_o, to, seen, load(lse, b, h, i, 0), delta, b, h, i, j);
        }
      }
  if (meant[nan_in_dq]) *element(to->dq, 0, 0, 0, 0) = NAN;
  if (meant[nan_in_dk]) *element(to->dk, 0, 0, 0, 0) = NAN;
  if (meant[nan_in_dv]) *element(to->dv, 0, 0, 0, 0) = NAN;
  if (meant[seven_in_dq]) *element(to->dq, 0, 0, 0, 0) = 7;
  return ASSAY_SUCCESS;
}

static void read_environment(assay_conventions* declared) {
  const char *means_text = getenv("ASSAY_MEANS"), *declares = getenv("ASSAY_DECLARES");
  int k, found, n = 0;
  char told[256], word[64];
  snprintf(told, sizeof told, " %s ", means_text ? means_text : "");
  for (k = 0; k < means; ++k) {
    snprintf(word, sizeof word, " %s ", words[k]);
    meant[k] = strstr(told, word) != NULL;
  }
  assay_conventions_init(declared);
  for (; declares && *declares; declares += n + (declares[n] == ',')) {
    char field[32];
    found = sscanf(declares, "%31[a-z_]=%d%n", field, &k, &n);
    if (found != 2) break;
    if (!strcmp(field, "masked_rows")) declared->masked_rows = k;
    if (!strcmp(field, "masked_lse")) declared->masked_lse = k;
    if (!strcmp(field, "masked_nan")) declared->masked_nan = k;
    if (!strcmp(field, "anchor")) declared->anchor = k;
    if (!strcmp(field, "subnormals")) declared->subnormals = k;
    if (!strcmp(field, "weightless_rows")) declared->weightless_rows = k;
    if (!strcmp(field, "weightless_lse")) declared->weightless_lse = k;
  }
}

const assay_kernel* assay_kernel_entry(uint32_t version) {
  static assay_kernel table;
  static assay_conventions declared;
  const char* table_version = getenv("ASSAY_TABLE");
  if (version < ASSAY_VERSION) return NULL;
  read_environment(&declared);
  assay_kernel_init(&table, "a kernel with conventions");
  table.supports = supports;
  table.arithmetic = arithmetic;
  table.forward = table_version && !strcmp(table_version, "gradients") ? NULL : forward;
  table.backward = backward;
  table.d_lse = meant[takes_dlse];
  if (getenv("ASSAY_DECLARES")) table.conventions = &declared;
  if (table_version && !strcmp(table_version, "5"))
    declared.struct_size = (uint32_t)offsetof(assay_conventions, weightless_rows);
  if (table_version && !strcmp(table_version, "1")) {
    table.version = 1;
    table.struct_size = (uint32_t)(offsetof(assay_kernel, product) + sizeof table.product);
  }
  return &table;
}
