/* The interface between Assay and a kernel of yours, in C99 without dependencies. Copy this file,
 * fill the table at its end, and build a shared library. Then
 *     assay check --kernel ./libmine.so --suite standard
 * judges the library in a process of its own. `assay new-kernel DIR` writes a project that builds
 * and passes.
 *
 * - Sizes, strides and positions are 64-bit and count elements. Tensors have rank 4 and may have
 *   any strides; a kernel receives them in the layouts of the case. Inputs are mapped read-only, so
 *   writing to one ends the process.
 * - docs/semantics.md says what every operation and every mask means. Masks compose: every field
 *   that is present counts.
 * - Assay's own C interface (assay.h) uses the same structs. */
#ifndef ASSAY_KERNEL_H_
#define ASSAY_KERNEL_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the structs here and in assay.h. Every struct begins with its version and its
 * size; the *_init function of the struct sets both. A later version adds fields at the end of
 * structs: a table that an older header compiled is shorter, and what it lacks it does not have.
 * The same holds for tables of one version: that of version 2 has grown at its end. */
#define ASSAY_VERSION 2u

/* ---- Status ---------------------------------------------------------------------------------- */

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

/* ---- Tensors --------------------------------------------------------------------------------- */

/* The number format of an element: DLPack's DLDataType, with DLPack's codes. */
typedef struct assay_dtype {
  uint8_t code, bits;
  uint16_t lanes; /* always 1 */
} assay_dtype;
enum {
  ASSAY_INT = 0,
  ASSAY_UINT = 1,
  ASSAY_FLOAT = 2, /* with 16, 32 or 64 bits */
  ASSAY_BFLOAT = 4,
  ASSAY_BOOL = 6,
  ASSAY_FLOAT8_E4M3FN = 10,
  ASSAY_FLOAT8_E5M2 = 12,
  ASSAY_FLOAT8_E8M0FNU = 14,
  ASSAY_FLOAT4_E2M1FN = 17
};

/* DLPack's device type for memory that this machine's processor reads. */
enum { ASSAY_CPU = 1 };

/* A view of memory that the caller owns. */
typedef struct assay_tensor {
  uint32_t version, struct_size;
  void* data;
  assay_dtype dtype;
  int32_t device_type, device_id;
  int32_t rank; /* 4, except for assay_single_head_attention */
  int64_t shape[4];
  /* in elements; 0 repeats one element along the dimension, a negative stride reverses it */
  int64_t strides[4];
  int64_t offset; /* elements from data to the element (0, 0, 0, 0) */
} assay_tensor;

/* Describes a contiguous tensor [d0, d1, d2, d3]. The caller may change strides and offset
 * afterwards. */
static inline void assay_tensor_init(assay_tensor* t, void* data, uint8_t dtype_code,
                                     uint8_t dtype_bits, int64_t d0, int64_t d1, int64_t d2,
                                     int64_t d3) {
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
  /* The arithmetic is unsigned, so that it cannot overflow here: the functions refuse absurd
   * extents. */
  t->strides[3] = 1;
  t->strides[2] = d3;
  t->strides[1] = (int64_t)((uint64_t)d2 * (uint64_t)d3);
  t->strides[0] = (int64_t)((uint64_t)d1 * (uint64_t)d2 * (uint64_t)d3);
  t->offset = 0;
}

/* ---- Operations ------------------------------------------------------------------------------ */

enum {
  ASSAY_CAUSAL = 1,
  ASSAY_FINITE_MIN_MASKS = 2, /* the most negative finite number of the bias's dtype means -inf */
  ASSAY_DEFAULT_SCALE = 4     /* the scale is 1 / sqrt(D), whatever `scale` holds */
};

/* An attention problem: Q [B, Hq, Lq, D], K [B, Hkv, Lk, D], V [B, Hkv, Lk, Dv], and its masks. Hq
 * is a multiple of Hkv. A tensor or array that is NULL is absent. */
typedef struct assay_attention {
  uint32_t version, struct_size;
  const assay_tensor *q, *k, *v; /* f32, f16 or bf16, all of one dtype */
  float scale, softcap;          /* scale may be negative; softcap 0 means none */
  uint32_t flags;
  float dropout;
  uint64_t dropout_seed;
  int64_t window_left, window_right; /* -1 means open */
  const assay_tensor* keep;          /* bool or uint8 [B, Hq, Lq, Lk]; non-zero keeps a pair */
  const assay_tensor* bias;          /* f32, f16 or bf16 [B, Hq, Lq, Lk]; is added to the scores */
  const int64_t *offset, *key_lengths, *key_starts;        /* B entries each */
  int64_t offset_count, key_length_count, key_start_count; /* B, or 0 if the array is absent */
  const float *alibi_slopes, *sink;                        /* Hq entries each */
  int64_t alibi_slope_count, sink_count;                   /* Hq, or 0 if the array is absent */
  const int32_t *query_segment, *key_segment;              /* B * Lq and B * Lk entries */
  int64_t query_segment_count, key_segment_count; /* as many, or 0 if the arrays are absent */
} assay_attention;

/* Describes a problem without tensors, without masks, and with the default scale. */
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

/* The gradients that a backward pass writes. dQ, dK and dV have the shapes of Q, K and V, and are
 * f32, f16 or bf16 each. d_bias is f32 [B, Hq, Lq, Lk], with stride 0 where the bias broadcasts:
 * such an element receives the sum over the dimension. d_sink is f32 [1, Hq, 1, 1]. d_bias and
 * d_sink may be NULL. A kernel whose table has no_d_sink = 1 always gets NULL for d_sink.
 *
 * d_lse is an input, the gradient of LSE: f32 [B, Hq, Lq, 1], or NULL if the loss does not depend
 * on LSE. dS = P (dP - D + dLSE), as ring attention needs it. A kernel whose table has d_lse = 0
 * always gets NULL. */
typedef struct assay_gradients {
  uint32_t version, struct_size;
  const assay_tensor *dq, *dk, *dv, *d_bias, *d_sink;
  const assay_tensor* d_lse;
} assay_gradients;

static inline void assay_gradients_init(assay_gradients* g) {
  g->version = ASSAY_VERSION;
  g->struct_size = (uint32_t)sizeof(*g);
  g->dq = g->dk = g->dv = g->d_bias = g->d_sink = g->d_lse = NULL;
}

/* The low-bit formats. docs/formats.md describes the bytes, values and groups of each. */
enum {
  ASSAY_MXFP4 = 0,
  ASSAY_NVFP4 = 1,
  ASSAY_FP4 = 2,        /* f16 scales for groups; a 32-bit word has eight nibbles along k */
  ASSAY_FP4_SPARSE = 3, /* the same, with two kept of each four k */
  ASSAY_MXFP8_E4M3 = 4,
  ASSAY_MXFP8_E5M2 = 5,
  ASSAY_INT8 = 6,
  ASSAY_INT4 = 7
};

/* A matrix [K, N] in a low-bit format. */
typedef struct assay_low_bit {
  uint32_t version, struct_size;
  int32_t format;
  float tensor_scale; /* 1, except for ASSAY_NVFP4 */
  int64_t k, n;
  int64_t group_size; /* 0: the group size of the format; -1: 8-bit floats without scales */
  const void *codes, *scales;
  /* the zero points of integers, or the metadata of ASSAY_FP4_SPARSE; NULL otherwise */
  const void* extra;
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

/* How a quantizer rounds the scale of a group where scales are powers of two (E8M0). a is the
 * largest magnitude of the group; x is the largest number of the element, and e its exponent. A
 * scale is at least 2^-127. */
enum {
  ASSAY_SCALE_FLOOR = 0, /* 2^(floor(log2 a) - e); what is above x saturates */
  ASSAY_SCALE_CEIL = 1,  /* 2^(ceil(log2 a) - e) */
  ASSAY_SCALE_RCEIL = 2, /* the least power of two with a <= scale * x */
  ASSAY_SCALE_EVEN = 3   /* as FLOOR, for a rounded to the precision of the element, ties to even */
};

/* What a quantizer fills: a matrix [K, N] as in assay_low_bit, with bytes that can be written. */
typedef struct assay_low_bit_output {
  uint32_t version, struct_size;
  int32_t format, reserved;
  int64_t k, n, group_size;
  void *codes, *scales, *extra; /* NULL where the format has none */
  /* NULL, except for ASSAY_NVFP4. It holds the tensor scale by the rule; a quantizer that finds the
   * scale itself writes it here. */
  float* tensor_scale;
} assay_low_bit_output;

/* ---- Kernels --------------------------------------------------------------------------------- */

/* where an `operation` is passed below, it is never ASSAY_PRODUCT */
enum { ASSAY_FORWARD = 0, ASSAY_BACKWARD = 1, ASSAY_PRODUCT = 2, ASSAY_DECODE = 3 };

/* Where decode finds keys and values. Token j of sequence b is slot j % page_size of the page
 * block_table[b * pages_per_sequence + j / page_size]. An entry is -1 if its page holds no token of
 * the sequence. A contiguous cache has one page for each sequence. */
typedef struct assay_pages {
  uint32_t version, struct_size;
  /* [pages, Hkv, page_size, D] and [pages, Hkv, page_size, Dv], in the dtype of Q, unless the
   * kernel says in supports_cache that it reads others; unused slots hold NaN, and unused pages of
   * a pool with holes hold 0. K and V may be views of one buffer, whose rows lie side by side. */
  const assay_tensor *k, *v;
  int64_t page_size, pages_per_sequence;
  const int32_t* block_table; /* B * pages_per_sequence entries; NULL for append */
  /* Of a cache of 8- and 4-bit floats, and NULL otherwise: scales in E8M0 or f32, [pages, Hkv,
   * page_size, groups]. k and v hold codes then. Strides of 4-bit codes count nibbles, the low one
   * of a byte first, and a row begins at a whole byte. An f32 scale may belong to more than a group
   * of a token and head: the stride of scales is 0 along all heads, all slots of a page, or all
   * pages that share it. */
  const assay_tensor *k_scales, *v_scales;
  int64_t group_size; /* columns that share a scale; 0: all of a token and head */
} assay_pages;

/* How a kernel computes. The bound of every element is derived from this struct and from the data
 * (docs/bounds.md), so an error beyond the bound is a proof. For a kernel that declares nothing,
 * arithmetics are tried from the strictest to the most lenient, and the verdict names the first
 * that is not refuted.
 *
 * Unit roundoffs and relative errors are plain numbers. An error in ulp is at most that many times
 * 2 * roundoff, relative to the result. */
typedef struct assay_arithmetic {
  uint32_t version, struct_size;
  /* unit roundoff of an accumulation step of Q K^T and P V: 2^-24 for fp32, 2^-23 for fp32 that
   * truncates, 2^-11 for fp16 */
  double dot_roundoff;
  double largest;                    /* the largest finite number of scores and accumulators */
  double roundoff;                   /* unit roundoff of the softmax: 2^-24 for fp32 */
  double exp_ulp, log_ulp, tanh_ulp; /* errors of exp, log and tanh in ulp */
  double exp_ulp_per_unit; /* makes the error of exp(x) exp_ulp + exp_ulp_per_unit |x| ulp */
  double exp_floor;        /* absolute error of exp where its result underflows */
  double scale_error; /* relative error of a constant that is folded into the argument of exp */
  double argument_roundings; /* roundings of the argument of exp: 1 for s - m, 2 for (s - m) * c */
  /* width of a matrix instruction that aligns and truncates products; 0: one product at a time */
  int32_t dot_block;
  int32_t products_rounded; /* 1: a product is rounded before it is added (no fused multiply-add) */
  int32_t fused_argument;   /* 1: the weight is exp2(fma(s, c, -m c)) */
  int32_t weight_bits; /* dtype to which weights are rounded before P V: 0 none, 16 f16, -16 bf16 */
  int32_t score_bits;  /* dtype in which scores are stored: likewise */
  int32_t sum_from_rounded; /* 1: the row sum adds the rounded weights */
  /* 1: O is divided by the row sum; 2: O is multiplied by its rounded inverse */
  int32_t division_roundings;
  /* 1: three promises, which give a sharper bound. q.k is summed with d ascending. P V is summed
   * with keys ascending, tile after tile. The row sum goes tile by tile as well: each tile adds up
   * its weights from zero, in any order, and the sums of tiles are added one after the other, so
   * that no weight meets more than tile + tiles additions. A row sum that adds each weight to what
   * it has so far is not ordered. 0: any order. */
  int32_t ordered;
  int64_t tile, row_tile; /* keys and rows of a tile; 64 by default */
} assay_arithmetic;

/* Declares fp32 throughout, sums in any order, and an exp within one ulp. */
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
  a->dot_block = a->fused_argument = a->weight_bits = a->score_bits = a->sum_from_rounded =
      a->ordered = 0;
  a->products_rounded = 1;
  a->division_roundings = 2;
  a->tile = a->row_tile = 64;
}

/* The order in which a product adds, where W has groups that share a scale. */
enum {
  ASSAY_SUMS_IN_ANY_ORDER = 0, /* of dequantized weights */
  ASSAY_SUMS_BY_GROUP = 1,     /* each group is summed alone, and then the groups are */
  /* The same with k ascending and groups ascending, each sum from zero. */
  ASSAY_SUMS_BY_GROUP_IN_ORDER = 2
};

/* How a kernel computes products (docs/bounds_product.md). What assay_arithmetic says of roundoffs
 * and of kernels that declare nothing holds here, too. Where W has no groups, all of K is one. */
typedef struct assay_product_arithmetic {
  uint32_t version, struct_size;
  double roundoff; /* unit roundoff of an accumulation step; of a block: what it drops */
  double largest;  /* the largest finite number of the sums */
  int32_t order;   /* ASSAY_SUMS_... */
  /* width of a matrix instruction that aligns the products of a block and the sum so far to the
   * largest of them, and drops what is below `roundoff` of it; 0: one product at a time. Blocks,
   * scaled weights and rounded weights need sums in any order. */
  int32_t block;
  int32_t products_rounded; /* 1: a product is rounded before it is added (no fused multiply-add) */
  int32_t scales_weights;   /* 1: a tensor scale is multiplied into every weight of W */
  /* dtype to which dequantized weights of W are rounded, without a tensor scale, which is
   * multiplied last: 0, 16 or -16. Not together with scales_weights. */
  int32_t weight_bits;
  int32_t reserved; /* 0 */
} assay_product_arithmetic;

/* Declares sums in fp32 in any order. */
static inline void assay_product_arithmetic_init(assay_product_arithmetic* a) {
  a->version = ASSAY_VERSION;
  a->struct_size = (uint32_t)sizeof(*a);
  a->roundoff = 1.0 / 16777216;
  a->largest = 3.4028234663852886e38;
  a->order = ASSAY_SUMS_IN_ANY_ORDER;
  a->block = a->scales_weights = a->weight_bits = a->reserved = 0;
  a->products_rounded = 1;
}

/* What a kernel means where nobody agreed; docs/semantics.md says what each value means. What is
 * declared is judged exactly. Where nothing is declared, outputs that are right by another
 * convention are reported as such. */
enum {
  ASSAY_UNDECLARED = 0,
  /* masked_rows: O of a row that sees no key */
  ASSAY_MASKED_ROWS_ZERO = 1,
  ASSAY_MASKED_ROWS_MEAN_OF_V = 2, /* of all keys of the tensor */
  ASSAY_MASKED_ROWS_MEAN_WITHIN_LENGTHS = 3,
  ASSAY_MASKED_ROWS_UNMASKED = 4, /* the row sees all keys of the tensor */
  ASSAY_MASKED_ROWS_NAN = 5,
  ASSAY_MASKED_ROWS_ANY = 6,
  /* masked_lse: LSE of such a row */
  ASSAY_MASKED_LSE_MINUS_INFINITY = 1,
  ASSAY_MASKED_LSE_INFINITY = 2,
  ASSAY_MASKED_LSE_ZERO = 3,
  ASSAY_MASKED_LSE_ANY = 4,
  /* masked_nan: whether 0 times a NaN or an infinity of a masked key is added */
  ASSAY_MASKED_NAN_IGNORED = 1,
  ASSAY_MASKED_NAN_SPREADS = 2,
  /* anchor: the offset of a problem that has none: 0, Lk - Lq, or n[b] - Lq */
  ASSAY_ANCHOR_TOP_LEFT = 1,
  ASSAY_ANCHOR_BOTTOM_RIGHT = 2,
  ASSAY_ANCHOR_END_OF_LENGTHS = 3,
  /* subnormals: whether results below the least normal number are written as 0 */
  ASSAY_SUBNORMALS_KEPT = 1,
  ASSAY_SUBNORMALS_FLUSHED = 2,
  /* weightless_rows: O of a row that sees keys, of which every score is -infinity */
  ASSAY_WEIGHTLESS_ROWS_NAN = 1,
  ASSAY_WEIGHTLESS_ROWS_ZERO = 2,
  ASSAY_WEIGHTLESS_ROWS_MEAN_OF_V = 3, /* of all keys of the tensor */
  ASSAY_WEIGHTLESS_ROWS_MEAN_OF_VISIBLE = 4,
  ASSAY_WEIGHTLESS_ROWS_ANY = 5,
  /* weightless_lse: LSE of such a row */
  ASSAY_WEIGHTLESS_LSE_MINUS_INFINITY = 1,
  ASSAY_WEIGHTLESS_LSE_INFINITY = 2,
  ASSAY_WEIGHTLESS_LSE_ZERO = 3,
  ASSAY_WEIGHTLESS_LSE_NAN = 4,
  ASSAY_WEIGHTLESS_LSE_ANY = 5
};

typedef struct assay_conventions {
  uint32_t version, struct_size;
  int32_t masked_rows, masked_lse, masked_nan, anchor, subnormals;
  int32_t reserved; /* 0 */
  int32_t weightless_rows, weightless_lse;
} assay_conventions;

/* Declares nothing. */
static inline void assay_conventions_init(assay_conventions* c) {
  c->version = ASSAY_VERSION;
  c->struct_size = (uint32_t)sizeof(*c);
  c->masked_rows = c->masked_lse = c->masked_nan = c->anchor = c->subnormals = ASSAY_UNDECLARED;
  c->weightless_rows = c->weightless_lse = ASSAY_UNDECLARED;
  c->reserved = 0;
}

/* The stages of a kernel that `assay trace` can watch. docs/trace.md says what each one holds. */
enum {
  ASSAY_STAGE_QUERY = 0, /* as loaded: one row, whose columns are those of the head */
  ASSAY_STAGE_KEY = 1,
  ASSAY_STAGE_VALUE = 2,
  ASSAY_STAGE_SCORES = 3, /* scaled and capped, before biases */
  ASSAY_STAGE_MASKED = 4, /* with biases; -infinity where masked */
  ASSAY_STAGE_ROW_MAX = 5,
  ASSAY_STAGE_RESCALE = 6,     /* e^(old maximum - new maximum) */
  ASSAY_STAGE_WEIGHTS = 7,     /* e^(score - maximum), after dropout */
  ASSAY_STAGE_ROW_SUM = 8,     /* up to and including this tile */
  ASSAY_STAGE_ACCUMULATED = 9, /* up to and including this tile */
  ASSAY_STAGE_OUTPUT = 10,     /* before it is rounded to the dtype of O */
  ASSAY_STAGE_LSE = 11,
  /* The following stages are those of a backward pass. There, scores are before the softcap, and
   * weights are P before dropout. */
  ASSAY_STAGE_OUTPUT_GRADIENT = 12,
  ASSAY_STAGE_DELTA = 13,
  ASSAY_STAGE_WEIGHT_GRADIENTS = 14, /* dP = dO.v, before dropout */
  ASSAY_STAGE_SCORE_GRADIENTS = 15   /* dS */
};

/* What a stage holds for the rows [row0, row0 + rows) of one query head; for ASSAY_STAGE_KEY and
 * ASSAY_STAGE_VALUE, for these rows of one kv head. The meaning of a column depends on the stage:
 * in scores, masked, weights and their gradients, a column is a key, from key0 on; in loads,
 * accumulated and output, it is a column of the head; in row_max, rescale and row_sum, the columns
 * are the lanes that hold the one number of a row, and they have to agree. */
typedef struct assay_stage {
  uint32_t version, struct_size;
  int32_t stage, reserved;
  int64_t b, head, row0, key0, rows, columns;
  /* for running values: the first key that they include (0, or that of a split), and how many keys
   * the tile at key0 has */
  int64_t first_key, keys;
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

/* What a call receives beside its tensors. */
typedef struct assay_run {
  uint32_t version, struct_size;
  void* workspace; /* as many bytes as the function `workspace` asked for, aligned to 64; or NULL */
  uint64_t workspace_bytes;
  int32_t threads; /* 0: all hardware threads */
  int32_t variant; /* which variant computes, below the variant_count of the table */
  /* NULL except under `assay trace`. A kernel that offers its stages calls it, from any thread,
   * with what a stage has just computed. `context` is probe_context. */
  void (*probe)(void* context, const assay_stage* made);
  void* probe_context;
} assay_run;

/* What the bits of a row do not depend on, if a kernel promises it (docs/verdict.md). */
enum {
  ASSAY_INVARIANT_TO_BATCH = 1,    /* whether other sequences are in the call */
  ASSAY_INVARIANT_TO_POSITION = 2, /* the place of its sequence in the batch */
  ASSAY_INVARIANT_TO_PADDING = 4,  /* how many keys lie behind the length of its sequence */
  ASSAY_INVARIANT_TO_CHUNKS = 8,   /* how many rows are in the call */
  ASSAY_INVARIANT_TO_SPLITS = 16,  /* whether it is the only row, as in decoding */
  ASSAY_INVARIANT_TO_PAGES = 32,
  ASSAY_INVARIANT_TO_LAYOUT = 64, /* the strides of the inputs */
  ASSAY_INVARIANT_TO_THREADS = 128,
  ASSAY_INVARIANT_TO_RUNS = 256 /* anything that differs from one run to the next */
};

/* The table of a kernel. A function that is NULL is an operation or an option that the kernel does
 * not have. */
typedef struct assay_kernel {
  uint32_t version, struct_size;
  const char* name;
  /* 1: forward and decode write no LSE; their argument lse is NULL then, and LSE is not judged.
   * backward gets O and LSE of Assay's own kernel then. */
  int32_t no_lse;
  int32_t probes; /* 1: forward and backward call run->probe where it is not NULL */

  /* Returns ASSAY_SUCCESS if the kernel does this problem. Otherwise it returns ASSAY_UNSUPPORTED
   * and may set *reason to a text that says why; the case is counted under this reason, and is
   * never a pass. `output` is the dtype of O and of the gradients. A kernel that says yes and then
   * answers ASSAY_UNSUPPORTED fails the case. The tensors of `problem` have no data here. NULL
   * means that the kernel does everything. */
  assay_status (*supports)(int32_t operation, const assay_attention* problem,
                           const assay_dtype* output, const char** reason);
  /* Answers the same question for products; a and w have no data here. */
  assay_status (*supports_product)(const assay_tensor* a, const assay_low_bit* w,
                                   const assay_dtype* output, const char** reason);
  /* Describes in *declared how the kernel computes. NULL means that nothing is declared. */
  assay_status (*arithmetic)(const assay_attention* problem, assay_arithmetic* declared);
  /* Returns how many bytes a call needs beside its tensors. NULL means none. */
  uint64_t (*workspace)(int32_t operation, const assay_attention* problem);

  /* Writes O [B, Hq, Lq, Dv] in f32, f16 or bf16, and LSE [B, Hq, Lq, 1] in f32 (the natural
   * logarithm). Every element has to be written. */
  assay_status (*forward)(const assay_attention* problem, const assay_tensor* o,
                          const assay_tensor* lse, const assay_run* run);
  /* Writes dQ, dK and dV, and d_bias and d_sink where they are not NULL, from dO and from O and LSE
   * as forward stored them. If the table has no forward, or one that gives no LSE, O and LSE are
   * those of Assay's own kernel. */
  assay_status (*backward)(const assay_attention* problem, const assay_tensor* o,
                           const assay_tensor* lse, const assay_tensor* d_o,
                           const assay_gradients* gradients, const assay_run* run);
  /* Does the same as forward over the keys of a cache. In `problem`, k and v are shapes without
   * data (Lk is at least the number of keys of any sequence), key_lengths says how many tokens each
   * sequence has, and key_starts says how many of them were dropped. The rows are the last tokens:
   * the offset of a sequence is its key length less Lq. */
  assay_status (*decode)(const assay_attention* problem, const assay_pages* pages,
                         const assay_tensor* o, const assay_tensor* lse, const assay_run* run);
  /* Writes C = A W, where A is [1, 1, M, K] and C is [1, 1, M, N]. */
  assay_status (*product)(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                          const assay_run* run);

  /* What follows is there from version 2 on. */

  /* 1: two threads must not call the kernel at once, as if it kept something in a static buffer */
  int32_t not_reentrant;
  /* How many variants the kernel has, as the configurations of an autotuner; run->variant says
   * which one computes. 0 means 1. Every variant is judged. At the end of the table are questions
   * about one variant. */
  int32_t variant_count;
  uint64_t invariant_to; /* ASSAY_INVARIANT_TO_*: what is promised is asked bit for bit */

  /* What the kernel means where nobody agreed; NULL declares nothing. */
  const assay_conventions* conventions;

  /* The same product with a low-bit A, whose format is in columns (docs/formats.md): its n counts
   * the rows of A. supports_low_bit answers for it; a and w have no data there. */
  assay_status (*supports_low_bit)(const assay_low_bit* a, const assay_low_bit* w,
                                   const assay_dtype* output, const char** reason);
  assay_status (*product_low_bit)(const assay_low_bit* a, const assay_low_bit* w,
                                  const assay_tensor* c, const assay_run* run);
  /* Quantizes w, which is f32 [1, 1, K, N] with any strides and finite, by the rules of
   * docs/formats.md. All bytes are compared with those of the rule. supports_quantize may set
   * *scale_rule to the one of ASSAY_SCALE_... that the kernel follows; it is ASSAY_SCALE_FLOOR
   * before. w and to have no data there. */
  assay_status (*supports_quantize)(const assay_tensor* w, const assay_low_bit_output* to,
                                    int32_t* scale_rule, const char** reason);
  assay_status (*quantize)(const assay_tensor* w, const assay_low_bit_output* to,
                           const assay_run* run);
  /* Writes what w means to f32, f16 or bf16 [1, 1, K, N]: the nearest number, or that number
   * rounded to binary32 before. */
  assay_status (*supports_dequantize)(const assay_low_bit* w, const assay_dtype* output,
                                      const char** reason);
  assay_status (*dequantize)(const assay_low_bit* w, const assay_tensor* to, const assay_run* run);
  /* Answers for the pages of decode, after `supports` has said yes to the problem. NULL means pages
   * in the dtype of Q, and no others. The tensors have no data here. */
  assay_status (*supports_cache)(const assay_attention* problem, const assay_pages* pages,
                                 const assay_dtype* output, const char** reason);
  /* Writes tokens into pages: token i of sequence b of k [B, Hkv, n, D] and v [B, Hkv, n, Dv], f32,
   * f16 or bf16, goes to the slot s % page_size of the page s / page_size, where s is
   * slots[b * n + i]. A token with s = -1 goes nowhere. Numbers are rounded to nearest, ties to
   * even. A scale of E8M0 is the least power of two, at least 2^-127, under which the largest
   * finite magnitude of its group does not exceed the largest code (docs/formats.md). An f32 scale
   * is that magnitude / the largest code, rounded to f32, and at least 2^-126; an element / the
   * scale is rounded to f32, too, before it is rounded to a code. If slots share a scale, it is in
   * its place already and stays as it is. All bytes are compared with those of the rule, and other
   * slots must stay as they are. A slot may hold a token already: sequences are cut back, and rings
   * of pages are written again. */
  assay_status (*supports_append)(const assay_tensor* k, const assay_tensor* v,
                                  const assay_pages* pages, const char** reason);
  assay_status (*append)(const assay_tensor* k, const assay_tensor* v, const int64_t* slots,
                         const assay_pages* pages, const assay_run* run);
  /* 1: backward takes the gradient of LSE, gradients->d_lse */
  int32_t d_lse;
  /* 1: backward gives no gradient of the sink; gradients->d_sink is always NULL then, and is not
   * judged. In older headers of version 2 this is a reserved 0. */
  int32_t no_d_sink;

  /* The same questions about one variant, below variant_count. Tables of version 2 from before they
   * were added end here, and have no such function.
   *
   * A variant may decline what others do: it is not applicable to that problem then. A problem that
   * all variants decline is unsupported. These functions are asked after those above have said yes.
   * NULL means that every variant does what the kernel does; a variant above 0 may still answer
   * ASSAY_UNSUPPORTED when it runs, without a reason. `pages` is that of decode, and NULL for other
   * operations; of a and a_low, one is NULL. */
  assay_status (*supports_variant)(int32_t variant, int32_t operation,
                                   const assay_attention* problem, const assay_pages* pages,
                                   const assay_dtype* output, const char** reason);
  assay_status (*supports_product_variant)(int32_t variant, const assay_tensor* a,
                                           const assay_low_bit* a_low, const assay_low_bit* w,
                                           const assay_dtype* output, const char** reason);
  /* Take the places of `arithmetic` and `workspace` where they are not NULL. */
  assay_status (*arithmetic_variant)(int32_t variant, const assay_attention* problem,
                                     assay_arithmetic* declared);
  uint64_t (*workspace_variant)(int32_t variant, int32_t operation, const assay_attention* problem);

  /* Describes in *declared how a variant (0 if there is one alone) computes a product, after the
   * functions above have said yes to it. Of a and a_low, one is NULL. NULL means that nothing is
   * declared. Older tables of version 2 end before it. */
  assay_status (*product_arithmetic)(int32_t variant, const assay_tensor* a,
                                     const assay_low_bit* a_low, const assay_low_bit* w,
                                     const assay_dtype* output, assay_product_arithmetic* declared);
  /* The products of a batch in one call: C[b] = A[b] W[b], where A is [B, 1, M, K] and C is
   * [B, 1, M, N]. w (and a_low, for a low-bit A) are B matrices of one format and shape, each with
   * bytes and a tensor scale of its own; of a and a_low, one is NULL. Before a call,
   * supports_product is asked about that A and the first w, or supports_low_bit about the first of
   * each, and then product_arithmetic; a batch that the kernel does not take may also be answered
   * with ASSAY_UNSUPPORTED. Beside such a function the table has product or product_low_bit, with
   * whose cases it is judged; without both of them it is never called. */
  assay_status (*product_batch)(int64_t batch, const assay_tensor* a, const assay_low_bit* a_low,
                                const assay_low_bit* w, const assay_tensor* c,
                                const assay_run* run);
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
  k->not_reentrant = k->variant_count = 0;
  k->invariant_to = 0;
  k->conventions = NULL;
  k->supports_low_bit = NULL;
  k->product_low_bit = NULL;
  k->supports_quantize = NULL;
  k->quantize = NULL;
  k->supports_dequantize = NULL;
  k->dequantize = NULL;
  k->supports_cache = NULL;
  k->supports_append = NULL;
  k->append = NULL;
  k->d_lse = k->no_d_sink = 0;
  k->supports_variant = NULL;
  k->supports_product_variant = NULL;
  k->arithmetic_variant = NULL;
  k->workspace_variant = NULL;
  k->product_arithmetic = NULL;
  k->product_batch = NULL;
}

/* The one symbol of your library. It returns a table that lives as long as the library. `version`
 * is the newest version that the caller knows; a library that is newer returns NULL. */
typedef const assay_kernel* (*assay_kernel_entry_function)(uint32_t version);
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const assay_kernel*
assay_kernel_entry(uint32_t version);

#ifdef __cplusplus
}
#endif

#endif
