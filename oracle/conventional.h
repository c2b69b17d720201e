// Inside oracle/: what a declared convention changes in a problem, in a contract and in the verdict
// on an element, and which undeclared convention explains outputs that fail under ours.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "oracle/contract.h"
#include "oracle/key_values.h"
#include "oracle/verdict.h"
#include "oracle/visibility.h"

namespace assay {

// Another problem, whose rows have the O that rows without weight have by convention. For a mean of
// V its scores are 0. Its bound is that of any row, so the verdict on a mean is as strict as on
// other rows.
struct Substitute {
  ProjectedAttention problem;
  std::vector<float> bias;  // memory of the problem's bias, if that is not the given one
};
// For fully masked rows: without masks.
std::optional<Substitute> substitute(const ProjectedAttention& p, MaskedRows rows);
// For rows whose every visible score is -inf: without masks, or with those that hide keys.
std::optional<Substitute> substitute(const ProjectedAttention& p, WeightlessRows rows);

// The first key that belongs to a sequence, and the one after its last.
KeyInterval keys_of_sequence(const Attention& p, Index b);
// What an element is excused with that is NaN because `masked-nan:spreads` permits it.
inline constexpr const char* spreads_by_convention =
    "NaN of a masked key, which spreads by convention";

// The contract of a kernel that may flush subnormals in fp32, by convention. bounds.md, 13.
// Units that multiply matrices read subnormal operands also where all other arithmetic flushes.
enum class Operands : std::uint8_t { flushed, read };
Contract flushing(const Conventions& conventions, const Contract& contract,
                  Operands operands = Operands::flushed);
// The same for a product, whose operands may be read as 0. bounds_product.md, 2.
ProductContract flushing(const Conventions& conventions, const ProductContract& contract);

// The problem with 0 in the place of the subnormal numbers of its tensors, as units of processors
// read them that multiply bf16. Null where it has none.
struct ZeroedInputs {
  ProjectedAttention problem;
  std::deque<Tensor> tensors;
};
std::unique_ptr<ZeroedInputs> zeroed_inputs(const ProjectedAttention& p);

// The verdict under the one contract, or that of climb(). Where subnormals may be flushed and
// nothing can be judged, because a lost operand counts as much as the numbers that it is multiplied
// with, outputs that are right for a kernel which reads subnormal operands are right, and so are
// those that are right for one that reads subnormal inputs as 0 and all other operands as they are.
// `judge` is given the problem, the second time with zeroed inputs.
using JudgeContract =
    std::function<Verdict(const ProjectedAttention&, const Contract&, const JudgeOptions&)>;
Verdict judge_by(std::span<const Contract> contracts, const ProjectedAttention& problem,
                 const JudgeOptions& options, const JudgeContract& judge);

// Whether 0 times a NaN or an infinity of a key could reach the outputs of a row.
class ZeroTimesNan {
 public:
  ZeroTimesNan(const ProjectedAttention& p, const KeyValues& kv) : p_(p), kv_(kv) {}
  // Of a masked key, to column c of O; -1: LSE.
  bool of_masked(Index h, Index row, Index c);
  // Of the V of a visible key whose weight is 0, to column c of O.
  bool of_visible(Index h, Index row, Index c);

 private:
  bool anything() const { return kv_.any_key_not_finite || kv_.any_value_not_finite; }
  void look(Index h, Index row);

  const ProjectedAttention& p_;
  const KeyValues& kv_;
  Index h_ = -1, row_ = -1;
  bool by_key_ = false;
  std::vector<char> by_value_, by_visible_value_;
};

// Looks for conventions that nobody declared, and that make outputs right which fail under ours.
// `right` judges the outputs under given conventions. The result has the conventions of `declared`
// and those that differ from ours. It is empty if no convention explains the outputs.
std::optional<Conventions> explaining_conventions(
    const Attention& p, const Conventions& declared,
    const std::function<bool(const Conventions&)>& right);

// The verdict `own` if it does not fail, or if no undeclared convention explains its failures;
// otherwise the verdict under the conventions that do. `judge_under(options)` judges again.
Verdict by_convention(const Attention& p, Verdict own, const JudgeOptions& options,
                      const std::function<Verdict(const JudgeOptions&)>& judge_under);

}  // namespace assay
