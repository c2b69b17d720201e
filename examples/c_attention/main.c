/* Attention whose answer is known in closed form. With K = 0 every visible key has the same weight,
 * so row i of O is the mean of V[0..i] under causality, and its LSE is log(i + 1). The program
 * prints the largest error; its exit status is 0 if that is an error of fp32. */
#include <assay/assay.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { heads = 4, kv_heads = 2, length = 300, dim = 16 };

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, assay_last_error());
  return 1;
}

int main(void) {
  float* q = calloc((size_t)heads * length * dim, sizeof(float));
  float* k = calloc((size_t)kv_heads * length * dim, sizeof(float));
  float* v = calloc((size_t)kv_heads * length * dim, sizeof(float));
  float* o = calloc((size_t)heads * length * dim, sizeof(float));
  float* lse = calloc((size_t)heads * length, sizeof(float));
  if (!q || !k || !v || !o || !lse) return 1;
  for (int e = 0; e < heads * length * dim; ++e) q[e] = (float)(e % 11);
  /* V[g, j, c] = j + c + 1000 g, so the mean over j = 0..i is i / 2 + c + 1000 g. */
  for (int g = 0; g < kv_heads; ++g)
    for (int j = 0; j < length; ++j)
      for (int c = 0; c < dim; ++c) v[(g * length + j) * dim + c] = (float)(j + c + 1000 * g);

  assay_tensor tq, tk, tv, to, tlse;
  assay_tensor_init(&tq, q, ASSAY_FLOAT, 32, 1, heads, length, dim);
  assay_tensor_init(&tk, k, ASSAY_FLOAT, 32, 1, kv_heads, length, dim);
  assay_tensor_init(&tv, v, ASSAY_FLOAT, 32, 1, kv_heads, length, dim);
  assay_tensor_init(&to, o, ASSAY_FLOAT, 32, 1, heads, length, dim);
  assay_tensor_init(&tlse, lse, ASSAY_FLOAT, 32, 1, heads, length, 1);
  assay_attention problem;
  assay_attention_init(&problem);
  problem.q = &tq;
  problem.k = &tk;
  problem.v = &tv;
  problem.flags |= ASSAY_CAUSAL;

  assay_context context;
  if (assay_context_create(NULL, &context)) return failed("context");
  if (assay_sdpa(context, &problem, &to, &tlse, ASSAY_AUTOMATIC, NULL)) return failed("sdpa");
  assay_dispatch_counters counters;
  assay_dispatch_counters_init(&counters);
  if (assay_dispatch_read(context, &counters)) return failed("counters");

  double worst = 0;
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < length; ++i) {
      const double wrong = fabs(lse[h * length + i] - log(i + 1.0));
      if (!(wrong <= worst)) worst = wrong;
      for (int c = 0; c < dim; ++c) {
        const double mean = i / 2.0 + c + 1000.0 * (h / (heads / kv_heads));
        const double relative = fabs(o[(h * length + i) * dim + c] - mean) / (1 + mean);
        if (!(relative <= worst)) worst = relative;
      }
    }
  printf("assay %u: largest error %.2g, dispatched %lld, fallback %lld\n",
         (unsigned)assay_version(), worst, (long long)counters.dispatched,
         (long long)counters.fallback);

  /* A call that is refused says why. */
  problem.flags = 0;
  problem.scale = NAN;
  if (assay_sdpa(context, &problem, &to, &tlse, ASSAY_AUTOMATIC, NULL) != ASSAY_INVALID_ARGUMENTS)
    return failed("a scale that is no number passed");
  printf("refused: %s\n", assay_last_error());
  if (assay_context_destroy(context)) return failed("destroy");
  free(q);
  free(k);
  free(v);
  free(o);
  free(lse);
  return worst <= 1e-5 && counters.dispatched == 1 ? 0 : 1;
}
