// Inside cli/: the files of a sweep on disk: the plan, and the folder in which each shard is a
// file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/results/sweep.h"

namespace assay {

struct PlanFile {
  std::string path;
  SweepPlan plan;
  std::string hash;
};
// Throws UsageError, which names the file.
PlanFile read_plan(const std::string& path);
// Throws UsageError if this program is another build than the one of the plan.
void require_same_build(const PlanFile& plan);
// Throws UsageError if a file that answers follow from has changed since it was planned.
void require_same_files(const PlanFile& plan);

// Where the shards lie: in `folder`, or, if that is empty, in PLAN.shards.
std::string folder_of(const PlanFile& plan, const std::string& folder);
std::string shard_path(const std::string& folder, std::size_t shard);

// Numbers of shards as "3,17-20", in order and each once.
std::string text_of_numbers(const std::vector<std::size_t>& numbers);
// Throws UsageError if the text is no such list or if a number is not below `shards`.
std::vector<std::size_t> numbers_of_text(const std::string& text, std::size_t shards);

// A file that should be a shard.
struct ShardFile {
  enum class Kind { whole, machine_failed, cut_off, foreign } kind = Kind::foreign;
  std::string why;                  // unless it is whole
  std::optional<SweepShard> shard;  // of this plan; also if the machine failed
};
// Throws std::system_error if the file cannot be read.
ShardFile read_shard(const std::string& path, const PlanFile& plan);

// Something that keeps a sweep from being whole, or a file too many, and the command that mends it.
struct SweepTrouble {
  std::string words, command;
  bool harmless = false;        // what is there can be merged all the same
  bool machine_failed = false;  // the shard is there, with errors of the machine in it
};

struct SweepState {
  std::vector<std::optional<SweepShard>> shards;  // by number
  std::vector<SweepTrouble> troubles;
};
// Reads the folders, of which there is at least one. A folder that is not there holds nothing. New
// shards are to be written into the first.
SweepState read_sweep(const PlanFile& plan, const std::vector<std::string>& folders);

}  // namespace assay
