#include "harness/faulty_problem.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/attention.h"

namespace assay {
namespace {

// "The kernel object", which should have forgotten it.
std::atomic<Index> window_of_last_call{-1};

}  // namespace

MisreadProblem::MisreadProblem(Fault fault, const Attention& problem, const AttentionOutput& out) : p_(problem), out_(out) {
  const AttentionShape& s = p_.shape;
  const auto heads = static_cast<std::size_t>(s.query_heads);
  switch (fault) {
    case Fault::softcap_dropped: p_.softcap = 0; break;
    case Fault::sink_dropped: p_.sink.clear(); break;
    case Fault::sink_in_every_split: {
      // So many terms e^sink as there are splits.
      const Index split = kernels::forward_tiling(s.dim, s.value_dim).split_keys;
      for (float& z : p_.sink) z += static_cast<float>(std::log(static_cast<double>(std::max<Index>(1, (s.keys + split - 1) / split))));
      break;
    }
    case Fault::alibi_slope_of_head_before:
      for (std::size_t h = p_.alibi_slopes.size(); h-- > 0;) p_.alibi_slopes[h] = h == 0 ? 1.0f : p_.alibi_slopes[h - 1];
      break;
    case Fault::alibi_without_rule_for_other_counts:
      for (std::size_t h = 0; h < p_.alibi_slopes.size(); ++h)
        p_.alibi_slopes[h] = static_cast<float>(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
      break;
    case Fault::length_zero_means_all:
      for (Index& n : p_.key_lengths)
        if (n == 0) n = s.keys;
      break;
    case Fault::document_boundary_off_by_one:
      for (std::size_t at = 1; at < p_.key_segment.size(); ++at)
        if (at % static_cast<std::size_t>(s.keys) != 0) p_.key_segment[at] = problem.key_segment[at - 1];
      break;
    case Fault::window_of_previous_call:
      if (p_.window_left >= 0) window_of_last_call = p_.window_left;
      else p_.window_left = window_of_last_call;
      break;
    case Fault::lse_of_all_heads_in_one: out_.lse.stride[1] = 0; break;
    default: break;
  }
  misread_masks(fault);
  misread_tensors(fault);
}

template <class FromRow>
void MisreadProblem::replace_masks(const FromRow& from_row) {
  const Extents pairs = {p_.shape.batch, p_.shape.query_heads, p_.shape.rows, p_.shape.keys};
  const Layout dense = make_layout(LayoutKind::bhsd, pairs, 1);
  if (p_.keep) {
    const BoolView from = p_.keep;
    keep_.resize(static_cast<std::size_t>(element_count(pairs)), 1);
    p_.keep = {keep_.data(), dense.stride};
    for_each_index(pairs, [&](Index b, Index h, Index i, Index j) {
      const Index row = from_row(i, j);
      if (row >= 0) keep_[static_cast<std::size_t>(b * dense.stride[0] + h * dense.stride[1] + i * dense.stride[2] + j)] = from.data[b * from.stride[0] + h * from.stride[1] + row * from.stride[2] + j * from.stride[3]];
    });
  }
  if (p_.bias) {
    const TensorView from = p_.bias;
    const TensorView to = copies_.emplace_back(from.dtype, pairs, dense).view();
    for_each_index(pairs, [&](Index b, Index h, Index i, Index j) {
      const Index row = from_row(i, j);
      store(to, to.at(b, h, i, j), row < 0 ? 0 : load(from, from.at(b, h, row, j)));
    });
    p_.bias = to;
  }
}

void MisreadProblem::misread_masks(Fault fault) {
  const AttentionShape& s = p_.shape;
  if (fault == Fault::bool_mask_ignored) p_.keep = {};
  if (fault == Fault::bias_ignored) p_.bias = {};
  if (fault == Fault::mask_of_first_rows_of_tile) replace_masks([](Index i, Index) { return i - i % 32 + i % 8; });
  if (fault == Fault::mask_on_first_keys_of_tile) replace_masks([](Index i, Index j) { return j % 32 < 8 ? i : -1; });
  if (fault == Fault::bool_mask_inverted && p_.keep) {
    replace_masks([](Index i, Index) { return i; });
    for (std::uint8_t& kept : keep_) kept = !kept;
  }
  if (fault == Fault::mask_batch_stride_dropped) p_.keep.stride[0] = p_.bias.stride[0] = 0;
  if (fault == Fault::mask_of_head_zero) p_.keep.stride[1] = p_.bias.stride[1] = 0;
  // Where that stays inside.
  if (fault == Fault::bias_row_stride_is_row_count && p_.bias && p_.bias.stride[2] > s.rows) p_.bias.stride[2] = s.rows;
  if (fault == Fault::bias_scaled_like_scores && p_.bias && !p_.finite_min_masks) {
    const TensorView& from = p_.bias;
    const TensorView to = room_for(from);
    for_each_index(to.shape, [&](Index b, Index h, Index i, Index j) {
      store(to, to.at(b, h, i, j), round_to(to.dtype, load(from, from.at(b, h, i, j)) * static_cast<double>(p_.scale)));
    });
    p_.bias = to;
  }
}

void MisreadProblem::misread_tensors(Fault fault) {
  const AttentionShape& s = p_.shape;
  if (fault == Fault::values_replaced_by_keys && s.dim == s.value_dim) p_.v = p_.k;
  if (fault == Fault::query_columns_taken_as_adjacent) p_.q.stride[3] = 1;
  if (fault == Fault::values_read_with_key_strides) {
    bool inside = true;
    for (std::size_t axis = 0; axis < 4; ++axis) inside = inside && p_.k.stride[axis] >= 0 && p_.k.stride[axis] <= p_.v.stride[axis];
    if (inside) p_.v.stride = p_.k.stride;
  }
  if (fault == Fault::query_heads_at_row_stride && p_.q.stride[2] >= 0 && p_.q.stride[2] <= p_.q.stride[1]) p_.q.stride[1] = p_.q.stride[2];
  if (fault == Fault::query_rows_taken_as_packed && p_.q.stride[2] > s.dim) p_.q.stride[2] = s.dim;
  // Where that stays inside: strides that are at least those of a contiguous tensor.
  if (fault == Fault::output_written_packed) {
    const Extents packed = make_layout(LayoutKind::bhsd, out_.o.shape, 1).stride;
    bool inside = true;
    for (std::size_t axis = 0; axis < 4; ++axis) inside = inside && out_.o.stride[axis] >= packed[axis];
    if (inside) out_.o.stride = packed;
  }
  // In 32 bits, unsigned, whatever lies beyond is looked for from the start again.
  if (fault == Fault::offset_in_32_bits) {
    const TensorView from = p_.k;
    const TensorView to = room_for(from);
    for_each_index(to.shape, [&](Index b, Index h, Index j, Index d) { store(to, to.at(b, h, j, d), load(from, from.at(b, h, j, d) & 0xFFFFFFFF)); });
    p_.k = to;
  }
}

// Room for a contiguous copy.
TensorView MisreadProblem::room_for(const TensorView& of) {
  return copies_.emplace_back(of.dtype, of.shape, make_layout(LayoutKind::bhsd, of.shape, 1)).view();
}

}  // namespace assay
