/* Small, honest, partial kernels behind kernel.h that read and write caches as they are in other
 * people's programs: codes with f32 scales, K and V in one buffer, large pools. As in
 * partial_kernels.c, a table says what each kind does and by which faults the test breaks it,
 * ASSAY_PARTIAL=KIND and ASSAY_PARTIAL_FAULT=FAULT choose, and with -DLIST this is a program that
 * prints the table. */
#include <assay/kernel.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The table ------------------------------------------------------------------------------- */

enum { plain, of_heads, of_tokens, of_pages, of_all }; /* what an f32 scale belongs to */
enum { apart, together, far };                         /* how K and V lie */
enum { any_heads, own_keys, one_of_keys };             /* how query heads share those of keys */

typedef struct kind {
  const char *name, *suite;
  int scales, place, heads, reads, writes;
  const char* faults;
} kind;

static const kind kinds[] = {
    {"read-f8-f32", "caches", of_heads, apart, any_heads, 1, 0,
     "power-of-two scale-of-first-head scales-exchanged scale-in-16-bits first-group"},
    {"append-f8-f32", "caches", of_heads, apart, any_heads, 0, 1,
     "power-of-two reciprocal infinite-scale truncates scale-in-16-bits first-group"},
    {"cache-f8-token", "caches", of_tokens, apart, any_heads, 1, 1, "first-head power-of-two"},
    {"cache-f8-page", "caches", of_pages, apart, any_heads, 1, 1,
     "writes-scales overflows first-page"},
    {"cache-f8-tensor", "caches", of_all, apart, any_heads, 1, 1, "scales-exchanged overflows"},
    {"pairs-f32", "caches", plain, together, any_heads, 1, 1,
     "dense-pages values-behind-keys page-border"},
    {"distant-f32", "caches", plain, far, any_heads, 1, 1, "offset-of-32-bits page-of-16-bits"},
    {"write-again-f32", "caches", plain, apart, any_heads, 0, 1,
     "rising-slots clears-page open-page-kept"},
    {"own-keys-f32", "caches", plain, apart, own_keys, 1, 0, "diagonal-of-the-longest empty-split"},
    {"one-of-keys-f32", "caches", plain, apart, one_of_keys, 1, 0,
     "diagonal-of-the-longest empty-split"},
    {"newest-f8-f32", "caches", of_heads, apart, any_heads, 1, 1, "newest-unrounded"},
    {"owners-f32", "caches", plain, apart, any_heads, 1, 0, "one-owner"},
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
  X(power_of_two, "power-of-two")                       \
  X(scale_of_first_head, "scale-of-first-head")         \
  X(scales_exchanged, "scales-exchanged")               \
  X(scale_in_16_bits, "scale-in-16-bits")               \
  X(first_group, "first-group")                         \
  X(reciprocal, "reciprocal")                           \
  X(infinite_scale, "infinite-scale")                   \
  X(truncates, "truncates")                             \
  X(first_head, "first-head")                           \
  X(writes_scales, "writes-scales")                     \
  X(overflows, "overflows")                             \
  X(first_page, "first-page")                           \
  X(dense_pages, "dense-pages")                         \
  X(values_behind_keys, "values-behind-keys")           \
  X(page_border, "page-border")                         \
  X(offset_of_32_bits, "offset-of-32-bits")             \
  X(page_of_16_bits, "page-of-16-bits")                 \
  X(rising_slots, "rising-slots")                       \
  X(clears_page, "clears-page")                         \
  X(open_page_kept, "open-page-kept")                   \
  X(diagonal_of_the_longest, "diagonal-of-the-longest") \
  X(empty_split, "empty-split")                         \
  X(newest_unrounded, "newest-unrounded")               \
  X(one_owner, "one-owner")

#define NUMBER(fault, name) fault,
#define NAME(fault, name) name,
enum { FAULTS(NUMBER) unbroken };
static const char* const fault_names[] = {FAULTS(NAME)};

static const kind* now;
static int broken = unbroken;
static int is(int fault) { return broken == fault; }

/* ---- Numbers --------------------------------------------------------------------------------- */

static int64_t at(const assay_tensor* t, int64_t b, int64_t h, int64_t i, int64_t d) {
  return t->offset + b * t->strides[0] + h * t->strides[1] + i * t->strides[2] + d * t->strides[3];
}

static float e4m3(int code) {
  const int e = code >> 3 & 15, m = code & 7;
  const float x = e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
  if ((code & 127) == 127) return NAN;
  return (code & 128) ? -x : x;
}

/* The code that is nearest to x, by search among all of them. */
static int nearest(float x) {
  const int sign = signbit(x) ? 128 : 0;
  const float size = fabsf(x);
  int low = 0, high = 0x7E;
  double below, above;
  if (x != x || (is(overflows) && size > 464)) return 0x7F;
  if (size >= 448) return sign | high;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    *(e4m3(middle) <= size ? &low : &high) = middle;
  }
  below = (double)size - (double)e4m3(low);
  above = (double)e4m3(high) - (double)size;
  if (is(truncates)) return sign | low;
  if (below != above) return sign | (below < above ? low : high);
  return sign | (low % 2 ? high : low);
}

/* A scale as it is stored, or as it is read. */
static float kept(float scale) {
  uint32_t word;
  if (is(power_of_two)) return exp2f(ceilf(log2f(scale)));
  if (!is(scale_in_16_bits)) return scale;
  memcpy(&word, &scale, 4);
  word = (word + 0x7FFF + (word >> 16 & 1)) & 0xFFFF0000;
  memcpy(&scale, &word, 4);
  return scale;
}

/* ---- Where things lie ------------------------------------------------------------------------ */

static int64_t in_pages(const assay_pages* p, const assay_tensor* t, int64_t page, int64_t g,
                        int64_t slot, int64_t d) {
  int64_t place;
  if (is(page_of_16_bits)) page &= 0xFFFF;
  if (is(page_border) && slot == p->page_size - 1 && slot > 0) --slot;
  place = at(t, page, g, slot, d);
  if (is(offset_of_32_bits)) return (int64_t)(uint32_t)place;
  if (is(dense_pages))
    return place - page * t->strides[0] + page * t->shape[1] * t->shape[2] * t->shape[3];
  if (is(values_behind_keys) && t == p->v) return place - t->offset + t->shape[3];
  return place;
}

static float* scale_at(const assay_pages* p, const assay_tensor* scales, int64_t page, int64_t g,
                       int64_t slot, int64_t d) {
  const int64_t group = p->group_size > 0 && !is(first_group) ? p->group_size : INT64_MAX;
  if (is(scales_exchanged)) scales = scales == p->k_scales ? p->v_scales : p->k_scales;
  if (is(scale_of_first_head)) g = 0;
  if (is(first_page)) page = 0;
  return (float*)scales->data + at(scales, page, g, slot, d / group);
}

/* ---- What is supported ----------------------------------------------------------------------- */

static int is_f32(const assay_tensor* t) {
  return t->dtype.code == ASSAY_FLOAT && t->dtype.bits == 32;
}

static int has_its_scales(const assay_pages* p) {
  const assay_tensor* s = p->k_scales;
  if (now->scales == plain) return is_f32(p->k);
  if (p->k->dtype.code != ASSAY_FLOAT8_E4M3FN || !is_f32(s)) return 0;
  if (now->scales == of_all) return s->strides[2] == 0 && s->strides[0] == 0;
  if (now->scales == of_pages) return s->strides[2] == 0 && s->strides[0] != 0;
  return s->strides[2] != 0 && (s->strides[1] == 0) == (now->scales == of_tokens);
}

/* Pages in one buffer have K and V side by side, so that a page takes twice its own elements. A
 * large pool has more pages than 16 bits count. */
static int lie_so(const assay_pages* p) {
  const int64_t own = p->k->shape[1] * p->k->shape[2] * p->k->shape[3];
  if (now->place == together) return p->k->strides[0] == 2 * own && p->v->strides[0] == 2 * own;
  if (now->place == far) return p->k->shape[0] > 65536;
  return p->k->strides[3] == 1;
}

static assay_status answer(const assay_pages* p, const char** reason) {
  if (!has_its_scales(p)) *reason = "other elements or scales of a cache";
  else if (!lie_so(p)) *reason = "pages that lie otherwise";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

static assay_status supports_cache(const assay_attention* p, const assay_pages* pages,
                                   const assay_dtype* output, const char** reason) {
  (void)p, (void)output;
  return answer(pages, reason);
}

static assay_status supports_append(const assay_tensor* k, const assay_tensor* v,
                                    const assay_pages* pages, const char** reason) {
  (void)v;
  if (is_f32(k)) return answer(pages, reason);
  *reason = "another dtype";
  return ASSAY_UNSUPPORTED;
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
  else if (now->heads == own_keys && p->q->shape[1] != p->k->shape[1]) *reason = "shared heads";
  else if (now->heads == one_of_keys && p->k->shape[1] != 1) *reason = "several heads of keys";
  else return ASSAY_SUCCESS;
  return ASSAY_UNSUPPORTED;
}

/* ---- The writer ------------------------------------------------------------------------------ */

/* The largest finite magnitude of the columns [first, last) of a token and head. */
static float largest(const assay_tensor* from, int64_t b, int64_t g, int64_t i, int64_t first,
                     int64_t last) {
  float most = 0;
  for (; first < last; ++first) {
    const float x = fabsf(((const float*)from->data)[at(from, b, g, i, first)]);
    if (x > most && (isfinite(x) || is(infinite_scale))) most = x;
  }
  return most;
}

static float scale_for(const assay_tensor* from, int64_t b, int64_t g, int64_t i, int64_t first,
                       int64_t last) {
  float most = 0;
  if (now->scales != of_tokens) most = largest(from, b, g, i, first, last);
  else
    for (g = 0; g < (is(first_head) ? 1 : from->shape[1]); ++g)
      most = fmaxf(most, largest(from, b, g, i, first, last));
  return kept(fmaxf(most / 448, 0x1p-126f));
}

static void write_codes(const assay_tensor* from, const assay_pages* p, const assay_tensor* to,
                        const assay_tensor* scales, int64_t b, int64_t g, int64_t i, int64_t page,
                        int64_t slot) {
  const int64_t columns = to->shape[3];
  const int64_t group = p->group_size > 0 ? p->group_size : columns;
  int64_t first, d;
  for (first = 0; first < columns; first += group) {
    const int64_t last = first + group < columns ? first + group : columns;
    float* scale = scale_at(p, scales, page, g, slot, first);
    if (now->scales == of_heads || now->scales == of_tokens || is(writes_scales))
      *scale = scale_for(from, b, g, i, first, last);
    for (d = first; d < last; ++d) {
      const float x = ((const float*)from->data)[at(from, b, g, i, d)];
      int code = nearest(is(reciprocal) ? x * (1 / *scale) : x / *scale);
      /* Nothing that is read back may be beyond fp32. */
      while (isfinite(x) && fabs((double)e4m3(code) * (double)*scale) > 3.4028234663852886e38)
        --code;
      ((uint8_t*)to->data)[in_pages(p, to, page, g, slot, d)] = (uint8_t)code;
    }
  }
}

/* K of the last token that append wrote for a sequence, as it was before it was rounded: a kernel
 * that decodes at once may have it in its registers. */
enum { most_newest = 8192 };
static struct newest {
  int64_t slot;
  float k[most_newest];
} newest[8];
static int64_t last_token; /* of the sequence of which a row is computed */

static void keep_newest(const assay_tensor* k, int64_t b, int64_t i, int64_t s) {
  const int64_t columns = k->shape[3];
  int64_t g, d;
  if (!is(newest_unrounded) || b >= 8 || k->shape[1] * columns > most_newest) return;
  newest[b].slot = s + 1;
  for (g = 0; g < k->shape[1]; ++g)
    for (d = 0; d < columns; ++d)
      newest[b].k[g * columns + d] = ((const float*)k->data)[at(k, b, g, i, d)];
}

static void write_numbers(const assay_tensor* from, const assay_pages* p, const assay_tensor* to,
                          int64_t b, int64_t g, int64_t i, int64_t page, int64_t slot) {
  float* data = (float*)to->data;
  int64_t d, other;
  for (d = 0; d < to->shape[3]; ++d) {
    float* place = data + in_pages(p, to, page, g, slot, d);
    *place = ((const float*)from->data)[at(from, b, g, i, d)];
    for (other = slot + 1; is(clears_page) && slot == 0 && other < p->page_size; ++other)
      data[in_pages(p, to, page, g, other, d)] = 0;
  }
}

static assay_status append(const assay_tensor* k, const assay_tensor* v, const int64_t* slots,
                           const assay_pages* p, const assay_run* run) {
  static int64_t open_page[64];
  const int64_t count = k->shape[2], size = p->page_size;
  int64_t b, g, i, last = -1;
  (void)run;
  for (b = 0; b < k->shape[0]; ++b)
    for (i = 0, last = -1; i < count; ++i) {
      const int64_t s = slots[b * count + i];
      int64_t page = s / size;
      if (s < 0 || (is(rising_slots) && s < last && s / size == last / size)) continue;
      last = s;
      if (is(open_page_kept) && b < 64 && s % size > 0 && open_page[b] > 0) page = open_page[b] - 1;
      if (b < 64 && s % size == 0) open_page[b] = page + 1;
      for (g = 0; g < k->shape[1]; ++g)
        if (now->scales == plain) {
          write_numbers(k, p, p->k, b, g, i, page, s % size);
          write_numbers(v, p, p->v, b, g, i, page, s % size);
        } else {
          write_codes(k, p, p->k, p->k_scales, b, g, i, page, s % size);
          write_codes(v, p, p->v, p->v_scales, b, g, i, page, s % size);
        }
      keep_newest(k, b, i, s);
    }
  return ASSAY_SUCCESS;
}

/* ---- The reader ------------------------------------------------------------------------------ */

static float cached(const assay_pages* p, const assay_tensor* t, const assay_tensor* scales,
                    int64_t b, int64_t g, int64_t j, int64_t d) {
  const int64_t page = p->block_table[b * p->pages_per_sequence + j / p->page_size];
  const int64_t slot = j % p->page_size, place = in_pages(p, t, page, g, slot, d);
  float scale;
  if (now->scales == plain) return ((const float*)t->data)[place];
  scale = kept(*scale_at(p, scales, page, g, slot, d));
  if (is(newest_unrounded) && t == p->k && b < 8 && j == last_token &&
      newest[b].slot == page * p->page_size + slot + 1) {
    const float x = newest[b].k[g * t->shape[3] + d];
    if (nearest(x / scale) == ((const uint8_t*)t->data)[place]) return x;
  }
  return e4m3(((const uint8_t*)t->data)[place]) * scale;
}

/* Whether a page belongs to an earlier sequence, for a kernel that finds the sequence of a page. */
static int is_owned_before(const assay_pages* p, int64_t b, int64_t j) {
  const int32_t page = p->block_table[b * p->pages_per_sequence + j / p->page_size];
  int64_t n;
  if (!is(one_owner)) return 0;
  for (n = 0; n < b * p->pages_per_sequence; ++n)
    if (p->block_table[n] == page) return 1;
  return 0;
}

/* Two passes over the keys of a row: the scores, and the values. */
static void decode_row(const assay_attention* p, const assay_pages* c, const assay_tensor* o,
                       const assay_tensor* lse, int64_t b, int64_t h, int64_t i, float* score) {
  const int64_t g = h / (p->q->shape[1] / p->k->shape[1]);
  const int64_t begin = p->key_start_count ? p->key_starts[b] : 0;
  const int64_t longest = p->k->shape[2], rows = p->q->shape[2];
  const int64_t first = is(diagonal_of_the_longest) ? longest - rows : p->offset[b];
  int64_t end = p->key_lengths[b], j, d;
  float max = -INFINITY, sum = 0;
  if ((p->flags & ASSAY_CAUSAL) && end > first + i + 1) end = first + i + 1;
  if (is(newest_unrounded)) last_token = p->key_lengths[b] - 1;
  for (j = begin; j < end; ++j) {
    score[j] = 0;
    for (d = 0; d < p->q->shape[3]; ++d)
      score[j] += ((const float*)p->q->data)[at(p->q, b, h, i, d)] *
                  cached(c, c->k, c->k_scales, b, g, j, d);
    score[j] *= p->scale;
    if (is_owned_before(c, b, j)) score[j] = -INFINITY;
    if (score[j] > max || score[j] != score[j]) max = score[j];
  }
  for (j = begin; j < end; ++j) {
    score[j] = score[j] == -INFINITY ? 0 : expf(score[j] - max);
    sum += score[j];
  }
  /* A split of 32 keys behind the end weighs as one key with a score of 0. */
  if (is(empty_split) && begin < end && end + 32 <= longest) sum += expf(-max);
  for (d = 0; d < o->shape[3]; ++d) {
    float value = 0;
    for (j = begin; j < end; ++j) value += score[j] * cached(c, c->v, c->v_scales, b, g, j, d);
    ((float*)o->data)[at(o, b, h, i, d)] = sum == 0 ? 0 : value / sum;
  }
  ((float*)lse->data)[at(lse, b, h, i, 0)] = begin < end ? max + logf(sum) : -INFINITY;
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
  assay_kernel_init(&table, now->name);
  if (now->reads) table.decode = decode;
  if (now->writes) table.append = append;
  table.supports = supports;
  table.supports_cache = supports_cache;
  table.supports_append = supports_append;
  return &table;
}

#endif
