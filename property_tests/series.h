// Kinds of series with known changes, as logarithms of what a store keeps, for the test of change
// points and for the program that measures their rates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace assay {

// A change that is right wherever it is found between these values, both included. A step has one
// place, a ramp has many.
struct TrueChange {
  std::size_t first = 0, last = 0;
};

struct KnownSeries {
  std::vector<double> values;
  std::vector<TrueChange> changes;
};

struct SeriesKind {
  std::string_view name;
  KnownSeries (*make)(std::uint64_t seed);
};

// All kinds. The same seed gives the same values with the same standard library.
const std::vector<SeriesKind>& series_kinds();

// How what was found agrees with what is true. A change is found if something lies within
// `tolerance` values of it.
struct Agreement {
  std::size_t changes = 0, hits = 0, found = 0, wrong = 0;

  void add(const std::vector<TrueChange>& changes, const std::vector<std::size_t>& found);
  // 1 if nothing was found, or if nothing is there to be found.
  double precision() const;
  double recall() const;
};

}  // namespace assay
