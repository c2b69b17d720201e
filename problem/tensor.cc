#include "problem/tensor.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace assay {
namespace {

constexpr std::byte guard_pattern{0xA7};

template <class T>
T get(const TensorView& t, Index position) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(t.data) + position * static_cast<Index>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void put(const TensorView& t, Index position, std::uint64_t code) {
  const T value = static_cast<T>(code);
  std::memcpy(static_cast<std::byte*>(t.data) + position * static_cast<Index>(sizeof(T)), &value, sizeof(T));
}

}  // namespace

double load(const TensorView& t, Index position) {
  switch (format(t.dtype).bits) {
    case 64: return decode(t.dtype, get<std::uint64_t>(t, position));
    case 32: return decode(t.dtype, get<std::uint32_t>(t, position));
    case 16: return decode(t.dtype, get<std::uint16_t>(t, position));
    case 8: return decode(t.dtype, get<std::uint8_t>(t, position));
    default: return decode(t.dtype, (get<std::uint8_t>(t, position >> 1) >> ((position & 1) * 4)) & 0xF);
  }
}

void store(const TensorView& t, Index position, double value) {
  const std::uint64_t code = encode(t.dtype, value);
  switch (format(t.dtype).bits) {
    case 64: return put<std::uint64_t>(t, position, code);
    case 32: return put<std::uint32_t>(t, position, code);
    case 16: return put<std::uint16_t>(t, position, code);
    case 8: return put<std::uint8_t>(t, position, code);
    default: {
      const int shift = static_cast<int>(position & 1) * 4;
      const std::uint64_t old = get<std::uint8_t>(t, position >> 1);
      put<std::uint8_t>(t, position >> 1, (old & ~(std::uint64_t{0xF} << shift)) | code << shift);
    }
  }
}

Tensor::Tensor(Dtype dtype, const Extents& shape, const Layout& layout)
    : bytes_((static_cast<std::size_t>(layout.elements) * static_cast<std::size_t>(format(dtype).bits) + 7) / 8) {
  const std::size_t total = (bytes_ + 2 * guard_bytes + 63) / 64 * 64;
  storage_.reset(static_cast<std::byte*>(std::aligned_alloc(64, total)));
  if (!storage_) throw std::bad_alloc();
  std::memset(storage_.get(), static_cast<int>(guard_pattern), guard_bytes);
  std::memset(bytes(), 0, bytes_);
  std::memset(bytes() + bytes_, static_cast<int>(guard_pattern), guard_bytes);
  view_ = {bytes(), dtype, shape, layout.stride, layout.origin};
}

bool Tensor::guards_intact() const {
  if (!storage_) return true;
  for (std::size_t i = 0; i < guard_bytes; ++i)
    if (storage_[i] != guard_pattern || bytes()[bytes_ + i] != guard_pattern) return false;
  return true;
}

void Tensor::AlignedFree::operator()(std::byte* p) const { std::free(p); }

}  // namespace assay
