// Conventions: what is right by another convention is told as such where nothing is declared,
// passes where it is declared, and fails where something else is declared. What no convention
// covers fails in any case.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "harness/records/record.h"
#include "problem/conventions.h"
#include "property_tests/run_command.h"
#include "testing/matchers.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// ---- The declaration ----

TEST(Conventions, TextsAndLinesSayThem) {
  const Conventions c = Conventions::parse("masked-lse:-inf,masked-rows:mean-of-v");
  EXPECT_EQ(c.of<MaskedRows>(), MaskedRows::mean_of_v);
  EXPECT_TRUE(c.declares(Convention::masked_lse));
  EXPECT_FALSE(c.declares(Convention::anchor));
  EXPECT_EQ(c.names(), (std::vector<std::string>{"masked-rows:mean-of-v", "masked-lse:-inf"}));
  const std::string line =
      "attention b=1 h=1 l=4 d=2 dtype=f32 convention=masked-rows:mean-of-v,masked-lse:-inf";
  EXPECT_EQ(parse_case(line).conventions, c);
  EXPECT_EQ(print_case(parse_case(line)), line);
  for (const ConventionRow& row : table_of<Convention>)
    for (std::size_t k = 0; k < row.values.size(); ++k) {
      Conventions one;
      one.declare(row.value, k);
      EXPECT_EQ(Conventions::parse(name_of_value(row.value, k)), one);
    }
}

TEST(Conventions, WrongTextsAreRefused) {
  for (const auto& [text, words] : std::vector<std::pair<const char*, const char*>>{
           {"", "'' is no convention; they are masked-rows, masked-lse, masked-nan, anchor, "},
           {"mean", "'mean' is no convention"},
           {"masked-rows", "masked-rows: is none of zero, mean-of-v"},
           {"masked-lse:nan", "masked-lse:nan is none of -inf, inf, zero, any"},
           {"anchor:top-left,anchor:top-left", "anchor stands twice"}}) {
    try {
      Conventions::parse(text);
      ADD_FAILURE() << text;
    } catch (const ConventionError& e) {
      EXPECT_THAT(e.what(), HasSubstr(words));
    }
  }
  for (const char* field : {"convention=masked-rows", "convention=anchor:left",
                            "convention=anchor:top-left,anchor:top-left"})
    EXPECT_THROW(parse_case(std::string("attention b=1 h=1 l=4 d=2 ") + field), CaseError) << field;
  EXPECT_THROW(parse_case("product m=1 n=8 k=32 convention=anchor:top-left"), CaseError);
}

// ---- Kernels with conventions ----

// A case of each mask under which some rows see no key, and some see a few.
constexpr const char* masked =
    "attention b=2 h=4/2 l=9x24 d=16 causal starts=5,3 bool=empty-rows@bhi";
// Rows 0 and 1 see keys, and each of their scores is -inf.
constexpr const char* weightless =
    "attention b=1 h=1 l=3 d=1/4 causal "
    "poke=k:0:0:0:0=1;k:0:0:1:0=2;k:0:0:2:0=0.5;q:0:0:0:0=-inf;q:0:0:1:0=-inf";
// Keys 17 and 12 are seen by no row, and by none of head 1.
constexpr const char* spread_backward =
    "backward b=1 h=2 l=9x24 d=16 causal poke=v:0:0:17:3=nan;k:0:1:12:0=inf";
constexpr const char* padded = "attention b=2 h=2 l=8x20 d=8 causal starts=4 lengths=11,17";

class ConventionKernel : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::temp_directory_path() / ("assay-convention-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
    library_ = (folder_ / "libconventions.so").string();
    const Ran r =
        run_line(std::string(ASSAY_CC) +
                 " -O1 -ffp-contract=off -shared -fPIC -I" ASSAY_SOURCE_DIR "/include -o " +
                 library_ + " " ASSAY_SOURCE_DIR "/property_tests/convention_kernel.c -lm");
    ASSERT_EQ(r.status, 0) << r.output;
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }
  void SetUp() override { declares(nullptr); }

  static void declares(const char* text) {
    if (text) setenv("ASSAY_DECLARES", text, 1);
    else unsetenv("ASSAY_DECLARES");
  }
  // Runs the kernel that means these words on a case.
  static Ran check(const std::string& words, const std::string& line,
                   const std::string& options = "") {
    setenv("ASSAY_MEANS", words.c_str(), 1);
    return run_line(std::string(ASSAY_COMMAND) + " check --no-shrink --kernel " + library_ + " " +
                    options + " --case '" + line + "'");
  }
  static std::string file(const char* name) { return (folder_ / name).string(); }

  static inline fs::path folder_;
  static inline std::string library_;
};

struct Meant {
  const char *words, *line, *convention, *declared, *otherwise;
  int status;  // where nothing is declared
};
const Meant meant[] = {
    {"rows-of-mean", masked, "masked-rows:mean-of-v", "masked_rows=2", "masked_rows=1", 1},
    {"rows-within", padded, "masked-rows:mean-within-lengths", "masked_rows=3", "masked_rows=2", 1},
    {"rows-unmasked", masked, "masked-rows:unmasked", "masked_rows=4", "masked_rows=2", 1},
    {"rows-of-nan", masked, "masked-rows:nan", "masked_rows=5", "masked_rows=2", 1},
    {"lse-inf", masked, "masked-lse:inf", "masked_lse=2", "masked_lse=3", 1},
    {"lse-zero", masked, "masked-lse:zero", "masked_lse=3", "masked_lse=1", 1},
    {"spreads", "attention b=1 h=2 l=9x24 d=16 causal poke=v:0:0:17:3=nan;k:0:1:12:0=inf",
     "masked-nan:spreads", "masked_nan=2", "masked_nan=1", 0},
    {"bottom-right", "attention b=2 h=2 l=9x24 d=16 causal", "anchor:bottom-right", "anchor=2",
     "anchor=1", 1},
    {"end-of-lengths", "attention b=2 h=2 l=9x24 d=16 causal lengths=15,20",
     "anchor:end-of-lengths", "anchor=3", "anchor=2", 1},
    {"flushes", "attention b=1 h=1 l=4x1 d=4 poke=v:0:0:0:0=4e-40;v:0:0:0:2=-9e-39",
     "subnormals:flushed", "subnormals=2", "subnormals=1", 0},
    {"weightless-zero", weightless, "weightless-rows:zero", "weightless_rows=2",
     "weightless_rows=1", 0},
    {"weightless-mean", weightless, "weightless-rows:mean-of-v", "weightless_rows=3",
     "weightless_rows=4", 0},
    {"weightless-visible", weightless, "weightless-rows:mean-of-visible", "weightless_rows=4",
     "weightless_rows=2", 0},
    {"weightless-lse-inf", weightless, "weightless-lse:inf", "weightless_lse=2", "weightless_lse=1",
     0},
    {"weightless-lse-zero", weightless, "weightless-lse:zero", "weightless_lse=3",
     "weightless_lse=4", 0},
    {"weightless-lse-nan", weightless, "weightless-lse:nan", "weightless_lse=4", "weightless_lse=2",
     0},

    {"spreads", spread_backward, "masked-nan:spreads", "masked_nan=2", "masked_nan=1", 0},
    {"backward-spreads", spread_backward, "masked-nan:spreads", "masked_nan=2", "masked_nan=1", 0},
    {"backward-spreads", "backward b=1 h=1 l=9x24 d=8 causal poke=q:0:0:3:1=nan",
     "masked-nan:spreads", "masked_nan=2", "masked_nan=1", 0},
    {"backward-spreads", "backward b=1 h=1 l=9x24 d=8 causal poke=g:0:0:3:1=inf",
     "masked-nan:spreads", "masked_nan=2", "masked_nan=1", 0},
};

TEST_F(ConventionKernel, OursPassesUndeclaredAndDeclared) {
  for (const char* line : {masked, padded, weightless}) {
    Ran r = check("", line);
    EXPECT_EQ(r.status, 0) << r.output;
    EXPECT_THAT(r.output, HasSubstr("1 case: 1 passed, 0 failed; "));
    declares(
        "masked_rows=1,masked_lse=1,masked_nan=1,anchor=1,subnormals=1,weightless_rows=1,"
        "weightless_lse=1");
    r = check("", line);
    EXPECT_EQ(r.status, 0) << r.output;
    declares(nullptr);
  }
}

TEST_F(ConventionKernel, UndeclaredIsToldAsAConvention) {
  for (const Meant& m : meant) {
    const Ran r = check(m.words, m.line);
    EXPECT_EQ(r.status, m.status) << m.words << "\n" << r.output;
    EXPECT_THAT(r.output,
                HasSubstr(std::string("convention: differs by convention: ") + m.convention))
        << m.words;
    EXPECT_THAT(r.output, HasSubstr("0 passed, 0 failed, 1 right by another convention"))
        << m.words;
  }
}

TEST_F(ConventionKernel, DeclaredPassesByTheTableTheLineAndTheOption) {
  for (const Meant& m : meant) {
    declares(m.declared);
    Ran r = check(m.words, m.line);
    EXPECT_EQ(r.status, 0) << m.words << "\n" << r.output;
    EXPECT_THAT(r.output, HasSubstr("1 case: 1 passed, 0 failed; ")) << m.words;
    declares(nullptr);
    r = check(m.words, std::string(m.line) + " convention=" + m.convention);
    EXPECT_EQ(r.status, 0) << m.words << "\n" << r.output;
    r = check(m.words, m.line, std::string("--accept-convention ") + m.convention);
    EXPECT_EQ(r.status, 0) << m.words << "\n" << r.output;
    EXPECT_THAT(r.output, HasSubstr(std::string(" convention=") + m.convention)) << m.words;
  }
}

// A kernel of ours that declares another convention is wrong as well. Two conventions only permit:
// a kernel that does not make use of them is right.
TEST_F(ConventionKernel, WronglyDeclaredFails) {
  for (const Meant& m : meant) {
    declares(m.otherwise);
    Ran r = check(m.words, m.line);
    EXPECT_EQ(r.status, 1) << m.words << "\n" << r.output;
    EXPECT_THAT(r.output, HasSubstr("0 passed, 1 failed")) << m.words;
    const std::string name = m.convention;
    if (name == "masked-nan:spreads" || name == "subnormals:flushed") continue;
    declares(m.declared);
    r = check("", m.line);
    EXPECT_EQ(r.status, 1) << m.words << "\n" << r.output;
    EXPECT_THAT(r.output, HasSubstr("fail, proved: ")) << m.words;
  }
}

TEST_F(ConventionKernel, SeveralAtOnceAreEachTold) {
  const Ran r = check("rows-of-mean lse-zero", masked);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("masked-rows:mean-of-v (O of a row that sees no key), "
                                  "masked-lse:zero (LSE of a row that sees no key)"));
  EXPECT_THAT(r.output, HasSubstr("convention=masked-rows:mean-of-v,masked-lse:zero"));
}

TEST_F(ConventionKernel, AnyIsDeclaredAndNeverFound) {
  for (const auto& [words, line, declared] : std::vector<std::array<const char*, 3>>{
           {"rows-of-seven", masked, "masked-rows:any"},
           {"rows-of-both", masked, "masked-rows:any"},
           {"lse-seven", masked, "masked-lse:any"},
           {"weightless-seven", weightless, "weightless-rows:any"},
           {"weightless-lse-seven", weightless, "weightless-lse:any"}}) {
    Ran r = check(words, line);
    EXPECT_EQ(r.status, 1) << words << "\n" << r.output;
    EXPECT_THAT(r.output, AllOf(HasSubstr("fail, proved: "), HasSubstr("1 failed"))) << words;
    // What may be anything is not compared in other calls either.
    const bool one_sequence = line == weightless;
    r = check(words, std::string(line) + " convention=" + declared,
              std::string("--require chunk-invariant,layout-invariant") +
                  (one_sequence ? "" : ",batch-invariant,position-invariant"));
    EXPECT_EQ(r.status, 0) << words << "\n" << r.output;
  }
}

// A convention excuses nothing beyond itself.
TEST_F(ConventionKernel, FaultsAreNoConventions) {
  const std::string all =
      "--accept-convention "
      "masked-rows:any,masked-lse:any,masked-nan:spreads,subnormals:flushed";
  for (const auto& [words, line] : std::vector<std::pair<const char*, const char*>>{
           {"nan-in-row-0", "attention b=1 h=2 l=9x24 d=16 causal"},
           {"spreads-beyond", "attention b=1 h=2 l=9x24 d=16 lengths=15 hidden=nan"},
           {"spreads-beyond", "attention b=1 h=2 l=9x24 d=16 starts=5 hidden=inf"},
           {"spreads rows-of-nan nan-in-row-0",
            "attention b=1 h=2 l=9x24 d=16 causal starts=5 offset=end poke=v:0:0:23:3=nan"},
           {"flushes-more", "attention b=1 h=1 l=4x1 d=4 poke=v:0:0:0:0=1e-35"},
           // A NaN of V reaches dQ of the rows that do not see it and dK of its own key; in this
           // case no other element of head 0.
           {"backward-spreads nan-in-dk", spread_backward},
           {"backward-spreads nan-in-dv", spread_backward},
           {"backward-spreads nan-in-dq",
            "backward b=1 h=1 l=9x24 d=8 causal lengths=12 poke=v:0:0:17:3=nan"},
           {"backward-spreads nan-in-dq", "backward b=1 h=1 l=9x24 d=8 causal poke=g:0:0:3:1=nan"},
           {"backward-spreads seven-in-dq", spread_backward},
           {"backward-spreads-beyond", "backward b=1 h=2 l=9x24 d=16 lengths=15 hidden=nan"}}) {
    for (const std::string& options : {std::string(), all}) {
      const Ran r = check(words, line, options);
      EXPECT_EQ(r.status, 1) << words << " " << options << "\n" << r.output;
      EXPECT_THAT(r.output, HasSubstr("1 failed")) << words << " " << options;
    }
  }
}

TEST_F(ConventionKernel, TheExitStatusIsAnOption) {
  const auto status = [](const char* words, const char* line, const char* rule) {
    return check(words, line, std::string("--conventions ") + rule).status;
  };
  const Meant &rows = meant[0], &nan = meant[6];
  EXPECT_EQ(status(rows.words, rows.line, "fail"), 1);
  EXPECT_EQ(status(rows.words, rows.line, "warn"), 0);
  EXPECT_EQ(status(rows.words, rows.line, "accept"), 0);
  EXPECT_EQ(status(nan.words, nan.line, "fail"), 1);
  EXPECT_EQ(status(nan.words, nan.line, "warn"), 0);
  EXPECT_EQ(status(nan.words, nan.line, "never"), 2);
  EXPECT_THAT(check("", masked, "--accept-convention rows:0").output,
              HasSubstr("'rows:0' is no convention"));
}

// Each convention is listed once for the run, with the option that accepts it.
TEST_F(ConventionKernel, ReportsListThem) {
  const std::string two = std::string(masked) + "' --case '" + padded;
  const std::string files = "--json " + file("run.json") + " --junit " + file("run.xml") +
                            " --markdown " + file("run.md") + " --html " + file("run.html");
  const Ran r = check("rows-of-nan", two, files);
  EXPECT_EQ(r.status, 1) << r.output;
  const char* sentence =
      "differs by convention: masked-rows:nan (O of a row that sees no key) in 2 cases; accept it "
      "with --accept-convention masked-rows:nan";
  EXPECT_THAT(r.output, HasSubstr(sentence));
  EXPECT_THAT(r.output, HasSubstr("2 cases: 0 passed, 0 failed, 2 right by another convention"));
  const auto text_of = [](const std::string& path) {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const nlohmann::json run = nlohmann::json::parse(text_of(file("run.json")));
  EXPECT_EQ(run["summary"]["by_convention"], 2);
  EXPECT_EQ(run["summary"]["conventions"][0]["convention"], "masked-rows:nan");
  EXPECT_EQ(run["summary"]["conventions"][0]["rule"], "fail");
  EXPECT_EQ(run["results"][0]["outcome"], "convention");
  EXPECT_EQ(run["results"][0]["differs"], nlohmann::json::array({"masked-rows:nan"}));
  EXPECT_THAT(text_of(file("run.xml")),
              AllOf(HasSubstr("failures=\"2\""), HasSubstr("<failure type=\"convention\"")));
  EXPECT_THAT(text_of(file("run.md")), AllOf(HasSubstr("❌"), HasSubstr("masked-rows:nan")));
  EXPECT_THAT(text_of(file("run.html")), HasSubstr("masked-rows:nan"));
  check("rows-of-nan", two, "--conventions warn " + files);
  EXPECT_THAT(text_of(file("run.xml")),
              AllOf(HasSubstr("failures=\"0\""), HasSubstr("<system-out>differs by convention")));
}

// A table of version 1 is shorter, and declares nothing. What lies behind it is not read.
TEST_F(ConventionKernel, ATableOfVersion1Loads) {
  setenv("ASSAY_TABLE", "1", 1);
  declares("masked_rows=5");
  Ran r = check("", masked);
  EXPECT_EQ(r.status, 0) << r.output;
  r = check("rows-of-nan", masked);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("differs by convention: masked-rows:nan"));
  unsetenv("ASSAY_TABLE");
  r = check("rows-of-nan", masked);
  EXPECT_EQ(r.status, 0) << r.output;
}

// A struct of an older header has five conventions. What lies behind it is not read.
TEST_F(ConventionKernel, AShorterStructOfConventionsLoads) {
  setenv("ASSAY_TABLE", "5", 1);
  declares("masked_rows=5,weightless_rows=2");
  Ran r = check("rows-of-nan", masked);
  EXPECT_EQ(r.status, 0) << r.output;
  r = check("", weightless);
  EXPECT_EQ(r.status, 0) << r.output;
  unsetenv("ASSAY_TABLE");
  r = check("", weightless);
  EXPECT_EQ(r.status, 1) << r.output;
}

TEST_F(ConventionKernel, ADeclarationThatCannotBeIsRefused) {
  declares("masked_rows=7");
  Ran r = check("", masked);
  EXPECT_EQ(r.status, 2) << r.output;
  EXPECT_THAT(r.output, HasSubstr("its conventions have masked-rows = 7, outside [0, 6]"));
  declares("weightless_lse=6");
  r = check("", masked);
  EXPECT_EQ(r.status, 2) << r.output;
  EXPECT_THAT(r.output, HasSubstr("its conventions have weightless-lse = 6, outside [0, 5]"));
}

// 0 times a NaN of V is NaN in its column, also where the rows are 0 by convention. Nothing else
// is.
TEST_F(ConventionKernel, AWeightlessRowOf0MayMultiplyVBy0) {
  const std::string line = std::string(weightless) + ";v:0:0:0:2=nan";
  for (const char* words : {"weightless-zero", "weightless-times-v"}) {
    const Ran r = check(words, line + " convention=weightless-rows:zero");
    EXPECT_EQ(r.status, 0) << words << "\n" << r.output;
  }
  const Ran r = check("weightless-zero nan-in-row-0", line + " convention=weightless-rows:zero");
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("a row of O without weight is not 0"));
}

// The gradient of LSE is given to a kernel that takes it, and to no other.
TEST_F(ConventionKernel, DlseIsAskedOfKernelsThatTakeIt) {
  const char* line =
      "backward b=2 h=4/2 l=9x24 d=16 causal starts=3,0 dlse=normal layout=g:strided";
  Ran r = check("takes-dlse", line);
  EXPECT_EQ(r.status, 0) << r.output;
  EXPECT_THAT(r.output, HasSubstr("1 case: 1 passed, 0 failed; "));
  r = check("takes-dlse ignores-dlse", line);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("fail, proved: d"));
  r = check("", line);
  EXPECT_EQ(r.status, 2) << r.output;
  EXPECT_THAT(r.output, HasSubstr("the library takes no gradient of LSE"));
}

// Gradients alone begin with O and LSE of our kernel, whose diagonals lie where those of the
// library do. An anchor that is not declared cannot be found from gradients.
TEST_F(ConventionKernel, GradientsAloneHaveTheirAnchor) {
  setenv("ASSAY_TABLE", "gradients", 1);
  const char* line = "backward b=2 h=4/2 l=9x24 d=16 causal";
  Ran r = check("", line);
  EXPECT_EQ(r.status, 0) << r.output;
  r = check("bottom-right", line);
  EXPECT_EQ(r.status, 1) << r.output;
  EXPECT_THAT(r.output, HasSubstr("fail, proved: d"));
  r = check("bottom-right", std::string(line) + " convention=anchor:bottom-right");
  EXPECT_EQ(r.status, 0) << r.output;
  declares("anchor=2");
  r = check("bottom-right", line);
  EXPECT_EQ(r.status, 0) << r.output;
  r = check("", line);
  EXPECT_EQ(r.status, 1) << r.output;
  // Other conventions are not asked of O and LSE, which are ours.
  declares("masked_rows=2,masked_lse=3");
  r = check("", "backward b=2 h=4/2 l=9x24 d=16 causal starts=3,24");
  EXPECT_EQ(r.status, 0) << r.output;
  declares(nullptr);
  r = check("backward-spreads", spread_backward);
  EXPECT_THAT(r.output, HasSubstr("convention: differs by convention: masked-nan:spreads"));
  unsetenv("ASSAY_TABLE");
}

// What the documents say of our own kernels is declared by them.
TEST(Conventions, OurKernelsAreHeldToOurs) {
  const auto host = make_candidate("host");
  EXPECT_EQ(host->conventions(), Conventions::ours());
  EXPECT_THAT(execute(parse_case(masked), *host), Passes());
  const Case c = parse_case(std::string(masked) + " convention=masked-rows:mean-of-v");
  EXPECT_THAT(execute(c, *host), FailsWith("a fully masked row of O is not masked-rows:mean-of-v"));
}

// ---- The verdict ----

// Judges the outputs of our kernel after `change`, as those of a kernel that declares nothing.
template <class Change>
Verdict judged(const char* line, const Change& change, const Conventions& declared = {}) {
  const Case c = parse_case(line);
  const Inputs in(c);
  const Outputs out(c);
  const auto host = make_candidate("host");
  EXPECT_TRUE(host->run({ForwardCall{in.problem, out.view()}, execution_of(c)}).ok());
  change(in.problem, out);
  JudgeOptions options;
  options.conventions = declared;
  return judge(in.problem, out.view(), contract_ladder(c.dtype, 64).front(), options);
}

// cuDNN writes 0 for 4e-40 in bf16; here it is f32, in which our kernels never flush.
TEST(Conventions, FlushedOutputsAreHeldToTheLeastNormalNumber) {
  const char* line = "attention b=1 h=1 l=4x1 d=4 dtype=f32 poke=v:0:0:0:0=4e-40";
  Index written = 0;
  const auto flush_below = [&](double limit) {
    return [&written, limit](const Attention&, const Outputs& out) {
      const TensorView& o = out.o.view();
      for_each_index(o.shape, [&](Index b, Index h, Index i, Index d) {
        const Index at = o.at(b, h, i, d);
        const double x = load(o, at);
        if (x != 0 && std::fabs(x) < limit) store(o, at, 0), ++written;
      });
    };
  };
  Verdict v = judged(line, flush_below(0x1p-126));
  EXPECT_GT(written, 0);
  EXPECT_EQ(v.outcome, Outcome::convention) << v.reason;
  EXPECT_EQ(v.differs.of<Subnormals>(), Subnormals::flushed);
  Conventions flushed;
  flushed.declare(Subnormals::flushed);
  v = judged(line, flush_below(0x1p-126), flushed);
  EXPECT_EQ(v.outcome, Outcome::pass) << v.reason;
  v = judged(line, flush_below(0x1p-126), Conventions::ours());
  EXPECT_EQ(v.outcome, Outcome::fail) << v.reason;
}

// A processor that reads subnormal inputs as 0 has scores of 0 where ours are small, because the
// other factors are near the largest number. Beside these, an arithmetic that loses any operand may
// give anything; what this one gives is known.
TEST(Conventions, SubnormalInputsMayBeReadAs0) {
  const char* line =
      "attention b=1 h=1 l=2x5 d=128/96 dtype=f32 causal offset=end scores=near-overflow "
      "values=one-hot seed=268";
  const Case c = parse_case(line);
  const Inputs in(c), zeroed(c);
  Index lost = 0;
  for (const TensorView& t : {zeroed.problem.q, zeroed.problem.k, zeroed.problem.v})
    for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
      const Index at = t.at(b, h, i, d);
      if (load(t, at) == 0 || std::fabs(load(t, at)) >= 0x1p-126) return;
      store(t, at, 0);
      ++lost;
    });
  EXPECT_GT(lost, 0);
  const auto judge_outputs = [&](double error, const Conventions& declared) {
    const Outputs out(c);
    EXPECT_TRUE(make_candidate("host")->run({ForwardCall{zeroed.problem, out.view()}, 1}).ok());
    const Index at = out.o.view().at(0, 0, 1, 90);
    store(out.o.view(), at, load(out.o.view(), at) + error);
    JudgeOptions options;
    options.conventions = declared;
    return judge_by_ladder(in.problem, out.view(), 64, options);
  };
  const Verdict v = judge_outputs(0, {});
  EXPECT_EQ(v.outcome, Outcome::convention) << v.reason;
  EXPECT_EQ(v.differs.of<Subnormals>(), Subnormals::flushed);
  Conventions flushed;
  flushed.declare(Subnormals::flushed);
  EXPECT_THAT(judge_outputs(0, flushed), Passes());
  EXPECT_THAT(judge_outputs(0, Conventions::ours()), FailsWith("LSE is outside its bound"));
  // What reading inputs as 0 does not explain is not right.
  EXPECT_THAT(judge_outputs(0.01, {}), FailsWith("LSE is outside its bound"));
  EXPECT_THAT(judge_outputs(0.01, flushed), Fails());
}

// One element of one masked row decides.
TEST(Conventions, EveryMaskedRowMustFollowTheConvention) {
  const char* line = "attention b=1 h=2 l=6x12 d=4 starts=12";
  const auto means = [](double error) {
    return [error](const Attention& p, const Outputs& out) {
      const TensorView& o = out.o.view();
      for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) {
        double sum = 0;
        for (Index j = 0; j < p.shape.keys; ++j) sum += load(p.v, p.v.at(b, h, j, c));
        store(o, o.at(b, h, i, c), sum / 12 + (i == 5 && c == 3 ? error : 0));
      });
    };
  };
  Verdict v = judged(line, means(0));
  EXPECT_EQ(v.outcome, Outcome::convention) << v.reason;
  EXPECT_GT(v.worst_ratio(Output::o), 0);
  v = judged(line, means(1e-5));
  EXPECT_EQ(v.outcome, Outcome::fail) << v.reason;
  EXPECT_EQ(v.failures.count("a fully masked row of O is not 0"), 1);
}

// The mean of the visible keys is that of the keys that a bias does not hide, whatever it adds to
// others.
TEST(Conventions, AWeightlessRowMayHoldTheMeanOfItsVisibleKeys) {
  const char* line =
      "attention b=1 h=2 l=2x3 d=1/4 bias=normal@bhij "
      "poke=k:0:0:0:0=1;k:0:0:1:0=2;k:0:0:2:0=0.5;k:0:1:0:0=1;k:0:1:1:0=2;k:0:1:2:0=0.5;"
      "m:0:0:1:2=-inf;q:0:0:1:0=-inf;q:0:1:1:0=-inf";
  Index hidden = 0;
  const auto means = [&](double error) {
    return [&hidden, error](const Attention& p, const Outputs& out) {
      const TensorView& o = out.o.view();
      const double inf = std::numeric_limits<double>::infinity();
      for (Index h = 0; h < 2; ++h)
        for (Index c = 0; c < 4; ++c) {
          double sum = 0, count = 0;
          for (Index j = 0; j < 3; ++j) {
            if (load(p.bias, p.bias.at(0, h, 1, j)) == -inf) {
              ++hidden;
              continue;
            }
            sum += load(p.v, p.v.at(0, h, j, c));
            ++count;
          }
          store(o, o.at(0, h, 1, c), sum / count + (h == 1 && c == 3 ? error : 0));
        }
    };
  };
  Verdict v = judged(line, means(0));
  EXPECT_GT(hidden, 0);
  EXPECT_EQ(v.outcome, Outcome::convention) << v.reason;
  EXPECT_EQ(v.differs.of<WeightlessRows>(), WeightlessRows::mean_of_visible);
  v = judged(line, means(1e-5));
  EXPECT_EQ(v.outcome, Outcome::fail) << v.reason;
  v = judged(line, means(0), Conventions::parse("weightless-rows:mean-of-v"));
  EXPECT_EQ(v.outcome, Outcome::fail) << v.reason;
  EXPECT_EQ(v.failures.count("a row of O without weight is not weightless-rows:mean-of-v"), 1);
}

// ---- Records ----

// Left padding as a framework has it: a finite minimum is added at masked keys, so that a row that
// sees none holds the mean of V.
std::string left_padding(const std::string& path, const std::string& fields) {
  constexpr Index heads = 2, rows = 6, dim = 4, pad = 2;
  std::vector<float> q(heads * rows * dim), k(q.size()), v(q.size()), o(q.size());
  std::vector<std::uint8_t> keep(rows * rows);
  for (std::size_t e = 0; e < q.size(); ++e) {
    q[e] = static_cast<float>(std::sin(1.0 + static_cast<double>(e)));
    k[e] = static_cast<float>(std::cos(2.0 * static_cast<double>(e)));
    v[e] = static_cast<float>(std::sin(3.0 * static_cast<double>(e) + 0.5));
  }
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < rows; ++j) keep[usize(i * rows + j)] = j >= pad && j <= i;
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < rows; ++i) {
      std::array<double, rows> weight{};
      double sum = 0;
      for (Index j = 0; j < rows; ++j) {
        float s = 0;
        for (Index d = 0; d < dim; ++d)
          s += q[usize((h * rows + i) * dim + d)] * k[usize((h * rows + j) * dim + d)] / 2;
        if (!keep[usize(i * rows + j)]) s += -std::numeric_limits<float>::max();
        weight[usize(j)] = static_cast<double>(s);
      }
      const double m = *std::ranges::max_element(weight);
      for (double& w : weight) sum += w = std::exp(w - m);
      for (Index d = 0; d < dim; ++d) {
        double x = 0;
        for (Index j = 0; j < rows; ++j)
          x += weight[usize(j)] / sum * static_cast<double>(v[usize((h * rows + j) * dim + d)]);
        o[usize((h * rows + i) * dim + d)] = static_cast<float>(x);
      }
    }
  const auto tensor = [](const char* name, const char* dtype, std::vector<Index> shape,
                         const auto& data) {
    const std::size_t bytes = data.size() * sizeof data[0];
    return TensorToStore{name, dtype, std::move(shape), bytes,
                         [&data, bytes](const auto& put) { put(data.data(), bytes); }};
  };
  const std::vector<Index> shape = {1, heads, rows, dim};
  write_safetensors(
      path,
      {tensor("q", "F32", shape, q), tensor("k", "F32", shape, k), tensor("v", "F32", shape, v),
       tensor("o", "F32", shape, o), tensor("keep", "BOOL", {1, 1, rows, rows}, keep)},
      {{"assay", "1"}, {"record", "attention" + fields}});
  return path;
}

TEST_F(ConventionKernel, LeftPaddingOfARecordHoldsTheMeanOfV) {
  const auto verified = [](const std::string& fields, const Conventions& given = {}) {
    const RecordFile record(left_padding(file("padding.safetensors"), fields));
    VerifyOptions options;
    options.conventions = given;
    return verify(record, record.read(""), options);
  };
  CaseResult r = verified("");
  EXPECT_EQ(r.outcome, Outcome::convention) << r.reason;
  EXPECT_EQ(r.verdict.differs.names(), std::vector<std::string>{"masked-rows:mean-of-v"});
  EXPECT_THAT(verified(" convention=masked-rows:mean-of-v"), Passes());
  EXPECT_THAT(verified(" convention=masked-rows:zero"),
              FailsWith("a fully masked row of O is not 0"));
  EXPECT_THAT(verified(" convention=masked-rows:any"), Passes());
  EXPECT_THAT(verified("", Conventions::parse("masked-rows:mean-of-v")), Passes());
  EXPECT_THROW(verified(" convention=masked-rows:left"), FileError);
  const auto command = [](const std::string& options) {
    return run_line(std::string(ASSAY_COMMAND) + " verify " + file("padding.safetensors") + " " +
                    options);
  };
  left_padding(file("padding.safetensors"), "");
  EXPECT_EQ(command("").status, 1);
  EXPECT_EQ(command("--conventions warn").status, 0);
  EXPECT_EQ(command("--accept-convention masked-rows:mean-of-v").status, 0);
}

}  // namespace
}  // namespace assay
