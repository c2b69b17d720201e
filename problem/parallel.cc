#include "problem/parallel.h"

#include <algorithm>
#include <thread>

#ifdef ASSAY_STD_THREADS
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>
#else
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>
#endif

namespace assay {

int hardware_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

void parallel_for(Index n, int threads, const std::function<void(Index)>& body) {
  if (threads <= 0) threads = hardware_threads();
  threads = static_cast<int>(std::min<Index>(threads, n));
  if (threads <= 1) {
    for (Index i = 0; i < n; ++i) body(i);
    return;
  }
#ifdef ASSAY_STD_THREADS
  std::atomic<Index> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&] {
    for (Index i; (i = next.fetch_add(1)) < n;) {
      try {
        body(i);
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
  tbb::task_arena arena(threads);
  arena.execute([&] {
    tbb::parallel_for(
        Index{0}, n, [&](Index i) { body(i); }, tbb::simple_partitioner());
  });
#endif
}

}  // namespace assay
