#include "harness/judging/quantization.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "harness/judging/guarded_call.h"
#include "harness/judging/quantizer_faults.h"
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

using Weight = std::function<double(Index k, Index n)>;

// Numbers that are stored, and the bytes that the rule gives.
struct Stored {
  Stored(GroupScale rule_of_scales, LowBit format, Index k, Index n, Index group,
         const Weight& value)
      : w(Dtype::f32, {1, 1, k, n}, {{0, 0, n, 1}, 0, k * n}),
        scales(rule_of_scales),
        rule(quantize_by(scales, format, k, n, group, value)) {
    for (Index row = 0; row < k; ++row)
      for (Index column = 0; column < n; ++column)
        store(w.view(), row * n + column, value(row, column));
  }
  const Tensor w;
  const GroupScale scales;
  const LowBitMatrix rule;
};

// The weights with ties, stored by each rule that was asked for.
class Ties {
 public:
  Ties(LowBit format, Index group) : format_(format), group_(group), set_(ties_of(format, group)) {}
  Index k() const { return set_.k; }
  Index n() const { return set_.n; }
  std::shared_ptr<const Stored> stored(GroupScale rule) {
    const std::scoped_lock lock(mutex_);
    std::shared_ptr<const Stored>& of = stored_[rule];
    if (!of)
      of = std::make_shared<const Stored>(
          rule, format_, k(), n(), group_,
          [&](Index row, Index column) { return set_.at(row, column); });
    return of;
  }

 private:
  const LowBit format_;
  const Index group_;
  const WeightSet set_;
  std::mutex mutex_;
  std::map<GroupScale, std::shared_ptr<const Stored>> stored_;
};

// They follow from these two names alone, and every case with a quantizer asks for them. So the
// last few are kept.
std::shared_ptr<Ties> ties_in(LowBit format, Index group) {
  using Key = std::pair<LowBit, Index>;
  constexpr std::size_t most = 16;
  static std::mutex mutex;
  static std::deque<std::pair<Key, std::shared_ptr<Ties>>> kept;
  const Key key{format, group};
  const std::scoped_lock lock(mutex);
  for (const auto& [of, ties] : kept)
    if (of == key) return ties;
  kept.emplace_back(key, std::make_shared<Ties>(format, group));
  if (kept.size() > most) kept.pop_front();
  return kept.back().second;
}

// Compares the numbers that the bytes mean; -0 and 0 count as different. Bytes behind K have no
// meaning and are not compared. The metadata of sparse weights are compared with their codes.
std::string compare_bytes(const Stored& s, const kernels::LowBitBytes& bytes) {
  const LowBitView rule = s.rule.view();
  if (bytes.format != rule.format || bytes.k != rule.k || bytes.n != rule.n ||
      bytes.group != rule.group || std::ssize(bytes.codes) != std::ssize(bytes_for(rule, {}).codes))
    return "the bytes are those of another matrix";
  if (bytes.tensor_scale != rule.tensor_scale)
    return fmt::format("tensor scale {}, by the rule {}", bytes.tensor_scale, rule.tensor_scale);
  if (same_bytes(bytes.codes, s.rule.codes()) && same_bytes(bytes.scales, s.rule.scales()) &&
      same_bytes(bytes.extra, s.rule.extra()))
    return {};
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

class Quantizing : public KnownCall {
 public:
  explicit Quantizing(std::shared_ptr<const Stored> stored)
      : stored_(std::move(stored)), w_(stored_->w) {}
  Call call() override {
    const LowBitView rule = stored_->rule.view();
    return QuantizeCall{w_.view(), rule.format, rule.group, bytes_};
  }
  WatchedInputs watched() const override { return {{{"w", &w_}}}; }
  void prepare(std::byte filling) override { bytes_ = bytes_for(stored_->rule.view(), filling); }
  std::vector<WrittenBytes> written() override {
    return {{"the codes", bytes_.codes},
            {"the scales", bytes_.scales},
            {"the zero points", bytes_.extra},
            {"the tensor scale", std::as_writable_bytes(std::span(&bytes_.tensor_scale, 1))}};
  }
  std::string wrong() override { return compare_bytes(*stored_, bytes_); }
  // Nothing if the bytes are right.
  std::optional<Explanation> cause() const {
    if (compare_bytes(*stored_, bytes_).empty()) return std::nullopt;
    return fault_of_quantizer({w_.view(), stored_->scales, stored_->rule.view(), bytes_.view()});
  }
  Index elements() const { return stored_->rule.view().k * stored_->rule.view().n; }

 private:
  const std::shared_ptr<const Stored> stored_;
  const Tensor w_;  // which a candidate may spoil
  kernels::LowBitBytes bytes_;
};

using StoredBy = std::function<std::shared_ptr<const Stored>(GroupScale)>;

// The call that quantizes K x N weights, which are stored by the candidate's rule; null if the
// candidate does not do it. A guest says its rule for the call that it was asked about last.
std::unique_ptr<Quantizing> quantizing_of(const Case& c, Candidate& candidate, Index k, Index n,
                                          const StoredBy& stored) {
  const Tensor w(Dtype::f32, {1, 1, k, n}, {{0, 0, n, 1}, 0, k * n});
  kernels::LowBitBytes bytes;
  const QuantizeCall call{w.view(), c.product.format, c.product.group_size(), bytes};
  if (!why_unsupported(candidate, call).empty()) return nullptr;
  const Guest* guest = candidate.guest();
  return std::make_unique<Quantizing>(stored(guest ? guest->scale_rule() : GroupScale::floor));
}

// The call that quantizes the weights of the case.
std::unique_ptr<Quantizing> quantizing_own(const Case& c, Candidate& candidate) {
  const ProductSpec& p = c.product;
  return quantizing_of(c, candidate, p.k, p.n, [&](GroupScale rule) {
    return std::make_shared<const Stored>(
        rule, p.format, p.k, p.n, p.group_size(),
        [&](Index k, Index n) { return original_weight(c, k, n); });
  });
}

// Quantizes twice, into bytes that hold something else before.
JudgedBits judge_stored(const Case& c, Candidate& candidate,
                        const std::unique_ptr<Quantizing>& call) {
  if (!call) return {};
  for (const std::byte filling : {std::byte{0xFF}, std::byte{0x11}})
    if (std::string wrong = make_call(*call, candidate, execution_of(c), filling); !wrong.empty())
      return {true, call->elements(), wrong, call->cause()};
  return {true, call->elements(), {}, {}};
}

// Whether a case asks for a quantizer.
bool asks_quantizer(const Case& c, const Candidate& candidate) {
  return c.product.weights == Weights::quantized && candidate.abilities().quantizer;
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

WatchedInputs watched_bytes(const LowBitMatrix& w) {
  return {{{"w.codes", &w.codes()}, {"w.scales", &w.scales()}, {"w.extra", &w.extra()}}};
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
    if (!wrong.empty()) return {true, w.k * w.n, wrong, {}};
  }
  return {true, w.k * w.n, {}, {}};
}

// Dequantizes the weights of a case.
class Dequantizing : public KnownCall {
 public:
  Dequantizing(const Case& c, Surroundings around)
      : in_(c, around),
        shape_{1, 1, in_.problem.w.k, in_.problem.w.n},
        to_(c.out_dtype(), shape_, make_layout(c.o_layout, shape_, 1)) {}
  Call call() override { return DequantizeCall{in_.problem.w, to_.view()}; }
  WatchedInputs watched() const override { return watched_bytes(in_.w); }
  void prepare(std::byte filling) override {
    for (const WrittenBytes& part : written()) std::ranges::fill(part.bytes, filling);
  }
  std::vector<WrittenBytes> written() override {
    std::vector<WrittenBytes> parts;
    for (const auto& [begin, end] : to_.regions())
      parts.push_back({"W", {to_.bytes() + begin, to_.bytes() + end}});
    return parts;
  }
  std::string wrong() override { return compare_read(in_.problem.w, to_.view()); }

 private:
  const ProductInputs in_;
  const Extents shape_;
  const Tensor to_;
};

// Judges once more, by `second`, unless `first` has found something wrong. Counts the elements of
// both.
template <class Second>
JudgedBits both(const char* what, JudgedBits first, const Second& second) {
  if (first.asked && first.wrong.empty()) {
    const JudgedBits more = second();
    first.elements += more.asked ? more.elements : 0;
    first.wrong = more.wrong;
    first.cause = more.cause;
  }
  if (!first.wrong.empty()) first.wrong = fmt::format("{}: {}", what, first.wrong);
  return first;
}

constexpr const char* weights_right = "every weight is that of the rule, bit for bit";

JudgedBits judge_quantizer(const Case& c, Candidate& candidate) {
  if (!asks_quantizer(c, candidate)) return {};
  const auto with_ties = [&] {
    const std::shared_ptr<Ties> ties = ties_in(c.product.format, c.product.group_size());
    return judge_stored(c, candidate,
                        quantizing_of(c, candidate, ties->k(), ties->n(),
                                      [&](GroupScale rule) { return ties->stored(rule); }));
  };
  JudgedBits found = judge_stored(c, candidate, quantizing_own(c, candidate));
  // Ties tell faults apart that do the same to the weights of the case.
  if (found.cause)
    if (JudgedBits more = with_ties(); more.cause) found.cause = std::move(more.cause);
  return both("quantization", std::move(found), with_ties);
}

JudgedBits judge_dequantizer(const Case& c, Candidate& candidate, const ProductInputs& in) {
  if (!candidate.abilities().dequantizer) return {};
  return both("dequantization",
              judge_read(c, candidate, in.problem.w, watched_bytes(in.w), c.o_layout), [&] {
                const LowBitMatrix all = codes_of(c.product.format, c.product.group_size());
                return judge_read(c, candidate, all.view(), watched_bytes(all), LayoutKind::bhsd);
              });
}

}  // namespace

BitsOperation quantizing() {
  const auto one_call = [](const Case& c, Candidate& candidate) -> std::unique_ptr<KnownCall> {
    return asks_quantizer(c, candidate) ? quantizing_own(c, candidate) : nullptr;
  };
  return {"quantize", Output::w, weights_right, judge_quantizer, one_call};
}

BitsOperation dequantizing(const ProductInputs& in) {
  const auto judge = [&in](const Case& c, Candidate& candidate) {
    return judge_dequantizer(c, candidate, in);
  };
  return {"dequantize", Output::w, weights_right, judge, known_call<Dequantizing>(in.around)};
}

}  // namespace assay
