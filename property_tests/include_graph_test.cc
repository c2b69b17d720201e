// The walls of the house: the files that each room may include, read from the include lines of all
// sources.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// "problem/tensor.h" is one file, "kernels/*" means the files that lie directly in a folder, and
// "kernels/" means everything below it. Headers of libraries have the same forms.
using Pattern = std::string_view;

bool matches(std::string_view path, Pattern pattern) {
  if (pattern.ends_with('/')) return path.starts_with(pattern);
  if (!pattern.ends_with('*')) return path == pattern;
  pattern.remove_suffix(1);
  return path.starts_with(pattern) && path.find('/', pattern.size()) == path.npos;
}

bool matches_any(std::string_view path, const std::vector<Pattern>& patterns) {
  return std::ranges::any_of(patterns, [&](Pattern p) { return matches(path, p); });
}

// A room, or a room within it. A file belongs to the innermost room that holds it.
struct Room {
  std::string_view path;  // ends in a slash
  std::vector<Pattern> project;
  std::vector<Pattern> libraries;
};

// Of problem/, kernels see the types and views that describe what is asked, and the loop over
// threads.
#define WHAT_KERNELS_SEE                                                            \
  "problem/attention.h", "problem/dtype.h", "problem/index.h", "problem/low_bit.h", \
      "problem/parallel.h", "problem/tensor.h"
#define BELOW_HARNESS "oracle/", "kernels/", "problem/"
#define BELOW_TESTS "harness/", "oracle/", "kernels/", "problem/"

const std::vector<Room> rooms = {
    {"include/", {"kernel.h"}, {}},
    {"examples/", {"assay/", "kernel.h"}, {}},
    {"problem/", {"problem/"}, {"fmt/", "Random123/", "oneapi/tbb/"}},
    {"oracle/",
     {"oracle/", "problem/"},
     {"fmt/", "Random123/", "Eigen/", "arb.h", "arb_mat.h", "flint/"}},

    {"kernels/", {"kernels/*", WHAT_KERNELS_SEE}, {"fmt/"}},
    {"kernels/simd/",
     {"kernels/*", "kernels/simd/", WHAT_KERNELS_SEE},
     {"fmt/", "hwy/", "immintrin.h"}},
    {"kernels/attention/",
     {"kernels/*", "kernels/attention/", "kernels/simd/", WHAT_KERNELS_SEE},
     {"fmt/", "hwy/"}},
    {"kernels/product/",
     {"kernels/*", "kernels/product/", "kernels/simd/", WHAT_KERNELS_SEE},
     {"fmt/", "hwy/"}},
    {"kernels/cache/",
     {"kernels/*", "kernels/cache/", "kernels/attention/", "kernels/simd/", WHAT_KERNELS_SEE},
     {"fmt/", "hwy/"}},
    {"kernels/dispatch/",
     {"kernels/*", "kernels/dispatch/", "kernels/attention/", "kernels/simd/", WHAT_KERNELS_SEE},
     {"fmt/"}},
    {"kernels/device/",
     {"kernels/*", "kernels/device/", "kernels/dispatch/backend.h", "kernels/attention/",
      "kernels/product/", "kernels/simd/", WHAT_KERNELS_SEE},
     {"fmt/", "CL/"}},
    {"kernels/c_interface/", {"kernels/", "assay/", WHAT_KERNELS_SEE}, {"fmt/"}},

    {"harness/", {"harness/*", "problem/"}, {"fmt/"}},
    {"harness/results/", {"harness/*", "harness/results/", BELOW_HARNESS}, {"fmt/", "nlohmann/"}},
    {"harness/cases/", {"harness/*", "harness/cases/", "kernels/", "problem/"}, {"fmt/"}},
    {"harness/candidates/",
     {"harness/*", "harness/candidates/", "harness/faults/", "harness/judging/", "harness/results/",
      "assay/kernel.h", BELOW_HARNESS},
     {"fmt/"}},
    // Planted faults compile a kernel once more for every target. They need this one header of
    // Highway for that.
    {"harness/faults/",
     {"harness/*", "harness/candidates/", "harness/faults/", "harness/judging/", "harness/results/",
      BELOW_HARNESS},
     {"fmt/", "hwy/foreach_target.h"}},
    {"harness/judging/",
     {"harness/*", "harness/candidates/", "harness/faults/", "harness/judging/", "harness/results/",
      BELOW_HARNESS},
     {"fmt/"}},
    {"harness/records/", {"harness/", BELOW_HARNESS}, {"fmt/", "nlohmann/"}},
    {"harness/identify/", {"harness/", BELOW_HARNESS}, {"fmt/"}},

    // The judge behind a C interface.
    {"judge/", {"judge/", "assay/judge.h", "harness/", BELOW_HARNESS}, {"fmt/", "nlohmann/"}},

    {"testing/",
     {"testing/", "assay/", BELOW_TESTS},
     {"fmt/", "Random123/", "gtest/", "gmock/", "rapidcheck.h"}},
    {"property_tests/",
     {"property_tests/", "testing/", "bench/", "cli/", "reports/", "assay/", BELOW_TESTS},
     {"fmt/", "gtest/", "gmock/", "rapidcheck/", "nlohmann/", "sqlite3.h", "zlib.h", "sanitizer/",
      "hwy/foreach_target.h"}},
    // The test of the long jobs of the fuzzers lies beside them.
    {"fuzz/",
     {"fuzz/", "testing/", "reports/", "assay/", BELOW_TESTS},
     {"fmt/", "gtest/", "gmock/", "nlohmann/"}},
    {"bench/",
     {"bench/", "testing/", "assay/", BELOW_TESTS},
     {"fmt/", "nlohmann/", "benchmark/", "Eigen/", "oneapi/dnnl/", "cblas.h", "ggml.h",
      "ggml-cpu.h", "ggml-backend.h", "ATen/"}},
    {"reports/",
     {"reports/", "harness/results/", "harness/text.h", "problem/"},
     {"fmt/", "sqlite3.h", "zlib.h"}},
    {"cli/", {"cli/", "fuzz/jobs.h", "reports/", BELOW_TESTS}, {"fmt/", "nlohmann/", "CLI/"}},
};
#undef WHAT_KERNELS_SEE
#undef BELOW_HARNESS
#undef BELOW_TESTS

// The headers of C, of POSIX and of the compiler. The headers of the C++ library, which have no
// dot, are not in the list. Every room may include all of these.
const std::vector<Pattern> of_the_system = {
    "dirent.h", "dlfcn.h",  "errno.h",    "fcntl.h",  "float.h", "immintrin.h",
    "linux/",   "locale.h", "malloc.h",   "math.h",   "poll.h",  "sched.h",
    "signal.h", "spawn.h",  "stddef.h",   "stdint.h", "stdio.h", "stdlib.h",
    "string.h", "sys/",     "ucontext.h", "unistd.h"};

struct Source {
  std::string path, text;
};

const Room* room_of(std::string_view path) {
  const Room* innermost = nullptr;
  for (const Room& room : rooms)
    if (path.starts_with(room.path) && (!innermost || room.path.size() > innermost->path.size()))
      innermost = &room;
  return innermost;
}

// The files that the lines of a source include. An include line whose target is a macro gives an
// empty string. Highway includes the file that HWY_TARGET_INCLUDE names.
std::vector<std::string> includes_of(const std::string& text) {
  static const std::regex line_of_include(R"re(^\s*#\s*(?:include|include_next|import)\b(.*)$)re");
  static const std::regex line_of_target(R"re(^\s*#\s*define\s+HWY_TARGET_INCLUDE\b(.*)$)re");
  static const std::regex name(R"re(^\s*(?:<([^>]+)>|"([^"]+)"))re");
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find('#') == line.npos) continue;
    std::smatch whole, part;
    if (!std::regex_match(line, whole, line_of_include) &&
        !std::regex_match(line, whole, line_of_target))
      continue;
    const std::string rest = whole[1];
    found.push_back(!std::regex_search(rest, part, name) ? ""
                    : part[1].matched                    ? part[1].str()
                                                         : part[2].str());
  }
  return found;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Returns "kernels/device/" for a header whose first line begins with "// Inside kernels/device/:",
// otherwise an empty text.
std::string kept_inside(const Source& header) {
  static const std::regex mark(R"re(^(?://|/\*) Inside ([a-z_/]+/):.*)re");
  std::smatch m;
  const std::string line = first_line(header.text);
  return std::regex_match(line, m, mark) ? m[1].str() : "";
}

// Why a source of that room may not include this file; empty if it may.
std::string objection(const Source& source, const Room& room, const std::string& included,
                      const std::vector<Source>& kept) {
  if (included.empty()) return "includes what a macro names, which nobody can read here";
  if (included.find("./") != std::string::npos)
    return "includes " + included + ", which is not written from the root";
  if (source.path.starts_with("oracle/") && included.starts_with("kernels/"))
    return "includes " + included + ": the oracle knows no kernel";
  if (source.path.starts_with("kernels/") && included.starts_with("oracle/"))
    return "includes " + included + ": a kernel knows no oracle";
  for (const Source& header : kept)
    if (header.path == included && !source.path.starts_with(kept_inside(header)))
      return "includes " + included + ", which is kept inside " + kept_inside(header);
  const bool of_the_standard = included.find_first_of("./") == std::string::npos;
  if (of_the_standard || matches_any(included, of_the_system) ||
      matches_any(included, room.libraries))
    return "";
  if (matches_any(included, room.project)) return "";
  return "includes " + included + ", which " + std::string(room.path) + " may not";
}

// Everything in these sources that breaks the rules, one sentence for each breach.
std::vector<std::string> breaches(const std::vector<Source>& sources) {
  std::vector<std::string> found;
  std::vector<Source> kept;
  for (const Source& s : sources) {
    const std::string inside = kept_inside(s);
    if (inside.empty()) continue;
    kept.push_back(s);
    if (!s.path.starts_with(inside))
      found.push_back(s.path + " says that it is inside " + inside + ", where it is not");
  }
  for (const Source& s : sources) {
    const Room* room = room_of(s.path);
    if (!room) {
      found.push_back(s.path + " lies in no room");
      continue;
    }
    for (const std::string& included : includes_of(s.text))
      if (const std::string why = objection(s, *room, included, kept); !why.empty())
        found.push_back(s.path + " " + why);
  }
  return found;
}

bool is_header(const fs::path& path) {
  return path.extension() == ".h" || path.extension() == ".hpp" || path.extension() == ".inl" ||
         path.extension() == ".inc";
}

std::vector<Source> project_sources() {
  std::vector<Source> found;
  for (fs::recursive_directory_iterator at(ASSAY_SOURCE_DIR), end; at != end; ++at) {
    const std::string name = at->path().filename();
    if (at->is_directory() && (name.starts_with('.') || name == "build" || name == "node_modules"))
      at.disable_recursion_pending();
    const std::string extension = at->path().extension();
    const bool is_source = is_header(at->path()) || extension == ".cc" || extension == ".cpp" ||
                           extension == ".c" || extension == ".cl";
    if (!at->is_regular_file() || !is_source) continue;
    std::ifstream in(at->path());
    found.push_back({fs::relative(at->path(), ASSAY_SOURCE_DIR).string(),
                     {std::istreambuf_iterator<char>(in), {}}});
  }
  return found;
}

// Headers that no file outside of their folder reads, directly or through another header, and whose
// first line does not say that they are kept inside. Tests, fuzzers and benchmarks serve no other
// room, so theirs are not asked.
std::vector<std::string> headers_to_keep_inside(const std::vector<Source>& sources) {
  const std::vector<Pattern> asked = {"problem/", "oracle/",  "kernels/", "harness/",
                                      "judge/",   "reports/", "cli/"};
  const auto folder = [](const std::string& path) { return path.substr(0, path.rfind('/') + 1); };
  std::set<std::string> read;  // from outside
  for (bool found = true; found;) {
    found = false;
    for (const Source& s : sources) {
      const bool passes_on = is_header(s.path) && read.contains(s.path);
      for (const std::string& included : includes_of(s.text))
        if (folder(included) != folder(s.path) || passes_on) found |= read.insert(included).second;
    }
  }
  std::vector<std::string> unmarked;
  for (const Source& s : sources)
    if (is_header(s.path) && matches_any(s.path, asked) && !read.contains(s.path) &&
        kept_inside(s).empty())
      unmarked.push_back(s.path);
  return unmarked;
}

TEST(Structure, WhatNobodyOutsideReadsIsMarked) {
  EXPECT_THAT(headers_to_keep_inside(project_sources()), IsEmpty());
  const Source inner{"oracle/inner.h", "// Sums of rows.\n"},
      door{"oracle/door.h", "// The door.\n#include \"oracle/through.h\"\n"},
      through{"oracle/through.h", "// Types of the door.\n"},
      marked{"oracle/marked.h", "// Inside oracle/: sums.\n"},
      room{"oracle/room.cc", "#include \"oracle/inner.h\"\n#include \"oracle/marked.h\"\n"},
      outside{"harness/judging/outside.cc", "#include \"oracle/door.h\"\n"};
  EXPECT_THAT(headers_to_keep_inside({inner, door, through, marked, room, outside}),
              ElementsAre("oracle/inner.h"));
}

TEST(Structure, RoomsIncludeOnlyWhatTheyMay) {
  const std::vector<Source> sources = project_sources();
  EXPECT_GT(sources.size(), 200u);
  for (const std::string& breach : breaches(sources)) ADD_FAILURE() << breach;
  for (const char* outer : {"problem/", "oracle/", "kernels/", "harness/", "testing/",
                            "property_tests/", "fuzz/", "bench/", "reports/", "cli/"})
    EXPECT_TRUE(std::ranges::any_of(sources, [&](const Source& s) {
      return s.path.starts_with(outer) && !includes_of(s.text).empty();
    })) << outer;
}

// Checks the most important wall without the table.
TEST(Structure, OracleAndKernelsNeverMeet) {
  int oracle = 0, kernels = 0;
  for (const Source& s : project_sources()) {
    for (const std::string& included : includes_of(s.text)) {
      oracle += s.path.starts_with("oracle/");
      kernels += s.path.starts_with("kernels/");
      EXPECT_FALSE(s.path.starts_with("oracle/") && included.starts_with("kernels/")) << s.path;
      EXPECT_FALSE(s.path.starts_with("kernels/") && included.starts_with("oracle/")) << s.path;
    }
  }
  EXPECT_GT(oracle, 50);
  EXPECT_GT(kernels, 100);
}

// A source that breaks a rule, and the words of the report.
struct MadeUp {
  Source source;
  std::string report;
};

TEST(Structure, MadeUpBreachesAreReported) {
  const std::vector<MadeUp> wrong = {
      // The two walls, in every form that an include line can have.
      {{"oracle/verdict.cc", "#include \"kernels/attention/attention.h\"\n"},
       "the oracle knows no kernel"},
      {{"oracle/verdict.cc", "#include <kernels/attention/attention.h>\n"},
       "the oracle knows no kernel"},
      {{"oracle/verdict.cc", "  #  include   \"kernels/status.h\"  // only the status\n"},
       "the oracle knows no kernel"},
      {{"oracle/verdict.cc", "#define HWY_TARGET_INCLUDE \"kernels/attention/attention.cc\"\n"},
       "the oracle knows no kernel"},
      {{"kernels/attention/attention.cc", "#include \"oracle/visibility.h\"\n"},
       "a kernel knows no oracle"},
      {{"kernels/device/attention.cl", "#include \"oracle/visibility.h\"\n"},
       "a kernel knows no oracle"},
      {{"kernels/tables.inc", "#include \"oracle/bound.h\"\n"}, "a kernel knows no oracle"},
      {{"kernels/attention/attention.cc", "#include_next \"oracle/bound.h\"\n"},
       "a kernel knows no oracle"},
      {{"kernels/attention/attention.cc", "#include \"kernels/../oracle/bound.h\"\n"},
       "not written from the root"},
      {{"kernels/attention/attention.cc", "#include \"./attention.h\"\n"},
       "not written from the root"},
      {{"kernels/attention/attention.cc", "#include \"attention.h\"\n"},
       "which kernels/attention/ may not"},
      {{"kernels/attention/attention.cc", "#define X \"oracle/bound.h\"\n#include X\n"},
       "what a macro names"},
      // Kernels see only named headers of problem/.
      {{"kernels/attention/attention.cc", "#include \"problem/case.h\"\n"},
       "which kernels/attention/ may not"},
      {{"kernels/simd/codec.h", "#include \"problem/generate.h\"\n"},
       "which kernels/simd/ may not"},
      {{"kernels/c_interface/product.cc", "#include \"problem/case.h\"\n"},
       "which kernels/c_interface/ may not"},
      // No room knows the rooms above it.
      {{"problem/case.cc", "#include \"oracle/contract.h\"\n"}, "which problem/ may not"},
      {{"oracle/verdict.cc", "#include \"harness/results/result.h\"\n"}, "which oracle/ may not"},
      {{"kernels/attention/attention.cc", "#include \"harness/cases/suites.h\"\n"},
       "which kernels/attention/ may not"},
      {{"harness/cases/suites.cc", "#include \"reports/store.h\"\n"},
       "which harness/cases/ may not"},
      {{"harness/cases/suites.cc", "#include \"testing/same_bits.h\"\n"},
       "which harness/cases/ may not"},
      {{"harness/cases/suites.cc", "#include \"judge/answers.h\"\n"},
       "which harness/cases/ may not"},
      {{"judge/verdicts.cc", "#include \"reports/store.h\"\n"}, "which judge/ may not"},
      {{"reports/store.cc", "#include \"harness/cases/suites.h\"\n"}, "which reports/ may not"},
      {{"reports/store.cc", "#include \"oracle/verdict.h\"\n"}, "which reports/ may not"},
      {{"bench/decode.cc", "#include \"reports/store.h\"\n"}, "which bench/ may not"},
      {{"bench/decode.cc", "#include \"property_tests/run_command.h\"\n"}, "which bench/ may not"},
      {{"cli/check.cc", "#include \"testing/matchers.h\"\n"}, "which cli/ may not"},
      {{"cli/check.cc", "#include \"fuzz/inputs.h\"\n"}, "which cli/ may not"},
      {{"include/assay/kernel.h", "#include <problem/tensor.h>\n"}, "which include/ may not"},
      {{"examples/kernel/my_kernel.c", "#include \"kernels/attention/attention.h\"\n"},
       "which examples/ may not"},
      // Tests, fuzzers, and the headers that they share.
      {{"fuzz/pages_fuzz.cc", "#include \"property_tests/run_command.h\"\n"},
       "which fuzz/ may not"},
      {{"property_tests/cache_test.cc", "#include \"fuzz/require.h\"\n"},
       "which property_tests/ may not"},
      {{"testing/matchers.h", "#include \"property_tests/run_command.h\"\n"},
       "which testing/ may not"},
      {{"testing/matchers.h", "#include \"fuzz/require.h\"\n"}, "which testing/ may not"},
      {{"testing/matchers.h", "#include \"bench/data.h\"\n"}, "which testing/ may not"},
      {{"testing/matchers.h", "#include \"reports/store.h\"\n"}, "which testing/ may not"},
      // Rooms inside rooms.
      {{"kernels/simd/codec.h", "#include \"kernels/attention/plan.h\"\n"},
       "which kernels/simd/ may not"},
      {{"kernels/attention/attention.cc", "#include \"kernels/product/product.h\"\n"},
       "which kernels/attention/ may not"},
      {{"kernels/product/product.cc", "#include \"kernels/cache/cache.h\"\n"},
       "which kernels/product/ may not"},
      {{"kernels/cache/cache.cc", "#include \"kernels/dispatch/dispatch.h\"\n"},
       "which kernels/cache/ may not"},
      {{"kernels/dispatch/dispatch.cc", "#include \"kernels/device/session.h\"\n"},
       "which kernels/dispatch/ may not"},
      {{"kernels/device/session.cc", "#include \"kernels/dispatch/dispatch.h\"\n"},
       "which kernels/device/ may not"},
      {{"kernels/attention/attention.cc", "#include \"kernels/c_interface/context.h\"\n"},
       "which kernels/attention/ may not"},
      {{"kernels/attention/attention.cc", "#include <assay/assay.h>\n"},
       "which kernels/attention/ may not"},
      {{"harness/cases/suites.cc", "#include \"harness/judging/outputs.h\"\n"},
       "which harness/cases/ may not"},
      {{"harness/cases/suites.cc", "#include \"oracle/verdict.h\"\n"},
       "which harness/cases/ may not"},
      {{"harness/judging/execute.cc", "#include \"harness/cases/suites.h\"\n"},
       "which harness/judging/ may not"},
      {{"harness/judging/execute.cc", "#include \"harness/records/record.h\"\n"},
       "which harness/judging/ may not"},
      {{"harness/faults/planted_faults.cc", "#include \"harness/cases/suites.h\"\n"},
       "which harness/faults/ may not"},
      {{"harness/candidates/candidate.cc", "#include \"harness/records/record.h\"\n"},
       "which harness/candidates/ may not"},
      {{"harness/results/result.cc", "#include \"harness/judging/outputs.h\"\n"},
       "which harness/results/ may not"},
      {{"reports/store.cc", "#include \"harness/judging/outputs.h\"\n"}, "which reports/ may not"},
      // Each library has the rooms that may use it.
      {{"oracle/sums.cc", "#include <hwy/highway.h>\n"}, "which oracle/ may not"},
      {{"harness/faults/faulty_stages.cc", "#include <hwy/highway.h>\n"},
       "which harness/faults/ may not"},
      {{"kernels/attention/attention.cc", "#include <Eigen/Core>\n"},
       "which kernels/attention/ may not"},
      {{"kernels/attention/attention.cc", "#include <arb.h>\n"},
       "which kernels/attention/ may not"},
      {{"kernels/attention/dropout.h", "#include <Random123/philox.h>\n"},
       "which kernels/attention/ may not"},
      {{"kernels/dispatch/dispatch.cc", "#include <nlohmann/json.hpp>\n"},
       "which kernels/dispatch/ may not"},
      {{"kernels/attention/attention.cc", "#include <CL/cl.h>\n"},
       "which kernels/attention/ may not"},
      {{"problem/case.cc", "#include <nlohmann/json.hpp>\n"}, "which problem/ may not"},
      {{"oracle/verdict.cc", "#include <nlohmann/json.hpp>\n"}, "which oracle/ may not"},
      {{"harness/judging/execute.cc", "#include <nlohmann/json.hpp>\n"},
       "which harness/judging/ may not"},
      {{"reports/html.cc", "#include <nlohmann/json.hpp>\n"}, "which reports/ may not"},
      {{"harness/judging/workers.cc", "#include <gtest/gtest.h>\n"},
       "which harness/judging/ may not"},
      {{"kernels/attention/attention.cc", "#include <boost/math/constants/constants.hpp>\n"},
       "which kernels/attention/ may not"},
      {{"kernels/attention/attention.cc", "#include <cblas.h>\n"},
       "which kernels/attention/ may not"},
      // A room that the table does not have.
      {{"helpers/odds.cc", "#include <vector>\n"}, "lies in no room"},
  };
  for (const MadeUp& m : wrong)
    EXPECT_THAT(breaches({m.source}), ElementsAre(HasSubstr(m.report)))
        << m.source.path << ": " << m.source.text;

  // If there are several breaches, each is reported.
  EXPECT_EQ(breaches({{"oracle/a.h", "#include <vector>\n#include \"kernels/a.h\"\n"},
                      {"problem/a.h", "#include \"cli/a.h\"\n#include <x.h>\n"}})
                .size(),
            3u);
}

TEST(Structure, MadeUpBreachesOfHeadersKeptInsideAreReported) {
  const Source sums{"oracle/sums.h", "// Inside oracle/: sums.\n#pragma once\n"};
  const Source parameters{"kernels/device/parameters.h",
                          "// Inside kernels/device/: parameters.\n"};
  const Source plan{"kernels/plan.h", "/* Inside kernels/: a plan. */\n"};
  const std::vector<MadeUp> wrong = {
      {{"property_tests/sums_test.cc", "#include \"oracle/sums.h\"\n"},
       "oracle/sums.h, which is kept inside oracle/"},
      {{"property_tests/sums_test.cc", "#include <oracle/sums.h>\n"},
       "oracle/sums.h, which is kept inside oracle/"},
      {{"harness/candidates/contracts.cc", "#include \"kernels/device/parameters.h\"\n"},
       "which is kept inside kernels/device/"},
      {{"kernels/dispatch/dispatch.cc", "#include \"kernels/device/parameters.h\"\n"},
       "which is kept inside kernels/device/"},
      {{"harness/faults/planted_faults.cc", "#include \"kernels/plan.h\"\n"},
       "which is kept inside kernels/"},
      {{"kernels/moved.h", "// Inside harness/: it was there once.\n"},
       "says that it is inside harness/, where it is not"}};
  for (const MadeUp& m : wrong)
    EXPECT_THAT(breaches({sums, m.source, parameters, plan}), ElementsAre(HasSubstr(m.report)))
        << m.source.path << ": " << m.source.text;
  for (const Source& right :
       {Source{"oracle/bound.cc", "#include \"oracle/sums.h\"\n"},
        {"kernels/device/session.cc",
         "#include \"kernels/device/parameters.h\"\n#include \"kernels/plan.h\"\n"},
        {"kernels/cache/cache.cc", "#include \"kernels/plan.h\"\n"}})
    EXPECT_THAT(breaches({sums, parameters, plan, right}), IsEmpty()) << right.path;
}

// Sources that keep the rules are not reported.
TEST(Structure, MadeUpSourcesThatKeepTheRulesAreNot) {
  for (const Source& right :
       {Source{"kernels/attention/attention.cc",
               "#undef HWY_TARGET_INCLUDE\n#define HWY_TARGET_INCLUDE "
               "\"kernels/attention/attention.cc\"\n#include <hwy/foreach_target.h>\n"},
        {"kernels/attention/attention.cc",
         "#include \"kernels/simd/targets.h\"\n#include \"kernels/status.h\"\n#include "
         "\"problem/tensor.h\"\n"},
        {"kernels/device/opencl_device.cc", "#include <CL/cl_ext.h>\n#include <dlfcn.h>\n"},
        {"oracle/ball.cc",
         "#include <arb.h>\n#include <flint/arb_mat.h>\n#include <flint/fmpz.h>\n#include "
         "<vector>\n"},
        {"harness/faults/faulty_stages.cc",
         "#include <hwy/foreach_target.h>\n#include \"kernels/attention/attention-inl.h\"\n"},
        {"property_tests/store_test.cc",
         "#include <sqlite3.h>\n#include <sys/wait.h>\n#include \"reports/store.h\"\n#include "
         "\"testing/matchers.h\"\n"},
        {"reports/store.cc", "#include \"harness/results/result.h\"\n"},
        {"cli/check.cc",
         "// It does not #include \"testing/matchers.h\".\nconst char* s = \"#include "
         "<gtest/gtest.h>\";\n#define ROOM \"testing/\"\n"}})
    EXPECT_THAT(breaches({right}), IsEmpty()) << right.path;
}

// Why the first line of a header does not say what the file is; empty if it does. A sentence begins
// with a capital letter, has at least three words, and ends at the end of the comment or before it.
std::string says_nothing(const std::string& text) {
  static const std::regex comment(R"re(^(?://|/\*) (\S.*)$)re");
  std::smatch m;
  std::string line = first_line(text);
  if (!std::regex_match(line, m, comment)) return "the first line is no comment";
  std::string said = m[1];
  if (!std::isupper(static_cast<unsigned char>(said[0])))
    return "the first line does not begin a sentence";
  std::istringstream words(said);
  if (std::distance(std::istream_iterator<std::string>(words), {}) < 3)
    return "the first line has fewer than three words";
  std::istringstream lines(text);
  std::getline(lines, line);
  if (line.starts_with("//"))
    while (std::getline(lines, line) && line.starts_with("//")) said += line.substr(2);
  else said = text.substr(0, text.find("*/"));
  return said.find_first_of(".:") == std::string::npos
             ? "the comment of the first line ends no sentence"
             : "";
}

TEST(Structure, EveryHeaderSaysWhatItIs) {
  int headers = 0;
  for (const Source& s : project_sources()) {
    if (!is_header(s.path)) continue;
    ++headers;
    const std::string why = says_nothing(s.text);
    EXPECT_TRUE(why.empty()) << s.path << ": " << why;
  }
  EXPECT_GT(headers, 100);
  for (const char* wrong :
       {"", "#pragma once\n// What the file is.\n", "\n// What the file is.\n",
        "//\n// What the file is.\n", "//What the file is.\n", "// what the file is.\n",
        "// Tensors.\n", "// What the file\n#pragma once\n. : \n",
        "/* What the file */ int a; // is.\n"})
    EXPECT_FALSE(says_nothing(wrong).empty()) << wrong;
  for (const char* right : {"// What the file is.\n#pragma once\n", "// What the file\n// is.\n",
                            "/* What the file\n * is. */\n", "// Inside kernels/: what it is\n"})
    EXPECT_TRUE(says_nothing(right).empty()) << right << says_nothing(right);
}

}  // namespace
