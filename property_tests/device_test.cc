// The device layer: every call of a run fails once with every code of every native table, and with
// exceptions. The tests also try every pair of a failure and a second failure during the cleaning
// up, and the complete words that reach the caller.
#include <assay/assay.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <iostream>
#include <map>

#include "kernels/dispatch/single_head.h"
#include "testing/device_world.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::NiceMock;

struct Scenario {
  const char* name;
  std::function<Status(World&)> call;
  std::vector<const Tensor*> outputs, inputs;

  void poison_outputs() const {
    for (const Tensor* t : outputs) std::memset(t->bytes(), 0xA5, t->size_in_bytes());
  }
};

assay_tensor c_tensor(const TensorView& t) {
  assay_tensor c;
  assay_tensor_init(&c, t.data, ASSAY_FLOAT, 32, t.shape[0], t.shape[1], t.shape[2], t.shape[3]);
  std::copy(t.stride.begin(), t.stride.end(), c.strides);
  c.offset = t.origin;
  return c;
}
Status status_of_c(assay_status code) {
  return {static_cast<StatusCode>(code), assay_last_error()};
}

// A problem of shape [5, 4], called through C.
struct SingleFixture {
  Tensor q{Dtype::f32, {1, 1, 5, 4}, {{0, 0, 4, 1}, 0, 20}},
      k{q.view().dtype, {1, 1, 7, 4}, {{0, 0, 4, 1}, 0, 28}},
      v{Dtype::f32, {1, 1, 7, 4}, {{0, 0, 4, 1}, 0, 28}},
      o{Dtype::f32, {1, 1, 5, 4}, {{0, 0, 4, 1}, 0, 20}};
  SingleFixture() {
    for (const Tensor* t : {&q, &k, &v})
      for (Index e = 0; e < element_count(t->view().shape); ++e)
        store(t->view(), e, static_cast<double>((e * 7 + 3) % 11) / 8 - 0.5);
  }
  static assay_tensor flat(const Tensor& t) {
    assay_tensor c = c_tensor(t.view());
    c.rank = 2;
    c.shape[0] = t.view().shape[2];
    c.shape[1] = t.view().shape[3];
    c.strides[0] = 4;
    c.strides[1] = 1;
    return c;
  }
};
SingleFixture& single() {
  static SingleFixture f;
  return f;
}

std::vector<Scenario> scenarios() {
  AttentionFixture& a = everything();
  ProductFixture& p = small_product();
  SingleFixture& s = single();
  return {
      {"attention by the dispatcher",
       [&](World& w) { return w.dispatcher().sdpa(a.in.problem, a.out.view()); },
       {&a.out.o, &a.out.lse},
       {&a.in.q, &a.in.k, &a.in.v, &a.in.bias}},
      {"attention on a warm device",
       [&](World& w) {
         if (w.script.call_count() == 0) {
           const Outputs before(a.c);
           EXPECT_TRUE(w.dispatcher().sdpa(a.in.problem, before.view()).ok());
         }
         return w.dispatcher().sdpa(a.in.problem, a.out.view());
       },
       {&a.out.o, &a.out.lse},
       {&a.in.q, &a.in.k, &a.in.v, &a.in.bias}},
      {"the FP4 product",
       [&](World& w) {
         return device_product(*w.session, p.in.problem.a, p.in.problem.w, p.out.c.view(), 1);
       },
       {&p.out.c},
       {&p.in.a, &p.in.w.codes(), &p.in.w.scales()}},
      {"one head through C",
       [&](World& w) {
         const assay_tensor q = SingleFixture::flat(s.q), k = SingleFixture::flat(s.k),
                            v = SingleFixture::flat(s.v), o = SingleFixture::flat(s.o);
         return status_of_c(assay_single_head_attention(w.context, &q, &k, &v, &o, nullptr, 1));
       },
       {&s.o},
       {&s.q, &s.k, &s.v}},
  };
}

// A run without failures: the calls that it makes, and its result.
struct Recorded {
  std::vector<DeviceCall> calls;  // the calls of the run, then those of closing
  // The number of calls before the run that counts, and the number of calls of that run.
  std::size_t first = 0, run = 0;
  std::string result;
};

Recorded record(const Scenario& scenario, const NativeTable& table) {
  Recorded r;
  World w(table);
  // A warm scenario makes its first, uncounted run here.
  if (std::string_view(scenario.name).find("warm") != std::string_view::npos) {
    scenario.call(w);
    r.first = w.script.call_count();
  }
  scenario.poison_outputs();
  EXPECT_TRUE(scenario.call(w).ok());
  r.run = w.script.call_count() - r.first;
  r.result = bytes_of_tensors(scenario.outputs);
  EXPECT_TRUE(w.session->close().ok());
  r.calls.assign(w.script.calls().begin() + static_cast<std::ptrdiff_t>(r.first),
                 w.script.calls().end());
  EXPECT_EQ(w.script.breach(), "");
  EXPECT_EQ(w.script.held(), 0u);
  return r;
}

// Runs once while call `index` fails. `expected` is the status, and the detail must hold `words`.
void fail_and_recover(const Scenario& scenario, const NativeTable& table, const Recorded& r,
                      std::size_t index, const Script::Failure& how, StatusCode expected,
                      const std::string& words, bool sticky) {
  static std::map<const char*, std::string> inputs_of;
  std::string& inputs = inputs_of[scenario.name];
  if (inputs.empty()) inputs = bytes_of_tensors(scenario.inputs);

  World w(table);
  if (r.first > 0) scenario.call(w);
  scenario.poison_outputs();
  const std::string untouched = bytes_of_tensors(scenario.outputs);
  w.script.fail(index, how);
  Status status = scenario.call(w);
  const bool in_run = index < r.run;
  if (in_run) {
    ASSERT_EQ(bytes_of_tensors(scenario.outputs), untouched);
  } else {
    ASSERT_TRUE(status.ok()) << status.detail;
    ASSERT_EQ(bytes_of_tensors(scenario.outputs), r.result);
    status = w.session->close();
    ASSERT_EQ(w.script.held(), 0u);
  }
  ASSERT_EQ(status.code, expected) << status.detail;
  ASSERT_NE(status.detail.find(words), std::string::npos) << status.detail << "\nlacks " << words;
  ASSERT_NE(status.detail.find("mock: " + std::string(name_of(r.calls[index]))), std::string::npos)
      << status.detail;
  ASSERT_FALSE(w.script.holds_buffers());
  ASSERT_EQ(w.script.breach(), "");

  scenario.poison_outputs();
  if (sticky) {
    const std::size_t before = w.script.call_count();
    const Status lost = scenario.call(w);
    ASSERT_EQ(lost.code, StatusCode::device_not_supported);
    ASSERT_NE(lost.detail.find(words), std::string::npos) << lost.detail;
    ASSERT_EQ(w.script.call_count(), before) << "a lost device was called";
    ASSERT_EQ(bytes_of_tensors(scenario.outputs), untouched);
    ASSERT_TRUE(w.session->lost());
    ASSERT_EQ(assay_context_reopen(w.context), ASSAY_SUCCESS) << assay_last_error();
  }
  ASSERT_FALSE(w.session->lost());
  const Status again = scenario.call(w);
  ASSERT_TRUE(again.ok()) << again.detail;
  ASSERT_EQ(bytes_of_tensors(scenario.outputs), r.result) << "the next run has other bits";
  ASSERT_EQ(bytes_of_tensors(scenario.inputs), inputs) << "an input was written";
  ASSERT_TRUE(w.session->close().ok());
  ASSERT_EQ(w.script.held(), 0u);
  ASSERT_EQ(w.script.breach(), "");
}

TEST(DeviceFailures, EveryCallFailsOnceWithEveryCode) {
  std::size_t pairs = 0;
  for (const Scenario& scenario : scenarios())
    for (const NativeTable* table : native_tables()) {
      const Recorded r = record(scenario, *table);
      SCOPED_TRACE(testing::Message() << scenario.name << ", " << table->interface);
      std::vector<NativeEntry> entries(table->entries.begin(), table->entries.end());
      for (NativeCode code : undefined_codes) entries.push_back({code, "", StatusCode::unknown});
      for (std::size_t i = 0; i < r.calls.size(); ++i)
        for (const NativeEntry& e : entries) {
          ++pairs;
          fail_and_recover(
              scenario, *table, r, i, [&] { return e.code; }, e.status, describe(*table, e.code),
              e.sticky);
          if (HasFatalFailure())
            FAIL() << "call " << i << " (" << name_of(r.calls[i]) << ") with code " << e.code;
        }
    }
  std::cout << "  " << pairs << " pairs of call and code\n";
  RecordProperty("pairs", static_cast<int>(pairs));
  EXPECT_GT(pairs, 30000u);
}

TEST(DeviceFailures, EveryCallThrows) {
  std::size_t runs = 0;
  for (const Scenario& scenario : scenarios()) {
    const NativeTable& table = opencl_codes();
    const Recorded r = record(scenario, table);
    SCOPED_TRACE(scenario.name);
    for (std::size_t i = 0; i < r.calls.size(); ++i) {
      const StatusCode of_std = r.calls[i] == DeviceCall::compile
                                    ? StatusCode::kernel_compilation_failed
                                    : StatusCode::execution_failed;
      fail_and_recover(
          scenario, table, r, i,
          []() -> NativeCode { throw std::runtime_error("the compiler crashed"); }, of_std,
          "the compiler crashed", false);
      fail_and_recover(
          scenario, table, r, i, []() -> NativeCode { throw std::bad_alloc(); },
          StatusCode::memory_allocation_failed, "std::bad_alloc", false);
      fail_and_recover(
          scenario, table, r, i, []() -> NativeCode { throw 42; }, StatusCode::unknown,
          "an exception that is no std::exception", false);
      runs += 3;
      if (HasFatalFailure()) FAIL() << "call " << i << " (" << name_of(r.calls[i]) << ")";
    }
  }
  std::cout << "  " << runs << " exceptions\n";
}

// Gives one code for each status.
std::vector<NativeEntry> representatives(const NativeTable& table) {
  std::map<StatusCode, NativeEntry> first;
  for (const NativeEntry& e : table.entries)
    if (!e.sticky) first.emplace(e.status, e);
  std::vector<NativeEntry> list;
  for (const auto& [status, e] : first) list.push_back(e);
  list.push_back({undefined_codes[0], "", StatusCode::unknown});
  return list;
}

// The status is that of the first failure, and the second one is told after it. Everything is still
// released exactly once.
TEST(DeviceFailures, CleaningUpFailsToo) {
  std::size_t pairs = 0;
  const NativeTable& table = opencl_codes();
  const std::vector<NativeEntry> codes = representatives(table);
  ASSERT_EQ(codes.size(), 6u);
  for (const Scenario& scenario : scenarios()) {
    const Recorded r = record(scenario, table);
    SCOPED_TRACE(scenario.name);
    for (std::size_t i = 0; i < r.calls.size(); ++i) {
      // The calls after a failure of call i, closing included, are the cleaning up.
      std::size_t after = 0;
      {
        World w(table);
        if (r.first > 0) scenario.call(w);
        w.script.fail(i, [&] { return codes[0].code; });
        scenario.call(w);
        w.session->close();
        after = w.script.call_count() - r.first - i - 1;
      }
      for (std::size_t second = 1; second <= after; ++second)
        for (const NativeEntry& a : codes)
          for (const NativeEntry& b : codes) {
            ++pairs;
            World w(table);
            if (r.first > 0) scenario.call(w);
            scenario.poison_outputs();
            const std::string untouched = bytes_of_tensors(scenario.outputs);
            w.script.fail(i, [&] { return a.code; });
            w.script.fail(i + second, [&] { return b.code; });
            const Status status = scenario.call(w);
            const std::size_t made = w.script.call_count() - r.first;
            const Status closed = w.session->close();
            const Status& first = i < made ? status : closed;
            ASSERT_EQ(first.code, a.status) << first.detail;
            ASSERT_THAT(first.detail, HasSubstr(describe(table, a.code)));
            if (i < made) ASSERT_EQ(bytes_of_tensors(scenario.outputs), untouched);
            // The second failure belongs to the same operation, or to closing.
            const Status& later = i < made && i + second >= made ? closed : first;
            ASSERT_THAT(later.detail, HasSubstr(describe(table, b.code)));
            if (&later == &closed && &first == &status) ASSERT_EQ(closed.code, b.status);
            ASSERT_EQ(w.script.held(), 0u);
            ASSERT_EQ(w.script.breach(), "");
          }
    }
  }
  std::cout << "  " << pairs << " pairs of failures\n";
  EXPECT_GT(pairs, 10000u);
}

// GoogleMock counts independently: one upload fails, and each object that was acquired is released
// exactly once, in reverse order.
TEST(DeviceFailures, MockSeesReverseOrder) {
  World w(metal_codes());
  std::vector<BufferHandle> buffers;
  testing::Sequence order;
  EXPECT_CALL(*w.device, open).InSequence(order);
  EXPECT_CALL(*w.device, query).InSequence(order);
  EXPECT_CALL(*w.device, compile).InSequence(order);
  EXPECT_CALL(*w.device, allocate).Times(6).InSequence(order);
  EXPECT_CALL(*w.device, upload).Times(3).InSequence(order);
  EXPECT_CALL(*w.device, free).Times(6).InSequence(order);
  EXPECT_CALL(*w.device, release).InSequence(order);
  EXPECT_CALL(*w.device, close).InSequence(order);
  EXPECT_CALL(*w.device, launch).Times(0);
  w.script.fail(11, [] { return 3; });
  const Status status = scenarios().back().call(w);
  EXPECT_EQ(status.code, StatusCode::execution_failed);
  EXPECT_TRUE(w.session->close().ok());
}

// ---- The words that reach the caller ----

// Every path from a native code to the final text of the single-head interface. The texts are
// derived here from the tables alone.
TEST(DeviceMessages, TheCodeIsNeverLost) {
  const char* const calls[] = {"open",
                               "query",
                               "compile attention_forward",
                               "allocate query",
                               "allocate key",
                               "allocate value",
                               "allocate limits",
                               "allocate parameters",
                               "allocate output",
                               "upload query",
                               "upload key",
                               "upload value",
                               "upload limits",
                               "upload parameters",
                               "launch attention_forward",
                               "synchronize",
                               "download output",
                               "free",
                               "free",
                               "free",
                               "free",
                               "free",
                               "free"};
  const std::map<StatusCode, std::pair<std::string, std::string>> texts = {
      {StatusCode::invalid_arguments,
       {"Invalid arguments", "Invalid arguments - check tensor shapes and parameters"}},
      {StatusCode::memory_allocation_failed,
       {"Memory allocation failed", "Memory allocation failed"}},
      {StatusCode::device_not_supported, {"Device not supported", "Metal device not supported"}},
      {StatusCode::kernel_compilation_failed,
       {"Kernel compilation failed", "Metal kernel compilation failed"}},
      {StatusCode::execution_failed, {"Execution failed", "Kernel execution failed"}},
      {StatusCode::unknown, {"Unknown error", "Unknown error"}}};
  const Scenario scenario = scenarios().back();
  std::size_t paths = 0;
  for (const NativeTable* table : native_tables()) {
    std::vector<NativeEntry> entries(table->entries.begin(), table->entries.end());
    for (NativeCode code : undefined_codes) entries.push_back({code, "", StatusCode::unknown});
    for (std::size_t i = 0; i < std::size(calls); ++i)
      for (const NativeEntry& e : entries) {
        const std::string call = calls[i];
        World w(*table);
        w.script.fail(i, [&] { return e.code; });
        const Status status = scenario.call(w);
        const auto& [message, suffix] = texts.at(e.status);
        const int number = static_cast<int>(e.status);
        std::string sentence = fmt::format(
            "Metal Flash Attention forward pass failed with code {} ({})", number, suffix);
        if (call == "open" || call == "query")
          sentence = e.status == StatusCode::device_not_supported
                         ? "Metal is not available on this device"
                         : "Failed to create Metal Flash Attention context";
        for (const char* buffer : {"query", "key", "value", "output"})
          if (call == fmt::format("allocate {}", buffer))
            sentence = fmt::format("Failed to create {} buffer", buffer);
        const std::string native = e.name.empty() ? fmt::format("code {}, which {} does not define",
                                                                e.code, table->interface)
                                                  : fmt::format("{} ({})", e.name, e.code);
        ASSERT_EQ(status.detail,
                  fmt::format("{}: Metal SDPA Backend Error: {} [{}, {}: mock: {} failed with {}]",
                              message, sentence, number, message, call, native));
        ++paths;
      }
  }
  std::cout << "  " << paths << " paths from a native code to the final message\n";
}

TEST(DeviceMessages, ForwardFailures) {
  EXPECT_EQ(forward_failure_message(1),
            "Metal Flash Attention forward pass failed with code 1 (Invalid arguments - check "
            "tensor shapes and parameters)");
  EXPECT_EQ(forward_failure_message(2),
            "Metal Flash Attention forward pass failed with code 2 (Memory allocation failed)");
  EXPECT_EQ(forward_failure_message(3),
            "Metal Flash Attention forward pass failed with code 3 (Metal device not supported)");
  EXPECT_EQ(
      forward_failure_message(4),
      "Metal Flash Attention forward pass failed with code 4 (Metal kernel compilation failed)");
  EXPECT_EQ(forward_failure_message(5),
            "Metal Flash Attention forward pass failed with code 5 (Kernel execution failed)");
  for (int code : {0, 6, 7, 255, -1, 99})
    EXPECT_EQ(forward_failure_message(code),
              fmt::format("Metal Flash Attention forward pass failed with code {} (Unknown error)",
                          code));
}

// The script that the enumeration uses must notice every breach.
TEST(Script, NoticesEveryBreach) {
  const auto breach = [](const std::function<void(MockDevice&)>& use) {
    Script script(opencl_codes());
    NiceMock<MockDevice> device;
    script.attach(device);
    use(device);
    return script.breach() + (script.held() > 0 ? "held" : "");
  };
  BufferHandle a{}, b{};
  KernelHandle kernel{};
  EXPECT_EQ(breach([&](MockDevice& d) {
              d.open();
              d.compile({"", "", "attention_forward", {}}, kernel);
              d.allocate(4, a);
              d.allocate(4, b);
              d.free(b);
              d.free(a);
              d.release(kernel);
              d.close();
            }),
            "");
  EXPECT_THAT(breach([&](MockDevice& d) { d.allocate(4, a); }),
              HasSubstr("allocate of a device that is not open"));
  EXPECT_THAT(breach([&](MockDevice& d) { d.open(); }), HasSubstr("held"));
  EXPECT_THAT(breach([&](MockDevice& d) { d.open(), d.allocate(4, a), d.close(); }),
              HasSubstr("close of what is not held, or out of order"));
  EXPECT_THAT(
      breach([&](MockDevice& d) { d.open(), d.allocate(4, a), d.allocate(4, b), d.free(a); }),
      HasSubstr("free of what is not held, or out of order"));
  EXPECT_THAT(breach([&](MockDevice& d) { d.open(), d.allocate(4, a), d.free(a), d.free(a); }),
              HasSubstr("free of what is not held"));
  EXPECT_THAT(breach([&](MockDevice& d) { d.open(), d.close(), d.close(); }),
              HasSubstr("close of a device that is not open"));
}

}  // namespace
}  // namespace assay
