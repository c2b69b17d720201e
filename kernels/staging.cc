#include "kernels/staging.h"

#include <fmt/format.h>

#include <cstring>
#include <limits>

namespace assay::kernels {
namespace {

// Calls body(element of the tensor, element of the contiguous bytes, how many elements of both).
template <class Body>
void for_runs(const Extents& shape, const Extents& stride, Index origin, const Body& body) {
  Index at = 0;
  const bool whole_rows = stride[3] == 1;
  for (Index b = 0; b < shape[0]; ++b)
    for (Index h = 0; h < shape[1]; ++h)
      for (Index i = 0; i < shape[2]; ++i) {
        const Index first = origin + b * stride[0] + h * stride[1] + i * stride[2];
        if (whole_rows) {
          body(first, at, shape[3]);
          at += shape[3];
        } else {
          for (Index j = 0; j < shape[3]; ++j) body(first + j * stride[3], at++, 1);
        }
      }
}

}  // namespace

Index bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

std::size_t contiguous_bytes(const Extents& e, Index element_bytes) {
  Index bytes = element_bytes;
  for (Index n : e)
    if (n == 0) return 0;
  for (Index n : e)
    if (__builtin_mul_overflow(bytes, n, &bytes)) return std::numeric_limits<std::size_t>::max();
  return usize(bytes);
}

std::span<const std::byte> gather(const void* data, const Extents& shape, const Extents& stride,
                                  Index origin, Index element_bytes,
                                  std::vector<std::byte>& storage) {
  const std::size_t bytes = contiguous_bytes(shape, element_bytes);
  if (bytes == 0) return {};
  const auto* from = static_cast<const std::byte*>(data);
  bool contiguous = true;
  Index expected = 1;
  for (std::size_t k = 4; k-- > 0;) {
    contiguous = contiguous && (shape[k] == 1 || stride[k] == expected);
    expected *= shape[k];
  }
  if (contiguous) return {from + origin * element_bytes, bytes};
  storage.resize(bytes);
  for_runs(shape, stride, origin, [&](Index element, Index at, Index count) {
    std::memcpy(storage.data() + at * element_bytes, from + element * element_bytes,
                usize(count * element_bytes));
  });
  return storage;
}

std::span<const std::byte> gather(const TensorView& t, std::vector<std::byte>& storage) {
  return gather(t.data, t.shape, t.stride, t.origin, bytes_of(t.dtype), storage);
}

TensorView contiguous_copy(const TensorView& t, std::vector<std::byte>& storage) {
  const Extents& e = t.shape;
  storage.resize(contiguous_bytes(e, bytes_of(t.dtype)));
  return {storage.empty() ? nullptr : storage.data(),
          t.dtype,
          e,
          {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1},
          0};
}

void scatter(std::span<const std::byte> from, const TensorView& t) {
  if (from.empty()) return;
  auto* to = static_cast<std::byte*>(t.data);
  const Index bytes = bytes_of(t.dtype);
  for_runs(t.shape, t.stride, t.origin, [&](Index element, Index at, Index count) {
    std::memcpy(to + element * bytes, from.data() + at * bytes, usize(count * bytes));
  });
}

Status exceeds_buffer(std::string_view device, std::string_view name, std::size_t bytes,
                      std::size_t largest) {
  return {StatusCode::memory_allocation_failed,
          fmt::format("{}: {} needs {} bytes, but a buffer of the device has at most {}", device,
                      name, bytes, largest),
          fmt::format("allocate {}", name)};
}

}  // namespace assay::kernels
