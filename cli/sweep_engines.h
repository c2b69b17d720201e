// Inside cli/: what an engine needs in order to run the shards of a sweep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "problem/names.h"

namespace assay {

enum class Engine : std::uint8_t { slurm, parallel, gridengine, k8s, local };
template <>
inline constexpr auto table_of<Engine> = complete<Named<Engine>>({
    {Engine::slurm, "slurm"},
    {Engine::parallel, "parallel"},
    {Engine::gridengine, "gridengine"},
    {Engine::k8s, "k8s"},
    {Engine::local, "local"},
});

struct EngineWork {
  std::string program;               // the command on the machines of the engine
  std::string directory;             // where the shards start
  std::string plan, folder;          // paths there; the folder is empty where it is the default
  std::string logs;                  // a folder, for engines that give a shard no output
  std::string name;                  // of the job
  std::vector<std::size_t> numbers;  // of the shards
  int jobs = 0;              // how many shards run at a time; 0: as many as the engine likes
  std::string image, claim;  // of k8s: the image with the program, and the volume
};

// The program that takes what is written: "sbatch".
std::string program_of(Engine engine);

// A script (for parallel, a command a line; for k8s, a manifest as JSON). In each of them, exit
// status 0 of a shard and 1, a wrong candidate, are answers; 2, bad usage, is not tried again; and
// every other one, 3 of all, is the machine's and is tried again, three times in all (by Grid
// Engine, twice). Throws UsageError for a path that a script cannot hold.
std::string text_for(Engine engine, const EngineWork& work);

}  // namespace assay
