#include "fuzz/fitness.h"

#include <algorithm>
#include <cmath>

namespace assay {
namespace {

constexpr std::size_t steps = 64;

// The counter of a ratio among the `steps` of an output; step `middle` begins at 1.
void set(std::vector<std::size_t>& counters, std::size_t first, double ratio, double in_a_power,
         double middle) {
  if (!(ratio > 0)) return;
  const double step = std::floor(in_a_power * std::log2(ratio)) + middle;
  counters.push_back(first + static_cast<std::size_t>(std::clamp(step, 0.0, steps - 1.0)));
}

}  // namespace

std::vector<std::size_t> fitness_of(const Verdict& v) {
  std::vector<std::size_t> counters;
  const auto of = [](Output output) { return static_cast<std::size_t>(output) % 16 * steps; };
  for (const auto& [output, part] : v.outputs) set(counters, of(output), part.worst.ratio, 2, 48);
  // From a quarter of the limit on; all that is below sets one counter.
  for (const auto& [output, row] : v.evidence.rows)
    set(counters, bound_counters + of(output), row.s / row.limit, 8, 16);
  double z = 0;
  for (const FilterAnswer& f : v.evidence.filters) z = std::max(z, f.significance());
  if (v.evidence.z_limit > 0)
    set(counters, bound_counters + 16 * steps, z / v.evidence.z_limit, 8, 16);
  return counters;
}

}  // namespace assay
