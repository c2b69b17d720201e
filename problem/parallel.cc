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
#include <memory>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>
#endif
#include <mutex>

namespace assay {

#ifndef ASSAY_STD_THREADS
namespace {

// An arena that nobody else uses until this object is destroyed. Arenas are then kept for later
// use, because oneTBB 2021.8 loses 7 KiB with each arena that is destroyed after workers have
// joined it.
class Arena {
 public:
  explicit Arena(int threads) : threads_(threads) {
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
  int threads() const { return threads_; }

 private:
  using Arenas = std::list<tbb::task_arena>;
  struct Idle {
    std::mutex mutex;
    std::map<int, Arenas> arenas;  // by the number of threads
  };
  static Idle& idle() {
    // It is never destroyed, so that destructors of static objects can use it.
    static auto* idle = new Idle;
    return *idle;
  }

  const int threads_;
  Arenas mine_;  // the one arena in use
  Arenas* home_ = nullptr;
};

// The innermost region of this thread.
thread_local Arena* region = nullptr;

}  // namespace

ParallelRegion::ParallelRegion(int threads) : outer_(region) {
  if (threads <= 0) threads = hardware_threads();
  if (threads <= 1) return;
  auto arena = std::make_unique<Arena>(threads);
  // oneTBB allocates what it needs in the first loop of an arena.
  (*arena)->execute(
      [] { tbb::parallel_for(Index{0}, Index{2}, [](Index) {}, tbb::simple_partitioner()); });
  arena_ = region = arena.release();
}

ParallelRegion::~ParallelRegion() {
  region = static_cast<Arena*>(outer_);
  delete static_cast<Arena*>(arena_);
}
#else
ParallelRegion::ParallelRegion(int) : outer_(nullptr) {}
ParallelRegion::~ParallelRegion() = default;
#endif

int hardware_threads() {
  static const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return threads;
}

void parallel_for_each_index(Index n, int threads, void (*call)(const void* body, Index i),
                             const void* body) {
  if (threads <= 0) threads = hardware_threads();
  if (threads <= 1 || n <= 1) {
    for (Index i = 0; i < n; ++i) call(body, i);
    return;
  }
#ifdef ASSAY_STD_THREADS
  threads = static_cast<int>(std::min<Index>(threads, n));
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
  std::vector<std::thread> pool;  // the C++ library of clang has no std::jthread
  try {
    for (int t = 1; t < threads; ++t) pool.emplace_back(work);
  } catch (const std::exception&) {
    // The threads that already run may have written results. If memory or threads do not suffice
    // for more, these do the work.
  }
  work();  // throws nothing
  for (std::thread& t : pool) t.join();
  if (error) std::rethrow_exception(error);
#else
  const auto loop = [&] {
    tbb::parallel_for(Index{0}, n, [&](Index i) { call(body, i); }, tbb::simple_partitioner());
  };
  if (region && region->threads() == threads) {
    (*region)->execute(loop);
  } else {
    Arena arena(static_cast<int>(std::min<Index>(threads, n)));
    arena->execute(loop);
  }
#endif
}

}  // namespace assay
