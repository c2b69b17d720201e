// Inside harness/identify/: in which order a sum is taken, told by how many summands are added up
// before the first and each other one meet.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "problem/index.h"

namespace assay {

// The size of the smallest part of the sum that holds both the place 0 and another one: entry j is
// that of the place j + 1.
using MeetingSizes = std::vector<Index>;

// How the sums of lanes are added.
enum class Joining : std::uint8_t { in_order, neighbours, halves };

// `tile` summands that follow one another are summed by themselves, and then the tiles are added
// one after another. Within a tile, `block` summands that follow one another are added at once. Or
// the summands whose places agree modulo `lanes` are added one after another, and then the lanes.
struct SumOrder {
  Index length = 0, block = 1, tile = 0;
  Index lanes = 0;  // 0: blocks
  Joining joining = Joining::in_order;
  bool operator==(const SumOrder&) const = default;
};

// The order that gives these numbers, if there is one.
std::optional<SumOrder> order_of(const MeetingSizes& sizes);
// "16 keys at once, one block after another" for the summand "key".
std::string words_for(const SumOrder& order, const std::string& summand);
// "1 to 3: 4, 4 to 7: 8", and "1 to 63: 2 to 64" where each is one more than the one before.
std::string list_of(const MeetingSizes& sizes);

}  // namespace assay
