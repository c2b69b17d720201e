// Inside kernels/: memory that a kernel needs for itself. All of it comes from operator new, which
// throws std::bad_alloc, and is there before the first output element is written. So a call that
// fails has written nothing.
#pragma once

#include <fmt/format.h>
#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "problem/parallel.h"
#include "problem/tensor.h"

namespace assay::kernels {

// Makes the status for a std::bad_alloc. If there is no memory for its text either, the status has
// no text.
template <class... Values>
Status out_of_memory(fmt::format_string<Values...> what, Values... values) noexcept {
  Status status{StatusCode::memory_allocation_failed, {}};
  try {
    status.detail = fmt::vformat(what, fmt::make_format_args(values...));
  } catch (const std::bad_alloc&) {
  }
  return status;
}

// Allocates uninitialized memory, aligned for any vector, for at least one element.
template <class T>
hwy::AlignedFreeUniquePtr<T[]> allocate_aligned(Index count) {
  auto p = hwy::AllocateAligned<T>(
      usize(std::max<Index>(count, 1)),
      [](void*, std::size_t bytes) { return ::operator new(bytes, std::nothrow); },
      [](void*, void* bytes) { ::operator delete(bytes, std::nothrow); }, nullptr);
  if (!p) throw std::bad_alloc();
  return p;
}
inline hwy::AlignedFreeUniquePtr<float[]> allocate_floats(Index count) {
  return allocate_aligned<float>(count);
}

// As many scratches as tasks of one loop run at the same time. A task must not run another such
// loop.
template <class Scratch>
class ScratchPool {
 public:
  // make() returns a std::unique_ptr<Scratch>.
  template <class Make>
  ScratchPool(Index tasks, int threads, const Make& make) {
    const Index count = std::min<Index>(threads > 0 ? threads : hardware_threads(), tasks);
    idle_.reserve(usize(std::max<Index>(count, 0)));
    while (std::ssize(idle_) < count) idle_.push_back(make());
  }

  // Owns one scratch until the end of a scope.
  class Lease {
   public:
    explicit Lease(ScratchPool& pool) : pool_(pool) {
      const std::lock_guard lock(pool_.mutex_);
      mine_ = std::move(pool_.idle_.back());
      pool_.idle_.pop_back();
    }
    ~Lease() {
      const std::lock_guard lock(pool_.mutex_);
      pool_.idle_.push_back(std::move(mine_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Scratch& operator*() const { return *mine_; }
    Scratch* operator->() const { return mine_.get(); }

   private:
    ScratchPool& pool_;
    std::unique_ptr<Scratch> mine_;
  };
  Lease take() { return Lease(*this); }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> idle_;
};

}  // namespace assay::kernels
