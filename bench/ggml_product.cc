#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstring>
#include <stdexcept>
#include <vector>

#include "bench/peers.h"

namespace assay::bench {
namespace {

// C^T = W^T A^T in ggml's order: a matrix is rows of contiguous elements, and the innermost
// dimension of W is K.
class GgmlProduct final : public ProductPeer {
 public:
  GgmlProduct(const PlainProduct& p, int threads) : p_(p), threads_(threads) {
    ggml_init_params parameters{};
    parameters.mem_size = ggml_tensor_overhead() * 16 + ggml_graph_overhead() + usize(p.k * p.n) +
                          8 * usize(p.m * (p.k + p.n)) + (1u << 20);
    context_ = ggml_init(parameters);
    if (context_ == nullptr) throw std::runtime_error("ggml_init failed");
    ggml_tensor* w = ggml_new_tensor_2d(context_, GGML_TYPE_MXFP4, p.k, p.n);
    std::vector<float> transposed(usize(p.k * p.n));
    for (Index k = 0; k < p.k; ++k)
      for (Index n = 0; n < p.n; ++n) transposed[usize(n * p.k + k)] = p.plain[k * p.n + n];
    ggml_quantize_chunk(GGML_TYPE_MXFP4, transposed.data(), w->data, 0, p.n, p.k, nullptr);
    ggml_tensor* a = ggml_new_tensor_2d(context_, GGML_TYPE_F32, p.k, p.m);
    std::memcpy(a->data, p.a, sizeof(float) * usize(p.m * p.k));
    out_ = ggml_mul_mat(context_, w, a);
    graph_ = ggml_new_graph(context_);
    ggml_build_forward_expand(graph_, out_);
    plan_ = ggml_graph_plan(graph_, threads, nullptr);
    work_.resize(plan_.work_size);
    plan_.work_data = work_.data();
  }
  ~GgmlProduct() override { ggml_free(context_); }

  void run() override {
    if (ggml_graph_compute(graph_, &plan_) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml_graph_compute failed");
    std::memcpy(p_.c, out_->data, sizeof(float) * usize(p_.m * p_.n));
  }

 private:
  PlainProduct p_;
  int threads_;
  ggml_context* context_ = nullptr;
  ggml_tensor* out_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
  ggml_cplan plan_{};
  std::vector<std::uint8_t> work_;
};

}  // namespace

std::unique_ptr<ProductPeer> make_ggml_product(const PlainProduct& problem, int threads) {
  return std::make_unique<GgmlProduct>(problem, threads);
}

}  // namespace assay::bench
