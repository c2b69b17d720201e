/* Decoding from pages, and writing into pages, behind the table of kernel.h.
 *
 *     assay check --kernel build/libpaged.so --suite caches */
#include "kernel.h"

#include <math.h>
#include <stdlib.h>

static int is_fp32(const assay_tensor* t) {
  return t->dtype.code == ASSAY_FLOAT && t->dtype.bits == 32;
}

static float* row_at(const assay_tensor* t, int64_t b, int64_t h, int64_t i) {
  return (float*)t->data + t->offset + b * t->strides[0] + h * t->strides[1] + i * t->strides[2];
}

/* ---- O and LSE from pages -------------------------------------------------------------------- */

/* Without supports_cache, pages hold the dtype of Q, and nothing else is asked. */
static assay_status supports(int32_t operation, const assay_attention* p, const assay_dtype* output,
                             const char** reason) {
  (void)operation; /* the table has no other than decode */
  if (!is_fp32(p->q) || output->code != ASSAY_FLOAT || output->bits != 32)
    *reason = "another dtype than fp32";
  else if (p->window_left >= 0 || p->window_right >= 0 || p->keep || p->bias ||
           p->key_start_count || p->alibi_slope_count || p->query_segment_count)
    *reason = "another mask than causality";
  else if (p->softcap != 0 || p->sink_count || p->dropout != 0)
    *reason = "softcap, sink or dropout";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

/* The row of token j of sequence b: in the page that the table names, at its slot. */
static const float* token(const assay_pages* pages, const assay_tensor* t, int64_t b, int64_t g,
                          int64_t j) {
  const int64_t entry = b * pages->pages_per_sequence + j / pages->page_size;
  return row_at(t, pages->block_table[entry], g, j % pages->page_size);
}

/* One row over the keys [0, end). There is room for a score of each key in `score`. */
static void attend(const assay_attention* p, const assay_pages* pages, const assay_tensor* o,
                   const assay_tensor* lse, int64_t b, int64_t h, int64_t i, int64_t end,
                   float* score) {
  const int64_t g = h / (p->q->shape[1] / p->k->shape[1]);
  const float* q = row_at(p->q, b, h, i);
  float max = -INFINITY, sum = 0;
  int64_t j, d;
  for (j = 0; j < end; ++j) {
    const float* k = token(pages, pages->k, b, g, j);
    float dot = 0;
    for (d = 0; d < p->q->shape[3]; ++d)
      dot += q[d * p->q->strides[3]] * k[d * pages->k->strides[3]];
    score[j] = dot * p->scale;
    if (score[j] > max) max = score[j];
  }
  for (j = 0; j < end; ++j) {
    score[j] = score[j] == -INFINITY ? 0 : expf(score[j] - max);
    sum += score[j];
  }
  for (d = 0; d < p->v->shape[3]; ++d) {
    float value = 0;
    for (j = 0; j < end; ++j)
      value += score[j] * token(pages, pages->v, b, g, j)[d * pages->v->strides[3]];
    row_at(o, b, h, i)[d * o->strides[3]] = end > 0 ? value / sum : 0;
  }
  *row_at(lse, b, h, i) = end > 0 ? max + logf(sum) : -INFINITY;
}

/* Calls that cannot be: the suite `refusals` asks for these checks. A kernel whose callers check
 * may do without them. */
static int fits(const assay_tensor* t, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
  return t && t->rank == 4 && is_fp32(t) && t->shape[0] == d0 && t->shape[1] == d1 &&
         t->shape[2] == d2 && t->shape[3] == d3 && d0 >= 0 && d1 >= 0 && d2 >= 0 && d3 >= 0;
}

static int can_decode(const assay_attention* p, const assay_pages* pages, const assay_tensor* o,
                      const assay_tensor* lse) {
  int64_t batch, heads, kv_heads, rows, keys, b, j;
  if (!p->q || !p->k || !p->v || !pages || !pages->k || !pages->v || !pages->block_table) return 0;
  batch = p->q->shape[0], heads = p->q->shape[1], rows = p->q->shape[2];
  kv_heads = p->k->shape[1], keys = p->k->shape[2];
  if (kv_heads < 1 || heads % kv_heads != 0 || p->key_length_count != batch || !p->key_lengths ||
      (p->offset_count && (p->offset_count != batch || !p->offset)) || p->scale != p->scale)
    return 0;
  if (pages->page_size < 1) return 0;
  for (b = 0; b < batch; ++b) {
    if (p->key_lengths[b] < 0 || p->key_lengths[b] > keys) return 0;
    for (j = 0; j * pages->page_size < p->key_lengths[b]; ++j) {
      const int64_t page = pages->block_table[b * pages->pages_per_sequence + j];
      if (page < 0 || page >= pages->k->shape[0]) return 0;
    }
  }
  return fits(p->q, batch, heads, rows, p->q->shape[3]) &&
         fits(p->k, batch, kv_heads, keys, p->q->shape[3]) &&
         fits(p->v, batch, kv_heads, keys, p->v->shape[3]) &&
         fits(o, batch, heads, rows, p->v->shape[3]) && fits(lse, batch, heads, rows, 1);
}

static assay_status decode(const assay_attention* p, const assay_pages* pages,
                           const assay_tensor* o, const assay_tensor* lse, const assay_run* run) {
  float* score;
  int64_t b, h, i;
  (void)run;
  if (!can_decode(p, pages, o, lse)) return ASSAY_INVALID_ARGUMENTS;
  score = (float*)malloc((size_t)(p->k->shape[2] + 1) * sizeof(float));
  if (!score) return ASSAY_MEMORY_ALLOCATION_FAILED;
  for (b = 0; b < p->q->shape[0]; ++b)
    for (h = 0; h < p->q->shape[1]; ++h)
      for (i = 0; i < p->q->shape[2]; ++i) {
        const int64_t diagonal = i + (p->offset_count ? p->offset[b] : 0);
        int64_t end = p->key_lengths[b]; /* how many tokens the sequence has */
        if ((p->flags & ASSAY_CAUSAL) && end > diagonal + 1) end = diagonal + 1;
        attend(p, pages, o, lse, b, h, i, end, score);
      }
  free(score);
  return ASSAY_SUCCESS;
}

/* ---- Tokens into pages ----------------------------------------------------------------------- */

static assay_status supports_append(const assay_tensor* k, const assay_tensor* v,
                                    const assay_pages* pages, const char** reason) {
  (void)v;
  if (is_fp32(k) && is_fp32(pages->k)) return ASSAY_SUCCESS;
  *reason = "another dtype than fp32";
  return ASSAY_UNSUPPORTED;
}

static int can_append(const assay_tensor* k, const assay_tensor* v, const int64_t* slots,
                      const assay_pages* pages) {
  int64_t n;
  if (!k || !v || !slots || !pages || !pages->k || !pages->v || pages->page_size < 1) return 0;
  if (!fits(k, k->shape[0], pages->k->shape[1], k->shape[2], pages->k->shape[3]) ||
      !fits(v, k->shape[0], pages->v->shape[1], k->shape[2], pages->v->shape[3]))
    return 0;
  for (n = 0; n < k->shape[0] * k->shape[2]; ++n)
    if (slots[n] < -1 || slots[n] >= pages->k->shape[0] * pages->page_size) return 0;
  return 1;
}

static void copy_row(const assay_tensor* from, int64_t b, int64_t h, int64_t i,
                     const assay_tensor* to, int64_t page, int64_t slot) {
  const float* row = row_at(from, b, h, i);
  float* stored = row_at(to, page, h, slot);
  int64_t d;
  for (d = 0; d < to->shape[3]; ++d) stored[d * to->strides[3]] = row[d * from->strides[3]];
}

static assay_status append(const assay_tensor* k, const assay_tensor* v, const int64_t* slots,
                           const assay_pages* pages, const assay_run* run) {
  int64_t b, h, i;
  (void)run;
  if (!can_append(k, v, slots, pages)) return ASSAY_INVALID_ARGUMENTS;
  for (b = 0; b < k->shape[0]; ++b)
    for (i = 0; i < k->shape[2]; ++i) {
      const int64_t at = slots[b * k->shape[2] + i];
      if (at < 0) continue; /* this token is not stored */
      for (h = 0; h < k->shape[1]; ++h) {
        copy_row(k, b, h, i, pages->k, at / pages->page_size, at % pages->page_size);
        copy_row(v, b, h, i, pages->v, at / pages->page_size, at % pages->page_size);
      }
    }
  return ASSAY_SUCCESS;
}

/* ---- The table ------------------------------------------------------------------------------- */

const assay_kernel* assay_kernel_entry(uint32_t version) {
  static assay_kernel table;
  if (version < ASSAY_VERSION) return NULL;
  assay_kernel_init(&table, "pages");
  table.supports = supports;
  table.decode = decode;
  table.supports_append = supports_append;
  table.append = append;
  return &table;
}
