// The kernels that documents show, and those of examples/kernel: each is compiled and judged, right
// and with a mistake. And the table of small kernels in docs/kernels.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "property_tests/documents.h"
#include "property_tests/run_command.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

const fs::path root = ASSAY_SOURCE_DIR;
#define HEADER " -I" ASSAY_SOURCE_DIR "/include/assay"

// The code blocks of a page that are fenced and have this language.
std::vector<std::string> blocks(const fs::path& page, const std::string& language) {
  std::vector<std::string> found;
  std::istringstream lines(text_of(page));
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line == "```" + language && !inside) {
      inside = true;
      found.emplace_back();
    } else if (line == "```") {
      inside = false;
    } else if (inside) {
      found.back() += line + "\n";
    }
  }
  return found;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << "'" << from << "' is not in\n" << text;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

bool has_command(const std::string& name) { return run_line("command -v " + name).status == 0; }

class Examples : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-examples-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Compiles a text by "cc ... -o" and what follows. Returns the library.
  std::string compiled(const std::string& text, const std::string& file, const std::string& command,
                       const std::string& behind = "") {
    const fs::path source = folder_ / file, library = folder_ / "libmine.so";
    std::ofstream(source) << text;
    const Ran r = run_line(command + " -o " + library.string() + " " + source.string() + behind);
    EXPECT_EQ(r.status, 0) << r.output;
    return library;
  }
  static Ran check(const std::string& library, const std::string& rest) {
    return run_line(std::string(ASSAY_COMMAND) + " check --no-shrink --timeout 600 --kernel " +
                    library + " " + rest);
  }
  // A part of a suite passes, and all of it is judged.
  static void passes(const std::string& library, const std::string& cases) {
    const Ran r = check(library, cases);
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_THAT(r.output, ContainsRegex("[1-9][0-9]* cases: [1-9][0-9]* passed, 0 failed"));
    EXPECT_THAT(r.output, Not(HasSubstr("unsupported")));
  }
  static void fails(const std::string& library, const std::string& cases) {
    const Ran r = check(library, cases + " --stop-at-first-failure");
    EXPECT_EQ(r.status, 1) << r.output;
  }

  // A kernel that a page shows, what compiles it, and a mistake.
  struct Shown {
    std::string language, file, command, behind, right, wrong;
  };
  static std::string text_of_shown(const std::string& language) {
    const auto found = blocks(root / "docs" / "from_my_kernel.md", language);
    EXPECT_EQ(found.size(), 1u) << language;
    return found.empty() ? std::string() : found[0];
  }
  void judge(const Shown& shown) {
    constexpr const char* plain = "--suite plain --shard 0/60";
    const std::string text = text_of_shown(shown.language),
                      mistaken = replaced(text, shown.right, shown.wrong);
    passes(compiled(text, shown.file, shown.command, shown.behind), plain);
    fails(compiled(mistaken, shown.file, shown.command, shown.behind), plain);
  }

  fs::path folder_;
};

TEST_F(Examples, TheKernelInCIsJudged) {
  judge({"c", "mine.c", ASSAY_CC HEADER " -std=c99 -pedantic -Wall -Werror -O2 -fPIC -shared",
         " -lm", "w[j] *= scale;", ""});
}

TEST_F(Examples, TheKernelInCxxIsJudged) {
  judge({"cpp", "mine.cc", ASSAY_CXX HEADER " -std=c++17 -Wall -Werror -O2 -fPIC -shared", "",
         "dot * p.scale", "dot"});
}

TEST_F(Examples, TheKernelInRustIsJudged) {
  if (!has_command("rustc")) GTEST_SKIP() << "there is no rustc";
  judge({"rust", "mine.rs", "rustc --edition 2021 -O --crate-type cdylib", "",
         "sum::<f32>() * scale", "sum::<f32>()"});
}

// nvcc may be there without a device that runs what it compiles.
TEST_F(Examples, TheKernelInCudaIsJudged) {
  const std::string nvcc = has_command("nvcc") ? "nvcc" : "/usr/local/cuda/bin/nvcc";
  if (!has_command(nvcc)) GTEST_SKIP() << "there is no nvcc";
  const std::string command =
      nvcc + HEADER " -allow-unsupported-compiler -O2 -shared -Xcompiler -fPIC";
  if (run_line("nvidia-smi -L").status == 0)
    return judge({"cuda", "mine.cu", command, "", "s *= scale;", ""});
  compiled(text_of_shown("cuda"), "mine.cu", command);
  if (!HasFailure()) GTEST_SKIP() << "nvcc compiles it, and there is no GPU that would run it";
}

// `assay new-kernel` writes these files, and its test builds them with their own CMake file.
TEST_F(Examples, EachOfExamplesKernelIsJudged) {
  struct Example {
    const char *file, *suite, *right, *wrong;
  };
  const std::string cc =
      ASSAY_CC HEADER " -std=c99 -pedantic -Wall -Werror -O2 -ffp-contract=off -fPIC -shared";
  for (const Example& e : {
           Example{"my_kernel.c", "plain", "* p->scale", ""},
           Example{"gradients.c", "backward", " - delta)", " + delta)"},
           Example{"paged.c", "caches", "j % pages->page_size)", "0)"},
           Example{"paged.c", "caches", "if (at < 0) continue;", "if (at <= 0) continue;"},
           Example{"product.c", "products", "(m->k + 31) / 32) + k / 32]", "(m->k + 31) / 32)]"},
       }) {
    SCOPED_TRACE(e.file);
    const std::string text = text_of(root / "examples" / "kernel" / e.file);
    const std::string cases = std::string("--suite ") + e.suite + " --shard 0/60";
    passes(compiled(text, e.file, cc, " -lm"), cases);
    fails(compiled(replaced(text, e.right, e.wrong), e.file, cc, " -lm"), cases);
  }
}

// A page shows parts of the examples as they are.
TEST_F(Examples, WhatTheReferenceShowsStandsInTheFiles) {
  std::string all;
  for (const auto& entry : fs::directory_iterator(root / "examples" / "kernel"))
    if (entry.path().extension() == ".c") all += text_of(entry.path());
  const auto shown = blocks(root / "docs" / "kernels.md", "c");
  EXPECT_GE(shown.size(), 4u);
  for (const std::string& part : shown)
    EXPECT_THAT(all, HasSubstr(part)) << "no file of examples/kernel has this";
}

// The line of a page that begins so; empty if there is none.
std::string line_of(const std::string& page, const std::string& begin) {
  const std::size_t at = page.find("\n" + begin);
  return at == std::string::npos ? std::string()
                                 : page.substr(at + 1, page.find('\n', at + 1) - at - 1);
}

// The table is what `./dev partial` prints: a row for each kind, and each of its faults was found.
// A dash stands for faults that nobody has tried since the kind was last changed.
TEST_F(Examples, TheTableOfSmallKernelsIsWhole) {
  const std::string page = text_of(root / "docs" / "kernels.md");
  int kinds = 0, faults = 0, tried = 0;
  for (const std::string file : {"partial_kernels", "partial_writers", "partial_caches"}) {
    const fs::path program = folder_ / file;
    const Ran made =
        run_line(ASSAY_CC " -std=gnu11 -DLIST -I" ASSAY_SOURCE_DIR "/include -o " +
                 program.string() + " " ASSAY_SOURCE_DIR "/property_tests/" + file + ".c -lm");
    ASSERT_EQ(made.status, 0) << made.output;
    std::istringstream lines(run_line(program.string()).output);
    for (std::string line; std::getline(lines, line); ++kinds) {
      std::istringstream words(line);
      std::string kind, suite, after;
      words >> kind >> suite;
      int of_kind = 0;
      for (std::string fault; words >> fault; ++of_kind)
        after += (of_kind > 0 ? ", " : "") + fault + " [1-9][0-9]*";
      const std::string number = std::to_string(of_kind), row = line_of(page, "| " + kind + " |");
      EXPECT_THAT(row, testing::MatchesRegex("\\| " + kind + " \\| " + suite +
                                             " \\| [0-9]+ of [0-9]+ \\| [1-9][0-9]* \\| (" +
                                             number + " of " + number + " \\| " + after + "|- of " +
                                             number + " \\| -) \\|"));
      faults += of_kind;
      tried += row.ends_with("| - |") ? 0 : of_kind;
    }
  }
  EXPECT_GT(kinds, 60);
  EXPECT_GT(tried, 0);
  EXPECT_THAT(line_of(page, "hold "),
              HasSubstr("hold " + std::to_string(kinds) + " such kernels and " +
                        std::to_string(faults) + " faults"));
}

}  // namespace
}  // namespace assay
