#include "problem/tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
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
  std::memcpy(&value,
              static_cast<const std::byte*>(t.data) + position * static_cast<Index>(sizeof(T)),
              sizeof(T));
  return value;
}

template <class T>
void put(const TensorView& t, Index position, std::uint64_t code) {
  const T value = static_cast<T>(code);
  std::memcpy(static_cast<std::byte*>(t.data) + position * static_cast<Index>(sizeof(T)), &value,
              sizeof(T));
}

}  // namespace

double load(const TensorView& t, Index position) {
  switch (format(t.dtype).bits) {
    case 64: return decode(t.dtype, get<std::uint64_t>(t, position));
    case 32: return decode(t.dtype, get<std::uint32_t>(t, position));
    case 16: return decode(t.dtype, get<std::uint16_t>(t, position));
    case 8: return decode(t.dtype, get<std::uint8_t>(t, position));
    default:
      return decode(t.dtype, (get<std::uint8_t>(t, position >> 1) >> ((position & 1) * 4)) & 0xF);
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

Tensor::Tensor(Dtype dtype, const Extents& shape, const Layout& layout, Surroundings around)
    : size_((usize(layout.elements) * usize(format(dtype).bits) + 7) / 8),
      around_(around),
      sparse_(layout.sparse) {
  const std::size_t page = usize(sysconf(_SC_PAGESIZE));
  if (sparse_ || around != Surroundings::bands) {
    const std::size_t inner = (size_ + page - 1) / page * page, total = inner + 2 * page;
    // The mapping is inaccessible at first, and the pages at both ends remain so. A sparse one is
    // shared, because a limit of private memory does not count shared mappings, and its size is not
    // memory that it uses.
    void* mapping =
        mmap(nullptr, total, PROT_NONE,
             (sparse_ ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    storage_ = {static_cast<std::byte*>(mapping), Release{total}};
    if (inner > 0 && mprotect(storage_.get() + page, inner, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
    bytes_ = storage_.get() + page + (around == Surroundings::page_before ? 0 : inner - size_);
  } else {
    const std::size_t total = (size_ + 2 * guard_bytes + 63) / 64 * 64;
    storage_ = {static_cast<std::byte*>(std::aligned_alloc(64, total)), Release{}};
    if (!storage_) throw std::bad_alloc();
    bytes_ = storage_.get() + guard_bytes;
    std::memset(storage_.get(), static_cast<int>(guard_pattern), guard_bytes);
    std::memset(bytes_, 0, size_);
    std::memset(bytes_ + size_, static_cast<int>(guard_pattern), guard_bytes);
  }
  view_ = {bytes_, dtype, shape, layout.stride, layout.origin};
}

Tensor::Tensor(const Tensor& other) {
  if (!other.storage_) return;
  const TensorView& v = other.view_;
  const auto elements = static_cast<Index>(other.size_) * 8 / format(v.dtype).bits;
  *this = Tensor(v.dtype, v.shape, {v.stride, v.origin, elements, other.sparse_}, other.around_);
  for (const Region& r : other.regions())
    std::memcpy(bytes_ + r.begin, other.bytes_ + r.begin, r.end - r.begin);
}

bool Tensor::guards_intact() const {
  if (!storage_ || sparse_ || around_ != Surroundings::bands) return true;
  const auto intact = [](const std::byte* band) {
    return band[0] == guard_pattern && std::memcmp(band, band + 1, guard_bytes - 1) == 0;
  };
  return intact(storage_.get()) && intact(bytes_ + size_);
}

std::vector<Tensor::Region> Tensor::regions() const {
  if (!sparse_) return {{0, size_}};
  std::vector<Region> found;
  constexpr Index margin = 32;  // elements
  const Index bytes = format(view_.dtype).bits / 8, all = static_cast<Index>(size_) / bytes;
  for (Index b = 0; b < view_.shape[0]; ++b)
    for (Index i = 0; i < view_.shape[2]; ++i) {
      const Index first = view_.at(b, 0, i, 0),
                  last = view_.at(b, view_.shape[1] - 1, i, view_.shape[3] - 1);
      found.push_back({usize(std::max<Index>(0, first - margin) * bytes),
                       usize(std::min(all, last + 1 + margin) * bytes)});
    }
  return found;
}

void Tensor::Release::operator()(std::byte* p) const {
  if (mapped > 0) munmap(p, mapped);
  else std::free(p);
}

}  // namespace assay
