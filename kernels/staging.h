// Inside kernels/: between tensors with strides and contiguous bytes, which go to a device and come back, or hold outputs until nothing can fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "problem/tensor.h"

namespace assay::kernels {

// f32, f16 and bf16.
Index bytes_of(Dtype dtype);
// Bytes of so many contiguous elements; the largest number there is where that does not fit.
std::size_t contiguous_bytes(const Extents& e, Index element_bytes);

// The elements in order of their index, contiguous: in place where they lie so, in `storage` otherwise.
std::span<const std::byte> gather(const void* data, const Extents& shape, const Extents& stride, Index origin, Index element_bytes, std::vector<std::byte>& storage);
std::span<const std::byte> gather(const TensorView& t, std::vector<std::byte>& storage);
// A contiguous tensor of the same shape and dtype; its elements are not copied.
TensorView contiguous_copy(const TensorView& t, std::vector<std::byte>& storage);
// The way back; `t` has as many elements.
void scatter(std::span<const std::byte> from, const TensorView& t);

// A buffer that the device could not have.
Status exceeds_buffer(std::string_view device, std::string_view name, std::size_t bytes, std::size_t largest);

}  // namespace assay::kernels
