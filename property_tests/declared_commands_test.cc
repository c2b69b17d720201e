// Compares what the program declares (`assay commands`) with the documents and with rules for all
// options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "property_tests/documents.h"
#include "property_tests/run_command.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

const json& declared() {
  static const json whole = json::parse(run("commands").output);
  return whole;
}

using Options = std::set<std::string>;

std::map<std::string, Options> options_of_commands() {
  std::map<std::string, Options> commands;
  for (const auto& [name, command] : declared()["commands"].items())
    for (const json& option : command["options"])
      for (const json& option_name : option["names"]) commands[name].insert(option_name);
  return commands;
}

// The words of a shell's line, without quotes. An empty word separates two commands of one line. A
// comment ends the line.
std::vector<std::string> shell_words(const std::string& line) {
  std::vector<std::string> words;
  std::string word;
  const auto end_word = [&] {
    if (!word.empty()) words.push_back(std::exchange(word, {}));
  };
  char quote = 0;
  for (const char c : line) {
    if (quote) {
      if (c == quote) quote = 0;
      else word += c;
    } else if (c == '\'' || c == '"') {
      quote = c;
    } else if (c == '#' && word.empty()) {
      break;
    } else if (c == ' ') {
      end_word();
    } else if (c == ';' || c == '&' || c == '|') {
      end_word();
      words.emplace_back();
    } else {
      word += c;
    }
  }
  end_word();
  return words;
}

// Adds what the words of one command name and the program does not declare.
void add_unknown(std::vector<std::string> words, const std::map<std::string, Options>& commands,
                 std::vector<std::string>& unknown) {
  // A command may consist of others, as `sweep` of `sweep plan`.
  if (words.size() > 1 && commands.contains(words[0] + " " + words[1])) {
    words[1] = words[0] + " " + words[1];
    words.erase(words.begin());
  }
  const auto command = commands.find(words[0]);
  if (command == commands.end()) {
    const bool consists_of_others =
        words.size() == 1 && std::ranges::any_of(commands, [&](const auto& known) {
          return known.first.starts_with(words[0] + " ");
        });
    if (!consists_of_others) unknown.push_back("assay " + words[0]);
    return;
  }
  for (std::size_t k = 1; k < words.size(); ++k) {
    // Behind it stands a command that is given to this one.
    if (words[k] == "--" && k + 1 < words.size())
      return add_unknown({words.begin() + k + 1, words.end()}, commands, unknown);
    const std::string option = words[k].substr(0, words[k].find('='));
    const bool is_option =
        option.size() > 1 && option[0] == '-' &&
        (option[1] == '-' || std::isalpha(static_cast<unsigned char>(option[1])));
    if (is_option && !command->second.contains(option))
      unknown.push_back("assay " + words[0] + ' ' + option);
  }
}

// The commands and options that a document tells to type but the program does not declare. `seen`
// counts the lines that were checked.
std::vector<std::string> unknown_to_the_program(const std::string& text,
                                                const std::map<std::string, Options>& commands,
                                                int& seen) {
  std::vector<std::string> unknown;
  for (const std::string& line : split_markdown(text).code) {
    const std::vector<std::string> words = shell_words(line);
    for (std::size_t at = 0; at < words.size();) {
      std::size_t end = at;
      while (end < words.size() && !words[end].empty()) ++end;
      // The word is a prompt, or it sets a variable of the environment.
      if (at < end && (words[at] == "$" || words[at].find('=') != std::string::npos)) {
        ++at;
        continue;
      }
      if (at + 1 < end && words[at] == "./dev" && words[at + 1] == "assay") ++at;
      if (at + 1 < end && words[at] == "assay" && words[at + 1] != "--help" &&
          words[at + 1] != "--version") {
        ++seen;
        add_unknown({words.begin() + at + 1, words.begin() + end}, commands, unknown);
      }
      at = end + 1;
    }
  }
  return unknown;
}

TEST(Declared, DocumentedCommandsExist) {
  const std::map<std::string, Options> commands = options_of_commands();
  EXPECT_GE(commands.size(), 10u);
  for (const char* option : {"--case", "--kernel", "--guard-pages", "--jobs", "--html", "--help"})
    EXPECT_TRUE(commands.at("check").contains(option)) << option;
  EXPECT_TRUE(commands.at("record").contains("-o") && commands.at("record").contains("--output"));
  int seen = 0;
  for (const fs::path& document : documents())
    for (const std::string& what : unknown_to_the_program(text_of(document), commands, seen))
      ADD_FAILURE() << document << ": the program declares no " << what;
  EXPECT_GT(seen, 100);
}

// The workflow files that users copy.
TEST(Declared, WorkflowsUseWhatExists) {
  const fs::path packaging = fs::path(ASSAY_SOURCE_DIR) / "packaging";
  for (const char* name : {"github-actions.yml", "gitlab-ci.yml"}) {
    int seen = 0;
    for (const std::string& what :
         unknown_to_the_program(text_of(packaging / name), options_of_commands(), seen))
      ADD_FAILURE() << name << ": the program declares no " << what;
    EXPECT_GE(seen, 1) << name;
  }
}

TEST(Declared, ExamplesOfTheHelpTextsExist) {
  const std::map<std::string, Options> commands = options_of_commands();
  std::vector<std::string> helps = {declared()["footer"]};
  for (const json& command : declared()["commands"]) {
    helps.push_back(command["footer"]);
    // A reader who looks for a command must find an example of it.
    if (!command["hidden"]) EXPECT_THAT(helps.back(), HasSubstr("\n  assay ")) << command["help"];
  }
  int examples = 0;
  for (const std::string& help : helps) {
    std::istringstream lines(help);
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("  assay ") || line.starts_with("  ./dev "))
        for (const std::string& what : unknown_to_the_program("    " + line, commands, examples))
          ADD_FAILURE() << "a help text has " << what;
  }
  EXPECT_GT(examples, 20);
}

// Names that are made up must be found: an option, an option of another command, and a command, in
// a block and between backquotes, behind && and behind ./dev.
TEST(Declared, WhatIsMadeUpIsFound) {
  const std::map<std::string, Options> commands = options_of_commands();
  int seen = 0;
  for (const char* made_up :
       {"    assay check --sweet smoke", "say `assay trace --suite smoke 'attention'`",
        "```\n$ ./dev assay prove --suite smoke\n```", "    cmake -S . && assay verify x -q",
        "    X=1 assay store runs.db --dashbord=x", "    assay sweep guess x",
        "    assay sweep status x --only 3",
        "    assay sweep plan x --shards 4 -- check --sweet y"})
    EXPECT_EQ(unknown_to_the_program(made_up, commands, seen).size(), 1u) << made_up;
  for (const char* right :
       {"    assay check --suite smoke", "    assay: no such --thing",
        "    assay check --case 'product --x' # --y", "    assay record -o x && cmake --build y",
        "    assay sweep plan x --shards 4 -- check --suite y", "say `assay sweep`"})
    EXPECT_TRUE(unknown_to_the_program(right, commands, seen).empty()) << right;
}

// An option or a positional argument of some command.
struct Declaration {
  std::string command, name, type;
  bool positional;
  int position;  // its place among the positional arguments of the command

  // A command line that gives `value` for it, and some value for each positional argument before
  // it.
  std::string with(const std::string& value) const {
    std::string line = command;
    for (int k = 0; k < position; ++k) line += " x";
    return line + (positional ? " " : " " + name + " ") + "'" + value + "'";
  }
};

std::vector<Declaration> declarations_with_values() {
  std::vector<Declaration> all;
  for (const auto& [command, facts] : declared()["commands"].items()) {
    int positionals = 0;
    for (const json& option : facts["options"]) {
      if (!option["takes_value"]) continue;
      const bool positional = option["positional"];
      all.push_back({command, option["names"].back(), option["type"], positional,
                     positional ? positionals : 0});
      positionals += positional;
    }
  }
  return all;
}

void expect_refused(const std::string& line, const Declaration& d, const std::string& words) {
  const Ran r = run(line);
  EXPECT_EQ(r.status, 2) << line << "\n" << r.output;
  EXPECT_THAT(r.output, HasSubstr(d.name)) << line;
  EXPECT_THAT(r.output, HasSubstr(words)) << line;
}

// If a variable in a script is not set, the program must not judge something else, and must not
// write nothing.
TEST(Declared, AnEmptyValueIsAnErrorOfItsOption) {
  int tried = 0;
  for (const Declaration& d : declarations_with_values()) {
    expect_refused(d.with(""), d, d.name + ": the value is empty");
    // The next argument must not be taken as the value either.
    if (!d.positional)
      expect_refused(d.command + " " + d.name + "= --x", d, d.name + ": the value is empty");
    ++tried;
  }
  EXPECT_GT(tried, 70);
  const Ran attached = run("record --case 'attention b=1 h=1 l=4 d=4' -o=");
  EXPECT_EQ(attached.status, 2) << attached.output;
  EXPECT_THAT(attached.output, HasSubstr("--output: the value is empty"));
}

TEST(Declared, NumbersAreReadWholeAndInTheirRange) {
  int integers = 0, reals = 0;
  for (const Declaration& d : declarations_with_values()) {
    const bool real = d.type.starts_with("FLOAT");
    const bool integer = d.type.starts_with("INT") || d.type.starts_with("UINT");
    // In `serve-kernel -1`, the program reads -1 as an option, which does not exist.
    if (d.positional || !(real || integer)) continue;
    ++(real ? reals : integers);
    for (const char* value : {"nan", "inf", "-inf", "-1", "1e999", "18446744073709551616", "1x",
                              "x", " 1", "1 ", "+", "-", "0x10"})
      expect_refused(d.with(value), d, value);
    if (!real)
      for (const char* value : {"1.5", "1e0"})
        expect_refused(d.with(value), d, "is no whole number");
  }
  EXPECT_GT(integers, 20);
  EXPECT_GT(reals, 8);
  // A number is decimal, whatever characters it begins with.
  const std::string list = "check --suite tiny --list --seed ";
  EXPECT_EQ(run(list + "010").output, run(list + "10").output);
  EXPECT_NE(run(list + "010").output, run(list + "8").output);
  EXPECT_EQ(run(list + "18446744073709551615").status, 0);
}

class DeclaredFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-declared-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
    fs::create_symlink(folder_ / "loop", folder_ / "loop");
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const std::string& name) const { return folder_ / name; }
  void write_program(const std::string& name, const std::string& body) const {
    std::ofstream(file(name)) << "#!/bin/sh\n" << body << "\n";
    fs::permissions(file(name), fs::perms::owner_all);
  }
  // Paths that no file can have.
  std::vector<std::string> impossible() const {
    return {file("none/x"), file("loop"), file("loop/x"), std::string(5000, 'x')};
  }
  fs::path folder_;
};

TEST_F(DeclaredFiles, AFileThatCannotBeWrittenIsAnErrorOfItsOption) {
  int tried = 0;
  for (const Declaration& d : declarations_with_values()) {
    if (d.type.find(":FILE") == std::string::npos) continue;
    ++tried;
    for (const std::string& path : impossible()) expect_refused(d.with(path), d, "writing ");
    if (d.name == "--store") expect_refused(d.with("/dev/null"), d, "is no regular file");
  }
  EXPECT_GT(tried, 20);
}

TEST_F(DeclaredFiles, AFileThatCannotBeReadIsBadUsage) {
  const std::string line = " --case 'attention b=1 h=1 l=4 d=4'";
  for (const std::string& path : impossible())
    for (const std::string& arguments :
         {"check --cases " + path, "check --kernel " + path + line,
          "check" + line + " --html " + file("page") + " --with-faults " + path, "verify " + path,
          "trace --kernel " + path + " 'attention b=1 h=1 l=4 d=4'", "store " + path,
          "store " + file("s") + " --import " + path, "compare " + path + "#1 " + path + "#2",
          "bench --bin " + path + " overhead", "sweep status " + path, "sweep run " + path + " 0",
          "sweep merge " + path, "sweep write " + path + " --engine local",
          "fuzz --bin " + path + " --work " + file("w")}) {
      const Ran r = run(arguments);
      EXPECT_EQ(r.status, 2) << arguments << "\n" << r.output;
      EXPECT_THAT(r.output, HasSubstr("assay: ")) << arguments;
    }
  for (const std::string& path : {file("loop"), std::string(5000, 'x')})
    EXPECT_EQ(run("new-kernel " + path).status, 2);
}

// For each command of a user: a line that prints something and ends with status 0.
class DeclaredStreams : public DeclaredFiles {
 protected:
  void SetUp() override {
    DeclaredFiles::SetUp();
    fs::create_directories(file("programs"));
    // These programs take the place of those that `fuzz` and `bench` start.
    write_program("programs/case_fuzz", "exit 0");
    write_program(
        "programs/attention_bench",
        "while [ \"$1\" != --json ]; do shift; done; "
        "echo '{\"format\": 1, \"mode\": \"overhead\", \"limits\": [], \"limits with\": \"\", "
        "\"measured\": [{\"name\": \"x\", \"ratios\": []}]}' >\"$2\"");
    const std::string line = "--case 'attention b=1 h=1 l=4 d=4' ";
    EXPECT_EQ(run("check " + line + "--store " + file("runs.db")).status, 0);
    EXPECT_EQ(run("record --candidate host " + line + "-o " + file("record")).status, 0);
    const std::string planning = " --shards 1 -- check " + line;
    EXPECT_EQ(run("sweep plan " + file("sweep") + planning).status, 0);
    EXPECT_EQ(run("sweep run " + file("sweep") + " 0").status, 0);
    lines_ = {
        {"check", line + "--json " + file("run.json")},
        {"record", line + "-o " + file("inputs")},
        {"verify", file("record")},
        {"trace", "'attention b=1 h=1 l=4 d=4'"},
        {"identify", "--dtype f16"},
        {"store", file("runs.db")},
        {"compare", file("runs.db") + "#1 " + file("runs.db") + "#1"},
        {"faults", "--list"},
        {"fuzz", "--hours 1e-5 --slice 2 --bin " + file("programs") + " --work " + file("work")},
        {"bench", "overhead --bin " + file("programs")},
        {"sweep plan", file("another") + planning},
        {"sweep write", file("sweep") + " --engine local"},
        {"sweep run", file("sweep") + " 0"},
        {"sweep status", file("sweep")},
        {"sweep merge", file("sweep")},
        {"new-kernel", file("project")},
        {"notation", ""},
        {"commands", ""},
    };
    for (const auto& [name, command] : declared()["commands"].items())
      if (name != "worker" && name != "serve-kernel") EXPECT_TRUE(lines_.contains(name)) << name;
  }
  // Runs the command in a shell. Its standard error is read wherever its standard output goes.
  Ran run_redirected(const std::string& command, const std::string& arguments,
                     const std::string& redirection) const {
    fs::remove_all(file("project"));  // the command works only if this folder does not exist
    return run(command + " " + arguments + " " + redirection + "; }", "{ " ASSAY_COMMAND);
  }
  std::map<std::string, std::string> lines_;
};

TEST_F(DeclaredStreams, OutputThatCannotBeWrittenIsStatusThree) {
  for (const auto& [command, arguments] : lines_) {
    const Ran good = run_redirected(command, arguments, "");
    EXPECT_EQ(good.status, 0) << command << "\n" << good.output;
    for (const std::string& what : {arguments, std::string("--help")}) {
      const Ran full = run_redirected(command, what, ">/dev/full");
      EXPECT_EQ(full.status, 3) << command << " " << what << "\n" << full.output;
      EXPECT_THAT(full.output, HasSubstr("No space left on device")) << command;
      const Ran closed = run_redirected(command, what, ">&-");
      EXPECT_EQ(closed.status, 3) << command << " " << what << "\n" << closed.output;
      EXPECT_THAT(closed.output, HasSubstr("Bad file descriptor")) << command;
    }
  }
  EXPECT_EQ(run_redirected("--version", "", ">/dev/full").status, 3);
  EXPECT_EQ(run_redirected("--help", "", ">&-").status, 3);
}

// What is written to a closed stream is lost, and nothing else changes: it reaches no file that is
// opened in its place, and the exit status is the same.
TEST_F(DeclaredStreams, ClosedStreamsLoseWhatIsToldAlone) {
  for (const auto& [command, arguments] : lines_)
    for (const char* closed : {"<&-", "2>&-", "<&- 2>&-"}) {
      const Ran r = run_redirected(command, arguments, closed);
      EXPECT_EQ(r.status, 0) << command << " " << closed << "\n" << r.output;
      EXPECT_NE(r.output, "") << command << " " << closed;
    }
  EXPECT_EQ(json::parse(read(file("run.json")))["summary"]["passed"], 1);
  EXPECT_EQ(run("store " + file("runs.db")).status, 0);
  for (const char* failing : {"check --suite none", "store /no/such/store", "no-such-command"})
    for (const char* redirection : {"2>&-", "2>/dev/full", "<&- >&- 2>&-"})
      EXPECT_EQ(run_redirected(failing, "", redirection).status, 2) << failing << redirection;
}

// The dictionary of the fuzzers says what case lines say. Words that begin with @ list axes.
TEST(Notation, HasTheWordsOfTheDictionary) {
  const std::string notation = run("notation").output;
  std::istringstream lines(read(ASSAY_SOURCE_DIR "/fuzz/dictionaries/case.dict"));
  int asked = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('#') || line.starts_with("\"@")) continue;
    const std::regex word("[a-z][a-z0-9-]+");
    for (std::sregex_iterator at(line.begin(), line.end(), word), end; at != end; ++at, ++asked)
      EXPECT_THAT(notation, HasSubstr(at->str()));
  }
  EXPECT_GT(asked, 80);
}

}  // namespace
}  // namespace assay
