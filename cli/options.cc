#include "cli/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <limits>
#include <map>
#include <system_error>
#include <type_traits>
#include <vector>

#include "problem/parallel.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

// Reads a number and puts it into `text` as it is printed. If it cannot be read, puts the reason
// into `text` and returns false.
template <class T>
bool read_number(std::string& text, T low, T high) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  // An unsigned number takes no sign. With a sign it is out of range.
  const std::size_t sign = text.starts_with('-') ? 1 : 0;
  const bool digits =
      text.size() > sign && text.find_first_not_of("0123456789", sign) == std::string::npos;
  if (stop != end || error == std::errc::invalid_argument) {
    if (!digits) {
      text = fmt::format("'{}' is no {}", text, std::is_integral_v<T> ? "whole number" : "number");
      return false;
    }
  } else if (error == std::errc() && low <= value && value <= high) {
    text = fmt::format("{}", value);
    return true;
  }
  text = fmt::format("Value {} not in range {} to {}", text, std::to_string(low),
                     std::to_string(high));
  return false;
}

template <class T>
CLI::Validator number_between(T low, T high, const std::string& description) {
  return CLI::Validator(
      [low, high](std::string& text) {
        std::string read = text;
        if (!read_number(read, low, high)) return read;
        text = read;
        return std::string();
      },
      description);
}

template <class T>
CLI::Validator described_number(T low, T high) {
  return number_between(low, high, CLI::Range(low, high).get_description());
}

}  // namespace

CLI::Validator number_in(int low, int high) { return described_number(low, high); }
CLI::Validator number_in(Index low, Index high) { return described_number(low, high); }
CLI::Validator number_in(double low, double high) { return described_number(low, high); }

CLI::Validator any_number() {
  using Seed = std::uint64_t;
  return number_between(Seed{0}, std::numeric_limits<Seed>::max(), "");
}

CLI::Validator seconds_number() {
  constexpr double a_millisecond = 0.001, ten_years = 3e8;
  return number_in(a_millisecond, ten_years);
}

void refuse_empty_values(CLI::App& app) {
  const CLI::Validator not_empty(
      [](std::string& value) { return std::string(value.empty() ? "the value is empty" : ""); },
      "");
  for (CLI::App* command : app.get_subcommands({})) {
    for (CLI::Option* option : command->get_options())
      // Flags have no value. The transform that is added last is called first.
      if (option->get_items_expected_max() > 0) option->transform(not_empty);
    refuse_empty_values(*command);
  }
}

void add_workers(CLI::App& command, WorkerOptions& workers) {
  const Index bytes =
      static_cast<Index>(sysconf(_SC_PHYS_PAGES)) * static_cast<Index>(sysconf(_SC_PAGESIZE));
  workers.jobs = hardware_threads();
  workers.memory_mib = bytes >> 20;
  command.add_option("--jobs", workers.jobs, "Worker processes")
      ->transform(number_in(1, 1024))
      ->capture_default_str();
  command
      .add_option("--timeout", workers.timeout_seconds,
                  "Seconds that one case may take, with its judging; a candidate that takes longer "
                  "has failed")
      ->transform(seconds_number())
      ->capture_default_str();
  command.add_flag("--in-process", workers.in_process,
                   "Run the cases in this process, one after the other: for debuggers and "
                   "emulators");
  command
      .add_option(
          "--memory", workers.memory_mib,
          "Memory of a worker in MiB; the default is all memory of the machine; 0: no limit")
      ->transform(number_in(Index{0}, Index{1} << 30))
      ->capture_default_str();
}

void add_evidence(CLI::App& command, EvidenceRule& rule) {
  std::map<std::string, EvidenceRule> rules;
  for (const auto& row : table_of<EvidenceRule>) rules.emplace(row.name, row.value);
  command
      .add_option("--evidence", rule,
                  "What follows if errors are inside every bound, but not typical of any "
                  "arithmetic: the case fails, its reason warns, or nothing is asked")
      ->transform(CLI::CheckedTransformer(rules).description("fail|warn|off"))
      ->default_str("fail");
}

void add_required(CLI::App& command, Promises& required) {
  std::map<std::string, Promises> words;
  for (const auto& row : table_of<Promise>)
    words.emplace(requirement_of(row.value), bit_of(row.value));
  std::vector<std::string> names;
  for (const auto& [word, bit] : words) names.push_back(word);
  command
      .add_option_function<std::vector<std::string>>(
          "--require",
          [&required, words](const std::vector<std::string>& chosen) {
            for (const std::string& word : chosen) required |= words.at(word);
          },
          "What the bits of a row must not depend on, although the kernel does not promise it: " +
              fmt::format("{}", fmt::join(names, ", ")) +
              ".\nIt is asked bit for bit of every case that can ask it")
      ->delimiter(',')
      ->check(CLI::IsMember(names).description("PROMISE,..."));
}

void add_conventions(CLI::App& command, ConventionOptions& o) {
  command
      .add_option_function<std::string>(
          "--accept-convention",
          [&o](const std::string& text) { o.accepted = Conventions::parse(text); },
          "What the kernel means where nobody agreed, as masked-rows:mean-of-v,masked-lse:zero; it "
          "is then judged by that. docs/semantics.md lists the\nconventions")
      ->check([](const std::string& text) {
        try {
          Conventions::parse(text);
        } catch (const ConventionError& e) {
          return std::string(e.what());
        }
        return std::string();
      });
  std::map<std::string, ConventionRule> rules;
  for (const auto& row : table_of<ConventionRule>)
    if (row.value != ConventionRule::usual) rules.emplace(row.name, row.value);
  command
      .add_option("--conventions", o.rule,
                  "What follows where outputs are right by a convention that nobody declared: the "
                  "run fails, it is told, or it is only counted.\nDefault: each convention has its "
                  "own (docs/verdict.md)")
      ->transform(CLI::CheckedTransformer(rules).description("fail|warn|accept"));
}

void add_guard_pages(CLI::App& command, ExecuteOptions& execute) {
  const std::map<std::string, Surroundings> sides = {{"none", Surroundings::bands},
                                                     {"behind", Surroundings::page_behind},
                                                     {"before", Surroundings::page_before}};
  command
      .add_option("--guard-pages", execute.around,
                  "Put a page that cannot be accessed behind or before every "
                  "tensor, so that one element read or written beyond it is a crash.\n"
                  "A library always has them behind its tensors")
      ->transform(CLI::CheckedTransformer(sides).description("none|behind|before"));
}

std::string candidate_of_library(const std::string& library) {
  std::error_code error;
  const bool here = fs::exists(library, error);
  return "lib:" + (here ? fs::absolute(library).string() : library);
}

}  // namespace assay
