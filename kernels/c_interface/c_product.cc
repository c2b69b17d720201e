// Low-bit products of the C interface.
#include <vector>

#include "kernels/c_interface/c_common.h"
#include "kernels/product/product.h"

namespace assay::kernels {
namespace {

struct WeightsObject {
  std::shared_ptr<const PackedWeights> packed;
};

Handles<WeightsObject, assay_weights>& weights() {
  static auto* handles = new Handles<WeightsObject, assay_weights>("weights");
  return *handles;
}

void expect_matrix(const TensorView& t, const char* name) {
  if (t.shape[0] != 1 || t.shape[1] != 1)
    refuse(std::string(name) + " is not of shape [1, 1, rows, columns]");
}

Status make_weights(const LowBitView& view, assay_weights* out) {
  auto object = std::make_shared<WeightsObject>();
  if (Status status = PackedWeights::pack(view, object->packed); !status.ok()) return status;
  *out = weights().add(std::move(object));
  return {};
}

}  // namespace
}  // namespace assay::kernels

using namespace assay;
using namespace assay::kernels;

extern "C" {

assay_status assay_low_bit_size(const assay_low_bit* matrix, int64_t* code_bytes,
                                int64_t* scale_bytes, int64_t* extra_bytes) {
  return guarded([&] {
    const LowBitView v = low_bit_view(matrix, "matrix");
    // The size does not depend on the bytes, so they need not exist yet.
    static constexpr std::byte somewhere{};
    LowBitView complete = v;
    complete.codes = complete.scales = complete.extra = &somewhere;
    if (Status status = validate_low_bit_shape(complete); !status.ok()) return status;
    const LowBitSizes sizes = sizes_of(v.format, v.k, v.n, v.group);
    if (code_bytes) *code_bytes = sizes.codes;
    if (scale_bytes) *scale_bytes = sizes.scales;
    if (extra_bytes) *extra_bytes = sizes.extra;
    return Status{};
  });
}

assay_status assay_weights_create(const assay_low_bit* matrix, assay_weights* out) {
  return guarded([&] {
    if (!out) refuse("weights is null");
    return make_weights(low_bit_view(matrix, "matrix"), out);
  });
}

assay_status assay_weights_quantize(const assay_tensor* w, int32_t format, int64_t group_size,
                                    int32_t pad_k, assay_weights* out) {
  return guarded([&] {
    if (!out) refuse("weights is null");
    if (!w) refuse("w is null");
    if (pad_k != 0 && pad_k != 1)
      refuse("pad_k = " + std::to_string(pad_k) + " is neither 0 nor 1");
    const TensorView view = view_of(w, "w");
    expect_matrix(view, "w");
    LowBitBytes bytes;
    if (Status status = quantize_weights(view, low_bit_format(format, "weights"),
                                         {group_size, pad_k != 0}, bytes);
        !status.ok())
      return status;
    return make_weights(bytes.view(), out);
  });
}

assay_status assay_weights_read(assay_weights handle, void* codes, void* scales, void* extra,
                                float* tensor_scale) {
  return guarded([&] {
    const auto object = weights().get(handle);
    if (Status status =
            object->packed->unpack(static_cast<std::byte*>(codes), static_cast<std::byte*>(scales),
                                   static_cast<std::byte*>(extra));
        !status.ok())
      return status;
    if (tensor_scale) *tensor_scale = object->packed->tensor_scale();
    return Status{};
  });
}

assay_status assay_weights_destroy(assay_weights handle) {
  return guarded([&] { return weights().destroy(handle); });
}

assay_status assay_product(assay_context context, const assay_tensor* a, assay_weights handle,
                           const assay_tensor* c) {
  return guarded([&] {
    const auto used = context_of(context);
    const auto object = weights().get(handle);
    if (!a) refuse("a is null");
    if (!c) refuse("c is null");
    const TensorView x = view_of(a, "a"), y = view_of(c, "c");
    expect_matrix(x, "a");
    expect_matrix(y, "c");
    return product(x, *object->packed, y, used->threads);
  });
}

assay_status assay_product_low_bit(assay_context context, const assay_low_bit* a,
                                   assay_weights handle, const assay_tensor* c) {
  return guarded([&] {
    const auto used = context_of(context);
    const auto object = weights().get(handle);
    if (!c) refuse("c is null");
    const TensorView y = view_of(c, "c");
    expect_matrix(y, "c");
    return product(low_bit_view(a, "a"), *object->packed, y, used->threads);
  });
}

}  // extern "C"
