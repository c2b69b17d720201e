// The production kernels as a library behind include/assay/kernel.h, like anybody else's library.
// `assay check --kernel` is tested with it.
#include <assay/kernel.h>

#include <string>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/c_interface/c_common.h"
#include "kernels/product/product.h"
#include "kernels/validate.h"

using namespace assay;
using namespace assay::kernels;

namespace {

assay_status supports(std::int32_t, const assay_attention*, const assay_dtype*, const char**) {
  return ASSAY_SUCCESS;
}

// The same contract as in process, except for the splits of the keys, which the struct cannot
// declare. So the order of sums is not declared.
assay_status arithmetic(const assay_attention* problem, assay_arithmetic* a) {
  a->exp_ulp = 1.5;
  a->tanh_ulp = 4;
  a->exp_floor = 0x1p-125;
  const ForwardTiling tiling = forward_tiling(problem->q->shape[3], problem->v->shape[3]);
  a->tile = tiling.keys;
  a->row_tile = tiling.rows;
  return ASSAY_SUCCESS;
}

assay_status forward(const assay_attention* problem, const assay_tensor* o, const assay_tensor* lse,
                     const assay_run* run) {
  return guarded([&] {
    const Attention p = problem_of(problem);
    return attention_forward(p, output_of(p, o, lse), run->threads);
  });
}

assay_status backward(const assay_attention* problem, const assay_tensor* o,
                      const assay_tensor* lse, const assay_tensor* d_o,
                      const assay_gradients* gradients, const assay_run* run) {
  return guarded([&] {
    const Attention p = problem_of(problem);
    const AttentionOutput stored = output_of(p, o, lse);
    const auto of_shape = [](const assay_tensor* t, const char* name, const Extents& shape) {
      const TensorView view = view_of(t, name);
      if (t) expect_shape(view, name, shape);
      return view;
    };
    const AttentionShape& s = p.shape;
    return attention_backward(
        p, {stored.o, stored.lse, of_shape(d_o, "d_o", s.o_extents())},
        {of_shape(gradients->dq, "dq", s.q_extents()), of_shape(gradients->dk, "dk", s.k_extents()),
         of_shape(gradients->dv, "dv", s.v_extents()), view_of(gradients->d_bias, "d_bias"),
         view_of(gradients->d_sink, "d_sink")},
        run->threads);
  });
}

// Every token of a sequence must lie in a page that is there.
void check_pages(const Attention& p, const assay_pages& pages, const TensorView& k) {
  if (pages.page_size < 1) refuse("page_size = " + std::to_string(pages.page_size) + " is below 1");
  for (Index b = 0; b < p.shape.batch; ++b)
    for (Index j = p.key_starts.empty() ? 0 : p.key_starts[usize(b)]; j < p.key_lengths[usize(b)];
         ++j) {
      const Index place = j / pages.page_size;
      if (place >= pages.pages_per_sequence)
        refuse("token " + std::to_string(j) +
               " lies beyond pages_per_sequence = " + std::to_string(pages.pages_per_sequence));
      const Index page = pages.block_table[b * pages.pages_per_sequence + place];
      if (page < 0 || page >= k.shape[0])
        refuse("page " + std::to_string(page) + " in block_table is outside [0, " +
               std::to_string(k.shape[0]) + ")");
    }
}

assay_status decode(const assay_attention* problem, const assay_pages* pages, const assay_tensor* o,
                    const assay_tensor* lse, const assay_run* run) {
  return guarded([&] {
    const Attention p = problem_of(problem);
    const AttentionOutput out = output_of(p, o, lse);
    if (Status status = validate_attention(p, out, true); !status.ok()) return status;
    const TensorView k = view_of(pages->k, "k"), v = view_of(pages->v, "v");
    check_pages(p, *pages, k);
    const std::vector<Index> table(pages->block_table,
                                   pages->block_table + p.shape.batch * pages->pages_per_sequence);
    std::vector<StoredKeyValues> stored;
    for (Index b = 0; b < p.shape.batch; ++b)
      for (Index g = 0; g < p.shape.kv_heads; ++g) {
        const auto rows = [&](const TensorView& t) {
          const Index bytes = format(t.dtype).bits / 8;
          StoredRows r;
          r.columns = {static_cast<const std::byte*>(t.data) + t.at(0, g, 0, 0) * bytes,
                       t.dtype,
                       t.shape[3],
                       t.stride[3],
                       t.stride[2] * bytes,
                       t.stride[0] * bytes};
          r.pages = table.data() + b * pages->pages_per_sequence;
          r.page_size = pages->page_size;
          r.begin = p.key_starts.empty() ? 0 : p.key_starts[usize(b)];
          r.end = p.key_lengths[usize(b)];
          return r;
        };
        stored.push_back({rows(k), rows(v)});
      }
    return forward_stored(p, std::move(stored), out, run->threads, nullptr);
  });
}

assay_status multiply(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                      const assay_run* run) {
  return guarded([&] {
    std::shared_ptr<const PackedWeights> packed;
    if (Status status = PackedWeights::pack(low_bit_view(w, "w"), packed); !status.ok())
      return status;
    return product(view_of(a, "a"), *packed, view_of(c, "c"), run->threads);
  });
}

}  // namespace

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  static const assay_kernel table = [] {
    assay_kernel k;
    assay_kernel_init(&k, "assay host kernels");
    k.supports = supports;
    k.arithmetic = arithmetic;
    k.forward = forward;
    k.backward = backward;
    k.decode = decode;
    k.product = multiply;
    return k;
  }();
  return version >= ASSAY_VERSION ? &table : nullptr;
}
