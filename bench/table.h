// Tables of what took turns, and what stands above them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bench/rounds.h"

namespace assay::bench {

// Lines of one candidate a column, printed as they come; a line of which nothing was run is left out.
class Table {
 public:
  enum class Cell { rate, milliseconds };  // rate: with the fraction of the machine's limit beside

  // Behind the candidates, columns of how many times the speed of those of `ratios`, by index, the first one runs, with the interval of ratio_interval().
  Table(Rounds& rounds, Cell cell, std::string labels, std::vector<std::string> candidates, std::vector<std::size_t> ratios = {});
  // Entries of one comparison, one a candidate, take their turns.
  void line(const std::string& label, const std::vector<Entry>& entries);
  // Geometric means of the ratios over all lines, and how far repetitions lay apart.
  void summary() const;

 private:
  Rounds& rounds_;
  std::FILE* to_;
  Cell cell_;
  std::string labels_;
  std::vector<std::string> candidates_;
  std::vector<std::size_t> ratios_;
  std::vector<std::vector<double>> seen_;  // of each ratio
  std::vector<double> spreads_;
  bool begun_ = false;
};

// The machine's limits on so many threads, in a few lines; returned as what was measured: [{"threads", "fma GFLOP/s": {dtype: median}, "read GB/s": {KiB: rate}}].
nlohmann::json print_machine(std::FILE* to, const std::vector<int>& thread_counts);

}  // namespace assay::bench
