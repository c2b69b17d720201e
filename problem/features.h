// What a case asks of a candidate, in the words of case lines, and candidates that have some of it.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "problem/case.h"

namespace assay {

// The features that a case needs: its operation ("backward"), its dtype ("dtype=bf16"), and every
// field that changes what is computed ("causal", "bool", "layout=packed", "w=nvfp4"). Some features
// follow from the values of fields: "gqa" (fewer kv heads than query heads), "head-dims" (those of
// Q and V differ), "out" (O has another dtype than Q), "offset=lengths" (an offset for each batch),
// "empty" (an extent is 0).
std::vector<std::string> features_of(const Case& c);

// Every feature that features_of() can name, in a fixed order.
const std::vector<std::string>& all_features();

// The features that a candidate has.
class Features {
 public:
  // All of them.
  Features() = default;
  // Throws std::invalid_argument for a name that is not in all_features().
  explicit Features(const std::vector<std::string>& names);
  // `declines` returns an empty text for a case that the candidate does. Otherwise it returns the
  // reason why the candidate does not do the case.
  explicit Features(std::function<std::string(const Case&)> declines);

  // The first feature that the case needs and the candidate lacks, or the reason why the case is
  // declined. Empty if nothing is missing.
  std::string missing(const Case& c) const;
  bool has(const std::string& feature) const { return all_ || names_.contains(feature); }
  bool has_all() const { return all_; }

 private:
  bool all_ = true;
  std::set<std::string> names_;
  std::function<std::string(const Case&)> declines_;
};

}  // namespace assay
