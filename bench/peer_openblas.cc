// Attention forward and backward, composed from sgemm, and products of decoded weights, behind
// kernel.h.
#include "bench/mxfp4_call.h"

namespace assay::bench {
namespace {

assay_status supports(std::int32_t, const assay_attention* p, const assay_dtype* output, const char** reason) { return answer(why_not_plain(*p, *output), reason); }
assay_status supports_product(const assay_tensor* a, const assay_low_bit* w, const assay_dtype* output, const char** reason) { return answer(why_not_mxfp4(*a, *w, *output), reason); }

assay_status backward(const assay_attention* p, const assay_tensor* o, const assay_tensor* lse, const assay_tensor* d_o, const assay_gradients* g, const assay_run* run) {
  if (g->d_bias || g->d_sink) return ASSAY_UNSUPPORTED;
  const Floats q(*p->q), k(*p->k), v(*p->v), out(*o), normaliser(*lse), gradient(*d_o), dq(*g->dq), dk(*g->dk), dv(*g->dv);
  prepared<BackwardPeer>(plain_of(*p), run->threads, make_openblas_backward)
      .run(q.data(), k.data(), v.data(), out.data(), normaliser.data(), gradient.data(), dq.data(), dk.data(), dv.data());
  for (const Floats* f : {&dq, &dk, &dv}) f->give_back();
  return ASSAY_SUCCESS;
}

}  // namespace
}  // namespace assay::bench

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  using namespace assay::bench;
  static assay_kernel table;
  if (version < ASSAY_VERSION) return nullptr;
  assay_kernel_init(&table, "sgemm of OpenBLAS");
  table.supports = supports;
  table.supports_product = supports_product;
  table.forward = plain_forward<make_openblas_attention>;
  table.backward = backward;
  table.product = mxfp4_product<make_openblas_product>;
  return &table;
}
