#include "harness/judging/outputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace assay {
namespace {

std::size_t bytes_of(Dtype dtype) { return usize(format(dtype).bits / 8); }

std::uint64_t poison_code(Dtype dtype, Poison with) {
  const bool narrow = format(dtype).bits == 16 && dtype != Dtype::bf16;
  if (with == Poison::zero) return 0;
  if (with == Poison::large) return encode(dtype, narrow ? 60000.0 : 1e30);
  switch (dtype) {
    case Dtype::f16: return 0x7C5A;
    case Dtype::bf16: return 0x7F9A;
    case Dtype::f32: return 0x7F80A55A;
    default: return 0x7FF0A55AA55AA55A;
  }
}

std::uint64_t code_at(const TensorView& t, Index position) {
  std::uint64_t code = 0;
  const auto bytes = static_cast<Index>(bytes_of(t.dtype));
  const auto* at = static_cast<const std::byte*>(t.data) + position * bytes;
  std::memcpy(&code, at, usize(bytes));
  return code;
}

// A broadcast axis has one position, even if its extent is 0, because the empty sum is stored
// there.
std::vector<Index> sorted_positions(const TensorView& t) {
  Extents e = t.shape;
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (t.stride[axis] == 0) e[axis] = 1;
  std::vector<Index> positions;
  for_each_index(
      e, [&](Index b, Index h, Index i, Index d) { positions.push_back(t.at(b, h, i, d)); });
  if (!std::ranges::is_sorted(positions)) std::ranges::sort(positions);
  return positions;
}

// Returns "1 and 2" if the elements differ, otherwise an empty text.
std::string difference_at(const TensorView& x, Index at, const TensorView& y, Index other) {
  if (code_at(x, at) == code_at(y, other)) return {};
  const double p = load(x, at), q = load(y, other);
  if ((p != p && q != q) || p == q) return {};
  return fmt::format("{:.9g} and {:.9g}", p, q);
}

// Whether a row has the same bits in both, where its elements lie side by side.
bool same_bytes(const TensorView& x, const TensorView& y, Index b, Index h, Index i) {
  if (x.stride[3] != 1 || y.stride[3] != 1) return false;
  const std::size_t bytes = bytes_of(x.dtype);
  const auto row = [&](const TensorView& t) {
    return static_cast<const std::byte*>(t.data) + usize(t.at(b, h, i, 0)) * bytes;
  };
  return std::memcmp(row(x), row(y), usize(x.shape[3]) * bytes) == 0;
}

std::string first_difference_of(std::string_view name, const TensorView& x, const TensorView& y,
                                Index rows) {
  for (Index b = 0; b < x.shape[0]; ++b)
    for (Index h = 0; h < x.shape[1]; ++h)
      for (Index i = 0; i < (rows < 0 ? x.shape[2] : rows); ++i) {
        if (x.shape[3] == 0 || same_bytes(x, y, b, h, i)) continue;
        for (Index d = 0; d < x.shape[3]; ++d) {
          const Index at = x.at(b, h, i, d);
          if (const std::string found = difference_at(x, at, y, at); !found.empty())
            return fmt::format("{}[b={}, h={}, row={}, column={}]: {}", name, b, h, i, d, found);
        }
      }
  return {};
}

}  // namespace

Outputs::Outputs(const Case& c, bool with_lse, Surroundings around) {
  const AttentionShape& s = c.shape;
  const Extents o_shape = s.o_extents();
  const Extents lse_shape = s.lse_extents();
  const Index heads_in_pack = s.query_heads + 2 * s.kv_heads;
  o = Tensor(c.out_dtype(), o_shape, make_layout(c.o_layout, o_shape, heads_in_pack), around);
  if (!with_lse) return;
  const bool packed = c.o_layout == LayoutKind::packed;
  const LayoutKind kind = packed ? LayoutKind::bhsd : c.o_layout;
  lse = Tensor(Dtype::f32, lse_shape, make_layout(kind, lse_shape, 1), around);
}

GradientOutputs::GradientOutputs(const Case& c, const Inputs& inputs, bool with_d_sink) {
  const AttentionShape& s = c.shape;
  const Surroundings around = inputs.around;
  const auto make = [&](LayoutKind kind, const Extents& shape) {
    if (kind == LayoutKind::shared_head || kind == LayoutKind::shared_batch)
      kind = LayoutKind::bhsd;
    const Index heads_in_pack = s.query_heads + 2 * s.kv_heads;
    return Tensor(c.out_dtype(), shape, make_layout(kind, shape, heads_in_pack), around);
  };
  dq = make(c.q_layout, s.q_extents());
  dk = make(c.k_layout, s.k_extents());
  dv = make(c.v_layout, s.v_extents());
  if (const TensorView& bias = inputs.problem.bias) {
    const auto bits = static_cast<Index>(inputs.bias.size_in_bytes()) * 8;
    const Layout layout{bias.stride, 0, bits / format(bias.dtype).bits};
    d_bias = Tensor(Dtype::f32, bias.shape, layout, around);
  }
  if (c.sink && with_d_sink)
    d_sink = Tensor(Dtype::f32, {1, s.query_heads, 1, 1}, {{0, 1, 0, 0}, 0, s.query_heads}, around);
}

ProductOutput::ProductOutput(const Case& k, Surroundings around) {
  const Extents shape{1, 1, k.product.m, k.product.n};
  c = Tensor(k.out_dtype(), shape, make_layout(k.o_layout, shape, 1), around);
}

void poison(const Tensor& t, Poison with) {
  const TensorView& v = t.view();
  const std::size_t bytes = bytes_of(v.dtype);
  const std::uint64_t code = poison_code(v.dtype, with);
  for (const auto& [begin, end] : t.regions())
    for (std::size_t at = begin; at + bytes <= end; at += bytes)
      std::memcpy(t.bytes() + at, &code, bytes);
}

bool holds_poison(const TensorView& t, Index position, Poison with) {
  return code_at(t, position) == poison_code(t.dtype, with);
}

bool gaps_intact(const Tensor& t, Poison with) {
  const TensorView& v = t.view();
  const std::size_t bytes = bytes_of(v.dtype);
  if (static_cast<Index>(t.size_in_bytes() / bytes) == element_count(v.shape)) return true;
  const std::vector<Index> positions = sorted_positions(v);
  const std::uint64_t code = poison_code(v.dtype, with);
  auto next = positions.begin();
  for (const auto& [begin, end] : t.regions())
    for (auto e = static_cast<Index>(begin / bytes); e < static_cast<Index>(end / bytes); ++e) {
      while (next != positions.end() && *next < e) ++next;
      if (next != positions.end() && *next == e) continue;
      if (code_at(v, e) != code) return false;
    }
  return true;
}

std::string first_difference(const NamedOutputs& a, const NamedOutputs& b, Index rows) {
  for (std::size_t k = 0; k < a.size(); ++k) {
    const TensorView &x = a[k].tensor->view(), &y = b[k].tensor->view();
    if (std::string found = first_difference_of(name_of(a[k].output), x, y, rows); !found.empty())
      return found;
  }
  return {};
}

std::string first_difference_of_rows(const char* name, const TensorView& x, Index i,
                                     const TensorView& y, Index j) {
  for (Index d = 0; d < x.shape[3]; ++d) {
    const std::string found = difference_at(x, x.at(0, 0, i, d), y, y.at(0, 0, j, d));
    if (!found.empty())
      return fmt::format("{}: row {} against row {}, column {}: {}", name, i, j, d, found);
  }
  return {};
}

}  // namespace assay
