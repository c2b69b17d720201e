// The n-th allocation of a call fails, for every n. The status must tell it, nothing of the
// caller's may be written, nothing may leak (the leak sanitizer checks that), and the next call
// must be right. An allocation fails in two ways: once, or from then on.
#include <assay/assay.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <mutex>
#include <new>
#include <thread>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/cache/cache.h"
#include "kernels/device/device_backend.h"
#include "kernels/attention/merge.h"
#include "kernels/product/product.h"
#include "kernels/dispatch/single_head.h"
#include "kernels/attention/unfused.h"
#include "kernels/dispatch/varlen.h"
#include "problem/clock.h"
#include "problem/parallel.h"

namespace {

std::atomic<long> allocations_left{-1};  // below 0: there is no limit
std::atomic<bool> fails_for_good{false};
std::atomic<long> failed{0};

bool may_allocate() {
  long left = allocations_left.load();
  while (left >= 0 && !allocations_left.compare_exchange_weak(
                          left, left > 0 ? left - 1 : (fails_for_good ? 0 : -1))) {
  }
  if (left != 0) return true;
  ++failed;
  return false;
}

// Bytes that are allocated now, and the most that were at any time since the test set this.
std::atomic<long> live{0}, peak{0};

void* counted(void* p) {
  if (p == nullptr) return p;
  const long now = live += static_cast<long>(malloc_usable_size(p));
  for (long most = peak.load(); now > most && !peak.compare_exchange_weak(most, now);) {
  }
  return p;
}
void release(void* p) {
  live -= static_cast<long>(malloc_usable_size(p));
  std::free(p);
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (!may_allocate()) return nullptr;
  return counted(
      alignment > 0 ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                    : std::malloc(bytes > 0 ? bytes : 1));
}
void* allocate_or_throw(std::size_t bytes, std::size_t alignment = 0) {
  if (void* p = allocate(bytes, alignment)) return p;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate_or_throw(bytes); }
void* operator new[](std::size_t bytes) { return allocate_or_throw(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 0); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, 0);
}
void* operator new(std::size_t bytes, std::align_val_t a) {
  return allocate_or_throw(bytes, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t bytes, std::align_val_t a) {
  return allocate_or_throw(bytes, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }

namespace assay {
namespace {

using namespace kernels;

struct Operation {
  std::string name;
  std::function<Status()> call;
  std::vector<const Tensor*> outputs;
  // Anything else that a failure must not change, as text; empty by default.
  std::function<std::string()> state = [] { return std::string(); };
  // Makes the next call possible after a call that succeeded.
  std::function<void()> undo = [] {};
};

std::string bytes(const std::vector<const Tensor*>& tensors) {
  std::string all;
  for (const Tensor* t : tensors)
    all.append(reinterpret_cast<const char*>(t->bytes()), t->size_in_bytes());
  return all;
}
void poison_all(const std::vector<const Tensor*>& tensors) {
  for (const Tensor* t : tensors) std::memset(t->bytes(), 0xA5, t->size_in_bytes());
}

// oneTBB starts a thread when a loop first has work for it, and ends the process if there is no
// memory for that. This test does not try that case, so the threads are started before.
void start_workers() {
  const int all = hardware_threads();
  const auto deadline = seconds_from_now(300);
  std::atomic<int> here{0};
  parallel_for(all, all, [&](Index) {
    ++here;
    while (here < all && Clock::now() < deadline) std::this_thread::yield();
  });
}

// Returns the number of allocations that the operation makes.
long enumerate(const Operation& op) {
  static std::once_flag once;
  std::call_once(once, start_workers);
  poison_all(op.outputs);
  const std::string untouched = bytes(op.outputs), state = op.state();
  const Status first = op.call();
  EXPECT_TRUE(first.ok()) << op.name << ": " << first.detail;
  const std::string result = bytes(op.outputs);
  op.undo();
  long most = 0;
  for (const bool for_good : {false, true})
    for (long n = 0;; ++n) {
      poison_all(op.outputs);
      failed = 0;
      fails_for_good = for_good;
      allocations_left = n;
      Status status;
      bool threw = false;
      try {
        status = op.call();
      } catch (...) {
        threw = true;
      }
      allocations_left = -1;
      const auto where = [&] {
        return testing::Message() << op.name << ", allocation " << n
                                  << (for_good ? " and all after it" : "") << ": " << status.detail;
      };
      EXPECT_FALSE(threw) << where();
      if (threw) return -1;
      if (failed == 0) {
        EXPECT_TRUE(status.ok()) << where();
        EXPECT_TRUE(bytes(op.outputs) == result) << where();
        op.undo();
        most = std::max(most, n);
        break;
      }
      // A call may succeed although an allocation failed: a text may be missing, for example. Its
      // outputs must then be right.
      if (status.ok()) {
        EXPECT_TRUE(bytes(op.outputs) == result) << where();
        op.undo();
      } else {
        EXPECT_EQ(status.code, StatusCode::memory_allocation_failed) << where();
        EXPECT_TRUE(bytes(op.outputs) == untouched) << where() << ": an output was written";
        EXPECT_TRUE(op.state() == state) << where();
      }
      if (testing::Test::HasFailure()) return -1;
      EXPECT_TRUE(op.call().ok()) << where() << ", then the next call";
      EXPECT_TRUE(bytes(op.outputs) == result) << where() << ", then the next call";
      op.undo();
      EXPECT_LT(n, 20000) << op.name;
    }
  return most;
}

struct AttentionFixture {
  explicit AttentionFixture(const std::string& line) : c(parse_case(line)), in(c), out(c) {}
  Case c;
  Inputs in;
  Outputs out;
};

// The words are copied when there is memory again.
Status status_of_c(assay_status code) {
  allocations_left = -1;
  return {static_cast<StatusCode>(code), assay_last_error()};
}

TEST(Allocation, AttentionWritesNothingIfAnyFails) {
  long all = 0;
  for (const char* line :
       {"attention b=2 h=4/2 l=200x300 d=24/40 causal bool=random bias=normal alibi sink=0.5 "
        "docs=90,200 lengths=300,250 layout=q:bshd,v:padded seed=3",
        "attention b=2 h=4/2 l=3x1200 d=24/40 lengths=1200,700 seed=3",
        "attention b=1 h=2 l=5x0 d=8 seed=3"})
    for (int threads : {1, 2}) {
      AttentionFixture f(line);
      all += enumerate({std::string("forward, ") + line,
                        [&] { return attention_forward(f.in.problem, f.out.view(), threads); },
                        {&f.out.o, &f.out.lse}});
      all += enumerate({std::string("unfused, ") + line,
                        [&] { return attention_unfused(f.in.problem, f.out.view(), threads); },
                        {&f.out.o, &f.out.lse}});
      Dispatcher dispatcher;
      all += enumerate({std::string("sdpa, ") + line,
                        [&] {
                          return dispatcher.sdpa(f.in.problem, f.out.view(),
                                                 {Implementation::automatic, "host", threads});
                        },
                        {&f.out.o, &f.out.lse}});
    }
  for (const char* line :
       {"backward b=2 h=4/2 l=130x250 d=24/40 causal bias=normal@ij sink=0.5 softcap=9 seed=3",
        "backward b=1 h=2/1 l=100x1300 d=64 bias=normal seed=3"})
    for (int threads : {1, 2}) {
      AttentionFixture f(line);
      ASSERT_TRUE(attention_forward(f.in.problem, f.out.view()).ok());
      const GradientOutputs g(f.c, f.in);
      std::vector<const Tensor*> outputs = {&g.dq, &g.dk, &g.dv, &g.d_bias};
      if (!f.in.problem.sink.empty()) outputs.push_back(&g.d_sink);
      all += enumerate({line,
                        [&] {
                          return attention_backward(
                              f.in.problem, {f.out.o.view(), f.out.lse.view(), f.in.d_o.view()},
                              g.view(), threads);
                        },
                        outputs});
    }
  for (int sequences : {3, 9})  // 3 sequences run one after the other, 9 side by side
    for (int threads : {1, 2}) {
      AttentionFixture f("attention b=1 h=4/2 l=90x180 d=16 causal layout=bshd seed=3");
      std::vector<Index> rows, keys;
      for (Index n = 0; n <= sequences; ++n)
        rows.push_back(n * 90 / sequences), keys.push_back(n * 180 / sequences);
      all += enumerate({"variable lengths",
                        [&] {
                          return attention_varlen(f.in.problem, rows, keys,
                                                  kernels::Anchor::bottom_right, f.out.view(),
                                                  threads);
                        },
                        {&f.out.o, &f.out.lse}});
    }
  {
    AttentionFixture a("attention b=2 h=3 l=40x20 d=8 seed=1"),
        b("attention b=2 h=3 l=40x20 d=8 seed=2");
    const Outputs merged(a.c);
    ASSERT_TRUE(attention_forward(a.in.problem, a.out.view()).ok() &&
                attention_forward(b.in.problem, b.out.view()).ok());
    const AttentionOutput parts[] = {a.out.view(), b.out.view()};
    all += enumerate({"merge",
                      [&] { return attention_merge(parts, LogBase::natural, merged.view(), 2); },
                      {&merged.o, &merged.lse}});
  }
  std::cout << "  " << all << " allocations, each failing in two ways\n";
  EXPECT_GT(all, 500);
}

TEST(Allocation, CachesChangeNothing) {
  long all = 0;
  for (const auto& [kind, dtype] : {std::pair{CacheKind::contiguous, Dtype::f32},
                                    {CacheKind::paged, Dtype::bf16},
                                    {CacheKind::paged, Dtype::f4e2m1},
                                    {CacheKind::latent, Dtype::f8e4m3}}) {
    const bool latent = kind == CacheKind::latent;
    CacheConfig config;
    config.kind = kind;
    config.dtype = dtype;
    config.sequences = 3;
    config.kv_heads = 2;
    config.dim = config.value_dim = 16;
    config.capacity = 64;
    config.page_size = 7;
    config.rank = 12;
    config.rotary = 4;
    const auto random = [](const Extents& e, int seed) {
      Tensor t(Dtype::f32, e, {{e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}, 0, element_count(e)});
      for (Index n = 0; n < element_count(e); ++n)
        store(t.view(), n, static_cast<double>((n * 7 + seed) % 23) / 16 - 0.7);
      return t;
    };
    const Tensor k = random({1, latent ? 1 : 2, 25, latent ? 12 : 16}, 1),
                 v = random({1, latent ? 1 : 2, 25, latent ? 4 : 16}, 2);
    const Tensor q = random({3, 4, 2, 16}, 3), up_k = random({1, 2, 12, 12}, 4),
                 up_v = random({1, 2, 16, 12}, 5);
    const Tensor o = random({3, 4, 2, 16}, 0), lse = random({3, 4, 2, 1}, 0);
    const std::string name =
        std::to_string(static_cast<int>(kind)) + " in " + std::string(format(dtype).name);

    std::unique_ptr<Cache> cache;
    all += enumerate({"creating cache " + name,
                      [&] { return Cache::create(config, cache); },
                      {},
                      [&] { return std::string(cache ? "made" : ""); },
                      [&] { cache.reset(); }});
    ASSERT_TRUE(Cache::create(config, cache).ok());
    ASSERT_TRUE(cache->append(0, k.view(), v.view()).ok());
    ASSERT_TRUE(cache->fork(0, 1).ok());
    Attention p;
    p.shape = {3, 4, 2, 2, 0, 16, 16};
    p.q = q.view();
    p.scale = 0.25f;
    p.causal = true;
    const UpProjection projection{latent ? up_k.view() : TensorView{},
                                  latent ? up_v.view() : TensorView{}};
    for (int threads : {1, 2})
      all += enumerate(
          {"attention over cache " + name,
           [&] { return attention_cached(p, *cache, projection, {o.view(), lse.view()}, threads); },
           {&o, &lse}});
    // The contents of a cache, as attention sees them.
    const auto contents = [&] {
      EXPECT_TRUE(attention_cached(p, *cache, projection, {o.view(), lse.view()}, 1).ok());
      std::string text = bytes({&o, &lse});
      for (Index n = 0; n < 3; ++n)
        text += std::to_string(cache->length(n)) + ' ' + std::to_string(cache->evicted(n)) + ' ';
      return text;
    };
    const auto begin_again = [&] {
      EXPECT_TRUE(cache->reset(1).ok());
      EXPECT_TRUE(cache->fork(0, 1).ok());
    };
    all += enumerate({"appending to cache " + name,
                      [&] { return cache->append(1, k.view(), v.view()); },
                      {},
                      contents,
                      begin_again});
    all += enumerate({"evicting from cache " + name,
                      [&] { return cache->evict(1, 15); },
                      {},
                      contents,
                      begin_again});
    all += enumerate({"forking cache " + name,
                      [&] { return cache->fork(0, 2); },
                      {},
                      contents,
                      [&] { EXPECT_TRUE(cache->reset(2).ok()); }});
    // A fork that writes copies the page that it shares with the cache.
    EXPECT_EQ(cache->length(0), 25);
  }
  std::cout << "  " << all << " allocations, each failing in two ways\n";
  EXPECT_GT(all, 100);
}

TEST(Allocation, ProductsWriteNothingIfAnyFails) {
  long all = 0;
  for (const char* line : {"product m=1 n=200 k=300 w=mxfp4 seed=3",
                           "product m=70 n=200 k=300 w=nvfp4 dtype=bf16 seed=3",
                           "product m=900 n=70 k=64 w=int8 seed=3",
                           "product m=5 n=70 k=64 w=fp4-sparse a=mxfp4 seed=3"})
    for (int threads : {1, 2}) {
      const Case c = parse_case(line);
      const ProductInputs in(c);
      const ProductOutput out(c);
      const Product& p = in.problem;
      std::shared_ptr<const PackedWeights> w;
      all += enumerate(
          {std::string("packing, ") + line, [&] { return PackedWeights::pack(p.w, w); }, {}});
      all += enumerate({line,
                        [&] {
                          return p.a ? product(p.a, *w, out.c.view(), threads)
                                     : product(p.a_low, *w, out.c.view(), threads);
                        },
                        {&out.c}});
      LowBitBytes made;
      const Tensor wide(Dtype::f32, {1, 1, 64, 20}, {{0, 0, 20, 1}, 0, 64 * 20});
      all += enumerate(
          {"quantizing", [&] { return quantize_weights(wide.view(), p.w.format, {}, made); }, {}});
    }
  std::cout << "  " << all << " allocations, each failing in two ways\n";
  EXPECT_GT(all, 100);
}

TEST(Allocation, DevicesWriteNothingIfAnyFails) {
  long all = 0;
  AttentionFixture f(
      "attention b=2 h=4/2 l=3x5 d=4/6 causal offset=end bool=random bias=normal alibi sink=0.5 "
      "docs=2 lengths=5,4 layout=q:bshd,v:padded seed=3");
  DispatchSettings settings;
  settings.min_query_length = 0;
  settings.fall_back_on_failure = false;
  for (const bool cold : {true, false}) {
    const auto session = std::make_shared<DeviceSession>(make_device("host"));
    Dispatcher dispatcher(std::make_shared<DeviceBackend>(session, DevicePolicy{false, false, {}}),
                          settings);
    all += enumerate({cold ? "attention on a cold device" : "attention on a warm device",
                      [&] {
                        if (cold) session->close();
                        return dispatcher.sdpa(f.in.problem, f.out.view(),
                                               {Implementation::automatic, "host", 1});
                      },
                      {&f.out.o, &f.out.lse}});
  }
  const Case c = parse_case("product m=3 n=20 k=40 dtype=f32 w=nvfp4 layout=padded seed=3");
  const ProductInputs in(c);
  const ProductOutput out(c);
  DeviceSession session(make_device("host"));
  all += enumerate(
      {"the FP4 product on a device",
       [&] { return device_product(session, in.problem.a, in.problem.w, out.c.view(), 1); },
       {&out.c}});
  std::cout << "  " << all << " allocations, each failing in two ways\n";
  EXPECT_GT(all, 100);
}

// The first call of a process makes the state that later calls find. A child process runs for every
// allocation, with more threads than some loops have tasks.
TEST(Allocation, FirstCallsWriteNothingIfAnyFails) {
  long all = 0;
  const auto enumerate_cold = [&](const char* name, const std::function<Status()>& call,
                                  const std::vector<const Tensor*>& outputs) {
    for (long n = 0; n < 2000; ++n) {
      poison_all(outputs);
      const std::string untouched = bytes(outputs);
      const pid_t child = fork();
      if (child == 0) {
        allocations_left = n;
        const Status status = call();
        allocations_left = -1;
        _exit(failed == 0 ? 2 : status.ok() || bytes(outputs) == untouched ? 0 : 1);
      }
      int how = 0;
      ASSERT_EQ(waitpid(child, &how, 0), child);
      ASSERT_TRUE(WIFEXITED(how)) << name << ", allocation " << n;
      ASSERT_NE(WEXITSTATUS(how), 1) << name << ", allocation " << n << ": an output was written";
      if (WEXITSTATUS(how) == 2) {
        EXPECT_GT(n, 10) << name;
        all += n;
        return;
      }
    }
    FAIL() << name << " does not end";
  };
  constexpr int threads = 8;
  for (const char* line : {"backward b=4 h=3 l=200x100 d=8 sink=0.5 seed=3",
                           "backward b=1 h=3 l=200x700 d=8 sink=0.5 seed=3"}) {
    AttentionFixture f(line);
    for (const Tensor* t : {&f.out.o, &f.out.lse}) std::memset(t->bytes(), 0, t->size_in_bytes());
    const GradientOutputs g(f.c, f.in);
    enumerate_cold(line,
                   [&] {
                     return attention_backward(f.in.problem,
                                               {f.out.o.view(), f.out.lse.view(), f.in.d_o.view()},
                                               g.view(), threads);
                   },
                   {&g.dq, &g.dk, &g.dv, &g.d_sink});
  }
  for (const char* line :
       {"product m=770 n=200 k=64 w=mxfp4 seed=3", "product m=786 n=70 k=64 w=int8 seed=3"}) {
    const Case c = parse_case(line);
    const ProductInputs in(c);
    const ProductOutput out(c);
    std::shared_ptr<const PackedWeights> w;
    ASSERT_TRUE(PackedWeights::pack(in.problem.w, w).ok());
    enumerate_cold(line, [&] { return product(in.problem.a, *w, out.c.view(), threads); },
                   {&out.c});
  }
  {
    AttentionFixture f("attention b=2 h=4/2 l=200x300 d=24/40 causal seed=3");
    enumerate_cold("forward",
                   [&] { return attention_forward(f.in.problem, f.out.view(), threads); },
                   {&f.out.o, &f.out.lse});
  }
  std::cout << "  " << all << " allocations of first calls\n";
}

// The C interface throws nothing. A context or a handle that could not be made is null.
TEST(Allocation, TheCInterfaceThrowsNothing) {
  long all = 0;
  assay_context kept = nullptr;
  ASSERT_EQ(assay_context_create(nullptr, &kept), ASSAY_SUCCESS);
  AttentionFixture f("attention b=1 h=1 l=30x40 d=8 seed=3");
  const auto tensor = [](const TensorView& t) {
    assay_tensor c;
    assay_tensor_init(&c, t.data, ASSAY_FLOAT, 32, t.shape[0], t.shape[1], t.shape[2], t.shape[3]);
    return c;
  };
  const assay_tensor q = tensor(f.in.q.view()), k = tensor(f.in.k.view()),
                     v = tensor(f.in.v.view()), o = tensor(f.out.o.view()),
                     lse = tensor(f.out.lse.view());
  assay_attention problem;
  assay_attention_init(&problem);
  problem.q = &q;
  problem.k = &k;
  problem.v = &v;
  all += enumerate({"assay_attention_forward",
                    [&] { return status_of_c(assay_attention_forward(kept, &problem, &o, &lse)); },
                    {&f.out.o, &f.out.lse}});
  all += enumerate(
      {"assay_sdpa",
       [&] { return status_of_c(assay_sdpa(kept, &problem, &o, &lse, ASSAY_AUTOMATIC, nullptr)); },
       {&f.out.o, &f.out.lse}});
  const auto arrays = [](const assay_tensor& t) {
    assay_tensor a = t;
    a.shape[1] = t.shape[2];
    a.shape[2] = 1;
    a.strides[1] = t.strides[2];
    return a;
  };
  const assay_tensor aq = arrays(q), ak = arrays(k), av = arrays(v), ao = arrays(o);
  all += enumerate({"assay_single_head_attention",
                    [&] {
                      return status_of_c(
                          assay_single_head_attention(kept, &aq, &ak, &av, &ao, nullptr, 0));
                    },
                    {&f.out.o}});
  assay_context made = nullptr;
  assay_context_options options;
  assay_context_options_init(&options);
  options.device = nullptr;
  all += enumerate({"assay_context_create",
                    [&] { return status_of_c(assay_context_create(&options, &made)); },
                    {},
                    [&] { return std::string(made ? "made" : ""); },
                    [&] {
                      EXPECT_EQ(assay_context_destroy(made), ASSAY_SUCCESS);
                      made = nullptr;
                    }});
  std::vector<std::uint8_t> codes(64 * 20, 1), scales(64 * 20, 127);
  assay_low_bit matrix;
  assay_low_bit_init(&matrix, ASSAY_MXFP4, 64, 20);
  matrix.codes = codes.data();
  matrix.scales = scales.data();
  assay_weights weights = nullptr;
  all += enumerate({"assay_weights_create",
                    [&] { return status_of_c(assay_weights_create(&matrix, &weights)); },
                    {},
                    [&] { return std::string(weights ? "made" : ""); },
                    [&] {
                      EXPECT_EQ(assay_weights_destroy(weights), ASSAY_SUCCESS);
                      weights = nullptr;
                    }});
  assay_cache_config config;
  assay_cache_config_init(&config);
  config.kind = ASSAY_CACHE_PAGED;
  config.dim = config.value_dim = 8;
  config.capacity = 100;
  assay_cache cache = nullptr;
  all += enumerate({"assay_cache_create",
                    [&] { return status_of_c(assay_cache_create(&config, &cache)); },
                    {},
                    [&] { return std::string(cache ? "made" : ""); },
                    [&] {
                      EXPECT_EQ(assay_cache_destroy(cache), ASSAY_SUCCESS);
                      cache = nullptr;
                    }});
  EXPECT_EQ(assay_context_destroy(kept), ASSAY_SUCCESS);
  std::cout << "  " << all << " allocations, each failing in two ways\n";
  EXPECT_GT(all, 20);
}

// The bytes that a call needs at most beside what was there before it.
template <class Call>
long needed_by(const Call& call) {
  const long before = live;
  peak = before;
  call();
  return peak - before;
}
// The bytes that are still there after some calls.
template <class Call>
long retained_by(const Call& call, int calls) {
  call();  // what is allocated once is there
  const long before = live;
  for (int k = 0; k < calls; ++k) call();
  return live - before;
}

// A forward pass needs memory in proportion to the sequence and the batch at most. A backward pass
// also keeps partial sums of dQ for each split of the keys, until these take 256 MiB; so it needs
// more than that here, and less than in proportion to the square. Nothing stays behind.
TEST(Memory, GrowsNoFasterThanTheSequence) {
  start_workers();
  struct Needed {
    long forward = 0, backward = 0;
  };
  const auto measure = [](Index batch, Index length) {
    const std::string line = "backward b=" + std::to_string(batch) +
                             " h=2/1 l=" + std::to_string(length) + " d=16 causal";
    const Case c = parse_case(line);
    const Inputs in(c);
    const Outputs out(c);
    const GradientOutputs gradients(c, in);
    const AttentionBackwardInput input{out.o.view(), out.lse.view(), in.d_o.view()};
    const auto forward = [&] { EXPECT_TRUE(attention_forward(in.problem, out.view(), 1).ok()); };
    const auto backward = [&] {
      EXPECT_TRUE(attention_backward(in.problem, input, gradients.view(), 1).ok());
    };
    EXPECT_EQ(retained_by(forward, 20), 0) << line;
    EXPECT_EQ(retained_by(backward, 5), 0) << line;
    return Needed{needed_by(forward), needed_by(backward)};
  };
  constexpr long constant_part = 1 << 16;
  Needed before = measure(1, 256);
  for (const Index length : {512, 1024, 2048}) {
    const Needed now = measure(1, length);
    EXPECT_GT(now.forward, 0);
    EXPECT_LE(now.forward, 2 * before.forward + constant_part) << length;
    EXPECT_LE(now.backward, 3 * before.backward + constant_part) << length;
    before = now;
  }
  const Needed one = measure(1, 256), four = measure(4, 256);
  EXPECT_LE(four.forward, 4 * one.forward + constant_part);
  EXPECT_LE(four.backward, 4 * one.backward + constant_part);
}

// The same measurement finds a call that keeps a reference to what it made, and one that needs
// memory for every pair.
TEST(Memory, ARetainedReferenceAndASquareAreFound) {
  std::vector<std::shared_ptr<std::vector<float>>> kept;
  kept.reserve(100);
  EXPECT_GE(retained_by([&] { kept.push_back(std::make_shared<std::vector<float>>(100)); }, 10),
            4000);
  const auto square = [](std::size_t length) {
    return needed_by([&] {
      std::vector<float> pairs(length * length);
      static_cast<volatile float&>(pairs[length]) = 1;  // nobody may leave it out
    });
  };
  EXPECT_GT(square(512), 2 * square(256) + (1 << 16));
}

}  // namespace
}  // namespace assay
