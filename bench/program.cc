#include "bench/program.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <charconv>
#include <stdexcept>
#include <string>

#include "bench/machine.h"
#include "bench/table.h"
#include "harness/files.h"
#include "harness/results/schema.h"
#include "problem/parallel.h"

namespace assay::bench {
namespace {

std::string_view program_name;  // for callbacks of Google Benchmark that have no arguments
std::span<const Mode> all_modes;

void print_help() {
  fmt::print(
      "{} MODE [--shapes quick|full] [--threads N,...] [--json FILE] [flags of Google "
      "Benchmark]\n\n",
      program_name);
  for (const Mode& mode : all_modes) fmt::print("  {:<10} {}\n", mode.name, mode.what);
  fmt::print(
      "\nThe defaults are quick shapes, and 1 and 2 threads. Unless you give these flags, six "
      "repetitions, random\n"
      "interleaving and a short --benchmark_min_time are set. --json writes what was measured, "
      "with intervals.\n"
      "The flags of Google Benchmark:\n\n");
  benchmark::PrintDefaultHelp();
}

std::vector<int> parse_threads(std::string_view text) {
  std::vector<int> threads;
  for (const char *p = text.data(), *const end = p + text.size(); p < end;) {
    int n = 0;
    const auto [stop, error] = std::from_chars(p, end, n);
    if (error != std::errc() || n < 1 || n > 4096 || (stop != end && *stop != ','))
      throw std::invalid_argument(
          fmt::format("--threads {}: not a list of counts from 1 to 4096", text));
    threads.push_back(n);
    p = stop + (stop != end);
  }
  if (threads.empty()) throw std::invalid_argument("--threads: the list has no count");
  return threads;
}

int run(int argc, char** argv) {
  Settings settings;
  settings.threads = hardware_threads() >= 2 ? std::vector<int>{1, 2} : std::vector<int>{1};
  const Mode* chosen = nullptr;
  std::string json;
  std::vector<std::string> rest{argv[0]};
  for (int i = 1; i < argc; ++i) {
    std::string_view flag = argv[i], value;
    if (!flag.starts_with("--")) {
      for (const Mode& mode : all_modes)
        if (mode.name == flag && chosen == nullptr) chosen = &mode;
      if (chosen == nullptr || chosen->name != flag)
        throw std::invalid_argument(fmt::format("no such mode: {}", flag));
      continue;
    }
    if (!flag.starts_with("--shapes") && !flag.starts_with("--threads") &&
        !flag.starts_with("--json")) {
      rest.emplace_back(flag);
      continue;
    }
    if (const auto at = flag.find('='); at != flag.npos)
      value = flag.substr(at + 1), flag = flag.substr(0, at);
    else if (i + 1 < argc) value = argv[++i];
    if (flag == "--threads") settings.threads = parse_threads(value);
    else if (flag == "--json") json = value;
    else if (flag == "--shapes" && (value == "quick" || value == "full"))
      settings.full = value == "full";
    else throw std::invalid_argument(fmt::format("--shapes is quick or full, not {}", value));
  }
  Rounds rounds(rest, print_help);
  if (chosen == nullptr) throw std::invalid_argument("no mode is given; --help lists the modes");
  BenchMode measured;
  measured.mode = chosen->name;
  measured.limits_with = measured_with();
  if (chosen->limits && !rounds.lists_only())
    measured.limits = print_machine(rounds.tables(), settings.threads);
  chosen->run(rounds, settings);
  measured.measured = rounds.report();
  if (!json.empty()) write_file(json, to_json(measured).dump(1) + "\n");
  return 0;
}

}  // namespace

int run_program(int argc, char** argv, std::string_view program, std::span<const Mode> modes) {
  program_name = program;
  all_modes = modes;
  try {
    return run(argc, argv);
  } catch (const std::invalid_argument& e) {
    fmt::print(stderr, "{}: {}\n", program, e.what());
    return 2;
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}: {}\n", program, e.what());
    return 1;
  }
}

}  // namespace assay::bench
