// A call of a candidate as a line of text and tensors with names, as records and other languages
// see it: the same names, shapes and line as in docs/records.md, and pages for decoding.
#pragma once

#include <assay/kernel.h>

#include <memory>
#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/candidates/paged.h"

namespace assay {

// The tensor has rank 1 to 4. Its data belong to the call that it was made from.
struct NamedTensor {
  std::string name;
  assay_tensor tensor;
};

struct NamedCall {
  std::string operation;  // attention, backward, decode or product
  std::string line;       // the numbers and flags of the problem, written as in a record
  std::vector<NamedTensor> inputs, outputs;
  // What the inputs of decode point into.
  std::shared_ptr<const PagedTokens> pages;
  std::shared_ptr<const Attention> problem;
};

// The calls that a call consists of: one for each chunk of a cached case, otherwise one.
std::vector<NamedCall> named_calls(const Call& call);

// The line of a record that asks for this problem.
std::string record_line(const Attention& problem, Operation operation);
std::string record_line(const Product& problem);

// The C description of a view. `rank` extents remain; the ones before must be 1.
assay_tensor c_tensor(const TensorView& t, int rank = 4);
// The dtype of a description; nothing if it is no format of this project with at least 8 bits.
std::optional<Dtype> dtype_of(const assay_dtype& dtype);

}  // namespace assay
