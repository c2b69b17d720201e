// One product of kernel.h's table in the form that the peers' MXFP4 products take.
#pragma once

#include "bench/peer_table.h"
#include "kernels/product/product.h"

namespace assay::bench {

template <std::unique_ptr<ProductPeer> (*make)(const PlainProduct&, int)>
assay_status mxfp4_product(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                           const assay_run* run) {
  kernels::LowBitBytes bytes;
  bytes.format = LowBit::mxfp4;
  bytes.k = w->k;
  bytes.n = w->n;
  bytes.group = 32;
  const LowBitSizes sizes = sizes_of(LowBit::mxfp4, w->k, w->n, 32);
  const auto copy = [](const void* from, Index n) {
    const auto* first = static_cast<const std::byte*>(from);
    return std::vector<std::byte>(first, first + n);
  };
  bytes.codes = copy(w->codes, sizes.codes);
  bytes.scales = copy(w->scales, sizes.scales);
  const Floats from(*a), to(*c);
  make({a->shape[2], w->n, w->k, from.data(), to.data(), &bytes, nullptr},
       std::max(run->threads, 1))
      ->run();
  to.give_back();
  return ASSAY_SUCCESS;
}

}  // namespace assay::bench
