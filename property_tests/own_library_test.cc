// Our kernels, the examples and a new project as libraries. Our kernels have the same bits as
// without one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <tuple>

#include "property_tests/kernel_library.h"

namespace assay {
namespace {

using testing::HasSubstr;

// A kernel is asked for what it does of a case: the products of A as a tensor and in low bits, and
// the tokens of a cache beside what the cache is read for.
TEST_F(Library, TheExamplesAreAskedForWhatTheyDo) {
  const auto example = [this](const std::string& name) {
    const std::string library = folder_ / ("lib" + name + ".so");
    const Ran made =
        run_line(std::string(ASSAY_CC) +
                 " -O2 -ffp-contract=off -fPIC -shared -I" ASSAY_SOURCE_DIR "/include/assay -o " +
                 library + " " ASSAY_SOURCE_DIR "/examples/kernel/" + name + ".c -lm");
    EXPECT_EQ(made.status, 0) << made.output;
    return library;
  };
  const std::string products = example("product"), pages = example("paged");
  for (const char* line :
       {"product m=3 n=5 k=40 w=mxfp4 a=mxfp4", "product m=3 n=5 k=40 w=mxfp4"}) {
    const Ran product = check(products, std::string("--case '") + line + "'");
    EXPECT_EQ(product.status, 0) << product.output;
    EXPECT_THAT(product.output, HasSubstr("compared: 15 of C;"));
  }
  const Ran tokens =
      check(pages, "--case 'attention b=2 h=4/2 l=3x9 d=5/3 offset=end cache=paged:4'");
  EXPECT_EQ(tokens.status, 0) << tokens.output;
  EXPECT_THAT(tokens.output, HasSubstr("72 of O, 24 of LSE, 288 of tokens"));
  const Ran starts =
      check(pages, "--case 'attention b=2 h=4/2 l=3x9 d=5/3 offset=end cache=paged:4 starts=1,2'");
  EXPECT_EQ(starts.status, 0) << starts.output;
  EXPECT_THAT(starts.output, HasSubstr("pass: every token is stored by the rule, bit for bit"));
  const Ran nothing = check(products, "--case 'product m=3 n=5 k=40 w=int8'");
  EXPECT_EQ(nothing.status, 2) << nothing.output;
  EXPECT_THAT(nothing.output, HasSubstr("unsupported: another format than MXFP4"));
  for (const std::string& library : {products, pages}) {
    const Ran refuses = check(library, "--suite refusals --max-unsupported 100");
    EXPECT_EQ(refuses.status, 0) << refuses.output;
    EXPECT_THAT(refuses.output, HasSubstr(" 0 failed"));
  }
}

// Our kernels hold, through a cache and in gradients, what they promise.
TEST_F(Library, OurKernelsKeepThePromisesOfDecodeAndGradients) {
  const std::string json = folder_ / "run.json";
  for (const char* line :
       {"attention b=3 h=4/2 l=5x40 d=8 causal offset=end cache=paged:16 bias=normal alibi",
        "attention b=3 h=4/2 l=5x40 d=8 cache=contiguous store=f8e4m3 offset=lengths "
        "lengths=40,17,23 bool=random docs=3,20",
        "attention b=3 h=4/2 l=9x40 d=8 causal offset=end cache=paged:7 chunks=4,1 starts=20,0,9"})
    for (const std::string& candidate :
         {std::string("host"), std::string("lib:" ASSAY_KERNEL_LIBRARY)}) {
      const Ran r =
          run_line(ASSAY_COMMAND " check --no-shrink --candidate " + candidate +
                   " --require batch-invariant,position-invariant,split-invariant,layout-invariant"
                   " --json " +
                   json + " --case '" + line + "'");
      EXPECT_EQ(r.status, 0) << r.output;
      const auto relations = relations_in(json);
      for (const char* name : {"batch-alone", "batch-reversed", "row-alone", "other-layout"})
        EXPECT_EQ(relations[name]["result"], "held") << line << name << relations;
    }
  const Ran gradients = run_line(
      ASSAY_COMMAND " check --no-shrink --require batch-invariant,position-invariant --json " +
      json + " --case 'backward b=3 h=4/2 l=9x40 d=8 bias=normal@hij sink=0.5 causal offset=end'");
  EXPECT_EQ(gradients.status, 0) << gradients.output;
  EXPECT_EQ(relations_in(json)["batch-alone"]["result"], "held");
}

// Our kernels behind the table of the interface: everything that they support passes, also
// gradients and products.
TEST_F(Library, OurKernelsPassAsALibrary) {
  for (const char* rest :
       {"--suite smoke", "--suite products --shard 0/9", "--suite backward --shard 0/20",
        "--suite caches --shard 0/5", "--suite decode --shard 0/9"}) {
    const Ran r = check(ASSAY_KERNEL_LIBRARY, rest);
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_THAT(r.output, HasSubstr(" 0 failed"));
  }
}

// The same cases, in the process and as a library: each that passes there passes here. The library
// declines what it says, caches whose layout only their owner knows. It has no pairs of bf16, which
// flush, so that a case may pass here of which nothing can be judged in the process.
TEST_F(Library, OurKernelsLoseNothingAsALibrary) {
  for (const auto& [suite, one_of, always] : {std::tuple{"smoke", 8, ""},
                                              {"backward", 90, " dlse="},
                                              {"decode", 60, ""},
                                              {"products", 60, ""},
                                              {"caches", 40, ""}}) {
    std::istringstream listed(run(std::string("check --list --suite ") + suite).output);
    std::ofstream chosen(folder_ / "cases");
    int k = 0, cases = 0;
    for (std::string line; std::getline(listed, line); ++k)
      if (k % one_of == 0 || (*always && line.find(always) != std::string::npos))
        chosen << line << "\n", ++cases;
    chosen.close();
    EXPECT_GT(cases, 5) << suite;
    const std::string rest =
        "--no-shrink --max-unsupported 100 --cases " + (folder_ / "cases").string();
    const auto outcomes = [&](const std::string& kernel) {
      const std::string json = folder_ / "outcomes.json";
      const Ran r = run("check " + kernel + rest + " --json " + json);
      EXPECT_EQ(r.status, 0) << suite << r.output;
      std::map<std::string, std::string> of_case;
      const auto told = nlohmann::json::parse(std::ifstream(json));
      for (const auto& result : told["results"]) of_case[result["case"]] = result["outcome"];
      return of_case;
    };
    const auto own = outcomes(""),
               library = outcomes("--kernel " + std::string(ASSAY_KERNEL_LIBRARY) + " ");
    EXPECT_EQ(std::ssize(own), cases) << suite;
    int passed = 0, declined = 0;
    for (const auto& [line, outcome] : own) {
      if (outcome != "pass") continue;
      const auto there = library.find(line);
      ASSERT_NE(there, library.end()) << line;
      ++(there->second == "unsupported" ? declined : passed);
      EXPECT_THAT(there->second, testing::AnyOf("pass", "unsupported")) << line;
    }
    EXPECT_GT(passed, cases / 2) << suite;
    EXPECT_LE(declined, suite == std::string("caches") ? cases / 2 : 0) << suite;
  }
}

// The first steps of new users take less than a minute.
TEST_F(Library, ANewProjectBuildsAndPasses) {
  const std::string project = (folder_ / "mine").string();
  const Ran made = run_line(std::string(ASSAY_COMMAND) + " new-kernel " + project);
  ASSERT_EQ(made.status, 0) << made.output;
  EXPECT_THAT(made.output, HasSubstr("assay check --kernel " + project +
                                     "/build/libmy_kernel.so --suite plain"));
  const Ran built = run_line("cmake -S " + project + " -B " + project + "/build && cmake --build " +
                             project + "/build");
  ASSERT_EQ(built.status, 0) << built.output;
  const Ran refuses = check(project + "/build/libmy_kernel.so", "--suite refusals");
  EXPECT_EQ(refuses.status, 0) << refuses.output;
  for (const char* suite : {"plain", "padding"}) {
    const Ran r =
        check(project + "/build/libmy_kernel.so", std::string("--shard 0/5 --suite ") + suite);
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_THAT(r.output, HasSubstr(" 0 failed"));
    // The suite is drawn for what the library does, and the summary says what is left out.
    EXPECT_THAT(r.output, testing::Not(HasSubstr("unsupported")));
    EXPECT_THAT(r.output,
                testing::ContainsRegex("of the [1-9][0-9]* cases for one that does everything, "
                                       "[1-9][0-9]* need what it has not: .*another dtype than "
                                       "fp32 \\([1-9]"));
  }
  // Beside it there are kernels of the other kinds, whose suites are another test's.
  for (const auto& [kernel, line] :
       {std::pair{"gradients", "backward b=1 h=2 l=5 d=4"},
        {"paged", "attention b=1 h=2 l=3x9 d=4 offset=end cache=paged:4"},
        {"product", "product m=3 n=5 k=40 w=mxfp4"}}) {
    const Ran r =
        check(project + "/build/lib" + kernel + ".so", std::string("--case '") + line + "'");
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_THAT(r.output, HasSubstr("1 case: 1 passed, 0 failed"));
  }
  // It tells its stages.
  const Ran traced = run_line(
      std::string(ASSAY_COMMAND) + " trace --kernel " + project +
      "/build/libmy_kernel.so 'attention b=1 h=2 l=37x53 d=16 causal bias=normal bool=random'");
  EXPECT_EQ(traced.status, 0) << traced.output;
  EXPECT_THAT(traced.output, HasSubstr("every stage holds; outputs: pass"));
  // A run in which nearly nothing was judged has not passed.
  std::string lines = "--case 'attention b=1 h=1 l=4 d=4'";
  for (int k = 0; k < 11; ++k)
    lines += " --case 'attention b=1 h=1 l=4 d=4 dtype=f16 seed=" + std::to_string(k + 2) + "'";
  for (const auto& [option, status] : {std::pair{"", 1}, {" --max-unsupported 100", 0}}) {
    const Ran r = check(project + "/build/libmy_kernel.so", lines + option);
    EXPECT_EQ(r.status, status) << r.output;
    EXPECT_THAT(r.output, HasSubstr("12 cases: 1 passed, 0 failed, 11 unsupported"));
    if (status == 1)
      EXPECT_THAT(r.output,
                  HasSubstr("91.7% of the cases are unsupported, more than --max-unsupported=90"));
  }
  const Ran again = run_line(std::string(ASSAY_COMMAND) + " new-kernel " + project);
  EXPECT_EQ(again.status, 2);
  EXPECT_THAT(again.output,
              HasSubstr("is there already, and is no empty folder; nothing was written"));
}

}  // namespace
}  // namespace assay
