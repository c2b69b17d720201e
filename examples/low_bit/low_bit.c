/* A product of two MXFP4 matrices, and a writer of pages in fp32, behind the table of kernel.h.
 *
 *     cc -O2 -ffp-contract=off -fPIC -shared -Iinclude/assay -o liblow_bit.so \
 *         examples/low_bit/low_bit.c -lm
 *     assay check --kernel ./liblow_bit.so --suite products
 *     assay check --kernel ./liblow_bit.so --suite caches
 *
 * A suite is drawn for what the functions supports_... say, and nothing else is asked. */
#include "kernel.h"

#include <math.h>

/* ---- Calls that cannot be -------------------------------------------------------------------- */

/* The suite `refusals` asks for these checks. A kernel whose callers check may do without them. */

static int is_fp32(const assay_tensor* t) {
  return t->dtype.code == ASSAY_FLOAT && t->dtype.bits == 32;
}

/* Whether a tensor of fp32 has these extents. */
static int fits(const assay_tensor* t, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
  return t && t->rank == 4 && is_fp32(t) && t->shape[0] == d0 && t->shape[1] == d1 &&
         t->shape[2] == d2 && t->shape[3] == d3 && d0 >= 0 && d1 >= 0 && d2 >= 0 && d3 >= 0;
}

static int is_mxfp4(const assay_low_bit* m) {
  return m->format == ASSAY_MXFP4 && (m->group_size == 0 || m->group_size == 32) && m->k >= 0 &&
         m->n >= 0 && m->codes && m->scales;
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

/* ---- C = A W, both in MXFP4 ------------------------------------------------------------------ */

/* Column n of a matrix in columns has its codes along k, the low nibble of a byte first, and a
 * scale for each 32 of them (docs/formats.md). The columns of A are the rows of the product. */
static float number(const assay_low_bit* m, int64_t k, int64_t n) {
  static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const uint8_t pair = ((const uint8_t*)m->codes)[n * ((m->k + 1) / 2) + k / 2];
  const int code = k % 2 ? pair >> 4 : pair & 15;
  const uint8_t scale = ((const uint8_t*)m->scales)[n * ((m->k + 31) / 32) + k / 32];
  const float magnitude = values[code & 7];
  return ldexpf(code & 8 ? -magnitude : magnitude, scale - 127) + (scale == 255 ? NAN : 0);
}

static assay_status supports_low_bit(const assay_low_bit* a, const assay_low_bit* w,
                                     const assay_dtype* output, const char** reason) {
  if (a->format != ASSAY_MXFP4 || w->format != ASSAY_MXFP4) *reason = "another format than MXFP4";
  else if (output->code != ASSAY_FLOAT || output->bits != 32) *reason = "C in 16 bits";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

static assay_status product_low_bit(const assay_low_bit* a, const assay_low_bit* w,
                                    const assay_tensor* c, const assay_run* run) {
  int64_t m, n, k;
  (void)run;
  if (!is_mxfp4(a) || !is_mxfp4(w) || a->k != w->k || !fits(c, 1, 1, a->n, w->n))
    return ASSAY_INVALID_ARGUMENTS;
  for (m = 0; m < a->n; ++m)
    for (n = 0; n < w->n; ++n) {
      float sum = 0;
      for (k = 0; k < w->k; ++k) sum += number(a, k, m) * number(w, k, n);
      ((float*)c->data)[c->offset + m * c->strides[2] + n * c->strides[3]] = sum;
    }
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

static void copy_row(const assay_tensor* from, int64_t b, int64_t h, int64_t i,
                     const assay_tensor* to, int64_t page, int64_t slot) {
  const float* row = (const float*)from->data + from->offset + b * from->strides[0] +
                     h * from->strides[1] + i * from->strides[2];
  float* stored = (float*)to->data + to->offset + page * to->strides[0] + h * to->strides[1] +
                  slot * to->strides[2];
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
  assay_kernel_init(&table, "low-bit example");
  table.supports_low_bit = supports_low_bit;
  table.product_low_bit = product_low_bit;
  table.supports_append = supports_append;
  table.append = append;
  return &table;
}
