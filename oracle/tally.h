// Inside oracle/: the counts that every judge keeps of the elements of a case, and the outcome that
// follows from them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "oracle/verdict.h"

namespace assay {

Element element_at(Output output, Index b, Index h, Index row, Index column);

// Fills in the error of `got` against the exact value `high + low`, and how it compares with the
// bound. The bound includes the rounding of the output.
void measure(Element& e, double got, double high, double low, double bound, Dtype dtype);

// Which of two elements with the same ratio is kept as the worst: the first in the order of
// elements, or the one that was rated last.
enum class Ties { first, last };

// The results of the elements that one thread judged; the tallies of all threads are merged at the
// end. Every element is compared once. It is then inside, excused, compared only with a hull, or it
// fails.
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
  // Adds a signed error / bound to the mean.
  void lean(double signed_ratio);
  // Calls options.judged, if there is one, for a judged element.
  void tell(const Element& e) const {
    if (options_.judged) options_.judged(e);
  }

  void merge(const Tally& other);
  // Returns the verdict with the mean of the signed errors, but without an outcome.
  Verdict finish();

 private:
  const JudgeOptions& options_;
  Ties ties_;
  double ratio_sum_ = 0;
  std::int64_t ratios_ = 0;
};

// Adds the counts of a verdict, its worst elements and its first failure.
void add(Verdict& into, const Verdict& from, Ties ties = Ties::first);

// The words in the reasons of the judges that differ from one judge to another.
struct FinalWords {
  std::string_view element = "element";  // the name of a compared number
  // The name of a number of which a pass needs at least one inside.
  std::string_view judged = "element";
  std::string_view nothing = "the problem has no output element";  // reason if nothing was compared
  // The words about elements that no bound decides; empty where there are no such elements.
  std::string_view hull_only = "";
};

// Decides between pass, fail and inconclusive, and gives the reason. `judged` is the number of
// elements inside, of which a pass needs at least one.
void conclude(Verdict& v, std::int64_t judged, const FinalWords& words);

}  // namespace assay
