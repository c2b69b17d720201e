// The table of kernel.h, made from the functions of a peer. This header is used inside the peers'
// shared libraries.
#pragma once

#include <cstdint>
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bench/peers.h"
#include "bench/table_views.h"

namespace assay::bench {

// An f32 tensor as contiguous floats: the tensor's own floats if it is contiguous, and a copy
// otherwise.
class Floats {
 public:
  explicit Floats(const assay_tensor& t) : tensor_(t) {
    if (is_contiguous(t)) {
      data_ = static_cast<float*>(t.data) + t.offset;
      return;
    }
    copy_.resize(static_cast<std::size_t>(count_of(t)));
    for_each_element(t, [&](std::int64_t n, std::int64_t at) {
      copy_[static_cast<std::size_t>(n)] = static_cast<const float*>(t.data)[at];
    });
    data_ = copy_.data();
  }
  float* data() const { return data_; }
  // Copies an output back that was written into the copy.
  void give_back() const {
    if (!copy_.empty())
      for_each_element(tensor_, [&](std::int64_t n, std::int64_t at) {
        static_cast<float*>(tensor_.data)[at] = copy_[static_cast<std::size_t>(n)];
      });
  }

 private:
  const assay_tensor& tensor_;
  std::vector<float> copy_;
  float* data_ = nullptr;
};

// Returns why a PlainAttention cannot do a problem, or null if it can.
inline const char* why_not_plain(const assay_attention& p, const assay_dtype& output) {
  if (!is_f32(p.q->dtype) || !is_f32(output)) return "another dtype than fp32";
  if (p.q->shape[1] != p.k->shape[1]) return "grouped heads";
  if (p.dropout != 0) return "dropout";
  if (p.softcap != 0) return "a softcap";
  if (p.keep || p.bias || p.window_left >= 0 || p.window_right >= 0 || p.key_length_count ||
      p.key_start_count || p.alibi_slope_count || p.sink_count || p.query_segment_count)
    return "a mask other than causality";
  for (std::int64_t b = 0; (p.flags & ASSAY_CAUSAL) && b < p.offset_count; ++b)
    if (p.offset[b] != 0) return "a diagonal that is not anchored at the top left";
  for (const assay_tensor* t : {p.q, p.k, p.v})
    if (count_of(*t) == 0) return "no element";
  return nullptr;
}

inline assay_status supports_plain(std::int32_t, const assay_attention* p,
                                   const assay_dtype* output, const char** reason) {
  return answer(why_not_plain(*p, *output), reason);
}

inline PlainAttention plain_of(const assay_attention& p) {
  return {p.q->shape[0] * p.q->shape[1], p.q->shape[2], p.k->shape[2], p.q->shape[3], p.v->shape[3],
          (p.flags & ASSAY_CAUSAL) != 0, p.scale};
}

// The peer of the last problem. Its preparation is not part of a call, because libraries also plan
// only once.
template <class Peer>
Peer& prepared(const PlainAttention& p, int threads,
               std::unique_ptr<Peer> (*make)(const PlainAttention&, int)) {
  using Key = std::tuple<Index, Index, Index, Index, Index, bool, float, int>;
  static Key last;
  static std::unique_ptr<Peer> peer;
  const int count = threads > 0 ? threads : 1;
  const Key key{p.heads, p.rows, p.keys, p.dim, p.value_dim, p.causal, p.scale, count};
  if (!peer || key != last) {
    peer = make(p, count);
    last = key;
  }
  return *peer;
}

template <std::unique_ptr<AttentionPeer> (*make)(const PlainAttention&, int)>
assay_status plain_forward(const assay_attention* p, const assay_tensor* o, const assay_tensor* lse,
                           const assay_run* run) {
  const Floats q(*p->q), k(*p->k), v(*p->v), out(*o), normaliser(*lse);
  prepared<AttentionPeer>(plain_of(*p), run->threads, make)
      .run(q.data(), k.data(), v.data(), out.data(), normaliser.data());
  out.give_back();
  normaliser.give_back();
  return ASSAY_SUCCESS;
}

// Returns why a product is not W in MXFP4 with A and C in fp32, or null if it is.
inline const char* why_not_mxfp4(const assay_tensor& a, const assay_low_bit& w,
                                 const assay_dtype& output) {
  if (w.format != ASSAY_MXFP4 || (w.group_size != 0 && w.group_size != 32))
    return "weights in another format than mxfp4";
  return is_f32(a.dtype) && is_f32(output) ? nullptr : "another dtype than fp32";
}

inline assay_status supports_mxfp4(const assay_tensor* a, const assay_low_bit* w,
                                   const assay_dtype* output, const char** reason) {
  return answer(why_not_mxfp4(*a, *w, *output), reason);
}

}  // namespace assay::bench
