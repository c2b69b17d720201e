// oneDNN's matrix product and softmax as attention, and its product with decoded weights, behind
// kernel.h.
#include "bench/mxfp4_call.h"

namespace assay::bench {
namespace {

assay_status supports(std::int32_t, const assay_attention* p, const assay_dtype* output, const char** reason) { return answer(why_not_plain(*p, *output), reason); }
assay_status supports_product(const assay_tensor* a, const assay_low_bit* w, const assay_dtype* output, const char** reason) { return answer(why_not_mxfp4(*a, *w, *output), reason); }

}  // namespace
}  // namespace assay::bench

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  using namespace assay::bench;
  static assay_kernel table;
  if (version < ASSAY_VERSION) return nullptr;
  assay_kernel_init(&table, "oneDNN");
  table.supports = supports;
  table.supports_product = supports_product;
  table.forward = plain_forward<make_onednn_attention>;
  table.product = mxfp4_product<make_onednn_product>;
  return &table;
}
