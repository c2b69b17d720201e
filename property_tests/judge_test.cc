// The judge behind its C interface: answers, verdicts, and every refusal with its words.
#include <assay/judge.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

struct Answer {
  assay_status status;
  std::string text;
  json parsed() const { return json::parse(text); }
};

// Calls a function of the interface and takes its text.
template <class Function, class... Arguments>
Answer ask(const Function& function, const Arguments&... arguments) {
  assay_text* text = nullptr;
  const assay_status status = function(arguments..., &text);
  Answer answer{status, assay_text_data(text)};
  assay_text_free(text);
  return answer;
}

template <class Function, class... Arguments>
json must(const Function& function, const Arguments&... arguments) {
  const Answer answer = ask(function, arguments...);
  EXPECT_EQ(answer.status, ASSAY_SUCCESS) << answer.text;
  return answer.status == ASSAY_SUCCESS ? answer.parsed() : json();
}

void expect_refused(const Answer& answer, const char* words) {
  EXPECT_EQ(answer.status, ASSAY_INVALID_ARGUMENTS) << answer.text;
  EXPECT_THAT(answer.text, HasSubstr(words));
}

constexpr const char* small = "attention b=1 h=2/1 l=3x5 d=4/6 dtype=f32 causal offset=end";

assay_named_tensor named(const char* name, void* data, std::uint8_t code, std::uint8_t bits,
                         std::vector<std::int64_t> shape) {
  assay_named_tensor t;
  t.name = name;
  shape.resize(4, 1);
  assay_tensor_init(&t.tensor, data, code, bits, shape[0], shape[1], shape[2], shape[3]);
  return t;
}

// The inputs of a small case, and its outputs as this file computes them in double.
struct Small {
  std::vector<float> q, k, v, o = std::vector<float>(2 * 3 * 6), lse = std::vector<float>(2 * 3);
  std::vector<assay_named_tensor> outputs, all;

  explicit Small(const char* line = small) {
    assay_case* opened = nullptr;
    EXPECT_EQ(ask(assay_case_open, line, &opened).status, ASSAY_SUCCESS);
    const assay_named_tensor* tensors = nullptr;
    std::int64_t count = 0;
    EXPECT_EQ(ask(assay_case_inputs, opened, 0, &tensors, &count).status, ASSAY_SUCCESS);
    q = floats_of(tensors, count, "q");
    k = floats_of(tensors, count, "k");
    v = floats_of(tensors, count, "v");
    assay_case_close(opened);
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < 3; ++i) compute_row(h, i);
    outputs = {named("o", o.data(), ASSAY_FLOAT, 32, {1, 2, 3, 6}),
               named("lse", lse.data(), ASSAY_FLOAT, 32, {1, 2, 3})};
    outputs[1].tensor.rank = 3;
    outputs[1].tensor.strides[0] = 6;
    outputs[1].tensor.strides[1] = 3;
    outputs[1].tensor.strides[2] = 1;
    all = {named("q", q.data(), ASSAY_FLOAT, 32, {1, 2, 3, 4}),
           named("k", k.data(), ASSAY_FLOAT, 32, {1, 1, 5, 4}),
           named("v", v.data(), ASSAY_FLOAT, 32, {1, 1, 5, 6}), outputs[0], outputs[1]};
  }
  static std::vector<float> floats_of(const assay_named_tensor* tensors, std::int64_t count,
                                      const std::string& name) {
    for (std::int64_t n = 0; n < count; ++n)
      if (tensors[n].name == name) {
        const assay_tensor& t = tensors[n].tensor;
        const auto* data = static_cast<const float*>(t.data) + t.offset;
        return {data, data + t.shape[0] * t.shape[1] * t.shape[2] * t.shape[3]};
      }
    ADD_FAILURE() << "no input is named " << name;
    return {};
  }
  void compute_row(int h, int i) {
    double sum = 0;
    std::vector<double> weights, row(6, 0);
    for (int j = 0; j <= i + 2; ++j) {
      double dot = 0;
      for (int d = 0; d < 4; ++d)
        dot += static_cast<double>(q[static_cast<std::size_t>((h * 3 + i) * 4 + d)]) *
               k[static_cast<std::size_t>(j * 4 + d)];
      weights.push_back(std::exp(dot * 0.5));
      sum += weights.back();
      for (std::size_t c = 0; c < 6; ++c)
        row[c] += weights.back() * v[static_cast<std::size_t>(j) * 6 + c];
    }
    const auto at = static_cast<std::size_t>(h * 3 + i);
    lse[at] = static_cast<float>(std::log(sum));
    for (std::size_t c = 0; c < 6; ++c) o[at * 6 + c] = static_cast<float>(row[c] / sum);
  }
  json judge(const char* line = small) const {
    return must(assay_judge_tensors, line, outputs.data(), std::ssize(outputs), nullptr);
  }
};

TEST(Judge, FactsNameSuitesAndFeatures) {
  EXPECT_EQ(assay_judge_version(), ASSAY_VERSION);
  const json facts = must(assay_judge_facts);
  EXPECT_THAT(facts["suites"].dump(), AllOf(HasSubstr("smoke"), HasSubstr("products")));
  for (const char* feature : {"causal", "dtype=bf16", "layout=packed", "w=nvfp4", "cache=paged"})
    EXPECT_THAT(facts["features"].dump(), HasSubstr('"' + std::string(feature) + '"'));
}

TEST(Judge, ASuiteIsDrawnForTheFeaturesThatThereAre) {
  const json whole = must(assay_judge_suite, "smoke", 1, nullptr);
  EXPECT_GT(whole["cases"].size(), 50u);
  EXPECT_TRUE(whole["unsupported"].empty());
  const char* names[] = {"attention", "causal", "dtype=f16", "gqa", "head-dims"};
  assay_features features;
  assay_features_init(&features);
  features.names = names;
  features.count = 5;
  const json drawn = must(assay_judge_suite, "smoke", 1, &features);
  EXPECT_GT(drawn["cases"].size(), 20u);
  for (const json& line : drawn["cases"]) {
    const std::string text = line;
    EXPECT_THAT(text, AllOf(HasSubstr("dtype=f16"), Not(HasSubstr("window")),
                            Not(HasSubstr("out=")), Not(HasSubstr("layout"))));
    const json parsed = must(assay_judge_parse, text.c_str());
    for (const json& feature : parsed["features"])
      EXPECT_TRUE(std::find(names, names + 5, feature.get<std::string>()) != names + 5)
          << text << ": " << feature;
  }
  EXPECT_GT(drawn["unsupported"].size(), whole["cases"].size() / 2);
  for (const json& u : drawn["unsupported"]) EXPECT_FALSE(u["why"].get<std::string>().empty());
  features.count = 0;
  EXPECT_TRUE(must(assay_judge_suite, "smoke", 1, &features)["cases"].empty());
}

TEST(Judge, RightTensorsPassAndWrongOnesFail) {
  const json facts = must(assay_judge_parse, small);
  EXPECT_EQ(facts["operation"], "attention");
  EXPECT_EQ(facts["shape"]["value_dim"], 6);
  Small c;
  json result = c.judge();
  EXPECT_EQ(result["outcome"], "pass") << result;
  EXPECT_EQ(result["elements"]["compared"]["O"], 36);
  EXPECT_EQ(result["elements"]["compared"]["LSE"], 6);
  c.o[20] += 1e-4f;
  result = c.judge();
  EXPECT_EQ(result["outcome"], "fail");
  EXPECT_EQ(result["elements"]["outside"], 1);
  EXPECT_EQ(result["first_failure"]["output"], "O");
  c.o[20] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(c.judge()["outcome"], "fail");
  // Without LSE, O alone is judged.
  Small right;
  right.outputs.resize(1);
  result = right.judge();
  EXPECT_EQ(result["outcome"], "pass");
  EXPECT_FALSE(result["elements"]["compared"].contains("LSE"));
}

TEST(Judge, StridesOfTensorsAreFollowed) {
  Small c;
  std::vector<float> apart(c.o.size() * 2, 7);
  for (std::size_t e = 0; e < c.o.size(); ++e) apart[(c.o.size() - 1 - e) * 2] = c.o[e];
  c.outputs[0].tensor.data = apart.data();
  c.outputs[0].tensor.offset = 2 * (std::ssize(c.o) - 1);
  for (std::int64_t& stride : c.outputs[0].tensor.strides) stride *= -2;
  EXPECT_EQ(c.judge()["outcome"], "pass");
  apart[0] += 1;
  EXPECT_EQ(c.judge()["outcome"], "fail");
}

TEST(Judge, ARecordLineIsJudgedWithItsInputs) {
  Small c;
  const auto judge = [&](const char* line) {
    return must(assay_judge_record, line, c.all.data(), std::ssize(c.all), nullptr);
  };
  EXPECT_EQ(judge("attention causal offset=end")["outcome"], "pass");
  EXPECT_EQ(judge("attention")["outcome"], "fail");
  EXPECT_EQ(judge("attention causal offset=end scale=0.25")["outcome"], "fail");
}

json judge_as(const Small& c, const char* arithmetic, std::int32_t evidence) {
  assay_judge_options options;
  assay_judge_options_init(&options);
  options.arithmetic = arithmetic;
  options.evidence = evidence;
  const json by_case =
      must(assay_judge_tensors, small, c.outputs.data(), std::ssize(c.outputs), &options);
  const json by_record = must(assay_judge_record, "attention causal offset=end", c.all.data(),
                              std::ssize(c.all), &options);
  EXPECT_EQ(by_case["outcome"], by_record["outcome"]);
  EXPECT_EQ(by_case["contract"], by_record["contract"]);
  return by_case;
}

TEST(Judge, TheDeclaredArithmeticIsTheContract) {
  const char* const rung = "fp32 accumulation, fp32 weights, fast exp2";
  const char* const half = "weight_bits=16 argument_roundings=2";
  Small c;
  EXPECT_EQ(judge_as(c, rung, ASSAY_EVIDENCE_FAIL)["contract"], rung);
  EXPECT_EQ(judge_as(c, half, ASSAY_EVIDENCE_FAIL)["contract"], std::string("declared: ") + half);
  for (std::size_t e = 0; e < c.o.size(); ++e) c.o[e] *= e % 2 ? 1.0001F : 0.9999F;
  EXPECT_EQ(judge_as(c, nullptr, ASSAY_EVIDENCE_OFF)["outcome"], "fail");
  EXPECT_EQ(judge_as(c, rung, ASSAY_EVIDENCE_OFF)["outcome"], "fail");
  EXPECT_EQ(judge_as(c, half, ASSAY_EVIDENCE_OFF)["outcome"], "pass");
}

// A factor that the wide bound of a coarse arithmetic lets pass.
TEST(Judge, EvidenceFailsWarnsOrIsOff) {
  const char* const coarse = "dot_roundoff=0.001 dot_block=64";
  Small c;
  for (float& o : c.o) o *= 1.03F;
  const json fail = judge_as(c, coarse, ASSAY_EVIDENCE_FAIL);
  EXPECT_EQ(fail["outcome"], "fail") << fail;
  EXPECT_EQ(fail["by_evidence"], true);
  const json warn = judge_as(c, coarse, ASSAY_EVIDENCE_WARN);
  EXPECT_EQ(warn["outcome"], "pass");
  EXPECT_THAT(warn["reason"].get<std::string>(), HasSubstr("no arithmetic makes such errors"));
  EXPECT_EQ(judge_as(c, coarse, ASSAY_EVIDENCE_OFF)["outcome"], "pass");
}

// Two sequences of 5 and 2 tokens in pages of two slots. All scores are equal, so O is a mean of V.
struct Pages {
  std::vector<float> q = std::vector<float>(2 * 4, 0), k = std::vector<float>(6 * 2 * 4, 1),
                     v = std::vector<float>(6 * 2 * 1), o = {0, 0};
  std::vector<std::int32_t> table = {4, 0, 2, 5, -1, -1};
  std::vector<std::int64_t> lengths = {5, 2};
  std::vector<assay_named_tensor> tensors;

  Pages() {
    for (std::size_t slot = 0; slot < v.size(); ++slot) v[slot] = static_cast<float>(slot * slot);
    v[5] = std::numeric_limits<float>::quiet_NaN();  // slot 1 of page 2: no token fills it
    o = {(64.f + 81 + 0 + 1 + 16) / 5, (100.f + 121) / 2};
    tensors = {named("q", q.data(), ASSAY_FLOAT, 32, {2, 1, 1, 4}),
               named("k_pages", k.data(), ASSAY_FLOAT, 32, {6, 1, 2, 4}),
               named("v_pages", v.data(), ASSAY_FLOAT, 32, {6, 1, 2, 1}),
               named("block_table", table.data(), ASSAY_INT, 32, {2, 3}),
               named("lengths", lengths.data(), ASSAY_INT, 64, {2}),
               named("o", o.data(), ASSAY_FLOAT, 32, {2, 1, 1, 1})};
    tensors[3].tensor.rank = 2;
    tensors[3].tensor.strides[0] = 3;
    tensors[3].tensor.strides[1] = 1;
    tensors[4].tensor.rank = 1;
    tensors[4].tensor.strides[0] = 1;
  }
  Answer judge(const char* line = "decode causal") const {
    return ask(assay_judge_record, line, tensors.data(), std::ssize(tensors), nullptr);
  }
};

TEST(Judge, PagesAreGathered) {
  Pages p;
  EXPECT_EQ(p.judge().parsed()["outcome"], "pass") << p.judge().text;
  p.o[1] = 100;
  EXPECT_EQ(p.judge().parsed()["outcome"], "fail");
}

TEST(Judge, PagesThatContradictAreRefused) {
  Pages p;
  p.table[1] = 6;
  expect_refused(p.judge(), "block_table[0, 1] is 6");
  p = {};
  p.table[0] = -1;
  expect_refused(p.judge(), "block_table[0, 0] is -1");
  p = {};
  p.lengths[0] = 7;
  expect_refused(p.judge(), "lengths reach 7");
  p = {};
  p.lengths[0] = -1;
  expect_refused(p.judge(), "has -1 tokens");
  p = {};
  p.tensors[4].tensor.shape[0] = 1;
  expect_refused(p.judge(), "1 entries");
  p = {};
  p.tensors[4].tensor.dtype.code = ASSAY_FLOAT;
  expect_refused(p.judge(), "lengths is f64 [2], not i32 or i64");
  p = {};
  p.tensors.erase(p.tensors.begin() + 3);
  expect_refused(p.judge(), "block_table is missing");
  p = {};
  p.tensors[1].tensor.rank = 3;
  expect_refused(p.judge(), "decode wants 4 extents");
  p = {};
  p.tensors[1].tensor.shape[2] = 0;
  expect_refused(p.judge(), "a page without slots");
  p = {};
  p.tensors[0].tensor.shape[0] = 1;
  expect_refused(p.judge(), "block_table has 2 sequences");
}

// A kernel behind the callback: it copies answers that are right, then does one thing wrong.
struct Function {
  Small right;
  int calls = 0;
  std::function<assay_status(const assay_call&, int call)> then;

  static assay_status answer(void* user, const assay_call* call, char* sentence,
                             std::uint64_t bytes) {
    auto& self = *static_cast<Function*>(user);
    for (std::int64_t n = 0; n < call->output_count; ++n) {
      const assay_tensor& to = call->outputs[n].tensor;
      const bool is_o = std::string(call->outputs[n].name) == "o";
      const std::vector<float>& from = is_o ? self.right.o : self.right.lse;
      auto* data = static_cast<float*>(to.data) + to.offset;
      for (std::int64_t h = 0, e = 0; h < 2; ++h)
        for (std::int64_t i = 0; i < 3; ++i)
          for (std::int64_t d = 0; d < (is_o ? 6 : 1); ++d, ++e)
            data[h * to.strides[1] + i * to.strides[2] + (is_o ? d * to.strides[3] : 0)] =
                from[static_cast<std::size_t>(e)];
    }
    const int call_number = self.calls++;
    if (!self.then) return ASSAY_SUCCESS;
    const assay_status status = self.then(*call, call_number);
    if (status != ASSAY_SUCCESS && status != ASSAY_UNKNOWN)
      std::snprintf(sentence, bytes, "sentence of status %d", status);
    return status;
  }
  json judge(const assay_features* features = nullptr) {
    return must(assay_judge_function, small, &Function::answer, this, 0, features, nullptr);
  }
};

TEST(Judge, AFunctionIsCalledTwiceAndJudged) {
  Function f;
  const json result = f.judge();
  EXPECT_EQ(result["outcome"], "pass") << result;
  EXPECT_EQ(f.calls, 2);
}

TEST(Judge, WhatAFunctionDoesWrongIsAResult) {
  const auto outcome = [](auto then) {
    Function f;
    f.then = then;
    const json result = f.judge();
    return result["outcome"].get<std::string>() + ": " + result["reason"].get<std::string>();
  };
  const auto o_of = [](const assay_call& c) {
    return static_cast<float*>(c.outputs[0].tensor.data) + c.outputs[0].tensor.offset;
  };
  EXPECT_THAT(outcome([&](const assay_call& c, int) { return *o_of(c) += 1, ASSAY_SUCCESS; }),
              HasSubstr("fail: O is outside"));
  EXPECT_THAT(outcome([&](const assay_call& c, int call) {
                if (call % 2 == 1) *o_of(c) = std::nextafter(*o_of(c), 9.f);
                return ASSAY_SUCCESS;
              }),
              HasSubstr("fail: poison"));
  EXPECT_THAT(outcome([&](const assay_call& c, int call) {
                if (call == 1) *o_of(c) = std::nextafter(*o_of(c), 9.f);
                return ASSAY_SUCCESS;
              }),
              HasSubstr("fail: not deterministic: 1 of 8 runs"));
  EXPECT_THAT(outcome([&](const assay_call& c, int) { return o_of(c)[-1] = 0, ASSAY_SUCCESS; }),
              HasSubstr("guard band was overwritten"));
  EXPECT_THAT(outcome([&](const assay_call& c, int) {
                auto* q = static_cast<float*>(c.inputs[0].tensor.data) + c.inputs[0].tensor.offset;
                return *q += 1, ASSAY_SUCCESS;
              }),
              HasSubstr("an input was changed"));
  EXPECT_EQ(outcome([](const assay_call&, int) { return ASSAY_EXECUTION_FAILED; }),
            "fail: sentence of status 5");
  EXPECT_EQ(outcome([](const assay_call&, int) { return ASSAY_UNSUPPORTED; }),
            "unsupported: sentence of status 6");
  EXPECT_EQ(outcome([](const assay_call&, int) { return ASSAY_UNKNOWN; }),
            "fail: the function answered 255 without a sentence");
}

TEST(Judge, ACallSaysWhatIsAsked) {
  Function f;
  std::string said;
  f.then = [&](const assay_call& c, int) {
    said = std::string(c.operation) + "; " + c.line + ";";
    for (std::int64_t n = 0; n < c.input_count; ++n) said += " " + std::string(c.inputs[n].name);
    said += " ->";
    for (std::int64_t n = 0; n < c.output_count; ++n) said += " " + std::string(c.outputs[n].name);
    return ASSAY_SUCCESS;
  };
  f.judge();
  EXPECT_EQ(said, "attention; attention causal; q k v offset -> o lse");
}

TEST(Judge, AFunctionWithoutAFeatureIsNotCalled) {
  const char* names[] = {"attention", "dtype=f32", "gqa", "head-dims", "offset"};
  assay_features features;
  assay_features_init(&features);
  features.names = names;
  features.count = 5;
  Function f;
  const json result = f.judge(&features);
  EXPECT_EQ(result["outcome"], "unsupported");
  EXPECT_EQ(result["reason"], "causal");
  EXPECT_EQ(f.calls, 0);
}

TEST(Judge, TheArithmeticOfAFunctionIsTold) {
  // It answers the mean of V in every row, which it adds up in double.
  const auto mean = [](void*, const assay_call* call, char*, std::uint64_t) -> assay_status {
    const assay_tensor &v = call->inputs[2].tensor, &o = call->outputs[0].tensor;
    for (std::int64_t d = 0; d < v.shape[3]; ++d) {
      double sum = 0;
      for (std::int64_t j = 0; j < v.shape[2]; ++j)
        sum += static_cast<float*>(v.data)[v.offset + j * v.strides[2] + d * v.strides[3]];
      for (std::int64_t i = 0; i < o.shape[2]; ++i)
        static_cast<float*>(o.data)[o.offset + i * o.strides[2] + d * o.strides[3]] =
            static_cast<float>(sum / static_cast<double>(v.shape[2]));
    }
    return ASSAY_SUCCESS;
  };
  const json told = must(assay_judge_identify, "attention dtype=f32", +mean, nullptr, 1, nullptr,
                         static_cast<const char*>("mean"));
  EXPECT_EQ(told["candidate"], "mean");
  EXPECT_EQ(told["case"], "attention b=1 h=1 l=64x128 d=64 dtype=f32");
  EXPECT_EQ(told["outcome"], "told") << told;
  json order;
  for (const json& s : told["statements"])
    if (s["subject"] == "P V, order of sums") order = s;
  EXPECT_THAT(order["input"].get<std::string>(), HasSubstr("2^30 at key 0"));
}

TEST(Judge, WhatCannotBeIdentifiedIsAnAnswer) {
  const auto outcome = [](assay_status status, const assay_features* features = nullptr) {
    Function f;
    f.then = [=](const assay_call&, int) { return status; };
    const auto answer = [](void* user, const assay_call* call, char* sentence, std::uint64_t n) {
      return static_cast<Function*>(user)->then(*call, (std::snprintf(sentence, n, "why"), 0));
    };
    const json told = must(assay_judge_identify, "attention dtype=f32", +answer,
                           static_cast<void*>(&f), 0, features, nullptr);
    EXPECT_TRUE(told["statements"].empty());
    return told["outcome"].get<std::string>() + ": " + told["reason"].get<std::string>();
  };
  EXPECT_EQ(outcome(ASSAY_EXECUTION_FAILED), "fail: why");
  EXPECT_THAT(outcome(ASSAY_UNSUPPORTED), AllOf(HasSubstr("unsupported: "), HasSubstr("why")));
  const char* name = "dtype=f16";
  assay_features features;
  assay_features_init(&features);
  features.names = &name;
  features.count = 1;
  EXPECT_THAT(outcome(ASSAY_SUCCESS, &features), HasSubstr("unsupported: "));
}

TEST(Judge, BadQuestionsAboutArithmeticAreRefused) {
  const auto asked = [](const char* line, assay_function function, std::int32_t no_lse,
                        const char* name) {
    return ask(assay_judge_identify, line, function, nullptr, no_lse, nullptr, name);
  };
  const assay_function answer = &Function::answer;
  expect_refused(asked(nullptr, answer, 0, nullptr), "line is NULL");
  expect_refused(asked("attention dtype=f31", answer, 0, nullptr), "dtype");
  expect_refused(asked("attention dtype=f64", answer, 0, nullptr),
                 "dtype=f64: inputs are chosen in f32, f16 or bf16");
  expect_refused(asked("attention dtype=f16 causal", answer, 0, nullptr),
                 "the operation and the dtype are read (attention");
  expect_refused(asked("product w=int8 m=3", answer, 0, nullptr),
                 "the operation, dtype, out, w and a are read (product");
  expect_refused(asked("product w=mxfp4 a=mxfp4", answer, 0, nullptr), "a=mxfp4 w=mxfp4: codes");
  expect_refused(asked("backward dtype=f16 causal", answer, 0, nullptr),
                 "the operation and the dtype are read (backward");
  expect_refused(asked("attention dtype=f16", nullptr, 0, nullptr), "function is NULL");
  expect_refused(asked("attention dtype=f16", answer, 3, nullptr), "no_lse is 3");
  expect_refused(asked("attention dtype=f16", answer, 0, ""), "name is empty");
}

TEST(Judge, CasesOfEveryOperationOpen) {
  const auto calls_of = [](const char* line) {
    assay_case* opened = nullptr;
    const json said = must(assay_case_open, line, &opened);
    std::string text;
    for (std::size_t k = 0; k < said["calls"].size(); ++k) {
      const assay_named_tensor* tensors = nullptr;
      std::int64_t count = 0;
      EXPECT_EQ(
          ask(assay_case_inputs, opened, static_cast<std::int64_t>(k), &tensors, &count).status,
          ASSAY_SUCCESS);
      text += said["calls"][k]["operation"].get<std::string>() + ":";
      for (std::int64_t n = 0; n < count; ++n) text += " " + std::string(tensors[n].name);
      text += " ->";
      for (const json& o : said["calls"][k]["outputs"]) text += " " + o["name"].get<std::string>();
      text += ". ";
    }
    assay_case_close(opened);
    return text;
  };
  EXPECT_EQ(calls_of("backward b=1 h=2 l=4 d=4 bias=normal sink=1"),
            "attention: q k v bias sink -> o lse. "
            "backward: q k v bias sink do -> dq dk dv d_bias d_sink. ");
  EXPECT_EQ(calls_of("attention b=2 h=1 l=3x9 d=4 causal offset=end cache=paged:4 chunks=2,1"),
            "decode: q k_pages v_pages block_table offset lengths -> o lse. "
            "decode: q k_pages v_pages block_table offset lengths -> o lse. ");
  EXPECT_EQ(calls_of("product m=2 n=8 k=32 w=int4"), "product: a w.codes w.scales w.extra -> c. ");
  EXPECT_EQ(calls_of("product m=2 n=8 k=32 w=mxfp4 a=mxfp4"),
            "product: a.codes a.scales w.codes w.scales -> c. ");
  EXPECT_EQ(calls_of("attention b=1 h=1 l=0x3 d=2"), "attention: q k v -> o lse. ");
}

TEST(Judge, AFailureIsMadeSmaller) {
  const auto fails = [](void* user, const char* line) -> std::int32_t {
    ++*static_cast<int*>(user);
    return std::string(line).find("causal") != std::string::npos;
  };
  int calls = 0;
  const Answer smallest =
      ask(assay_judge_shrink, "attention b=2 h=4/2 l=9x12 d=8 dtype=bf16 causal softcap=3 seed=5",
          nullptr, +fails, &calls, 60.0);
  EXPECT_EQ(smallest.status, ASSAY_SUCCESS);
  EXPECT_EQ(smallest.text, "attention b=1 h=1 l=1 d=1 dtype=f32 causal");
  EXPECT_GT(calls, 5);
  // Without time, or if it is told to stop, the case stays.
  calls = 0;
  EXPECT_EQ(ask(assay_judge_shrink, small, nullptr, +fails, &calls, 0.0).text, small);
  EXPECT_EQ(calls, 0);
  const auto stop = [](void* user, const char*) -> std::int32_t {
    ++*static_cast<int*>(user);
    return -1;
  };
  EXPECT_EQ(ask(assay_judge_shrink, small, nullptr, +stop, &calls, 60.0).text, small);
  EXPECT_EQ(calls, 1);
}

TEST(Judge, RecordFilesAreJudged) {
  expect_refused(ask(assay_judge_file, "/nonexistent.safetensors", nullptr), "/nonexistent");
  expect_refused(ask(assay_judge_file, nullptr, nullptr), "path is NULL");
}

// Results go in as they were answered; what is none names the field that is wrong.
TEST(Judge, FailuresAreToldTogether) {
  json results = json::array();
  for (int n = 3; n < 17; ++n)
    for (const bool causal : {false, true}) {
      const std::string line = "attention b=1 h=1 l=" + std::to_string(n) + "x9 d=4 dtype=f32" +
                               (causal ? " causal" : "");
      results.push_back({{"case", line},
                         {"candidate", "c"},
                         {"reproduce", "r"},
                         {"outcome", causal ? "fail" : "pass"},
                         {"reason", causal ? "the function raised 7" : "fine"}});
    }
  const json told = must(assay_judge_summary, results.dump().c_str());
  EXPECT_EQ(told["shared"]["sentence"],
            "all 14 failing cases have causal; none of 14 passing ones has it");
  ASSERT_EQ(told["causes"].size(), 1u);
  EXPECT_EQ(told["causes"][0]["cases"], 14);
  EXPECT_EQ(must(assay_judge_summary, "[]")["causes"].size(), 0u);
  expect_refused(ask(assay_judge_summary, nullptr), "results is NULL");
  for (const char* text : {"", "{}", "[", "7"})
    expect_refused(ask(assay_judge_summary, text), "results is no JSON array");
  results[0]["colour"] = "red";
  expect_refused(ask(assay_judge_summary, results.dump().c_str()), "colour");
  results[0].erase("colour");
  results[0].erase("reason");
  expect_refused(ask(assay_judge_summary, results.dump().c_str()), "reason");
}

TEST(Judge, EveryNullIsRefused) {
  assay_case* opened = nullptr;
  const assay_named_tensor* tensors = nullptr;
  std::int64_t count = 0;
  const auto answer = [](void*, const assay_call*, char*, std::uint64_t) -> assay_status {
    return ASSAY_SUCCESS;
  };
  const auto fails = [](void*, const char*) -> std::int32_t { return 0; };
  expect_refused(ask(assay_judge_suite, nullptr, 1, nullptr), "suite is NULL");
  expect_refused(ask(assay_judge_parse, nullptr), "line is NULL");
  expect_refused(ask(assay_case_open, nullptr, &opened), "line is NULL");
  expect_refused(ask(assay_case_open, small, nullptr), "opened is NULL");
  ASSERT_EQ(ask(assay_case_open, small, &opened).status, ASSAY_SUCCESS);
  expect_refused(ask(assay_case_inputs, nullptr, 0, &tensors, &count), "opened is NULL");
  expect_refused(ask(assay_case_inputs, opened, 0, nullptr, &count), "tensors is NULL");
  expect_refused(ask(assay_case_inputs, opened, 0, &tensors, nullptr), "count is NULL");
  expect_refused(ask(assay_case_inputs, opened, 1, &tensors, &count), "call is 1");
  expect_refused(ask(assay_case_inputs, opened, -1, &tensors, &count), "call is -1");
  expect_refused(ask(assay_judge_tensors, nullptr, nullptr, 0, nullptr), "line is NULL");
  expect_refused(ask(assay_judge_tensors, small, nullptr, 1, nullptr), "tensors is NULL");
  expect_refused(ask(assay_judge_function, nullptr, +answer, nullptr, 0, nullptr, nullptr),
                 "line is NULL");
  expect_refused(ask(assay_judge_function, small, nullptr, nullptr, 0, nullptr, nullptr),
                 "function is NULL");
  expect_refused(ask(assay_judge_function, small, +answer, nullptr, 2, nullptr, nullptr),
                 "no_lse is 2");
  expect_refused(ask(assay_judge_record, nullptr, nullptr, 0, nullptr), "line is NULL");
  expect_refused(ask(assay_judge_shrink, nullptr, nullptr, +fails, nullptr, 1.0), "line is NULL");
  expect_refused(ask(assay_judge_shrink, small, nullptr, nullptr, nullptr, 1.0), "fails is NULL");
  expect_refused(ask(assay_judge_shrink, small, nullptr, +fails, nullptr, -1.0), "seconds is -1");
  expect_refused(ask(assay_judge_shrink, small, nullptr, +fails, nullptr,
                     std::numeric_limits<double>::quiet_NaN()),
                 "seconds is nan");
  // Without a place for the answer there is only the status.
  EXPECT_EQ(assay_judge_facts(nullptr), ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_judge_parse(small, nullptr), ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_case_open(small, nullptr, nullptr), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_text_data(nullptr), "");
  assay_text_free(nullptr);
  assay_case_close(nullptr);
  assay_case_close(opened);
}

TEST(Judge, LinesThatAreWrongAreRefusedWithTheirColumn) {
  expect_refused(ask(assay_judge_parse, "attention b=1 h=1 l=2 d=x"),
                 "attention b=1 h=1 l=2 d=x\n                          ^");
  expect_refused(ask(assay_judge_parse, ""), "expected an operation");
  expect_refused(ask(assay_judge_suite, "smok", 1, nullptr), "unknown suite 'smok'");
  expect_refused(ask(assay_judge_record, "", nullptr, 0, nullptr), "its line begins with ''");
  expect_refused(ask(assay_judge_record, "decode", nullptr, 0, nullptr), "block_table is missing");
  assay_case* opened = nullptr;
  expect_refused(
      ask(assay_case_open, "attention b=1 h=1 l=1x9 d=9 offset=end cache=latent:4:16+4", &opened),
      "a latent cache");
  EXPECT_EQ(opened, nullptr);
}

TEST(Judge, FeaturesThatAreWrongAreRefused) {
  const char* names[] = {"causl", nullptr};
  assay_features features;
  assay_features_init(&features);
  const auto refused = [&] { return ask(assay_judge_suite, "tiny", 1, &features); };
  EXPECT_EQ(refused().status, ASSAY_SUCCESS);
  features.count = 1;
  expect_refused(refused(), "features.names is NULL");
  features.names = names;
  expect_refused(refused(), "unknown feature 'causl'");
  names[0] = "causal";
  features.count = 2;
  expect_refused(refused(), "a name of features.names is NULL");
  features.count = -2;
  expect_refused(refused(), "features.count is -2");
  features.count = 10001;
  expect_refused(refused(), "features.count is 10001");
  assay_features_init(&features);
  features.version = ASSAY_VERSION + 1;
  expect_refused(refused(), "features has version 3");
  assay_features_init(&features);
  features.struct_size -= 8;
  expect_refused(refused(), "features has version 2 and struct_size");
}

TEST(Judge, OptionsThatAreWrongAreRefused) {
  const Small c;
  const auto refused = [&](auto change) {
    assay_judge_options options;
    assay_judge_options_init(&options);
    change(options);
    return ask(assay_judge_tensors, small, c.outputs.data(), std::ssize(c.outputs), &options);
  };
  EXPECT_EQ(refused([](assay_judge_options&) {}).status, ASSAY_SUCCESS);
  expect_refused(refused([](assay_judge_options& o) { o.version = 0; }), "options has version 0");
  expect_refused(refused([](assay_judge_options& o) { o.struct_size = 1; }), "struct_size 1");
  expect_refused(refused([](assay_judge_options& o) { o.threads = -1; }), "options.threads is -1");
  expect_refused(refused([](assay_judge_options& o) { o.power = 2; }), "options.power is 2");
  expect_refused(refused([](assay_judge_options& o) { o.pictures = -1; }), "options.pictures");
  expect_refused(refused([](assay_judge_options& o) { o.relations = 7; }), "options.relations");
  expect_refused(refused([](assay_judge_options& o) { o.rows = -1; }), "options.rows is -1");
  expect_refused(refused([](assay_judge_options& o) { o.name = ""; }), "options.name is empty");
  expect_refused(refused([](assay_judge_options& o) { o.evidence = 3; }), "options.evidence is 3");
  expect_refused(refused([](assay_judge_options& o) { o.evidence = -1; }), "options.evidence");
  expect_refused(refused([](assay_judge_options& o) { o.reserved = 1; }), "options.reserved is 1");
  const auto arithmetic = [&](const char* text) {
    return refused([&](assay_judge_options& o) { o.arithmetic = text; });
  };
  expect_refused(arithmetic(" "), "arithmetic is empty");
  expect_refused(arithmetic("fp8 sums"),
                 "'fp8 sums', which is none for f32: fp32 accumulation, fp32 weights; ");
  expect_refused(arithmetic("exp_ulps=2"), "'exp_ulps=2' is no FIELD=NUMBER; the fields are dot_");
  expect_refused(arithmetic("tile=4 exp_ulp"), "'exp_ulp' is no FIELD=NUMBER");
  expect_refused(arithmetic("tile=4.5"), "'tile=4.5' has no whole number");
  expect_refused(arithmetic("exp_ulp="), "'exp_ulp=' has no number");
  expect_refused(arithmetic("exp_ulp=nan"), "exp_ulp = nan is outside [0.5, 1e+06]");
  expect_refused(arithmetic("weight_bits=8"), "8 bits");
}

TEST(Judge, TheArithmeticOfAProductIsDeclaredByFieldsOrByItsRung) {
  std::vector<float> c(2 * 3);
  assay_named_tensor t = named("c", c.data(), ASSAY_FLOAT, 32, {2, 3});
  t.tensor.rank = 2;
  t.tensor.strides[0] = 3;
  t.tensor.strides[1] = 1;
  const auto judged = [&](const char* text) {
    assay_judge_options o;
    assay_judge_options_init(&o);
    o.arithmetic = text;
    return ask(assay_judge_tensors, "product m=2 n=3 k=32 w=mxfp4", &t, std::int64_t{1}, &o).text;
  };
  EXPECT_THAT(judged("order=2 largest=65504"), HasSubstr("declared: order=2 largest=65504"));
  EXPECT_THAT(judged("fp32 sums, any order"), HasSubstr("\"contract\":\"fp32 sums, any order\""));
  for (const auto& [text, words] : std::map<std::string, std::string>{
           {"fp16 sums, any order", "none for f32: fp32 sums by group, any order; "},
           {"tile=4", "'tile=4' is no FIELD=NUMBER; the fields are roundoff, largest, order"},
           {"reserved=1", "'reserved=1' is no FIELD=NUMBER"},
           {"order=3", "order = 3 is outside [0, 2]"},
           {"order=-1", "order = -1 is outside [0, 2]"},
           {"order=1 block=8", "order = 1 goes with neither block"},
           {"order=2 weight_bits=16", "order = 2 goes with neither block"},
           {"weight_bits=4", "4 bits"},
           {"roundoff=0", "roundoff = 0 is outside"}})
    EXPECT_THAT(judged(text.c_str()), HasSubstr(words)) << text;
}

TEST(Judge, TensorsThatAreWrongAreRefused) {
  const auto refused = [](auto change) {
    Small c;
    change(c.outputs);
    return ask(assay_judge_tensors, small, c.outputs.data(), std::ssize(c.outputs), nullptr);
  };
  using Tensors = std::vector<assay_named_tensor>;
  expect_refused(refused([](Tensors& t) { t[0].name = nullptr; }), "name of a tensor is NULL");
  expect_refused(refused([](Tensors& t) { t[0].name = ""; }), "0 characters");
  expect_refused(refused([](Tensors& t) { t[0].name = "out"; }), "tensor o is missing");
  expect_refused(refused([](Tensors& t) { t[1].name = "l"; }), "tensor l is no output");
  expect_refused(refused([](Tensors& t) { t[1].name = "o"; }), "tensor o stands twice");
  expect_refused(refused([](Tensors& t) { t[0].tensor.version = 9; }), "tensor o has version 9");
  expect_refused(refused([](Tensors& t) { t[0].tensor.struct_size = 0; }), "struct_size 0");
  expect_refused(refused([](Tensors& t) { t[0].tensor.data = nullptr; }), "and no data");
  expect_refused(refused([](Tensors& t) { t[0].tensor.dtype.bits = 7; }),
                 "dtype of code 2, 7 bits");
  expect_refused(refused([](Tensors& t) { t[0].tensor.dtype.lanes = 2; }), "2 lanes");
  expect_refused(refused([](Tensors& t) { t[0].tensor.dtype.bits = 16; }),
                 "tensor o is f16 [1, 2, 3, 6], and the case wants f32 [1, 2, 3, 6]");
  expect_refused(refused([](Tensors& t) { t[0].tensor.device_type = 2; }), "device of type 2");
  expect_refused(refused([](Tensors& t) { t[0].tensor.rank = 0; }), "rank 0");
  expect_refused(refused([](Tensors& t) { t[0].tensor.rank = 5; }), "rank 5");
  expect_refused(refused([](Tensors& t) { t[0].tensor.shape[1] = -1; }), "extent of -1");
  expect_refused(refused([](Tensors& t) { t[0].tensor.shape[1] = 3; }),
                 "the case wants f32 [1, 2, 3, 6]");
  expect_refused(refused([](Tensors& t) { t[0].tensor.shape[1] = std::int64_t{1} << 41; }),
                 "extent of 2199");
  expect_refused(refused([](Tensors& t) {
                   t[0].tensor.shape[0] = t[0].tensor.shape[1] = std::int64_t{1} << 39;
                 }),
                 "more than 2^40 elements");
  expect_refused(refused([](Tensors& t) {
                   t[0].tensor.strides[1] = std::numeric_limits<std::int64_t>::min();
                 }),
                 "stride of -9223372036854775808");
  expect_refused(refused([](Tensors& t) { t[0].tensor.offset = std::int64_t{1} << 60; }),
                 "an offset of");
  const Small c;
  expect_refused(ask(assay_judge_tensors, small, c.outputs.data(), -1, nullptr), "count is -1");
  expect_refused(ask(assay_judge_tensors, small, c.outputs.data(), 1001, nullptr), "count is 1001");
  expect_refused(ask(assay_judge_tensors, small, c.outputs.data(), 0, nullptr), "o is missing");
}

TEST(Judge, ThreadsDoNotMeet) {
  std::vector<std::thread> threads;
  std::vector<std::string> outcomes(4);
  for (std::size_t t = 0; t < outcomes.size(); ++t)
    threads.emplace_back([&, t] {
      for (int n = 0; n < 3; ++n) {
        Small c;
        if (t % 2) c.o[3] += 1;
        outcomes[t] += c.judge()["outcome"].get<std::string>() + " ";
        outcomes[t] += ask(assay_judge_parse, t % 2 ? "nonsense" : small).status == ASSAY_SUCCESS
                           ? "parsed "
                           : "refused ";
      }
    });
  for (std::thread& t : threads) t.join();
  for (std::size_t t = 0; t < outcomes.size(); ++t)
    EXPECT_EQ(outcomes[t], t % 2 ? "fail refused fail refused fail refused "
                                 : "pass parsed pass parsed pass parsed ");
}

}  // namespace
