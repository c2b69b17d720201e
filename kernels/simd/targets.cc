#include "kernels/simd/targets.h"

#include "kernels/simd/highway_config.h"

#include <hwy/highway.h>

#include "kernels/simd/amx.h"
#include "kernels/simd/bf16_dots.h"
#include "kernels/simd/bf16_pairs.h"

namespace assay::kernels {
namespace {

// Highway 1.0 has no target with VDPBF16PS or AMX. These bits, which Highway does not use, are
// therefore set in addition to that of AVX3.
constexpr std::int64_t bf16_dots = std::int64_t{1} << 40, amx_tiles = std::int64_t{1} << 41;
static_assert((HWY_TARGETS & (bf16_dots | amx_tiles)) == 0);

struct OwnTarget {
  const char* name;
  std::int64_t bits;
  bool compiled;
  bool (*runs)();
};
// The best first; each of them is better than Highway's.
constexpr OwnTarget own_targets[] = {
    {"AVX3_AMX", HWY_AVX3 | bf16_dots | amx_tiles, ASSAY_AMX != 0, amx::runs},
    {"AVX3_BF16", HWY_AVX3 | bf16_dots, ASSAY_BF16_DOTS, bf16::runs},
};

// The lowest bit is the best of Highway's targets.
std::int64_t first_of(std::int64_t targets) { return targets & -targets; }

// Highway is asked once: the answer takes several CPUID instructions, which are slow in a virtual
// machine.
std::int64_t runnable() {
  static const std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return targets;
}

bool is_runnable(const OwnTarget& own) { return (runnable() & HWY_AVX3) != 0 && own.runs(); }

// `has` says which of our own targets count. The targets of Highway are ordered by speed, too.
template <class Has>
std::vector<std::string> names_of(std::int64_t targets, const Has& has) {
  std::vector<std::string> names;
  for (const OwnTarget& own : own_targets)
    if (has(own)) names.emplace_back(own.name);
  for (; targets != 0; targets &= targets - 1)
    names.emplace_back(hwy::TargetName(first_of(targets)));
  return names;
}

std::int64_t best() {
  for (const OwnTarget& own : own_targets)
    if (is_runnable(own)) return own.bits;
  return first_of(runnable());
}

}  // namespace

std::vector<std::string> compiled_targets() {
  return names_of(HWY_TARGETS, [](const OwnTarget& own) { return own.compiled; });
}

std::vector<std::string> runnable_targets() { return names_of(runnable(), is_runnable); }

Target::Target() : bit_(best()) {}

std::optional<Target> Target::named(std::string_view name) {
  if (name.empty()) return Target();
  for (const OwnTarget& own : own_targets)
    if (name == own.name && is_runnable(own)) return Target(own.bits);
  for (std::int64_t rest = runnable(); rest != 0; rest &= rest - 1)
    if (name == hwy::TargetName(first_of(rest))) return Target(first_of(rest));
  return std::nullopt;
}

std::string Target::name() const {
  for (const OwnTarget& own : own_targets)
    if (bit_ == own.bits) return own.name;
  return hwy::TargetName(bit_);
}

bool has_bf16_dots(const Target& target) { return (target.bit() & bf16_dots) != 0; }
bool has_amx(const Target& target) { return (target.bit() & amx_tiles) != 0; }

Target without_bf16_dots(const Target& target) {
  return Target::of_bit(target.bit() & ~(bf16_dots | amx_tiles));
}
Target without_amx(const Target& target) { return Target::of_bit(target.bit() & ~amx_tiles); }

}  // namespace assay::kernels
