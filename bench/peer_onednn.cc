// oneDNN's matrix product and softmax as attention, and its product with decoded weights, behind kernel.h.
#include "bench/mxfp4_call.h"

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  using namespace assay::bench;
  return table_of_peer(version, "oneDNN", [](assay_kernel& table) {
    table.supports = supports_plain;
    table.supports_product = supports_mxfp4;
    table.forward = plain_forward<make_onednn_attention>;
    table.product = mxfp4_product<make_onednn_product>;
  });
}
