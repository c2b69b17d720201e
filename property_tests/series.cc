#include "property_tests/series.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <random>

namespace assay {
namespace {

constexpr std::size_t length = 240, middle = 120;
constexpr double twofold = std::numbers::ln2, sigma = 0.1;

class Noise {
 public:
  explicit Noise(std::uint64_t seed) : random_(seed) {}
  double normal(double deviation = sigma) {
    return deviation * std::normal_distribution<double>()(random_);
  }
  double heavy() { return sigma * std::student_t_distribution<double>(3)(random_); }
  bool happens(double chance) { return std::bernoulli_distribution(chance)(random_); }

 private:
  std::mt19937_64 random_;
};

// A level for each value, noise on top, and the changes.
KnownSeries series(
    std::vector<TrueChange> changes, const std::function<double(std::size_t)>& level,
    const std::function<double()>& noise = [] { return 0.0; }, std::size_t n = length) {
  KnownSeries s{{}, std::move(changes)};
  for (std::size_t t = 0; t < n; ++t) s.values.push_back(level(t) + noise());
  return s;
}

double flat(std::size_t) { return -2; }
std::function<double(std::size_t)> step(std::size_t at, double height = twofold) {
  return [=](std::size_t t) { return t < at ? -2 : -2 + height; };
}
std::function<double(std::size_t)> ramp(std::size_t from, std::size_t to) {
  return [=](std::size_t t) {
    const double along =
        (static_cast<double>(t) - static_cast<double>(from)) / static_cast<double>(to - from);
    return -2 + twofold * std::clamp(along, 0.0, 1.0);
  };
}
std::function<double()> normal(Noise& noise) {
  return [&] { return noise.normal(); };
}
std::function<double()> heavy(Noise& noise) {
  return [&] { return noise.heavy(); };
}
// Each value has a part of the one before and something new; the deviation is sigma.
std::function<double()> autocorrelated(Noise& noise, double part = 0.6) {
  return [&noise, part, last = 0.0]() mutable {
    return last = part * last + noise.normal(std::sqrt(1 - part * part) * sigma);
  };
}
// Two modes that are half as far apart as the steps.
std::function<double()> bimodal(Noise& noise) {
  return [&] { return noise.normal(0.2 * sigma) + (noise.happens(0.3) ? twofold / 2 : 0); };
}
// One value nine times of ten, and one of two others.
std::function<double()> few_values(Noise& noise) {
  return [&] { return noise.happens(0.9) ? 0 : noise.happens(0.5) ? 0.01 : -0.01; };
}
double season(std::size_t t) { return -2 + 0.3 * std::sin(2 * std::numbers::pi * double(t) / 7); }

constexpr TrueChange at(std::size_t t) { return {t, t}; }

KnownSeries with_outliers(Noise& noise) {
  return series({at(middle)}, step(middle), [&] {
    return noise.normal() + (noise.happens(0.03) ? (noise.happens(0.5) ? 2.3 : -2.3) : 0);
  });
}

// Three of ten runs do not have the case.
KnownSeries missing(Noise& noise) {
  const KnownSeries whole = series({}, step(middle), normal(noise));
  KnownSeries s;
  for (std::size_t t = 0; t < length; ++t) {
    if (t == middle) s.changes = {at(s.values.size())};
    if (!noise.happens(0.3)) s.values.push_back(whole.values[t]);
  }
  return s;
}

#define OF_NOISE(expression)              \
  [](std::uint64_t seed) -> KnownSeries { \
    Noise noise(seed);                    \
    return expression;                    \
  }

const std::vector<SeriesKind> kinds = {
    {"deterministic, no change", OF_NOISE(series({}, flat))},
    {"deterministic, one step", OF_NOISE(series({at(middle)}, step(middle)))},
    {"deterministic, up and down",
     OF_NOISE(
         series({at(90), at(150)}, [](std::size_t t) { return t < 90 || t >= 150 ? -2 : -1; }))},
    {"deterministic, step in the last run", OF_NOISE(series({at(length - 1)}, step(length - 1)))},
    {"deterministic, then noise",
     OF_NOISE(
         series({at(middle)},
                [&](std::size_t t) { return t < middle ? -2 : -2 + twofold + noise.normal(); }))},
    {"few values, no change", OF_NOISE(series({}, flat, few_values(noise)))},
    {"few values, one step", OF_NOISE(series({at(middle)}, step(middle), few_values(noise)))},
    {"noise, no change", OF_NOISE(series({}, flat, normal(noise)))},
    {"step up", OF_NOISE(series({at(middle)}, step(middle), normal(noise)))},
    {"step down", OF_NOISE(series({at(middle)}, step(middle, -twofold), normal(noise)))},
    {"two steps up", OF_NOISE(series(
                         {at(80), at(160)},
                         [](std::size_t t) {
                           return t < 80 ? -2 : t < 160 ? -2 + twofold : -2 + 2 * twofold;
                         },
                         normal(noise)))},
    {"up and down",
     OF_NOISE(series(
         {at(100), at(140)}, [](std::size_t t) { return t < 100 || t >= 140 ? -2 : -2 + twofold; },
         normal(noise)))},
    {"step with outliers", OF_NOISE(with_outliers(noise))},
    {"spike of three runs, no change",
     OF_NOISE(series(
         {}, [](std::size_t t) { return t >= middle && t < middle + 3 ? 0 : -2; }, normal(noise)))},
    {"variance changes, level does not",
     OF_NOISE(
         series({}, [&](std::size_t t) { return -2 + noise.normal(t < middle ? 0.05 : 0.3); }))},
    {"ramp over 10 runs",
     OF_NOISE(series({{middle, middle + 10}}, ramp(middle, middle + 10), normal(noise)))},
    {"ramp over 100 runs", OF_NOISE(series({{70, 170}}, ramp(70, 170), normal(noise)))},
    {"season of 7 runs, no change", OF_NOISE(series({}, season, normal(noise)))},
    {"season of 7 runs, step",
     OF_NOISE(series(
         {at(middle)}, [](std::size_t t) { return season(t) + (t < middle ? 0 : twofold); },
         normal(noise)))},
    {"heavy tails, no change", OF_NOISE(series({}, flat, heavy(noise)))},
    {"heavy tails, step", OF_NOISE(series({at(middle)}, step(middle), heavy(noise)))},
    {"autocorrelated, no change", OF_NOISE(series({}, flat, autocorrelated(noise)))},
    {"autocorrelated a little, no change", OF_NOISE(series({}, flat, autocorrelated(noise, 0.3)))},
    {"autocorrelated, step", OF_NOISE(series({at(middle)}, step(middle), autocorrelated(noise)))},
    {"two modes, no change", OF_NOISE(series({}, flat, bimodal(noise)))},
    {"two modes, step", OF_NOISE(series({at(middle)}, step(middle), bimodal(noise)))},
    {"missing runs, step", OF_NOISE(missing(noise))},
    {"step in the last 5 runs",
     OF_NOISE(series({at(length - 5)}, step(length - 5), normal(noise)))},
    {"step after 20 runs", OF_NOISE(series({at(20)}, step(20), normal(noise)))},
    {"step of 5 percent", OF_NOISE(series({at(middle)}, step(middle, 0.05), normal(noise)))},
};
#undef OF_NOISE

constexpr std::size_t tolerance = 5;

bool near(const TrueChange& change, std::size_t found) {
  return found + tolerance >= change.first && found <= change.last + tolerance;
}

}  // namespace

const std::vector<SeriesKind>& series_kinds() { return kinds; }

void Agreement::add(const std::vector<TrueChange>& true_changes,
                    const std::vector<std::size_t>& points) {
  changes += true_changes.size();
  found += points.size();
  std::vector<bool> hit(true_changes.size());
  for (const std::size_t point : points) {
    bool right = false;
    for (std::size_t i = 0; i < true_changes.size(); ++i) {
      const TrueChange& change = true_changes[i];
      // A ramp may be found in several places, a step once.
      if (!near(change, point) || (hit[i] && change.first == change.last)) continue;
      right = hit[i] = true;
      break;
    }
    wrong += !right;
  }
  hits += static_cast<std::size_t>(std::ranges::count(hit, true));
}

double Agreement::precision() const {
  return found == 0 ? 1 : 1 - static_cast<double>(wrong) / static_cast<double>(found);
}
double Agreement::recall() const {
  return changes == 0 ? 1 : static_cast<double>(hits) / static_cast<double>(changes);
}

}  // namespace assay
