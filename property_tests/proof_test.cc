// Checks that each mark in the code belongs to a section of the documents that derive bounds, and
// the reverse.
#include <gtest/gtest.h>

#include <algorithm>
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

const std::vector<std::string> documents = {"bounds.md", "bounds_backward.md", "bounds_product.md"};

struct Section {
  int number = 0;
  bool has_code = true;         // no line of it begins with "No code: "
  std::set<std::string> parts;  // headings in bold at the beginning of a paragraph
};

// A section begins with a line "## 2. Title", and a part of it with "**Sink.** One more key ...".
std::vector<Section> sections_in(std::istream& document) {
  static const std::regex heading(R"(## ([0-9]+)\. .*)"), part(R"(\*\*([^*]+)\.\*\* .*)");
  std::vector<Section> sections;
  std::smatch found;
  for (std::string line; std::getline(document, line);) {
    if (std::regex_match(line, found, heading)) {
      sections.emplace_back();
      sections.back().number = std::stoi(found[1]);
    } else if (!sections.empty() && std::regex_match(line, found, part)) {
      sections.back().parts.insert(found[1]);
    } else if (!sections.empty() && line.starts_with("No code: ")) {
      sections.back().has_code = false;
    }
  }
  return sections;
}

struct Mark {
  std::string file, document;
  int section = 0;
  std::string part;  // empty: the mark names the section itself
};

// Marks are comments "// bounds.md, 2: H_j" or "// bounds.md, 2, Sink: H of the sink".
std::vector<Mark> marks_in(const std::string& file, std::istream& source) {
  static const std::regex form(R"( *// (bounds\w*\.md), ([0-9]+)(, ([^:]+))?: .*)");
  static const std::regex begin(R"( *// bounds\w*\.md,.*)");
  std::vector<Mark> marks;
  std::smatch m;
  for (std::string line; std::getline(source, line);) {
    if (std::regex_match(line, m, form)) marks.push_back({file, m[1], std::stoi(m[2]), m[4]});
    else if (std::regex_match(line, begin)) ADD_FAILURE() << file << ": no mark: " << line;
  }
  return marks;
}

// The errors in the sections of one document and in all marks, one sentence each.
std::vector<std::string> faults(const std::string& document, const std::vector<Section>& sections,
                                const std::vector<Mark>& marks) {
  std::vector<std::string> wrong;
  auto place = [&](int section, const std::string& part) {
    const std::string number = document + ", " + std::to_string(section);
    return part.empty() ? number : number + ", " + part;
  };
  std::map<int, const Section*> by_number;
  for (std::size_t k = 0; k < sections.size(); ++k) {
    if (sections[k].number != static_cast<int>(k) + 1)
      wrong.push_back(place(sections[k].number, "") + " is not the next number");
    by_number[sections[k].number] = &sections[k];
  }
  std::set<int> marked;
  std::set<std::pair<int, std::string>> marked_parts;
  for (const Mark& m : marks) {
    if (m.document != document) continue;
    const auto section = by_number.find(m.section);
    const bool exists =
        section != by_number.end() && (m.part.empty() || section->second->parts.contains(m.part));
    if (!exists)
      wrong.push_back(m.file + " marks " + place(m.section, m.part) + ", which does not exist");
    marked.insert(m.section);
    marked_parts.insert({m.section, m.part});
  }
  for (const Section& s : sections) {
    if (s.has_code != marked.contains(s.number))
      wrong.push_back(place(s.number, "") + (s.has_code ? " has no mark" : " has a mark"));
    for (const std::string& part : s.parts)
      if (s.has_code && !marked_parts.contains({s.number, part}))
        wrong.push_back(place(s.number, part) + " has no mark");
  }
  return wrong;
}

std::vector<Section> sections_of(const std::string& document) {
  std::ifstream in(fs::path(ASSAY_SOURCE_DIR) / "docs" / document);
  return sections_in(in);
}
std::vector<Mark> marks_of_oracle() {
  std::vector<Mark> marks;
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(ASSAY_SOURCE_DIR) / "oracle")) {
    const std::string extension = entry.path().extension();
    if (extension != ".h" && extension != ".cc") continue;
    // The header that explains the form of a mark shows marks, but has none.
    if (entry.path().filename() == "safety_factors.h") continue;
    std::ifstream in(entry.path());
    const std::vector<Mark> more = marks_in(entry.path().filename(), in);
    marks.insert(marks.end(), more.begin(), more.end());
  }
  return marks;
}

// The functions of a source file that compute with roundings, and so derive a part of a bound, but
// are in no section: the first line of each. A function, or a class with its functions, ends with a
// brace at the beginning of a line.
std::vector<std::string> unmarked_derivations(std::istream& source) {
  static const std::regex mark(R"( *// bounds\w*\.md, .*)");
  static const std::regex derives(R"(.*\b(gamma_factor|expm1_above)\(.*)");
  std::vector<std::string> unmarked;
  std::string first;
  bool marked = false, derived = false;
  for (std::string line; std::getline(source, line);) {
    if (first.empty() && !line.starts_with("//")) first = line;
    marked = marked || std::regex_match(line, mark);
    derived = derived || std::regex_match(line, derives);
    if (!line.starts_with("}")) continue;
    if (derived && !marked) unmarked.push_back(first);
    first.clear();
    marked = derived = false;
  }
  return unmarked;
}

TEST(Proof, EveryFunctionThatDerivesABoundHasAMark) {
  for (const auto& entry : fs::directory_iterator(fs::path(ASSAY_SOURCE_DIR) / "oracle")) {
    // contract.cc has gamma itself.
    if (entry.path().extension() != ".cc" || entry.path().filename() == "contract.cc") continue;
    std::ifstream in(entry.path());
    for (const std::string& function : unmarked_derivations(in))
      ADD_FAILURE() << entry.path().filename() << ": no mark: " << function;
  }
}

TEST(Proof, SeesAFunctionWithoutAMark) {
  std::istringstream source(
      "// bounds.md, 1: E\ndouble f() {\n  return gamma_factor(2, u);\n}\n\n"
      "// E once more\ndouble g() {\n  return gamma_factor(2, u);\n}\n\ndouble h() {\n}\n");
  EXPECT_EQ(unmarked_derivations(source), std::vector<std::string>{"double g() {"});
}

TEST(Proof, EveryMarkHasASectionAndEverySectionAMark) {
  const std::vector<Mark> marks = marks_of_oracle();
  EXPECT_GT(marks.size(), 50u);
  for (const std::string& document : documents) {
    const std::vector<Section> sections = sections_of(document);
    EXPECT_GE(sections.size(), 7u) << document;
    for (const std::string& wrong : faults(document, sections, marks)) ADD_FAILURE() << wrong;
  }
  for (const Mark& m : marks)
    EXPECT_TRUE(std::find(documents.begin(), documents.end(), m.document) != documents.end())
        << m.file << " marks a section of " << m.document;
}

// Tests the test itself on documents and marks that are made up.
std::vector<std::string> faults_of(const std::string& document, const std::string& source) {
  std::istringstream text(document), code(source);
  return faults("bounds.md", sections_in(text), marks_in("made_up.cc", code));
}
using Faults = std::vector<std::string>;

const char* const made_up =
    "# Title\n## 1. Scores\nText.\n\n**Biases.** More.\n## 2. Tried\nNo code: tests.\n";

TEST(Proof, AcceptsMarksForAllThatIsDerived) {
  EXPECT_EQ(faults_of(made_up, "// bounds.md, 1: E\n  // bounds.md, 1, Biases: E\n"), Faults{});
}

TEST(Proof, SeesAMarkToASectionThatDoesNotExist) {
  EXPECT_EQ(
      faults_of(made_up, "// bounds.md, 1: E\n// bounds.md, 1, Biases: E\n// bounds.md, 9: F\n"),
      Faults{"made_up.cc marks bounds.md, 9, which does not exist"});
  EXPECT_EQ(faults_of(made_up,
                      "// bounds.md, 1: E\n// bounds.md, 1, Biases: E\n// bounds.md, 1, Sink: F\n"),
            Faults{"made_up.cc marks bounds.md, 1, Sink, which does not exist"});
}

TEST(Proof, SeesASectionOrAPartWithoutAMark) {
  EXPECT_EQ(faults_of(made_up, ""),
            (Faults{"bounds.md, 1 has no mark", "bounds.md, 1, Biases has no mark"}));
  EXPECT_EQ(faults_of(made_up, "// bounds.md, 1: E\n"), Faults{"bounds.md, 1, Biases has no mark"});
}

TEST(Proof, SeesAMarkToASectionThatHasNoCodeAndAMissingNumber) {
  EXPECT_EQ(
      faults_of(made_up, "// bounds.md, 1: E\n// bounds.md, 1, Biases: E\n// bounds.md, 2: F\n"),
      Faults{"bounds.md, 2 has a mark"});
  EXPECT_EQ(faults_of("## 1. A\n## 3. B\n", "// bounds.md, 1: E\n// bounds.md, 3: F\n"),
            Faults{"bounds.md, 3 is not the next number"});
}

}  // namespace
