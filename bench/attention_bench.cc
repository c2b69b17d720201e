// attention_bench MODE [--shapes quick|full] [--threads N,...] [any flag of Google Benchmark]
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <charconv>
#include <stdexcept>
#include <string_view>

#include "bench/modes.h"
#include "bench/table.h"
#include "problem/parallel.h"

namespace assay::bench {
namespace {

struct Mode {
  std::string_view name;
  void (*run)(Rounds&, const Settings&);
  bool limits;  // what it prints are fractions of the machine's limits
  const char* what;
};

constexpr Mode modes[] = {
    {"forward", forward_mode, true, "fp32, fp16 and bf16, and the peers that were built, as fractions of the multiply-add rate"},
    {"backward", backward_mode, true, "the same with five products; OpenBLAS"},
    {"times", times_mode, false, "milliseconds of forward and of forward and backward, L = 128, 2048, 4096"},
    {"decode", decode_mode, true, "one row over 4,096 keys and more, from tensors and caches, as fractions of the read rate"},
    {"products", products_mode, true, "low-bit products, OpenBLAS, oneDNN and ggml, as fractions of the read or the multiply-add rate"},
    {"overhead", overhead_mode, false, "validation, dispatch and the C interface around a tiny call"},
    {"steady", steady_mode, false, "first calls against later ones; memory over 1,000 calls of growing length"},
};

void print_help() {
  fmt::print("attention_bench MODE [--shapes quick|full] [--threads N,...] [flags of Google Benchmark]\n\n");
  for (const Mode& mode : modes) fmt::print("  {:<9} {}\n", mode.name, mode.what);
  fmt::print(
      "\nShapes are quick unless asked for; threads 1 and 2. Five repetitions, random interleaving and a short\n"
      "--benchmark_min_time are set unless given:\n\n");
  benchmark::PrintDefaultHelp();
}

std::vector<int> parse_threads(std::string_view text) {
  std::vector<int> threads;
  for (const char *p = text.data(), *const end = p + text.size(); p < end;) {
    int n = 0;
    const auto [stop, error] = std::from_chars(p, end, n);
    if (error != std::errc() || n < 1 || n > 4096 || (stop != end && *stop != ','))
      throw std::invalid_argument(fmt::format("--threads {}: not a list of counts from 1 to 4096", text));
    threads.push_back(n);
    p = stop + (stop != end);
  }
  if (threads.empty()) throw std::invalid_argument("--threads: no count");
  return threads;
}

int bench_main(int argc, char** argv) {
  Settings settings;
  settings.threads = hardware_threads() >= 2 ? std::vector<int>{1, 2} : std::vector<int>{1};
  const Mode* chosen = nullptr;
  std::vector<std::string> rest{argv[0]};
  for (int i = 1; i < argc; ++i) {
    std::string_view flag = argv[i], value;
    if (!flag.starts_with("--")) {
      for (const Mode& mode : modes)
        if (mode.name == flag && chosen == nullptr) chosen = &mode;
      if (chosen == nullptr || chosen->name != flag) throw std::invalid_argument(fmt::format("no such mode: {}", flag));
      continue;
    }
    const bool own = flag.starts_with("--shapes") || flag.starts_with("--threads");
    if (!own) {
      rest.emplace_back(flag);
      continue;
    }
    if (const auto at = flag.find('='); at != flag.npos) value = flag.substr(at + 1), flag = flag.substr(0, at);
    else if (i + 1 < argc) value = argv[++i];
    if (flag == "--threads") settings.threads = parse_threads(value);
    else if (flag == "--shapes" && (value == "quick" || value == "full")) settings.full = value == "full";
    else throw std::invalid_argument(fmt::format("--shapes is quick or full, not {}", value));
  }
  Rounds rounds(rest, print_help);
  if (chosen == nullptr) throw std::invalid_argument("no mode; --help lists them");
  if (chosen->limits && !rounds.lists_only()) print_machine(rounds.tables(), settings.threads);
  chosen->run(rounds, settings);
  return 0;
}

}  // namespace
}  // namespace assay::bench

int main(int argc, char** argv) {
  try {
    return assay::bench::bench_main(argc, argv);
  } catch (const std::invalid_argument& e) {
    fmt::print(stderr, "attention_bench: {}\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    fmt::print(stderr, "attention_bench: {}\n", e.what());
    return 1;
  }
}
