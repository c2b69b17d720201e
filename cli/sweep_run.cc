#include "cli/sweep_run.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "cli/exit_status.h"
#include "cli/machine.h"
#include "cli/tell.h"
#include "harness/files.h"
#include "harness/process.h"
#include "harness/results/schema.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

std::string read_to_end(const Descriptor& from) {
  std::string text;
  std::array<char, 65536> chunk{};
  for (;;) {
    const ssize_t n = read(from.number(), chunk.data(), chunk.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw std::system_error(errno, std::generic_category(), "reading an answer");
    if (n == 0) return text;
    text.append(chunk.data(), static_cast<std::size_t>(n));
  }
}

struct Answer {
  int status;
  std::string document;  // what the command wrote with --json; empty: nothing
};

// The document comes through a pipe, so a kill leaves no file behind.
Answer answer_of(const SweepPlan& plan, std::size_t shard) {
  constexpr int theirs = 3;
  std::vector<std::string> arguments = {"assay", plan.command};
  arguments.insert(arguments.end(), plan.arguments.begin(), plan.arguments.end());
  arguments.insert(arguments.end(), {"--shard", fmt::format("{}/{}", shard, plan.shards), "--json",
                                     fmt::format("/dev/fd/{}", theirs)});
  // Of a whole run, the first failures are shrunk. That is left to merging.
  if (plan.command == "check" && std::ranges::count(plan.arguments, "--no-shrink") == 0)
    arguments.emplace_back("--no-shrink");
  std::fflush(nullptr);
  Channel pipe = make_pipe("the answer of a shard");
  Process command({.program = "/proc/self/exe",
                   .arguments = arguments,
                   .descriptors = {{pipe.in.number(), theirs}},
                   .dies_with_thread = true});
  pipe.in.close();
  std::string document = read_to_end(pipe.out);
  const int status = command.wait();
  if (WIFEXITED(status)) return {WEXITSTATUS(status), std::move(document)};
  tell(stderr, "assay: shard {}: the command {}\n", shard, how_it_ended(status));
  return {machine_failed, {}};
}

// A shard in which nothing could be compared is an answer, too: merging looks at all of them.
int answered(int status) { return status == some_failed ? some_failed : all_passed; }

}  // namespace

int run_shard(const PlanFile& plan, std::size_t shard, const std::string& folder) {
  const std::string path = shard_path(folder, shard);
  if (fs::exists(path)) {
    const ShardFile there = read_shard(path, plan);
    if (there.kind == ShardFile::Kind::whole) {
      tell("shard {} is there: {}\n", shard, path);
      return answered(there.shard->status);
    }
    if (there.kind == ShardFile::Kind::foreign)
      throw UsageError(fmt::format("{}: {}; it is not replaced: remove it first", path, there.why));
  }
  Answer answer = answer_of(plan.plan, shard);
  if (answer.document.empty()) return answer.status == bad_usage ? bad_usage : machine_failed;
  const Json document = Json::parse(answer.document, nullptr, false);
  if (document.is_discarded()) {
    tell(stderr, "assay: shard {}: the command wrote no whole document\n", shard);
    return machine_failed;
  }
  const SweepShard whole{plan.hash, shard, answer.status, this_machine(), document};
  fs::create_directories(folder);
  write_file(path, to_json(whole).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  tell("shard {}: {}\n", shard, path);
  return answer.status == machine_failed ? machine_failed : answered(answer.status);
}

}  // namespace assay
