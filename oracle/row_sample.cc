#include "oracle/row_sample.h"

#include <fmt/format.h>

#include <algorithm>

#include "problem/random.h"

namespace assay {

std::vector<Index> rows_to_judge(Index rows, Index sample, std::uint64_t seed) {
  std::vector<Index> chosen;
  if (sample == 0 || sample >= rows) {
    for (Index i = 0; i < rows; ++i) chosen.push_back(i);
    return chosen;
  }
  // Each of `sample` equal stretches gives one row, so that early, middle and late rows are always
  // among them.
  for (Index k = 0; k < sample; ++k) {
    const Index begin = rows * k / sample, end = rows * (k + 1) / sample;
    const std::uint64_t x = SplitMix64::number(seed, usize(k));
    chosen.push_back(begin + static_cast<Index>(x % usize(end - begin)));
  }
  return chosen;
}

void note_sample(Verdict& v, const std::vector<Index>& chosen, Index rows, std::uint64_t seed) {
  constexpr std::ptrdiff_t most_named = 8;
  if (std::ssize(chosen) >= rows) return;
  v.sampled.assign(chosen.begin(), chosen.begin() + std::min(most_named, std::ssize(chosen)));
  v.sample_rows = std::ssize(chosen);
  v.sample_seed = seed;
}

std::string sentence_on_sample(const Verdict& v, Index rows, std::string_view called) {
  if (v.sampled.empty()) return "";
  return fmt::format("; {} of {} {} were judged: one of each equal stretch, seed {}", v.sample_rows,
                     rows, called, v.sample_seed);
}

}  // namespace assay
