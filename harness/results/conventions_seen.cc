#include "harness/results/conventions_seen.h"

#include <fmt/format.h>

#include <algorithm>

#include "harness/text.h"

namespace assay {
namespace {

ConventionRule rule_of(Convention c, ConventionRule asked) {
  if (asked != ConventionRule::usual) return asked;
  return row_of(c).fails ? ConventionRule::fail : ConventionRule::warn;
}

}  // namespace

Conventions differing(const CaseResult& r) {
  Conventions found = r.verdict.differs;
  const auto differs = [](const auto& relation) { return relation.second.differs_by_convention(); };
  if (std::ranges::any_of(r.relations, differs)) found.declare(MaskedNan::spreads);
  return found;
}

std::string ConventionSeen::sentence() const {
  return fmt::format("differs by convention: {} ({}) in {}; accept it with --accept-convention {}",
                     convention, what, counted(cases, "case"), convention);
}

std::vector<ConventionSeen> conventions_seen(const std::vector<CaseResult>& results,
                                             ConventionRule rule) {
  std::vector<ConventionSeen> seen;
  for (const ConventionRow& row : table_of<Convention>)
    for (std::size_t value = 0; value < row.values.size(); ++value) {
      ConventionSeen s{.convention = name_of_value(row.value, value),
                       .what = std::string(row.what),
                       .rule = rule_of(row.value, rule),
                       .line = {}};
      for (const CaseResult& r : results) {
        const Conventions differs = differing(r);
        if (!differs.declares(row.value) || differs.index(row.value) != value) continue;
        if (s.cases++ == 0) s.line = r.line;
      }
      if (s.cases > 0) seen.push_back(std::move(s));
    }
  return seen;
}

bool fails_by_convention(const CaseResult& r, const std::vector<ConventionSeen>& seen) {
  if (!passed(r.outcome)) return false;
  const std::vector<std::string> names = differing(r).names();
  return std::ranges::any_of(seen, [&](const ConventionSeen& s) {
    return s.rule == ConventionRule::fail && std::ranges::find(names, s.convention) != names.end();
  });
}

std::size_t failing_by_convention(const std::vector<CaseResult>& results,
                                  const std::vector<ConventionSeen>& seen) {
  return usize(std::ranges::count_if(
      results, [&](const CaseResult& r) { return fails_by_convention(r, seen); }));
}

}  // namespace assay
