#include "harness/cases/factors.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "problem/random.h"

namespace assay {
namespace {

using Row = std::vector<int>;  // the level of each factor

std::optional<Case> case_of(const std::vector<Factor>& factors, const Row& row) {
  Case c;
  for (std::size_t f = 0; f < factors.size(); ++f) factors[f].levels[usize(row[f])].change(c);
  try {
    check_case(c);
  } catch (const CaseError&) {
    return std::nullopt;
  }
  return c;
}

// The levels that a candidate can have, each with a row that the candidate does.
class Possible {
 public:
  Possible(const std::vector<Factor>& all, const Features& has) : factors_(all), has_(has) {
    if (has.has_all()) return;
    const std::optional<Row> base = first_row();
    if (!base) return;  // what is drawn is left out later, if the candidate declines all of it
    for (std::size_t f = 0; f < factors_.size(); ++f) keep_possible(f, *base);
    factors_ = std::move(kept_);
    for (std::size_t f = 0; f < factors_.size(); ++f)
      for (Row& row : rows_[f]) row = renumbered(row);
  }

  const std::vector<Factor>& factors() const { return factors_; }

  // Levels of two factors that cannot be together, as (factor, level).
  using Pairs = std::vector<std::vector<std::pair<int, int>>>;

  // Leaves out the rows that the candidate declines.
  void leave_out_declined(std::vector<Row>& rows) const {
    std::erase_if(rows, [&](const Row& row) { return !does(row); });
  }
  // The pairs that occur in no row, and for which none is found.
  Pairs impossible(const std::vector<Row>& rows, const CoveringPlan& plan) const {
    Pairs found;
    if (rows_.empty()) return found;
    const Coverage met(plan, rows);
    for (const Coverage::Combination& lost : met.missing()) {
      const std::vector<int>& members = met.sets()[lost.set].factors;
      const Row levels = met.row_of(lost);
      if (members.size() != 2 || row_with(levels)) continue;
      found.emplace_back();
      for (const int f : members) found.back().emplace_back(f, levels[usize(f)]);
    }
    return found;
  }
  // Adds rows with the combinations that are lost: of `others` those that hold one, then new ones.
  void restore(std::vector<Row>& rows, const std::vector<Row>& others,
               const CoveringPlan& plan) const {
    if (rows_.empty()) return;
    Coverage met(plan, rows);
    const auto keep = [&](const Row& row) {
      met.add(row);
      rows.push_back(row);
    };
    for (const Row& row : others)
      if (met.gains(row)) keep(row);
    for (const Coverage::Combination& lost : met.missing())
      if (!met.has(lost))
        if (const std::optional<Row> row = row_with(met.row_of(lost))) keep(*row);
  }

 private:
  int levels_of(std::size_t f) const { return static_cast<int>(factors_[f].levels.size()); }

  bool does(const Row& row) const {
    const std::optional<Case> c = case_of(factors_, row);
    return c && has_.missing(*c).empty();
  }

  // A row that the candidate does. The plainest row comes first, then those that differ from it in
  // one level, then rows by chance, most of whose features are off.
  std::optional<Row> first_row() const {
    const Row plain(factors_.size(), 0);
    if (does(plain)) return plain;
    for (std::size_t f = 0; f < factors_.size(); ++f)
      if (const std::optional<Row> row = other_level(plain, f)) return row;
    constexpr int attempts = 20000;
    SplitMix64 random(attempts);
    for (int k = 0; k < attempts; ++k) {
      Row row = plain;
      for (std::size_t f = 0; f < factors_.size(); ++f) {
        const std::vector<Level>& levels = factors_[f].levels;
        const bool can_be_off = levels.front().name.empty() || !factors_[f].structural;
        if (!can_be_off || random.below(4) == 0)
          row[f] = static_cast<int>(random.below(levels.size()));
      }
      if (does(row)) return row;
    }
    return std::nullopt;
  }

  // The row with another level of one factor, if the candidate does one.
  std::optional<Row> other_level(Row row, std::size_t f) const {
    const int now = row[f];
    for (row[f] = 0; row[f] < levels_of(f); ++row[f])
      if (row[f] != now && does(row)) return row;
    return std::nullopt;
  }

  // Keeps the levels that the candidate does in the base row, or with one other level changed.
  void keep_possible(std::size_t f, const Row& base) {
    Factor kept = factors_[f];
    kept.levels.clear();
    std::vector<Row> rows;
    std::vector<int>& numbers = numbers_.emplace_back(usize(levels_of(f)), 0);
    for (int level = 0; level < levels_of(f); ++level) {
      Row row = base;
      row[f] = level;
      std::optional<Row> found;
      if (does(row)) found = row;
      for (std::size_t g = 0; !found && g < factors_.size(); ++g)
        if (g != f) found = other_level(row, g);
      if (!found) continue;
      numbers[usize(level)] = static_cast<int>(kept.levels.size());
      kept.levels.push_back(factors_[f].levels[usize(level)]);
      rows.push_back(*found);
    }
    kept_.push_back(std::move(kept));
    rows_.push_back(std::move(rows));
  }

  Row renumbered(Row row) const {
    for (std::size_t f = 0; f < row.size(); ++f) row[f] = numbers_[f][usize(row[f])];
    return row;
  }

  // A row with these levels that the candidate does: one that has one of them, with the others
  // changed. A level of -1 is open.
  std::optional<Row> row_with(const Row& levels) const {
    for (std::size_t f = 0; f < levels.size(); ++f) {
      if (levels[f] < 0) continue;
      Row row = rows_[f][usize(levels[f])];
      for (std::size_t g = 0; g < levels.size(); ++g)
        if (levels[g] >= 0) row[g] = levels[g];
      if (does(row)) return row;
    }
    return std::nullopt;
  }

  std::vector<Factor> factors_, kept_;
  const Features& has_;
  std::vector<std::vector<Row>> rows_;     // by factor and level; empty if nothing is known
  std::vector<std::vector<int>> numbers_;  // of each level of the whole, among those that are kept
};

CoveringPlan plan_of(const std::vector<Factor>& factors, int structural_strength,
                     const std::vector<Exclusion>& exclusions) {
  CoveringPlan plan;
  for (const Exclusion& e : exclusions) {
    std::vector<std::pair<int, int>> excluded;
    bool can_occur = true;
    for (const auto& [name, level] : e.levels) {
      const auto factor = std::ranges::find(factors, name, &Factor::name);
      if (factor == factors.end())
        throw std::logic_error(fmt::format("no factor is named {}", name));
      const auto found = std::ranges::find(factor->levels, level, &Level::name);
      can_occur = can_occur && found != factor->levels.end();  // a level may have been left out
      // The only level of a factor is in every row, so the others alone exclude one another.
      if (factor->levels.size() > 1)
        excluded.emplace_back(static_cast<int>(factor - factors.begin()),
                              static_cast<int>(found - factor->levels.begin()));
    }
    if (can_occur) plan.excluded.push_back(std::move(excluded));
  }
  std::vector<int> everything, structural;
  for (std::size_t f = 0; f < factors.size(); ++f) {
    plan.levels.push_back(static_cast<int>(factors[f].levels.size()));
    everything.push_back(static_cast<int>(f));
    if (factors[f].structural) structural.push_back(static_cast<int>(f));
  }
  plan.sets = all_sets(everything, 2);
  for (auto& set : all_sets(structural, structural_strength))
    if (set.size() > 2) plan.sets.push_back(std::move(set));
  return plan;
}

// For a candidate that lacks features, a combination may fit into no row. Then the pairs are
// covered one by one.
std::vector<Row> array_of(const CoveringPlan& plan, std::uint64_t array_seed,
                          const SuiteSeed& seed) {
  try {
    return covering_array(plan, array_seed);
  } catch (const std::logic_error&) {
    if (seed.has.has_all()) throw;
    return {};
  }
}

std::vector<Case> cases_of(const Possible& possible, const CoveringPlan& plan,
                           std::uint64_t array_seed, const SuiteSeed& seed) {
  std::vector<Row> rows = array_of(plan, array_seed, seed);
  if (!seed.has.has_all()) {
    possible.leave_out_declined(rows);
    CoveringPlan fitting = plan;
    std::vector<Row> first;
    // An array that knows which pairs cannot be has fewer rows with them, so that fewer of the
    // other combinations are lost.
    if (const auto impossible = possible.impossible(rows, plan); !impossible.empty()) {
      fitting.excluded.insert(fitting.excluded.end(), impossible.begin(), impossible.end());
      first = std::exchange(rows, array_of(fitting, array_seed, seed));
      possible.leave_out_declined(rows);
    }
    possible.restore(rows, first, fitting);
  }
  std::vector<Case> cases;
  for (const Row& row : rows) {
    Case c;
    for (std::size_t f = 0; f < row.size(); ++f)
      possible.factors()[f].levels[usize(row[f])].change(c);
    c.seed = seed.seed + cases.size();
    check_case(c);
    cases.push_back(std::move(c));
  }
  return cases;
}

}  // namespace

Factor& factor_named(std::vector<Factor>& factors, std::string_view name) {
  const auto found = std::ranges::find(factors, name, &Factor::name);
  if (found == factors.end()) throw std::logic_error(fmt::format("no factor is named {}", name));
  return *found;
}

void set_levels(std::vector<Factor>& factors, std::string_view name, std::vector<Level> levels) {
  factor_named(factors, name).levels = std::move(levels);
}

std::size_t level_named(const Factor& factor, std::string_view name) {
  const auto found = std::ranges::find(factor.levels, name, &Level::name);
  if (found == factor.levels.end())
    throw std::logic_error(fmt::format("{} has no level '{}'", factor.name, name));
  return usize(found - factor.levels.begin());
}

void keep_levels(std::vector<Factor>& factors, std::string_view name,
                 std::initializer_list<std::string_view> names) {
  Factor& factor = factor_named(factors, name);
  std::vector<Level> kept;
  for (const std::string_view level : names)
    kept.push_back(factor.levels[level_named(factor, level)]);
  factor.levels = std::move(kept);
}

void leave_out(std::vector<Factor>& factors, std::initializer_list<std::string_view> names) {
  std::erase_if(factors,
                [&](const Factor& f) { return std::ranges::find(names, f.name) != names.end(); });
}

std::vector<Case> cover(const std::vector<Factor>& factors, int structural_strength,
                        std::uint64_t array_seed, const SuiteSeed& seed, std::size_t most) {
  const Possible possible(factors, seed.has);
  CoveringPlan plan = plan_of(possible.factors(), structural_strength, {});
  const Coverage coverage(plan);
  if (std::ranges::any_of(coverage.sets(), [&](const auto& s) { return s.covered.size() > most; }))
    plan = plan_of(possible.factors(), 2, {});
  return cases_of(possible, plan, array_seed, seed);
}

std::vector<Case> cover(const std::vector<Factor>& factors,
                        const std::vector<Exclusion>& exclusions, std::uint64_t array_seed,
                        const SuiteSeed& seed, Combinations& count) {
  const Possible possible(factors, seed.has);
  const CoveringPlan plan = plan_of(possible.factors(), 3, exclusions);
  count = count_combinations(plan);
  return cases_of(possible, plan, array_seed, seed);
}

}  // namespace assay
