// Fuzz target: the judge behind its C interface. Lines may be any text, and tensors may be
// described in any way, but never claim memory that is not there. A call is refused with a status
// and a sentence, or answers with JSON.
#include <assay/judge.h>

#include <array>
#include <deque>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "fuzz/require.h"
#include "harness/cases/draw_case.h"

namespace {

using assay::Choices;
using nlohmann::json;

// Requires of an answer what must hold of any, and returns it if the call succeeded.
std::optional<std::string> take_text(assay_status status, assay_text* text) {
  const std::string answer = assay_text_data(text);
  assay_text_free(text);
  assay::require(status >= ASSAY_SUCCESS && (status <= ASSAY_INVALID_CACHE_STATE || status == 255),
                 "a status that does not exist");
  if (status == ASSAY_SUCCESS) return answer;
  assay::require(!answer.empty(), "a refusal without a sentence");
  return std::nullopt;
}

std::optional<json> take(assay_status status, assay_text* text) {
  const std::optional<std::string> answer = take_text(status, text);
  if (!answer) return std::nullopt;
  const json parsed = json::parse(*answer, nullptr, false);
  assay::require(!parsed.is_discarded(), "an answer that is no JSON: " + *answer);
  return parsed;
}

template <class Function, class... Arguments>
std::optional<json> ask(const Function& function, const Arguments&... arguments) {
  assay_text* text = nullptr;
  const assay_status status = function(arguments..., &text);
  return take(status, text);
}

// The line of a case, of which a byte may be another one.
std::string draw_line(Choices& in) {
  const assay::CaseKind kind = in.of({assay::CaseKind::forward, assay::CaseKind::backward,
                                      assay::CaseKind::cached, assay::CaseKind::product});
  std::array<unsigned char, 24> bytes;
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(in.below(256));
  std::string line = print_case(draw_case(kind, Choices(bytes), assay::little_work));
  if (in.below(4) == 0) line[in.below(line.size())] = static_cast<char>(1 + in.below(255));
  return line;
}

// The bytes of a tensor whose elements lie one behind the other; nullopt for any other.
std::optional<std::size_t> dense_bytes(const assay_tensor& t) {
  std::int64_t elements = 1;
  for (std::int32_t axis = t.rank - 1; axis >= 0; --axis) {
    if (t.shape[axis] > 1 && t.strides[axis] != elements) return std::nullopt;
    elements *= t.shape[axis];
  }
  if (!t.data || t.offset != 0) return std::nullopt;
  return static_cast<std::size_t>(elements) * t.dtype.bits / 8;
}

// Tensors of a case, of which some are described wrongly.
class Tensors {
 public:
  // An input keeps its shape, which says how much memory there is. A byte of it may be another one.
  void add_input(Choices& in, assay_named_tensor t) {
    if (const std::optional<std::size_t> bytes = dense_bytes(t.tensor); bytes && in.below(4) == 0) {
      const auto* held = static_cast<const unsigned char*>(t.tensor.data);
      std::vector<unsigned char>& memory = memory_.emplace_back(held, held + *bytes);
      memory.push_back(0);  // so that there is one
      memory[in.below(memory.size())] = static_cast<unsigned char>(in.below(256));
      t.tensor.data = memory.data();
    }
    if (in.below(16) == 0) spoil_but_shape(in, t);
    if (in.below(32) != 0) list_.push_back(t);
  }
  void add_output(Choices& in, const json& described) {
    static constexpr std::pair<const char*, std::pair<std::uint8_t, std::uint8_t>> dtypes[] = {
        {"f64", {ASSAY_FLOAT, 64}},
        {"f32", {ASSAY_FLOAT, 32}},
        {"f16", {ASSAY_FLOAT, 16}},
        {"bf16", {ASSAY_BFLOAT, 16}}};
    std::array<std::int64_t, 4> shape{1, 1, 1, 1};
    std::size_t rank = 0, count = 1;
    for (const json& extent : described["shape"]) {
      shape[rank++] = extent;
      count *= extent.get<std::size_t>();
    }
    std::pair<std::uint8_t, std::uint8_t> dtype{ASSAY_FLOAT, 32};
    for (const auto& [name, code] : dtypes)
      if (described["dtype"] == name) dtype = code;
    std::vector<unsigned char>& memory = memory_.emplace_back(count * dtype.second / 8 + 1);
    for (std::size_t k = 0; k < memory.size(); ++k)
      memory[k] = static_cast<unsigned char>(k < 64 ? in.below(256) : memory[k % 64]);
    const std::string& name = names_.emplace_back(described["name"].get<std::string>());
    assay_named_tensor t{name.c_str(), {}};
    assay_tensor_init(&t.tensor, memory.data(), dtype.first, dtype.second, shape[0], shape[1],
                      shape[2], shape[3]);
    t.tensor.rank = static_cast<std::int32_t>(rank);
    if (in.below(4) == 0) spoil(in, t);
    if (in.below(16) != 0) list_.push_back(t);
    if (in.below(16) == 0) list_.push_back(t);
  }
  const assay_named_tensor* data() const { return list_.data(); }
  std::int64_t count() const { return static_cast<std::int64_t>(list_.size()); }

 private:
  // A wrong description claims no memory beyond the tensor's own, or is not what the case asks for.
  static void spoil(Choices& in, assay_named_tensor& t) {
    constexpr std::int64_t wrong[] = {-1, 0, std::numeric_limits<std::int64_t>::max(),
                                      std::numeric_limits<std::int64_t>::min()};
    switch (in.below(7)) {
      case 0: t.tensor.rank = static_cast<std::int32_t>(in.between(-1, 5)); break;
      case 1: t.tensor.shape[in.below(4)] = in.of(wrong); break;
      default: spoil_but_shape(in, t);
    }
  }
  static void spoil_but_shape(Choices& in, assay_named_tensor& t) {
    switch (in.below(5)) {
      case 0: t.name = in.of({"q", "", "o", "nonsense", static_cast<const char*>(nullptr)}); break;
      case 1: t.tensor.data = nullptr; break;
      case 2: t.tensor.strides[in.below(4)] = 0; break;
      case 3: t.tensor.dtype.code = static_cast<std::uint8_t>(in.below(20)); break;
      default: t.tensor.struct_size = static_cast<std::uint32_t>(in.below(256));
    }
  }

  std::deque<std::string> names_;
  std::deque<std::vector<unsigned char>> memory_;
  std::vector<assay_named_tensor> list_;
};

assay_judge_options draw_options(Choices& in) {
  assay_judge_options o;
  assay_judge_options_init(&o);
  if (in.below(3) > 0) return o;
  o.power = static_cast<std::int32_t>(in.between(-1, 2));
  o.evidence = static_cast<std::int32_t>(in.between(-1, 3));
  o.threads = static_cast<std::int32_t>(in.of({1, -1, 1 << 30}));
  o.rows = in.of({std::int64_t{0}, std::int64_t{1}, std::int64_t{-1}});
  o.arithmetic = in.of({static_cast<const char*>(nullptr), "tile=32", "weight_bits=16 tile=0",
                        "fp16 accumulation", "="});
  return o;
}

// A function that copies one byte everywhere, and sometimes refuses.
assay_status answer_call(void* user, const assay_call* call, char* sentence, std::uint64_t bytes) {
  Choices& in = *static_cast<Choices*>(user);
  if (in.below(8) == 0) {
    if (bytes > 1) sentence[0] = '?', sentence[1] = 0;
    return static_cast<assay_status>(in.between(1, 7));
  }
  for (std::int64_t k = 0; k < call->output_count; ++k) {
    // Outputs that are laid out otherwise than one behind the other are left as they are.
    const assay_tensor& t = call->outputs[k].tensor;
    if (const std::optional<std::size_t> size = dense_bytes(t))
      std::memset(t.data, static_cast<int>(in.below(256)), *size);
  }
  return ASSAY_SUCCESS;
}

void judge_outputs(Choices& in, const std::string& line) {
  assay_case* opened = nullptr;
  assay_text* text = nullptr;
  const assay_status status = assay_case_open(line.c_str(), &opened, &text);
  const std::optional<json> calls = take(status, text);
  if (!calls) return;
  Tensors tensors;
  for (const json& call : (*calls)["calls"])
    for (const json& output : call["outputs"]) tensors.add_output(in, output);
  const assay_named_tensor* inputs = nullptr;
  std::int64_t count = 0;
  assay_text* none = nullptr;
  const std::int64_t call = in.between(-1, 2);
  const assay_status given = assay_case_inputs(opened, call, &inputs, &count, &none);
  assay_text_free(none);
  assay::require((given == ASSAY_SUCCESS) ==
                     (call >= 0 && call < static_cast<std::int64_t>((*calls)["calls"].size())),
                 "inputs of a call that does not exist, or none of one that does");
  const assay_judge_options options = draw_options(in);
  if (given == ASSAY_SUCCESS && in.flag()) {
    for (std::int64_t k = 0; k < count; ++k) tensors.add_input(in, inputs[k]);
    const json& asked = (*calls)["calls"][static_cast<std::size_t>(call)];
    const std::string said = asked["line"];  // its first word is that of an operation of cases
    const std::string record =
        asked["operation"].get<std::string>() + said.substr(std::min(said.find(' '), said.size()));
    ask(assay_judge_record, record.c_str(), tensors.data(), tensors.count(), &options);
  } else {
    ask(assay_judge_tensors, line.c_str(), tensors.data(), tensors.count(), &options);
  }
  assay_case_close(opened);
}

// Any text where a case, a record, a feature or results are expected.
void judge_text(const std::string& text) {
  ask(assay_judge_parse, text.c_str());
  ask(assay_judge_record, text.c_str(), static_cast<const assay_named_tensor*>(nullptr),
      std::int64_t{0}, static_cast<const assay_judge_options*>(nullptr));
  ask(assay_judge_summary, text.c_str());
  const char* name = text.c_str();
  assay_features features;
  assay_features_init(&features);
  features.names = &name;
  features.count = 1;
  ask(assay_judge_suite, "tiny", std::uint64_t{1}, &features);
}

// A function that fails as the input says. What is left must be a case.
void shrink_line(Choices& in, const std::string& line) {
  assay_text* text = nullptr;
  const auto fails = [](void* user, const char*) {
    return static_cast<std::int32_t>(static_cast<Choices*>(user)->between(-1, 3));
  };
  const assay_status status =
      assay_judge_shrink(line.c_str(), nullptr, +fails, &in, in.of({0.01, 0.0, -1.0}), &text);
  if (const std::optional<std::string> smaller = take_text(status, text))
    assay::require(ask(assay_judge_parse, smaller->c_str()).has_value(),
                   "it is no case: " + *smaller);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  Choices in({data, size});
  const std::uint64_t what = in.below(8);
  if (what == 0) {
    if (size > 0) judge_text(std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
    return 0;
  }
  const std::string line = draw_line(in);
  const std::uint64_t rare = in.below(16);
  if (rare == 0) {
    const std::size_t words = in.below(3) == 0 ? line.size() : line.find(' ');
    const std::string asked = line.substr(0, words) + in.of({"", " dtype=f16", " dtype=bf16",
                                                             " w=nvfp4", " w=f8e4m3 a=f8e5m2"});
    ask(assay_judge_identify, asked.c_str(), &answer_call, static_cast<void*>(&in),
        static_cast<std::int32_t>(in.below(2)), static_cast<const assay_features*>(nullptr),
        in.of({static_cast<const char*>(nullptr), "", "mine"}));
    return 0;
  }
  if (rare == 1) {
    shrink_line(in, line);
    return 0;
  }
  const std::optional<json> parsed = ask(assay_judge_parse, line.c_str());
  if (!parsed || !assay::affordable(assay::parse_case(line))) return 0;
  if (what < 5) {
    judge_outputs(in, line);
  } else {
    const assay_judge_options options = draw_options(in);
    ask(assay_judge_function, line.c_str(), &answer_call, static_cast<void*>(&in),
        static_cast<std::int32_t>(in.below(2)), static_cast<const assay_features*>(nullptr),
        &options);
  }
  return 0;
}
