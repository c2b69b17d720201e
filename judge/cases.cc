// The inputs of a case, call by call.
#include <fmt/format.h>

#include <memory>

#include "harness/candidates/named_call.h"
#include "harness/judging/outputs.h"
#include "judge/tensors.h"

using namespace assay;
using namespace assay::judging;

// The inputs live here; the calls hold views of them. The object does not move.
struct assay_case {
  explicit assay_case(const char* line) : c(case_of(line)) {
    if (c.operation == Operation::product) make_product();
    else make_attention();
    for (const NamedCall& call : calls) {
      std::vector<assay_named_tensor>& list = inputs.emplace_back();
      for (const NamedTensor& t : call.inputs) list.push_back({t.name.c_str(), t.tensor});
    }
  }
  assay_case(const assay_case&) = delete;

  const Case c;
  std::vector<NamedCall> calls;
  std::vector<std::vector<assay_named_tensor>> inputs;

 private:
  void make_product() {
    product = std::make_unique<ProductInputs>(c);
    product_output = std::make_unique<ProductOutput>(c);
    calls = named_calls(ProductCall{product->problem, product_output->c.view()});
  }
  void make_attention() {
    attention = std::make_unique<Inputs>(c);
    output = std::make_unique<Outputs>(c);
    if (c.cache) {
      if (c.cache.kind == CacheSpec::Kind::latent || c.cache_dtype() != c.dtype)
        throw Refused(
            "cache=...: pages hold K and V in the dtype of Q; a latent cache and store= "
            "have no such inputs");
      calls = named_calls(CachedCall{c, *attention, output->view()});
      return;
    }
    calls = named_calls(ForwardCall{attention->problem, output->view()});
    if (c.operation != Operation::backward) return;
    gradients = std::make_unique<GradientOutputs>(c, *attention);
    const AttentionBackwardInput in{output->o.view(), output->lse.view(), attention->d_o.view(),
                                    attention->d_lse.view()};
    NamedCall back = named_calls(BackwardCall{attention->problem, in, gradients->view()}).front();
    // These are what the first call answered, and nobody has called anything here.
    std::erase_if(back.inputs,
                  [](const NamedTensor& t) { return t.name == "o" || t.name == "lse"; });
    calls.push_back(std::move(back));
  }

  std::unique_ptr<Inputs> attention;
  std::unique_ptr<Outputs> output;
  std::unique_ptr<GradientOutputs> gradients;
  std::unique_ptr<ProductInputs> product;
  std::unique_ptr<ProductOutput> product_output;
};

assay_status assay_case_open(const char* line, assay_case** opened, assay_text** answer) {
  return answering(answer, [&] {
    *needed(opened, "opened") = nullptr;
    auto made = std::make_unique<assay_case>(line);
    Json calls = Json::array();
    for (const NamedCall& call : made->calls) {
      Json outputs = Json::array();
      for (const NamedTensor& t : call.outputs)
        outputs.push_back({{"name", t.name},
                           {"dtype", format(*dtype_of(t.tensor.dtype)).name},
                           {"shape", shape_of(t.tensor)}});
      calls.push_back(
          {{"operation", call.operation}, {"line", call.line}, {"outputs", std::move(outputs)}});
    }
    std::string text = text_of({{"case", print_case(made->c)}, {"calls", std::move(calls)}});
    *opened = made.release();
    return text;
  });
}

void assay_case_close(assay_case* opened) { delete opened; }

assay_status assay_case_inputs(const assay_case* opened, int64_t call,
                               const assay_named_tensor** tensors, int64_t* count,
                               assay_text** answer) {
  return answering(answer, [&] {
    needed(opened, "opened");
    needed(tensors, "tensors");
    needed(count, "count");
    if (call < 0 || call >= std::ssize(opened->inputs))
      throw Refused(
          fmt::format("call is {}, and the case has {} calls", call, opened->inputs.size()));
    *tensors = opened->inputs[usize(call)].data();
    *count = std::ssize(opened->inputs[usize(call)]);
    return std::string();
  });
}
