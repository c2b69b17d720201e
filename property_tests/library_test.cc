// Kernel libraries of other people, through the command. Everything that a library may do wrong is
// a finding with a name, and a right library passes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "property_tests/kernel_library.h"

namespace assay {
namespace {

using testing::HasSubstr;

TEST_F(Library, ARightOnePasses) {
  const Ran r = check(built("none"));
  EXPECT_EQ(r.status, 0) << r.output;
  EXPECT_THAT(r.output, HasSubstr("pass: every element is inside its bound"));
  EXPECT_THAT(r.output, HasSubstr("contract: a misbehaving kernel, as its library declares it"));
}

// A read or a write is told where the processor tells it.
#define SEGMENTATION_FAULT "the library's process was killed by signal 11 (Segmentation fault) in "
#ifdef __x86_64__
#define A_READ "a read"
#define A_WRITE "a write"
#else
#define A_READ "an access"
#define A_WRITE "an access"
#endif

TEST_F(Library, EveryMistakeIsAFindingWithAName) {
#ifdef ASSAY_SANITIZED
  printf(
      "left out: 1 mistake, breaks_the_heap, which the sanitizer's allocator does not see in a "
      "library without it\n");
#endif
  for (const auto& [mistake, words] : std::vector<std::pair<const char*, const char*>>{
           {"crashes", SEGMENTATION_FAULT "forward: " A_WRITE
                                          " at address 0x8 (8 bytes behind a null pointer)"},
           {"reads_null", SEGMENTATION_FAULT "forward: " A_READ " at address 0x0 (a null pointer)"},
           {"leaves", "the library's process exited with status 7 in forward"},
           {"aborts", "the library's process was killed by signal 6 (Aborted) in forward"},
           {"writes_before", "the library wrote before the begin of o, in forward"},
           {"writes_behind", "the library wrote behind the end of o, in forward"},
           // The workspace lies behind o and lse, and is the last.
           {"writes_far_away",
            SEGMENTATION_FAULT "forward: " A_WRITE " 383600 bytes beyond the end of the workspace"},
           {"writes_an_input",
            SEGMENTATION_FAULT "forward: " A_WRITE " at byte 0 of q, which may only be read"},
           {"writes_behind_its_workspace",
            "the library wrote behind the end of the workspace, in forward"},
           {"reads_on", SEGMENTATION_FAULT "forward: " A_READ " 400 bytes beyond the end of v"},
           {"reads_before",
            SEGMENTATION_FAULT "forward: " A_READ " 4000 bytes before the begin of k"},
           {"overflows_its_stack",
            SEGMENTATION_FAULT "forward: " A_WRITE " beyond the end of its stack"},
           {"sends_itself_a_signal", SEGMENTATION_FAULT "forward\n"},
#ifdef __x86_64__
           {"loads_unaligned", SEGMENTATION_FAULT
            "forward: an access at an address that no process has, or that is not aligned"},
#endif
#ifndef ASSAY_SANITIZED
           {"breaks_the_heap", "the library's process was killed by signal 6 (Aborted) in forward"},
#endif
           {"writes_nothing", "was not written"},
           {"refuses",
            "the library said that it supports this, and then answered unsupported in forward"},
           {"fails", "status 5 (Execution failed): the answer of the library in forward"},
           {"cannot_compute_so",
            "the library declares an arithmetic that cannot be: exp_ulp = -1 is outside [0.5, "
            "1e+06]"},
           {"crashes_when_asked",
            SEGMENTATION_FAULT "answering what it supports: " A_WRITE
                               " at address 0x8 (8 bytes behind a null pointer)"},
           {"closes_its_socket", "the library's process closed its connection in forward"}}) {
    const Ran r = check(built(mistake));
    EXPECT_EQ(r.status, 1) << mistake << ": " << r.output;
    EXPECT_THAT(r.output, HasSubstr(words)) << mistake;
    EXPECT_THAT(r.output, HasSubstr("reproduce: assay check --candidate lib:")) << mistake;
  }
}

// Tables and codes have pages of their own, as tensors have.
TEST_F(Library, ACrashBeyondATableNamesIt) {
  const Ran table = check(built("reads_beyond_its_table"),
                          "--case 'attention b=2 h=4/2 l=3x9 d=5/3 offset=end cache=paged:4'");
  EXPECT_EQ(table.status, 1);
  EXPECT_THAT(table.output,
              HasSubstr(SEGMENTATION_FAULT "decode: " A_READ
                                           " 400 bytes beyond the end of the block table"));
  const Ran codes = check(built("reads_beyond_its_codes"), "--case 'product m=3 n=5 k=32 w=mxfp4'");
  EXPECT_EQ(codes.status, 1);
  EXPECT_THAT(codes.output, HasSubstr(SEGMENTATION_FAULT "product: " A_READ
                                                         " 200 bytes beyond the end of w.codes"));
}

// What a library writes where the note of a crash lies changes words, and no verdict.
TEST_F(Library, AForgedNoteOfACrashIsNoVerdict) {
  const std::string library = built("forges_a_note");
  const Ran right = check(library);
  EXPECT_EQ(right.status, 0) << right.output;
  const Ran leaves = check(library, "--case 'attention b=1 h=1 l=8x9 d=5/3'");
  EXPECT_EQ(leaves.status, 1) << leaves.output;
  EXPECT_THAT(leaves.output, HasSubstr("the library's process exited with status 7 in forward"));
}

// What is declared of products has limits of its own. A right declaration is the contract.
TEST_F(Library, TheDeclaredArithmeticOfProductsIsTheContract) {
  const std::string line = "--explain --case 'product m=3 n=5 k=32 w=mxfp4'";
  const Ran zeros = check(built("none"), line);
  EXPECT_EQ(zeros.status, 1) << zeros.output;
  EXPECT_THAT(zeros.output, HasSubstr("contract: a misbehaving kernel, as its library declares it "
                                      "(sums 2^-24 by group in order)\n"));
  for (const auto& [mistake, words] : std::map<std::string, std::string>{
           {"cannot_multiply_so",
            "the library declares an arithmetic that cannot be: order = 2 goes with neither block"},
           {"tells_no_arithmetic", "the library's product_arithmetic answered 5"}}) {
    const Ran r = check(built(mistake), line);
    EXPECT_EQ(r.status, 1) << mistake << ": " << r.output;
    EXPECT_THAT(r.output, HasSubstr(words)) << mistake;
  }
}

// The numbers of what is declared are told, and are fields of the result.
TEST_F(Library, TheDeclaredArithmeticIsToldWithItsNumbers) {
  const std::string json = folder_ / "told.json";
  const Ran r =
      check(built("none"), "--explain --case 'attention b=1 h=1 l=7x9 d=5/3' --json " + json);
  EXPECT_THAT(r.output, HasSubstr("contract: a misbehaving kernel, as its library declares it "
                                  "(sums 2^-24, exp 1 ulp, tile 64)\n"));
  EXPECT_THAT(r.output, HasSubstr("softmax: each step rounds by 2^-24; exp 1 ulp + 0 ulp per unit, "
                                  "2^-149 where it underflows; log 1 ulp, tanh 4 ulp"));
  EXPECT_THAT(r.output, HasSubstr("O is divided at the end, 1 roundings"));
  const auto told = nlohmann::json::parse(std::ifstream(json))["results"][0]["arithmetic"];
  EXPECT_EQ(told["declared"], true);
  EXPECT_EQ(told["attention"]["division_roundings"], 1);
  EXPECT_EQ(told["attention"]["dot_roundoff"], 0x1p-24);
  EXPECT_EQ(told["attention"]["ordered"], false);
  EXPECT_FALSE(told["attention"].contains("weight_dtype"));
}

// A variant that declines a case is counted with its reason, and others are judged. The first that
// does the case is judged as a kernel without variants is.
TEST_F(Library, AVariantMayDeclineWhatOthersDo) {
  const std::string library = built("has_variants", "-DVARIANTS"), json = folder_ / "told.json";
  const auto judged = [&](const std::string& rows) {
    const Ran r =
        check(library, "--case 'attention b=1 h=1 l=" + rows + "x9 d=5/3' --json " + json);
    EXPECT_EQ(r.status, 0) << r.output;
    return nlohmann::json::parse(std::ifstream(json))["results"][0];
  };
  EXPECT_EQ(judged("7")["relations"]["variants"], (nlohmann::json{{"result", "held"}}));
  EXPECT_EQ(judged("10")["relations"]["variants"],
            (nlohmann::json{{"result", "held"}, {"declined", {{"more than 8 rows", 1}}}}));
  const auto later = judged("14");
  EXPECT_EQ(later["relations"]["variants"],
            (nlohmann::json{{"result", "held"},
                            {"declined", {{"more than 8 rows", 1}, {"more than 12 rows", 1}}}}));
  EXPECT_EQ(later["arithmetic"]["attention"]["weight_dtype"], "bf16");
  const Ran none = check(library, "--case 'attention b=1 h=1 l=20x9 d=5/3'");
  EXPECT_EQ(none.status, 2) << none.output;
  EXPECT_THAT(none.output, HasSubstr("unsupported: more than 12 rows"));
  std::ofstream(folder_ / "cases")
      << "attention b=1 h=1 l=7x9 d=5/3\nattention b=1 h=1 l=10x9 d=5/3\n"
         "attention b=1 h=1 l=14x9 d=5/3\n";
  const Ran all = check(library, "--cases " + (folder_ / "cases").string());
  EXPECT_EQ(all.status, 0) << all.output;
  EXPECT_THAT(all.output, HasSubstr("  declined by a variant: 1 x more than 12 rows\n"
                                    "  declined by a variant: 2 x more than 8 rows\n"));
  const Ran wrong = check(built("declares_too_much", "-DVARIANTS"));
  EXPECT_EQ(wrong.status, 1) << wrong.output;
  EXPECT_THAT(wrong.output, HasSubstr("fail: relation variants violated: variant 2: O is outside"));
  // Products: variant 2 is the first that does 14 rows, and is wrong.
  const Ran product = check(library, "--case 'product m=14 n=5 k=32 w=mxfp4'");
  EXPECT_EQ(product.status, 1) << product.output;
  EXPECT_THAT(product.output, HasSubstr("C is outside its bound"));
  const Ran no_product = check(library, "--case 'product m=20 n=5 k=32 w=mxfp4'");
  EXPECT_THAT(no_product.output, HasSubstr("unsupported: more than 12 rows"));
}

// A kernel that answers for all of its variants together may find out when one of them runs.
TEST_F(Library, AVariantMayDeclineWhenItRuns) {
  const std::string json = folder_ / "told.json";
  const Ran r = check(built("refuses_late", "-DVARIANTS"),
                      "--case 'attention b=1 h=1 l=7x9 d=5/3' --json " + json);
  EXPECT_EQ(r.status, 0) << r.output;
  const auto told = nlohmann::json::parse(std::ifstream(json))["results"][0]["relations"];
  EXPECT_EQ(told["variants"]["declined"],
            (nlohmann::json{{"the variant answered unsupported, and gives no reason", 1}}));
}

// A table from before variants were asked about is shorter. What lies behind it is not read.
TEST_F(Library, AShorterTableOfVersionTwoLoads) {
  const Ran r = check(built("has_variants", "-DVARIANTS -DOLD_TABLE"),
                      "--case 'attention b=1 h=1 l=14x9 d=5/3'");
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("the answer of the library in forward"));  // of variant 0
}

// A suite of which nearly nothing is left for a kernel has not been passed.
TEST_F(Library, WhatADrawnSuiteLeavesOutCounts) {
  const std::string library = built("does_one_key");
  for (const auto& [option, status] : {std::pair{"", 1}, {" --max-unsupported 95", 0}}) {
    const Ran r = check(library, std::string("--suite tiny") + option);
    EXPECT_EQ(r.status, status) << r.output;
    EXPECT_THAT(r.output, HasSubstr("1 case: 1 passed, 0 failed"));
    const std::string words =
        "92.9% of the suite is unsupported or left out, more than --max-unsupported=90";
    EXPECT_EQ(r.output.find(words) != std::string::npos, status == 1) << r.output;
  }
}

// A declared order is a promise about the row sum, too.
TEST_F(Library, ARowSumInAnotherOrderIsToldAsThat) {
  const Ran r =
      check(built("sums_in_another_order"), "--case 'attention b=1 h=1 l=2x16384 d=1 scores=ties'");
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("sums go in another order than is declared"));
}

// What a library declines is unsupported, for products too. What it accepts is judged.
TEST_F(Library, ProductsAreAskedFor) {
  const std::string library = built("none");
  const Ran declined = check(library, "--case 'product m=3 n=5 k=32 w=nvfp4'");
  EXPECT_EQ(declined.status, 2) << declined.output;
  EXPECT_THAT(declined.output, HasSubstr("unsupported: another format than mxfp4"));
  const Ran wrong = check(library, "--case 'product m=3 n=5 k=32 w=mxfp4'");
  EXPECT_EQ(wrong.status, 1) << wrong.output;
  EXPECT_THAT(wrong.output, HasSubstr("C is outside its bound"));
}

// The stages that a library tells are checked too.
TEST_F(Library, StagesAreFollowed) {
  const auto trace = [](const std::string& library) {
    return run_line(std::string(ASSAY_COMMAND) + " trace --kernel " + library +
                    " 'attention b=1 h=1 l=7x9 d=5/3'");
  };
  const Ran silent = trace(built("none"));
  EXPECT_EQ(silent.status, 2);
  EXPECT_THAT(silent.output, HasSubstr("does not tell its stages"));
  for (const auto& [mistake, words] : std::vector<std::pair<const char*, const char*>>{
           {"tells_another_version", "the library told a stage of another version or size"},
           {"tells_an_unknown_stage", "the library told a stage of number 77"},
           {"tells_too_much",
            "the library told a stage of 1099511627776 rows and 1099511627776 columns"},
           {"tells_of_another_head", "first wrong: scores at b=0 h=9 row=0"},
           {"tells_no_column", "was told without a column"},
           {"tells_a_gradient", "does not belong to this pass"},
           {"tells_of_another_key", "belongs to no head or key of the problem"},
           {"crashes",
            "the library's process was killed by signal 11 (Segmentation fault) in forward"}}) {
    const Ran r = trace(built(mistake, "-DTELLS"));
    EXPECT_EQ(r.status, 1) << mistake << r.output;
    EXPECT_THAT(r.output, HasSubstr(words));
  }
}

// A kernel that checks nothing answers calls that cannot be. This is told only if it is asked.
TEST_F(Library, CallsThatCannotBeAreRefused) {
  const std::string one = " --case 'attention b=1 h=1 l=7x9 d=5/3'";
  const Ran r = check(built("none"), "--refusals" + one);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output,
              testing::ContainsRegex(
                  "fail: [0-9]+ of [0-9]+ calls that cannot be are not refused: .*refuses-"
                  "keys-of-v.*K with 4 columns instead of 5: answered success"));
  EXPECT_THAT(r.output, testing::ContainsRegex("reproduce: .* --refusals"));
  EXPECT_EQ(check(built("none"), one).status, 0);
  const Ran writes = check(built("writes_before_it_refuses"), "--refusals" + one);
  EXPECT_THAT(writes.output,
              HasSubstr("K with 4 columns instead of 5: refused, and O was written"));
  const Ran right = check(ASSAY_KERNEL_LIBRARY, "--suite refusals");
  EXPECT_EQ(right.status, 0) << right.output;
  EXPECT_THAT(right.output, HasSubstr(" 0 failed"));
}

TEST_F(Library, ARunEndsAtTheFirstFailure) {
  std::ofstream cases(folder_ / "cases");
  for (int rows = 2; rows < 6; ++rows) cases << "attention b=1 h=1 l=" << rows << "x9 d=5/3\n";
  cases.close();
  const std::string all =
      "--jobs 1 --stop-at-first-failure --cases " + (folder_ / "cases").string();
  const Ran r = check(built("writes_nothing"), all);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output,
              HasSubstr("1 case: 0 passed, 1 failed, 3 not run after the first failure;"));
  EXPECT_THAT(check(built("none"), all).output, HasSubstr("4 cases: 4 passed, 0 failed;"));
}

// Every third call gives another number. Two runs agree, and the third finds it: a relation, or a
// run that was asked for.
TEST_F(Library, AKernelThatIsNotDeterministicIsToldSo) {
  const std::string library = built("differs_by_chance");
  const Ran relation = check(library);
  EXPECT_EQ(relation.status, 1) << relation.output;
  EXPECT_THAT(relation.output,
              HasSubstr("fail: not deterministic: relation threads was violated: "));
  EXPECT_THAT(relation.output, HasSubstr(", and held when it was asked again"));
  const Ran repeated = check(library, "--repeat 5 --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(repeated.status, 1) << repeated.output;
  EXPECT_THAT(repeated.output,
              HasSubstr("fail: not deterministic: 2 of 8 runs differ from the first: O["));
  EXPECT_THAT(repeated.output, testing::ContainsRegex("reproduce: .* --repeat 100"));
  EXPECT_EQ(check(built("none"), "--repeat 5 --case 'attention b=1 h=1 l=7x9 d=5/3'").status, 0);
}

// NaN that a kernel computes from what its output held is not what was there.
#ifdef __SSE__
TEST_F(Library, FlushedSubnormalNumbersAreToldAsThat) {
  // K holds subnormal numbers, and Q huge ones.
  const std::string line = "attention b=1 h=1 l=7x9 d=5/3 scores=near-overflow";
  const std::string library = built("flushes_subnormals");
  const Ran r = check(library, "--case '" + line + "'");
  EXPECT_EQ(r.status, 0) << r.output;
  EXPECT_THAT(r.output, HasSubstr("differs by convention: subnormals:flushed"));
  EXPECT_THAT(r.output, HasSubstr("compute 0 in the place of subnormal numbers when it is loaded"));
  const Ran kept = check(library, "--case '" + line + " convention=subnormals:kept'");
  EXPECT_EQ(kept.status, 1) << kept.output;
  EXPECT_THAT(kept.output, HasSubstr("compute 0 in the place of subnormal numbers when it is"));
  EXPECT_EQ(check(built("none"), "--case '" + line + "'").status, 0);
}
#endif

TEST_F(Library, WhatIsComputedFromPoisonWasWritten) {
  const Ran r = check(built("computes_from_its_output"));
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, testing::Not(HasSubstr("was not written")));
}

TEST_F(Library, WhatIsNoKernelLibraryIsRefused) {
  for (const auto& [library, words] : std::vector<std::pair<std::string, const char*>>{
           {built("none", "-DNO_ENTRY"), "has no symbol assay_kernel_entry"},
           {built("has_no_table"),
            "does not work with version 2 of kernel.h: its entry answered null"},
           {built("has_another_version"), "its table has version = 99; between 1 and 2 are known"},
           {built("has_another_size"), "its table has struct_size = 8, which is not a "},
           {built("has_no_function"), "its table has no function"},
           {built("crashes", "-DNO_D_SINK=2"), "its table has no_d_sink = 2, neither 0 nor 1"},
           {"/nowhere/libnone.so", "cannot be loaded"},
           {ASSAY_SOURCE_DIR "/README.md", "cannot be loaded"}}) {
    const Ran r = check(library);
    EXPECT_EQ(r.status, 2) << library << ": " << r.output;
    EXPECT_THAT(r.output, HasSubstr(words));
    EXPECT_THAT(r.output, HasSubstr(library));
  }
}

}  // namespace
}  // namespace assay
