// Judges records.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "harness/judging/painter.h"
#include "harness/judging/scale_faults.h"
#include "harness/records/record.h"
#include "oracle/backward_verdict.h"
#include "oracle/diagnosis.h"
#include "oracle/product.h"
#include "oracle/visibility.h"
#include "problem/clock.h"

namespace assay {
namespace {

// What judging a record of an operation asks.
struct JudgedRecord {
  Operation operation;
  std::string (*shapes)(const Record&);
  void (*paint)(const Record&, std::optional<Painter>&);
  // Puts dtype, verdict and cause into the result.
  void (*judge)(const Record&, const std::optional<Arithmetic>& declared, JudgeOptions,
                CaseResult&);
};

std::string attention_shapes(const Record& r) {
  const AttentionShape& s = r.problem.shape;
  const auto pair = [](Index first, Index second, char between) {
    return first == second ? fmt::format("{}", first)
                           : fmt::format("{}{}{}", first, between, second);
  };
  return fmt::format("b={} h={} l={} d={} dtype={}", s.batch, pair(s.query_heads, s.kv_heads, '/'),
                     pair(s.rows, s.keys, 'x'), pair(s.dim, s.value_dim, '/'),
                     format(r.problem.q.dtype).name);
}

std::string product_shapes(const Record& r) {
  return fmt::format("m={} n={} k={}", r.product.m, r.product.n, r.product.k);
}

void paint_attention(const Record& r, std::optional<Painter>& painter) {
  painter.emplace(r.problem);
}
void paint_product(const Record& r, std::optional<Painter>& painter) {
  painter.emplace(r.product.m, r.product.n);
}

// The declared arithmetic of an operation; null if none is declared.
template <class C>
const C* declared_as(const std::optional<Arithmetic>& arithmetic) {
  return arithmetic ? &std::get<C>(*arithmetic) : nullptr;
}

void judge_attention(const Record& r, const std::optional<Arithmetic>& arithmetic,
                     JudgeOptions judging, CaseResult& result) {
  const auto* declared = declared_as<Contract>(arithmetic);
  result.dtype = format(r.problem.q.dtype).name;
  // Only the inputs that a case made are known to have errors without a direction.
  judging.statistics = !r.case_line.empty() && has_independent_zero_mean(parse_case(r.case_line));
  Verdict& v = result.verdict;
  v = declared ? judge(r.problem, r.out, *declared, judging)
               : judge_by_ladder(r.problem, r.out, 64, judging);
  if (v.outcome != Outcome::fail) return;
  judging.conventions = judging.conventions.over(v.differs);  // under which it was judged
  const ProjectedAttention problem = anchored(r.problem, judging.conventions);
  result.diagnosis = diagnose(problem, r.out, declared, v, judging);
  explain_by_scales({problem, r.k_scales, r.v_scales, r.scale_group}, r.out, declared, judging,
                    result.diagnosis);
}

void judge_gradients(const Record& r, const std::optional<Arithmetic>& arithmetic,
                     JudgeOptions judging, CaseResult& result) {
  judge_attention(r, arithmetic, judging, result);
  const auto* declared = declared_as<Contract>(arithmetic);
  Verdict& v = result.verdict;
  if (v.outcome == Outcome::fail || v.outcome == Outcome::error) return;
  const AttentionBackwardInput input{r.out.o, r.out.lse, r.d_o, r.d_lse};
  judging.conventions = judging.conventions.over(v.differs);
  const Verdict gradients = declared
                                ? judge_backward(r.problem, input, r.gradients, *declared, judging)
                                : judge_backward_by_ladder(r.problem, input, r.gradients, judging);
  judging.conventions = judging.conventions.over(gradients.differs);
  if (gradients.outcome == Outcome::fail)
    result.diagnosis = diagnose_backward(anchored<Attention>(r.problem, judging.conventions), input,
                                         r.gradients, declared, gradients, judging);
  add_gradients(v, gradients);
}

void judge_product_record(const Record& r, const std::optional<Arithmetic>& arithmetic,
                          JudgeOptions judging, CaseResult& result) {
  const auto* declared = declared_as<ProductContract>(arithmetic);
  const LowBit weights = r.product.w.format;
  result.dtype = traits(weights).name;
  result.tail_step = tail_step_of(weights);
  result.verdict = declared ? judge_product(r.product, r.c, *declared, judging)
                            : judge_product_by_ladder(r.product, r.c, judging);
  if (result.verdict.outcome == Outcome::fail)
    result.diagnosis = diagnose_product(r.product, r.c, declared, result.verdict, judging);
}

constexpr JudgedRecord operations[] = {
    {Operation::attention, attention_shapes, paint_attention, judge_attention},
    {Operation::backward, attention_shapes, paint_attention, judge_gradients},
    {Operation::product, product_shapes, paint_product, judge_product_record},
};

}  // namespace

CaseResult verify(const RecordFile& file, const Record& r, const VerifyOptions& o) {
  const JudgedRecord& of = *std::ranges::find(operations, r.operation, &JudgedRecord::operation);
  CaseResult result;
  // A record that no case made says where it is, what was asked, and of which shapes.
  result.line =
      !r.case_line.empty()
          ? r.case_line
          : fmt::format("{} in {}: {}; {}", r.name.empty() ? "the record" : "record " + r.name,
                        file.path(), r.line, of.shapes(r));
  result.candidate = r.kernel;
  result.reproduce = verify_command(file.path(), r.name);
  JudgeOptions judging;
  judging.conventions = r.conventions.over(o.conventions);
  judging.threads = o.threads;
  judging.sample_rows = o.sample_rows;
  judging.seed = o.seed;
  judging.power = o.power;
  judging.evidence = o.evidence;
  judging.without_lse = !r.out.lse;
  std::optional<Painter> painter;
  if (o.pictures) {
    of.paint(r, painter);
    judging.judged = [&](const Element& e) { painter->add(e); };
  }
  const auto start = Clock::now();
  of.judge(r, o.arithmetic, judging, result);
  const Verdict& v = result.verdict;
  result.seconds.judge = seconds_since(start);
  result.outcome = v.outcome;
  result.reason = v.reason;
  if (painter && result.was_compared()) {
    result.pictures = painter->pictures(v.row_tile);
    if (r.operation == Operation::attention && v.outcome == Outcome::fail)
      result.pictures->weights =
          weights_of(anchored(r.problem, judging.conventions.over(v.differs)), r.out,
                     declared_as<Contract>(o.arithmetic), v, o.threads);
  }
  return result;
}

}  // namespace assay
