// Inside harness/identify/: how a kernel adds up. Its order comes from inputs in which one large
// number and its negative make what is added between them vanish (Xie, Xu and Wang, "FPRev:
// Revealing floating-point accumulation orders in software/hardware implementations", 2025); its
// precision from what survives between them.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "harness/identify/identify.h"
#include "harness/identify/order.h"
#include "harness/identify/probe.h"

namespace assay {

// The numbers of one sum, by their place.
using Summands = std::function<double(Index)>;

// Sums that a kernel takes, and that can be seen in its outputs.
struct VisibleSums {
  std::string name;     // "P V"
  std::string summand;  // "key"
  Index length = 0;
  double unit = 1;         // the smallest number that is added
  double large = 1;        // units vanish beside it in any format that kernels add in
  bool free_unit = false;  // any other unit would do as well
  // Computes all sums. A sum is NaN where the kernel gave NaN, and may be infinite where it is too
  // large to be seen.
  std::function<std::vector<double>(const std::vector<Summands>&)> ask;
};

// The sums over the keys, with equal weights, and the sums of q.k over the columns. The latter are
// seen in O or, where P is too coarse for that, in LSE.
VisibleSums sums_over_keys(const Probe& probe);
VisibleSums sums_over_columns(const Probe& probe, bool by_lse);

// What is left of numbers below a large one, until its negative comes.
struct Bits {
  int kept = 0;          // significant bits of the sum
  bool all = false;      // no number that was tried was lost
  bool nearest = false;  // one and a half times a number that is lost is rounded up
};

// Three places: that of the large number, the one that meets it first, and the one that meets both.
struct Places {
  Index large, small, negative;
};

// A sum whose order was told.
struct KnownSums {
  VisibleSums sums;  // its large number may be smaller, for an accumulator that holds no larger one
  MeetingSizes sizes;
  bool from_last = false;       // the places of `sizes` count from the last one
  std::optional<Bits> block;    // inside blocks that are added at once, if there are any
  std::optional<Bits> between;  // of the sum of blocks, or of single summands

  Index place(Index j) const { return from_last ? sums.length - 1 - j : j; }
  // How many summands meet first.
  Index smallest() const;
  // The first `count` places that meet the place 0 in a part of this size.
  std::vector<Index> places_of_size(Index size, Index count) const;
};

// Says in which order, and with how many bits, the sums are taken; nothing if no order shows.
std::optional<KnownSums> tell_sums(const VisibleSums& sums, Identification& told);
// Says how many bits of inputs of this dtype enter the sums, and returns the number.
int tell_input_bits(const VisibleSums& sums, Dtype dtype, Identification& told);

// Says what becomes of the subnormal numbers of a dtype in q.k and in P V. `weights` is the dtype
// of P, if it has one.
void tell_subnormals(const Probe& probe, const std::optional<Dtype>& weights, bool by_lse,
                     Identification& told);

// "2^7" of a power of two.
std::string power(double x);

}  // namespace assay
