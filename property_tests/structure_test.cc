// What documents and build files say, held against what is there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;
// docs/checklist.md names tests as "Suite.Name"; each must be defined somewhere.
TEST(Structure, ChecklistNamesTestsThatExist) {
  std::string sources;
  for (const char* room : {"property_tests", "fuzz"})
    for (const auto& entry : fs::directory_iterator(fs::path(ASSAY_SOURCE_DIR) / room)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path());
      sources.append((std::istreambuf_iterator<char>(in)), {});
    }
  std::ifstream in(fs::path(ASSAY_SOURCE_DIR) / "docs" / "checklist.md");
  int named = 0;
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("| 0") && !line.starts_with("| X")) continue;
    std::string tests = line.substr(line.rfind('|', line.size() - 2) + 1);
    for (char& c : tests)
      if (c == ',' || c == '|') c = ' ';
    std::istringstream words(tests);
    for (std::string test; words >> test; ++named) {
      const auto dot = test.find('.');
      ASSERT_NE(dot, std::string::npos) << line;
      const std::string suite = test.substr(0, dot), name = test.substr(dot + 1);
      // Properties have a list of parameters after their name.
      const bool defined = sources.find("(" + suite + ", " + name + ")") != std::string::npos ||
                           sources.find("(" + suite + ", " + name + ", ") != std::string::npos || sources.find("NAME " + test + " ") != std::string::npos;
      EXPECT_TRUE(defined) << test << " is named in the checklist and defined nowhere";
    }
  }
  EXPECT_GT(named, 20);
}

TEST(Structure, NoFlagGivesUpIeeeArithmetic) {
  for (const auto& entry : fs::recursive_directory_iterator(ASSAY_SOURCE_DIR)) {
    if (entry.path().filename() != "CMakeLists.txt" || entry.path().string().find("/build") != std::string::npos) continue;
    std::ifstream in(entry.path());
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    for (const char* flag : {"fast-math", "Ofast", "funsafe"}) EXPECT_EQ(text.find(flag), std::string::npos) << entry.path();
  }
}

// The documents: what they tell the reader to type, and where they send him.

std::string text_of(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<fs::path> documents() {
  const fs::path root = ASSAY_SOURCE_DIR;
  std::vector<fs::path> found = {root / "README.md", root / "examples" / "kernel" / "README.md"};
  for (const auto& entry : fs::recursive_directory_iterator(root / "docs"))
    if (entry.path().extension() == ".md") found.push_back(entry.path());
  return found;
}

struct Markdown {
  std::vector<std::string> code;  // lines of blocks, and what stands between backquotes
  std::string prose;              // the rest
};

Markdown split(const std::string& text) {
  Markdown m;
  bool fenced = false;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("```")) {
      fenced = !fenced;
    } else if (fenced || line.starts_with("    ")) {
      m.code.push_back(line);
    } else {
      for (std::size_t at = 0, quote; at < line.size(); at = quote + 1) {
        quote = std::min(line.find('`', at), line.size());
        m.prose += line.substr(at, quote - at);
        const std::size_t end = line.find('`', quote + 1);
        if (end == std::string::npos) continue;
        m.code.push_back(line.substr(quote + 1, end - quote - 1));
        quote = end;
      }
      m.prose += '\n';
    }
  }
  return m;
}

using Options = std::set<std::string>;

// Command -> its options, as cli/main.cc declares them: on the command's own variable, or in an add_...() that it is given to.
std::map<std::string, Options> declared_options(const std::string& main) {
  static const std::regex declaration(
      R"re(auto (add_\w+) = \[|CLI::App\* (\w+) =\s*app\.add_subcommand\("([^"]+)"|(\w+)\s*->add_(?:option|flag)\("([^"]+)"|(add_\w+)\((\w+),)re");
  std::map<std::string, Options> of_variable, commands;
  std::map<std::string, std::string> name_of_variable;
  std::string function;  // the add_...() that is being defined, whose parameter is called `command`
  for (std::sregex_iterator i(main.begin(), main.end(), declaration), end; i != end; ++i) {
    const std::smatch& m = *i;
    if (m[1].matched) function = m[1];
    if (m[2].matched) name_of_variable[m[2]] = m[3];
    if (m[4].matched) {
      std::istringstream names(m[5]);
      for (std::string name; std::getline(names, name, ',');) of_variable[m[4] == "command" ? function : std::string(m[4])].insert(name);
    }
    if (m[6].matched) of_variable[m[7]].insert(of_variable[m[6]].begin(), of_variable[m[6]].end());
  }
  for (const auto& [variable, name] : name_of_variable) {
    commands[name] = of_variable[variable];
    commands[name].insert({"-h", "--help"});
  }
  return commands;
}

// Words of a shell's line, without quotes; commands of one line are apart by an empty word. A comment ends it.
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

// What a document tells to type that cli/main.cc does not know; `seen` counts the lines that were looked at.
std::vector<std::string> unknown_to_the_command(const std::string& text, const std::map<std::string, Options>& commands, int& seen) {
  std::vector<std::string> unknown;
  for (const std::string& line : split(text).code) {
    const std::vector<std::string> words = shell_words(line);
    for (std::size_t at = 0; at < words.size();) {
      std::size_t end = at;
      while (end < words.size() && !words[end].empty()) ++end;
      if (at < end && (words[at] == "$" || words[at].find('=') != std::string::npos)) {  // a prompt, a variable of the environment
        ++at;
        continue;
      }
      if (at + 1 < end && words[at] == "./dev" && words[at + 1] == "assay") ++at;
      if (at + 1 < end && words[at] == "assay" && words[at + 1] != "--help" && words[at + 1] != "--version") {
        ++seen;
        const auto command = commands.find(words[at + 1]);
        if (command == commands.end()) unknown.push_back("assay " + words[at + 1]);
        else
          for (std::size_t k = at + 2; k < end; ++k) {
            const std::string option = words[k].substr(0, words[k].find('='));
            const bool is_option = option.size() > 1 && option[0] == '-' && (option[1] == '-' || std::isalpha(static_cast<unsigned char>(option[1])));
            if (is_option && !command->second.contains(option)) unknown.push_back("assay " + words[at + 1] + ' ' + option);
          }
      }
      at = end + 1;
    }
  }
  return unknown;
}

TEST(Structure, DocumentedCommandsExist) {
  const std::map<std::string, Options> commands = declared_options(text_of(fs::path(ASSAY_SOURCE_DIR) / "cli" / "main.cc"));
  EXPECT_GE(commands.size(), 10u);
  for (const char* option : {"--case", "--kernel", "--guard-pages", "--jobs", "--html"}) EXPECT_TRUE(commands.at("check").contains(option)) << option;
  EXPECT_TRUE(commands.at("record").contains("-o") && commands.at("record").contains("--output"));
  int seen = 0;
  for (const fs::path& document : documents())
    for (const std::string& what : unknown_to_the_command(text_of(document), commands, seen)) ADD_FAILURE() << document << ": cli/main.cc declares no " << what;
  EXPECT_GT(seen, 100);
  // The examples of the help texts.
  const std::string help = text_of(fs::path(ASSAY_SOURCE_DIR) / "cli" / "main.cc");
  static const std::regex example(R"re("  ((?:\./dev )?assay [^"]*?)(?:\\n|"))re");
  int examples = 0;
  for (std::sregex_iterator i(help.begin(), help.end(), example), end; i != end; ++i)
    for (const std::string& what : unknown_to_the_command("    " + (*i)[1].str(), commands, examples)) ADD_FAILURE() << "a help text has " << what;
  EXPECT_GT(examples, 20);
  // What is made up is found: an option, one of another command, a command, in a block and between backquotes, behind && and behind ./dev.
  for (const char* made_up : {"    assay check --sweet smoke", "say `assay trace --suite smoke 'attention'`", "```\n$ ./dev assay prove --suite smoke\n```",
                              "    cmake -S . && assay verify x -q", "    X=1 assay store runs.db --dashbord=x"})
    EXPECT_EQ(unknown_to_the_command(made_up, commands, seen).size(), 1u) << made_up;
  for (const char* right :
       {"assay check --sweet", "    assay: no such --thing", "    assay check --case 'product --x' # --y", "    assay record -o x && cmake --build y"})
    EXPECT_TRUE(unknown_to_the_command(right, commands, seen).empty()) << right;
}

// Targets of links, and of pictures, that are files and are not there.
std::vector<std::string> dead_links(const std::string& text, const fs::path& folder, int& seen) {
  static const std::regex link(R"re(\]\(([^)\s]+)[^)]*\)|src="([^"]+)")re");
  const std::string prose = split(text).prose;
  std::vector<std::string> dead;
  for (std::sregex_iterator i(prose.begin(), prose.end(), link), end; i != end; ++i) {
    std::string target = (*i)[1].matched ? (*i)[1] : (*i)[2];
    target = target.substr(0, target.find('#'));
    if (target.empty() || target.find("://") != std::string::npos) continue;
    ++seen;
    if (!fs::exists(folder / target)) dead.push_back(target);
  }
  return dead;
}

TEST(Structure, LinksInDocumentsLead) {
  int seen = 0;
  for (const fs::path& document : documents())
    for (const std::string& target : dead_links(text_of(document), document.parent_path(), seen))
      ADD_FAILURE() << document << " links to " << target << ", which is not there";
  EXPECT_GT(seen, 50);
  EXPECT_EQ(dead_links("[one](docs/verdict.md), [no](docs/no.md#at), ![pic](docs/none.png), <img src=\"none.png\">", ASSAY_SOURCE_DIR, seen),
            (std::vector<std::string>{"docs/no.md", "docs/none.png", "none.png"}));
  EXPECT_TRUE(dead_links("`[a](b)` [x](https://x.org/y) [here](#there)\n\n    [b](c)", ASSAY_SOURCE_DIR, seen).empty());
}

}  // namespace
