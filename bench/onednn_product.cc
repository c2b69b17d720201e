#include <dlfcn.h>

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <vector>

#include "bench/peers.h"
#include "kernels/product/product.h"
#include "problem/parallel.h"

namespace assay::bench {
namespace {

using Memory = dnnl::memory;

class OnednnProduct final : public ProductPeer {
 public:
  OnednnProduct(const PlainProduct& problem, [[maybe_unused]] int threads)
      : p_(problem), engine_(dnnl::engine::kind::cpu, 0) {
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
    const auto set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    if (set == nullptr)
      throw std::runtime_error(
          "oneDNN's OpenMP runtime is not to be found: its threads cannot be limited");
    set(threads);
#endif
    std::shared_ptr<const kernels::PackedWeights> w;
    if (!kernels::PackedWeights::pack(p_.mxfp4->view(), w).ok()) throw std::runtime_error("pack");
    decoded_.resize(usize(p_.k * p_.n));
    for (Index k = 0; k < p_.k; ++k)
      for (Index n = 0; n < p_.n; ++n)
        decoded_[usize(k * p_.n + n)] = w->value(k, n) * w->scale(k / 32, n);
    const Memory::desc a({p_.m, p_.k}, Memory::data_type::f32, Memory::format_tag::ab),
        any({p_.k, p_.n}, Memory::data_type::f32, Memory::format_tag::any),
        plain({p_.k, p_.n}, Memory::data_type::f32, Memory::format_tag::ab),
        c({p_.m, p_.n}, Memory::data_type::f32, Memory::format_tag::ab);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, any, c), engine_);
    matmul_ = dnnl::matmul(description);
    stream_ = dnnl::stream(engine_);
    a_ = Memory(a, engine_, const_cast<float*>(p_.a));
    c_ = Memory(c, engine_, p_.c);
    // The weights are converted once to the layout that oneDNN prefers.
    w_ = Memory(description.weights_desc(), engine_);
    Memory from(plain, engine_, decoded_.data());
    dnnl::reorder(from, w_).execute(stream_, from, w_);
    stream_.wait();
  }

  void run() override {
    matmul_.execute(stream_, {{DNNL_ARG_SRC, a_}, {DNNL_ARG_WEIGHTS, w_}, {DNNL_ARG_DST, c_}});
    stream_.wait();
  }

 private:
  PlainProduct p_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  Memory a_, w_, c_;
  std::vector<float> decoded_;
};

}  // namespace

std::unique_ptr<ProductPeer> make_onednn_product(const PlainProduct& problem, int threads) {
  return std::make_unique<OnednnProduct>(problem, threads);
}

}  // namespace assay::bench
