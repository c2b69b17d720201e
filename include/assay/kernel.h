/* What a kernel of yours looks like to Assay: copy this file, fill the table at its end, build a shared library, and
 *     assay check --kernel ./libmine.so --suite standard
 * judges it in a process of its own. C99, no dependencies; `assay new-kernel DIR` writes a project that builds and passes.
 *
 * - Sizes, strides and positions are 64-bit and count elements. Tensors have rank 4 and any strides; what is read is given with the layouts of
 *   the case. Inputs are mapped read-only: writing to one ends the process.
 * - Meaning of every operation and mask: docs/semantics.md. Masks compose; every field that is there counts.
 * - Assay's own C interface (assay.h) uses the same structs. */
#ifndef ASSAY_KERNEL_H_
#define ASSAY_KERNEL_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of the structs here and in assay.h. Every struct begins with its version and its size: set both with its *_init function. */
#define ASSAY_VERSION 1u

/* ---- Status ------------------------------------------------------------------------------------------------------- */

typedef int32_t assay_status;
enum {
  ASSAY_SUCCESS = 0,
  ASSAY_INVALID_ARGUMENTS = 1,
  ASSAY_MEMORY_ALLOCATION_FAILED = 2,
  ASSAY_DEVICE_NOT_SUPPORTED = 3,
  ASSAY_KERNEL_COMPILATION_FAILED = 4,
  ASSAY_EXECUTION_FAILED = 5,
  ASSAY_UNSUPPORTED = 6,
  ASSAY_INVALID_CACHE_STATE = 7,
  ASSAY_UNKNOWN = 255
};

/* ---- Tensors ------------------------------------------------------------------------------------------------------ */

/* DLPack's DLDataType and its codes. */
typedef struct assay_dtype {
  uint8_t code, bits;
  uint16_t lanes; /* 1 */
} assay_dtype;
enum {
  ASSAY_INT = 0,
  ASSAY_UINT = 1,
  ASSAY_FLOAT = 2, /* 16, 32 or 64 bits */
  ASSAY_BFLOAT = 4,
  ASSAY_BOOL = 6,
  ASSAY_FLOAT8_E4M3FN = 10,
  ASSAY_FLOAT8_E5M2 = 12,
  ASSAY_FLOAT8_E8M0FNU = 14,
  ASSAY_FLOAT4_E2M1FN = 17
};

/* DLPack's device type of memory that this machine's processor reads. */
enum { ASSAY_CPU = 1 };

/* A view of somebody's memory. */
typedef struct assay_tensor {
  uint32_t version, struct_size;
  void* data;
  assay_dtype dtype;
  int32_t device_type, device_id;
  int32_t rank; /* 4 */
  int64_t shape[4];
  int64_t strides[4]; /* in elements; 0 broadcasts, negative reverses */
  int64_t offset;     /* elements from data to the element (0, 0, 0, 0) */
} assay_tensor;

/* Contiguous [d0, d1, d2, d3]; the caller may change strides and offset. */
static inline void assay_tensor_init(assay_tensor* t, void* data, uint8_t dtype_code, uint8_t dtype_bits, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
  t->version = ASSAY_VERSION;
  t->struct_size = (uint32_t)sizeof(*t);
  t->data = data;
  t->dtype.code = dtype_code;
  t->dtype.bits = dtype_bits;
  t->dtype.lanes = 1;
  t->device_type = ASSAY_CPU;
  t->device_id = 0;
  t->rank = 4;
  t->shape[0] = d0;
  t->shape[1] = d1;
  t->shape[2] = d2;
  t->shape[3] = d3;
  /* Unsigned: absurd extents are refused by the functions, not computed with here. */
  t->strides[3] = 1;
  t->strides[2] = d3;
  t->strides[1] = (int64_t)((uint64_t)d2 * (uint64_t)d3);
  t->strides[0] = (int64_t)((uint64_t)d1 * (uint64_t)d2 * (uint64_t)d3);
  t->offset = 0;
}

/* ---- Operations --------------------------------------------------------------------------------------------------- */

enum {
  ASSAY_CAUSAL = 1,
  ASSAY_FINITE_MIN_MASKS = 2, /* the bias dtype's most negative finite number means -inf */
  ASSAY_DEFAULT_SCALE = 4     /* 1 / sqrt(D), whatever `scale` holds */
};

/* Q [B, Hq, Lq, D], K [B, Hkv, Lk, D], V [B, Hkv, Lk, Dv]. Tensors and arrays that are NULL are absent. */
typedef struct assay_attention {
  uint32_t version, struct_size;
  const assay_tensor *q, *k, *v; /* f32, f16 or bf16, one dtype */
  float scale, softcap;          /* softcap 0: none */
  uint32_t flags;
  float dropout;
  uint64_t dropout_seed;
  int64_t window_left, window_right;                       /* -1: open */
  const assay_tensor* keep;                                /* bool or uint8 [B, Hq, Lq, Lk], non-zero keeps */
  const assay_tensor* bias;                                /* f32, f16 or bf16 [B, Hq, Lq, Lk] */
  const int64_t *offset, *key_lengths, *key_starts;        /* B entries each */
  int64_t offset_count, key_length_count, key_start_count; /* B, or 0 */
  const float *alibi_slopes, *sink;                        /* Hq entries each */
  int64_t alibi_slope_count, sink_count;                   /* Hq, or 0 */
  const int32_t *query_segment, *key_segment;              /* B * Lq and B * Lk entries */
  int64_t query_segment_count, key_segment_count;          /* so many, or 0 */
} assay_attention;

/* No mask, the default scale. */
static inline void assay_attention_init(assay_attention* a) {
  a->version = ASSAY_VERSION;
  a->struct_size = (uint32_t)sizeof(*a);
  a->q = a->k = a->v = NULL;
  a->scale = 0;
  a->softcap = 0;
  a->flags = ASSAY_DEFAULT_SCALE;
  a->dropout = 0;
  a->dropout_seed = 0;
  a->window_left = a->window_right = -1;
  a->keep = a->bias = NULL;
  a->offset = a->key_lengths = a->key_starts = NULL;
  a->offset_count = a->key_length_count = a->key_start_count = 0;
  a->alibi_slopes = a->sink = NULL;
  a->alibi_slope_count = a->sink_count = 0;
  a->query_segment = a->key_segment = NULL;
  a->query_segment_count = a->key_segment_count = 0;
}

/* dQ, dK and dV have the shapes of Q, K and V, and f32, f16 or bf16 each. d_bias is f32 [B, Hq, Lq, Lk], strides 0 where the
 * bias broadcasts; d_sink is f32 [1, Hq, 1, 1]; both may be NULL. */
typedef struct assay_gradients {
  uint32_t version, struct_size;
  const assay_tensor *dq, *dk, *dv, *d_bias, *d_sink;
} assay_gradients;

static inline void assay_gradients_init(assay_gradients* g) {
  g->version = ASSAY_VERSION;
  g->struct_size = (uint32_t)sizeof(*g);
  g->dq = g->dk = g->dv = g->d_bias = g->d_sink = NULL;
}

/* Bytes, values and groups of each: docs/formats.md. */
enum {
  ASSAY_MXFP4 = 0,
  ASSAY_NVFP4 = 1,
  ASSAY_FP4 = 2,        /* grouped f16 scales, eight nibbles along k in a 32-bit word */
  ASSAY_FP4_SPARSE = 3, /* the same, two of each four k */
  ASSAY_MXFP8_E4M3 = 4,
  ASSAY_MXFP8_E5M2 = 5,
  ASSAY_INT8 = 6,
  ASSAY_INT4 = 7
};

/* A matrix [K, N] as codes and scales. */
typedef struct assay_low_bit {
  uint32_t version, struct_size;
  int32_t format;
  float tensor_scale; /* 1, but for ASSAY_NVFP4 */
  int64_t k, n;
  int64_t group_size; /* 0: that of the format; -1: 8-bit floats without scales */
  const void *codes, *scales;
  const void* extra; /* zero points of integers, metadata of ASSAY_FP4_SPARSE; NULL otherwise */
} assay_low_bit;

static inline void assay_low_bit_init(assay_low_bit* m, int32_t format, int64_t k, int64_t n) {
  m->version = ASSAY_VERSION;
  m->struct_size = (uint32_t)sizeof(*m);
  m->format = format;
  m->tensor_scale = 1;
  m->k = k;
  m->n = n;
  m->group_size = 0;
  m->codes = m->scales = m->extra = NULL;
}

/* ---- Kernels ------------------------------------------------------------------------------------------------------ */

enum { ASSAY_FORWARD = 0, ASSAY_BACKWARD = 1, ASSAY_PRODUCT = 2, ASSAY_DECODE = 3 }; /* `operation` below is any but PRODUCT */

/* Where decode finds keys and values: token j of sequence b is slot j % page_size of page block_table[b * pages_per_sequence + j / page_size].
 * Pages that hold no token of a sequence are -1. A contiguous cache has one page a sequence. */
typedef struct assay_pages {
  uint32_t version, struct_size;
  const assay_tensor *k, *v; /* [pages, Hkv, page_size, D] and [pages, Hkv, page_size, Dv], in the dtype of Q; unused slots hold NaN */
  int64_t page_size, pages_per_sequence;
  const int32_t* block_table; /* B * pages_per_sequence */
} assay_pages;

/* How a kernel computes. The bound of every element is derived from it and the data (docs/bounds.md), so an error beyond it is a proof. What
 * is not declared is tried from the strictest arithmetic to the most lenient, and the verdict names the first that is not refuted. */
typedef struct assay_arithmetic {
  uint32_t version, struct_size;
  double dot_roundoff;       /* of an accumulation step of Q K^T and P V: 2^-24 fp32, 2^-23 truncating, 2^-11 fp16 */
  double largest;            /* finite limit of scores and accumulators */
  double roundoff;           /* of softmax, 2^-24 */
  double exp_ulp, log_ulp, tanh_ulp;
  double exp_ulp_per_unit;   /* error of exp(x): exp_ulp + exp_ulp_per_unit |x| */
  double exp_floor;          /* absolute error of exp where it underflows */
  double scale_error;        /* relative error of a constant folded into the argument of exp */
  double argument_roundings; /* on the argument of exp: 1 for s - m, 2 for (s - m) * c */
  int32_t dot_block;         /* width of a matrix instruction that aligns and truncates; 0: one product at a time */
  int32_t products_rounded;  /* 1: no fused multiply-add */
  int32_t fused_argument;    /* 1: exp2(fma(s, c, -m c)) */
  int32_t weight_bits;       /* weights are rounded before P V: 0 not, 16 to f16, -16 to bf16 */
  int32_t score_bits;        /* scores are stored in: likewise */
  int32_t sum_from_rounded;  /* 1: the row sum adds rounded weights */
  int32_t division_roundings; /* 2: times 1 / l, 1: divided by l */
  int32_t ordered;           /* 1: q.k ascending over d, P V ascending over keys, tile after tile: a sharper bound */
  int64_t tile, row_tile;    /* keys and rows of a tile; 64 */
} assay_arithmetic;

/* fp32 throughout, any order, exp within an ulp. */
static inline void assay_arithmetic_init(assay_arithmetic* a) {
  a->version = ASSAY_VERSION;
  a->struct_size = (uint32_t)sizeof(*a);
  a->dot_roundoff = a->roundoff = 1.0 / 16777216;
  a->largest = 3.4028234663852886e38;
  a->exp_ulp = a->log_ulp = 1;
  a->tanh_ulp = 4;
  a->exp_ulp_per_unit = a->scale_error = 0;
  a->exp_floor = 1.4012984643248171e-45;
  a->argument_roundings = 1;
  a->dot_block = a->fused_argument = a->weight_bits = a->score_bits = a->sum_from_rounded = a->ordered = 0;
  a->products_rounded = 1;
  a->division_roundings = 2;
  a->tile = a->row_tile = 64;
}

/* A stage of a kernel that can be watched (assay trace): docs/trace.md says what each holds. */
enum {
  ASSAY_STAGE_QUERY = 0, /* as loaded: one row, columns are those of the head */
  ASSAY_STAGE_KEY = 1,
  ASSAY_STAGE_VALUE = 2,
  ASSAY_STAGE_SCORES = 3, /* scaled and capped, before biases */
  ASSAY_STAGE_MASKED = 4, /* with biases; -infinity where masked */
  ASSAY_STAGE_ROW_MAX = 5,
  ASSAY_STAGE_RESCALE = 6,     /* e^(old maximum - new maximum) */
  ASSAY_STAGE_WEIGHTS = 7,     /* e^(score - maximum), after dropout */
  ASSAY_STAGE_ROW_SUM = 8,     /* after this tile */
  ASSAY_STAGE_ACCUMULATED = 9, /* likewise */
  ASSAY_STAGE_OUTPUT = 10,     /* before it is rounded to the dtype of O */
  ASSAY_STAGE_LSE = 11,
  /* Of a backward pass, where scores are those before the softcap, and weights are P before dropout. */
  ASSAY_STAGE_OUTPUT_GRADIENT = 12,
  ASSAY_STAGE_DELTA = 13,
  ASSAY_STAGE_WEIGHT_GRADIENTS = 14, /* dP = dO.v, before dropout */
  ASSAY_STAGE_SCORE_GRADIENTS = 15   /* dS */
};

/* Rows [row0, row0 + rows) of a query head (of keys and values: of a kv head). Columns are the keys from key0 on in scores, masked, weights
 * and their gradients, columns of the head in loads, accumulated and output, and in row_max, rescale and row_sum the lanes that hold the one
 * number of a row, which have to agree. */
typedef struct assay_stage {
  uint32_t version, struct_size;
  int32_t stage, reserved;
  int64_t b, head, row0, key0, rows, columns;
  int64_t first_key, keys; /* of running values: their first key (0, or that of a split), and how many keys the tile at key0 has */
  const float* data;
  int64_t row_stride, column_stride;
} assay_stage;

static inline void assay_stage_init(assay_stage* s, int32_t stage, const float* data) {
  s->version = ASSAY_VERSION;
  s->struct_size = (uint32_t)sizeof(*s);
  s->stage = stage;
  s->reserved = 0;
  s->b = s->head = s->row0 = s->key0 = s->first_key = s->keys = 0;
  s->rows = s->columns = 1;
  s->data = data;
  s->row_stride = s->column_stride = 1;
}

/* What a call brings along. */
typedef struct assay_run {
  uint32_t version, struct_size;
  void* workspace; /* of as many bytes as the kernel's workspace function said, aligned to 64; NULL: none */
  uint64_t workspace_bytes;
  int32_t threads; /* 0: all */
  int32_t reserved;
  /* NULL but for assay trace. To be called, where the kernel offers it, with what a stage has just made, from any thread. */
  void (*probe)(void* context, const assay_stage* made);
  void* probe_context;
} assay_run;

/* The table. Functions that are NULL are operations or options that there are not. */
typedef struct assay_kernel {
  uint32_t version, struct_size;
  const char* name;
  int32_t no_lse; /* 1: forward and decode write no LSE; their argument is NULL then, and LSE is not judged */
  int32_t probes; /* 1: forward and backward call run->probe where it is not NULL */

  /* ASSAY_SUCCESS if the kernel does this problem. Otherwise ASSAY_UNSUPPORTED, and *reason may say why; that is counted, and is never a
   * pass. output: of O and of the gradients. Saying yes and then answering ASSAY_UNSUPPORTED is a failure. NULL: does everything. */
  assay_status (*supports)(int32_t operation, const assay_attention* problem, const assay_dtype* output, const char** reason);
  /* The same of products; a and w have no elements there. */
  assay_status (*supports_product)(const assay_tensor* a, const assay_low_bit* w, const assay_dtype* output, const char** reason);
  /* NULL: not declared. */
  assay_status (*arithmetic)(const assay_attention* problem, assay_arithmetic* declared);
  /* Bytes that a call needs beside its tensors. NULL: none. */
  uint64_t (*workspace)(int32_t operation, const assay_attention* problem);

  /* O [B, Hq, Lq, Dv] in f32, f16 or bf16, and LSE [B, Hq, Lq, 1] in f32 (the natural logarithm). Every element is to be written. */
  assay_status (*forward)(const assay_attention* problem, const assay_tensor* o, const assay_tensor* lse, const assay_run* run);
  /* dQ, dK, dV, and dBias and dSink where they are not NULL, from O and LSE as forward stored them, and dO. */
  assay_status (*backward)(const assay_attention* problem, const assay_tensor* o, const assay_tensor* lse, const assay_tensor* d_o,
                           const assay_gradients* gradients, const assay_run* run);
  /* As forward, over the keys of a cache: in `problem`, k and v are shapes without data (Lk: the most keys of a sequence), key_lengths says how many tokens
   * each sequence has and key_starts which were dropped. The rows are the last tokens: offset is key length - Lq. */
  assay_status (*decode)(const assay_attention* problem, const assay_pages* pages, const assay_tensor* o, const assay_tensor* lse, const assay_run* run);
  /* C [1, 1, M, N] = A W, A [1, 1, M, K]. */
  assay_status (*product)(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c, const assay_run* run);
} assay_kernel;

static inline void assay_kernel_init(assay_kernel* k, const char* name) {
  k->version = ASSAY_VERSION;
  k->struct_size = (uint32_t)sizeof(*k);
  k->name = name;
  k->no_lse = k->probes = 0;
  k->supports = NULL;
  k->supports_product = NULL;
  k->arithmetic = NULL;
  k->workspace = NULL;
  k->forward = NULL;
  k->backward = NULL;
  k->decode = NULL;
  k->product = NULL;
}

/* The one symbol of your library: a table that lives as long as the library. version: the newest that the caller knows; a library that is
 * newer answers NULL. */
typedef const assay_kernel* (*assay_kernel_entry_function)(uint32_t version);
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const assay_kernel* assay_kernel_entry(uint32_t version);

#ifdef __cplusplus
}
#endif

#endif
