// Strided tensors of rank 4. A layout is nothing but strides: BHSD, BSHD, a packed QKV, a slice, a broadcast
// (stride 0) and a reversed axis are all the same tensor to whoever reads it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "problem/dtype.h"

namespace assay {

using Index = std::int64_t;
using Extents = std::array<Index, 4>;

constexpr Index element_count(const Extents& e) { return e[0] * e[1] * e[2] * e[3]; }

// A view owns nothing. Strides and origin count elements (for f4e2m1: nibbles, the low one first); the
// element (0, 0, 0, 0) lies `origin` elements after `data`.
struct TensorView {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  Extents shape{};
  Extents stride{};
  Index origin = 0;

  Index at(Index b, Index h, Index i, Index d) const { return origin + b * stride[0] + h * stride[1] + i * stride[2] + d * stride[3]; }
  explicit operator bool() const { return data != nullptr; }
};

// Exact value of the element at a position that TensorView::at() gave.
double load(const TensorView& t, Index position);
// Stores encode(value); see encode() for what it throws.
void store(const TensorView& t, Index position, double value);

// Strides and extent of one way to lay out a tensor. `elements` is the storage that it needs.
struct Layout {
  Extents stride{};
  Index origin = 0;
  Index elements = 0;
};

// A tensor with storage of its own, between two guard bands whose bytes guards_intact() checks.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Dtype dtype, const Extents& shape, const Layout& layout);

  const TensorView& view() const { return view_; }
  std::byte* bytes() const { return storage_.get() + guard_bytes; }
  std::size_t size_in_bytes() const { return bytes_; }
  bool guards_intact() const;

  static constexpr std::size_t guard_bytes = 4096;

 private:
  struct AlignedFree {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte[], AlignedFree> storage_;
  std::size_t bytes_ = 0;
  TensorView view_;
};

}  // namespace assay
