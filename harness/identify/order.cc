#include "harness/identify/order.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace assay {
namespace {

// The number of lanes in the smallest part that holds the lanes 0 and l > 0.
Index lanes_in_part(const SumOrder& o, Index l) {
  switch (o.joining) {
    case Joining::in_order: return l + 1;
    case Joining::neighbours: return Index{1} << std::bit_width(static_cast<std::uint64_t>(l));
    default: return o.lanes >> std::countr_zero(static_cast<std::uint64_t>(l));
  }
}

// The size of the part in which the places 0 and j meet.
Index meeting_size(const SumOrder& o, Index j) {
  if (j >= o.tile) return std::min(o.length, (j / o.tile + 1) * o.tile);
  if (o.lanes == 0) return std::min({o.length, o.tile, (j / o.block + 1) * o.block});
  const Index lane = j % o.lanes;
  return lane == 0 ? j / o.lanes + 1 : o.tile / o.lanes * lanes_in_part(o, lane);
}

bool gives(const SumOrder& o, const MeetingSizes& sizes) {
  for (Index j = 1; j < o.length; ++j)
    if (sizes[usize(j - 1)] != meeting_size(o, j)) return false;
  return true;
}

std::string words_for_lanes(const SumOrder& o, const std::string& summand) {
  constexpr const char* first[] = {"in order", "neighbours first", "places half the length apart"};
  const char* join = first[static_cast<std::size_t>(o.joining)];
  if (o.lanes == o.tile) return fmt::format("in pairs, {}", join);
  return fmt::format("{} lanes ({}s {} apart), each in order, then the lanes {}{}", o.lanes,
                     summand, o.lanes, o.joining == Joining::in_order ? "" : "in pairs, ", join);
}

}  // namespace

std::optional<SumOrder> order_of(const MeetingSizes& sizes) {
  SumOrder o;
  o.length = std::ssize(sizes) + 1;
  for (o.tile = o.length; o.tile >= 2; --o.tile)
    for (o.block = 1; o.block <= o.tile; o.block *= 2)
      if (gives(o, sizes)) return o;
  o.block = 1;
  const auto shorter = [](Index tile) {  // the next power of two
    return static_cast<Index>(std::bit_floor(static_cast<std::uint64_t>(tile - 1)));
  };
  for (o.tile = o.length; o.tile >= 2; o.tile = shorter(o.tile))
    for (o.lanes = o.tile; o.lanes >= 2; o.lanes = o.lanes % 2 == 0 ? o.lanes / 2 : 0)
      for (const Joining joining : {Joining::in_order, Joining::neighbours, Joining::halves}) {
        o.joining = joining;
        if (gives(o, sizes)) return o;
      }
  return std::nullopt;
}

std::string words_for(const SumOrder& o, const std::string& summand) {
  if (o.lanes == 0 && o.block >= o.length)
    return fmt::format("all {} {}s at once", o.length, summand);
  const std::string inner =
      o.lanes > 0    ? words_for_lanes(o, summand)
      : o.block == 1 ? fmt::format("one {} after another", summand)
                     : fmt::format("{} {}s at once, one block after another", o.block, summand);
  if (o.tile >= o.length) return inner;
  return fmt::format("tiles of {} {}s, each summed by itself, {}", o.tile, summand, inner);
}

std::string list_of(const MeetingSizes& sizes) {
  std::string text;
  for (std::size_t j = 0; j < sizes.size();) {
    std::size_t end = j;
    const Index step = j + 1 < sizes.size() ? sizes[j + 1] - sizes[j] : 0;
    while ((step == 0 || step == 1) && end + 1 < sizes.size() &&
           sizes[end + 1] == sizes[end] + step)
      ++end;
    const auto range = [](Index first, Index last) {
      return last > first ? fmt::format("{} to {}", first, last) : fmt::to_string(first);
    };
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ",
                        range(static_cast<Index>(j) + 1, static_cast<Index>(end) + 1),
                        range(sizes[j], sizes[end]));
    j = end + 1;
    if (text.size() > 120 && j < sizes.size()) return text + ", ...";
  }
  return text;
}

}  // namespace assay
