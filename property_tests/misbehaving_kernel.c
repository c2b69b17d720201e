/* A kernel library that does one thing wrong: -DMISTAKE=name. Without one (none) it is right for
 * the problems of library_test.cc: one batch and head, contiguous fp32, no mask. */
#define _GNU_SOURCE
#include <assay/kernel.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
  none,
  crashes,
  leaves,
  aborts,
  hangs,
  writes_before,
  writes_behind,
  writes_far_away,
  writes_an_input,
  breaks_the_heap,
  writes_nothing,
  refuses,
  fails,
  cannot_compute_so,
  cannot_multiply_so,
  tells_no_arithmetic,
  reads_on,
  crashes_when_asked,
  has_no_table,
  has_another_version,
  has_another_size,
  has_no_function,
  writes_behind_its_workspace,
  tells_another_version,
  tells_an_unknown_stage,
  tells_too_much,
  tells_of_another_head,
  tells_of_another_key,
  tells_no_column,
  tells_a_gradient,
  forges,
  leaves_a_child_and_crashes,
  leaves_daemons,
  closes_its_socket,
  shrinks_the_memory,
  has_no_memory,
  is_killed,
  hangs_at_load,
  hangs_with_causality,
  crashes_at_load,
  counts_its_loads,
  is_written_to,
  differs_by_chance,
  computes_from_its_output,
  is_wrong_after_more_rows,
  is_wrong_from_call_51,
  is_wrong_in_its_first_call,
  is_an_ulp_off_in_its_first_call,
  keeps_values_by_address,
  uses_a_static_buffer,
  says_that_it_uses_a_static_buffer,
  leaks,
  leaks_descriptors,
  writes_before_it_refuses,
  reads_before,
  reads_null,
  loads_unaligned,
  overflows_its_stack,
  sends_itself_a_signal,
  forges_a_note,
  reads_beyond_its_table,
  reads_beyond_its_codes,
  has_variants,
  sums_in_another_order,
  refuses_late,
  does_one_key,
  declares_too_much,
  flushes_subnormals
};

/* Writes its process id into the folder that the test names, so that the test can look for it. */
static void leave_id(void) {
  char path[512];
  const char* folder = getenv("ASSAY_TEST_IDS");
  if (!folder) return;
  snprintf(path, sizeof path, "%s/%d", folder, (int)getpid());
  close(open(path, O_CREAT | O_WRONLY, 0600));
}

static void spin(void) {
  volatile int forever = 1;
  while (forever) {
  }
}

/* Starts a process that leaves its id and spins, and waits until it has left it. A daemon is of its
 * own session, and its parent has ended. */
static void start_process(int daemon) {
  int ends[2];
  char byte = 0;
  if (pipe(ends) != 0) return;
  if (fork() == 0) {
    close(ends[0]);
    if (daemon) {
      setsid();
      if (fork() != 0) _exit(0);
    }
    leave_id();
    (void)!write(ends[1], &byte, 1);
    close(ends[1]);
    spin();
  }
  close(ends[1]);
  (void)!read(ends[0], &byte, 1);
  close(ends[0]);
}

/* The parent of a process, or 0 if the process is none of Assay's. */
static int parent_of(int process) {
  char path[64], text[512];
  const char *name, *name_end;
  int parent = 0;
  FILE* file;
  size_t n;
  snprintf(path, sizeof path, "/proc/%d/stat", process);
  file = fopen(path, "r");
  if (!file) return 0;
  n = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[n] = 0;
  name = strchr(text, '(');
  name_end = strrchr(text, ')');
  if (!name || !name_end || (strncmp(name, "(assay)", 7) != 0 && strncmp(name, "(exe)", 5) != 0))
    return 0;
  sscanf(name_end + 1, " %*c %d", &parent);
  return parent;
}

static void say(const char* what, int process, int number) {
  char text[128];
  const int n = snprintf(text, sizeof text, "forged: %s of %d, %d\n", what, process, number);
  (void)!write(2, text, (size_t)n);
}

/* Looks for a way into every process above this one and into its own streams. Writes the text that
 * the test has prepared, a result that has passed, into whatever it can open. */
static void forge(void) {
  static char text[65536];
  const char* file = getenv("ASSAY_TEST_FORGERY");
  const int from = file ? open(file, O_RDONLY) : -1;
  const ssize_t n = from >= 0 ? read(from, text, sizeof text) : 0;
  int process, number, own = getpid();
  char path[64];
  for (process = own; parent_of(process) > 1; process = parent_of(process))
    for (number = 0; number < 64; ++number) {
      struct stat facts;
      int to;
      if (process == own && number >= 1 && number < 5) continue; /* what it was given to use */
      if (process != own && number < 3) continue; /* perhaps the streams of the test */
      snprintf(path, sizeof path, "/proc/%d/fd/%d", process, number);
      to = open(path, O_WRONLY | O_NONBLOCK);
      if (to < 0) continue;
      if (fstat(to, &facts) == 0 && S_ISFIFO(facts.st_mode)) {
        say("a descriptor", process, number);
        if (n > 0) (void)!write(to, text, (size_t)n);
      }
      close(to);
    }
  for (process = getppid(); parent_of(process) > 1; process = parent_of(process)) {
    char byte;
    struct iovec here = {&byte, 1}, there = {(void*)(uintptr_t)0x1000, 1};
    /* EFAULT: it could look into the process, and nothing is at this address */
    if (process_vm_readv(process, &here, 1, &there, 1, 0) == 1 || errno == EFAULT)
      say("the memory", process, 0);
    if (ptrace(PTRACE_SEIZE, process, NULL, NULL) == 0) say("the control", process, 0);
  }
  close(from);
}

/* What code does that gcc links into libraries with -ffast-math. */
__attribute__((constructor)) static void flush(void) {
#ifdef __SSE__
  if (MISTAKE == flushes_subnormals) __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#endif
}

#if defined(IN_CONSTRUCTOR)
__attribute__((constructor)) static void hang(void) {
  leave_id();
  spin();
}
#endif

static float* data(const assay_tensor* t) { return (float*)t->data + t->offset; }

static assay_status supports(int32_t operation, const assay_attention* p, const assay_dtype* output,
                             const char** reason) {
  (void)operation, (void)p, (void)output;
  if (MISTAKE == does_one_key && (p->k->shape[1] != 1 || p->k->shape[2] != 1)) {
    *reason = "more than one key";
    return ASSAY_UNSUPPORTED;
  }
  if (MISTAKE == crashes_when_asked) *(volatile int*)8 = 1;
  return ASSAY_SUCCESS;
}

static assay_status arithmetic(const assay_attention* p, assay_arithmetic* a) {
  (void)p;
  a->division_roundings = 1;
  if (MISTAKE == sums_in_another_order) a->ordered = 1, a->tile = 128;
  if (MISTAKE == cannot_compute_so) a->exp_ulp = -1;
  return ASSAY_SUCCESS;
}

static uint64_t workspace(int32_t operation, const assay_attention* p) {
  (void)operation;
  return (uint64_t)p->k->shape[2] * sizeof(float);
}

/* The variants of -DVARIANTS: each has a largest number of rows, 2 rounds weights to bf16, and 3
 * needs more workspace. */
static const int64_t most_rows_of[] = {12, 8, 16, 16};
static const char* const limits[] = {"more than 12 rows", "more than 8 rows", "more than 16 rows",
                                     "more than 16 rows"};

static assay_status supports_variant(int32_t variant, int32_t operation, const assay_attention* p,
                                     const assay_pages* pages, const assay_dtype* output,
                                     const char** reason) {
  (void)operation, (void)pages, (void)output;
  if (p->q->shape[2] <= most_rows_of[variant]) return ASSAY_SUCCESS;
  *reason = limits[variant];
  return ASSAY_UNSUPPORTED;
}

static assay_status supports_product_variant(int32_t variant, const assay_tensor* a,
                                             const assay_low_bit* a_low, const assay_low_bit* w,
                                             const assay_dtype* output, const char** reason) {
  (void)a_low, (void)w, (void)output;
  if (a->shape[2] <= most_rows_of[variant]) return ASSAY_SUCCESS;
  *reason = limits[variant];
  return ASSAY_UNSUPPORTED;
}

static assay_status arithmetic_variant(int32_t variant, const assay_attention* p,
                                       assay_arithmetic* a) {
  if (variant == 2 && MISTAKE != declares_too_much) a->weight_bits = -16;
  return arithmetic(p, a);
}

static uint64_t workspace_variant(int32_t variant, int32_t operation, const assay_attention* p) {
  return workspace(operation, p) * (variant == 3 ? 3 : 1);
}

static float rounded_to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* Where the memory of another call would be. A note with this content is what a crash leaves. */
static void forge_note(void) {
  const int32_t note[] = {2, 2, 0, 0, 1, 0};
  (void)!pwrite(4, note, sizeof note, 32768);
}

static void fill_the_stack(int64_t bytes) {
  volatile char block[4096];
  block[0] = (char)bytes;
  if (bytes > 0) fill_the_stack(bytes - 4096);
  block[1] = block[0];
}

static void tell(const assay_run* run, const float* scores, int64_t keys) {
  assay_stage made;
  if (!run->probe) return;
  assay_stage_init(&made, MISTAKE == tells_an_unknown_stage ? 77 : ASSAY_STAGE_SCORES, scores);
  made.columns = made.keys = keys;
  if (MISTAKE == tells_another_version) made.version = 99;
  if (MISTAKE == tells_too_much) made.rows = made.columns = (int64_t)1 << 40;
  if (MISTAKE == tells_of_another_head) made.head = 9;
  if (MISTAKE == tells_of_another_key) made.key0 = -5;
  if (MISTAKE == tells_no_column) made.stage = ASSAY_STAGE_ROW_MAX, made.columns = 0;
  if (MISTAKE == tells_a_gradient) made.stage = ASSAY_STAGE_SCORE_GRADIENTS;
  run->probe(run->probe_context, &made);
}

/* A copy of what was at this address when it was seen first. */
static const float* kept(const float* from, int64_t count) {
  static const float* seen;
  static float copy[256];
  if (seen != from) memcpy(copy, from, (size_t)count * sizeof(float));
  return seen = from, copy;
}

static void change(float* x, int wrong) { *x += wrong ? 1 : 0; }

/* What depends on the calls before. */
static void misremember(float* to, int64_t rows) {
  static int calls;
  static int64_t most_rows;
  ++calls;
  if (MISTAKE == is_wrong_after_more_rows) change(to, rows < most_rows);
  if (MISTAKE == is_wrong_from_call_51) change(to, calls >= 51);
  if (MISTAKE == is_wrong_in_its_first_call) change(to, calls == 1);
  if (MISTAKE == is_an_ulp_off_in_its_first_call && calls == 1) *to = nextafterf(*to, INFINITY);
  if (MISTAKE == leaks) *(volatile char*)malloc(24) = 1;
  if (MISTAKE == leaks_descriptors) (void)!open("/dev/null", O_RDONLY);
  if (rows > most_rows) most_rows = rows;
}

static assay_status forward(const assay_attention* p, const assay_tensor* o,
                            const assay_tensor* lse, const assay_run* run) {
  const int64_t rows = p->q->shape[2], keys = p->k->shape[2], dim = p->q->shape[3],
                value_dim = p->v->shape[3], all = rows * value_dim;
  const float *q = data(p->q), *k = data(p->k), *v = data(p->v);
  float *to = data(o), *score = (float*)run->workspace;
  int64_t i, j, c;
  if (MISTAKE == crashes) *(volatile int*)8 = 1;
  if (MISTAKE == leaves) exit(7);
  if (MISTAKE == forges_a_note) {
    forge_note();
    if (rows > 7) exit(7);
  }
  if (MISTAKE == reads_before) to[0] = k[-1000];
  if (MISTAKE == reads_null) to[0] = *(volatile float*)data(p->q) + *(volatile float*)p->bias;
  if (MISTAKE == overflows_its_stack) fill_the_stack((int64_t)1 << 30);
  if (MISTAKE == sends_itself_a_signal) raise(SIGSEGV);
#if defined(__x86_64__)
  if (MISTAKE == loads_unaligned) __asm__ volatile("movaps 4(%0), %%xmm0" : : "r"(q) : "xmm0");
#endif
#ifdef VARIANTS
  if (MISTAKE == refuses_late && run->variant == 1) return ASSAY_UNSUPPORTED;
  if (rows > most_rows_of[run->variant]) return ASSAY_EXECUTION_FAILED;
  if (run->workspace_bytes < workspace_variant(run->variant, ASSAY_FORWARD, p))
    return ASSAY_EXECUTION_FAILED;
#endif
  if (MISTAKE == aborts) abort();
  if (MISTAKE == hangs) leave_id(), spin();
  if (MISTAKE == hangs_with_causality && (p->flags & ASSAY_CAUSAL)) spin();
  if (MISTAKE == forges) {
    forge();
    return ASSAY_SUCCESS; /* without an answer */
  }
  if (MISTAKE == leaves_daemons) {
    start_process(1);
    leave_id();
    spin();
  }
  if (MISTAKE == leaves_a_child_and_crashes) {
    start_process(0);
    *(volatile int*)8 = 1;
  }
  if (MISTAKE == closes_its_socket) {
    close(3);
    spin();
  }
  if (MISTAKE == shrinks_the_memory) (void)!ftruncate(4, 0);
  if (MISTAKE == has_no_memory) return ASSAY_MEMORY_ALLOCATION_FAILED;
  if (MISTAKE == is_killed) kill(getpid(), SIGKILL);
  if (MISTAKE == writes_nothing) return ASSAY_SUCCESS;
  if (MISTAKE == refuses) return ASSAY_UNSUPPORTED;
  if (MISTAKE == fails) return ASSAY_EXECUTION_FAILED;
  if (MISTAKE == writes_before_it_refuses && p->k->shape[3] != dim) {
    to[0] = 0;
    return ASSAY_INVALID_ARGUMENTS;
  }
  if (MISTAKE == keeps_values_by_address) v = kept(v, keys * value_dim);
  if (MISTAKE == uses_a_static_buffer || MISTAKE == says_that_it_uses_a_static_buffer) {
    static float buffer[256];
    score = buffer;
  }
  for (i = 0; i < rows; ++i) {
    float max = -INFINITY, sum = 0;
    for (j = 0; j < keys; ++j) {
      float dot = 0;
      for (c = 0; c < dim; ++c) dot += q[i * dim + c] * k[j * dim + c];
      score[j] = dot * p->scale;
      if (score[j] > max) max = score[j];
    }
    if (i == 0) tell(run, score, keys);
    /* A thread that only yields may be alone on a busy machine all the time. */
    if (MISTAKE == uses_a_static_buffer && i == 0) usleep(1000);
    for (j = 0; j < keys; ++j) sum += score[j] = expf(score[j] - max);
    for (j = 0; run->variant == 2 && j < keys; ++j) score[j] = rounded_to_bf16(score[j]);
    for (c = 0; c < value_dim; ++c) {
      float value = 0;
      for (j = 0; j < keys; ++j) value += score[j] * v[j * value_dim + c];
      if (MISTAKE == computes_from_its_output) value += 0 * to[i * value_dim + c];
      to[i * value_dim + c] = value / sum;
    }
    data(lse)[i] = max + logf(sum);
  }
  misremember(to, rows);
  if (MISTAKE == differs_by_chance) { /* as another order of additions would */
    static int calls;
    if (++calls % 3 == 0) to[0] = nextafterf(to[0], INFINITY);
  }
  if (MISTAKE == is_written_to) {
    const int file = open(getenv("ASSAY_TEST_LIBRARY"), O_WRONLY | O_APPEND);
    (void)!write(file, "", 1);
    close(file);
  }
  if (MISTAKE == writes_before) to[-1] = 1;
  if (MISTAKE == writes_behind) to[all] = 1;
  if (MISTAKE == writes_far_away) to[all + 100000] = 1;
  if (MISTAKE == writes_an_input) ((float*)p->q->data)[0] = 1;
  if (MISTAKE == writes_behind_its_workspace) score[keys] = 1;
  if (MISTAKE == reads_on) to[0] += 0 * v[keys * value_dim + 100];
  if (MISTAKE == breaks_the_heap) {
    volatile char* block = (volatile char*)malloc(24);
    for (i = 0; i < 64; ++i) block[i] = 1;
    free((void*)block);
  }
  return ASSAY_SUCCESS;
}

/* Writes zeros, and says that it does so for MXFP4 alone. */
static assay_status supports_product(const assay_tensor* a, const assay_low_bit* w,
                                     const assay_dtype* output, const char** reason) {
  (void)a, (void)output;
  if (w->format == ASSAY_MXFP4 && MISTAKE != does_one_key) return ASSAY_SUCCESS;
  *reason = "another format than mxfp4";
  return ASSAY_UNSUPPORTED;
}

static assay_status product(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                            const assay_run* run) {
  int64_t e;
  (void)a, (void)run;
  if (MISTAKE == reads_beyond_its_codes)
    (void)((const volatile char*)w->codes)[(w->k * w->n + 1) / 2 + 200];
  for (e = 0; e < c->shape[2] * c->shape[3]; ++e) data(c)[e] = 0;
  return ASSAY_SUCCESS;
}

static assay_status product_arithmetic(int32_t variant, const assay_tensor* a,
                                       const assay_low_bit* a_low, const assay_low_bit* w,
                                       const assay_dtype* output, assay_product_arithmetic* sums) {
  (void)variant, (void)a, (void)a_low, (void)w, (void)output;
  sums->order = ASSAY_SUMS_BY_GROUP_IN_ORDER;
  if (MISTAKE == cannot_multiply_so) sums->block = 16;
  return MISTAKE == tells_no_arithmetic ? ASSAY_EXECUTION_FAILED : ASSAY_SUCCESS;
}

static assay_status decode(const assay_attention* p, const assay_pages* pages,
                           const assay_tensor* o, const assay_tensor* lse, const assay_run* run) {
  (void)o, (void)lse, (void)run;
  (void)((const volatile int32_t*)
             pages->block_table)[p->q->shape[0] * pages->pages_per_sequence + 100];
  return ASSAY_SUCCESS;
}

#ifndef NO_ENTRY
const assay_kernel* assay_kernel_entry(uint32_t version) {
  static assay_kernel table;
  (void)version;
  if (MISTAKE == hangs_at_load) leave_id(), spin();
  if (MISTAKE == counts_its_loads) leave_id();
  if (MISTAKE == crashes_at_load) *(volatile int*)8 = 1;
  assay_kernel_init(&table, "a misbehaving kernel");
  table.supports = supports;
  table.arithmetic = arithmetic;
  table.workspace = workspace;
  table.forward = MISTAKE == has_no_function ? NULL : forward;
  table.supports_product = supports_product;
  table.product = MISTAKE == has_no_function ? NULL : product;
  table.product_arithmetic = product_arithmetic;
  if (MISTAKE == reads_beyond_its_table) table.decode = decode;
#ifdef VARIANTS
  table.variant_count = 4;
  if (MISTAKE != refuses_late) {
    table.supports_variant = supports_variant;
    table.supports_product_variant = supports_product_variant;
  }
  table.arithmetic_variant = arithmetic_variant;
  table.workspace_variant = workspace_variant;
#else
  (void)supports_variant, (void)supports_product_variant, (void)arithmetic_variant,
      (void)workspace_variant;
#endif
#ifdef OLD_TABLE
  table.struct_size = offsetof(assay_kernel, supports_variant);
#endif
#ifdef TELLS
  table.probes = 1;
#endif
#ifdef NO_D_SINK
  table.no_d_sink = NO_D_SINK;
#endif
  /* What the second one keeps would change under two threads, and show there first. */
  table.not_reentrant =
      MISTAKE == says_that_it_uses_a_static_buffer || MISTAKE == keeps_values_by_address;
  if (MISTAKE == has_another_version) table.version = 99;
  if (MISTAKE == has_another_size) table.struct_size = 8;
  return MISTAKE == has_no_table ? NULL : &table;
}
#else
void keep_them(void);
void keep_them(void) {
  (void)supports, (void)arithmetic, (void)workspace, (void)forward, (void)tell,
      (void)supports_product, (void)product, (void)decode, (void)supports_variant,
      (void)supports_product_variant, (void)arithmetic_variant, (void)workspace_variant,
      (void)product_arithmetic;
}
#endif
