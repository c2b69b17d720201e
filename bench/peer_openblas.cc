// Attention forward and backward, composed from sgemm, and products of decoded weights, behind
// kernel.h.
#include "bench/mxfp4_call.h"

namespace assay::bench {
namespace {

assay_status backward(const assay_attention* p, const assay_tensor* o, const assay_tensor* lse,
                      const assay_tensor* d_o, const assay_gradients* g, const assay_run* run) {
  if (g->d_bias || g->d_sink) return ASSAY_UNSUPPORTED;
  const Floats q(*p->q), k(*p->k), v(*p->v), out(*o), normaliser(*lse), gradient(*d_o), dq(*g->dq),
      dk(*g->dk), dv(*g->dv);
  prepared<BackwardPeer>(plain_of(*p), run->threads, make_openblas_backward)
      .run(q.data(), k.data(), v.data(), out.data(), normaliser.data(), gradient.data(), dq.data(),
           dk.data(), dv.data());
  for (const Floats* f : {&dq, &dk, &dv}) f->give_back();
  return ASSAY_SUCCESS;
}

}  // namespace
}  // namespace assay::bench

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  using namespace assay::bench;
  return table_of_peer(version, "sgemm of OpenBLAS", [](assay_kernel& table) {
    table.supports = supports_plain;
    table.supports_product = supports_mxfp4;
    table.forward = plain_forward<make_openblas_attention>;
    table.backward = backward;
    table.product = mxfp4_product<make_openblas_product>;
  });
}
