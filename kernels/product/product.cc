#include "kernels/product/product.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <new>
#include <string>
#include <tuple>

#include "kernels/overlap.h"
#include "kernels/product/product_amx.h"
#include "kernels/product/product_plan.h"
#include "kernels/simd/scratch.h"

namespace assay::kernels {

namespace {

Status refuse(std::string detail) { return {StatusCode::invalid_arguments, std::move(detail)}; }

bool is_kernel_dtype(Dtype d) { return d == Dtype::f32 || d == Dtype::f16 || d == Dtype::bf16; }

// Counts zeros, because extents may be so large that their product wraps.
bool is_empty(const Extents& e) { return std::ranges::count(e, 0) > 0; }

Status check_view(const char* name, const TensorView& t, const Extents& wanted) {
  if (t.shape != wanted)
    return refuse(fmt::format("{} has shape [{}], not [{}]", name, fmt::join(t.shape, ", "),
                              fmt::join(wanted, ", ")));
  if (!is_kernel_dtype(t.dtype))
    return {StatusCode::unsupported,
            fmt::format("{} is {}; products take f32, f16 and bf16", name, name_of_dtype(t.dtype))};
  if (is_empty(wanted)) return {};
  if (!t) return refuse(fmt::format("{} is null", name));
  if (!reach_of(footprint_of(t, wanted)))
    return refuse(fmt::format(
        "{} with strides {} and origin {} reaches more than 2^57 bytes from its pointer", name,
        fmt::join(t.stride, ", "), t.origin));
  return {};
}

RunProduct kernel_of_floats(const PackedWeights& w, const Target& target) {
  return traits(w.format()).bits == 4 ? nibble_product(target) : byte_product(target);
}
RunProduct kernel_for(Dtype a, const PackedWeights& w, const Target& target) {
  return multiplies_with_amx(target, a) ? product_of_amx() : kernel_of_floats(w, target);
}

}  // namespace

Status check_product(const ProductOperands& p, Index k, Index n) {
  const Extents c_shape{1, 1, p.m, n}, a_shape{1, 1, p.m, k};
  if (p.m < 0) return refuse(fmt::format("m = {} is negative", p.m));
  if (p.a) {
    if (Status status = check_view("a", *p.a, a_shape); !status.ok()) return status;
  } else {
    const LowBitView& a = *p.a_low;
    if (static_cast<int>(a.format) >= count_of<LowBit> ||
        traits(a.format).layout != CodeLayout::columns)
      return {StatusCode::unsupported,
              fmt::format("a is {}; a low-bit A is mxfp4, nvfp4, f8e4m3 or f8e5m2",
                          static_cast<int>(a.format) < count_of<LowBit>
                              ? std::string(traits(a.format).name)
                              : "format " + std::to_string(static_cast<int>(a.format)))};
    // A matrix without any rows is allowed here; it has no bytes.
    static constexpr std::byte nothing{};
    LowBitView rows = a;
    if (a.n == 0) rows.n = 1, rows.codes = rows.scales = &nothing;
    if (Status status = a.n == 0 ? validate_low_bit_shape(rows) : validate_low_bit(a); !status.ok())
      return {status.code, "a: " + status.detail};
    if (a.k != k) return refuse(fmt::format("a has k = {}, not the {} of the weights", a.k, k));
  }
  if (Status status = check_view("c", p.c, c_shape); !status.ok()) return status;
  if (is_empty(c_shape)) return {};
  const Footprint c = footprint_of(p.c, c_shape);
  if (overlap_with_itself(c) != Overlap::none)
    return refuse(fmt::format("c overlaps itself: shape {}, strides {}", fmt::join(c.shape, ", "),
                              fmt::join(c.stride, ", ")));
  if (p.a && overlap(c, footprint_of(*p.a, a_shape)) != Overlap::none)
    return refuse("c overlaps a; an output may overlap nothing");
  if (!p.a) {
    const LowBitSizes sizes = sizes_of(p.a_low->format, p.a_low->k, p.a_low->n, p.a_low->group);
    for (auto [name, data, bytes] : {std::tuple{"codes", p.a_low->codes, sizes.codes},
                                     {"scales", p.a_low->scales, sizes.scales}})
      if (bytes > 0 && overlap(c, {data, 8, {1, 1, 1, bytes}, {0, 0, 0, 1}, 0}) != Overlap::none)
        return refuse(fmt::format("c overlaps the {} of a; an output may overlap nothing", name));
  }
  return {};
}

Status plan_and_run_product(const ProductPlan& plan, RunProduct run, const void* stages) {
  if (Status status = check_product(plan, plan.w->k(), plan.w->n()); !status.ok()) return status;
  if (plan.m == 0) return {};
  try {
    const ParallelRegion region(plan.threads);
    run(plan, stages);
  } catch (const std::bad_alloc&) {
    return out_of_memory("a workspace for {} rows of k = {}", plan.m, plan.w->k());
  }
  return {};
}

Status product(const TensorView& a, const PackedWeights& w, const TensorView& c,
               const Execution& how) {
  ProductPlan plan;
  plan.a = &a;
  plan.w = &w;
  plan.c = c;
  plan.m = a.shape[2];
  plan.threads = how.threads;
  return plan_and_run_product(plan, kernel_for(a.dtype, w, how.target), nullptr);
}

Status product(const LowBitView& a, const PackedWeights& w, const TensorView& c,
               const Execution& how) {
  ProductPlan plan;
  plan.a_low = &a;
  plan.w = &w;
  plan.c = c;
  plan.m = a.n;
  plan.threads = how.threads;
  return plan_and_run_product(plan, kernel_of_floats(w, how.target), nullptr);
}

}  // namespace assay::kernels
