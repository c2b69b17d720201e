/* Small, honest, partial kernels behind kernel.h, as other people write them: one dtype, one mask,
 * one row, no LSE, D = 64 alone. A table says what each kind does and by which faults the test of
 * the suites breaks it. The environment chooses: ASSAY_PARTIAL=KIND, ASSAY_PARTIAL_FAULT=FAULT.
 * Two kinds declare their arithmetic; the others declare nothing, as most kernels. A right kernel
 * may have a habit: it adds up from the last key to the first, depending on ASSAY_PARTIAL_HABIT.
 * ASSAY_PARTIAL_PROMISES is what it promises nevertheless, and it has ASSAY_PARTIAL_VARIANTS
 * variants, of which number 2 is wrong, and with the habit gradients-later number 0 has no backward
 * pass. With -DLIST this is a program that prints the table. */
#include <assay/kernel.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The table ------------------------------------------------------------------------------- */

enum {
  causal = 1,
  offset = 2,
  window = 4,
  boolean = 8,
  additive = 16,
  lengths = 32,
  starts = 64,
  grouped = 128,
  sinks = 256,
  alibi = 512,
  softcap = 1024,
  documents = 2048,
  scaled = 4096,
  strided = 8192,        /* any strides; otherwise the last dimension is contiguous */
  head_dims = 16384,     /* D and Dv may differ */
  sink_gradient = 32768, /* the backward pass of a kernel with sinks gives dSink */
  batched = 65536        /* products of a batch in one call */
};
enum { forward_only, with_backward, backward_only, decoder, multiplier };
enum { any_rows, one_row, as_many_rows };
enum { online, by_exp2, in_splits };

typedef struct kind {
  const char *name, *suite;
  int operation, bits; /* 32, 16 and -16: fp32, fp16 and bf16 */
  int dim;             /* of Q, K and V; 0: any */
  int has, rows, style;
  int no_lse, format, declares;
  const char* faults; /* separated by spaces */
} kind;

static const kind kinds[] = {
    {"plain-f32", "plain", forward_only, 32, 0, head_dims | strided, any_rows, online, 0, 0, 0,
     "drops-half-a-tile maximum-from-zero clips-scores ignores-nan sixteen-heads"},
    {"causal-square-f32", "plain", forward_only, 32, 0, causal, as_many_rows, online, 0, 0, 0,
     "drops-half-a-tile row-modulo-128 maximum-from-minus-50000"},
    {"d64-bf16", "plain", forward_only, -16, 64, causal, any_rows, online, 0, 0, 1,
     "maximum-from-minus-50000 saturates-values sixteen-heads"},
    {"d128-f16", "standard", forward_only, 16, 128, causal | offset | grouped, any_rows, online, 0,
     0, 0, "scale-of-64 shifted-groups offset-14 offset-of-32-bits"},
    {"d96-f32", "plain", forward_only, 32, 96, 0, any_rows, by_exp2, 0, 0, 0,
     "drops-half-a-tile clips-scores"},
    {"no-lse-f32", "standard", forward_only, 32, 0, causal | offset | window | head_dims, any_rows,
     online, 1, 0, 0, "offset-14 window-without-offset ignores-nan"},
    {"one-row-f32", "decode", forward_only, 32, 0, grouped | lengths | head_dims, one_row,
     in_splits, 0, 0, 0, "shifted-groups splits-by-columns maximum-from-zero"},
    {"boolean-f32", "standard", forward_only, 32, 0, boolean | head_dims, any_rows, online, 0, 0, 0,
     "mask-in-16-bits reads-the-mask-on drops-half-a-tile keeps-the-mask"},
    {"additive-f16", "standard", forward_only, 16, 0, additive | head_dims, any_rows, online, 0, 0,
     0, "skips-blocks saturates-values"},
    {"additive-causal-f32", "standard", forward_only, 32, 64, additive | causal | offset, any_rows,
     online, 0, 0, 0, "skips-blocks offset-14"},
    {"lengths-bf16", "padding", forward_only, -16, 0, lengths | causal | grouped | head_dims,
     any_rows, online, 0, 0, 0, "length-of-the-first ignores-nan keeps-the-lengths"},
    {"starts-f32", "padding", forward_only, 32, 0, starts | causal | grouped | head_dims, any_rows,
     online, 0, 0, 0, "start-of-the-first maximum-from-zero"},
    {"window-f32", "standard", forward_only, 32, 0, window | offset | causal | head_dims, any_rows,
     online, 0, 0, 0, "window-without-offset offset-14 row-modulo-128"},
    {"alibi-f32", "standard", forward_only, 32, 64, alibi | causal | offset | grouped, any_rows,
     online, 0, 0, 0, "slopes-of-kv-heads maximum-from-minus-50000 keeps-the-slopes"},
    {"softcap-bf16", "standard", forward_only, -16, 256,
     softcap | causal | window | offset | grouped | scaled, any_rows, online, 0, 0, 0,
     "offset-14 shifted-groups"},
    {"sink-bf16", "standard", forward_only, -16, 64, sinks | causal | window | offset | grouped,
     any_rows, online, 0, 0, 0, "no-keys-no-sink shifted-groups"},
    {"sink-f32", "standard", forward_only, 32, 0, sinks | grouped | head_dims, any_rows, online, 0,
     0, 0, "no-keys-no-sink sink-as-maximum"},
    {"documents-f32", "standard", forward_only, 32, 0, documents | causal | head_dims, any_rows,
     online, 0, 0, 0, "first-document row-modulo-128"},
    {"one-kv-head-f32", "standard", forward_only, 32, 0, grouped | causal | head_dims, any_rows,
     online, 0, 0, 0, "sixteen-heads drops-half-a-tile"},
    {"cross-f16", "plain", forward_only, 16, 64, 0, any_rows, online, 0, 0, 1,
     "maximum-from-minus-50000 sixteen-heads"},
    {"exp2-f32", "plain", forward_only, 32, 64, causal | scaled, any_rows, by_exp2, 0, 0, 0,
     "maximum-from-zero clips-scores"},
    {"strided-f32", "smoke", forward_only, 32, 64, strided | causal | grouped, any_rows, online, 0,
     0, 0, "ignores-strides shifted-groups"},
    {"splits-f32", "decode", forward_only, 32, 0, grouped | boolean | head_dims, one_row, in_splits,
     0, 0, 0, "splits-by-columns mask-in-16-bits"},
    {"wrong-later-f32", "plain", forward_only, 32, 64, causal, any_rows, online, 0, 0, 0,
     "wrong-from-call-300 by-chance"},
    {"backward-f32", "backward", with_backward, 32, 0, head_dims, any_rows, online, 0, 0, 0,
     "d-o-as-o phantom-rows keeps-k offset-of-32-bits"},
    {"backward-causal-bf16", "backward", with_backward, -16, 64, causal, any_rows, online, 0, 0, 0,
     "delta-forgotten row-modulo-128"},
    {"backward-softcap-f32", "backward", with_backward, 32, 0, softcap | causal | head_dims,
     any_rows, online, 0, 0, 0, "no-slope phantom-rows"},
    {"backward-grouped-f32", "backward", with_backward, 32, 0, grouped | causal | head_dims,
     any_rows, online, 0, 0, 0, "shifted-groups d-o-as-o"},
    {"backward-d128-f32", "backward", with_backward, 32, 128, causal | offset, any_rows, online, 0,
     0, 0, "scale-of-64 offset-14"},
    {"backward-sink-f32", "backward", with_backward, 32, 0,
     sinks | sink_gradient | causal | grouped | head_dims, any_rows, online, 0, 0, 0,
     "d-sink-of-the-last-batch d-sink-of-kv-heads lse-without-sink"},
    {"backward-no-d-sink-bf16", "backward", with_backward, -16, 64, sinks | causal | grouped,
     any_rows, online, 0, 0, 0, "lse-without-sink shifted-groups"},
    {"gradients-f32", "backward", backward_only, 32, 0, causal | offset | grouped | head_dims,
     any_rows, online, 0, 0, 0, "d-o-as-o shifted-groups phantom-rows offset-14 offset-of-32-bits"},
    {"gradients-sink-f32", "backward", backward_only, 32, 64, sinks | causal | grouped, any_rows,
     online, 0, 0, 0, "lse-without-sink delta-forgotten"},
    {"backward-no-lse-f32", "backward", with_backward, 32, 0, softcap | causal | head_dims,
     any_rows, online, 1, 0, 0, "no-slope row-modulo-128"},
    {"paged-bf16", "caches", decoder, -16, 128, grouped | offset, one_row, in_splits, 0, 0, 0,
     "page-border shifted-groups"},
    {"paged-f32", "caches", decoder, 32, 0, grouped | offset | causal | head_dims, any_rows, online,
     0, 0, 0, "page-border ignores-nan keeps-k length-of-the-first"},
    {"paged-starts-f16", "caches", decoder, 16, 0, starts | offset | causal | head_dims, any_rows,
     online, 0, 0, 0, "start-of-the-first page-border"},
    {"mxfp4-f32", "products", multiplier, 32, 0, 0, any_rows, 0, 0, ASSAY_MXFP4, 0,
     "scale-by-shift group-of-the-row keeps-scales"},
    {"mxfp8-bf16", "products", multiplier, -16, 0, 0, any_rows, 0, 0, ASSAY_MXFP8_E4M3, 0,
     "scale-by-shift group-of-the-row"},
    {"batched-mxfp4-f32", "products", multiplier, 32, 0, batched, any_rows, 0, 0, ASSAY_MXFP4, 1,
     "first-of-the-batch scales-of-the-first dense-batches last-forgotten"},
    {"int8-f32", "products", multiplier, 32, 0, 0, any_rows, 0, 0, ASSAY_INT8, 0,
     "one-row-one-group zero-forgotten keeps-weights"},
    {"int4-f16", "products", multiplier, 16, 0, 0, any_rows, 0, 0, ASSAY_INT4, 1,
     "one-row-one-group zero-forgotten rounds-weights"},
};

#ifdef LIST

int main(void) {
  size_t k;
  for (k = 0; k < sizeof kinds / sizeof *kinds; ++k)
    printf("%s %s %s\n", kinds[k].name, kinds[k].suite, kinds[k].faults);
  return 0;
}

#else

#define FAULTS(X)                                         \
  X(ignores_strides, "ignores-strides")                   \
  X(offset_of_32_bits, "offset-of-32-bits")               \
  X(page_border, "page-border")                           \
  X(shifted_groups, "shifted-groups")                     \
  X(row_modulo_128, "row-modulo-128")                     \
  X(offset_14, "offset-14")                               \
  X(window_without_offset, "window-without-offset")       \
  X(start_of_the_first, "start-of-the-first")             \
  X(length_of_the_first, "length-of-the-first")           \
  X(drops_half_a_tile, "drops-half-a-tile")               \
  X(slopes_of_kv_heads, "slopes-of-kv-heads")             \
  X(first_document, "first-document")                     \
  X(mask_in_16_bits, "mask-in-16-bits")                   \
  X(reads_the_mask_on, "reads-the-mask-on")               \
  X(skips_blocks, "skips-blocks")                         \
  X(scale_of_64, "scale-of-64")                           \
  X(no_slope, "no-slope")                                 \
  X(clips_scores, "clips-scores")                         \
  X(maximum_from_zero, "maximum-from-zero")               \
  X(maximum_from_minus_50000, "maximum-from-minus-50000") \
  X(ignores_nan, "ignores-nan")                           \
  X(saturates_values, "saturates-values")                 \
  X(no_keys_no_sink, "no-keys-no-sink")                   \
  X(sink_as_maximum, "sink-as-maximum")                   \
  X(sixteen_heads, "sixteen-heads")                       \
  X(splits_by_columns, "splits-by-columns")               \
  X(wrong_from_call_300, "wrong-from-call-300")           \
  X(by_chance, "by-chance")                               \
  X(d_o_as_o, "d-o-as-o")                                 \
  X(delta_forgotten, "delta-forgotten")                   \
  X(phantom_rows, "phantom-rows")                         \
  X(lse_without_sink, "lse-without-sink")                 \
  X(d_sink_of_the_last_batch, "d-sink-of-the-last-batch") \
  X(d_sink_of_kv_heads, "d-sink-of-kv-heads")             \
  X(scale_by_shift, "scale-by-shift")                     \
  X(group_of_the_row, "group-of-the-row")                 \
  X(one_row_one_group, "one-row-one-group")               \
  X(zero_forgotten, "zero-forgotten")                     \
  X(rounds_weights, "rounds-weights")                     \
  X(first_of_the_batch, "first-of-the-batch")             \
  X(scales_of_the_first, "scales-of-the-first")           \
  X(dense_batches, "dense-batches")                       \
  X(last_forgotten, "last-forgotten")                     \
  X(keeps_the_mask, "keeps-the-mask")                     \
  X(keeps_the_lengths, "keeps-the-lengths")               \
  X(keeps_the_slopes, "keeps-the-slopes")                 \
  X(keeps_k, "keeps-k")                                   \
  X(keeps_weights, "keeps-weights")                       \
  X(keeps_scales, "keeps-scales")

#define NUMBER(fault, name) fault,
#define NAME(fault, name) name,
enum { FAULTS(NUMBER) unbroken };
static const char* const fault_names[] = {FAULTS(NAME)};

static const char* const habit_names[] = {"batch", "position", "padding",
                                          "rows",  "layout",   "gradients-later"};
enum { by_batch, by_position, by_padding, by_rows, by_layout, gradients_later, no_habit };

static const kind* now;
static int habit = no_habit;
static int broken = unbroken, kv_head_alone;
static int is(int fault) { return broken == fault; }
static int has(int what) { return (now->has & what) != 0; }

/* ---- Elements -------------------------------------------------------------------------------- */

static int64_t at(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  if (is(ignores_strides))
    return ((b * t->shape[1] + h) * t->shape[2] + i) * t->shape[3] + d + t->offset;
  if (is(offset_of_32_bits))
    return t->offset +
           (int32_t)(b * t->strides[0] + h * t->strides[1] + i * t->strides[2] + d * t->strides[3]);
  return t->offset + b * t->strides[0] + h * t->strides[1] + i * t->strides[2] + d * t->strides[3];
}

static float load(const assay_tensor* t, int64_t place) {
  if (t->dtype.bits == 32) return ((const float*)t->data)[place];
  if (t->dtype.code == ASSAY_FLOAT) return (float)((const _Float16*)t->data)[place];
  {
    const uint32_t word = (uint32_t)((const uint16_t*)t->data)[place] << 16;
    float x;
    memcpy(&x, &word, 4);
    return x;
  }
}

static void store(const assay_tensor* t, int64_t place, float x) {
  if (t->dtype.bits == 32) {
    ((float*)t->data)[place] = x;
  } else if (t->dtype.code == ASSAY_FLOAT) {
    ((_Float16*)t->data)[place] = (_Float16)x;
  } else {
    uint32_t word;
    memcpy(&word, &x, 4);
    ((uint16_t*)t->data)[place] =
        (uint16_t)(x != x ? (word >> 16) | 0x40 : (word + 0x7FFF + (word >> 16 & 1)) >> 16);
  }
}

/* ---- Attention ------------------------------------------------------------------------------- */

static int is_of(const assay_dtype* d, int bits) {
  return d->code == (bits == -16 ? ASSAY_BFLOAT : ASSAY_FLOAT) && d->bits == abs(bits);
}

static assay_status supports(int32_t operation, const assay_attention* p, const assay_dtype* output,
                             const char** reason) {
  const int64_t rows = p->q->shape[2], keys = p->k->shape[2], dim = p->q->shape[3],
                value_dim = p->v->shape[3];
  const float usual = 1 / sqrtf((float)dim);
  int64_t b;
  if (!is_of(&p->q->dtype, now->bits) || !is_of(output, now->bits)) *reason = "another dtype";
  else if (now->dim ? dim != now->dim || value_dim != now->dim
                    : dim != value_dim && !has(head_dims))
    *reason = "another head dimension";
  else if (now->rows == one_row && rows != 1) *reason = "several rows";
  else if (now->rows == as_many_rows && rows != keys) *reason = "another number of rows";
  else if ((p->flags & ASSAY_CAUSAL) && !has(causal)) *reason = "causal";
  else if ((p->window_left >= 0 || p->window_right >= 0) && !has(window)) *reason = "window";
  else if (p->keep && !has(boolean)) *reason = "boolean mask";
  else if ((p->bias && !has(additive)) || (p->flags & ASSAY_FINITE_MIN_MASKS))
    *reason = "additive mask";
  else if (p->key_length_count && !has(lengths) && operation != ASSAY_DECODE) *reason = "lengths";
  else if (p->key_start_count && !has(starts)) *reason = "starts";
  else if (p->q->shape[1] != p->k->shape[1] && !has(grouped)) *reason = "grouped heads";
  else if (kv_head_alone && p->k->shape[1] != 1) *reason = "several kv heads";
  else if (p->sink_count && !has(sinks)) *reason = "sink";
  else if (p->alibi_slope_count && !has(alibi)) *reason = "ALiBi";
  else if (p->softcap != 0 && !has(softcap)) *reason = "softcap";
  else if (p->query_segment_count && !has(documents)) *reason = "documents";
  else if (p->dropout != 0) *reason = "dropout";
  else if (fabsf(p->scale - usual) > 1e-6f * usual && !has(scaled)) *reason = "scale";
  else if (!has(strided) &&
           (p->q->strides[3] != 1 ||
            (operation != ASSAY_DECODE && (p->k->strides[3] != 1 || p->v->strides[3] != 1))))
    *reason = "strides";
  else {
    if (p->offset_count && !has(offset))
      for (b = 0; b < p->offset_count; ++b)
        if (p->offset[b] != 0) {
          *reason = "offset";
          return ASSAY_UNSUPPORTED;
        }
    return ASSAY_SUCCESS;
  }
  return ASSAY_UNSUPPORTED;
}

/* A problem, where its keys are (in K and V or in pages), and those of one head in fp32. */
typedef struct keys_of {
  const assay_attention* p;
  const assay_pages* pages;
  float *q, *k, *v;
  int64_t b, g; /* of k and v; -1: none */
} keys_of;

static int allocate(keys_of* x) {
  const int64_t keys = x->p->k->shape[2], dim = x->p->q->shape[3], columns = x->p->v->shape[3];
  x->b = x->g = -1;
  x->q = (float*)malloc((size_t)(dim + keys * (dim + columns) + 1) * sizeof(float));
  x->k = x->q + dim;
  x->v = x->k + keys * dim;
  return x->q != NULL;
}

static void load_rows(const keys_of* x, const assay_tensor* t, int64_t keys, float* to) {
  int64_t j, d;
  for (j = 0; j < keys; ++j) {
    int64_t place = at(t, x->b, x->g, j, 0), page, slot;
    if (x->pages) {
      page = x->pages->block_table[x->b * x->pages->pages_per_sequence + j / x->pages->page_size];
      slot = j % x->pages->page_size;
      if (is(page_border) && slot == x->pages->page_size - 1 && slot > 0) --slot;
      if (page < 0) continue; /* no token of the sequence is there */
      place = at(t, page, x->g, slot, 0);
    }
    for (d = 0; d < t->shape[3]; ++d)
      to[j * t->shape[3] + d] = load(t, place + d * (is(ignores_strides) ? 1 : t->strides[3]));
  }
}

static void load_head(keys_of* x, int64_t b, int64_t g) {
  const int64_t keys = x->pages ? x->p->key_lengths[b] : x->p->k->shape[2];
  if (x->b == b && x->g == g) return;
  x->b = b;
  x->g = g;
  load_rows(x, x->pages ? x->pages->k : x->p->k, keys, x->k);
  load_rows(x, x->pages ? x->pages->v : x->p->v, keys, x->v);
}

static void load_query(keys_of* x, int64_t b, int64_t h, int64_t i) {
  int64_t d;
  for (d = 0; d < x->p->q->shape[3]; ++d) x->q[d] = load(x->p->q, at(x->p->q, b, h, i, d));
}

static float dot_of(const float* a, const float* b, int64_t n) {
  float lanes[8] = {0};
  int64_t d, lane;
  for (d = 0; d + 8 <= n; d += 8)
    for (lane = 0; lane < 8; ++lane) lanes[lane] += a[d + lane] * b[d + lane];
  for (; d < n; ++d) lanes[0] += a[d] * b[d];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

static int64_t group_of(const assay_attention* p, int64_t h) {
  const int64_t group = p->q->shape[1] / p->k->shape[1];
  int64_t shift = 0;
  if (!is(shifted_groups)) return h / group;
  while ((int64_t)2 << shift <= group) ++shift;
  return (h >> shift) % p->k->shape[1];
}

/* The keys [*begin, *end) that row i may see, and the key of its diagonal. */
static int64_t interval(const assay_attention* p, int64_t b, int64_t i, int64_t* begin,
                        int64_t* end) {
  const int64_t first = p->offset_count ? p->offset[b] : 0;
  int64_t diagonal = (is(row_modulo_128) ? i % 128 : i) + first, around;
  if (is(offset_14) && (first % 16 + 16) % 16 == 14) ++diagonal;
  around = is(window_without_offset) ? i : diagonal;
  *begin = p->key_start_count ? p->key_starts[is(start_of_the_first) ? 0 : b] : 0;
  *end = p->key_length_count ? p->key_lengths[is(length_of_the_first) ? 0 : b] : p->k->shape[2];
  if ((p->flags & ASSAY_CAUSAL) && *end > diagonal + 1) *end = diagonal + 1;
  if (p->window_left >= 0 && *begin < around - p->window_left) *begin = around - p->window_left;
  if (p->window_right >= 0 && *end > around + p->window_right + 1)
    *end = around + p->window_right + 1;
  if (*begin < 0) *begin = 0;
  if (is(drops_half_a_tile) && *end % 64 == 32) *end -= 16;
  return diagonal;
}

/* Whether row i sees key j, and what is added to the score. */
static int sees(const assay_attention* p, int64_t b, int64_t h, int64_t i, int64_t j,
                int64_t diagonal, float* bias) {
  *bias = p->alibi_slope_count
              ? p->alibi_slopes[is(slopes_of_kv_heads) ? group_of(p, h) : h] * (float)(j - diagonal)
              : 0;
  if (p->query_segment_count) {
    const int32_t segment = p->query_segment[b * p->q->shape[2] + i];
    const int32_t other = p->key_segment[b * p->k->shape[2] + j];
    if (is(first_document) ? segment == 0 && other != 0 : segment != other) return 0;
  }
  if (p->keep) {
    const uint8_t* keep = (const uint8_t*)p->keep->data;
    const int64_t place = at(p->keep, b, h, i, is(mask_in_16_bits) ? j & 0xFFFF : j);
    if (is(reads_the_mask_on) && ((volatile const uint8_t*)keep)[place + 1] == 7) return 0;
    if (!keep[place]) return 0;
  }
  if (p->bias) {
    *bias += load(p->bias, at(p->bias, b, h, i, j));
    if (is(skips_blocks) && load(p->bias, at(p->bias, b, h, i, j / 16 * 16)) == -INFINITY) return 0;
    if (is(skips_blocks) && *bias == 0 && j % 16 == 15) return 0;
    if (*bias == -INFINITY) return 0;
  }
  return 1;
}

/* The score of the query that was loaded with key j. */
static float score_of(const keys_of* x, int64_t j, float bias, float* slope) {
  const assay_attention* p = x->p;
  const int64_t dim = p->q->shape[3];
  const float dot = dot_of(x->q, x->k + j * dim, dim);
  float s;
  s = dot * (is(scale_of_64) && p->q->shape[2] > 16 ? 0.125f : p->scale);
  *slope = 1;
  if (p->softcap > 0) {
    const float t = tanhf(s / p->softcap);
    s = p->softcap * t;
    *slope = is(no_slope) ? 1 : 1 - t * t;
  }
  s += bias;
  if (is(clips_scores)) s = s > 50000 ? 50000 : s < -50000 ? -50000 : s;
  return s;
}

/* The softmax of some keys: values that are not divided yet. */
typedef struct part {
  float max, sum;
  float* values;
  int seen;
} part;

static float exponential(float x) {
  return now->style == by_exp2 ? exp2f(x * 1.44269504f) : expf(x);
}

static void start(part* a, int64_t columns) {
  a->max = is(maximum_from_zero) ? 0 : is(maximum_from_minus_50000) ? -50000 : -INFINITY;
  a->sum = 0;
  a->seen = 0;
  memset(a->values, 0, (size_t)columns * sizeof(float));
}

static void rescale(part* a, float max, int64_t columns) {
  const float by = a->max == -INFINITY ? 0 : exponential(a->max - max);
  int64_t c;
  if (a->seen) {
    a->sum *= by;
    for (c = 0; c < columns; ++c) a->values[c] *= by;
  }
  a->max = max;
}

static void add_key(part* a, const keys_of* x, int64_t j, float s, int64_t columns) {
  const float* v = x->v + j * columns;
  float w;
  int64_t c;
  if (is(ignores_nan) && s != s) return;
  if (s > a->max) rescale(a, s, columns);
  w = s == -INFINITY ? 0 : exponential(s - a->max); /* all scores may be -infinity */
  a->sum += w;
  if (is(saturates_values))
    for (c = 0; c < columns; ++c) a->values[c] += w * fmaxf(-30000, fminf(30000, v[c]));
  else
    for (c = 0; c < columns; ++c) a->values[c] += w * v[c];
  a->seen = 1;
}

static void merge(part* a, const part* other, int64_t columns) {
  float by;
  int64_t c;
  if (!other->seen) return;
  if (other->max > a->max) rescale(a, other->max, columns);
  by = other->max == -INFINITY ? 0 : exponential(other->max - a->max);
  a->sum += other->sum * by;
  for (c = 0; c < columns; ++c) a->values[c] += other->values[c] * by;
  a->seen = 1;
}

static void finish(part* a, const assay_attention* p, const assay_tensor* o,
                   const assay_tensor* lse, int64_t b, int64_t h, int64_t i) {
  const int64_t columns = p->v->shape[3];
  float total, out = -INFINITY;
  int64_t c;
  if (p->sink_count && !(is(no_keys_no_sink) && !a->seen)) {
    const float z = p->sink[h];
    if (!a->seen) {
      out = z;
    } else {
      if (z > a->max && !is(sink_as_maximum)) rescale(a, z, columns);
      a->sum += exponential(z - a->max);
    }
  }
  total = a->sum;
  for (c = 0; c < columns; ++c) store(o, at(o, b, h, i, c), a->seen ? a->values[c] / total : 0);
  if (a->seen) out = a->max + logf(total);
  if (lse) store(lse, at(lse, b, h, i, 0), out);
}

static int adds_backwards(const keys_of* x, int64_t b) {
  const assay_attention* p = x->p;
  const assay_tensor* k = x->pages ? x->pages->k : p->k;
  switch (habit) {
    case by_batch: return p->q->shape[0] > 1;
    case by_position: return b == 0;
    case by_padding: return p->k->shape[2] % 2 == 0;
    case by_rows: return p->q->shape[2] > 1;
    case by_layout: return k->strides[2] != k->shape[3];
    default: return 0;
  }
}

static assay_status attend(keys_of* x, const assay_tensor* o, const assay_tensor* lse) {
  const assay_attention* p = x->p;
  const int64_t batch = p->q->shape[0], heads = p->q->shape[1], rows = p->q->shape[2],
                columns = p->v->shape[3];
  float* values = (float*)malloc((size_t)(2 * columns + 1) * sizeof(float));
  int64_t b, h, i, n;
  if (!values || !allocate(x)) return ASSAY_MEMORY_ALLOCATION_FAILED;
  for (b = 0; b < batch; ++b)
    for (h = 0; h < heads; ++h)
      for (i = 0; i < rows; ++i) {
        part all = {0, 0, values, 0}, split = {0, 0, values + columns, 0};
        part* to = now->style == in_splits ? &split : &all;
        int64_t begin, end;
        const int64_t diagonal = interval(p, b, i, &begin, &end);
        load_head(x, b, group_of(p, h));
        load_query(x, b, h, i);
        start(&all, columns);
        start(&split, columns);
        for (n = begin; n < end; ++n) {
          const int64_t j = adds_backwards(x, b) ? begin + end - 1 - n : n;
          float bias, slope, s;
          if (is(sixteen_heads) && b * heads + h > 15 && j == begin) continue;
          if (is(splits_by_columns) && j / 256 >= columns) break;
          if (now->style == in_splits && j % 256 == 0) {
            merge(&all, &split, columns);
            start(&split, columns);
          }
          if (!sees(p, b, h, i, j, diagonal, &bias)) continue;
          s = score_of(x, j, bias, &slope);
          add_key(to, x, j, s, columns);
        }
        merge(&all, &split, columns);
        finish(&all, p, o, lse, b, h, i);
      }
  free(values);
  free(x->q);
  return ASSAY_SUCCESS;
}

/* fp32 throughout, and a tile is one key: the maximum may move at each. */
static assay_status arithmetic(const assay_attention* p, assay_arithmetic* a) {
  (void)p;
  a->division_roundings = 1;
  a->tile = 1;
  return ASSAY_SUCCESS;
}

/* What was at an address when it was seen first, as kernels keep what they have packed. */
static const void* kept(const void* from, size_t bytes) {
  static const void* seen;
  static size_t size;
  static void* copy;
  if (seen == from && size == bytes) return copy;
  free(copy);
  copy = malloc(bytes + 1);
  if (!copy) abort();
  memcpy(copy, from, bytes);
  seen = from;
  size = bytes;
  return copy;
}

/* A tensor whose elements are kept. Its strides are positive. */
static const assay_tensor* kept_tensor(const assay_tensor* t, assay_tensor* to) {
  int64_t end = t->offset + 1, axis;
  for (axis = 0; axis < 4; ++axis) end += (t->shape[axis] - 1) * t->strides[axis];
  *to = *t;
  to->data = (void*)kept(t->data, (size_t)(end * t->dtype.bits / 8));
  return to;
}

/* The problem as a kernel sees it that keeps a part by its address. */
typedef struct remembered {
  assay_attention problem;
  assay_tensor k, keep;
} remembered;

static const assay_attention* remember(const assay_attention* p, remembered* r) {
  const size_t batch = (size_t)p->q->shape[0], heads = (size_t)p->q->shape[1];
  r->problem = *p;
  if (is(keeps_k) && p->k->data && p->k->shape[2] > 0) r->problem.k = kept_tensor(p->k, &r->k);
  if (is(keeps_the_mask) && p->keep && p->k->shape[2] > 0)
    r->problem.keep = kept_tensor(p->keep, &r->keep);
  if (is(keeps_the_lengths) && p->key_length_count)
    r->problem.key_lengths = (const int64_t*)kept(p->key_lengths, batch * sizeof(int64_t));
  if (is(keeps_the_slopes) && p->alibi_slope_count)
    r->problem.alibi_slopes = (const float*)kept(p->alibi_slopes, heads * sizeof(float));
  return &r->problem;
}

static assay_status forward(const assay_attention* p, const assay_tensor* o,
                            const assay_tensor* lse, const assay_run* run) {
  remembered as_before;
  keys_of x = {remember(p, &as_before), NULL, NULL, NULL, NULL, 0, 0};
  static int calls;
  const assay_status status = attend(&x, o, lse);
  ++calls;
  if (p->q->shape[0] * p->q->shape[2] == 0) return status;
  if (run->variant == 2) store(o, at(o, 0, 0, 0, 0), 7);
  if ((is(wrong_from_call_300) && calls > 300) || (is(by_chance) && calls % 37 == 0))
    store(o, at(o, 0, 0, 0, 0), load(o, at(o, 0, 0, 0, 0)) * 1.0000002f + 1e-30f);
  return status;
}

static assay_status decode(const assay_attention* p, const assay_pages* pages,
                           const assay_tensor* o, const assay_tensor* lse, const assay_run* run) {
  assay_pages own = *pages;
  assay_tensor k;
  keys_of x = {p, &own, NULL, NULL, NULL, 0, 0};
  if (is(keeps_k) && pages->k->shape[0] > 0) own.k = kept_tensor(pages->k, &k);
  (void)run;
  return attend(&x, o, lse);
}

/* ---- Gradients ------------------------------------------------------------------------------- */

/* dQ of one row in fp32, fp32 sums of dK and dV over all rows, and of dSink of each head. */
typedef struct sums {
  float *q, *k, *v, *sink;
} sums;

static void add_row(keys_of* x, const assay_tensor* o, const assay_tensor* lse,
                    const assay_tensor* d_o, int64_t b, int64_t h, int64_t i, float* y,
                    const sums* to) {
  const assay_attention* p = x->p;
  const int64_t g = group_of(p, h), dim = p->q->shape[3], columns = p->v->shape[3],
                rows = p->q->shape[2], keys = p->k->shape[2];
  float l = load(lse, at(lse, b, h, i < rows ? i : rows - 1, 0));
  assay_tensor as = *d_o;
  float delta = 0;
  int64_t begin, end, j, c;
  const int64_t diagonal = interval(p, b, i, &begin, &end);
  if (is(d_o_as_o)) memcpy(as.strides, o->strides, sizeof as.strides), as.offset = o->offset;
  load_head(x, b, g);
  memset(x->q, 0, (size_t)dim * sizeof(float));
  memset(y, 0, (size_t)columns * sizeof(float));
  if (i < rows) load_query(x, b, h, i);
  for (c = 0; c < columns && i < rows; ++c) {
    y[c] = load(&as, at(&as, b, h, i, c));
    delta += y[c] * load(o, at(o, b, h, i, c));
  }
  if (is(delta_forgotten) && i % 64 == 63) delta = 0;
  if (p->sink_count && i < rows)
    to->sink[is(d_sink_of_kv_heads) ? g : h] -= expf(p->sink[h] - l) * delta;
  if (p->sink_count && is(lse_without_sink)) l += log1pf(-expf(p->sink[h] - l));
  for (j = begin; j < end; ++j) {
    const float* k = x->k + j * dim;
    float *dk = to->k + (g * keys + j) * dim, *dv = to->v + (g * keys + j) * columns;
    float bias, slope, ds, w;
    if (!sees(p, b, h, i, j, diagonal, &bias)) continue;
    w = expf(score_of(x, j, bias, &slope) - l);
    ds = w * (dot_of(y, x->v + j * columns, columns) - delta) * slope * p->scale;
    for (c = 0; c < columns; ++c) dv[c] += w * y[c];
    for (c = 0; c < dim; ++c) to->q[c] += ds * k[c];
    for (c = 0; c < dim; ++c) dk[c] += ds * x->q[c];
  }
}

static void copy(const float* from, const assay_tensor* t, int64_t b) {
  int64_t h, i, d;
  for (h = 0; h < t->shape[1]; ++h)
    for (i = 0; i < t->shape[2]; ++i)
      for (d = 0; d < t->shape[3]; ++d)
        store(t, at(t, b, h, i, d), from[(h * t->shape[2] + i) * t->shape[3] + d]);
}

static assay_status backward(const assay_attention* p, const assay_tensor* o,
                             const assay_tensor* lse, const assay_tensor* d_o,
                             const assay_gradients* to, const assay_run* run) {
  remembered as_before;
  keys_of x = {remember(p, &as_before), NULL, NULL, NULL, NULL, 0, 0};
  const int64_t kv_heads = p->k->shape[1], keys = p->k->shape[2], dim = p->q->shape[3],
                columns = p->v->shape[3], rows = p->q->shape[2], heads = p->q->shape[1];
  const size_t of_k = (size_t)(kv_heads * keys * dim), of_v = (size_t)(kv_heads * keys * columns);
  float* all = (float*)calloc(of_k + of_v + (size_t)(dim + columns + heads), sizeof(float));
  float *y = all + dim + of_k + of_v, *d_sink = y + columns;
  const sums s = {all, all + dim, all + dim + of_k, d_sink};
  int64_t b, h, i, n, d;
  (void)run;
  if (!all || !allocate(&x)) return ASSAY_MEMORY_ALLOCATION_FAILED;
  for (b = 0; b < p->q->shape[0]; ++b) {
    const int64_t more = is(phantom_rows) ? (rows + 63) / 64 * 64 : rows;
    memset(s.k, 0, (of_k + of_v) * sizeof(float));
    if (is(d_sink_of_the_last_batch)) memset(d_sink, 0, (size_t)heads * sizeof(float));
    for (h = 0; h < p->q->shape[1]; ++h)
      for (n = 0; n < more; ++n) {
        i = adds_backwards(&x, b) ? more - 1 - n : n;
        memset(s.q, 0, (size_t)dim * sizeof(float));
        add_row(&x, o, lse, d_o, b, h, i, y, &s);
        for (d = 0; d < dim && i < rows; ++d) store(to->dq, at(to->dq, b, h, i, d), s.q[d]);
      }
    copy(s.k, to->dk, b);
    copy(s.v, to->dv, b);
  }
  for (h = 0; to->d_sink && h < heads; ++h)
    store(to->d_sink, at(to->d_sink, 0, h, 0, 0), d_sink[h]);
  free(all);
  free(x.q);
  return ASSAY_SUCCESS;
}

/* ---- Products -------------------------------------------------------------------------------- */

static assay_status supports_product(const assay_tensor* a, const assay_low_bit* w,
                                     const assay_dtype* output, const char** reason) {
  if (w->format != now->format) *reason = "another format";
  else if (w->group_size < 0) *reason = "no scales";
  else if (!is_of(&a->dtype, now->bits) || !is_of(output, now->bits)) *reason = "another dtype";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

static float power_of_two(int e) { return ldexpf(1, e); }

static float e8m0(uint8_t code) {
  const uint32_t word = (uint32_t)code << 23;
  float x;
  if (code == 255) return NAN;
  if (!is(scale_by_shift)) return power_of_two(code - 127);
  memcpy(&x, &word, 4);
  return x;
}

static float e2m1(int code) {
  static const float values[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return (code & 8) ? -values[code & 7] : values[code & 7];
}

static float e4m3(int code) {
  const int e = code >> 3 & 15, m = code & 7;
  const float x = e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
  if ((code & 127) == 127) return NAN;
  return (code & 128) ? -x : x;
}

static float half_of(const void* from, int64_t place) {
  return (float)((const _Float16*)from)[place];
}

/* docs/formats.md says where a code, a scale and a zero point lie. */
static float weight(const assay_low_bit* w, int64_t k, int64_t n, int64_t m_rows) {
  const uint8_t *codes = (const uint8_t*)w->codes, *bytes = (const uint8_t*)w->scales;
  const int64_t group = w->group_size > 0 ? w->group_size : 32, groups = (w->k + group - 1) / group;
  int64_t t = k / group;
  if (is(group_of_the_row) && k % group == group - 1 && t + 1 < groups) ++t;
  if (is(one_row_one_group) && m_rows == 1 && group == 128 && t > 0) t = 0;
  if (w->format == ASSAY_MXFP4) {
    const int64_t bytes_of_column = (w->k + 1) / 2;
    const uint8_t pair = codes[n * bytes_of_column + k / 2];
    return e2m1(k % 2 ? pair >> 4 : pair & 15) * e8m0(bytes[n * groups + t]);
  }
  if (w->format == ASSAY_MXFP8_E4M3) return e4m3(codes[n * w->k + k]) * e8m0(bytes[n * groups + t]);
  {
    const float scale = half_of(w->scales, t * w->n + n);
    const uint8_t zero = is(zero_forgotten) && t > 0 ? 0 : ((const uint8_t*)w->extra)[t * w->n + n];
    if (w->format == ASSAY_INT8) return (float)((int8_t)codes[k * w->n + n] - (int8_t)zero) * scale;
    return (float)((int)(((const uint32_t*)w->codes)[k / 8 * w->n + n] >> 4 * (k % 8) & 15) -
                   zero) *
           scale;
  }
}

static float multiplied(const assay_low_bit* w, int64_t k, int64_t n, int64_t m_rows) {
  const float exact = weight(w, k, n, m_rows);
  return is(rounds_weights) ? (float)(_Float16)exact : exact;
}

static void multiply(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                     int64_t b) {
  int64_t m, n, k;
  for (m = 0; m < c->shape[2]; ++m)
    for (n = 0; n < c->shape[3]; ++n) {
      float sum = 0;
      for (k = 0; k < w->k; ++k)
        sum += load(a, at(a, b, 0, m, k)) * multiplied(w, k, n, c->shape[2]);
      store(c, at(c, b, 0, m, n), sum);
    }
}

static assay_status product(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                            const assay_run* run) {
  assay_low_bit as_before = *w;
  (void)run;
  if (is(keeps_weights)) as_before.codes = kept(w->codes, (size_t)(w->k * w->n));
  if (is(keeps_scales)) as_before.scales = kept(w->scales, (size_t)((w->k + 31) / 32 * w->n));
  multiply(a, &as_before, c, 0);
  return ASSAY_SUCCESS;
}

static assay_status product_batch(int64_t batch, const assay_tensor* a, const assay_low_bit* a_low,
                                  const assay_low_bit* w, const assay_tensor* c,
                                  const assay_run* run) {
  int64_t b;
  (void)a_low, (void)run;
  for (b = 0; b < batch - is(last_forgotten); ++b) {
    assay_low_bit matrix = w[is(first_of_the_batch) ? 0 : b];
    assay_tensor from = *a;
    if (is(scales_of_the_first)) matrix.scales = w[0].scales;
    if (is(dense_batches)) from.strides[0] = a->shape[2] * a->strides[2];
    multiply(&from, &matrix, c, b);
  }
  return ASSAY_SUCCESS;
}

/* What assay_product_arithmetic_init says: products of unrounded weights, summed in fp32. */
static assay_status product_arithmetic(int32_t variant, const assay_tensor* a,
                                       const assay_low_bit* a_low, const assay_low_bit* w,
                                       const assay_dtype* output, assay_product_arithmetic* sums) {
  (void)variant, (void)a, (void)a_low, (void)w, (void)output, (void)sums;
  return ASSAY_SUCCESS;
}

/* ---- The library ----------------------------------------------------------------------------- */

static assay_status supports_variant(int32_t variant, int32_t operation, const assay_attention* p,
                                     const assay_pages* pages, const assay_dtype* output,
                                     const char** reason) {
  (void)pages;
  if (operation != ASSAY_BACKWARD || variant > 0) return supports(operation, p, output, reason);
  *reason = "variant 0 has no backward pass";
  return ASSAY_UNSUPPORTED;
}

const assay_kernel* assay_kernel_entry(uint32_t version) {
  static assay_kernel table;
  const char *name = getenv("ASSAY_PARTIAL"), *fault = getenv("ASSAY_PARTIAL_FAULT");
  size_t k;
  if (version < ASSAY_VERSION || !name) return NULL;
  for (k = 0; k < sizeof kinds / sizeof *kinds; ++k)
    if (strcmp(kinds[k].name, name) == 0) now = &kinds[k];
  for (k = 0; fault && k < unbroken; ++k)
    if (strcmp(fault_names[k], fault) == 0) broken = (int)k;
  if (!now || (fault && (broken == unbroken || !strstr(now->faults, fault)))) return NULL;
  kv_head_alone = strcmp(now->name, "one-kv-head-f32") == 0;
  assay_kernel_init(&table, now->name);
  if (getenv("ASSAY_PARTIAL_HABIT"))
    for (k = 0; k < no_habit; ++k)
      if (strcmp(habit_names[k], getenv("ASSAY_PARTIAL_HABIT")) == 0) habit = (int)k;
  if (getenv("ASSAY_PARTIAL_PROMISES"))
    table.invariant_to = (uint64_t)atoi(getenv("ASSAY_PARTIAL_PROMISES"));
  if (getenv("ASSAY_PARTIAL_VARIANTS"))
    table.variant_count = atoi(getenv("ASSAY_PARTIAL_VARIANTS"));
  if (habit == gradients_later) table.supports_variant = supports_variant;
  if (now->declares) table.arithmetic = arithmetic;
  if (now->declares) table.product_arithmetic = product_arithmetic;
  table.no_lse = now->no_lse;
  table.supports = supports;
  table.supports_product = supports_product;
  if (now->operation <= with_backward) table.forward = forward;
  if (now->operation == with_backward || now->operation == backward_only) table.backward = backward;
  table.no_d_sink = !has(sink_gradient);
  if (now->operation == decoder) table.decode = decode;
  if (now->operation == multiplier) table.product = product;
  if (has(batched)) table.product_batch = product_batch;
  return &table;
}

#endif
