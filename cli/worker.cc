// The commands assay worker and assay serve-kernel. The program starts them itself, so no help text
// lists them.
#include "harness/judging/workers.h"

#include <memory>

#include "cli/commands.h"
#include "cli/options.h"
#include "harness/candidates/kernel_server.h"

namespace assay {
namespace {

struct ServeOptions {
  std::string library;
  std::size_t base = 0;  // the address of the tensors
};

struct ProcessOptions {
  Index memory_mib = 0;
  ExecuteOptions execute;
  bool no_power = false, no_relations = false, no_diagnosis = false;
};

int run(ProcessOptions& o) {
  o.execute.power = !o.no_power;
  o.execute.relations = !o.no_relations;
  o.execute.diagnosis = !o.no_diagnosis;
  return worker_main(o.memory_mib, o.execute);
}

}  // namespace

Command add_serve_kernel(CLI::App& app) {
  const auto o = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve-kernel", "")->group("");
  command->add_option("library", o->library)->required();
  command->add_option("base", o->base)->transform(any_number())->required();
  return {command, [o] { return serve_kernel(o->library, o->base); }, true};
}

Command add_worker(CLI::App& app) {
  const auto o = std::make_shared<ProcessOptions>();
  CLI::App* command = app.add_subcommand("worker", "")->group("");
  command->add_option("--memory", o->memory_mib)->transform(number_in(Index{0}, Index{1} << 30));
  command->add_option("--ball-rows", o->execute.ball_rows)->transform(number_in(0, 1 << 20));
  add_guard_pages(*command, o->execute);
  add_evidence(*command, o->execute.evidence);
  command->add_option("--oracle-threads", o->execute.oracle_threads)->transform(number_in(0, 1024));
  command->add_option("--repeat", o->execute.repeat)->transform(number_in(2, 10000));
  command->add_option("--state-of-every", o->execute.state_of_every)
      ->transform(number_in(0, 1 << 30));
  command->add_option("--require", o->execute.required)->transform(any_number());
  command->add_flag("--refusals", o->execute.refusals);
  command->add_flag("--pictures", o->execute.pictures);
  command->add_flag("--no-power", o->no_power);
  command->add_flag("--no-diagnosis", o->no_diagnosis);
  command->add_flag("--no-relations", o->no_relations);
  return {command, [o] { return run(*o); }, true};
}

}  // namespace assay
