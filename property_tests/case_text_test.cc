// What a terminal is told of one case: few lines, the words of proof and of evidence, and an
// explanation of every number.
#include "reports/case_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "harness/judging/execute.h"
#include "harness/results/told_arithmetic.h"
#include "harness/results/told_outcome.h"

namespace assay {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

CaseResult judged(const char* line, const char* candidate = "host") {
  return execute(parse_case(line), *make_candidate(candidate), ExecuteOptions{});
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + '\n';
  return text;
}

// A failure of which everything is known that can be.
CaseResult failure_of_everything() {
  CaseResult r;
  r.line = "attention b=1";
  r.outcome = Outcome::fail;
  r.reason = "O is outside its bound: O[b=0, h=0, row=0, column=0] = 1, exact 0, bound 0.1";
  r.reproduce = "assay check --case 'attention b=1'";
  Verdict& v = r.verdict;
  v.contract = "some arithmetic";
  v.inside = 7;
  v.outside = 5;
  v.hull_only = 2;
  v.rows_judged = 3;
  v.rows_total = 4;
  v.nan_found = 1;
  for (const Output output : values_of<Output>) {
    v.outputs[output].elements = 2;
    v.outputs[output].worst.bound = 0.1;
    v.outputs[output].worst.ratio = 10;
    v.evidence.rows[output] = {.s = 9, .median = 1, .limit = 4};
  }
  v.failures = {{"O is outside its bound", 4}, {"O is NaN", 1}};
  v.excused = {{"an overflow that the contract allows", 6}};
  v.evidence.arithmetic = "fp32 accumulation";
  v.evidence.fits = false;
  v.evidence.filters = {{"the newest key of each row is missing", 0.5, 40, 0.6}};
  v.evidence.questions = 300;
  for (const char* name : {"threads", "targets", "after-another"})
    r.relations[name] = Relation::violated("they differ");
  return r;
}

TEST(CaseText, APassIsToldInFiveLines) {
  for (const char* line :
       {"attention b=1 h=4/2 l=37x53 d=64 causal", "attention b=1 h=2 l=40 d=8 rows=4",
        "backward b=1 h=2 l=9x20 d=8 causal sink=1 bias=normal@hj", "product m=3 n=20 k=40 w=nvfp4",
        "attention b=1 h=1 l=4 d=4 poke=v:0:0:1:2=nan"}) {
    const CaseResult r = judged(line);
    const std::vector<std::string> told = told_case(r);
    EXPECT_TRUE(passed(r.outcome)) << line;
    EXPECT_LE(told.size(), 5u) << joined(told);
    EXPECT_THAT(joined(told), ContainsRegex("pass: every [a-z]+ is inside its bound"));
    EXPECT_THAT(joined(told), HasSubstr("; contract: " + r.verdict.contract + " (sums 2^-24 "));
    EXPECT_THAT(joined(told), HasSubstr("nearest to its bound: ")) << line;
    EXPECT_THAT(joined(told), HasSubstr("would have shown: ")) << line;
  }
  EXPECT_THAT(joined(told_case(judged("attention b=1 h=2 l=40 d=8 rows=4"))),
              HasSubstr(" (8 of 80 rows)"));
}

// One line is left for what a failure looks like.
TEST(CaseText, AFailureIsToldInTenLines) {
  const std::vector<std::string> told = told_case(failure_of_everything());
  EXPECT_LE(told.size(), 9u) << joined(told);
  EXPECT_EQ(told[1], "  fail, proved: " + failure_of_everything().reason);
  EXPECT_EQ(told.back(), "  reproduce: assay check --case 'attention b=1'");
  EXPECT_THAT(joined(told), HasSubstr("1 x O is NaN, 4 x O is outside its bound; 7 are inside"));
  EXPECT_THAT(joined(told), HasSubstr("2 without a bound of their own; 6 excused"));
  EXPECT_THAT(
      joined(told),
      HasSubstr("z of \"the newest key of each row is missing\" 40, limit 0; share 0.5 (counts "
                "from 0.6); 300 questions"));
  EXPECT_THAT(joined(told), HasSubstr("NaN: 1 found, 0 belong there"));
}

TEST(CaseText, WordsTellProofFromEvidence) {
  CaseResult r = failure_of_everything();
  EXPECT_EQ(outcome_words(r), "fail, proved");
  r.verdict.by_evidence = true;
  r.reason = "by evidence: inside every bound, but no arithmetic makes such errors: some";
  EXPECT_EQ(told_outcome(r),
            "fail, by evidence: inside every bound, but no arithmetic makes such errors: some");
  r.verdict = {};
  r.reason = "the candidate did not finish within 2 s";
  EXPECT_EQ(told_outcome(r), "fail: " + r.reason);
  EXPECT_EQ(told_case(r).size(), 3u);
  r.outcome = Outcome::unsupported;
  EXPECT_EQ(outcome_words(r), "unsupported");
  EXPECT_EQ(told_case(r).size(), 2u);
  // A real kernel, a real bound.
  EXPECT_EQ(outcome_words(judged("attention b=1 h=1 l=9x20 d=8 causal", "fault:causal-off-by-one")),
            "fail, proved");
}

// Whatever a contract says that is not the usual is among its numbers.
TEST(CaseText, EveryNumberOfAnArithmeticIsTold) {
  const auto listed = [](const Arithmetic& a) { return joined(listed_arithmetic(a)); };
  Contract c;
  const std::string usual = listed(c);
  const std::pair<std::function<void(Contract&)>, const char*> changes[] = {
      {[](Contract& x) { x.dot_roundoff = 0x1p-11; }, "each step rounds by 2^-11"},
      {[](Contract& x) { x.dot_block = 16; }, "16 products are aligned and added at once"},
      {[](Contract& x) { x.products_rounded = true; }, "products are rounded first"},
      {[](Contract& x) { x.ordered = true; }, "in order, the row sum tile by tile"},
      {[](Contract& x) { x.largest = 65504; }, "largest number 65504"},
      {[](Contract& x) { x.product_floor = 0x1p-25; }, "underflows errs by 2^-25"},
      {[](Contract& x) { x.operand_floor = 0x1p-126; }, "numbers below 2^-126 are read as 0"},
      {[](Contract& x) { x.roundoff = 0x1p-23; }, "softmax: each step rounds by 2^-23"},
      {[](Contract& x) { x.argument_roundings = 2; }, "argument of exp: 2 roundings"},
      {[](Contract& x) { x.fused_argument = true; }, "roundings, fused"},
      {[](Contract& x) { x.scale_error = 0.25; }, "a folded constant errs by 2^-2"},
      {[](Contract& x) { x.exp_ulp = 2.6; }, "exp 2.6 ulp"},
      {[](Contract& x) { x.exp_ulp_per_unit = 1.18; }, "+ 1.18 ulp per unit"},
      {[](Contract& x) { x.exp_floor = 0x1p-125; }, "2^-125 where it underflows"},
      {[](Contract& x) { x.log_ulp = 3; }, "log 3 ulp"},
      {[](Contract& x) { x.tanh_ulp = 5; }, "tanh 5 ulp"},
      {[](Contract& x) { x.query_dtype = Dtype::f16; }, "queries f16"},
      {[](Contract& x) { x.score_dtype = Dtype::bf16; }, "scores bf16"},
      {[](Contract& x) { x.weight_dtype = Dtype::bf16; }, "weights bf16"},
      {[](Contract& x) { x.sum_from_rounded = true; }, "the row sum adds weights as stored"},
      {[](Contract& x) { x.divides_first = true; }, "weights are divided before P V"},
      {[](Contract& x) { x.weights_from_lse = true; }, "weights are e^(s - LSE)"},
      {[](Contract& x) { x.division_roundings = 5; }, "5 roundings"},
      {[](Contract& x) { x.tile = 128; }, "tiles: 128 keys"},
      {[](Contract& x) { x.row_tile = 32; }, "keys, 32 rows"},
      {[](Contract& x) { x.splits = 3; }, "3 splits"},
      {[](Contract& x) { x.split_keys = 512; }, "splits of 512 keys"},
      {[](Contract& x) { x.absorbed = true; }, "Q is multiplied by the projection"},
      {[](Contract& x) { x.backward_row_tile = 48; }, "tiles of 48 rows"},
      {[](Contract& x) { x.backward_tile = 96; }, "and 96 keys"},
      {[](Contract& x) { x.backward_split = 7; }, "splits of 7 keys"},
      {[](Contract& x) { x.score_gradients_late = true; }, "dS comes from rounded weights"},
      {[](Contract& x) { x.head_gradient_dtype = Dtype::f16; }, "of heads are stored in f16"},
  };
  for (const auto& [change, words] : changes) {
    Contract changed = c;
    change(changed);
    EXPECT_THAT(usual, Not(HasSubstr(words)));
    EXPECT_THAT(listed(changed), HasSubstr(words));
  }
}

// Of some rows no gradient is typical or not, and a pass does not hide that.
TEST(CaseText, GradientsThatWereNotAskedAreTold) {
  const char* why = "typical errors were not asked: of gradients: only some rows were judged";
  EXPECT_THAT(joined(told_case(judged("backward b=1 h=1 l=64 d=16 rows=8"))),
              testing::AllOf(HasSubstr("errors are typical"), HasSubstr(why)));
  EXPECT_THAT(joined(told_case(judged("backward b=1 h=1 l=64 d=16"))), Not(HasSubstr(why)));
}

TEST(CaseText, EveryNumberIsExplained) {
  for (const CaseResult& r :
       {judged("attention b=1 h=4/2 l=9x20 d=8 causal"), failure_of_everything(),
        judged("backward b=1 h=2 l=9x20 d=8 causal"), judged("product m=3 n=20 k=40 w=nvfp4")}) {
    const std::vector<std::string> told = explained_case(r);
    EXPECT_GT(told.size(), 10u);
    // Numbers, each or some of one meaning, and then the meaning, which is told once.
    EXPECT_THAT(told.back(), StartsWith("      "));
    for (std::size_t k = 1; k < told.size(); ++k) {
      const bool meaning = told[k].starts_with("      ");
      EXPECT_THAT(told[k], ContainsRegex("^(  |      )[^ ]"));
      EXPECT_FALSE(meaning && told[k - 1].starts_with("      ")) << told[k];
    }
    EXPECT_THAT(joined(told), HasSubstr("contract: " + r.verdict.contract));
    if (r.verdict.arithmetic) {
      for (const std::string& line : listed_arithmetic(*r.verdict.arithmetic))
        EXPECT_THAT(joined(told), HasSubstr("  " + line + "\n"));
      EXPECT_THAT(joined(told), HasSubstr("the numbers that the candidate declares; "));
    }
    for (const auto& [name, relation] : r.relations)
      EXPECT_THAT(joined(told), HasSubstr("relation " + name + ": " + text_of(relation)));
    if (passed(r.outcome)) {
      EXPECT_THAT(joined(told), HasSubstr("power"));
      // Statistics have as many digits as they are worth.
      EXPECT_THAT(joined(told), ContainsRegex("bias: mean signed error/bound -?[0-9.e-]{1,9}, "
                                              "slope t -?[0-9.e-]{1,9}\n"));
    } else {
      EXPECT_THAT(joined(told), Not(HasSubstr("power")));
    }
  }
}

}  // namespace
}  // namespace assay
