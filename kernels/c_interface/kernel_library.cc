// The production kernels as a library behind include/assay/kernel.h, like anybody else's library.
// `assay check --kernel` is tested with it.
#include <assay/kernel.h>

#include <string>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/c_interface/c_common.h"
#include "kernels/cache/cache_storage.h"
#include "kernels/simd/bf16_dots.h"
#include "kernels/product/product.h"
#include "kernels/validate.h"

using namespace assay;
using namespace assay::kernels;

namespace {

assay_status supports(std::int32_t, const assay_attention*, const assay_dtype*, const char**) {
  return ASSAY_SUCCESS;
}

// Pairs of bf16 flush subnormal numbers, which the struct cannot declare. So nothing is computed in
// them here.
Execution on(const assay_run* run) { return {run->threads, without_bf16_dots(Target())}; }

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
    return attention_forward(p, output_of(p, o, lse), on(run));
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
        p,
        {stored.o, stored.lse, of_shape(d_o, "d_o", s.o_extents()),
         of_shape(gradients->d_lse, "d_lse", s.lse_extents())},
        {of_shape(gradients->dq, "dq", s.q_extents()), of_shape(gradients->dk, "dk", s.k_extents()),
         of_shape(gradients->dv, "dv", s.v_extents()), view_of(gradients->d_bias, "d_bias"),
         view_of(gradients->d_sink, "d_sink")},
        on(run));
  });
}

// K or V in pages, with the scales of 8- and 4-bit floats.
struct StoredPlane {
  TensorView t, scales;
  Index group;

  StoredPlane(const assay_tensor* elements, const assay_tensor* their_scales,
              const assay_pages& pages)
      : t(view_of(elements, "pages")),
        scales(view_of(their_scales, "scales")),
        group(pages.group_size > 0 ? std::min(pages.group_size, t.shape[3]) : t.shape[3]) {}
  Index byte_of(Index element) const { return element * format(t.dtype).bits / 8; }
  StoredColumns columns(Index g) const {
    StoredColumns c{static_cast<const std::byte*>(t.data) + byte_of(t.at(0, g, 0, 0)),
                    t.dtype,
                    t.shape[3],
                    t.stride[3],
                    byte_of(t.stride[2]),
                    byte_of(t.stride[0])};
    if (!scales) return c;
    c.scales = static_cast<const std::uint8_t*>(scales.data) + scales.at(0, g, 0, 0);
    c.group = group;
    c.row_scales = scales.stride[2];
    c.page_scales = scales.stride[0];
    return c;
  }
  // Stores row `row` of the tokens of a sequence.
  void store(const TensorView& tokens, Index g, Index row, Index page, Index slot) const {
    std::uint8_t* of_row =
        scales ? static_cast<std::uint8_t*>(scales.data) + scales.at(page, g, slot, 0) : nullptr;
    encode_token(tokens, g, row, t.dtype, group,
                 static_cast<std::byte*>(t.data) + byte_of(t.at(page, g, slot, 0)), of_row);
  }
};

// Codes of 8 and 4 bits are read, and every token is written, one column beside the other.
assay_status in_rows(const assay_pages* pages, const char** reason) {
  for (const assay_tensor* t : {pages->k, pages->v})
    if (t->strides[3] != 1) return *reason = "columns of pages that lie apart", ASSAY_UNSUPPORTED;
  return ASSAY_SUCCESS;
}
bool has_own_scales(const assay_pages* pages, const char** reason) {
  if (!pages->k_scales || pages->k_scales->dtype.code == ASSAY_FLOAT8_E8M0FNU) return true;
  *reason = "scales of a cache that are not E8M0";
  return false;
}
assay_status supports_cache(const assay_attention*, const assay_pages* pages, const assay_dtype*,
                            const char** reason) {
  if (!has_own_scales(pages, reason)) return ASSAY_UNSUPPORTED;
  return pages->k_scales ? in_rows(pages, reason) : ASSAY_SUCCESS;
}
assay_status supports_append(const assay_tensor*, const assay_tensor*, const assay_pages* pages,
                             const char** reason) {
  if (!has_own_scales(pages, reason)) return ASSAY_UNSUPPORTED;
  return in_rows(pages, reason);
}

template <class T>
const T& there(const T* given, const char* name) {
  if (!given) refuse(std::string(name) + " is null");
  return *given;
}

// Pages that hold tokens, with scales where their elements are codes.
StoredPlane plane_of(const assay_tensor* elements, const assay_tensor* scales,
                     const assay_pages& pages, const char* name) {
  if (there(elements, name).dtype.bits <= 8) there(scales, "scales of pages");
  StoredPlane plane(elements, scales, pages);
  if (plane.t.shape[2] != pages.page_size)
    refuse(std::string(name) + " has pages of " + std::to_string(plane.t.shape[2]) +
           " tokens, not of page_size = " + std::to_string(pages.page_size));
  return plane;
}

// Tokens that go into pages: as many of V as of K, with the heads and columns of the pages.
TensorView tokens_for(const StoredPlane& plane, const assay_tensor* given, const char* name,
                      const assay_tensor& k) {
  const TensorView t = view_of(&there(given, name), name);
  expect_shape(t, name, {k.shape[0], plane.t.shape[1], k.shape[2], plane.t.shape[3]});
  return t;
}

void check_slots(const std::int64_t* slots, Index count, Index end) {
  if (count > 0) there(slots, "slots");
  for (Index n = 0; n < count; ++n)
    if (slots[n] < -1 || slots[n] >= end)
      refuse("slots[" + std::to_string(n) + "] = " + std::to_string(slots[n]) +
             " is outside [-1, " + std::to_string(end) + ")");
}

assay_status append(const assay_tensor* k, const assay_tensor* v, const std::int64_t* slots,
                    const assay_pages* pages, const assay_run*) {
  return guarded([&] {
    there(pages, "pages");
    const StoredPlane of_k = plane_of(pages->k, pages->k_scales, *pages, "pages.k"),
                      of_v = plane_of(pages->v, pages->v_scales, *pages, "pages.v");
    const assay_tensor& first = there(k, "k");
    TensorView tokens_k = tokens_for(of_k, k, "k", first),
               tokens_v = tokens_for(of_v, v, "v", first);
    check_slots(slots, tokens_k.shape[0] * tokens_k.shape[2], of_k.t.shape[0] * pages->page_size);
    const Index batch = tokens_k.shape[0], heads = tokens_k.shape[1], count = tokens_k.shape[2];
    for (Index b = 0; b < batch; ++b) {
      for (Index row = 0; row < count; ++row) {
        const Index at = slots[b * count + row];
        for (Index g = 0; at >= 0 && g < heads; ++g) {
          of_k.store(tokens_k, g, row, at / pages->page_size, at % pages->page_size);
          of_v.store(tokens_v, g, row, at / pages->page_size, at % pages->page_size);
        }
      }
      tokens_k.origin += tokens_k.stride[0];
      tokens_v.origin += tokens_v.stride[0];
    }
    return Status{};
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
    const StoredPlane k(pages->k, pages->k_scales, *pages), v(pages->v, pages->v_scales, *pages);
    check_pages(p, *pages, k.t);
    const std::vector<Index> table(pages->block_table,
                                   pages->block_table + p.shape.batch * pages->pages_per_sequence);
    std::vector<StoredKeyValues> stored;
    for (Index b = 0; b < p.shape.batch; ++b)
      for (Index g = 0; g < p.shape.kv_heads; ++g) {
        const auto rows = [&](const StoredPlane& t) {
          StoredRows r;
          r.columns = t.columns(g);
          r.pages = table.data() + b * pages->pages_per_sequence;
          r.page_size = pages->page_size;
          r.begin = p.key_starts.empty() ? 0 : p.key_starts[usize(b)];
          r.end = p.key_lengths[usize(b)];
          return r;
        };
        stored.push_back({rows(k), rows(v)});
      }
    return forward_stored(p, std::move(stored), out, on(run), nullptr);
  });
}

assay_status multiply(const assay_tensor* a, const assay_low_bit* w, const assay_tensor* c,
                      const assay_run* run) {
  return guarded([&] {
    std::shared_ptr<const PackedWeights> packed;
    if (Status status = PackedWeights::pack(low_bit_view(w, "w"), packed); !status.ok())
      return status;
    return product(view_of(a, "a"), *packed, view_of(c, "c"), on(run));
  });
}

assay_status multiply_low_bit(const assay_low_bit* a, const assay_low_bit* w, const assay_tensor* c,
                              const assay_run* run) {
  return guarded([&] {
    std::shared_ptr<const PackedWeights> packed;
    if (Status status = PackedWeights::pack(low_bit_view(w, "w"), packed); !status.ok())
      return status;
    return product(low_bit_view(a, "a"), *packed, view_of(c, "c"), on(run));
  });
}

void copy(const std::vector<std::byte>& from, void* to) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

assay_status quantize(const assay_tensor* w, const assay_low_bit_output* to, const assay_run*) {
  return guarded([&] {
    LowBitBytes bytes;
    expect_shape(view_of(&there(w, "w"), "w"), "w", {1, 1, there(to, "to").k, to->n});
    if (!to->codes) refuse("to.codes is null");
    if (Status status = quantize_weights(view_of(w, "w"), low_bit_format(to->format, "to"),
                                         {to->group_size}, bytes);
        !status.ok())
      return status;
    if (!bytes.scales.empty() && !to->scales) refuse("to.scales is null");
    if (!bytes.extra.empty() && !to->extra) refuse("to.extra is null");
    copy(bytes.codes, to->codes);
    copy(bytes.scales, to->scales);
    copy(bytes.extra, to->extra);
    if (to->tensor_scale) *to->tensor_scale = bytes.tensor_scale;
    return Status{};
  });
}

}  // namespace

extern "C" const assay_kernel* assay_kernel_entry(std::uint32_t version) {
  static const assay_conventions ours = [] {
    assay_conventions c;
    assay_conventions_init(&c);
    c.masked_rows = ASSAY_MASKED_ROWS_ZERO;
    c.masked_lse = ASSAY_MASKED_LSE_MINUS_INFINITY;
    c.masked_nan = ASSAY_MASKED_NAN_IGNORED;
    c.anchor = ASSAY_ANCHOR_TOP_LEFT;
    c.subnormals = ASSAY_SUBNORMALS_KEPT;
    c.weightless_rows = ASSAY_WEIGHTLESS_ROWS_NAN;
    c.weightless_lse = ASSAY_WEIGHTLESS_LSE_MINUS_INFINITY;
    return c;
  }();
  static const assay_kernel table = [] {
    assay_kernel k;
    assay_kernel_init(&k, "assay host kernels");
    k.supports = supports;
    k.arithmetic = arithmetic;
    k.forward = forward;
    k.backward = backward;
    k.decode = decode;
    k.product = multiply;
    k.conventions = &ours;
    k.product_low_bit = multiply_low_bit;
    k.quantize = quantize;
    k.supports_cache = supports_cache;
    k.supports_append = supports_append;
    k.append = append;
    k.d_lse = 1;
    return k;
  }();
  return version >= ASSAY_VERSION ? &table : nullptr;
}
