// The fields of the C struct of a problem that stand for numbers, flags and lists of Attention.
#pragma once

#include <assay/kernel.h>

#include <cstdint>
#include <tuple>

#include "problem/attention.h"

namespace assay::kernels {

// In the order of attention_numbers.
inline constexpr std::tuple c_numbers{
    &assay_attention::scale,        &assay_attention::softcap,     &assay_attention::dropout,
    &assay_attention::dropout_seed, &assay_attention::window_left, &assay_attention::window_right,
};
// visit(field of Attention, field of the C struct) for every number.
template <class Visit>
constexpr void for_each_c_number(const Visit& visit) {
  static_assert(
      std::tuple_size_v<decltype(c_numbers)> == std::tuple_size_v<decltype(attention_numbers)>,
      "a number of Attention has no field in C");
  std::apply(
      [&](const auto&... field) {
        std::apply([&](const auto&... c) { (visit(field, c), ...); }, c_numbers);
      },
      attention_numbers);
}

// The bits of assay_attention::flags, in the order of attention_flags.
inline constexpr std::uint32_t c_flags[] = {ASSAY_CAUSAL, ASSAY_FINITE_MIN_MASKS};
static_assert(std::size(c_flags) == attention_flags.size(), "a flag of Attention has no bit in C");

template <class T>
struct CList {
  const T* assay_attention::* entries;
  std::int64_t assay_attention::* count;
};
// In the order of attention_lists.
inline constexpr std::tuple c_lists{
    CList<Index>{&assay_attention::offset, &assay_attention::offset_count},
    CList<Index>{&assay_attention::key_lengths, &assay_attention::key_length_count},
    CList<Index>{&assay_attention::key_starts, &assay_attention::key_start_count},
    CList<float>{&assay_attention::alibi_slopes, &assay_attention::alibi_slope_count},
    CList<float>{&assay_attention::sink, &assay_attention::sink_count},
    CList<std::int32_t>{&assay_attention::query_segment, &assay_attention::query_segment_count},
    CList<std::int32_t>{&assay_attention::key_segment, &assay_attention::key_segment_count},
};
// visit(field of Attention, fields of the C struct) for every list.
template <class Visit>
constexpr void for_each_c_list(const Visit& visit) {
  static_assert(
      std::tuple_size_v<decltype(c_lists)> == std::tuple_size_v<decltype(attention_lists)>,
      "a list of Attention has no fields in C");
  std::apply(
      [&](const auto&... field) {
        std::apply([&](const auto&... c) { (visit(field, c), ...); }, c_lists);
      },
      attention_lists);
}

}  // namespace assay::kernels
