#include "kernels/validate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>

#include "kernels/overlap.h"

namespace assay::kernels {
namespace {

bool is_kernel_dtype(Dtype d) { return d == Dtype::f32 || d == Dtype::f16 || d == Dtype::bf16; }

struct Argument {
  std::string_view name;
  Footprint footprint;
};

constexpr std::size_t input_count = attention_tensors.size() + 1;  // keep is the last one

// Writes the places of a problem's inputs.
void write_inputs(const Attention& p, std::span<Argument, input_count> inputs) {
  const AttentionShape& s = p.shape;
  for (std::size_t k = 0; k < attention_tensors.size(); ++k) {
    const TensorField& field = attention_tensors[k];
    inputs[k] = {field.name, footprint_of(p.*field.tensor, (s.*field.extents)())};
  }
  inputs.back() = {"keep", {p.keep.data, 8, s.pair_extents(), p.keep.stride, 0}};
}

// Checks that every view can be addressed, and that no output overlaps itself or another tensor.
Status check_memory(std::span<const Argument> outputs, std::span<const Argument> inputs) {
  auto refuse = [](std::string detail) {
    return Status{StatusCode::invalid_arguments, std::move(detail)};
  };
  constexpr std::size_t most = 16;
  const Argument* all[most];
  Reach reach[most];
  std::size_t count = 0;
  for (auto list : {outputs, inputs})
    for (const Argument& a : list) {
      const std::optional<Reach> r = reach_of(a.footprint);
      if (!r)
        return refuse(fmt::format(
            "{} with strides {} and origin {} reaches more than 2^57 bytes from its pointer",
            a.name, fmt::join(a.footprint.stride, ", "), a.footprint.origin));
      all[count] = &a;
      reach[count++] = *r;
    }
  const char* doubt[] = {"", "overlaps", "may overlap"};
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const Footprint& out = outputs[k].footprint;
    if (const Overlap o = overlap_with_itself(out); o != Overlap::none)
      return refuse(fmt::format("{} {} itself: shape {}, strides {}", outputs[k].name,
                                doubt[static_cast<int>(o)], fmt::join(out.shape, ", "),
                                fmt::join(out.stride, ", ")));
    // Most views do not even have ranges that cross.
    for (std::size_t other = k + 1; other < count; ++other)
      if (reach[k].begin < reach[other].end && reach[other].begin < reach[k].end)
        if (const Overlap o = overlap(out, all[other]->footprint); o != Overlap::none)
          return refuse(fmt::format("{} {} {}; an output may overlap nothing", outputs[k].name,
                                    doubt[static_cast<int>(o)], all[other]->name));
  }
  return {};
}

// Checks everything except the places of the views.
Status validate_problem(const Attention& p, const AttentionOutput& out, bool cached) {
  auto refuse = [](std::string detail) {
    return Status{StatusCode::invalid_arguments, std::move(detail)};
  };
  const AttentionShape& s = p.shape;
  if (s.batch < 0) return refuse(fmt::format("batch = {} is negative", s.batch));
  if (s.rows < 0) return refuse(fmt::format("rows = {} is negative", s.rows));
  if (s.keys < 0) return refuse(fmt::format("keys = {} is negative", s.keys));
  if (s.kv_heads < 1) return refuse(fmt::format("kv_heads = {} is below 1", s.kv_heads));
  if (s.query_heads < 1 || s.query_heads % s.kv_heads != 0)
    return refuse(fmt::format("query_heads = {} is not a positive multiple of kv_heads = {}",
                              s.query_heads, s.kv_heads));
  // With this limit, sums and products of extents and positions stay far from the ends of 64 bits.
  for (auto [name, extent] : {std::pair{"batch", s.batch},
                              {"query_heads", s.query_heads},
                              {"rows", s.rows},
                              {"keys", s.keys}})
    if (extent > largest_extent) return refuse(fmt::format("{} = {} is above 2^40", name, extent));
  if (static_cast<double>(s.batch) * static_cast<double>(s.query_heads) > 0x1p40)
    return refuse(
        fmt::format("batch * query_heads = {} * {} is above 2^40", s.batch, s.query_heads));
  for (Index offset : p.offset)
    if (offset > largest_extent || offset < -largest_extent)
      return refuse(fmt::format("offset = {} is outside [-2^40, 2^40]", offset));
  for (auto [name, d] : {std::pair{"dim", s.dim}, std::pair{"value_dim", s.value_dim}})
    if (d < 1 || d > max_head_dim)
      return refuse(fmt::format("{} = {} is outside [1, {}]", name, d, max_head_dim));
  if (!std::isfinite(p.scale))
    return refuse(fmt::format("scale = {} is not a finite number", p.scale));
  if (!(p.softcap >= 0) || p.softcap > std::numeric_limits<float>::max())
    return refuse(fmt::format("softcap = {} is not a finite number of at least 0", p.softcap));
  if (!(p.dropout >= 0 && p.dropout < 1))
    return refuse(fmt::format("dropout = {} is outside [0, 1)", p.dropout));
  const bool empty_rows = s.batch == 0 || s.rows == 0,
             empty_keys = s.batch == 0 || s.keys == 0 || cached;
  if (!empty_rows && !p.q) return refuse("q is null");
  if (!empty_keys && !p.k) return refuse("k is null");
  if (!empty_keys && !p.v) return refuse("v is null");
  if (!empty_rows && !out.o) return refuse("o is null");
  for (auto [name, d] : {std::pair{"q", p.q.dtype},
                         {"k", cached ? p.q.dtype : p.k.dtype},
                         {"v", cached ? p.q.dtype : p.v.dtype},
                         {"o", out.o.dtype},
                         {"bias", p.bias.dtype}})
    if (!is_kernel_dtype(d))
      return Status{
          StatusCode::unsupported,
          fmt::format("{} is {}; the kernel takes f32, f16 and bf16", name, format(d).name)};
  if (!cached && (p.k.dtype != p.q.dtype || p.v.dtype != p.q.dtype))
    return refuse(fmt::format("q, k and v are {}, {} and {}; they must agree",
                              format(p.q.dtype).name, format(p.k.dtype).name,
                              format(p.v.dtype).name));
  if (out.lse && out.lse.dtype != Dtype::f32)
    return refuse(fmt::format("lse is {}; it must be f32", format(out.lse.dtype).name));
  Status of_lists;
  for_each_list([&](const auto& field) {
    const auto [outer, inner] = extent_of(field.along, s);
    const auto size = std::ssize(p.*field.list);
    Index wanted = 0;
    if (size == 0 || (!__builtin_mul_overflow(outer, inner, &wanted) && size == wanted)) return;
    if (!of_lists.ok()) return;  // the first one is told
    of_lists = refuse(
        fmt::format("{} has {} entries, not {}", field.name, size,
                    inner == 1 ? fmt::to_string(outer) : fmt::format("{} * {}", outer, inner)));
  });
  if (!of_lists.ok()) return of_lists;
  if (p.query_segment.empty() != p.key_segment.empty() && s.rows > 0 && s.keys > 0)
    return refuse("query_segment and key_segment must come together");
  for (auto [name, list] : {std::pair{"sink", &p.sink}, {"alibi_slopes", &p.alibi_slopes}})
    for (float x : *list)
      if (!(std::fabs(x) <= std::numeric_limits<float>::max()))
        return refuse(fmt::format("{} = {} is not finite", name, x));
  for (const auto* list : {&p.key_lengths, &p.key_starts})
    for (Index n : *list)
      if (n < 0 || n > s.keys)
        return refuse(fmt::format("a key length or start of {} is outside [0, {}]", n, s.keys));
  return {};
}

}  // namespace

Status validate_attention(const Attention& p, const AttentionOutput& out, bool cached) {
  if (Status status = validate_problem(p, out, cached); !status.ok()) return status;
  const AttentionShape& s = p.shape;
  const Argument outputs[] = {{"o", footprint_of(out.o, s.o_extents())},
                              {"lse", footprint_of(out.lse, s.lse_extents())}};
  std::array<Argument, input_count> inputs;
  write_inputs(p, inputs);
  return check_memory(outputs, inputs);
}

Status validate_backward(const Attention& p, const AttentionBackwardInput& in,
                         const AttentionGradients& out) {
  if (Status status = validate_problem(p, {in.o, in.lse}, false); !status.ok()) return status;
  auto refuse = [](std::string detail) {
    return Status{StatusCode::invalid_arguments, std::move(detail)};
  };
  const AttentionShape& s = p.shape;
  const bool empty_rows = s.batch == 0 || s.rows == 0, empty_keys = s.batch == 0 || s.keys == 0;
  for (auto [name, t] : {std::pair{"lse", &in.lse}, {"d_o", &in.d_o}, {"dq", &out.dq}})
    if (!empty_rows && !*t) return refuse(fmt::format("{} is null", name));
  for (auto [name, t] : {std::pair{"dk", &out.dk}, {"dv", &out.dv}})
    if (!empty_keys && !*t) return refuse(fmt::format("{} is null", name));
  if (in.d_o && in.d_o.dtype != p.q.dtype)
    return refuse(fmt::format("d_o is {}, q is {}; they must agree", format(in.d_o.dtype).name,
                              format(p.q.dtype).name));
  if (in.d_lse && in.d_lse.dtype != Dtype::f32)
    return refuse(fmt::format("d_lse is {}; it must be f32", format(in.d_lse.dtype).name));
  for (auto [name, t] : {std::pair{"dq", &out.dq}, {"dk", &out.dk}, {"dv", &out.dv}})
    if (!is_kernel_dtype(t->dtype))
      return Status{StatusCode::unsupported,
                    fmt::format("{} is {}; the kernel writes f32, f16 and bf16", name,
                                format(t->dtype).name)};
  for (auto [name, t] : {std::pair{"d_bias", &out.d_bias}, {"d_sink", &out.d_sink}})
    if (*t && t->dtype != Dtype::f32)
      return refuse(fmt::format("{} is {}; it must be f32", name, format(t->dtype).name));
  if (out.d_sink && p.sink.empty()) return refuse("d_sink is asked for, but sink has 0 entries");
  // Where dBias broadcasts, its elements are sums and share one place on purpose.
  Extents d_bias = s.pair_extents();
  for (std::size_t k = 0; k < 4; ++k)
    if (out.d_bias.stride[k] == 0) d_bias[k] = std::min<Index>(d_bias[k], 1);
  const Argument outputs[] = {{"dq", footprint_of(out.dq, s.q_extents())},
                              {"dk", footprint_of(out.dk, s.k_extents())},
                              {"dv", footprint_of(out.dv, s.v_extents())},
                              {"d_bias", footprint_of(out.d_bias, d_bias)},
                              {"d_sink", footprint_of(out.d_sink, {1, s.query_heads, 1, 1})}};
  std::array<Argument, input_count + 4> inputs;
  write_inputs(p, std::span(inputs).first<input_count>());
  inputs[input_count + 3] = {"d_lse", footprint_of(in.d_lse, s.lse_extents())};
  inputs[input_count] = {"o", footprint_of(in.o, s.o_extents())};
  inputs[input_count + 1] = {"lse", footprint_of(in.lse, s.lse_extents())};
  inputs[input_count + 2] = {"d_o", footprint_of(in.d_o, s.o_extents())};
  return check_memory(outputs, inputs);
}

}  // namespace assay::kernels
