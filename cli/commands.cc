// The command assay commands: prints what the program declares as JSON. Tests compare the documents
// with it, and scripts can ask it what exists.
#include <cstdio>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/options.h"

namespace assay {
namespace {

using nlohmann::json;

json names_of(const CLI::Option& option) {
  json names = json::array();
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  if (option.get_positional()) names.push_back(option.get_name(true));
  return names;
}

json options_of(const CLI::App& command) {
  json options = json::array();
  for (const CLI::Option* option : command.get_options())
    options.push_back({{"names", names_of(*option)},
                       {"type", option->get_type_name()},  // with the range or the possible names
                       {"takes_value", option->get_items_expected_max() > 0},
                       {"positional", option->get_positional()},
                       {"required", option->get_required()},
                       {"help", option->get_description()}});
  return options;
}

// A command that consists of others is not in the list; they have its name before their own.
void add_commands_of(const CLI::App& app, const std::string& before, json& commands) {
  for (const CLI::App* command : app.get_subcommands({})) {
    const std::string name = before + command->get_name();
    if (command->get_subcommands({}).empty())
      commands[name] = {{"help", command->get_description()},
                        {"footer", command->get_footer()},
                        {"hidden", command->get_group().empty()},
                        {"options", options_of(*command)}};
    add_commands_of(*command, name + " ", commands);
  }
}

int print_commands(const CLI::App& app) {
  json commands = json::object();
  add_commands_of(app, "", commands);
  const json whole{{"footer", app.get_footer()}, {"commands", commands}};
  std::fputs((whole.dump(1) + '\n').c_str(), stdout);
  return all_passed;
}

}  // namespace

Command add_commands(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "commands", "Print all commands, with their options and help texts, as JSON");
  command->group("");
  return {command, [&app] { return print_commands(app); }};
}

}  // namespace assay
