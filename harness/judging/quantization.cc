#include "harness/judging/quantization.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "harness/judging/guarded_call.h"
#include "oracle/low_bit_operands.h"

namespace assay {
namespace {

// ---- Quantizers ----

bool same_bytes(const std::vector<std::byte>& mine, const Tensor& rule) {
  return mine.size() == rule.size_in_bytes() &&
         (mine.empty() || std::memcmp(mine.data(), rule.bytes(), mine.size()) == 0);
}

// Bytes for a matrix of this shape. What is not written keeps `filling`.
kernels::LowBitBytes bytes_for(const LowBitView& m, std::byte filling) {
  const LowBitSizes sizes = sizes_of(m.format, m.k, m.n, m.group);
  kernels::LowBitBytes bytes{m.format, m.k, m.n, m.group, m.tensor_scale, {}, {}, {}};
  bytes.codes.assign(usize(sizes.codes), filling);
  bytes.scales.assign(usize(sizes.scales), filling);
  bytes.extra.assign(usize(sizes.extra), filling);
  return bytes;
}

// Numbers that are stored, and the bytes that the rule gives.
struct Stored {
  const Tensor w;
  GroupScale scales;
  LowBitMatrix rule;
};

// Compares the numbers that the bytes mean, -0 and 0 apart. What lies behind K has no meaning and
// is not compared. The metadata of sparse weights are compared together with their codes.
std::string compare_bytes(const Stored& s, const kernels::LowBitBytes& bytes) {
  const LowBitView rule = s.rule.view();
  if (bytes.format != rule.format || bytes.k != rule.k || bytes.n != rule.n ||
      bytes.group != rule.group || std::ssize(bytes.codes) != std::ssize(bytes_for(rule, {}).codes))
    return "the bytes are those of another matrix";
  if (bytes.tensor_scale != rule.tensor_scale)
    return fmt::format("tensor scale {}, by the rule {}", bytes.tensor_scale, rule.tensor_scale);
  const std::string by = traits(rule.format).scale == Dtype::e8m0
                             ? fmt::format(" ({} scales)", name_of(s.scales))
                             : "";
  const std::vector<double> got = decode_weights(bytes.view()), wanted = decode_weights(rule);
  for (std::size_t e = 0; e < got.size(); ++e) {
    if (std::bit_cast<std::uint64_t>(got[e]) == std::bit_cast<std::uint64_t>(wanted[e])) continue;
    const Index k = static_cast<Index>(e) / rule.n, n = static_cast<Index>(e) % rule.n;
    return fmt::format("w[k={}, n={}] = {:.9g} is stored as {:.9g}, by the rule{} {:.9g}", k, n,
                       load(s.w.view(), s.w.view().at(0, 0, k, n)), got[e], by, wanted[e]);
  }
  if (!same_bytes(bytes.scales, s.rule.scales()))
    return fmt::format("a scale differs from that of the rule{}", by);
  if (rule.format != LowBit::fp4_sparse && !same_bytes(bytes.extra, s.rule.extra()))
    return "a zero point differs from that of the rule";
  return {};
}

// Quantizes twice, into bytes that hold something else before.
JudgedBits judge_stored(const Case& c, Candidate& candidate, Index k, Index n,
                        const std::function<double(Index, Index)>& value) {
  const LowBit format = c.product.format;
  const Index group = c.product.group_size();
  Tensor w(Dtype::f32, {1, 1, k, n}, {{0, 0, n, 1}, 0, k * n});
  for (Index row = 0; row < k; ++row)
    for (Index column = 0; column < n; ++column)
      store(w.view(), row * n + column, value(row, column));
  kernels::LowBitBytes bytes;
  const QuantizeCall call{w.view(), format, group, bytes};
  if (!why_unsupported(candidate, call).empty()) return {};
  const GroupScale rule = candidate.scale_rule(call);
  const Stored stored{std::move(w), rule, quantize_by(rule, format, k, n, group, value)};
  const QuantizeCall asked{stored.w.view(), format, group, bytes};
  for (const std::byte filling : {std::byte{0xFF}, std::byte{0x11}}) {
    bytes = bytes_for(stored.rule.view(), filling);
    std::string wrong =
        call_guarded(candidate, {asked, execution_of(c)}, {{{"w", &stored.w}}}, {}, Poison::nan);
    if (wrong.empty()) wrong = compare_bytes(stored, bytes);
    if (!wrong.empty()) return {true, k * n, wrong};
  }
  return {true, k * n, {}};
}

// ---- Dequantizers ----

// How a weight is multiplied out. The product of code and scale is exact in binary32, as far as it
// is in range, so without a tensor scale only the last rounding, and one to binary32 before it, are
// left.
constexpr double (*ways[])(double code, double scale, double tensor) = {
    [](double code, double scale, double tensor) { return code * scale * tensor; },
    [](double code, double scale, double tensor) {
      return round_to(Dtype::f32, code * scale * tensor);
    },
    [](double code, double scale, double tensor) {
      return round_to(Dtype::f32, round_to(Dtype::f32, scale * tensor) * code);
    },
    [](double code, double scale, double tensor) {
      return round_to(Dtype::f32, round_to(Dtype::f32, code * tensor) * scale);
    },
};

bool same_number(double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); }

// The first element that differs from the numbers of the closest way.
std::string compare_read(const LowBitView& w, const TensorView& to) {
  const ProductColumns decoded(w, 0, w.n);
  std::string closest;
  Index most = -1;
  for (const auto way : ways) {
    std::string wrong;
    Index right = 0;
    for (Index e = 0; e < w.k * w.n; ++e) {
      const Index k = e / w.n, n = e % w.n;
      const double wanted = round_to(
                       to.dtype, way(decoded.code_at(k, n), decoded.scale_at(k / decoded.step, n),
                                     static_cast<double>(w.tensor_scale))),
                   got = load(to, to.at(0, 0, k, n));
      if (same_number(got, wanted)) ++right;
      else if (wrong.empty())
        wrong = fmt::format("w[k={}, n={}] is read as {:.9g}, and is {:.9g}", k, n, got, wanted);
    }
    if (wrong.empty()) return {};
    if (right > most) most = right, closest = wrong;
  }
  return closest;
}

JudgedBits judge_read(const Case& c, Candidate& candidate, const LowBitView& w,
                      const WatchedInputs& watched, LayoutKind kind) {
  const Extents shape{1, 1, w.k, w.n};
  const auto made = [&] { return Tensor(c.out_dtype(), shape, make_layout(kind, shape, 1)); };
  const Tensor first = made();
  if (!why_unsupported(candidate, DequantizeCall{w, first.view()}).empty()) return {};
  for (const Poison with : {Poison::nan, Poison::large}) {
    const Tensor to = made();
    const Request request{DequantizeCall{w, to.view()}, execution_of(c)};
    std::string wrong = call_guarded(candidate, request, watched, {{Output::w, &to}}, with);
    if (wrong.empty()) wrong = compare_read(w, to.view());
    if (!wrong.empty()) return {true, w.k * w.n, wrong};
  }
  return {true, w.k * w.n, {}};
}

// What two askings found, of which the second is made if the first found nothing wrong.
template <class Second>
JudgedBits both(const char* what, JudgedBits first, const Second& second) {
  if (first.asked && first.wrong.empty()) {
    const JudgedBits more = second();
    first.elements += more.asked ? more.elements : 0;
    first.wrong = more.wrong;
  }
  if (!first.wrong.empty()) first.wrong = fmt::format("{}: {}", what, first.wrong);
  return first;
}

}  // namespace

JudgedBits judge_quantizer(const Case& c, Candidate& candidate) {
  const ProductSpec& p = c.product;
  if (p.weights != Weights::quantized || !candidate.abilities().quantizer) return {};
  const auto own = [&](Index k, Index n) { return original_weight(c, k, n); };
  return both("quantization", judge_stored(c, candidate, p.k, p.n, own), [&] {
    const WeightSet ties = ties_of(p.format, p.group_size());
    return judge_stored(c, candidate, ties.k, ties.n,
                        [&](Index k, Index n) { return ties.at(k, n); });
  });
}

JudgedBits judge_dequantizer(const Case& c, Candidate& candidate, const ProductInputs& in) {
  if (!candidate.abilities().dequantizer) return {};
  const auto watched = [](const LowBitMatrix& w) {
    return WatchedInputs{
        {{"w.codes", &w.codes()}, {"w.scales", &w.scales()}, {"w.extra", &w.extra()}}};
  };
  return both("dequantization", judge_read(c, candidate, in.problem.w, watched(in.w), c.o_layout),
              [&] {
                const LowBitMatrix all = codes_of(c.product.format, c.product.group_size());
                return judge_read(c, candidate, all.view(), watched(all), LayoutKind::bhsd);
              });
}

}  // namespace assay
