/* Small, honest, partial kernels behind kernel.h that read and write low-bit numbers: products with
 * a low-bit A, quantizers, dequantizers, and caches. As in partial_kernels.c, a table says what
 * each kind does and by which faults the test breaks it, ASSAY_PARTIAL=KIND and
 * ASSAY_PARTIAL_FAULT=FAULT choose, and with -DLIST this is a program that prints the table. What
 * any kind may keep from one call to the next, and whether it refuses calls that cannot be, says
 * ASSAY_PARTIAL_HABIT. */
#include <assay/kernel.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- The table ------------------------------------------------------------------------------- */

enum { product_of_codes, quantizer, dequantizer, cache, reader, writer };

typedef struct kind {
  const char *name, *suite;
  int operation;
  int format, other; /* of W and of A; for caches, the bits of a code (-16: bf16) and of a token */
  int rule;          /* of scales */
  const char* faults;
} kind;

static const kind kinds[] = {
    {"mxfp4-by-mxfp4", "products", product_of_codes, ASSAY_MXFP4, ASSAY_MXFP4, 0,
     "first-scale-of-a a-swapped last-group-dropped"},
    {"nvfp4-by-nvfp4", "products", product_of_codes, ASSAY_NVFP4, ASSAY_NVFP4, 0,
     "no-tensor-scale-of-a first-scale-of-a flushed-scales"},
    {"mxfp8-by-mxfp4", "products", product_of_codes, ASSAY_MXFP4, ASSAY_MXFP8_E4M3, 0,
     "first-scale-of-a one-scale-for-both last-group-dropped"},
    {"quantize-mxfp4", "products", quantizer, ASSAY_MXFP4, 0, ASSAY_SCALE_FLOOR,
     "ties-away wraps ceil-for-floor swapped"},
    {"quantize-mxfp4-rceil", "products", quantizer, ASSAY_MXFP4, 0, ASSAY_SCALE_RCEIL,
     "floor-for-rceil ties-away no-subnormals"},
    {"quantize-mxfp4-even", "products", quantizer, ASSAY_MXFP4, 0, ASSAY_SCALE_EVEN,
     "floor-for-even ceil-for-even"},
    {"quantize-mxfp8", "products", quantizer, ASSAY_MXFP8_E4M3, 0, ASSAY_SCALE_FLOOR,
     "ties-away wraps ceil-for-floor"},
    {"quantize-nvfp4", "products", quantizer, ASSAY_NVFP4, 0, 0,
     "reciprocal ties-away swapped wraps"},
    {"quantize-int8", "products", quantizer, ASSAY_INT8, 0, 0,
     "reciprocal ties-away wraps truncated-zero"},
    {"dequantize-nvfp4", "products", dequantizer, ASSAY_NVFP4, 0, 0,
     "tensor-scale-in-16-bits swapped flushed-scales"},
    {"dequantize-int4", "products", dequantizer, ASSAY_INT4, 0, 0,
     "zero-in-16-bits swapped first-zero"},
    {"dequantize-mxfp8", "products", dequantizer, ASSAY_MXFP8_E4M3, 0, 0,
     "nan-as-480 scale-by-shift"},
    {"append-bf16", "caches", writer, -16, -16, 0, "writes-skipped page-border first-sequence"},
    {"append-f32-as-bf16", "caches", writer, -16, 32, 0, "truncates writes-skipped"},
    {"append-f8", "caches", writer, 8, 32, 0, "floor-for-rceil wraps truncates one-group"},
    {"append-f4", "caches", writer, 4, 32, 0, "swapped ties-away floor-for-rceil"},
    {"read-f8", "caches", reader, 8, 32, 0, "scale-rounded one-group nan-as-480 page-border"},
    {"read-f4", "caches", reader, 4, 32, 0, "swapped one-group"},
    {"cache-f8", "caches", cache, 8, 32, 0, "scale-rounded floor-for-rceil"},
};

#ifdef LIST

int main(void) {
  size_t k;
  for (k = 0; k < sizeof kinds / sizeof *kinds; ++k)
    printf("%s %s %s\n", kinds[k].name, kinds[k].suite, kinds[k].faults);
  return 0;
}

#else

#define FAULTS(X)                                       \
  X(first_scale_of_a, "first-scale-of-a")               \
  X(a_swapped, "a-swapped")                             \
  X(last_group_dropped, "last-group-dropped")           \
  X(no_tensor_scale_of_a, "no-tensor-scale-of-a")       \
  X(flushed_scales, "flushed-scales")                   \
  X(one_scale_for_both, "one-scale-for-both")           \
  X(ties_away, "ties-away")                             \
  X(wraps, "wraps")                                     \
  X(ceil_for_floor, "ceil-for-floor")                   \
  X(swapped, "swapped")                                 \
  X(floor_for_rceil, "floor-for-rceil")                 \
  X(no_subnormals, "no-subnormals")                     \
  X(floor_for_even, "floor-for-even")                   \
  X(ceil_for_even, "ceil-for-even")                     \
  X(reciprocal, "reciprocal")                           \
  X(truncated_zero, "truncated-zero")                   \
  X(tensor_scale_in_16_bits, "tensor-scale-in-16-bits") \
  X(zero_in_16_bits, "zero-in-16-bits")                 \
  X(first_zero, "first-zero")                           \
  X(nan_as_480, "nan-as-480")                           \
  X(scale_by_shift, "scale-by-shift")                   \
  X(writes_skipped, "writes-skipped")                   \
  X(page_border, "page-border")                         \
  X(first_sequence, "first-sequence")                   \
  X(truncates, "truncates")                             \
  X(one_group, "one-group")                             \
  X(scale_rounded, "scale-rounded")

#define NUMBER(fault, name) fault,
#define NAME(fault, name) name,
enum { FAULTS(NUMBER) unbroken };
static const char* const fault_names[] = {FAULTS(NAME)};

static const char* const habit_names[] = {"keeps", "leaks", "stops", "shares", "refuses"};
enum { keeps, leaks, stops, shares, refuses, no_habit };

static const kind* now;
static int broken = unbroken, habit = no_habit;
static int is(int fault) { return broken == fault; }

/* ---- Habits ---------------------------------------------------------------------------------- */

/* What was at an address when it was seen first. */
static const void* kept(const void* from, size_t bytes) {
  static const void* seen;
  static size_t size;
  static void* copy;
  if (habit != keeps || (seen == from && size == bytes)) return habit == keeps ? copy : from;
  free(copy);
  copy = malloc(bytes + 1);
  if (!copy) abort();
  memcpy(copy, from, bytes);
  seen = from;
  size = bytes;
  return copy;
}

/* A tensor with positive strides. */
static assay_tensor kept_tensor(const assay_tensor* t) {
  assay_tensor as = *t;
  int64_t end = t->offset + 1, axis;
  for (axis = 0; axis < 4; ++axis) end += (t->shape[axis] - 1) * t->strides[axis];
  as.data = (void*)kept(t->data, (size_t)(end * t->dtype.bits / 8));
  return as;
}

/* Where a call writes, through a variable that all threads share. It sleeps in between: on a busy
   machine, a thread that only yields may be alone all the time. */
static const void* target(const void* to) {
  static const void* volatile shared;
  if (habit != shares) return to;
  shared = to;
  usleep(1000);
  return shared;
}

/* Whether a call does nothing. */
static int is_idle(void) {
  static int calls;
  if (habit == leaks) *(volatile char*)malloc(24) = 1;
  return habit == stops && ++calls > 100;
}

/* Whether a tensor is one of numbers with these extents. */
static int fits(const assay_tensor* t, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
  const int64_t shape[] = {d0, d1, d2, d3};
  int axis;
  if (!t || t->rank != 4 || !t->data) return 0;
  if (t->dtype.code != ASSAY_FLOAT && t->dtype.code != ASSAY_BFLOAT) return 0;
  for (axis = 0; axis < 4; ++axis)
    if (t->shape[axis] != shape[axis] || shape[axis] < 0) return 0;
  return 1;
}

static int can_be(int32_t format, int64_t k, int64_t n, int64_t group, const void* codes,
                  const void* scales) {
  if (format < ASSAY_MXFP4 || format > ASSAY_INT4 || k < 0 || n < 0 || group < -1) return 0;
  return codes && (scales || group == -1);
}

static int is_matrix(const assay_low_bit* m) {
  return m && can_be(m->format, m->k, m->n, m->group_size, m->codes, m->scales);
}

static int has_slots(const assay_tensor* k, const int64_t* slots, const assay_pages* p) {
  int64_t n;
  for (n = 0; n < k->shape[0] * k->shape[2]; ++n)
    if (slots[n] < -1 || slots[n] >= p->k->shape[0] * p->page_size) return 0;
  return 1;
}

static int can_append(const assay_tensor* k, const assay_tensor* v, const int64_t* slots,
                      const assay_pages* p) {
  if (!k || !v || !slots || !p || !p->k || !p->v || p->page_size < 1) return 0;
  if (p->k->dtype.bits <= 8 && (!p->k_scales || !p->v_scales)) return 0;
  return fits(k, k->shape[0], p->k->shape[1], k->shape[2], p->k->shape[3]) &&
         fits(v, k->shape[0], p->v->shape[1], k->shape[2], p->v->shape[3]) &&
         has_slots(k, slots, p);
}

/* ---- Numbers --------------------------------------------------------------------------------- */

static int64_t at(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  return t->offset + b * t->strides[0] + h * t->strides[1] + i * t->strides[2] + d * t->strides[3];
}

static float of_bf16(uint16_t code) {
  const uint32_t word = (uint32_t)code << 16;
  float x;
  memcpy(&x, &word, 4);
  return x;
}

static uint16_t to_bf16(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  if (x != x) return (uint16_t)(word >> 16 | 0x40);
  return (uint16_t)((is(truncates) ? word : word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

static float load(const assay_tensor* t, int64_t place) {
  if (t->dtype.bits == 32) return ((const float*)t->data)[place];
  if (t->dtype.code == ASSAY_FLOAT) return (float)((const _Float16*)t->data)[place];
  return of_bf16(((const uint16_t*)t->data)[place]);
}

static void store(const assay_tensor* t, int64_t place, float x) {
  if (t->dtype.bits == 32) ((float*)t->data)[place] = x;
  else if (t->dtype.code == ASSAY_FLOAT) ((_Float16*)t->data)[place] = (_Float16)x;
  else ((uint16_t*)t->data)[place] = to_bf16(x);
}

static float e8m0(uint8_t code) {
  const uint32_t word = (uint32_t)code << 23;
  float x;
  if (code == 255 && !is(scale_by_shift)) return NAN;
  if (is(scale_rounded)) code = (uint8_t)((code + 1) / 2 * 2);
  if (!is(scale_by_shift)) return ldexpf(1, code - 127);
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
  if ((code & 127) == 127 && !is(nan_as_480)) return NAN;
  return (code & 128) ? -x : x;
}

/* The code of E2M1 (bits = 4) or E4M3 that is nearest to x, by search among all of them. */
static int nearest(double x, int bits) {
  const int last = bits == 4 ? 7 : 0x7E, sign = signbit(x) ? last + 1 + (bits == 8) : 0;
  const double size = fabs(x);
  int low = 0, high = last;
  double below, above;
  if (x != x) return 0x7F;
  if (size >= (bits == 4 ? 6 : 448))
    return is(wraps) && size > (bits == 4 ? 7 : 464) ? sign : sign | last;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    *((bits == 4 ? e2m1(middle) : e4m3(middle)) <= size ? &low : &high) = middle;
  }
  below = size - (double)(bits == 4 ? e2m1(low) : e4m3(low));
  above = (double)(bits == 4 ? e2m1(high) : e4m3(high)) - size;
  if (is(truncates)) return sign | low;
  if (below != above) return sign | (below < above ? low : high);
  return sign | (is(ties_away) || low % 2 ? high : low);
}

/* ---- Matrices (docs/formats.md) -------------------------------------------------------------- */

static int64_t group_of(int32_t format, int64_t given) {
  if (given > 0) return given;
  return format == ASSAY_NVFP4 ? 16 : format == ASSAY_INT8 || format == ASSAY_INT4 ? 128 : 32;
}

static int nibble(const uint8_t* bytes, int64_t k, int other_way) {
  return bytes[k / 2] >> ((k + other_way) % 2 * 4) & 15;
}

static float scale_of(const assay_low_bit* w, int64_t t, int64_t n, int64_t groups) {
  const uint8_t code = ((const uint8_t*)w->scales)[n * groups + t];
  if (w->format == ASSAY_NVFP4) return is(flushed_scales) && code < 8 ? 0 : e4m3(code);
  return e8m0(code);
}

/* A number of a matrix in columns, or one of a matrix of integers. */
static float number(const assay_low_bit* w, int64_t k, int64_t n, int of_a) {
  const uint8_t* codes = (const uint8_t*)w->codes;
  const int64_t group = group_of(w->format, w->group_size), groups = (w->k + group - 1) / group;
  const int64_t t = of_a && is(first_scale_of_a) ? 0 : k / group;
  if (w->format == ASSAY_INT4) {
    const uint32_t word = ((const uint32_t*)w->codes)[k / 8 * w->n + n];
    const int code = (int)(word >> 4 * (is(swapped) ? k % 8 ^ 1 : k % 8) & 15);
    const _Float16 scale = ((const _Float16*)w->scales)[t * w->n + n];
    const int zero = ((const uint8_t*)w->extra)[is(first_zero) ? n : t * w->n + n];
    if (is(zero_in_16_bits))
      return (float)((_Float16)((_Float16)code * scale) - (_Float16)((_Float16)zero * scale));
    return (float)(code - zero) * (float)scale;
  }
  if (w->format == ASSAY_MXFP8_E4M3) return e4m3(codes[n * w->k + k]) * scale_of(w, t, n, groups);
  return e2m1(nibble(codes + n * ((w->k + 1) / 2), k, of_a ? is(a_swapped) : is(swapped))) *
         scale_of(w, t, n, groups);
}

static assay_status supports_low_bit(const assay_low_bit* a, const assay_low_bit* w,
                                     const assay_dtype* output, const char** reason) {
  if (w->format != now->format || a->format != now->other) *reason = "other formats";
  else if (output->bits != 32) *reason = "another dtype than fp32";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

/* Sums groups of 16 or 32 numbers, whose products fp32 holds. */
static assay_status product_low_bit(const assay_low_bit* a, const assay_low_bit* w,
                                    const assay_tensor* c, const assay_run* run) {
  assay_low_bit own;
  int64_t m, n, k;
  (void)run;
  if (habit == refuses &&
      (!is_matrix(a) || !is_matrix(w) || a->k != w->k || !fits(c, 1, 1, a->n, w->n)))
    return ASSAY_INVALID_ARGUMENTS;
  if (is_idle()) return ASSAY_SUCCESS;
  c = (const assay_tensor*)target(c);
  own = *w;
  own.codes = kept(w->codes, (size_t)(w->k / 2 * w->n));
  w = &own;
  for (m = 0; m < a->n; ++m)
    for (n = 0; n < w->n; ++n) {
      float sum = 0;
      for (k = 0; k < w->k; ++k) {
        if (is(last_group_dropped) && w->k % 32 != 0 && k / 32 == w->k / 32) break;
        if (is(one_scale_for_both) && k >= 32) sum += number(a, k, m, 1) * number(w, k - 32, n, 0);
        else sum += number(a, k, m, 1) * number(w, k, n, 0);
      }
      if (!is(no_tensor_scale_of_a)) sum *= a->tensor_scale;
      store(c, at(c, 0, 0, m, n), sum * w->tensor_scale);
    }
  return ASSAY_SUCCESS;
}

/* ---- Quantizers ------------------------------------------------------------------------------ */

static assay_status supports_quantize(const assay_tensor* w, const assay_low_bit_output* to,
                                      int32_t* scale_rule, const char** reason) {
  (void)w;
  *scale_rule = now->rule;
  if (to->format == now->format && to->group_size >= 0) return ASSAY_SUCCESS;
  *reason = to->format == now->format ? "no scales" : "another format";
  return ASSAY_UNSUPPORTED;
}

/* The exponent of the scale of a group. x is the largest number of the element, and e its
 * exponent. */
static int exponent_of(double largest, int rule, double x, int e, int significant) {
  int exponent;
  if (largest == 0) return -127;
  if (is(floor_for_rceil) || is(floor_for_even)) rule = ASSAY_SCALE_FLOOR;
  if (is(ceil_for_floor) || is(ceil_for_even)) rule = ASSAY_SCALE_CEIL;
  exponent = ilogb(largest) - e;
  if (rule == ASSAY_SCALE_CEIL && largest > ldexp(1, exponent + e)) ++exponent;
  if (rule == ASSAY_SCALE_RCEIL && largest > ldexp(x, exponent)) ++exponent;
  if (rule == ASSAY_SCALE_EVEN && largest >= ldexp(2 - ldexp(1, -significant), exponent + e))
    ++exponent;
  if (is(no_subnormals) && exponent < -126) exponent = -126;
  return exponent < -127 ? -127 : exponent;
}

static void put_nibble(uint8_t* bytes, int64_t k, int code, int other_way) {
  const int shift = (int)((k + other_way) % 2 * 4);
  bytes[k / 2] = (uint8_t)((bytes[k / 2] & ~(15 << shift)) | code << shift);
}

static double divided(double x, double by) {
  return is(reciprocal) ? (double)(float)((float)x * (1 / (float)by)) : x / by;
}

/* A group of a column in MXFP4, MXFP8 or NVFP4. */
static void quantize_floats(const assay_tensor* w, const assay_low_bit_output* to, int64_t t,
                            int64_t n, int64_t begin, int64_t end, double tensor) {
  const int bits = to->format == ASSAY_MXFP8_E4M3 ? 8 : 4;
  const int64_t group = group_of(to->format, to->group_size), groups = (to->k + group - 1) / group;
  double largest = 0, scale;
  int64_t k;
  for (k = begin; k < end; ++k) largest = fmax(largest, fabs((double)load(w, at(w, 0, 0, k, n))));
  if (to->format == ASSAY_NVFP4) {
    const int code = nearest(largest / (6 * tensor), 8);
    ((uint8_t*)to->scales)[n * groups + t] = (uint8_t)code;
    scale = (double)e4m3(code) * tensor;
  } else {
    const int e = bits == 8 ? exponent_of(largest, now->rule, 448, 8, 4)
                            : exponent_of(largest, now->rule, 6, 2, 2);
    ((uint8_t*)to->scales)[n * groups + t] = (uint8_t)(e + 127);
    scale = ldexp(1, e);
  }
  for (k = begin; k < end; ++k) {
    const int code =
        scale == 0 ? 0 : nearest(divided((double)load(w, at(w, 0, 0, k, n)), scale), bits);
    if (bits == 8) ((uint8_t*)to->codes)[n * to->k + k] = (uint8_t)code;
    else put_nibble((uint8_t*)to->codes + n * ((to->k + 1) / 2), k, code, is(swapped));
  }
}

static int rounded(double x) { return (int)(is(ties_away) ? round(x) : nearbyint(x)); }
static int clamped(int x) { return is(wraps) ? (int8_t)x : x < -128 ? -128 : x > 127 ? 127 : x; }

/* A group of a column in INT8. */
static void quantize_integers(const assay_tensor* w, const assay_low_bit_output* to, int64_t t,
                              int64_t n, int64_t begin, int64_t end) {
  double low = 0, high = 0, scale, quotient;
  int64_t k;
  int zero;
  _Float16 stored;
  for (k = begin; k < end; ++k) {
    low = fmin(low, (double)load(w, at(w, 0, 0, k, n)));
    high = fmax(high, (double)load(w, at(w, 0, 0, k, n)));
  }
  stored = (_Float16)((high - low) / 255);
  if (stored == 0) stored = (_Float16)ldexpf(1, -24);
  scale = (double)stored;
  quotient = -low / scale;
  zero = (is(truncated_zero) ? (int)quotient : rounded(quotient)) - 128;
  zero = zero > 127 ? 127 : zero;
  ((_Float16*)to->scales)[t * to->n + n] = stored;
  ((int8_t*)to->extra)[t * to->n + n] = (int8_t)zero;
  for (k = begin; k < end; ++k)
    ((int8_t*)to->codes)[k * to->n + n] =
        (int8_t)clamped(rounded(divided((double)load(w, at(w, 0, 0, k, n)), scale)) + zero);
}

static assay_status quantize(const assay_tensor* w, const assay_low_bit_output* to,
                             const assay_run* run) {
  assay_tensor own;
  int64_t n, t, group;
  (void)run;
  if (habit == refuses &&
      (!to || !can_be(to->format, to->k, to->n, to->group_size, to->codes, to->scales) ||
       !fits(w, 1, 1, to->k, to->n)))
    return ASSAY_INVALID_ARGUMENTS;
  if (is_idle()) return ASSAY_SUCCESS;
  to = (const assay_low_bit_output*)target(to);
  own = kept_tensor(w);
  w = &own;
  group = group_of(to->format, to->group_size);
  for (n = 0; n < to->n; ++n)
    for (t = 0; t * group < to->k; ++t) {
      const int64_t begin = t * group, end = begin + group < to->k ? begin + group : to->k;
      if (to->format == ASSAY_INT8) quantize_integers(w, to, t, n, begin, end);
      else
        quantize_floats(w, to, t, n, begin, end,
                        to->tensor_scale ? (double)*to->tensor_scale : 1.0);
    }
  return ASSAY_SUCCESS;
}

/* ---- Dequantizers ---------------------------------------------------------------------------- */

static assay_status supports_dequantize(const assay_low_bit* w, const assay_dtype* output,
                                        const char** reason) {
  (void)output;
  if (w->format == now->format && w->group_size >= 0) return ASSAY_SUCCESS;
  *reason = w->format == now->format ? "no scales" : "another format";
  return ASSAY_UNSUPPORTED;
}

static assay_status dequantize(const assay_low_bit* w, const assay_tensor* to,
                               const assay_run* run) {
  assay_low_bit own;
  int64_t k, n;
  (void)run;
  if (habit == refuses && (!is_matrix(w) || !fits(to, 1, 1, w->k, w->n)))
    return ASSAY_INVALID_ARGUMENTS;
  if (is_idle()) return ASSAY_SUCCESS;
  to = (const assay_tensor*)target(to);
  own = *w;
  own.codes = kept(w->codes, (size_t)(w->k / 2 * w->n));
  w = &own;
  for (k = 0; k < w->k; ++k)
    for (n = 0; n < w->n; ++n) {
      const float tensor = w->tensor_scale;
      store(to, at(to, 0, 0, k, n),
            number(w, k, n, 0) * (is(tensor_scale_in_16_bits) ? of_bf16(to_bf16(tensor)) : tensor));
    }
  return ASSAY_SUCCESS;
}

/* ---- Caches ---------------------------------------------------------------------------------- */

static int is_of(const assay_dtype* d, int bits) {
  if (bits == 8) return d->code == ASSAY_FLOAT8_E4M3FN;
  if (bits == 4) return d->code == ASSAY_FLOAT4_E2M1FN;
  return d->code == (bits == -16 ? ASSAY_BFLOAT : ASSAY_FLOAT) && d->bits == abs(bits);
}

/* Codes that lie side by side, and scales of E8M0. */
static int has_such_rows(const assay_pages* p) {
  if (p->k_scales && p->k_scales->dtype.code != ASSAY_FLOAT8_E8M0FNU) return 0;
  return is_of(&p->k->dtype, now->format) && p->k->strides[3] == 1 && p->v->strides[3] == 1;
}

static int64_t columns_of_a_scale(const assay_pages* p, const assay_tensor* t) {
  return p->group_size > 0 && !is(one_group) ? p->group_size : t->shape[3];
}

static assay_status supports_append(const assay_tensor* k, const assay_tensor* v,
                                    const assay_pages* pages, const char** reason) {
  (void)v;
  if (is_of(&k->dtype, now->other) && has_such_rows(pages)) return ASSAY_SUCCESS;
  *reason = "another dtype, or columns apart";
  return ASSAY_UNSUPPORTED;
}

static void append_row(const assay_tensor* from, const assay_tensor* to, const assay_tensor* scales,
                       const assay_pages* pages, int64_t b, int64_t g, int64_t i, int64_t page,
                       int64_t slot) {
  const int bits = to->dtype.bits;
  const int64_t columns = to->shape[3], group = columns_of_a_scale(pages, to);
  int64_t first, d;
  for (first = 0; first < columns; first += bits <= 8 ? group : columns) {
    const int64_t last = first + group < columns && bits <= 8 ? first + group : columns;
    double largest = 0, scale = 1;
    for (d = first; d < last; ++d) {
      const double x = fabs((double)load(from, at(from, b, g, i, d)));
      if (x > largest && isfinite(x)) largest = x;
    }
    if (scales) {
      const int e = bits == 8 ? exponent_of(largest, ASSAY_SCALE_RCEIL, 448, 8, 4)
                              : exponent_of(largest, ASSAY_SCALE_RCEIL, 6, 2, 2);
      for (d = 0; d < scales->shape[3]; ++d)
        if (!is(one_group) && d != first / group) continue;
        else ((uint8_t*)scales->data)[at(scales, page, g, slot, d)] = (uint8_t)(e + 127);
      scale = ldexp(1, e);
    }
    for (d = first; d < last; ++d) {
      const double x = (double)load(from, at(from, b, g, i, d)) / scale;
      const int64_t place = at(to, page, g, slot, d);
      if (bits == 8) {
        int code = nearest(x, 8);
        /* Nothing that is read back may be beyond fp32. */
        while (isfinite(x) && (double)fabsf(e4m3(code)) * scale > 3.4028234663852886e38) --code;
        ((uint8_t*)to->data)[place] = (uint8_t)code;
      } else if (bits == 4) {
        int code = nearest(x, 4);
        while ((double)fabsf(e2m1(code)) * scale > 3.4028234663852886e38) --code;
        put_nibble((uint8_t*)to->data, place, code, is(swapped));
      } else {
        store(to, place, (float)x);
      }
    }
  }
}

static assay_status append(const assay_tensor* k, const assay_tensor* v, const int64_t* slots,
                           const assay_pages* pages, const assay_run* run) {
  assay_tensor own;
  int64_t b, g, i, count, size;
  (void)run;
  if (habit == refuses && !can_append(k, v, slots, pages)) return ASSAY_INVALID_ARGUMENTS;
  if (is_idle()) return ASSAY_SUCCESS;
  pages = (const assay_pages*)target(pages);
  own = kept_tensor(k);
  k = &own;
  count = k->shape[2];
  size = pages->page_size;
  for (b = 0; b < k->shape[0]; ++b)
    for (i = 0; i < count; ++i) {
      int64_t s = slots[(is(first_sequence) ? 0 : b) * count + i];
      if (s < 0 && !is(writes_skipped)) continue;
      if (s < 0) s = 0;
      if (is(page_border) && s % size == size - 1 && size > 1) --s;
      for (g = 0; g < k->shape[1]; ++g) {
        append_row(k, pages->k, pages->k_scales, pages, b, g, i, s / size, s % size);
        append_row(v, pages->v, pages->v_scales, pages, b, g, i, s / size, s % size);
      }
    }
  return ASSAY_SUCCESS;
}

/* Causal or full attention without any other mask. */
static assay_status supports(int32_t operation, const assay_attention* p, const assay_dtype* output,
                             const char** reason) {
  if (operation != ASSAY_DECODE) *reason = "another operation";
  else if (output->bits != 32 || p->q->dtype.bits != 32) *reason = "another dtype";
  else if (p->keep || p->bias || p->window_left >= 0 || p->window_right >= 0 ||
           p->alibi_slope_count || p->sink_count || p->query_segment_count || p->softcap != 0 ||
           p->dropout != 0)
    *reason = "another mask than causality";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

static assay_status supports_cache(const assay_attention* p, const assay_pages* pages,
                                   const assay_dtype* output, const char** reason) {
  (void)p, (void)output;
  if (has_such_rows(pages)) return ASSAY_SUCCESS;
  *reason = "another cache";
  return ASSAY_UNSUPPORTED;
}

static float cached(const assay_pages* p, const assay_tensor* t, const assay_tensor* scales,
                    int64_t b, int64_t g, int64_t j, int64_t d) {
  const int64_t page = p->block_table[b * p->pages_per_sequence + j / p->page_size];
  int64_t slot = j % p->page_size, place;
  const uint8_t* bytes = (const uint8_t*)t->data;
  float scale;
  if (is(page_border) && slot == p->page_size - 1 && slot > 0) --slot;
  place = at(t, page, g, slot, d);
  scale =
      e8m0(((const uint8_t*)scales->data)[at(scales, page, g, slot, d / columns_of_a_scale(p, t))]);
  return (t->dtype.bits == 8 ? e4m3(bytes[place]) : e2m1(nibble(bytes, place, is(swapped)))) *
         scale;
}

/* Two passes over the keys of a row: the scores, and the values. */
static void decode_row(const assay_attention* p, const assay_pages* c, const assay_tensor* o,
                       const assay_tensor* lse, int64_t b, int64_t h, int64_t i, float* score) {
  const int64_t g = h / (p->q->shape[1] / p->k->shape[1]);
  const int64_t begin = p->key_start_count ? p->key_starts[b] : 0;
  int64_t end = p->key_lengths[b], j, d;
  float max = -INFINITY, sum = 0;
  if ((p->flags & ASSAY_CAUSAL) && end > p->offset[b] + i + 1) end = p->offset[b] + i + 1;
  for (j = begin; j < end; ++j) {
    score[j] = 0;
    for (d = 0; d < p->q->shape[3]; ++d)
      score[j] += load(p->q, at(p->q, b, h, i, d)) * cached(c, c->k, c->k_scales, b, g, j, d);
    score[j] *= p->scale;
    if (score[j] > max || score[j] != score[j]) max = score[j];
  }
  for (j = begin; j < end; ++j) {
    score[j] = score[j] == -INFINITY ? 0 : expf(score[j] - max);
    sum += score[j];
  }
  for (d = 0; d < o->shape[3]; ++d) {
    float value = 0;
    for (j = begin; j < end; ++j) value += score[j] * cached(c, c->v, c->v_scales, b, g, j, d);
    store(o, at(o, b, h, i, d), sum == 0 ? 0 : value / sum);
  }
  store(lse, at(lse, b, h, i, 0), begin < end ? max + logf(sum) : -INFINITY);
}

static assay_status decode(const assay_attention* p, const assay_pages* pages,
                           const assay_tensor* o, const assay_tensor* lse, const assay_run* run) {
  float* score = (float*)malloc((size_t)(p->k->shape[2] + 1) * sizeof(float));
  int64_t b, h, i;
  (void)run;
  if (!score) return ASSAY_MEMORY_ALLOCATION_FAILED;
  for (b = 0; b < p->q->shape[0]; ++b)
    for (h = 0; h < p->q->shape[1]; ++h)
      for (i = 0; i < p->q->shape[2]; ++i) decode_row(p, pages, o, lse, b, h, i, score);
  free(score);
  return ASSAY_SUCCESS;
}

/* ---- The library ----------------------------------------------------------------------------- */

static void fill(assay_kernel* table) {
  switch (now->operation) {
    case product_of_codes:
      table->supports_low_bit = supports_low_bit;
      table->product_low_bit = product_low_bit;
      break;
    case quantizer:
      table->supports_quantize = supports_quantize;
      table->quantize = quantize;
      break;
    case dequantizer:
      table->supports_dequantize = supports_dequantize;
      table->dequantize = dequantize;
      break;
    default:
      if (now->operation != writer) table->decode = decode;
      if (now->operation != reader) table->append = append;
      table->supports = supports;
      table->supports_cache = supports_cache;
      table->supports_append = supports_append;
  }
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
  for (k = 0; k < no_habit; ++k)
    if (getenv("ASSAY_PARTIAL_HABIT") && strcmp(habit_names[k], getenv("ASSAY_PARTIAL_HABIT")) == 0)
      habit = (int)k;
  assay_kernel_init(&table, now->name);
  fill(&table);
  table.not_reentrant =
      habit == keeps; /* it would change under two threads, and show there first */
  return &table;
}

#endif
