/* Assay's C interface: attention forward, backward and over caches, and low-bit products, on this machine; attention forward on a device. C99.
 *
 * - Every function returns a status (below) and never throws. On failure nothing was written, and assay_last_error() says
 *   which argument was refused, its value and the limit that it passed.
 * - Every struct begins with its version and its size, as the caller compiled them: set both with the *_init function of
 *   the struct. An older, shorter struct is accepted, its missing fields have their defaults; a longer or newer one is
 *   refused.
 * - Handles are opaque. One that was destroyed, or never was one, is refused and not followed. All functions may be called
 *   from any thread; calls on one cache wait for each other where they must.
 * - Sizes, strides and positions are 64-bit and count elements. Tensors have rank 4.
 *
 * Meaning of every operation: docs/semantics.md. */
#ifndef ASSAY_ASSAY_H_
#define ASSAY_ASSAY_H_

#include "kernel.h" /* status codes, tensors and problems: common to this interface and to kernels of your own */

#if defined(ASSAY_BUILD) && defined(__GNUC__)
#define ASSAY_API __attribute__((visibility("default")))
#else
#define ASSAY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif


/* ASSAY_VERSION of the library that is running. */
ASSAY_API uint32_t assay_version(void);
/* "Success", "Invalid arguments", ...; "Unknown error" for any number that is no status. Never freed. */
ASSAY_API const char* assay_status_message(assay_status status);
/* Of the last call of this thread that returned a status: its message and ": " and what was wrong; "" after a success.
 * Valid until the thread's next call. */
ASSAY_API const char* assay_last_error(void);

/* ---- Contexts ----------------------------------------------------------------------------------------------------- */

typedef struct assay_context_handle* assay_context;

enum { ASSAY_REPORT_VERBOSE = 0, ASSAY_REPORT_WARNING = 1 };
typedef void (*assay_report)(void* user, int32_t severity, const char* text);

typedef struct assay_context_options {
  uint32_t version, struct_size;
  int32_t threads;                   /* 0: all */
  int32_t dispatch_enabled;          /* 1 */
  int64_t min_query_length;          /* 256: shorter queries take the unfused kernel */
  int32_t compile_cache;             /* 1: compiled kernels are kept */
  int32_t trust_listed_devices;      /* 0 */
  const char* const* listed_devices; /* on which causality with padding or masks fails; NULL: { "mps" } */
  int64_t listed_device_count;
  assay_report report; /* warnings, and every decision of assay_sdpa; NULL: warnings go to stderr */
  void* report_user;
  /* Whose kernels assay_sdpa and assay_single_head_attention use: "host" (NULL means it), "opencl", or "opencl:TEXT", the first whose
   * platform or device name contains TEXT. Tensors stay in the host's memory and are copied. */
  const char* device;
  int32_t device_fallback; /* 1: where the device fails, the host's kernel, with a warning. 0: its status is returned */
  int32_t reserved;        /* 0 */
} assay_context_options;

static inline void assay_context_options_init(assay_context_options* o) {
  o->version = ASSAY_VERSION;
  o->struct_size = (uint32_t)sizeof(*o);
  o->threads = 0;
  o->dispatch_enabled = 1;
  o->min_query_length = 256;
  o->compile_cache = 1;
  o->trust_listed_devices = 0;
  o->listed_devices = NULL;
  o->listed_device_count = 0;
  o->report = NULL;
  o->report_user = NULL;
  o->device = NULL;
  o->device_fallback = 1;
  o->reserved = 0;
}

/* A device is opened here, and it failing is the status. options may be NULL: the defaults. */
ASSAY_API assay_status assay_context_create(const assay_context_options* options, assay_context* context);
ASSAY_API assay_status assay_context_destroy(assay_context context);
/* After a device was lost (every call answers device_not_supported, or is replaced by the host): opens it again. */
ASSAY_API assay_status assay_context_reopen(assay_context context);

/* ---- Attention ---------------------------------------------------------------------------------------------------- */

/* O [B, Hq, Lq, Dv] is f32, f16 or bf16; LSE [B, Hq, Lq, 1] is f32, or NULL. The tiled kernel. */
ASSAY_API assay_status assay_attention_forward(assay_context context, const assay_attention* problem, const assay_tensor* o, const assay_tensor* lse);

/* Packed sequences: Q [1, Hq, total rows, D] and so on; sequence n owns rows [cu_rows[n], cu_rows[n + 1]) and keys
 * [cu_keys[n], cu_keys[n + 1]). bottom_right: the causal offset of a sequence is its keys less its rows, else 0; where
 * problem->offset is there, it has an entry per sequence. */
ASSAY_API assay_status assay_attention_varlen(assay_context context, const assay_attention* problem, const int64_t* cu_rows, const int64_t* cu_keys,
                                              int64_t sequences, int32_t bottom_right, const assay_tensor* o, const assay_tensor* lse);

enum { ASSAY_AUTOMATIC = 0, ASSAY_SDPA = 1, ASSAY_UNFUSED = 2 };

/* Chooses the tiled kernel or, where a test refuses it, the unfused one. device names where the tensors are; NULL: "host". */
ASSAY_API assay_status assay_sdpa(assay_context context, const assay_attention* problem, const assay_tensor* o, const assay_tensor* lse, int32_t implementation,
                                  const char* device);

/* One head, for callers of an older interface: tensors of rank 2 [S, D] or 4 [B, S, 1, D] (with rank 2, shape[0..1] and strides[0..1]), lengths up to
 * 65,535, D and B up to 1,024. What is no tensor at all (null, a rank outside [0, 4], an unknown dtype) is refused first, in the words of this
 * interface; then come the checks and messages of kernels/single_head.h, which assay_last_error() holds behind the status's own message. scale
 * NULL: 1 / sqrt(D). */
ASSAY_API assay_status assay_single_head_attention(assay_context context, const assay_tensor* q, const assay_tensor* k, const assay_tensor* v,
                                                   const assay_tensor* o, const float* scale, int32_t causal);

/* Refusals in the order of their tests; the first that fails is counted. */
enum {
  ASSAY_REFUSED_DISABLED,
  ASSAY_REFUSED_ASKED,
  ASSAY_REFUSED_LISTED_DEVICE,
  ASSAY_REFUSED_DEVICE,
  ASSAY_REFUSED_DROPOUT,
  ASSAY_REFUSED_MASK,
  ASSAY_REFUSED_QUERY_LENGTH,
  ASSAY_REFUSED_DTYPE,
  ASSAY_REFUSED_HEADS,
  ASSAY_REFUSED_LAYOUT,
  ASSAY_REFUSED_FEATURE,
  ASSAY_REFUSAL_COUNT
};

typedef struct assay_dispatch_counters {
  uint32_t version, struct_size;
  int64_t dispatched, fallback;
  int64_t refused[ASSAY_REFUSAL_COUNT];
  int64_t cache_hits, cache_misses;
  int64_t replaced; /* of the dispatched: failed on their device, then computed by the host's kernel */
} assay_dispatch_counters;

static inline void assay_dispatch_counters_init(assay_dispatch_counters* c) {
  c->version = ASSAY_VERSION;
  c->struct_size = (uint32_t)sizeof(*c);
}

/* Writes the fields that the caller's struct has. */
ASSAY_API assay_status assay_dispatch_read(assay_context context, assay_dispatch_counters* counters);
ASSAY_API assay_status assay_dispatch_reset(assay_context context);
/* 0 or 1; assay_sdpa takes the unfused kernel while it is 0. Writes what was set before to *before, unless NULL. */
ASSAY_API assay_status assay_dispatch_enable(assay_context context, int32_t enabled, int32_t* before);

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* dQ, dK and dV have the shapes of Q, K and V, and f32, f16 or bf16 each. d_bias is f32 [B, Hq, Lq, Lk], strides 0 where the
 * bias broadcasts; d_sink is f32 [1, Hq, 1, 1]; both may be NULL. */
/* o and lse as assay_attention_forward stored them; d_o has the shape of o and the dtype of q. */
ASSAY_API assay_status assay_attention_backward(assay_context context, const assay_attention* problem, const assay_tensor* o, const assay_tensor* lse,
                                                const assay_tensor* d_o, const assay_gradients* gradients);

/* ---- Caches ------------------------------------------------------------------------------------------------------- */

typedef struct assay_cache_handle* assay_cache;

enum { ASSAY_CACHE_CONTIGUOUS = 0, ASSAY_CACHE_PAGED = 1, ASSAY_CACHE_LATENT = 2 };

typedef struct assay_cache_config {
  uint32_t version, struct_size;
  int32_t kind;
  assay_dtype dtype; /* f32, f16, bf16, f8 e4m3fn, f8 e5m2 or f4 e2m1fn */
  int64_t sequences, kv_heads, dim, value_dim;
  int64_t capacity;         /* tokens that a sequence can hold */
  int64_t page_size, pages; /* paged and latent; pages 0: enough for all sequences */
  int64_t group_size;       /* f8 and f4: elements that share a scale; 0: all of a head's */
  int64_t rank, rotary;     /* latent */
} assay_cache_config;

static inline void assay_cache_config_init(assay_cache_config* c) {
  c->version = ASSAY_VERSION;
  c->struct_size = (uint32_t)sizeof(*c);
  c->kind = ASSAY_CACHE_CONTIGUOUS;
  c->dtype.code = ASSAY_FLOAT;
  c->dtype.bits = 32;
  c->dtype.lanes = 1;
  c->sequences = c->kv_heads = 1;
  c->dim = c->value_dim = 64;
  c->capacity = 0;
  c->page_size = 16;
  c->pages = 0;
  c->group_size = 0;
  c->rank = 512;
  c->rotary = 64;
}

ASSAY_API assay_status assay_cache_create(const assay_cache_config* config, assay_cache* cache);
ASSAY_API assay_status assay_cache_destroy(assay_cache cache);
/* k [1, Hkv, n, D], v [1, Hkv, n, Dv]; latent: k [1, 1, n, rank], v [1, 1, n, rotary]. */
ASSAY_API assay_status assay_cache_append(assay_cache cache, int64_t sequence, const assay_tensor* k, const assay_tensor* v);
/* Drops all tokens before `position`; the others keep their positions. */
ASSAY_API assay_status assay_cache_evict(assay_cache cache, int64_t sequence, int64_t position);
/* `to`, which must be empty, becomes a copy of `from`. */
ASSAY_API assay_status assay_cache_fork(assay_cache cache, int64_t from, int64_t to);
ASSAY_API assay_status assay_cache_reset(assay_cache cache, int64_t sequence);
/* Tokens appended so far, and how many of them were evicted; either may be NULL. */
ASSAY_API assay_status assay_cache_length(assay_cache cache, int64_t sequence, int64_t* length, int64_t* evicted);

/* k, v, key_lengths and key_starts of the problem are absent: the cache has them. No offset: the rows are the last tokens
 * appended. up_k [1, Hkv, D - rotary, rank] and up_v [1, Hkv, Dv, rank] of a latent cache; NULL otherwise. */
ASSAY_API assay_status assay_attention_cached(assay_context context, const assay_attention* problem, assay_cache cache, const assay_tensor* up_k,
                                              const assay_tensor* up_v, const assay_tensor* o, const assay_tensor* lse);

/* ---- Low-bit products --------------------------------------------------------------------------------------------- */

typedef struct assay_weights_handle* assay_weights;

/* Bytes that codes, scales and extra take; any may be NULL. The matrix's pointers are not looked at. */
ASSAY_API assay_status assay_low_bit_size(const assay_low_bit* matrix, int64_t* code_bytes, int64_t* scale_bytes, int64_t* extra_bytes);

/* Weights in the order in which the kernels read them; the caller's bytes are not needed any more. Codes that the format forbids
 * are refused. */
ASSAY_API assay_status assay_weights_create(const assay_low_bit* matrix, assay_weights* weights);
/* From w [1, 1, K, N] in f32, f16 or bf16. pad_k 0: K must be whole groups. NaN, infinities and scales that overflow are refused. */
ASSAY_API assay_status assay_weights_quantize(const assay_tensor* w, int32_t format, int64_t group_size, int32_t pad_k, assay_weights* weights);
/* The bytes again, of assay_low_bit_size(); tensor_scale may be NULL. */
ASSAY_API assay_status assay_weights_read(assay_weights weights, void* codes, void* scales, void* extra, float* tensor_scale);
ASSAY_API assay_status assay_weights_destroy(assay_weights weights);

/* C = A W: a [1, 1, M, K] and c [1, 1, M, N] are f32, f16 or bf16. */
ASSAY_API assay_status assay_product(assay_context context, const assay_tensor* a, assay_weights weights, const assay_tensor* c);
/* The same with a low-bit A: ASSAY_MXFP4, ASSAY_NVFP4 or 8-bit floats, whose n counts the rows of A. */
ASSAY_API assay_status assay_product_low_bit(assay_context context, const assay_low_bit* a, assay_weights weights, const assay_tensor* c);

#ifdef __cplusplus
}
#endif

#endif
