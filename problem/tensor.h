// Strided tensors of rank 4. A layout consists of strides alone. BHSD, BSHD, a packed QKV, a slice,
// a broadcast (stride 0) and a reversed axis are all read in the same way.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "problem/dtype.h"
#include "problem/index.h"

namespace assay {

using Extents = std::array<Index, 4>;

// Calls body(b, h, i, d) for every index below the extents.
template <class Body>
void for_each_index(const Extents& e, const Body& body) {
  for (Index b = 0; b < e[0]; ++b)
    for (Index h = 0; h < e[1]; ++h)
      for (Index i = 0; i < e[2]; ++i)
        for (Index d = 0; d < e[3]; ++d) body(b, h, i, d);
}

constexpr Index element_count(const Extents& e) { return e[0] * e[1] * e[2] * e[3]; }

// A view does not own its data. Strides and origin count elements (for f4e2m1: nibbles, the low one
// first). The element (0, 0, 0, 0) lies `origin` elements after `data`.
struct TensorView {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  Extents shape{};
  Extents stride{};
  Index origin = 0;

  Index at(Index b, Index h, Index i, Index d) const {
    return origin + b * stride[0] + h * stride[1] + i * stride[2] + d * stride[3];
  }
  explicit operator bool() const { return data != nullptr; }
};

// The exact value of the element at a position that TensorView::at() returned.
double load(const TensorView& t, Index position);
// Stores encode(value); see encode() for what it throws.
void store(const TensorView& t, Index position, double value);

// The strides and the extent of one way to lay out a tensor. `elements` is the size of the storage
// that it needs.
struct Layout {
  Extents stride{};
  Index origin = 0;
  Index elements = 0;
  // Most of the storage holds no element, because the rows lie far from one another.
  bool sparse = false;
};

// What lies around the storage of a tensor. bands: bytes that guards_intact() checks. page_behind,
// page_before: a page that cannot be accessed, directly behind the last element or directly before
// the first. A program that reads or writes there crashes at once.
enum class Surroundings { bands, page_behind, page_before };

// A tensor with storage of its own.
class Tensor {
 public:
  Tensor() = default;
  // Throws std::bad_alloc.
  Tensor(Dtype dtype, const Extents& shape, const Layout& layout,
         Surroundings around = Surroundings::bands);
  // A tensor with the same elements, layout and surroundings. Throws std::bad_alloc.
  explicit Tensor(const Tensor& other);
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

  const TensorView& view() const { return view_; }
  std::byte* bytes() const { return bytes_; }
  std::size_t size_in_bytes() const { return size_; }
  bool guards_intact() const;

  struct Region {
    std::size_t begin, end;  // bytes
  };
  // The parts of the storage that hold elements, and a little around them. These are the whole
  // storage unless the layout is sparse. Other parts of a sparse tensor must not be read, because
  // reading would give them memory.
  std::vector<Region> regions() const;

  static constexpr std::size_t guard_bytes = 4096;

 private:
  struct Release {
    std::size_t mapped;  // size of a mapping in bytes; 0: aligned_alloc gave the storage
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte[], Release> storage_;
  std::byte* bytes_ = nullptr;
  std::size_t size_ = 0;
  Surroundings around_ = Surroundings::bands;
  bool sparse_ = false;
  TensorView view_;
};

}  // namespace assay
