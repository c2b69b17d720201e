#include "kernels/c_interface/c_common.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <vector>

#include "kernels/c_interface/c_fields.h"
#include "kernels/overlap.h"

namespace assay::kernels {
namespace {

thread_local char last_error[1024] = "";

template <class T>
std::vector<T> list_of(const T* data, std::int64_t count, std::string_view name,
                       const ListExtent& extent) {
  const auto [outer, inner] = extent;
  if (count == 0) return {};
  Index wanted = 0;
  if (__builtin_mul_overflow(outer, inner, &wanted) || count != wanted)
    refuse(fmt::format("{} has {} entries, not {}", name, count,
                       inner == 1 ? fmt::to_string(outer) : fmt::format("{} * {}", outer, inner)));
  if (!data) refuse(fmt::format("{} is null and has {} entries", name, count));
  return {data, data + count};
}

// Broadcasts a view to [B, Hq, Lq, Lk]; an extent of 1 is repeated.
void broadcast(TensorView& t, const char* name, const Extents& shape) {
  for (std::size_t k = 0; k < 4; ++k)
    if (t.shape[k] == 1) t.stride[k] = 0, t.shape[k] = shape[k];
  expect_shape(t, name, shape);
}

}  // namespace

void refuse(std::string detail, StatusCode code) { throw Refused{{code, std::move(detail)}}; }

assay_status conclude(StatusCode code, std::string_view detail) noexcept {
  last_error[0] = '\0';
  if (code != StatusCode::success) {
    const std::string_view message = message_of(code);
    std::snprintf(last_error, sizeof(last_error), "%.*s%s%.*s", static_cast<int>(message.size()),
                  message.data(), detail.empty() ? "" : ": ",
                  static_cast<int>(std::min<std::size_t>(detail.size(), sizeof(last_error))),
                  detail.data());
  }
  return static_cast<assay_status>(code);
}

Dtype dtype_of(const assay_dtype& given, const char* name) {
  const auto is = [&](int code, int bits) {
    return given.code == code && given.bits == bits && given.lanes == 1;
  };
  if (is(ASSAY_FLOAT, 32)) return Dtype::f32;
  if (is(ASSAY_FLOAT, 16)) return Dtype::f16;
  if (is(ASSAY_BFLOAT, 16)) return Dtype::bf16;
  if (is(ASSAY_FLOAT, 64)) return Dtype::f64;
  if (is(ASSAY_FLOAT8_E4M3FN, 8)) return Dtype::f8e4m3;
  if (is(ASSAY_FLOAT8_E5M2, 8)) return Dtype::f8e5m2;
  if (is(ASSAY_FLOAT8_E8M0FNU, 8)) return Dtype::e8m0;
  if (is(ASSAY_FLOAT4_E2M1FN, 4)) return Dtype::f4e2m1;
  refuse(fmt::format(
             "{}.dtype has code {}, {} bits, {} lanes, which is no number format of this library",
             name, given.code, given.bits, given.lanes),
         StatusCode::unsupported);
}

assay_tensor tensor_of(const assay_tensor* given, const char* name) {
  const assay_tensor t = read_struct(given, name, assay_tensor{});
  if (t.device_type != ASSAY_CPU)
    refuse(fmt::format("{}.device_type = {} is not {}, the processor", name, t.device_type,
                       +ASSAY_CPU),
           StatusCode::device_not_supported);
  return t;
}

TensorView view_of(const assay_tensor* given, const char* name) {
  if (!given) return {};
  const assay_tensor t = tensor_of(given, name);
  if (t.rank != 4) refuse(fmt::format("{}.rank = {} is not 4", name, t.rank));
  TensorView view{t.data, dtype_of(t.dtype, name), {}, {}, t.offset};
  for (std::size_t k = 0; k < 4; ++k) {
    if (t.shape[k] < 0) refuse(fmt::format("{}.shape[{}] = {} is negative", name, k, t.shape[k]));
    view.shape[k] = t.shape[k];
    view.stride[k] = t.strides[k];
  }
  return view;
}

void expect_shape(const TensorView& t, const char* name, const Extents& shape) {
  for (std::size_t k = 0; k < 4; ++k)
    if (t.shape[k] != shape[k])
      refuse(fmt::format("{}.shape[{}] = {} is not {}", name, k, t.shape[k], shape[k]));
}

LowBit low_bit_format(std::int32_t format, const char* name) {
  if (format < 0 || format >= count_of<LowBit>)
    refuse(std::string(name) + ".format = " + std::to_string(format) + " is outside [0, " +
           std::to_string(count_of<LowBit> - 1) + "]");
  return static_cast<LowBit>(format);
}

LowBitView low_bit_view(const assay_low_bit* given, const char* name) {
  assay_low_bit m;
  assay_low_bit_init(&m, ASSAY_MXFP4, 0, 0);
  m = read_struct(given, name, m);
  LowBitView v;
  v.format = low_bit_format(m.format, name);
  v.k = m.k;
  v.n = m.n;
  v.group = m.group_size == 0 ? traits(v.format).group : m.group_size == -1 ? 0 : m.group_size;
  v.codes = static_cast<const std::byte*>(m.codes);
  v.scales = static_cast<const std::byte*>(m.scales);
  v.extra = static_cast<const std::byte*>(m.extra);
  v.tensor_scale = m.tensor_scale;
  return v;
}

Attention problem_of(const assay_attention* given, bool with_keys, Index lists) {
  assay_attention defaults;
  assay_attention_init(&defaults);
  const assay_attention a = read_struct(given, "problem", defaults);
  constexpr std::uint32_t known = ASSAY_CAUSAL | ASSAY_FINITE_MIN_MASKS | ASSAY_DEFAULT_SCALE;
  if (a.flags & ~known)
    refuse(fmt::format("problem.flags = {:#x} has bits beyond {:#x}", a.flags, known));
  Attention p;
  if (!a.q) refuse("q is null");
  p.q = view_of(a.q, "q");
  AttentionShape& s = p.shape;
  s = {p.q.shape[0], p.q.shape[1], 0, p.q.shape[2], 0, p.q.shape[3], 0};
  if (with_keys) {
    if (!a.k) refuse("k is null");
    if (!a.v) refuse("v is null");
    p.k = view_of(a.k, "k");
    p.v = view_of(a.v, "v");
    s.kv_heads = p.k.shape[1];
    s.keys = p.k.shape[2];
    s.value_dim = p.v.shape[3];
    expect_shape(p.k, "k", s.k_extents());
    expect_shape(p.v, "v", s.v_extents());
    const Extents pairs = s.pair_extents();
    if (a.bias) {
      p.bias = view_of(a.bias, "bias");
      broadcast(p.bias, "bias", pairs);
    }
    if (a.keep) {
      assay_tensor keep = read_struct(a.keep, "keep", assay_tensor{});
      if ((keep.dtype.code != ASSAY_BOOL && keep.dtype.code != ASSAY_UINT) ||
          keep.dtype.bits != 8 || keep.dtype.lanes != 1)
        refuse(fmt::format("keep.dtype has code {}, {} bits, {} lanes; it is bool or uint8",
                           keep.dtype.code, keep.dtype.bits, keep.dtype.lanes),
               StatusCode::unsupported);
      // any format of 8 bits, because only the view is used
      keep.dtype = {ASSAY_FLOAT8_E5M2, 8, 1};
      TensorView t = view_of(&keep, "keep");
      broadcast(t, "keep", pairs);
      if (!reach_of(footprint_of(t, pairs)))
        refuse(fmt::format(
            "keep with strides {} and offset {} reaches more than 2^57 bytes from its pointer",
            fmt::join(t.stride, ", "), t.origin));
      if (!t.data && element_count(t.shape) > 0) refuse("keep.data is null");
      if (t.data) p.keep = {static_cast<const std::uint8_t*>(t.data) + t.origin, t.stride};
    }
    if (a.bias && !p.bias && element_count(pairs) > 0) refuse("bias.data is null");
  } else {
    for (auto [name, there] : {std::pair{"k", a.k != nullptr},
                               {"v", a.v != nullptr},
                               {"keep", a.keep != nullptr},
                               {"bias", a.bias != nullptr}})
      if (there) refuse(fmt::format("{} does not go with a cache", name));
  }
  for_each_c_number([&](const auto& field, auto c) { p.*field.number = a.*c; });
  if (a.flags & ASSAY_DEFAULT_SCALE) p.scale = default_scale(std::max<Index>(s.dim, 1));
  for (std::size_t k = 0; k < attention_flags.size(); ++k)
    p.*attention_flags[k].flag = (a.flags & c_flags[k]) != 0;
  for_each_c_list([&](const auto& field, const auto& c) {
    ListExtent extent = extent_of(field.along, s);
    if (field.along == Along::batches && lists >= 0) extent.outer = lists;
    p.*field.list = list_of(a.*c.entries, a.*c.count, field.name, extent);
  });
  return p;
}

AttentionOutput output_of(const Attention& p, const assay_tensor* o, const assay_tensor* lse) {
  const AttentionShape& s = p.shape;
  if (!o) refuse("o is null");
  AttentionOutput out{view_of(o, "o"), view_of(lse, "lse")};
  expect_shape(out.o, "o", s.o_extents());
  const Extents rows = s.lse_extents();
  if (lse) expect_shape(out.lse, "lse", rows);
  if (lse && !out.lse && element_count(rows) > 0) refuse("lse.data is null");
  return out;
}

}  // namespace assay::kernels

extern "C" {

uint32_t assay_version(void) { return ASSAY_VERSION; }

const char* assay_status_message(assay_status status) {
  // The messages are literals, so they end with a zero byte.
  return assay::kernels::message_of(static_cast<assay::kernels::StatusCode>(status)).data();
}

const char* assay_last_error(void) { return assay::kernels::last_error; }

}  // extern "C"
