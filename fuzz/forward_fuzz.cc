// The forward kernel under the certified verdict: bytes become a valid small case, and every outcome but a failure
// of the kernel or of the oracle is fine.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "harness/execute.h"

namespace {

// Takes choices from the input; when it is used up, every choice is 0.
class Choices {
 public:
  Choices(const unsigned char* data, std::size_t size) : data_(data), size_(size) {}
  std::uint64_t below(std::uint64_t n) {
    std::uint64_t x = 0;
    for (std::uint64_t span = 1; span < n; span *= 256) x = x * 256 + (size_ > 0 ? (--size_, *data_++) : 0);
    return x % n;
  }
  bool flag() { return below(2) == 1; }

 private:
  const unsigned char* data_;
  std::size_t size_;
};

assay::Case decode(Choices in) {
  using namespace assay;
  Case c;
  auto length = [&] { return static_cast<Index>(in.below(4) == 0 ? 60 + in.below(140) : 1 + in.below(20)); };
  c.shape.batch = static_cast<Index>(1 + in.below(3));
  c.shape.kv_heads = static_cast<Index>(1 + in.below(3));
  c.shape.query_heads = c.shape.kv_heads * static_cast<Index>(1 + in.below(3));
  c.shape.rows = length();
  c.shape.keys = length();
  c.shape.dim = static_cast<Index>(1 + in.below(40));
  c.shape.value_dim = static_cast<Index>(1 + in.below(40));
  c.dtype = std::array{Dtype::f32, Dtype::f16, Dtype::bf16}[in.below(3)];
  if (in.flag()) c.out = std::array{Dtype::f32, Dtype::f16, Dtype::bf16}[in.below(3)];
  c.scores = static_cast<Scores>(in.below(scores_count));
  c.values = static_cast<Values>(in.below(values_count));
  c.causal = in.flag();
  if (in.flag()) c.offset = in.flag() ? OffsetSpec{OffsetSpec::Kind::end, 0} : OffsetSpec{OffsetSpec::Kind::fixed, static_cast<Index>(in.below(400)) - 200};
  if (in.flag()) c.window_left = static_cast<Index>(in.below(30)) - 1, c.window_right = static_cast<Index>(in.below(30)) - 1;
  if (in.flag()) c.lengths = {static_cast<Index>(in.below(static_cast<std::uint64_t>(c.shape.keys) + 1))};
  if (in.flag()) c.starts = {static_cast<Index>(in.below(static_cast<std::uint64_t>(c.shape.keys) + 1))};
  if (in.flag()) c.keep.pattern = static_cast<MaskPattern>(1 + in.below(5));
  if (in.flag()) c.bias.pattern = static_cast<MaskPattern>(6 + in.below(6)), c.finite_min_masks = in.flag();
  for (bool& varies : c.keep.varies) varies = !in.flag();
  for (bool& varies : c.bias.varies) varies = !in.flag();
  if (in.flag()) c.documents = {static_cast<Index>(1 + in.below(30)), static_cast<Index>(1 + in.below(30))};
  c.alibi = in.flag();
  if (in.flag()) c.sink = static_cast<float>(in.below(40)) - 20;
  if (in.flag()) c.softcap = static_cast<float>(in.below(100)) * 0.5f;
  if (in.flag()) c.scale = static_cast<float>(in.below(1000)) * 0.01f;
  if (in.flag()) c.dropout = static_cast<float>(in.below(9)) * 0.1f, c.dropout_seed = in.below(100);
  c.hidden = static_cast<Hidden>(in.below(4));
  for (LayoutKind* layout : {&c.q_layout, &c.k_layout, &c.v_layout}) *layout = static_cast<LayoutKind>(in.below(layout_count));
  if (const auto o = static_cast<LayoutKind>(in.below(layout_count)); o != LayoutKind::shared_head && o != LayoutKind::shared_batch) c.o_layout = o;
  for (std::uint64_t n = in.below(3); n > 0; --n) {
    Poke p;
    p.tensor = "qkv"[in.below(3)];
    const Index columns = p.tensor == 'v' ? c.shape.value_dim : c.shape.dim;
    const Extents shape{c.shape.batch, p.tensor == 'q' ? c.shape.query_heads : c.shape.kv_heads, p.tensor == 'q' ? c.shape.rows : c.shape.keys, columns};
    for (std::size_t axis = 0; axis < 4; ++axis) p.position[axis] = static_cast<Index>(in.below(static_cast<std::uint64_t>(shape[axis])));
    p.value = std::array{NAN, INFINITY, -INFINITY, 0.0f, 1e30f, -1e-40f}[in.below(6)];
    c.pokes.push_back(p);
  }
  c.seed = in.below(1u << 16);
  return c;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace assay;
  const Case c = decode({data, size});
  static const std::unique_ptr<Candidate> host = make_candidate("host");
  ExecuteOptions options;
  options.power = false;
  CaseResult result;
  try {
    result = execute(c, *host, options);
  } catch (const CaseError&) {
    return 0;  // finite-min-masks without a bias and the like
  }
  if (result.outcome == Outcome::fail || result.outcome == Outcome::error) {
    std::fprintf(stderr, "%s\nassay check --case '%s'\n", result.reason.c_str(), result.line.c_str());
    std::abort();
  }
  return 0;
}
