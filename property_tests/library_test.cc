// Kernel libraries of other people, through the command. Everything that a library may do wrong is
// a finding with a name, a right library passes, and our own kernels as such a library have the
// same bits as without it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "property_tests/run_command.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

Ran check(const std::string& library,
          const std::string& rest = "--case 'attention b=1 h=1 l=7x9 d=5/3'") {
  return run_line(std::string(ASSAY_COMMAND) + " check --no-shrink --kernel " + library + " " +
                  rest);
}

class Library : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-library-test-" + std::to_string(getpid()));
    fs::create_directories(folder_ / "ids");
    setenv("ASSAY_TEST_IDS", (folder_ / "ids").c_str(), 1);
  }
  void TearDown() override {
    for (const pid_t process : left()) kill(process, SIGKILL);
    fs::remove_all(folder_);
  }

  // The processes of libraries that have left their id and still run.
  std::vector<pid_t> left() const {
    std::vector<pid_t> running;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_ / "ids")) {
      std::ifstream stat("/proc/" + entry.path().filename().string() + "/stat");
      std::string text;
      std::getline(stat, text);
      const bool ended = text.empty() || text.find(") Z ") != std::string::npos;
      if (!ended) running.push_back(std::stoi(entry.path().filename().string()));
    }
    return running;
  }
  std::size_t left_ids() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_ / "ids"), fs::directory_iterator()));
  }

  // Builds misbehaving_kernel.c with one mistake.
  std::string built(const std::string& mistake, const std::string& flags = "") {
    const fs::path library = folder_ / ("lib" + mistake + ".so");
    const Ran r = run_line(
        std::string(ASSAY_CC) +
        " -O1 -ffp-contract=off -shared -fPIC -I" ASSAY_SOURCE_DIR "/include -DMISTAKE=" + mistake +
        " " + flags + " -o " + library.string() +
        " " ASSAY_SOURCE_DIR "/property_tests/misbehaving_kernel.c -lm");
    EXPECT_EQ(r.status, 0) << r.output;
    return library;
  }
  // One of the small kernels of partial_*.c. The environment says what it does.
  std::string partial(const std::string& file) {
    std::string library = folder_ / ("lib" + file + ".so");
    const Ran made = run_line(std::string(ASSAY_CC) +
                              " -std=gnu11 -O1 -ffp-contract=off -shared -fPIC -I" ASSAY_SOURCE_DIR
                              "/include -o " +
                              library + " " ASSAY_SOURCE_DIR "/property_tests/" + file + ".c -lm");
    EXPECT_EQ(made.status, 0) << made.output;
    return library;
  }
  fs::path folder_;
};

// A variable of the environment, which the libraries read, for as long as this lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  Variable(const Variable&) = delete;
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

// The relations of the first case of a run in JSON.
nlohmann::json relations_in(const std::string& file) {
  return nlohmann::json::parse(std::ifstream(file))["results"][0]["relations"];
}

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

// Builds partial_kernels.c, which the environment makes one of its kinds.
class PartialLibrary : public Library {
 protected:
  void SetUp() override {
    Library::SetUp();
    library_ = folder_ / "libpartial.so";
    const Ran made = run_line(
        std::string(ASSAY_CC) +
        " -std=gnu11 -O1 -ffp-contract=off -shared -fPIC -I" ASSAY_SOURCE_DIR "/include -o " +
        library_ + " " ASSAY_SOURCE_DIR "/property_tests/partial_kernels.c -lm");
    ASSERT_EQ(made.status, 0) << made.output;
  }
  void TearDown() override {
    unsetenv("ASSAY_PARTIAL");
    unsetenv("ASSAY_PARTIAL_FAULT");
    Library::TearDown();
  }
  Ran judged(const char* kind, const std::string& line, const char* fault = nullptr) const {
    setenv("ASSAY_PARTIAL", kind, 1);
    if (fault) setenv("ASSAY_PARTIAL_FAULT", fault, 1);
    else unsetenv("ASSAY_PARTIAL_FAULT");
    return check(library_, "--case '" + line + "'");
  }
  std::string library_;
};

// O and LSE are those of our kernel, and are judged as well; what is failed is in the gradients.
TEST_F(PartialLibrary, GradientsAloneAreJudgedOnOurOAndLse) {
  const std::string line = "backward b=2 h=4/2 l=9x24 d=16 causal layout=g:strided";
  const Ran right = judged("gradients-f32", line);
  EXPECT_EQ(right.status, 0) << right.output;
  EXPECT_THAT(right.output, HasSubstr("compared: 1152 of O, 72 of LSE, 1152 of dQ, 1536 of dK, "
                                      "1536 of dV;"));
  for (const char* fault : {"d-o-as-o", "shifted-groups"}) {
    const Ran wrong =
        judged("gradients-f32", "backward b=2 h=6/2 l=9x24 d=16 layout=g:strided", fault);
    EXPECT_EQ(wrong.status, 1) << fault << wrong.output;
    EXPECT_THAT(wrong.output, HasSubstr("fail, proved: d")) << fault;
  }
  const Ran forward = judged("gradients-f32", "attention b=1 h=1 l=9x24 d=16");
  EXPECT_EQ(forward.status, 2) << forward.output;
  EXPECT_THAT(forward.output, HasSubstr("unsupported: no forward pass"));
}

// A forward pass without LSE is judged where attention is asked, and its backward pass on our O and
// LSE.
TEST_F(PartialLibrary, GradientsOfAKernelWithoutLseAreJudged) {
  const std::string line = "backward b=2 h=2 l=9x24 d=16/8 causal softcap=2";
  const Ran right = judged("backward-no-lse-f32", line);
  EXPECT_EQ(right.status, 0) << right.output;
  EXPECT_THAT(right.output, HasSubstr("288 of O, 36 of LSE, 576 of dQ,"));
  const Ran wrong = judged("backward-no-lse-f32", line, "no-slope");
  EXPECT_EQ(wrong.status, 1) << wrong.output;
  EXPECT_THAT(wrong.output, HasSubstr("fail, proved: d"));
  const Ran forward =
      judged("backward-no-lse-f32", "attention b=2 h=2 l=9x24 d=16/8 causal softcap=2");
  EXPECT_EQ(forward.status, 0) << forward.output;
  EXPECT_THAT(forward.output, HasSubstr("compared: 288 of O;"));
}

// A kernel that gives dSink is judged for it, and one that says that it gives none is judged for
// the rest.
TEST_F(PartialLibrary, DSinkIsAskedOfKernelsThatGiveIt) {
  const std::string line = "backward b=2 h=4/2 l=9x24 d=64 causal sink=0.5";
  const Ran all = judged("backward-sink-f32", line);
  EXPECT_EQ(all.status, 0) << all.output;
  EXPECT_THAT(all.output, HasSubstr(", 4 of dSink;"));
  for (const char* fault : {"d-sink-of-the-last-batch", "d-sink-of-kv-heads"}) {
    const Ran wrong = judged("backward-sink-f32", line, fault);
    EXPECT_EQ(wrong.status, 1) << fault << wrong.output;
    EXPECT_THAT(wrong.output, HasSubstr("fail, proved: dSink")) << fault;
  }
  for (const auto& [kind, dtype] :
       {std::pair{"backward-no-d-sink-bf16", " dtype=bf16"}, {"gradients-sink-f32", ""}}) {
    const Ran without = judged(kind, line + dtype);
    EXPECT_EQ(without.status, 0) << kind << without.output;
    EXPECT_THAT(without.output, HasSubstr(" of dV;"));
    const Ran wrong = judged(kind, line + dtype, "lse-without-sink");
    EXPECT_EQ(wrong.status, 1) << kind << wrong.output;
    EXPECT_THAT(wrong.output, HasSubstr("fail, proved: d"));
  }
}

// Tensors far beyond 2^31 elements go through a library: offsets of 32 bits are found.
TEST_F(PartialLibrary, OffsetsBeyond32BitsAreAsked) {
  for (const auto& [kind, line] :
       {std::pair{"d128-f16", "attention b=2 h=4/2 l=3x5 d=128 dtype=f16"},
        {"backward-f32", "backward b=2 h=2 l=3x5 d=8/4"}}) {
    const std::string distant = std::string(line) + " layout=distant";
    const Ran right = judged(kind, distant);
    EXPECT_EQ(right.status, 0) << kind << right.output;
    EXPECT_THAT(right.output, HasSubstr("1 case: 1 passed, 0 failed"));
    EXPECT_EQ(judged(kind, line, "offset-of-32-bits").status, 0) << kind;
    const Ran wrong = judged(kind, distant, "offset-of-32-bits");
    EXPECT_EQ(wrong.status, 1) << kind << wrong.output;
  }
}

// A record has what the kernel gives, and is judged by that.
TEST_F(PartialLibrary, RecordsHoldWhatTheKernelGives) {
  const std::string record = folder_ / "r.safetensors";
  for (const auto& [kind, line, compared] :
       {std::tuple{"gradients-sink-f32", "backward b=1 h=2 l=5 d=64 sink=0.5",
                   "640 of O, 10 of LSE, 640 of dQ, 640 of dK, 640 of dV;"},
        {"backward-no-lse-f32", "attention b=1 h=2 l=5 d=8", "compared: 80 of O;"}}) {
    setenv("ASSAY_PARTIAL", kind, 1);
    const Ran made = run_line(std::string(ASSAY_COMMAND) + " record --candidate lib:" + library_ +
                              " --case '" + line + "' -o " + record);
    EXPECT_EQ(made.status, 0) << kind << made.output;
    const Ran verified = run_line(std::string(ASSAY_COMMAND) + " verify " + record);
    EXPECT_EQ(verified.status, 0) << kind << verified.output;
    EXPECT_THAT(verified.output, HasSubstr(compared));
    fs::remove(record);
  }
}

// Waits for what must happen soon, and for much longer on a busy machine.
bool happens(const std::function<bool()>& what) {
  for (int k = 0; k < 6000 && !what(); ++k)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return what();
}

// The library tries to write a result into every process of Assay, to open its descriptors, to read
// its memory and to trace it.
TEST_F(Library, ItReachesNothingThatCarriesVerdicts) {
  const std::string one = "--case 'attention b=1 h=1 l=7x9 d=5/3'", json = folder_ / "passed.json";
  ASSERT_EQ(check(built("none"), one + " --json " + json).status, 0);
  const std::string forgery = folder_ / "forgery";
  std::ofstream(forgery) << nlohmann::json::parse(std::ifstream(json))["results"][0] << "\n"
                         << "host\tattention b=1 h=1 l=7x9 d=5/3\n";
  setenv("ASSAY_TEST_FORGERY", forgery.c_str(), 1);
  const std::string library = built("forges");
  int kept[2];  // the command inherits it, and its library must not
  ASSERT_EQ(pipe(kept), 0);
  for (const std::string how : {"", " --in-process"}) {
    const Ran r = check(library, one + how + " --timeout 60");
    EXPECT_EQ(r.status, 1) << r.output;
    EXPECT_THAT(r.output, HasSubstr("was not written"));
    EXPECT_THAT(r.output, testing::Not(HasSubstr("forged:")));
  }
  close(kept[0]);
  close(kept[1]);
  unsetenv("ASSAY_TEST_FORGERY");
}

TEST_F(Library, ItCannotTakeTheMemoryAway) {
  const Ran r = check(built("shrinks_the_memory"));
  EXPECT_EQ(r.status, 0) << r.output;
}

// Processes that it has left hold its connection open. Its end is told all the same, and theirs
// follows.
TEST_F(Library, WhatItHasStartedEndsWithIt) {
  const Ran crash = check(built("leaves_a_child_and_crashes"));
  EXPECT_EQ(crash.status, 1);
  EXPECT_THAT(
      crash.output,
      HasSubstr("the library's process was killed by signal 11 (Segmentation fault) in forward"));
  EXPECT_GE(left_ids(), 1u);
  EXPECT_TRUE(happens([&] { return left().empty(); }));
  const Ran daemon =
      check(built("leaves_daemons"), "--timeout 6 --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_THAT(daemon.output, HasSubstr("the candidate did not finish within 6 s"));
  EXPECT_GE(left_ids(), 3u);
  EXPECT_TRUE(happens([&] { return left().empty(); }));
}

TEST_F(Library, ACrashAtLoadIsNoHang) {
  const Ran r = check(built("crashes_at_load"));
  EXPECT_EQ(r.status, 2) << r.output;
  EXPECT_THAT(
      r.output,
      HasSubstr("the library's process was killed by signal 11 (Segmentation fault) in loading"));
}

// The command, its worker and the library's processes are one process group. A daemon of the
// library has left the group. What loses its parent becomes a child of this process, so that it is
// seen when it has ended.
TEST_F(Library, WhateverEndsTheCommandEndsAllThatItStarted) {
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  const std::string library = built("leaves_daemons");
  for (const int signal : {SIGTERM, SIGHUP, SIGINT, SIGKILL})
    for (const char* how : {"--jobs=2", "--in-process"}) {
      const std::size_t before = left_ids();
      const pid_t command = fork();
      if (command == 0) {
        setpgid(0, 0);
        dup2(open("/dev/null", O_RDWR), STDOUT_FILENO);
        dup2(STDOUT_FILENO, STDERR_FILENO);
        execl(ASSAY_COMMAND, "assay", "check", "--kernel", library.c_str(), how, "--case",
              "attention b=1 h=1 l=7x9 d=5/3", static_cast<char*>(nullptr));
        _exit(127);
      }
      ASSERT_TRUE(happens([&] { return left_ids() == before + 2; })) << how;
      EXPECT_EQ(left().size(), 2u);
      kill(command, signal);
      int status = 0;
      waitpid(command, &status, 0);
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << status;
      const auto all_ended = [&] {
        while (waitpid(-1, nullptr, WNOHANG) > 0) {
        }
        return kill(-command, 0) != 0 && errno == ESRCH && left().empty();
      };
      EXPECT_TRUE(happens(all_ended)) << how << " after signal " << signal;
    }
  prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
}

TEST_F(Library, LoadingHasALimit) {
  const std::string entry = built("hangs_at_load"), constructor = built("none", "-DIN_CONSTRUCTOR"),
                    call = built("hangs");
  const std::string one = " --timeout 1 --case 'attention b=1 h=1 l=7x9 d=5/3' ";
  for (const std::string& library : {entry, constructor}) {
    const Ran r = check(library, one);
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr("assay: loading lib:" + library +
                                    " did not end within the 1 s of --timeout"));
  }
  const std::string coloured = folder_ / "lib\033[31m.so";
  fs::copy(entry, coloured);
  EXPECT_THAT(check("'" + coloured + "'", one).output,
              HasSubstr("/lib\\x1b[31m.so did not end within the 1 s of --timeout"));
  for (const auto& [library, what] : {std::pair{entry, "loading lib:"}, {call, "lib:"}}) {
    const std::string record = folder_ / "record.safetensors";
    const Ran r = run_line(std::string(ASSAY_COMMAND) + " record --candidate lib:" + library + one +
                           "-o " + record);
    EXPECT_EQ(r.status, 2) << r.output;
    EXPECT_THAT(r.output, HasSubstr(std::string("assay: ") + what + library));
    EXPECT_THAT(r.output, HasSubstr("did not end within the 1 s of --timeout"));
    EXPECT_FALSE(fs::exists(record));
  }
  EXPECT_TRUE(happens([&] { return left().empty(); }));
}

// What the machine lacks is an error of the run, not a failure of the kernel.
TEST_F(Library, AShortageIsNoFailure) {
  const Ran memory = check(built("has_no_memory"));
  EXPECT_EQ(memory.status, 3) << memory.output;
  EXPECT_THAT(memory.output, HasSubstr("error: not judged: status 2 (Memory allocation failed)"));
  const Ran killed = check(built("is_killed"));
  EXPECT_EQ(killed.status, 3) << killed.output;
  EXPECT_THAT(killed.output, HasSubstr("error: not judged: the library's process was killed by "
                                       "signal 9 (Killed) in forward, as processes are when "
                                       "memory is short"));
#ifndef ASSAY_SANITIZED  // sanitizers need more descriptors, and have no limit of memory
  const std::string right = built("none"), one = "--case 'attention b=1 h=1 l=7x9 d=5/3'";
  for (const int mib : {1, 2, 4, 8, 16}) {
    const Ran r = check(right, one + " --timeout 60 --jobs 1 --memory " + std::to_string(mib));
    EXPECT_THAT(r.status, testing::AnyOf(0, 3)) << mib << " MiB: " << r.output;
  }
  for (int descriptors = 8; descriptors < 16; ++descriptors) {
    const Ran r = run_line("(ulimit -n " + std::to_string(descriptors) + "; exec " ASSAY_COMMAND +
                           " check --no-shrink --jobs 1 --kernel " + right + " " + one + ")");
    EXPECT_THAT(r.status, testing::AnyOf(0, 3)) << descriptors << ": " << r.output;
  }
#endif
}

// The case comes back. What hangs is the problem of a relation, and the last line runs this
// problem.
TEST_F(Library, AHangNamesTheProblemThatHangs) {
  const std::string library = built("hangs_with_causality");
  const Ran r = check(library, "--timeout 2 --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(r.status, 1);
  EXPECT_THAT(r.output,
              testing::ContainsRegex("fail: the candidate did not finish within 2 s, in relation "
                                     "after-another, on 'attention b=1 h=1 l=7x9 [^']* causal"));
  EXPECT_THAT(r.output, testing::ContainsRegex("reproduce: assay check --candidate lib:[^ ]* "
                                               "--case 'attention b=1 h=1 l=7x9 [^']* causal"));
}

TEST_F(Library, AHangEndsWithItsTime) {
  const Ran r = check(built("hangs"), "--timeout 2 --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("the candidate did not finish within 2 s"));
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

TEST_F(Library, ATraceEndsInItsTime) {
  const Ran r = run_line(std::string(ASSAY_COMMAND) + " trace --timeout 2 --kernel " +
                         built("hangs", "-DTELLS") + " 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(r.status, 1);
  EXPECT_THAT(r.output, HasSubstr("did not end within the 2 s of --timeout"));
}

// One bad case costs only one case.
TEST_F(Library, TheNextCaseIsJudged) {
  std::ofstream(folder_ / "cases")
      << "attention b=1 h=1 l=7x9 d=5/3\nattention b=1 h=1 l=8x9 d=5/3\n";
  const Ran r = check(built("crashes"), "--jobs 1 --cases " + (folder_ / "cases").string());
  EXPECT_THAT(r.output, HasSubstr("2 cases: 0 passed, 2 failed")) << r.output;
}

TEST_F(Library, IsLoadedOnceForEachWorker) {
  std::ofstream cases(folder_ / "cases");
  for (int rows = 2; rows < 8; ++rows) cases << "attention b=1 h=1 l=" << rows << "x9 d=5/3\n";
  cases.close();
  const std::string all = " --cases " + (folder_ / "cases").string();
  const Ran r = check(built("counts_its_loads"), "--jobs 1" + all);
  EXPECT_THAT(r.output, HasSubstr("6 cases: 6 passed")) << r.output;
  // The command has loaded it too, to see whether it can be loaded. Each case has asked a fresh
  // process for its first call, and another worker has run the cases in the other order.
  EXPECT_EQ(left_ids(), 2u + 6u + 1u);
}

// A case that fails after others, and passes alone, is told as what it is, and the command that
// reproduces it does reproduce it.
TEST_F(Library, AFailureIsTriedAgainInAFreshProcess) {
  std::ofstream cases(folder_ / "cases");
  for (int rows = 5; rows > 1; --rows) cases << "attention b=1 h=1 l=" << rows << "x9 d=5/3\n";
  cases.close();
  const std::string all = "--jobs 1 --cases " + (folder_ / "cases").string();
  const std::string library = folder_ / "it's wrong later.so";
  fs::rename(built("is_wrong_after_more_rows"), library);
  const Ran later = check('"' + library + '"', all);
  EXPECT_EQ(later.status, 1) << later.output;
  EXPECT_THAT(later.output, HasSubstr("; in a fresh process: pass, so what the library keeps from "
                                      "the "));
  const std::string mark = "reproduce: assay ";
  const auto at = later.output.find(mark);
  ASSERT_NE(at, std::string::npos) << later.output;
  const auto begin = at + mark.size();
  const Ran again =
      run_line(ASSAY_COMMAND " " + later.output.substr(begin, later.output.find('\n', at) - begin));
  EXPECT_EQ(again.status, 1) << again.output;
  const Ran always = check(built("writes_nothing"), all);
  EXPECT_THAT(always.output, HasSubstr("4 cases: 0 passed, 4 failed"));
  EXPECT_THAT(always.output, HasSubstr("(in a fresh process too)"));
}

// The cases pass in their order, in one process. In the other order they do not.
TEST_F(Library, CasesRunInTheOtherOrderToo) {
  std::ofstream cases(folder_ / "cases");
  for (int rows = 2; rows < 6; ++rows) cases << "attention b=1 h=1 l=" << rows << "x9 d=5/3\n";
  cases.close();
  const std::string all = "--jobs 1 --cases " + (folder_ / "cases").string();
  const Ran r = check(built("is_wrong_after_more_rows"), all);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output,
              HasSubstr("; in a fresh process: pass, so what the library keeps from the "));
  EXPECT_THAT(r.output, HasSubstr("4 cases: 1 passed, 3 failed"));
  const Ran right = check(built("none"), all);
  EXPECT_EQ(right.status, 0) << right.output;
  EXPECT_THAT(right.output, HasSubstr("state between calls: asked of 4 of 4 cases"));
}

TEST_F(Library, WhatItKeepsBetweenCallsIsFound) {
  for (const auto& [mistake, words] : std::vector<std::pair<const char*, const char*>>{
           {"is_wrong_from_call_51", "fail: relation many-calls violated: from call "},
           {"is_wrong_in_its_first_call", "is outside its bound: O[b=0, h=0, row=0"},
           {"is_an_ulp_off_in_its_first_call",
            "fail: the first of 8 runs differs from the others, which agree: O[b=0, h=0, row=0"},
           {"keeps_values_by_address", "relation negated-values violated: O["},
           {"uses_a_static_buffer", "fail: relation two-at-once violated: "},
           {"leaks_descriptors",
            "fail: relation many-calls violated: 150 calls of the same problem keep 150 "
            "descriptors"},
#ifndef ASSAY_SANITIZED  // whose allocator does not say what it has given away
           {"leaks", "fail: relation many-calls violated: 150 calls of the same problem keep "},
#endif
       }) {
    const Ran r = check(built(mistake));
    EXPECT_EQ(r.status, 1) << mistake << ": " << r.output;
    EXPECT_THAT(r.output, HasSubstr(words)) << mistake;
  }
  const Ran said = check(built("says_that_it_uses_a_static_buffer"));
  EXPECT_EQ(said.status, 0) << said.output;
  const Ran right = check(built("none"), "--json " + (folder_ / "run.json").string() +
                                             " --case 'attention b=1 h=1 l=7x9 d=5/3'");
  EXPECT_EQ(right.status, 0) << right.output;
  const auto relations =
      nlohmann::json::parse(std::ifstream(folder_ / "run.json"))["results"][0]["relations"];
  for (const char* name : {"other-contents", "first-call", "two-at-once", "many-calls"})
    EXPECT_EQ(relations[name]["result"], "held") << name << relations;
}

// A right kernel adds up in an order that depends on something. This is no fault, unless it
// promises that its bits do not depend on that, or the run requires it. The failure tells two
// calls.
TEST_F(PartialLibrary, WhatIsPromisedIsAskedBitForBit) {
  const std::string& library = library_;
  const char *paged = "attention b=3 h=4/2 l=5x40 d=8 causal offset=end cache=paged:16",
             *unequal =
                 "attention b=3 h=4/2 l=5x40 d=8 causal offset=lengths cache=paged:16 "
                 "lengths=40,17,23";
  struct Habit {
    const char *name, *kind, *line, *requirement, *relation, *bits;
  };
  for (const Habit& h : {
           Habit{"batch", "plain-f32", "attention b=3 h=2 l=9x40 d=8", "batch-invariant",
                 "batch-alone", "1"},
           {"position", "plain-f32", "attention b=3 h=2 l=9x40 d=8", "position-invariant",
            "batch-reversed", "2"},
           {"padding", "lengths-bf16", "attention b=2 h=2 l=9x40 d=8 dtype=bf16",
            "padding-invariant", "longer-keys", "4"},
           {"rows", "plain-f32", "attention b=2 h=2 l=9x40 d=8", "split-invariant", "row-alone",
            "16"},
           {"layout", "strided-f32", "attention b=2 h=2 l=9x40 d=64", "layout-invariant",
            "other-layout", "64"},
           {"batch", "paged-f32", paged, "batch-invariant", "batch-alone", "1"},
           {"batch", "paged-f32", unequal, "batch-invariant", "batch-alone", "1"},
           {"position", "paged-f32", paged, "position-invariant", "batch-reversed", "2"},
           {"position", "paged-f32", unequal, "position-invariant", "batch-reversed", "2"},
           {"padding", "paged-f32", paged, "padding-invariant", "longer-keys", "4"},
           {"padding", "paged-f32", unequal, "padding-invariant", "longer-keys", "4"},
           {"rows", "paged-f32", paged, "split-invariant", "row-alone", "16"},
           {"layout", "paged-f32", paged, "layout-invariant", "other-layout", "64"},
           {"batch", "backward-f32", "backward b=3 h=2 l=9x40 d=8", "batch-invariant",
            "batch-alone", "1"},
           {"position", "backward-f32", "backward b=3 h=2 l=9x40 d=8", "position-invariant",
            "batch-reversed", "2"},
       }) {
    setenv("ASSAY_PARTIAL", h.kind, 1);
    setenv("ASSAY_PARTIAL_HABIT", h.name, 1);
    const std::string one = " --case '" + std::string(h.line) + "'",
                      violated = "fail: relation " + std::string(h.relation) + " violated: ";
    const std::string required = std::string("--require ") + h.requirement + one;
    const Ran free = check(library, "--explain" + one);
    EXPECT_EQ(free.status, 0) << h.name << free.output;
    EXPECT_THAT(free.output, HasSubstr(std::string("relation ") + h.relation +
                                       ": not applicable: not promised, and differs: "));
    EXPECT_THAT(free.output, HasSubstr("bits depend on "));
    const Ran asked = check(library, required);
    EXPECT_EQ(asked.status, 1) << h.name << asked.output;
    EXPECT_THAT(asked.output, HasSubstr(violated));
    EXPECT_THAT(asked.output, HasSubstr(std::string(" --require ") + h.requirement));
    setenv("ASSAY_PARTIAL_PROMISES", h.bits, 1);
    const Ran promised = check(library, one);
    EXPECT_EQ(promised.status, 1) << h.name << promised.output;
    EXPECT_THAT(promised.output, HasSubstr(violated));
    unsetenv("ASSAY_PARTIAL_HABIT");  // now the promise is kept
    const Ran kept = check(library, required);
    EXPECT_EQ(kept.status, 0) << h.name << kept.output;
    EXPECT_THAT(kept.output, HasSubstr("bits do not depend on: "));
    unsetenv("ASSAY_PARTIAL_PROMISES");
  }
  const Ran nobody = check(library, "--require page-invariant --case 'attention b=2 h=2 l=9 d=64'");
  EXPECT_EQ(nobody.status, 2) << nobody.output;
  EXPECT_THAT(nobody.output,
              HasSubstr("--require=page-invariant: asked of no case: no case has it"));
  setenv("ASSAY_PARTIAL_VARIANTS", "2", 1);
  const std::string one = " --case 'attention b=2 h=2 l=9x40 d=64'";
  const Ran two = check(library, one);
  EXPECT_EQ(two.status, 0) << two.output;
  setenv("ASSAY_PARTIAL_VARIANTS", "3", 1);
  const Ran three = check(library, one);
  EXPECT_EQ(three.status, 1) << three.output;
  EXPECT_THAT(three.output, HasSubstr("fail: relation variants violated: variant 2: O is outside"));
  unsetenv("ASSAY_PARTIAL_VARIANTS");
}

// Rows behind the last of a block have Q = 0 and dO = 0, and weights of e^(0 - LSE), which are
// infinite where the LSE of the last row is below -88.7.
TEST_F(Library, PhantomRowsShowWhereverScoresAreNegative) {
  const std::string library = partial("partial_kernels");
  const Variable kind("ASSAY_PARTIAL", "backward-f32");
  for (const char* dim : {"16", "32", "64", "128"}) {
    const std::string one =
        std::string(" --case 'backward b=1 h=2 l=1x128 d=") + dim + " scores=negative'";
    const Ran right = check(library, one);
    EXPECT_EQ(right.status, 0) << right.output;
    const Variable fault("ASSAY_PARTIAL_FAULT", "phantom-rows");
    const Ran wrong = check(library, one);
    EXPECT_EQ(wrong.status, 1) << dim << wrong.output;
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

// The writer stores by the rule, and the reader is right on pages that the harness wrote. Together,
// or where sequences share pages, they are wrong.
TEST_F(Library, WriterAndReaderAreJudgedTogether) {
  const std::string library = partial("partial_caches"), json = folder_ / "run.json";
  struct Fault {
    const char *kind, *fault, *line, *relation;
  };
  for (const Fault& f :
       {Fault{"newest-f8-f32", "newest-unrounded",
              "attention b=2 h=4/2 l=1x40 d=8 offset=end cache=contiguous store=f8e4m3:f32",
              "own-pages"},
        {"owners-f32", "one-owner", "attention b=3 h=4/2 l=1x40 d=8 offset=end cache=paged:16",
         "shared-pages"}}) {
    const Variable kind("ASSAY_PARTIAL", f.kind);
    const std::string one = std::string(" --case '") + f.line + "'";
    const Ran right = check(library, "--json " + json + one);
    EXPECT_EQ(right.status, 0) << right.output;
    EXPECT_EQ(relations_in(json)[f.relation]["result"], "held") << relations_in(json);
    const Variable fault("ASSAY_PARTIAL_FAULT", f.fault);
    const Ran wrong = check(library, "--explain" + one);
    EXPECT_EQ(wrong.status, 1) << wrong.output;
    EXPECT_THAT(wrong.output, HasSubstr(std::string("relation ") + f.relation + ": violated: "));
  }
}

// Quantizers, dequantizers, writers of pages and products of codes are asked what they keep, and
// which calls they refuse.
TEST_F(Library, OperationsThatARuleGivesAreAskedWhatTheyKeepAndRefuse) {
  const std::string library = partial("partial_writers"), json = folder_ / "run.json";
  struct Asked {
    const char *kind, *line, *prefix;
  };
  for (const Asked& a :
       {Asked{"quantize-mxfp4", "product m=2 n=24 k=64 w=mxfp4", "quantize-"},
        {"dequantize-nvfp4", "product m=2 n=24 k=64 w=nvfp4", "dequantize-"},
        {"append-f8", "attention b=2 h=4/2 l=1x9 d=8 offset=end cache=paged:4 store=f8e4m3",
         "append-"},
        {"mxfp4-by-mxfp4", "product m=2 n=24 k=64 w=mxfp4 a=mxfp4", ""}}) {
    const Variable kind("ASSAY_PARTIAL", a.kind);
    const std::string one = std::string(" --case '") + a.line + "'", prefix = a.prefix;
    const Ran right = check(library, "--json " + json + one);
    EXPECT_EQ(right.status, 0) << right.output;
    for (const char* name : {"many-calls", "other-contents", "first-call", "two-at-once"})
      EXPECT_EQ(relations_in(json)[prefix + name]["result"], "held") << a.kind << name;
    for (const auto& [habit, relation] :
         std::vector<std::pair<const char*, const char*>>{{"keeps", "other-contents"},
#ifndef ASSAY_SANITIZED  // whose allocator does not say what it has given away
                                                          {"leaks", "many-calls"},
#endif
                                                          {"stops", "many-calls"},
                                                          {"shares", "two-at-once"}}) {
      const Variable with("ASSAY_PARTIAL_HABIT", habit);
      const Ran r = check(library, one);
      EXPECT_EQ(r.status, 1) << a.kind << ' ' << habit << r.output;
      EXPECT_THAT(r.output, HasSubstr("fail: relation " + prefix + relation + " violated: "))
          << a.kind << ' ' << habit;
    }
    const Ran answers = check(library, "--refusals" + one);
    EXPECT_EQ(answers.status, 1) << answers.output;
    EXPECT_THAT(answers.output,
                testing::ContainsRegex("fail: [0-9]+ of [0-9]+ calls that cannot be are not "
                                       "refused: .*" +
                                       prefix + "refuses-"));
    const Variable with("ASSAY_PARTIAL_HABIT", "refuses");
    const Ran refuses = check(library, "--refusals --json " + json + one);
    EXPECT_EQ(refuses.status, 0) << refuses.output;
    EXPECT_EQ(relations_in(json)[prefix + "refuses-null-codes"]["result"],
              prefix == "append-" ? nlohmann::json() : nlohmann::json("held"));
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
TEST_F(Library, WhatIsComputedFromPoisonWasWritten) {
  const Ran r = check(built("computes_from_its_output"));
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, testing::Not(HasSubstr("was not written")));
}

TEST_F(Library, MustStayAsItIsDuringTheRun) {
  const std::string library = built("is_written_to");
  setenv("ASSAY_TEST_LIBRARY", library.c_str(), 1);
  const Ran r = check(library,
                      "--jobs 1 --case 'attention b=1 h=1 l=7x9 d=5/3' --case 'attention b=1 h=1 "
                      "l=8x9 d=5/3'");
  EXPECT_EQ(r.status, 3) << r.output;
  EXPECT_THAT(r.output, HasSubstr("2 cases: 0 passed, 0 failed, 2 errors"));
  EXPECT_THAT(r.output, HasSubstr("not judged: the library's file changed during the run"));
  unsetenv("ASSAY_TEST_LIBRARY");
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
                testing::ContainsRegex("[1-9][0-9]* of [1-9][0-9]* cases of the whole suite need "
                                       "features that the candidate does not have: .*another dtype "
                                       "than fp32 \\([1-9]"));
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
