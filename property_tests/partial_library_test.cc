// Small kernels that do a part of an operation, or hold one habit or fault, as libraries.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <tuple>

#include "property_tests/kernel_library.h"

namespace assay {
namespace {

using testing::HasSubstr;

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

// dP and D are nearly the same, and D is a plain sum: its roundings, which no sum in lanes has, are
// all that these gradients have. Each was failed by evidence once.
TEST_F(PartialLibrary, GradientsOfWhatCancelsAreNotFailedByEvidence) {
  for (const auto& [kind, line] : {
           std::pair{"backward-grouped-f32",
                     "backward b=2 h=3/1 l=2x5 d=192/128 dtype=f32 causal scores=growing "
                     "values=balanced grad=balanced seed=179"},
           std::pair{"backward-no-lse-f32",
                     "backward b=3 h=5 l=63x128 d=192/128 dtype=f32 softcap=50 causal "
                     "scores=key-sink values=one-hot grad=ramp seed=378"},
           std::pair{"backward-sink-f32",
                     "backward b=2 h=3/1 l=77 d=192/128 dtype=f32 causal offset=end sink=0.5 "
                     "scores=growing values=ones grad=ones seed=192"},
       }) {
    const Ran right = judged(kind, line);
    EXPECT_EQ(right.status, 0) << right.output;
    EXPECT_THAT(right.output, HasSubstr("errors are typical")) << line;
  }
}

// The ladder forgives weights that are rounded to the dtype of A. A kernel that declares that it
// rounds none is held to that.
TEST_F(PartialLibrary, ADeclaredProductIsHeldToItsArithmetic) {
  const std::string line = "product m=9 n=24 k=256 w=int4:64 dtype=f16";
  const Ran right = judged("int4-f16", line);
  EXPECT_EQ(right.status, 0) << right.output;
  const Ran wrong = judged("int4-f16", line, "rounds-weights");
  EXPECT_EQ(wrong.status, 1) << wrong.output;
  EXPECT_THAT(wrong.output, HasSubstr("int4-f16, as its library declares it"));
  EXPECT_THAT(wrong.output, HasSubstr("fail, "));
}

// Each product of a batch has weights of its own, and A may have any stride from one to the next.
TEST_F(PartialLibrary, EveryProductOfABatchIsJudged) {
  const std::string line = "product m=5 n=24 k=96 w=mxfp4 layout=a:padded,c:strided";
  const Ran right = judged("batched-mxfp4-f32", line);
  EXPECT_EQ(right.status, 0) << right.output;
  for (const auto& [fault, words] : std::map<const char*, const char*>{
           {"first-of-the-batch", "product 1 of a batch of 3: C is "},
           {"scales-of-the-first", "product 1 of a batch of 3: C is "},
           {"dense-batches", "product 1 of a batch of 3: C is "},
           {"last-forgotten", "product 2 of a batch of 3: C was not written: "}}) {
    const Ran wrong = judged("batched-mxfp4-f32", line, fault);
    EXPECT_EQ(wrong.status, 1) << fault << wrong.output;
    EXPECT_THAT(wrong.output, HasSubstr(std::string("relation batch violated: ") + words)) << fault;
  }
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

// Variant 0 does the forward pass alone. Both passes are judged with variant 1, which does both.
TEST_F(PartialLibrary, BothPassesAreThoseOfOneVariant) {
  const Variable variants("ASSAY_PARTIAL_VARIANTS", "2"),
      habit("ASSAY_PARTIAL_HABIT", "gradients-later");
  const std::string line = "backward b=2 h=2 l=9x24 d=16 layout=g:strided";
  const Ran right = judged("backward-f32", line);
  EXPECT_EQ(right.status, 0) << right.output;
  EXPECT_THAT(right.output, HasSubstr("576 of O, 36 of LSE, 576 of dQ, "));
  EXPECT_EQ(judged("backward-f32", line, "d-o-as-o").status, 1);
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

// What a wrong quantizer does is told from the bytes that it wrote.
TEST_F(Library, FaultsOfQuantizersAreNamed) {
  const std::string library = partial("partial_writers");
  struct Named {
    const char *kind, *fault, *words;
  };
  for (const Named& f :
       {Named{"quantize-mxfp4", "ties-away", "ties are rounded away from zero"},
        {"quantize-mxfp4", "wraps", "numbers beyond the largest code do not saturate"},
        {"quantize-mxfp4", "ceil-for-floor", "scales follow the rule ceil, and floor is the one"},
        {"quantize-mxfp4", "swapped", "pairs of codes have each other's place"},
        {"quantize-mxfp4-rceil", "floor-for-rceil", "scales follow the rule floor, and rceil"},
        {"quantize-mxfp4-even", "ceil-for-even", "scales follow the rule ceil, and even"},
        {"quantize-mxfp8", "ties-away", "ties are rounded away from zero"},
        {"quantize-nvfp4", "reciprocal", "multiplied by the inverse of the scale"},
        {"quantize-nvfp4", "wraps", "numbers beyond the largest code do not saturate"},
        {"quantize-int8", "reciprocal", "multiplied by the inverse of the scale"},
        {"quantize-int8", "ties-away", "ties are rounded away from zero"},
        {"quantize-int8", "truncated-zero", "right for the zero points that were written"}}) {
    const std::string format = std::string(f.kind).substr(9, 5), w = format == "mxfp8"  ? "f8e4m3"
                                                                     : format == "int8" ? "int8"
                                                                                        : format;
    const Variable kind("ASSAY_PARTIAL", f.kind);
    const std::string one = "--case 'product m=2 n=24 k=200 w=" + w + "'";
    // The rule of scales is asked for before anything is held to it, in a library's first call too.
    const Ran right = check(library, one);
    EXPECT_EQ(right.status, 0) << f.kind << right.output;
    const Variable fault("ASSAY_PARTIAL_FAULT", f.fault);
    const Ran r = check(library, one);
    EXPECT_EQ(r.status, 1) << f.kind << ' ' << f.fault << r.output;
    EXPECT_THAT(r.output, HasSubstr(f.words)) << f.kind << ' ' << f.fault;
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

}  // namespace
}  // namespace assay
