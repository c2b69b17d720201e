// Inside harness/: how a kernel adds up. Its order comes from inputs in which one large number and
// its negative make what is added between them vanish (Xie, Xu and Wang, "FPRev: Revealing
// floating-point accumulation orders in software/hardware implementations", 2025); its precision
// from what survives between them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "harness/identify/identify.h"
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

// Says in which order, and with how many bits, the sums are taken.
void tell_sums(const VisibleSums& sums, Identification& told);
// Says how many bits of inputs of this dtype enter the sums.
void tell_input_bits(const VisibleSums& sums, Dtype dtype, Identification& told);

}  // namespace assay
