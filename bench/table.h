// Tables of candidates that took turns, and the lines above the tables.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bench/rounds.h"

namespace assay::bench {

// A table with one column for each candidate, whose lines are printed as they come. A line of which
// nothing was run is left out.
class Table {
 public:
  enum class Cell { rate, milliseconds };  // rate: beside the fraction of the machine's limit

  // Behind the candidates there are columns that say how many times the speed of the candidates of
  // `ratios`, given by index, the first candidate runs, with the interval of ratio_interval().
  Table(Rounds& rounds, Cell cell, std::string labels, std::vector<std::string> candidates,
        std::vector<std::size_t> ratios = {});
  // Runs the entries of one comparison, one for each candidate, in turns.
  void line(const std::string& label, const std::vector<Entry>& entries);
  // Prints geometric means of the ratios over all lines, and how far apart repetitions were.
  void summary() const;

 private:
  Rounds& rounds_;
  std::FILE* to_;
  Cell cell_;
  std::string labels_;
  std::vector<std::string> candidates_;
  std::vector<std::size_t> ratios_;
  std::vector<std::vector<double>> seen_;  // for each ratio
  std::vector<double> spreads_;
  bool begun_ = false;
};

// Prints the machine's limits on so many threads in a few lines, and returns what was measured.
std::vector<MachineLimits> print_machine(std::FILE* to, const std::vector<int>& thread_counts);

}  // namespace assay::bench
