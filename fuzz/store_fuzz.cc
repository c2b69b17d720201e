// Fuzz target: what is imported into a store, JSON lines and reports of Google Benchmark. An import
// is refused with a sentence and stores nothing, or it is stored whole, and its export can be
// imported again.
#include <sstream>

#include "fuzz/require.h"
#include "harness/results/schema.h"
#include "reports/store.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace assay;
  const std::string text(reinterpret_cast<const char*>(data), size);
  Store store(":memory:");
  std::istringstream in(text);
  try {
    const std::size_t count = store.import_lines(in);
    require(store.runs().size() == count, "not as many runs as were imported");
  } catch (const StoreError& e) {
    require(e.what()[0] != '\0', "a refusal without a word");
    require(store.runs().empty(), "a refused import has left something");
  }
  try {
    store.append_benchmarks(Json::parse(text, nullptr, false), "input");
  } catch (const StoreError&) {
  }
  std::ostringstream first, second;
  store.export_lines(first);
  Store copy(":memory:");
  std::istringstream again(first.str());
  if (store.runs().empty()) return 0;  // an import of nothing is refused
  require(copy.import_lines(again) == store.runs().size(), "not every exported run is imported");
  copy.export_lines(second);
  require(first.str() == second.str(), "a run changed on its way through a store");
  return 0;
}
