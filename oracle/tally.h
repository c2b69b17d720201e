// Inside oracle/: the tally that every judge keeps of the elements of a case, and the final word.
#pragma once

#include <string>
#include <string_view>

#include "oracle/verdict.h"

namespace assay {

Element element_at(Output output, Index b, Index h, Index row, Index column);

// Fills in how `got` stands to the exact value `high + low`. The bound includes the rounding of the
// output.
void measure(Element& e, double got, double high, double low, double bound, Dtype dtype);

// Which of two elements with the same ratio is kept as the worst: the first in the order of
// elements, or the one that was rated last.
enum class Ties { first, last };

// What became of the elements that one thread judged, merged at the end. Every element is compared
// once, and then it is inside, excused, held to a hull only, or it fails.
class Tally {
 public:
  // Keeps a reference to the options.
  explicit Tally(const JudgeOptions& options, Ties ties = Ties::first)
      : options_(options), ties_(ties) {}

  Verdict verdict;

  void compare(const Element& e);
  void inside(const Element& e, bool exactly = false);
  void excuse(const char* reason) { ++verdict.excused[reason]; }
  void hold_to_hull() { ++verdict.hull_only; }
  void fail(Element e, std::string why);

  // Makes an element the worst of its output if its ratio is the largest. Without a bound above 0
  // there is no ratio.
  void rate(const Element& e);
  // Counts a signed error / bound in the mean.
  void lean(double signed_ratio);
  // Tells whoever asked to hear of each judged element.
  void tell(const Element& e) const {
    if (options_.judged) options_.judged(e);
  }

  void merge(const Tally& other);
  // The verdict with the mean of what leant, and without a final word.
  Verdict finish();

 private:
  const JudgeOptions& options_;
  Ties ties_;
  double ratio_sum_ = 0;
  std::int64_t ratios_ = 0;
};

// Adds the counts of a verdict, its worst elements and its first failure.
void add(Verdict& into, const Verdict& from, Ties ties = Ties::first);

// The words in which the final words of the judges differ.
struct FinalWords {
  std::string_view element = "element";  // what every compared number is called
  std::string_view judged = "element";   // what must be inside at least once for a pass
  std::string_view nothing = "the problem has no output element";  // where nothing was compared
  // What is said of elements that no bound decides; empty where there are no such elements.
  std::string_view hull_only = "";
};

// Decides between pass, fail and inconclusive, and says why. `judged` counts the elements inside
// of which a pass must have at least one.
void conclude(Verdict& v, std::int64_t judged, const FinalWords& words);

}  // namespace assay
