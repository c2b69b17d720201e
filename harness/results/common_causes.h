// What failing cases of one kernel look like, all together.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "oracle/diagnosis.h"

namespace assay {

// Counts, for every hypothesis, the cases that it explains. Hypotheses whose outputs are the same
// in a case count alike there.
class CommonCauses {
 public:
  void add(const Diagnosis& d) {
    for (std::size_t k = 0; k < d.explanations.size(); ++k) {
      const Explanation& e = d.explanations[k];
      count(e.hypothesis, k);
      for (const std::string& other : e.same) count(other, k);
    }
  }

  // The hypotheses from the likeliest on: those that explain more cases, then those that stand
  // further in front.
  std::vector<std::string> ranking() const {
    std::vector<std::string> names;
    for (const auto& [name, counted] : by_name_) names.push_back(name);
    std::ranges::stable_sort(names, {}, [&](const std::string& n) { return by_name_.at(n); });
    return names;
  }
  // One more than the number of hypotheses that are likelier; 0: it explains nothing.
  Index rank_of(std::string_view hypothesis) const {
    const auto own = by_name_.find(hypothesis);
    if (own == by_name_.end()) return 0;
    return 1 + std::ranges::count_if(by_name_,
                                     [&](const auto& other) { return other.second < own->second; });
  }
  // Whether no other hypothesis is as likely.
  bool is_alone(std::string_view hypothesis) const {
    const auto own = by_name_.find(hypothesis);
    return own != by_name_.end() && std::ranges::count_if(by_name_, [&](const auto& other) {
                                      return other.second == own->second;
                                    }) == 1;
  }

 private:
  struct Counted {
    Index missing = 0;  // minus the number of cases that it explains
    Index behind = 0;   // the sum of its places, from 0 on
    auto operator<=>(const Counted&) const = default;
  };
  void count(const std::string& name, std::size_t place) {
    Counted& own = by_name_[name];
    --own.missing;
    own.behind += static_cast<Index>(place);
  }

  std::map<std::string, Counted, std::less<>> by_name_;
};

}  // namespace assay
