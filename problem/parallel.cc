#include "problem/parallel.h"

#include <algorithm>
#include <thread>

#ifdef ASSAY_STD_THREADS
#include <atomic>
#include <exception>
#include <vector>
#else
#include <list>
#include <map>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>
#endif
#include <mutex>

namespace assay {

#ifndef ASSAY_STD_THREADS
namespace {

// An arena that nobody else uses until this is destroyed. Arenas are kept: oneTBB 2021.8 loses 7 KiB with each that is
// destroyed after workers have joined it.
class Arena {
 public:
  explicit Arena(int threads) {
    {
      const std::lock_guard lock(idle().mutex);
      home_ = &idle().arenas[threads];
      if (!home_->empty()) mine_.splice(mine_.begin(), *home_, home_->begin());
    }
    if (mine_.empty()) mine_.emplace_back(threads);
  }
  ~Arena() {
    const std::lock_guard lock(idle().mutex);
    home_->splice(home_->begin(), mine_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  tbb::task_arena* operator->() { return &mine_.front(); }

 private:
  using Arenas = std::list<tbb::task_arena>;
  struct Idle {
    std::mutex mutex;
    std::map<int, Arenas> arenas;  // by the number of threads
  };
  static Idle& idle() {
    static auto* idle = new Idle;  // outlives every static that still calls
    return *idle;
  }

  Arenas mine_;  // one
  Arenas* home_ = nullptr;
};

}  // namespace
#endif

int hardware_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

void parallel_for_each_index(Index n, int threads, void (*call)(const void* body, Index i), const void* body) {
  if (threads <= 0) threads = hardware_threads();
  threads = static_cast<int>(std::min<Index>(threads, n));
  if (threads <= 1) {
    for (Index i = 0; i < n; ++i) call(body, i);
    return;
  }
#ifdef ASSAY_STD_THREADS
  std::atomic<Index> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&] {
    for (Index i; (i = next.fetch_add(1)) < n;) {
      try {
        call(body, i);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next = n;
      }
    }
  };
  {
    std::vector<std::jthread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
#else
  Arena arena(threads);
  arena->execute([&] {
    tbb::parallel_for(
        Index{0}, n, [&](Index i) { call(body, i); }, tbb::simple_partitioner());
  });
#endif
}

}  // namespace assay
