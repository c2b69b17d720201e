#include "harness/judging/quantization.h"

#include <fmt/format.h>

#include <cstring>

#include "harness/judging/guarded_call.h"

namespace assay {
namespace {

bool same_matrix(const ProductSpec& p, const kernels::LowBitBytes& bytes) {
  const LowBitSizes sizes = sizes_of(p.format, p.k, p.n, p.group_size());
  return bytes.format == p.format && bytes.k == p.k && bytes.n == p.n &&
         bytes.group == p.group_size() && std::ssize(bytes.codes) == sizes.codes &&
         std::ssize(bytes.scales) == sizes.scales && std::ssize(bytes.extra) == sizes.extra;
}

bool same_bytes(const std::vector<std::byte>& mine, const Tensor& rule) {
  return mine.size() == rule.size_in_bytes() &&
         (mine.empty() || std::memcmp(mine.data(), rule.bytes(), mine.size()) == 0);
}

// Compares decoded weights. The codes behind K have no meaning and are not compared.
std::string compare_weights(const Case& c, const kernels::LowBitBytes& bytes,
                            const LowBitView& rule) {
  const std::vector<double> got = decode_weights(bytes.view()), wanted = decode_weights(rule);
  for (std::size_t e = 0; e < got.size(); ++e) {
    if (got[e] == wanted[e]) continue;
    const Index k = static_cast<Index>(e) / c.product.n, n = static_cast<Index>(e) % c.product.n;
    return fmt::format("w[k={}, n={}] = {:.9g} is stored as {:.9g}, by the rule {:.9g}", k, n,
                       original_weight(c, k, n), got[e], wanted[e]);
  }
  return {};
}

std::string compare_bytes(const Case& c, const kernels::LowBitBytes& bytes,
                          const ProductInputs& in) {
  if (!same_matrix(c.product, bytes)) return "the bytes are those of another matrix";
  if (bytes.tensor_scale != in.problem.w.tensor_scale)
    return fmt::format("tensor scale {}, by the rule {}", bytes.tensor_scale,
                       in.problem.w.tensor_scale);
  if (std::string wrong = compare_weights(c, bytes, in.problem.w); !wrong.empty()) return wrong;
  if (!same_bytes(bytes.scales, in.w.scales())) return "a scale differs from that of the rule";
  // The metadata of sparse weights were compared together with their codes. The metadata behind K
  // have no meaning.
  if (c.product.format != LowBit::fp4_sparse && !same_bytes(bytes.extra, in.w.extra()))
    return "a zero point differs from that of the rule";
  return {};
}

}  // namespace

std::string compare_quantization(const Case& c, Candidate& candidate, const ProductInputs& in) {
  const ProductSpec& p = c.product;
  const Tensor w(Dtype::f32, {1, 1, p.k, p.n}, {{0, 0, p.n, 1}, 0, p.k * p.n});
  for (Index k = 0; k < p.k; ++k)
    for (Index n = 0; n < p.n; ++n) store(w.view(), k * p.n + n, original_weight(c, k, n));
  kernels::LowBitBytes bytes;
  const QuantizeCall call{w.view(), p.format, p.group_size(), bytes};
  std::string wrong = call_plainly(candidate, {call, execution_of(c)});
  if (wrong.empty()) wrong = compare_bytes(c, bytes, in);
  return wrong.empty() ? wrong : "quantization: " + wrong;
}

}  // namespace assay
