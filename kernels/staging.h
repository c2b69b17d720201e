// Inside kernels/: copies between tensors with strides and contiguous bytes. Such bytes go to a
// device and come back, or hold outputs until nothing can fail any more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "problem/tensor.h"

namespace assay::kernels {

// Returns the bytes of an element of f32, f16 or bf16.
Index bytes_of(Dtype dtype);
// Returns the bytes of contiguous elements, or the largest number there is if the count does not
// fit.
std::size_t contiguous_bytes(const Extents& e, Index element_bytes);

// Returns the elements as contiguous bytes, in the order of their index. If they lie so in memory,
// the result points there; otherwise it points into `storage`.
std::span<const std::byte> gather(const void* data, const Extents& shape, const Extents& stride,
                                  Index origin, Index element_bytes,
                                  std::vector<std::byte>& storage);
std::span<const std::byte> gather(const TensorView& t, std::vector<std::byte>& storage);
// Returns a contiguous tensor of the same shape and dtype. The elements of `t` are not copied.
TensorView contiguous_copy(const TensorView& t, std::vector<std::byte>& storage);
// Copies contiguous bytes into `t`, which has as many elements.
void scatter(std::span<const std::byte> from, const TensorView& t);

// The status for a buffer that is larger than the device allows.
Status exceeds_buffer(std::string_view device, std::string_view name, std::size_t bytes,
                      std::size_t largest);

}  // namespace assay::kernels
