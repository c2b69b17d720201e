#include "cli/sweep_state.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <system_error>

#include "cli/exit_status.h"
#include "cli/machine.h"
#include "harness/results/merge_shards.h"
#include "harness/results/run.h"
#include "harness/results/schema.h"
#include "harness/text.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

std::string read_whole(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in)
    throw std::system_error(errno != 0 ? errno : EIO, std::generic_category(), "reading " + path);
  return text;
}

std::string told(const SweepBuild& b) {
  return fmt::format("{} ({}, {})", b.commit, b.compiler, b.flags);
}

std::optional<std::size_t> number_of(std::string_view text) {
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// The number of the shard that a file belongs to by its name.
std::optional<std::size_t> number_in_name(const fs::path& path, std::size_t shards) {
  if (path.extension() != ".json") return std::nullopt;
  const std::optional<std::size_t> number = number_of(path.stem().string());
  return number && *number < shards ? number : std::nullopt;
}

// Collects what is in the folders.
class Reader {
 public:
  Reader(const PlanFile& plan, const std::vector<std::string>& folders)
      : plan_(plan), folders_(folders) {
    state_.shards.resize(plan.plan.shards);
  }

  SweepState read() {
    for (const std::string& folder : folders_)
      for (const fs::path& path : files_in(folder)) take(path);
    std::vector<std::size_t> missing;
    for (std::size_t k = 0; k < state_.shards.size(); ++k)
      if (!state_.shards[k] && !mended_.contains(k)) missing.push_back(k);
    if (!missing.empty())
      add({fmt::format("missing: {}: {}", counted(missing.size(), "shard"),
                       text_of_numbers(missing)),
           run(missing)});
    return std::move(state_);
  }

 private:
  static std::vector<fs::path> files_in(const std::string& folder) {
    std::vector<fs::path> files;
    std::error_code error;
    for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
      if (at->is_regular_file()) files.push_back(at->path());
    if (error && error != std::errc::no_such_file_or_directory)
      throw std::system_error(error, "reading " + folder);
    // Of doubles, the one that has its own name counts as the first.
    std::ranges::sort(files, {}, [](const fs::path& path) {
      return std::pair(number_of(path.stem().string()) ? 0 : 1, path);
    });
    return files;
  }

  void add(SweepTrouble trouble) { state_.troubles.push_back(std::move(trouble)); }

  std::string run(const std::vector<std::size_t>& numbers) const {
    const std::string folder =
        folders_.front() == folder_of(plan_, "") ? "" : " --folder " + shell_word(folders_.front());
    return fmt::format("assay sweep run {} {}{}", shell_word(plan_.path), text_of_numbers(numbers),
                       folder);
  }
  static std::string remove(const std::vector<std::string>& paths) {
    std::vector<std::string> words;
    for (const std::string& path : paths) words.push_back(shell_word(path));
    return fmt::format("rm {}", fmt::join(words, " "));
  }

  // A file that is no shard of this plan. If it has the place of one, that one is missing.
  void put_away(const std::string& path, const std::string& words, bool overwritten) {
    const std::optional<std::size_t> number = number_in_name(path, state_.shards.size());
    if (number) mended_.insert(*number);
    std::string command = overwritten && number ? "" : remove({path});
    if (number) command += (command.empty() ? "" : " && ") + run({*number});
    add({words, command});
  }

  void take(const fs::path& path) {
    if (path.extension() == ".tmp")
      return add({fmt::format("left by a kill: {}", path.string()), remove({path}), true});
    ShardFile file = read_shard(path, plan_);
    if (file.kind == ShardFile::Kind::cut_off)
      return put_away(path, fmt::format("cut off: {}: {}", path.string(), file.why), true);
    if (file.kind == ShardFile::Kind::foreign)
      return put_away(path, fmt::format("foreign: {}: {}", path.string(), file.why), false);
    const std::size_t number = file.shard->shard;
    if (const auto known = paths_.find(number); known != paths_.end())
      return take_double(number, known->second, path, *file.shard);
    paths_.emplace(number, path);
    if (file.kind == ShardFile::Kind::machine_failed)
      add({fmt::format("the machine failed in shard {}: {}: {}", number, path.string(), file.why),
           run({number}), false, true});
    state_.shards[number] = std::move(file.shard);
  }

  void take_double(std::size_t number, const std::string& first, const std::string& second,
                   const SweepShard& shard) {
    const Json changes =
        Json::diff(without_times(state_.shards[number]->document), without_times(shard.document));
    if (changes.empty())
      return add(
          {fmt::format("double: shard {} is in {} and in {}, which agree", number, first, second),
           remove({second}), true});
    add({fmt::format("double: shard {} is in {} and in {}, which differ at {}", number, first,
                     second, changes[0].value("path", "")),
         fmt::format("{} && {}", remove({first, second}), run({number}))});
  }

  const PlanFile& plan_;
  const std::vector<std::string>& folders_;
  SweepState state_;
  std::map<std::size_t, std::string> paths_;  // of the shards that were found
  std::set<std::size_t> mended_;              // the numbers that another trouble's command runs
};

// What the results of a shard say of the machine. Only the document of a run has results with
// errors; those of other commands say nothing of it.
std::string told_errors(const SweepShard& shard) {
  constexpr const char* only_the_status = "the exit status was 3";
  try {
    const Run run = from_json<Run>(shard.document, "run");
    const auto first = std::ranges::find(run.results, Outcome::error, &CaseResult::outcome);
    if (first == run.results.end()) return only_the_status;
    return fmt::format("{}, the first: {}", counted(count_outcomes(run.results).error, "error"),
                       first->reason);
  } catch (const SchemaError&) {
    return only_the_status;
  }
}

}  // namespace

PlanFile read_plan(const std::string& path) {
  try {
    SweepPlan plan = from_json<SweepPlan>(parse_json(read_whole(path), path), path);
    if (plan.shards == 0) throw SchemaError(path + ".shards: 0, which is no number of shards");
    std::string hash = hash_of(plan);
    return {path, std::move(plan), std::move(hash)};
  } catch (const SchemaError& e) {
    throw UsageError(fmt::format("{}; this is no plan that this program knows", e.what()));
  }
}

void require_same_build(const PlanFile& file) {
  const SweepBuild mine = build_of(this_machine());
  if (mine == file.plan.build) return;
  throw UsageError(
      fmt::format("{}: the plan is of build {}, this program is build {}: use the other one, or "
                  "plan again",
                  file.path, told(file.plan.build), told(mine)));
}

void require_same_files(const PlanFile& file) {
  for (const auto& [path, hash] : file.plan.files)
    if (hash_of_file(path) != hash)
      throw UsageError(
          fmt::format("{}: {} has changed since it was planned: plan again", file.path, path));
}

std::string folder_of(const PlanFile& plan, const std::string& folder) {
  return folder.empty() ? plan.path + ".shards" : folder;
}

std::string shard_path(const std::string& folder, std::size_t shard) {
  return fs::path(folder) / fmt::format("{}.json", shard);
}

std::string text_of_numbers(const std::vector<std::size_t>& numbers) {
  std::string text;
  for (std::size_t k = 0; k < numbers.size();) {
    std::size_t last = k;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text +=
        last == k ? fmt::format("{}", numbers[k]) : fmt::format("{}-{}", numbers[k], numbers[last]);
    k = last + 1;
  }
  return text;
}

std::vector<std::size_t> numbers_of_text(const std::string& text, std::size_t shards) {
  std::set<std::size_t> numbers;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const std::size_t dash = std::min(part.find('-'), part.size());
    const auto low = number_of(part.substr(0, dash)),
               high = dash == part.size() ? low : number_of(part.substr(dash + 1));
    if (!low || !high || *low > *high)
      throw UsageError(fmt::format("'{}': no list of shards, as 3,17-20", text));
    if (*high >= shards)
      throw UsageError(fmt::format("'{}': shard {} is not there; the plan has 0 to {}", text, *high,
                                   shards - 1));
    for (std::size_t k = *low; k <= *high; ++k) numbers.insert(k);
    begin = end + 1;
  }
  return {numbers.begin(), numbers.end()};
}

ShardFile read_shard(const std::string& path, const PlanFile& plan) {
  const std::string text = read_whole(path);
  const auto cut_off = [&](const char* why) -> ShardFile {
    return {ShardFile::Kind::cut_off, why, std::nullopt};
  };
  if (text.empty()) return cut_off("it is empty");
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return cut_off("it is no whole JSON");
  const auto foreign = [&](const std::string& why) -> ShardFile {
    return {ShardFile::Kind::foreign, why, std::nullopt};
  };
  SweepShard shard;
  try {
    shard = from_json<SweepShard>(json, "shard");
  } catch (const SchemaError& e) {
    return foreign(e.what());
  }
  if (shard.plan != plan.hash)
    return foreign(fmt::format("of plan {}, this one is {}", shard.plan, plan.hash));
  if (build_of(shard.machine) != plan.plan.build)
    return foreign(fmt::format("of build {}, the plan is of {}", told(build_of(shard.machine)),
                               told(plan.plan.build)));
  if (shard.shard >= plan.plan.shards)
    return foreign(
        fmt::format("shard {}, the plan has 0 to {}", shard.shard, plan.plan.shards - 1));
  if (shard.status == machine_failed) {
    std::string why = told_errors(shard);
    return {ShardFile::Kind::machine_failed, std::move(why), std::move(shard)};
  }
  return {ShardFile::Kind::whole, "", std::move(shard)};
}

SweepState read_sweep(const PlanFile& plan, const std::vector<std::string>& folders) {
  return Reader(plan, folders).read();
}

}  // namespace assay
