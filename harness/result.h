// Results as JSON: what workers send, what reports and stores read. docs/results.md says what each field is.
#pragma once

#include <nlohmann/json.hpp>

#include "harness/execute.h"

namespace assay {

using Json = nlohmann::json;

Json to_json(const CaseResult& result);
// A result without a verdict: the worker crashed, hung or refused.
Json failed_result(const std::string& line, const std::string& candidate, Outcome outcome, const std::string& reason, Surroundings around);

// Lanes of every kind of tile, by dtype and tile width: the union of the power certificates of a suite.
class Adequacy {
 public:
  void add(const Json& result);
  // Cells (kind of tile, lane, change) shown and in all, by "dtype tile".
  Json summary() const;

 private:
  struct Cells {
    Index tail_lanes = 0;
    std::array<std::array<std::vector<bool>, change_count>, tile_kind_count> lanes;
  };
  std::map<std::pair<std::string, Index>, Cells> cells_;
};

}  // namespace assay
