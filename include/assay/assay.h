/* The C interface of Assay, in C99: attention forward, backward and over caches, and low-bit
 * products, on this machine; attention forward on a device.
 *
 * - Every function that returns assay_status returns a status of kernel.h, and no exception leaves
 *   it. If it fails, it has written none of its outputs, and assay_last_error() names the argument
 *   that was refused, its value, and the limit that it passed.
 * - Every struct begins with its version and its size, as the caller compiled them. The *_init
 *   function of the struct sets both. An older, shorter struct is accepted, and the fields that it
 *   lacks have their defaults. A longer or newer struct is refused with ASSAY_INVALID_ARGUMENTS.
 * - Handles are opaque numbers. A handle that was destroyed, or that this library never gave out,
 *   is refused and not followed: with ASSAY_INVALID_CACHE_STATE for caches, and with
 *   ASSAY_INVALID_ARGUMENTS for all others.
 * - All functions may be called from any thread. Calls on one cache wait for each other where they
 *   must. A call that is running when its handle is destroyed ends normally.
 * - Sizes, strides and positions are 64-bit and count elements. Tensors have rank 4 and lie in
 *   memory that the processor reads. An output must not overlap itself or any other tensor of its
 *   call.
 *
 * docs/semantics.md says what every operation means, and docs/c_interface.md describes this
 * interface. */
#ifndef ASSAY_ASSAY_H_
#define ASSAY_ASSAY_H_

#include "kernel.h" /* status codes, tensors and problems, which your own kernels use too */

#if defined(ASSAY_BUILD) && defined(__GNUC__)
#define ASSAY_API __attribute__((visibility("default")))
#else
#define ASSAY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Returns ASSAY_VERSION of the library that is running. */
ASSAY_API uint32_t assay_version(void);
/* Returns "Success", "Invalid arguments", ..., and "Unknown error" for any number that is no
 * status. The text is never freed. */
ASSAY_API const char* assay_status_message(assay_status status);
/* Returns the error text of the last call on this thread that returned a status: the message of the
 * status, ": ", and what was wrong. The text is "" after a success. It is at most 1,023 characters
 * long, and valid until the next call on this thread. */
ASSAY_API const char* assay_last_error(void);

/* ---- Contexts -------------------------------------------------------------------------------- */

typedef struct assay_context_handle* assay_context;

enum { ASSAY_REPORT_VERBOSE = 0, ASSAY_REPORT_WARNING = 1 };
/* Is called with a text that says what happened. `text` is valid until the function returns, and
 * `user` is report_user of the options. It is called on the thread whose call is reported. */
typedef void (*assay_report)(void* user, int32_t severity, const char* text);

/* What a context is made with. assay_context_options_init sets the defaults. */
typedef struct assay_context_options {
  uint32_t version, struct_size;
  int32_t threads;          /* 0: all hardware threads */
  int32_t dispatch_enabled; /* 0 or 1 (the default): whether assay_sdpa may use the tiled kernel */
  int64_t min_query_length; /* 256; a shorter query takes the unfused kernel */
  int32_t compile_cache;    /* 0 or 1 (the default): whether compiled kernels are kept */
  int32_t trust_listed_devices; /* 0 (the default) or 1: dispatch on listed devices too */
  /* names of devices on which causality with padding or a mask fails; NULL: { "mps" } */
  const char* const* listed_devices;
  int64_t listed_device_count;
  /* gets warnings and every decision of assay_sdpa; NULL: warnings go to stderr */
  assay_report report;
  void* report_user;
  /* The device whose kernels assay_sdpa and assay_single_head_attention use: "host" (also if NULL),
   * "opencl", or "opencl:TEXT", which is the first device whose platform or device name contains
   * TEXT. Tensors stay in the host's memory and are copied to the device and back. */
  const char* device;
  /* What happens if the device fails. 1 (the default): the host's kernel computes the call, with a
   * warning. 0: the status of the failure is returned. */
  int32_t device_fallback;
  int32_t reserved; /* must be 0 */
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

/* Makes a context and writes its handle to *context. options may be NULL, which means the defaults.
 * If options->device names a device, the device is opened here, and a failure to open it is the
 * status of this function (ASSAY_DEVICE_NOT_SUPPORTED for an unknown name). */
ASSAY_API assay_status assay_context_create(const assay_context_options* options,
                                            assay_context* context);
/* Destroys a context. Its handle is refused afterwards. */
ASSAY_API assay_status assay_context_destroy(assay_context context);
/* Opens the device of a context again after the device was lost. Until then every call on it
 * answers ASSAY_DEVICE_NOT_SUPPORTED, or is computed by the host if device_fallback is 1. */
ASSAY_API assay_status assay_context_reopen(assay_context context);

/* ---- Attention ------------------------------------------------------------------------------- */

/* Computes O and LSE with the tiled kernel of the host. o [B, Hq, Lq, Dv] is f32, f16 or bf16. lse
 * [B, Hq, Lq, 1] is f32, or NULL if LSE is not wanted. */
ASSAY_API assay_status assay_attention_forward(assay_context context,
                                               const assay_attention* problem,
                                               const assay_tensor* o, const assay_tensor* lse);

/* Computes attention over sequences that are packed one behind the other: Q is [1, Hq, total rows,
 * D], K is [1, Hkv, total keys, D], and so on. cu_rows and cu_keys have `sequences` + 1 entries,
 * begin with 0 and never fall. Sequence n owns the rows [cu_rows[n], cu_rows[n + 1]) and the keys
 * [cu_keys[n], cu_keys[n + 1]), and sees no other key. Rows behind the last sequence are not
 * written.
 *
 * The causal offset of a sequence is its number of keys less its number of rows if bottom_right is
 * 1, and 0 if bottom_right is 0. If problem->offset is not NULL, it has one entry for each sequence
 * and is used instead. Key lengths, key starts and segments are refused with ASSAY_UNSUPPORTED.
 * With dropout, sequence n uses the seed dropout_seed + n. */
ASSAY_API assay_status assay_attention_varlen(assay_context context, const assay_attention* problem,
                                              const int64_t* cu_rows, const int64_t* cu_keys,
                                              int64_t sequences, int32_t bottom_right,
                                              const assay_tensor* o, const assay_tensor* lse);

enum { ASSAY_AUTOMATIC = 0, ASSAY_SDPA = 1, ASSAY_UNFUSED = 2 };

/* Computes O and LSE with the tiled kernel, or with the unfused kernel if a test of the dispatcher
 * refuses the tiled one. `implementation` is one of the numbers above; ASSAY_AUTOMATIC and
 * ASSAY_SDPA mean the same. `device` names the device on which the tensors are; NULL means "host".
 * o and lse are as for assay_attention_forward. */
ASSAY_API assay_status assay_sdpa(assay_context context, const assay_attention* problem,
                                  const assay_tensor* o, const assay_tensor* lse,
                                  int32_t implementation, const char* device);

/* Computes attention with one head, for callers of an older interface. Tensors have rank 2, [S, D]
 * (only shape[0..1] and strides[0..1] are read), or rank 4, [B, S, 1, D]. Lengths go up to 65,535,
 * D and B up to 1,024. scale NULL means 1 / sqrt(D). causal is 0 or 1; with 1, row i sees the keys
 * up to i.
 *
 * An argument that is no tensor at all (null, a rank outside [0, 4], an unknown dtype) is refused
 * first, with a message of this interface. Then the checks of the older interface follow, in its
 * order and with its messages; assay_last_error() holds such a message behind the message of the
 * status. */
ASSAY_API assay_status assay_single_head_attention(assay_context context, const assay_tensor* q,
                                                   const assay_tensor* k, const assay_tensor* v,
                                                   const assay_tensor* o, const float* scale,
                                                   int32_t causal);

/* The reasons for which assay_sdpa refuses the tiled kernel, in the order in which they are tested.
 * The first test that fails is counted. */
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

/* How often assay_sdpa ran which kernel on a context, and why. */
typedef struct assay_dispatch_counters {
  uint32_t version, struct_size;
  int64_t dispatched, fallback;         /* calls of the tiled and of the unfused kernel */
  int64_t refused[ASSAY_REFUSAL_COUNT]; /* by the number of the reason; their sum is fallback */
  int64_t cache_hits, cache_misses;     /* of the cache of compiled kernels */
  /* how many of the dispatched calls failed on their device and were then computed by the host's
   * kernel */
  int64_t replaced;
} assay_dispatch_counters;

static inline void assay_dispatch_counters_init(assay_dispatch_counters* c) {
  c->version = ASSAY_VERSION;
  c->struct_size = (uint32_t)sizeof(*c);
}

/* Writes the counters of a context into the fields that the caller's struct has. */
ASSAY_API assay_status assay_dispatch_read(assay_context context,
                                           assay_dispatch_counters* counters);
/* Sets all counters of a context to 0. */
ASSAY_API assay_status assay_dispatch_reset(assay_context context);
/* Switches the tiled kernel of assay_sdpa on (enabled 1) or off (enabled 0). Writes the former
 * setting to *before, unless before is NULL. */
ASSAY_API assay_status assay_dispatch_enable(assay_context context, int32_t enabled,
                                             int32_t* before);

/* ---- Backward -------------------------------------------------------------------------------- */

/* Computes the gradients of <dO, O> + <dLSE, LSE>; dLSE is gradients->d_lse, or 0 if that is NULL.
 * o and lse are what assay_attention_forward stored; both are needed. d_o has the shape of o and
 * the dtype of q. assay_gradients in kernel.h describes the shapes and dtypes of the gradients: dq,
 * dk and dv are needed, d_bias and d_sink may be NULL. d_sink is refused if the problem has no
 * sink. Every element of every gradient is written. */
ASSAY_API assay_status assay_attention_backward(assay_context context,
                                                const assay_attention* problem,
                                                const assay_tensor* o, const assay_tensor* lse,
                                                const assay_tensor* d_o,
                                                const assay_gradients* gradients);

/* ---- Caches ---------------------------------------------------------------------------------- */

typedef struct assay_cache_handle* assay_cache;

enum { ASSAY_CACHE_CONTIGUOUS = 0, ASSAY_CACHE_PAGED = 1, ASSAY_CACHE_LATENT = 2 };

/* What a cache is made with. assay_cache_config_init sets the defaults. The default capacity is 0
 * tokens, so set it. */
typedef struct assay_cache_config {
  uint32_t version, struct_size;
  int32_t kind;
  assay_dtype dtype; /* f32, f16, bf16, f8 e4m3fn, f8 e5m2 or f4 e2m1fn */
  int64_t sequences, kv_heads, dim, value_dim;
  int64_t capacity; /* tokens that a sequence can hold, evicted tokens included */
  /* paged and latent: tokens of a page, and pages of the pool that all sequences share; pages 0:
   * enough for all sequences */
  int64_t page_size, pages;
  int64_t group_size;   /* f8 and f4: elements that share a scale; 0: all of a head */
  int64_t rank, rotary; /* latent: elements of the vector and of the rotary part of a token */
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

/* Makes an empty cache and writes its handle to *cache. A configuration that cannot be is refused
 * with ASSAY_INVALID_ARGUMENTS, and too little memory with ASSAY_MEMORY_ALLOCATION_FAILED. */
ASSAY_API assay_status assay_cache_create(const assay_cache_config* config, assay_cache* cache);
/* Destroys a cache. Its handle is refused afterwards. */
ASSAY_API assay_status assay_cache_destroy(assay_cache cache);
/* Appends n tokens to a sequence. k is [1, Hkv, n, D] and v is [1, Hkv, n, Dv]; for a latent cache
 * k is [1, 1, n, rank] and v is [1, 1, n, rotary]. Both are f32, f16 or bf16, and are rounded to
 * the cache's dtype. If there is no room for all n tokens, nothing is appended, and the status is
 * ASSAY_INVALID_CACHE_STATE. */
ASSAY_API assay_status assay_cache_append(assay_cache cache, int64_t sequence,
                                          const assay_tensor* k, const assay_tensor* v);
/* Drops all tokens before `position`, which is at most the length; the other tokens keep their
 * positions. */
ASSAY_API assay_status assay_cache_evict(assay_cache cache, int64_t sequence, int64_t position);
/* Makes `to`, which must be empty, a copy of `from`. */
ASSAY_API assay_status assay_cache_fork(assay_cache cache, int64_t from, int64_t to);
/* Makes a sequence empty. */
ASSAY_API assay_status assay_cache_reset(assay_cache cache, int64_t sequence);
/* Writes the number of tokens appended so far, and how many of them were evicted. Either pointer
 * may be NULL. */
ASSAY_API assay_status assay_cache_length(assay_cache cache, int64_t sequence, int64_t* length,
                                          int64_t* evicted);

/* Computes attention over the tokens of a cache. k, v, keep, bias, key_lengths and key_starts of
 * the problem must be absent, because the cache holds the keys. B must be the number of sequences
 * of the cache. Without problem->offset, the rows of a sequence are the last tokens that were
 * appended to it. For a latent cache, up_k is [1, Hkv, D - rotary, rank] and up_v is
 * [1, Hkv, Dv, rank], each f32, f16 or bf16; for other caches both are NULL. o and lse are as for
 * assay_attention_forward. */
ASSAY_API assay_status assay_attention_cached(assay_context context, const assay_attention* problem,
                                              assay_cache cache, const assay_tensor* up_k,
                                              const assay_tensor* up_v, const assay_tensor* o,
                                              const assay_tensor* lse);

/* ---- Low-bit products ------------------------------------------------------------------------ */

typedef struct assay_weights_handle* assay_weights;

/* Writes how many bytes the codes, the scales and the extra data of a matrix take. Any of the three
 * pointers may be NULL. The matrix's own pointers are not read. */
ASSAY_API assay_status assay_low_bit_size(const assay_low_bit* matrix, int64_t* code_bytes,
                                          int64_t* scale_bytes, int64_t* extra_bytes);

/* Copies weights into the order in which the kernels read them, and writes a handle; the caller's
 * bytes are not needed afterwards. Codes that the format forbids are refused with
 * ASSAY_INVALID_ARGUMENTS. */
ASSAY_API assay_status assay_weights_create(const assay_low_bit* matrix, assay_weights* weights);
/* Quantizes w [1, 1, K, N], which is f32, f16 or bf16, to the given format by the rules of
 * docs/formats.md. group_size is as in assay_low_bit. If pad_k is 0, K must be a multiple of the
 * group size; if it is 1, the last group may be shorter. NaN, infinities and scales that overflow
 * are refused. */
ASSAY_API assay_status assay_weights_quantize(const assay_tensor* w, int32_t format,
                                              int64_t group_size, int32_t pad_k,
                                              assay_weights* weights);
/* Writes the bytes of weights again; their sizes are those of assay_low_bit_size(). tensor_scale
 * may be NULL. */
ASSAY_API assay_status assay_weights_read(assay_weights weights, void* codes, void* scales,
                                          void* extra, float* tensor_scale);
/* Destroys weights. Their handle is refused afterwards. */
ASSAY_API assay_status assay_weights_destroy(assay_weights weights);

/* Computes C = A W, where a [1, 1, M, K] and c [1, 1, M, N] are f32, f16 or bf16. */
ASSAY_API assay_status assay_product(assay_context context, const assay_tensor* a,
                                     assay_weights weights, const assay_tensor* c);
/* Computes the same with a low-bit A: ASSAY_MXFP4, ASSAY_NVFP4 or 8-bit floats. The field n of a
 * counts the rows of A. */
ASSAY_API assay_status assay_product_low_bit(assay_context context, const assay_low_bit* a,
                                             assay_weights weights, const assay_tensor* c);

#ifdef __cplusplus
}
#endif

#endif
