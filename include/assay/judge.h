/* The interface of Assay's judge in C99, for programs and for other languages: cases and suites,
 * the inputs of a case as named tensors, and verdicts on named tensors, on functions and on files.
 * The Python package `assay` is made of it.
 *
 * - Every function that returns assay_status returns a status of kernel.h, and no exception leaves
 *   it. *answer is then a text: on success the answer of the function, on failure one sentence that
 *   names what was refused, its value and what was expected. Free it with assay_text_free. If
 *   memory was too short even for the text, *answer is NULL.
 * - A kernel that is found wrong is no failure of a function: the answer says so.
 * - Answers are JSON, unless their function says otherwise. A result has the fields of
 *   docs/results.md.
 * - There is no global state. Functions may be called from any thread at the same time, also from
 *   inside a callback. An assay_case may be read by several threads at the same time.
 * - Structs begin with their version and size, which the *_init function sets. A struct of another
 *   version or size is refused.
 * - Texts are UTF-8 and end in a NUL. */
#ifndef ASSAY_JUDGE_H_
#define ASSAY_JUDGE_H_

#include "kernel.h" /* status codes and tensors */

#if defined(ASSAY_BUILD) && defined(__GNUC__)
#define ASSAY_JUDGE_API __attribute__((visibility("default")))
#else
#define ASSAY_JUDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Returns ASSAY_VERSION of the library that is running. */
ASSAY_JUDGE_API uint32_t assay_judge_version(void);

/* A text that the library made. */
typedef struct assay_text assay_text;
/* Returns the text, which lives until assay_text_free. NULL gives "". */
ASSAY_JUDGE_API const char* assay_text_data(const assay_text* text);
ASSAY_JUDGE_API void assay_text_free(assay_text* text); /* NULL is allowed */

/* ---- Named tensors --------------------------------------------------------------------------- */

/* A tensor and its name. Ranks are 1 to 4; shape and strides beyond the rank are not read. Names,
 * shapes and dtypes are those of docs/records.md. `do` needs no other name here. */
typedef struct assay_named_tensor {
  const char* name;
  assay_tensor tensor;
} assay_named_tensor;

/* ---- Cases and suites ------------------------------------------------------------------------ */

/* The features that a kernel has, by their names (assay_judge_facts lists them). */
typedef struct assay_features {
  uint32_t version, struct_size;
  const char* const* names;
  int64_t count; /* -1: every feature; names is not read then */
} assay_features;

static inline void assay_features_init(assay_features* f) {
  f->version = ASSAY_VERSION;
  f->struct_size = (uint32_t)sizeof(*f);
  f->names = NULL;
  f->count = -1;
}

/* Answers {"suites": [...], "features": [...], "conventions": [{"name", "values", "what",
 * "fails"}]}. The first value of a convention is ours; `fails` says whether a run fails in which it
 * differs undeclared. */
ASSAY_JUDGE_API assay_status assay_judge_facts(assay_text** answer);

/* Answers {"suite", "seed", "notes": [...], "cases": [line, ...], "unsupported": [{"case", "why"},
 * ...]}. `cases` is the suite as it is drawn for the features (NULL: all), so none of its cases
 * needs another one. `unsupported` lists the cases of the whole suite that need another feature,
 * and which. ASSAY_INVALID_ARGUMENTS for an unknown suite or feature. */
ASSAY_JUDGE_API assay_status assay_judge_suite(const char* suite, uint64_t seed,
                                               const assay_features* features, assay_text** answer);

/* Answers what a case line says: {"case": its canonical form, "operation", "dtype", "out",
 * "features": [...], "shape": {...}}. */
ASSAY_JUDGE_API assay_status assay_judge_parse(const char* line, assay_text** answer);

/* The inputs of a case, bit for bit those of its line. */
typedef struct assay_case assay_case;

/* Makes the inputs of a case. Answers {"case", "calls": [{"operation", "line", "outputs":
 * [{"name", "dtype", "shape"}]}]}: the calls of a kernel that the case consists of, in their order.
 * `line` holds their numbers and flags, written as in a record. An attention case is one call. A
 * backward case is two: "attention", and "backward", whose inputs `o` and `lse` are to be what the
 * first call gave. A case with a cache has one call "decode" for each chunk of rows. */
ASSAY_JUDGE_API assay_status assay_case_open(const char* line, assay_case** opened,
                                             assay_text** answer);
ASSAY_JUDGE_API void assay_case_close(assay_case* opened); /* NULL is allowed */

/* Gives the inputs of one call. They belong to the case and must not be written to. The answer is
 * empty. */
ASSAY_JUDGE_API assay_status assay_case_inputs(const assay_case* opened, int64_t call,
                                               const assay_named_tensor** tensors, int64_t* count,
                                               assay_text** answer);

/* ---- Verdicts -------------------------------------------------------------------------------- */

/* What follows if every error is inside its bound, but not one that the arithmetic makes: the case
 * fails, its reason says so, or nothing is asked. docs/evidence.md. */
enum { ASSAY_EVIDENCE_FAIL = 0, ASSAY_EVIDENCE_WARN = 1, ASSAY_EVIDENCE_OFF = 2 };

typedef struct assay_judge_options {
  uint32_t version, struct_size;
  const char* name;  /* of what is judged, in results and commands; NULL: "function" */
  int32_t threads;   /* of the judge; 0: all hardware threads */
  int32_t power;     /* 1: compute which faults the case could have shown */
  int32_t pictures;  /* 1: keep what a report draws */
  int32_t relations; /* 1: ask for relations too (assay_judge_function alone) */
  int32_t evidence;  /* ASSAY_EVIDENCE_FAIL, ... */
  int32_t reserved;
  /* How the kernel computes, so that it is held to that arithmetic alone; NULL: the ladder of
   * docs/tolerance.md is tried. Either the name of a rung of the ladder ("fp32 accumulation,
   * weights in f16"), or fields of assay_arithmetic as words FIELD=NUMBER ("weight_bits=16
   * tile=32"), for products those of assay_product_arithmetic ("order=1"); those that are not named
   * have the values of the struct's init function. */
  const char* arithmetic;
  int64_t rows;  /* judge so many rows of each head, drawn by the seed; 0: all. Records alone: a
                  * case line says it itself */
  uint64_t seed; /* of that sample */
  /* What the kernel means where nobody agreed (docs/semantics.md), as
   * "masked-rows:nan,masked-lse:zero"; NULL: it declares nothing */
  const char* conventions;
} assay_judge_options;

static inline void assay_judge_options_init(assay_judge_options* o) {
  o->version = ASSAY_VERSION;
  o->struct_size = (uint32_t)sizeof(*o);
  o->name = NULL;
  o->threads = 1;
  o->power = 1;
  o->pictures = 0;
  o->relations = 0;
  o->evidence = ASSAY_EVIDENCE_FAIL;
  o->reserved = 0;
  o->arithmetic = NULL;
  o->rows = 0;
  o->seed = 1;
  o->conventions = NULL;
}

/* Judges named tensors against a case line. The tensors are the outputs of all calls of the case:
 * o and lse; for a backward case dq, dk, dv and, where the case has them, d_bias and d_sink as
 * well; c for a product. `lse` may be missing; O alone is judged then. For a case with a cache, o
 * and lse have all rows. Answers a result. `options` may be NULL. */
ASSAY_JUDGE_API assay_status assay_judge_tensors(const char* line,
                                                 const assay_named_tensor* tensors, int64_t count,
                                                 const assay_judge_options* options,
                                                 assay_text** answer);

/* One call of a function that is judged. */
typedef struct assay_call {
  const char* operation; /* "attention", "backward", "decode" or "product" */
  const char* line;      /* its numbers and flags, written as in a record */
  const assay_named_tensor *inputs, *outputs;
  int64_t input_count, output_count;
} assay_call;

/* Writes every element of every output. On failure it writes a sentence into the buffer. Returns
 * ASSAY_SUCCESS; ASSAY_UNSUPPORTED if the function does not do such a call, which makes the case
 * unsupported; any other status for a finding, which fails the case. */
typedef assay_status (*assay_function)(void* user, const assay_call* call, char* sentence,
                                       uint64_t sentence_bytes);

/* Judges a function on a case: its inputs are made, every call is made twice, with outputs that
 * hold NaN and then large numbers, everything around the tensors is checked, and the outputs are
 * judged. `no_lse` is 1 for a function whose forward calls give none. A case that needs a feature
 * that is not in `features` (NULL: all) is unsupported. If "attention" is not in it, the O and LSE
 * of backward cases are computed by the kernel of the host. Answers a result. */
ASSAY_JUDGE_API assay_status assay_judge_function(const char* line, assay_function function,
                                                  void* user, int32_t no_lse,
                                                  const assay_features* features,
                                                  const assay_judge_options* options,
                                                  assay_text** answer);

/* Judges named tensors against the line of a record (docs/records.md): its inputs and its outputs.
 * Beside the operations of a file there is `decode`: it takes `k_pages`, `v_pages` [pages, Hkv,
 * size, D], an integer `block_table` [B, pages of a sequence] and `lengths` [B] in the place of k
 * and v, and the rows are the last tokens unless there is an offset. Answers a result. */
ASSAY_JUDGE_API assay_status assay_judge_record(const char* line, const assay_named_tensor* tensors,
                                                int64_t count, const assay_judge_options* options,
                                                assay_text** answer);

/* Judges every record of a file. Answers {"results": [...]}. */
ASSAY_JUDGE_API assay_status assay_judge_file(const char* path, const assay_judge_options* options,
                                              assay_text** answer);

/* Tells what a run of several cases says together. `results` is a JSON array of results, as they
 * were answered. Answers {"shared": what the failing cases have and no passing case has, "causes":
 * [the failures of one cause, the most frequent first]}; docs/results.md has their fields.
 * ASSAY_INVALID_ARGUMENTS for text that is no such array, with the field that is wrong. */
ASSAY_JUDGE_API assay_status assay_judge_summary(const char* results, assay_text** answer);

/* Says whether a case still fails: 1 yes, 0 no, -1 stop looking. */
typedef int32_t (*assay_fails)(void* user, const char* line);

/* Makes a failing case smaller while `fails` holds, for at most so many seconds. No case that it
 * tries needs a feature that is not in `features` (NULL: all). The answer is the line of the
 * smallest case that failed; `line` itself if there is none. */
ASSAY_JUDGE_API assay_status assay_judge_shrink(const char* line, const assay_features* features,
                                                assay_fails fails, void* user, double seconds,
                                                assay_text** answer);

/* Tells the arithmetic of a function from its answers to chosen inputs (docs/identify.md). `line`
 * says what is asked: "attention dtype=bf16", "backward dtype=bf16", or "product dtype=bf16
 * w=int4:64", with `out` and `a` where they are others; inputs and shapes are chosen. `name` is
 * that of the function in the answer; NULL: "function". `no_lse` and `features` are those of
 * assay_judge_function, and every call is made once. Answers {"candidate", "case": the shape,
 * "outcome", "reason", "statements": [{"subject", "answer", "input"}], "not told": [...]}, where
 * the outcome is "told"; "unsupported" for a function that takes none of the shapes; or "fail" for
 * one that did what no kernel may do.
 */
ASSAY_JUDGE_API assay_status assay_judge_identify(const char* line, assay_function function,
                                                  void* user, int32_t no_lse,
                                                  const assay_features* features, const char* name,
                                                  assay_text** answer);

#ifdef __cplusplus
}
#endif

#endif
