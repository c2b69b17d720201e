#include "problem/parallel.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace assay {
namespace {

TEST(ParallelFor, EveryIndexExactlyOnce) {
  for (Index n : {0, 1, 2, 3, 7, 64, 1000})
    for (int threads : {-1, 0, 1, 2, 3, 8, 100}) {
      std::vector<std::atomic<int>> calls(usize(n));
      std::atomic<bool> outside = false;
      parallel_for(n, threads, [&](Index i) {
        if (i < 0 || i >= n) outside = true;
        else ++calls[usize(i)];
      });
      EXPECT_FALSE(outside) << n << " on " << threads;
      for (std::size_t i = 0; i < calls.size(); ++i)
        EXPECT_EQ(calls[i], 1) << i << " of " << n << " on " << threads;
    }
}

TEST(ParallelFor, NeverMoreThreadsThanAsked) {
  for (int threads : {1, 2, 3}) {
    std::atomic<int> running = 0, most = 0;
    parallel_for(40, threads, [&](Index) {
      const int now = ++running;
      for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      --running;
    });
    EXPECT_LE(most, threads);
  }
}

// The resident memory of this process, in KiB.
long resident() {
  std::ifstream file("/proc/self/statm");
  long total = 0, pages = 0;
  file >> total >> pages;
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

TEST(ParallelFor, CallsLeaveNoMemoryBehind) {
#ifdef ASSAY_SANITIZED
  GTEST_SKIP() << "sanitizers keep what was freed";
#endif
  const auto call = [] { parallel_for(8, 2, [](Index) {}); };
  for (int k = 0; k < 100; ++k) call();
  const long before = resident();
  ASSERT_GT(before, 0);
  for (int k = 0; k < 4000; ++k) call();
  EXPECT_LT(resident() - before, 4096);
}

TEST(ParallelFor, OneThreadIsTheCallersInOrder) {
  std::vector<Index> order;
  const auto caller = std::this_thread::get_id();
  parallel_for(20, 1, [&](Index i) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(i);
  });
  ASSERT_EQ(order.size(), 20u);
  for (Index i = 0; i < 20; ++i) EXPECT_EQ(order[usize(i)], i);
}

TEST(ParallelFor, AnExceptionComesOutAsItWasThrown) {
  for (int threads : {0, 1, 2, 8})
    for (Index bad : {0, 17, 99}) {
      std::atomic<int> calls = 0;
      try {
        parallel_for(100, threads, [&](Index i) {
          ++calls;
          if (i == bad) throw std::out_of_range("at " + std::to_string(i));
        });
        ADD_FAILURE() << "nothing was thrown on " << threads << " threads";
      } catch (const std::out_of_range& e) {
        EXPECT_EQ(std::string(e.what()), "at " + std::to_string(bad));
      }
      EXPECT_LE(calls, 100);
    }
}

TEST(ParallelFor, OfManyExceptionsOneComesOutAndTheLoopStillWorks) {
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(parallel_for(50, 4, [](Index i) { throw std::runtime_error(std::to_string(i)); }),
                 std::runtime_error);
    std::atomic<int> calls = 0;
    parallel_for(50, 4, [&](Index) { ++calls; });
    EXPECT_EQ(calls, 50);
  }
}

TEST(ParallelFor, Nested) {
  for (int threads : {0, 1, 2, 5}) {
    std::vector<std::atomic<int>> calls(8 * 9 * 10);
    parallel_for(8, threads, [&](Index i) {
      parallel_for(9, threads, [&](Index j) {
        parallel_for(10, 0, [&](Index k) { ++calls[usize((i * 9 + j) * 10 + k)]; });
      });
    });
    for (const auto& count : calls) ASSERT_EQ(count, 1);
  }
}

TEST(ParallelFor, AnExceptionLeavesNestedLoops) {
  EXPECT_THROW(parallel_for(4, 2,
                            [](Index i) {
                              parallel_for(4, 2, [i](Index j) {
                                if (i == 2 && j == 3) throw std::logic_error("inner");
                              });
                            }),
               std::logic_error);
}

TEST(ParallelFor, HardwareThreads) { EXPECT_GE(hardware_threads(), 1); }

}  // namespace
}  // namespace assay
