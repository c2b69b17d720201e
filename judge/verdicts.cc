// Verdicts on tensors, functions and files.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "harness/candidates/declared_arithmetic.h"
#include "harness/candidates/named_candidate.h"
#include "harness/judging/execute.h"
#include "harness/records/record.h"
#include "judge/callback.h"
#include "judge/pages.h"
#include "oracle/product.h"

using namespace assay;
using namespace assay::judging;

namespace {

struct Options {
  std::string name = "function";
  std::optional<std::string> arithmetic;  // what is declared
  Conventions conventions;
  ExecuteOptions execute;
  VerifyOptions verify;
};

// The declared arithmetic of a kernel. `dtype` is that of Q or A; of a low-bit A it is f32.
std::optional<Arithmetic> arithmetic_of(const Options& o, bool product, Dtype dtype) {
  if (!o.arithmetic) return std::nullopt;
  if (product) return declared_product_contract(*o.arithmetic, dtype);
  return declared_contract(*o.arithmetic, dtype);
}

// The same for a candidate that is given one case.
std::map<Dtype, Arithmetic> contracts_of(const Options& o, const Case& c) {
  const bool product = c.operation == Operation::product;
  const Dtype dtype = product && c.product.a_format ? Dtype::f32 : c.dtype;
  const std::optional<Arithmetic> declared = arithmetic_of(o, product, dtype);
  if (!declared) return {};
  return {{dtype, *declared}};
}

Conventions conventions_of(const char* text) {
  if (!text) return {};
  try {
    return Conventions::parse(text);
  } catch (const ConventionError& e) {
    throw Refused(fmt::format("conventions: {}", e.what()));
  }
}

Options options_of(const assay_judge_options* o) {
  assay_judge_options defaults;
  assay_judge_options_init(&defaults);
  if (!o) o = &defaults;
  check_struct(*o, "options");
  const auto in = [](const char* what, Index value, Index low, Index high) {
    if (value < low || value > high)
      throw Refused(fmt::format("options.{} is {}, outside [{}, {}]", what, value, low, high));
    return value;
  };
  Options found;
  if (o->name) found.name = shown(o->name);
  if (found.name.empty()) throw Refused("options.name is empty");
  if (o->arithmetic) found.arithmetic = o->arithmetic;
  found.conventions = conventions_of(o->conventions);
  in("reserved", o->reserved, 0, 0);
  const auto evidence = static_cast<EvidenceRule>(
      in("evidence", o->evidence, ASSAY_EVIDENCE_FAIL, ASSAY_EVIDENCE_OFF));
  const auto threads = static_cast<int>(in("threads", o->threads, 0, 4096));
  const bool power = in("power", o->power, 0, 1) != 0, pictures = in("pictures", o->pictures, 0, 1);
  found.execute = {.oracle_threads = threads,
                   .power = power,
                   .relations = in("relations", o->relations, 0, 1) != 0,
                   .evidence = evidence,
                   .pictures = pictures};
  found.verify = {.threads = threads,
                  .sample_rows = in("rows", o->rows, 0, Index{1} << 40),
                  .seed = o->seed,
                  .power = power,
                  .evidence = evidence,
                  .pictures = pictures,
                  .conventions = found.conventions};
  return found;
}

// The first tensor of that name; null if there is none.
const assay_tensor* find(const std::vector<NamedTensor>& tensors, const std::string& name) {
  for (const NamedTensor& t : tensors)
    if (t.name == name) return &t.tensor;
  return nullptr;
}

void check_same_kind(const std::string& name, const assay_tensor& given,
                     const assay_tensor& wanted) {
  const bool same_dtype = std::memcmp(&given.dtype, &wanted.dtype, sizeof given.dtype) == 0;
  if (shape_of(given) != shape_of(wanted) || !same_dtype)
    throw Refused(fmt::format("tensor {} is {}, and the case wants {}", name, described(given),
                              described(wanted)));
}

// Answers the calls of a case with tensors that are there already. A chunk of rows of a cached case
// is answered with its part of o and lse.
class Answers {
 public:
  explicit Answers(std::vector<NamedTensor> tensors) : tensors_(std::move(tensors)) {}

  void operator()(const NamedCall& call) {
    const bool chunk = call.operation == "decode";
    for (const NamedTensor& wanted : call.outputs) {
      const assay_tensor* given = find(tensors_, wanted.name);
      if (!given) throw Refused(fmt::format("tensor {} is missing", wanted.name));
      assay_tensor part = *given;
      if (chunk && part.rank == wanted.tensor.rank) {
        part.offset += row_ * part.strides[2];
        part.shape[2] = std::min(wanted.tensor.shape[2], part.shape[2] - row_);
      }
      check_same_kind(wanted.name, part, wanted.tensor);
      copy_elements(part, wanted.tensor);
    }
    if (chunk) row_ += call.outputs.front().tensor.shape[2];
    if (chunk && row_ == find(tensors_, "o")->shape[2]) row_ = 0;  // the next run begins
  }

 private:
  std::vector<NamedTensor> tensors_;
  Index row_ = 0;
};

// Refuses an output that the case does not have: it would be compared with nothing.
void check_names(const Case& c, const std::vector<NamedTensor>& tensors) {
  std::vector<std::string> wanted = {"c"};
  if (c.operation != Operation::product) {
    wanted = {"o", "lse"};
    if (c.operation == Operation::backward) {
      wanted.insert(wanted.end(), {"dq", "dk", "dv"});
      if (c.bias.pattern != MaskPattern::none) wanted.emplace_back("d_bias");
      if (c.sink) wanted.emplace_back("d_sink");
    }
  }
  for (const std::string& name : wanted)
    if (name != "lse" && !find(tensors, name))
      throw Refused(fmt::format("tensor {} is missing; the outputs of this case are {}", name,
                                fmt::join(wanted, ", ")));
  for (const NamedTensor& t : tensors)
    if (std::ranges::find(wanted, t.name) == wanted.end())
      throw Refused(fmt::format("tensor {} is no output of this case; they are {}", shown(t.name),
                                fmt::join(wanted, ", ")));
}

CaseResult judge_with(const Case& c, NamedCandidate::Facts facts, NamedCandidate::Answer answer,
                      const Options& options) {
  NamedCandidate candidate(std::move(facts), std::move(answer));
  return execute(c, candidate, options.execute);
}

CaseResult verified(const RecordFile& file, const std::string& name, const Options& o) {
  const Record r = file.read(name);
  VerifyOptions verifying = o.verify;
  const bool product = r.operation == Operation::product;
  verifying.arithmetic =
      arithmetic_of(o, product, product ? dtype_of_a(r.product) : r.problem.q.dtype);
  return verify(file, r, verifying);
}

}  // namespace

assay_status assay_judge_tensors(const char* line, const assay_named_tensor* tensors, int64_t count,
                                 const assay_judge_options* options, assay_text** answer) {
  return answering(answer, [&] {
    const Case c = case_of(line);
    const Options o = options_of(options);
    std::vector<NamedTensor> given = named_tensors(tensors, count);
    check_names(c, given);
    const bool lse = find(given, "lse") != nullptr;
    std::string refused;
    Answers answers(std::move(given));
    const CaseResult result = judge_with(
        c,
        {.name = o.name,
         .features = {},
         .lse = lse,
         .contracts = contracts_of(o, c),
         .conventions = o.conventions},
        [&](const NamedCall& call) {
          try {
            answers(call);
          } catch (const Refused& e) {
            refused = e.what();
            throw;
          }
        },
        o);
    if (!refused.empty()) throw Refused(refused);
    return text_of(to_json(result));
  });
}

assay_status assay_judge_function(const char* line, assay_function function, void* user,
                                  int32_t no_lse, const assay_features* features,
                                  const assay_judge_options* options, assay_text** answer) {
  return answering(answer, [&] {
    const Case c = case_of(line);
    const Options o = options_of(options);
    NamedCandidate::Facts facts = facts_of(o.name.c_str(), no_lse, features);
    facts.contracts = contracts_of(o, c);
    facts.conventions = o.conventions;
    return text_of(to_json(judge_with(c, std::move(facts), answer_by(function, user), o)));
  });
}

assay_status assay_judge_record(const char* line, const assay_named_tensor* tensors, int64_t count,
                                const assay_judge_options* options, assay_text** answer) {
  return answering(answer, [&] {
    std::string asked = needed(line, "line");
    const Options o = options_of(options);
    std::vector<NamedTensor> given = named_tensors(tensors, count);
    std::deque<std::vector<std::byte>> storage;
    const std::size_t word = std::min(asked.find_first_not_of(' '), asked.size());
    if (asked.substr(word, asked.find(' ', word) - word) == "decode")
      gather_pages(asked, given, storage);
    Safetensors contents = stored(given, storage);
    contents.metadata = {{"assay", "1"}, {"record", asked}};
    const RecordFile file(o.name, std::move(contents));
    CaseResult result = verified(file, "", o);
    result.line = shown(line);
    result.candidate = o.name;
    result.reproduce.clear();
    return text_of(to_json(result));
  });
}

assay_status assay_judge_file(const char* path, const assay_judge_options* options,
                              assay_text** answer) {
  return answering(answer, [&] {
    needed(path, "path");
    const Options o = options_of(options);
    const RecordFile file(path);
    Json results = Json::array();
    for (const std::string& name : file.names())
      results.push_back(to_json(verified(file, name, o)));
    return text_of({{"results", results}});
  });
}
