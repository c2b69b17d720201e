// Finds the known faults that a wrong output looks like: compares the output of a case that failed
// with the exact outputs of altered problems, which faulty kernels would give. docs/evidence.md, 5.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "oracle/product.h"
#include "oracle/verdict.h"

namespace assay {

// A hypothesis that explains the output: the errors against its exact outputs are typical.
struct Explanation {
  std::string hypothesis;  // its name, as hypothesis_names() has it
  std::string words;       // "the causal diagonal is one key late"
  // Other hypotheses, whose outputs are the same in the rows that were compared.
  std::vector<std::string> same;
  std::string arithmetic;  // of which the errors are typical; empty: they are inside their bounds
  double median = 0, largest = 0;  // of s over the rows that were asked
  double limit = 0;                // of s; 0: no s was asked, and every element is inside its bound
};

struct Diagnosis {
  std::vector<Explanation> explanations;  // the one with the smallest errors first, at most five
  Index tried = 0;  // hypotheses that apply, and whose outputs differ from the right ones
  Index rows_asked = 0;
  std::string not_asked;  // why nothing was tried

  bool was_asked() const { return rows_asked > 0 || !not_asked.empty(); }
};

// "looks like: ...", or "is like none of 40 known faults"; empty where nothing was tried.
std::string sentence_on(const Diagnosis& d);
// The place of a hypothesis among the explanations, from 1 on; 0: it is not among them.
Index rank_of(const Diagnosis& d, std::string_view hypothesis);

// The names of all hypotheses.
std::vector<std::string_view> hypothesis_names();

// Diagnoses the outputs on which the verdict `failed` was passed. `contract` is the declared one;
// null: the rungs of the ladder are tried. Some rows are asked, those that failed among them.
Diagnosis diagnose(const ProjectedAttention& problem, const AttentionOutput& out,
                   const Contract* contract, const Verdict& failed, const JudgeOptions& options);
// The same for dQ, dK and dV of one group of heads.
Diagnosis diagnose_backward(const Attention& problem, const AttentionBackwardInput& input,
                            const AttentionGradients& out, const Contract* contract,
                            const Verdict& failed, const JudgeOptions& options);
// The same for some rows and columns of a product.
Diagnosis diagnose_product(const Product& p, const TensorView& c, const ProductContract* contract,
                           const Verdict& failed, const JudgeOptions& options);

}  // namespace assay
