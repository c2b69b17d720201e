#include "harness/faults/faulty_problem.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/attention/attention.h"

namespace assay {
namespace {

// This variable takes the place of a kernel object that should have forgotten the window of the
// last call.
std::atomic<Index> window_of_last_call{-1};

}  // namespace

MisreadProblem::MisreadProblem(Fault fault, const Attention& problem, const AttentionOutput& out)
    : p_(problem), out_(out) {
  const AttentionShape& s = p_.shape;
  const auto heads = usize(s.query_heads);
  switch (fault) {
    case "softcap-dropped"_fault: p_.softcap = 0; break;
    case "sink-dropped"_fault: p_.sink.clear(); break;
    case "sink-in-every-split"_fault: {
      // The sink adds one term e^sink for each split instead of one in all.
      const Index split = kernels::forward_tiling(s.dim, s.value_dim).split_keys;
      for (float& z : p_.sink)
        z += static_cast<float>(
            std::log(static_cast<double>(std::max<Index>(1, (s.keys + split - 1) / split))));
      break;
    }
    case "alibi-slope-of-head-before"_fault:
      for (std::size_t h = p_.alibi_slopes.size(); h-- > 0;)
        p_.alibi_slopes[h] = h == 0 ? 1.0f : p_.alibi_slopes[h - 1];
      break;
    case "alibi-without-rule-for-other-counts"_fault:
      for (std::size_t h = 0; h < p_.alibi_slopes.size(); ++h)
        p_.alibi_slopes[h] = static_cast<float>(
            std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
      break;
    case "length-zero-means-all"_fault:
      for (Index& n : p_.key_lengths)
        if (n == 0) n = s.keys;
      break;
    case "document-boundary-off-by-one"_fault:
      for (std::size_t at = 1; at < p_.key_segment.size(); ++at)
        if (at % usize(s.keys) != 0) p_.key_segment[at] = problem.key_segment[at - 1];
      break;
    case "window-of-previous-call"_fault:
      if (p_.window_left >= 0) window_of_last_call = p_.window_left;
      else p_.window_left = window_of_last_call;
      break;
    default: break;
  }
  misread_masks(fault);
  misread_tensors(fault);
}

template <class FromRow>
void MisreadProblem::replace_masks(const FromRow& from_row) {
  const Extents pairs = p_.shape.pair_extents();
  const Layout dense = make_layout(LayoutKind::bhsd, pairs, 1);
  if (p_.keep) {
    const BoolView from = p_.keep;
    keep_.resize(usize(element_count(pairs)), 1);
    p_.keep = {keep_.data(), dense.stride};
    for_each_index(pairs, [&](Index b, Index h, Index i, Index j) {
      const Index row = from_row(i, j);
      if (row >= 0)
        keep_[usize(b * dense.stride[0] + h * dense.stride[1] + i * dense.stride[2] + j)] =
            from.data[b * from.stride[0] + h * from.stride[1] + row * from.stride[2] +
                      j * from.stride[3]];
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
  if (fault == "bool-mask-ignored"_fault) p_.keep = {};
  if (fault == "bias-ignored"_fault) p_.bias = {};
  if (fault == "mask-of-first-rows-of-tile"_fault)
    replace_masks([](Index i, Index) { return i - i % 32 + i % 8; });
  if (fault == "mask-on-first-keys-of-tile"_fault)
    replace_masks([](Index i, Index j) { return j % 32 < 8 ? i : -1; });
  if (fault == "bool-mask-inverted"_fault && p_.keep) {
    replace_masks([](Index i, Index) { return i; });
    for (std::uint8_t& kept : keep_) kept = !kept;
  }
  if (fault == "mask-batch-stride-dropped"_fault) p_.keep.stride[0] = p_.bias.stride[0] = 0;
  if (fault == "mask-of-head-zero"_fault) p_.keep.stride[1] = p_.bias.stride[1] = 0;
  // The fault applies only where the changed stride stays inside the tensor.
  if (fault == "bias-row-stride-is-row-count"_fault && p_.bias && p_.bias.stride[2] > s.rows)
    p_.bias.stride[2] = s.rows;
  if (fault == "bias-scaled-like-scores"_fault && p_.bias && !p_.finite_min_masks) {
    const TensorView& from = p_.bias;
    const TensorView to = room_for(from);
    for_each_index(to.shape, [&](Index b, Index h, Index i, Index j) {
      store(to, to.at(b, h, i, j),
            round_to(to.dtype, load(from, from.at(b, h, i, j)) * static_cast<double>(p_.scale)));
    });
    p_.bias = to;
  }
}

void MisreadProblem::misread_tensors(Fault fault) {
  const AttentionShape& s = p_.shape;
  if (fault == "values-replaced-by-keys"_fault && s.dim == s.value_dim) p_.v = p_.k;
  if (fault == "query-columns-taken-as-adjacent"_fault) p_.q.stride[3] = 1;
  if (fault == "values-read-with-key-strides"_fault) {
    bool inside = true;
    for (std::size_t axis = 0; axis < 4; ++axis)
      inside = inside && p_.k.stride[axis] >= 0 && p_.k.stride[axis] <= p_.v.stride[axis];
    if (inside) p_.v.stride = p_.k.stride;
  }
  if (fault == "query-heads-at-row-stride"_fault && p_.q.stride[2] >= 0 &&
      p_.q.stride[2] <= p_.q.stride[1])
    p_.q.stride[1] = p_.q.stride[2];
  if (fault == "query-rows-taken-as-packed"_fault && p_.q.stride[2] > s.dim) p_.q.stride[2] = s.dim;
  // The fault applies only where every stride is at least that of a contiguous tensor, so that the
  // packed writes stay inside.
  if (fault == "output-written-packed"_fault) {
    const Extents packed = make_layout(LayoutKind::bhsd, out_.o.shape, 1).stride;
    bool inside = true;
    for (std::size_t axis = 0; axis < 4; ++axis)
      inside = inside && out_.o.stride[axis] >= packed[axis];
    if (inside) out_.o.stride = packed;
  }
  // A 32-bit unsigned offset wraps: an element beyond 2^32 is read near the start again.
  if (fault == "offset-in-32-bits"_fault) {
    const TensorView from = p_.k;
    const TensorView to = room_for(from);
    for_each_index(to.shape, [&](Index b, Index h, Index j, Index d) {
      store(to, to.at(b, h, j, d), load(from, from.at(b, h, j, d) & 0xFFFFFFFF));
    });
    p_.k = to;
  }
}

// Makes room for a contiguous copy.
TensorView MisreadProblem::room_for(const TensorView& of) {
  return copies_.emplace_back(of.dtype, of.shape, make_layout(LayoutKind::bhsd, of.shape, 1))
      .view();
}

}  // namespace assay
