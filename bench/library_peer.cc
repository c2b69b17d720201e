#include "bench/library_peer.h"

#include <assay/kernel.h>
#include <dlfcn.h>

#include <filesystem>
#include <memory>
#include <stdexcept>

namespace assay::bench {
namespace {

assay_tensor described(const Tensor& t) {
  const TensorView& v = t.view();
  assay_tensor to;
  assay_tensor_init(&to, v.data, v.dtype == Dtype::bf16 ? ASSAY_BFLOAT : ASSAY_FLOAT,
                    static_cast<std::uint8_t>(format(v.dtype).bits), v.shape[0], v.shape[1],
                    v.shape[2], v.shape[3]);
  return to;
}

// The arguments of a call.
struct Call {
  Call(const Data& d, int threads) {
    q = described(d.q), k = described(d.k), v = described(d.v), o = described(d.o),
    lse = described(d.lse);
    assay_attention_init(&problem);
    problem.q = &q, problem.k = &k, problem.v = &v;
    problem.scale = d.problem.scale;
    problem.flags = d.problem.causal ? ASSAY_CAUSAL : 0;
    run.threads = threads;
  }
  assay_tensor q, k, v, o, lse, d_o, dq, dk, dv;
  assay_attention problem;
  assay_gradients gradients;
  assay_run run{ASSAY_VERSION, sizeof(assay_run), nullptr, 0, 0, 0, nullptr, nullptr};
};

void expect(const assay_kernel& peer, assay_status status) {
  if (status != ASSAY_SUCCESS)
    throw std::runtime_error(fmt::format("{} answers {}", peer.name, status));
}

}  // namespace

const assay_kernel* load_peer(const std::string& name) {
  const auto path = std::filesystem::read_symlink("/proc/self/exe").parent_path() /
                    fmt::format("libassay_peer_{}.so", name);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const auto entry =
      library ? reinterpret_cast<assay_kernel_entry_function>(dlsym(library, "assay_kernel_entry"))
              : nullptr;
  return entry ? entry(ASSAY_VERSION) : nullptr;
}

Run peer_forward(const assay_kernel& peer, const Data& data, int threads) {
  auto call = std::make_shared<Call>(data, threads);
  return [&peer, call] {
    expect(peer,
           peer.forward(&call->problem, &call->o, peer.no_lse ? nullptr : &call->lse, &call->run));
  };
}

Run peer_backward(const assay_kernel& peer, const Data& data, int threads) {
  auto call = std::make_shared<Call>(data, threads);
  call->d_o = described(data.d_o), call->dq = described(data.dq), call->dk = described(data.dk),
  call->dv = described(data.dv);
  assay_gradients_init(&call->gradients);
  call->gradients.dq = &call->dq, call->gradients.dk = &call->dk, call->gradients.dv = &call->dv;
  return [&peer, call] {
    expect(peer, peer.backward(&call->problem, &call->o, &call->lse, &call->d_o, &call->gradients,
                               &call->run));
  };
}

}  // namespace assay::bench
