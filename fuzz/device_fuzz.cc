// Fuzz target: a device whose calls fail at chosen places, with chosen codes, several times in a
// row. Whatever happens, outputs are whole or untouched, nothing stays allocated, nothing is used
// after it failed, and the next call is right.

#include "fuzz/require.h"
#include "harness/cases/draw_case.h"
#include "testing/device_world.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace assay;
  Choices in({data, size});
  AttentionFixture& a = everything();
  const std::vector<const Tensor*> outputs = {&a.out.o, &a.out.lse};
  const std::span<const NativeTable* const> tables = native_tables();
  const NativeTable& table = *tables[in.below(tables.size())];
  static const std::string right = [&] {
    World w(posix_codes());
    require(w.dispatcher().sdpa(a.in.problem, a.out.view()).ok(), "a run without failures fails");
    return bytes_of_tensors(outputs);
  }();
  World w(table);
  for (Index calls = in.between(1, 4); calls > 0; --calls) {
    std::memset(a.out.o.bytes(), 0xA5, a.out.o.size_in_bytes());
    std::memset(a.out.lse.bytes(), 0xA5, a.out.lse.size_in_bytes());
    const std::string untouched = bytes_of_tensors(outputs);
    for (Index failures = in.between(0, 3); failures > 0; --failures) {
      const std::size_t index = in.below(40);
      switch (in.below(8)) {
        case 0:
          w.script.fail(index, []() -> NativeCode { throw std::runtime_error("thrown"); });
          break;
        case 1: w.script.fail(index, []() -> NativeCode { throw std::bad_alloc(); }); break;
        case 2: w.script.fail(index, []() -> NativeCode { throw 42; }); break;
        case 3: w.script.fail(index, [code = in.of(undefined_codes)] { return code; }); break;
        default:
          w.script.fail(
              index, [code = table.entries[in.below(table.entries.size())].code] { return code; });
      }
    }
    const Status status = w.dispatcher().sdpa(a.in.problem, a.out.view());
    require(
        bytes_of_tensors(outputs) == (status.ok() ? right : untouched),
        status.ok() ? "a call that succeeded gave other bits" : "a call that failed has written");
    require(status.ok() || !status.detail.empty(), "a failure without a word");
    require(!w.script.holds_buffers(), "buffers are still held: " + status.detail);
    require(w.script.breach().empty(), w.script.breach());
    w.script.clear();
    if (w.session->lost())
      require(assay_context_reopen(w.context) == ASSAY_SUCCESS,
              "a lost device does not open again");
  }
  require(w.dispatcher().sdpa(a.in.problem, a.out.view()).ok(), "the next call fails");
  require(bytes_of_tensors(outputs) == right, "the next call has other bits");
  (void)w.session->close();
  require(w.script.held() == 0, "something is still held");
  return 0;
}
