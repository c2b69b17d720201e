#include "cli/sweep_engines.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/exit_status.h"
#include "cli/sweep_state.h"
#include "harness/results/schema.h"
#include "harness/text.h"

namespace assay {
namespace {

// The text as one word of /bin/sh, which does not know $'...'.
std::string word(const std::string& text) {
  std::string quoted = shell_word(text);
  if (quoted.find("$'") != std::string::npos)
    throw UsageError(fmt::format("{}: a script of /bin/sh cannot hold this path", quoted));
  return quoted;
}

// The command that runs the shards `which` of the plan, words of a shell.
std::string run(const EngineWork& w, const std::string& which) {
  const std::string folder = w.folder.empty() ? "" : " --folder " + word(w.folder);
  return fmt::format("{} sweep run{} {} {}", word(w.program), folder, word(w.plan), which);
}

// Behind a command: a wrong candidate is an answer, too.
constexpr const char* answer = "s=$?; [ $s -ne 1 ] || s=0";

// Goes to where the shards start. Output goes to a file of the shard.
std::string begin(const EngineWork& w, const std::string& log) {
  return fmt::format("cd {} && mkdir -p {} || exit 3\nexec >>{}/{}.txt 2>&1\n", word(w.directory),
                     word(w.logs), word(w.logs), log);
}

std::string slurm(const EngineWork& w) {
  const std::string limit = w.jobs > 0 ? fmt::format("%{}", w.jobs) : "";
  return fmt::format(
      "#!/bin/sh\n"
      "#SBATCH --job-name={}\n"
      "#SBATCH --array={}{}\n"
      "#SBATCH --output=/dev/null\n"
      "#SBATCH --requeue\n"
      "{}{}\n{}\n"
      "# The machine failed: once more, three times in all.\n"
      "[ $s -eq 0 ] || [ $s -eq 2 ] || [ \"${{SLURM_RESTART_COUNT:-0}}\" -ge 2 ] || scontrol "
      "requeue \"$SLURM_JOB_ID\"\n"
      "exit $s\n",
      w.name, text_of_numbers(w.numbers), limit, begin(w, "\"$SLURM_ARRAY_TASK_ID\""),
      run(w, "\"$SLURM_ARRAY_TASK_ID\""), answer);
}

std::string parallel(const EngineWork& w) {
  std::string lines;
  for (const std::size_t k : w.numbers)
    lines += fmt::format("cd {} && {{ {}; {}; exit $s; }}\n", word(w.directory),
                         run(w, fmt::format("{}", k)), answer);
  return lines;
}

// The tasks of a job are one range from 1 on.
std::string gridengine(const EngineWork& w) {
  const std::string limit = w.jobs > 0 ? fmt::format("#$ -tc {}\n", w.jobs) : "",
                    nth = fmt::format("{} --nth $((SGE_TASK_ID - 1))", text_of_numbers(w.numbers));
  return fmt::format(
      "#!/bin/sh\n"
      "#$ -S /bin/sh\n"
      "#$ -N {}\n"
      "#$ -t 1-{}\n"
      "{}"
      "#$ -j y\n"
      "#$ -o /dev/null\n"
      "#$ -r y\n"
      "{}{}\n{}\n"
      "# The machine failed: 99 puts the task back into the queue, once.\n"
      "[ $s -eq 0 ] || [ $s -eq 2 ] || [ \"${{RESTARTED:-0}}\" -ge 1 ] || exit 99\n"
      "exit $s\n",
      w.name, w.numbers.size(), limit, begin(w, "task-\"$SGE_TASK_ID\""), run(w, nth), answer);
}

std::string local(const EngineWork& w) {
  std::string numbers;
  for (const std::size_t k : w.numbers) numbers += fmt::format(" {}", k);
  return fmt::format(
      "#!/bin/sh\n"
      "cd {} || exit 3\n"
      "# xargs stops at 255, because bad usage of one shard is that of all.\n"
      "for shard in{}; do echo $shard; done | xargs -n 1 -P {} sh -c '\n"
      "for try in 1 2 3; do\n"
      "  \"$@\"; {}\n"
      "  case $s in 0) exit 0 ;; 2) exit 255 ;; esac\n"
      "done\n"
      "exit 3' sh {}\n"
      "exec {} sweep status{} {}\n",
      word(w.directory), numbers, w.jobs, answer, run(w, ""), word(w.program),
      w.folder.empty() ? "" : " --folder " + word(w.folder), word(w.plan));
}

// JSON is YAML, and needs no quoting of its own.
std::string k8s(const EngineWork& w) {
  using Json = nlohmann::ordered_json;
  const std::string script =
      fmt::format("{}; {}; exit $s",
                  run(w, text_of_numbers(w.numbers) + " --nth \"$JOB_COMPLETION_INDEX\""), answer);
  // A pod that had to make room is not counted. Bad usage of one shard is that of all.
  const auto rule = [](const char* action, const char* what, Json condition) {
    return Json{{"action", action}, {what, std::move(condition)}};
  };
  const auto exit_codes = [](const char* comparison, Json values) {
    return Json{
        {"containerName", "assay"}, {"operator", comparison}, {"values", std::move(values)}};
  };
  const Json disrupted = {{"type", "DisruptionTarget"}};
  const Json rules =
      Json::array({rule("Ignore", "onPodConditions", Json::array({disrupted})),
                   rule("FailJob", "onExitCodes", exit_codes("In", Json::array({2}))),
                   rule("Count", "onExitCodes", exit_codes("NotIn", Json::array({0, 2})))});
  const Json mount = {{"name", "sweep"}, {"mountPath", w.directory}};
  const Json claim = {{"claimName", w.claim}};
  const Json volume = {{"name", "sweep"}, {"persistentVolumeClaim", claim}};
  const Json container = {{"name", "assay"},
                          {"image", w.image},
                          {"command", Json::array({"/bin/sh", "-c", script})},
                          {"workingDir", w.directory},
                          {"volumeMounts", Json::array({mount})}};
  const Json pod = {{"restartPolicy", "Never"},
                    {"containers", Json::array({container})},
                    {"volumes", Json::array({volume})}};
  const std::size_t n = w.numbers.size();
  Json job;
  job["apiVersion"] = "batch/v1";
  job["kind"] = "Job";
  job["metadata"]["generateName"] = w.name + "-";
  Json& spec = job["spec"];
  spec["completionMode"] = "Indexed";
  spec["completions"] = n;
  spec["parallelism"] = w.jobs > 0 ? static_cast<std::size_t>(w.jobs) : n;
  spec["backoffLimitPerIndex"] = 2;
  spec["podFailurePolicy"]["rules"] = rules;
  spec["template"]["spec"] = pod;
  return job.dump(2) + "\n";
}

}  // namespace

std::string program_of(Engine engine) {
  switch (engine) {
    case Engine::slurm: return "sbatch";
    case Engine::parallel: return "parallel";
    case Engine::gridengine: return "qsub";
    case Engine::k8s: return "kubectl";
    case Engine::local: return "xargs";
  }
  return {};
}

std::string text_for(Engine engine, const EngineWork& w) {
  switch (engine) {
    case Engine::slurm: return slurm(w);
    case Engine::parallel: return parallel(w);
    case Engine::gridengine: return gridengine(w);
    case Engine::k8s: return k8s(w);
    case Engine::local: return local(w);
  }
  return {};
}

}  // namespace assay
