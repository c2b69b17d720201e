// For the memory sanitizer: the kernels without GoogleTest, oneTBB or anything else that is not
// instrumented. The sanitizer finds what a kernel computes from memory that was never written, and
// what it leaves unwritten. `--control` computes from such memory on purpose, and has to end in the
// sanitizer's report.
//
// Cases are built field by field, because the strings of a case line would go through a C++ library
// that is not instrumented.
#include <sanitizer/msan_interface.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include "kernels/attention/attention.h"
#include "kernels/cache/cache.h"
#include "kernels/product/product.h"
#include "kernels/simd/targets.h"
#include "problem/generate.h"

namespace assay {
namespace {

long checked = 0;

Tensor unwritten(Dtype dtype, const Extents& shape) {
  Tensor t(dtype, shape, make_layout(LayoutKind::bhsd, shape, 1));
  __msan_poison(t.bytes(), t.size_in_bytes());
  return t;
}

// Checks every element of an output. MSan returns -1 for a range in which every byte was written.
bool written(const char* what, const Tensor& t) {
  checked += static_cast<long>(element_count(t.view().shape));
  const auto at = __msan_test_shadow(t.bytes(), t.size_in_bytes());
  if (at < 0) return true;
  std::fprintf(stderr, "%s: byte %ld of %zu is not written, or comes of memory that is not\n", what,
               static_cast<long>(at), t.size_in_bytes());
  return false;
}

bool succeeded(const char* what, const kernels::Status& status) {
  if (status.ok()) return true;
  std::fprintf(stderr, "%s: status %d\n", what, static_cast<int>(status.code));
  return false;
}

bool run_attention(const Case& c, const kernels::Target& target) {
  const Inputs in(c);
  const AttentionShape& s = c.shape;
  const Tensor o = unwritten(c.dtype, s.o_extents()), lse = unwritten(Dtype::f32, s.lse_extents());
  const kernels::Execution how{static_cast<int>(c.threads), target};
  if (!succeeded("forward", kernels::attention_forward(in.problem, {o.view(), lse.view()}, how)) ||
      !written("O", o) || !written("LSE", lse))
    return false;
  if (c.operation != Operation::backward) return true;
  const Tensor dq = unwritten(c.dtype, s.q_extents()), dk = unwritten(c.dtype, s.k_extents()),
               dv = unwritten(c.dtype, s.v_extents());
  return succeeded("backward",
                   kernels::attention_backward(in.problem, {o.view(), lse.view(), in.d_o.view()},
                                               {dq.view(), dk.view(), dv.view(), {}, {}}, how)) &&
         written("dQ", dq) && written("dK", dk) && written("dV", dv);
}

bool run_cached(Case c, kernels::CacheKind kind, Dtype stored, const kernels::Target& target) {
  const Inputs in(c);
  const AttentionShape& s = c.shape;
  kernels::CacheConfig config;
  config.kind = kind;
  config.sequences = s.batch;
  config.kv_heads = s.kv_heads;
  config.dim = s.dim;
  config.value_dim = s.value_dim;
  config.capacity = s.keys;
  config.page_size = 7;
  config.dtype = stored;
  std::unique_ptr<kernels::Cache> cache;
  if (!succeeded("create", kernels::Cache::create(config, cache))) return false;
  const auto of_sequence = [](TensorView t, Index b) {
    t.origin += b * t.stride[0];
    t.shape[0] = 1;
    return t;
  };
  for (Index b = 0; b < s.batch; ++b)
    if (!succeeded("append",
                   cache->append(b, of_sequence(in.problem.k, b), of_sequence(in.problem.v, b))))
      return false;
  Attention problem = in.problem;
  problem.k = problem.v = {};
  const Tensor o = unwritten(c.dtype, s.o_extents()), lse = unwritten(Dtype::f32, s.lse_extents());
  return succeeded("attention_cached",
                   kernels::attention_cached(problem, *cache, {}, {o.view(), lse.view()},
                                             {static_cast<int>(c.threads), target})) &&
         written("O", o) && written("LSE", lse);
}

bool run_product(LowBit format, Dtype dtype, Index m, Index n, Index k,
                 const kernels::Target& target) {
  std::mt19937 random(static_cast<unsigned>(m * 31 + n));
  std::vector<float> plain(usize(k * n));
  for (float& x : plain) x = static_cast<float>(static_cast<int>(random() % 200) - 100) / 50;
  kernels::LowBitBytes bytes;
  std::shared_ptr<const kernels::PackedWeights> packed;
  if (!succeeded("quantize",
                 kernels::quantize_weights(
                     {plain.data(), Dtype::f32, {1, 1, k, n}, {0, 0, n, 1}, 0}, format, {}, bytes)))
    return false;
  if (!succeeded("pack", kernels::PackedWeights::pack(bytes.view(), packed))) return false;
  const Tensor a(dtype, {1, 1, m, k}, make_layout(LayoutKind::padded, {1, 1, m, k}, 1)),
      c = unwritten(dtype, {1, 1, m, n});
  __msan_poison(a.bytes(), a.size_in_bytes());  // the gaps between rows stay poisoned
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < k; ++j)
      store(a.view(), a.view().at(0, 0, i, j),
            static_cast<double>(static_cast<int>(random() % 64) - 32) / 16);
  return succeeded("product", kernels::product(a.view(), *packed, c.view(), {2, target})) &&
         written("C", c);
}

bool run_all() {
  for (const std::string& name : kernels::runnable_targets()) {
    const kernels::Target target = kernels::Target::named(name).value();
    for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
      Case c;
      c.dtype = dtype;
      const auto both = [&](const Case& of) {
        Case backward = of;
        backward.operation = Operation::backward;
        return run_attention(of, target) && run_attention(backward, target);
      };
      // The tails of every tile: one row against several splits, more rows than a tile, and columns
      // that do not fill a vector.
      for (const AttentionShape& s : {AttentionShape{1, 1, 1, 1, 1, 1, 1},
                                      {2, 3, 1, 37, 53, 17, 33},
                                      {1, 2, 2, 1, 1100, 64, 64},
                                      {1, 4, 2, 97, 130, 40, 72},
                                      {1, 1, 1, 3, 2, 128, 96}}) {
        c.shape = s;
        for (const LayoutKind layout :
             {LayoutKind::bhsd, LayoutKind::padded, LayoutKind::reversed}) {
          c.q_layout = c.k_layout = c.v_layout = layout;
          if (!both(c)) return false;
        }
        c.threads = 2;
        Case masked = c;
        masked.causal = true;
        masked.offset = {OffsetSpec::Kind::end, 0};
        masked.window_left = 20;
        masked.alibi = true;
        masked.sink = 0.5f;
        if (!both(masked)) return false;
        masked = c;
        masked.keep.pattern = MaskPattern::empty_rows;
        masked.bias.pattern = MaskPattern::minus_infinity;
        masked.softcap = 5;
        masked.dropout = 0.3f;
        masked.dropout_seed = 3;
        if (!both(masked)) return false;
        masked = c;
        masked.lengths.assign(usize(s.batch), s.keys / 2);
        masked.hidden = Hidden::nan;
        if (!both(masked)) return false;
      }
      c = {};
      c.dtype = dtype;
      c.causal = true;
      c.offset = {OffsetSpec::Kind::end, 0};
      c.shape = {2, 4, 2, 3, 41, 40, 24};
      for (const kernels::CacheKind kind :
           {kernels::CacheKind::contiguous, kernels::CacheKind::paged})
        for (const Dtype stored : {dtype, Dtype::f8e4m3, Dtype::f4e2m1})
          if (!run_cached(c, kind, stored, target)) return false;
      for (const LowBit f : values_of<LowBit>)
        for (const Index m : {1, 5, 33})
          if (!run_product(f, dtype, m, 70, 64, target) || !run_product(f, dtype, m, 3, 36, target))
            return false;
    }
    std::fprintf(stderr, "%s: ok\n", target.c_str());
  }
  std::fprintf(stderr, "%ld elements of outputs are written, and come of what was written\n",
               checked);
  return checked > 0;
}

// Reads one number of K that was never written. Either the sanitizer ends the program with its
// report, or this function returns.
void compute_from_unwritten() {
  Case c;
  c.shape = {1, 1, 1, 5, 70, 8, 8};
  const Inputs in(c);
  __msan_poison(static_cast<float*>(in.problem.k.data) + in.problem.k.at(0, 0, 69, 3),
                sizeof(float));
  const Tensor o = unwritten(Dtype::f32, {1, 1, 5, 8}), lse = unwritten(Dtype::f32, {1, 1, 5, 1});
  if (succeeded("forward", kernels::attention_forward(in.problem, {o.view(), lse.view()}, 1)) &&
      written("O", o))
    std::fprintf(stderr, "nothing was found\n");
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--control") == 0) {
    assay::compute_from_unwritten();
    return 0;
  }
  // An output that stays unwritten has to be found too.
  if (assay::written("an output that nobody wrote, as it should be found",
                     assay::unwritten(assay::Dtype::f32, {1, 1, 2, 3})))
    return 1;
  return assay::run_all() ? 0 : 1;
}
