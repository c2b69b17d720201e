/* Products with MXFP4 weights, of an A in fp32 or in MXFP4, behind the table of kernel.h.
 *
 *     assay check --kernel build/libproduct.so --suite products */
#include "kernel.h"

#include <math.h>

/* Column n of a matrix in columns has its codes along k, the low nibble of a byte first, and a
 * scale for each 32 of them (docs/formats.md). The columns of a low-bit A are its rows. */
static float number(const assay_low_bit* m, int64_t k, int64_t n) {
  static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const uint8_t pair = ((const uint8_t*)m->codes)[n * ((m->k + 1) / 2) + k / 2];
  const int code = k % 2 ? pair >> 4 : pair & 15;
  const uint8_t scale = ((const uint8_t*)m->scales)[n * ((m->k + 31) / 32) + k / 32];
  const float magnitude = values[code & 7];
  return ldexpf(code & 8 ? -magnitude : magnitude, scale - 127) + (scale == 255 ? NAN : 0);
}

static int is_fp32(const assay_dtype* dtype) {
  return dtype->code == ASSAY_FLOAT && dtype->bits == 32;
}

static assay_status supports_product(const assay_tensor* a, const assay_low_bit* w,
                                     const assay_dtype* output, const char** reason) {
  if (w->format != ASSAY_MXFP4) *reason = "another format than MXFP4";
  else if (!is_fp32(&a->dtype) || !is_fp32(output)) *reason = "A or C in 16 bits";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

static assay_status supports_low_bit(const assay_low_bit* a, const assay_low_bit* w,
                                     const assay_dtype* output, const char** reason) {
  if (a->format != ASSAY_MXFP4 || w->format != ASSAY_MXFP4) *reason = "another format than MXFP4";
  else if (!is_fp32(output)) *reason = "C in 16 bits";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

/* Calls that cannot be: the suite `refusals` asks for these checks. A kernel whose callers check
 * may do without them. */
static int fits(const assay_tensor* t, int64_t rows, int64_t columns) {
  return t && t->rank == 4 && is_fp32(&t->dtype) && t->shape[0] == 1 && t->shape[1] == 1 &&
         t->shape[2] == rows && t->shape[3] == columns && rows >= 0 && columns >= 0;
}

static int is_mxfp4(const assay_low_bit* m) {
  return m && m->format == ASSAY_MXFP4 && (m->group_size == 0 || m->group_size == 32) &&
         m->k >= 0 && m->n >= 0 && m->codes && m->scales;
}

/* A is one of the two. */
static void multiply(const assay_tensor* a, const assay_low_bit* a_low, const assay_low_bit* w,
                     const assay_tensor* c) {
  int64_t m, n, k;
  for (m = 0; m < c->shape[2]; ++m)
    for (n = 0; n < c->shape[3]; ++n) {
      float sum = 0;
      for (k = 0; k < w->k; ++k) {
        const float x =
            a ? ((const float*)a->data)[a->offset + m * a->strides[2] + k * a->strides[3]]
              : number(a_low, k, m);
        sum += x * number(w, k, n);
      }
      ((float*)c->data)[c->offset + m * c->strides[2] + n * c->strides[3]] = sum;
    }
}

static assay_status product(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                            const assay_run* run) {
  (void)run;
  if (!a || !is_mxfp4(w) || !fits(a, a->shape[2], w->k) || !fits(c, a->shape[2], w->n))
    return ASSAY_INVALID_ARGUMENTS;
  multiply(a, NULL, w, c);
  return ASSAY_SUCCESS;
}

static assay_status product_low_bit(const assay_low_bit* a, const assay_low_bit* w,
                                    const assay_tensor* c, const assay_run* run) {
  (void)run;
  if (!is_mxfp4(a) || !is_mxfp4(w) || a->k != w->k || !fits(c, a->n, w->n))
    return ASSAY_INVALID_ARGUMENTS;
  multiply(NULL, a, w, c);
  return ASSAY_SUCCESS;
}

/* What a product is held to: one sum in fp32, as the struct says already. Of a and a_low, one is
 * NULL. */
static assay_status product_arithmetic(int32_t variant, const assay_tensor* a,
                                       const assay_low_bit* a_low, const assay_low_bit* w,
                                       const assay_dtype* output, assay_product_arithmetic* sums) {
  (void)variant, (void)a, (void)a_low, (void)w, (void)output;
  sums->order = ASSAY_SUMS_IN_ANY_ORDER;
  return ASSAY_SUCCESS;
}

const assay_kernel* assay_kernel_entry(uint32_t version) {
  static assay_kernel table;
  if (version < ASSAY_VERSION) return NULL;
  assay_kernel_init(&table, "low-bit products");
  table.supports_product = supports_product;
  table.product = product;
  table.supports_low_bit = supports_low_bit;
  table.product_low_bit = product_low_bit;
  table.product_arithmetic = product_arithmetic;
  return &table;
}
