// Inside harness/cases/: the factors of a suite, their levels, and covering arrays of cases over
// them.
//
// For a candidate that lacks features, an array is drawn over what the candidate does: first a case
// of the array is sought that the candidate does, then each level is kept with which it does one.
// Rows that the candidate declines all the same are left out, and rows with the combinations that
// are lost so take their places.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness/cases/covering.h"
#include "problem/case.h"
#include "problem/features.h"

namespace assay {

// One way that a feature can be.
struct Level {
  // The level sets these fields of a case line, which are also its name. An empty text leaves the
  // feature as it is in a plain case.
  Level(const char*
            fields)  // NOLINT(google-explicit-constructor): lists of levels are lists of texts
      : name(fields), change([fields](Case& c) { set_fields(c, fields); }) {}
  // A change that no text can express, because it depends on the rest of the case.
  Level(std::string named, std::function<void(Case&)> how)
      : name(std::move(named)), change(std::move(how)) {}

  std::string name;
  std::function<void(Case&)> change;
};

// A feature and its levels. Extents come first: later levels depend on them.
struct Factor {
  std::string_view name;
  std::vector<Level> levels;
  // A structural factor occurs with every two other ones in triples, not only in pairs.
  bool structural;
};

// Levels that cannot occur together. Each is a pair of the name of its factor and its own name.
struct Exclusion {
  std::string_view why;
  std::vector<std::pair<std::string, std::string>> levels;
};

// Makes a level for each value of an enumeration; `of` returns the field of a case that holds it.
template <NamedEnum E, class Of>
std::vector<Level> every(const Of& of) {
  std::vector<Level> levels;
  for (const E value : values_of<E>)
    levels.emplace_back(std::string(name_of(value)), [=](Case& c) { of(c) = value; });
  return levels;
}

// Throw std::logic_error for a name that is not there.
Factor& factor_named(std::vector<Factor>& factors, std::string_view name);
std::size_t level_named(const Factor& factor, std::string_view name);
void set_levels(std::vector<Factor>& factors, std::string_view name, std::vector<Level> levels);
// Keeps only these levels, in this order.
void keep_levels(std::vector<Factor>& factors, std::string_view name,
                 std::initializer_list<std::string_view> names);
void leave_out(std::vector<Factor>& factors, std::initializer_list<std::string_view> names);

// The seed of the data of a suite, and the features that its cases may need.
struct SuiteSeed {
  std::uint64_t seed;
  const Features& has;
  operator std::uint64_t() const { return seed; }  // NOLINT(google-explicit-constructor)
};

// The cases of a covering array: every pair of levels occurs in a case, and every combination of
// `structural_strength` levels of structural factors; only pairs, if some set of factors has more
// than `most` combinations. The array has a seed of its own, so that a suite has the same shapes
// under every --seed.
std::vector<Case> cover(const std::vector<Factor>& factors, int structural_strength,
                        std::uint64_t array_seed, const SuiteSeed& seed,
                        std::size_t most = std::numeric_limits<std::size_t>::max());

// The same, in triples, without the combinations that cannot occur. `count` receives how many
// combinations there are, and how many of them cannot occur.
std::vector<Case> cover(const std::vector<Factor>& factors,
                        const std::vector<Exclusion>& exclusions, std::uint64_t array_seed,
                        const SuiteSeed& seed, Combinations& count);

}  // namespace assay
