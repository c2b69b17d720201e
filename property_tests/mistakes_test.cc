// Mistakes that people make when they write a tiled kernel, in a kernel of plain loops: each is
// named, whatever the dtype.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "harness/judging/outputs.h"
#include "oracle/backward_verdict.h"
#include "oracle/diagnosis.h"
#include "problem/generate.h"

namespace assay {
namespace {

using Rounding = std::function<double(double)>;
constexpr double ln2 = std::numbers::ln2;

double same(double x) { return x; }
double tf32(double x) {
  return static_cast<double>(
      std::bit_cast<float>(std::bit_cast<std::uint32_t>(static_cast<float>(x)) & 0xFFFFE000u));
}
Rounding rounds_to(Dtype dtype) {
  return [=](double x) { return round_to(dtype, x); };
}

struct Mistake {
  Index zeros_behind = 0;  // keys of zeros that take part behind the last one
  double exponent = 1;     // of e^x
  Index early = 0;         // the diagonal is so many keys early
  Index tile = 1;          // the last, shorter tile is left out of sums
  Rounding operands = same;
  Rounding weights = same;  // before they meet V or dO
  // In the forward pass only.
  Index key = -1;  // is counted so many times
  double times = 1;
  bool k_of_head_modulo = false, v_of_head_modulo = false;  // heads of K and V are h mod Hkv
  bool k_of_batch_zero = false, v_of_batch_zero = false;
  double bias_times = 1;
  Index mask_rows = 0, mask_keys = 0;                  // the additive mask is read so far back
  double (*key_times)(Index j) = nullptr;              // factors of weights
  double (*value_times)(Index j) = nullptr;            // of weights before they meet V
  double (*lane_times)(Index d) = nullptr;             // of products of Q and K
  std::pair<Index, Index> rows_of_v = {}, lanes = {};  // change places, lanes in K
  double scale_times = 1;
  Index key_rows = 0;  // K of each key is that of the key so far behind
  bool exchanges_keys_and_values = false;
  bool maximum_before_scale = false;
  double (*capped)(double t, double bias, double cap, double scale) = nullptr;
  double (*lse)(double top, double sum, double scale) = nullptr;
  // The rows that are computed wrongly; empty: all.
  std::function<bool(Index b, Index h, Index i)> where = nullptr;
  // In the backward pass only.
  bool (*lacks_delta)(Index i, Index j) = nullptr;
  Index dq_lacks_key = -1, dk_lacks_row = -1, dk_lacks_head = -1;
  Index delta_rows = 0;  // D of each row is that of the row so far before
};

Index exchanged(std::pair<Index, Index> two, Index at) {
  return at == two.first ? two.second : at == two.second ? two.first : at;
}

// Attention of one row or its gradients, without masks but causality.
class PlainKernel {
 public:
  PlainKernel(const Attention& p, Mistake m) : p_(p), s_(p.shape), m_(std::move(m)) {}

  void forward(const AttentionOutput& out) const {
    const PlainKernel right(p_, {});
    for_each_row([&](Index b, Index h, Index i) {
      (!m_.where || m_.where(b, h, i) ? *this : right).forward_row(out, b, h, i);
    });
  }
  void forward_row(const AttentionOutput& out, Index b, Index h, Index i) const {
    const std::vector<double> s = scores(b, h, i);
    double top = m_.zeros_behind > 0 ? 0 : -INFINITY, sum = 0;
    for (double x : s) top = std::max(top, x);
    if (m_.maximum_before_scale && p_.scale < 0) top = *std::ranges::min_element(s);
    std::vector<double> o(usize(s_.value_dim), 0.0);
    for (std::size_t j = 0; j < s.size(); ++j) {
      const auto key = static_cast<Index>(j);
      const double times = key == m_.key ? m_.times : m_.key_times ? m_.key_times(key) : 1;
      double weight = times * std::exp(m_.exponent * (s[j] - top));
      if (m_.maximum_before_scale) weight = static_cast<float>(weight);  // which may be infinite
      sum += weight;
      if (m_.value_times) weight *= m_.value_times(key);
      const Index g = m_.v_of_head_modulo ? h % s_.kv_heads : h / s_.group();
      for (Index c = 0; c < s_.value_dim; ++c)
        o[usize(c)] += m_.operands(m_.weights(weight)) *
                       element(m_.exchanges_keys_and_values ? p_.k : p_.v,
                               m_.v_of_batch_zero ? 0 : b, g, exchanged(m_.rows_of_v, key), c);
    }
    sum += static_cast<double>(m_.zeros_behind) * std::exp(m_.exponent * -top);
    for (Index c = 0; c < s_.value_dim; ++c)
      store(out.o, out.o.at(b, h, i, c), sum > 0 ? o[usize(c)] / sum : 0);
    store(out.lse, out.lse.at(b, h, i, 0),
          m_.lse ? m_.lse(top, sum, static_cast<double>(p_.scale)) : top + std::log(sum));
  }

  // dQ, dK and dV, from the stored O and LSE.
  void backward(const AttentionBackwardInput& in, const AttentionGradients& out) const {
    std::vector<double> dk(usize(s_.batch * s_.kv_heads * s_.keys * s_.dim), 0.0),
        dv(usize(s_.batch * s_.kv_heads * s_.keys * s_.value_dim), 0.0);
    for_each_row([&](Index b, Index h, Index i) {
      const std::vector<double> s = scores(b, h, i);
      const Index g = h / s_.group();
      const double lse = load(in.lse, in.lse.at(b, h, i, 0));
      double delta = 0;
      const Index of = std::max<Index>(i - m_.delta_rows, 0);
      for (Index c = 0; c < s_.value_dim; ++c)
        delta += load(in.d_o, in.d_o.at(b, h, of, c)) * load(in.o, in.o.at(b, h, of, c));
      std::vector<double> dq(usize(s_.dim), 0.0);
      for (std::size_t at = 0; at < s.size(); ++at) {
        const auto j = static_cast<Index>(at);
        const double weight = std::exp(m_.exponent * (s[at] - lse));
        double dp = 0;
        for (Index c = 0; c < s_.value_dim; ++c)
          dp += element(in.d_o, b, h, i, c) * element(p_.v, b, g, j, c);
        const double subtracted = m_.lacks_delta && m_.lacks_delta(i, j) ? 0 : delta;
        const double ds = m_.operands(weight * (dp - subtracted)),
                     scaled = static_cast<double>(p_.scale) * ds;
        const auto key = usize((b * s_.kv_heads + g) * s_.keys + j);
        const bool row_counts = i < s_.rows / m_.tile * m_.tile;
        for (Index d = 0; d < s_.dim; ++d) {
          if (j < s_.keys / m_.tile * m_.tile && j != m_.dq_lacks_key)
            dq[usize(d)] += scaled * element(p_.k, b, g, j, d);
          if (row_counts && i != m_.dk_lacks_row && h % s_.group() != m_.dk_lacks_head)
            dk[key * usize(s_.dim) + usize(d)] += scaled * element(p_.q, b, h, i, d);
        }
        for (Index c = 0; c < s_.value_dim && row_counts; ++c)
          dv[key * usize(s_.value_dim) + usize(c)] +=
              m_.operands(m_.weights(weight)) * element(in.d_o, b, h, i, c);
      }
      for (Index d = 0; d < s_.dim; ++d) store(out.dq, out.dq.at(b, h, i, d), dq[usize(d)]);
    });
    std::size_t k = 0, v = 0;
    for_each_index(out.dk.shape, [&](Index b, Index g, Index j, Index d) {
      store(out.dk, out.dk.at(b, g, j, d), dk[k++]);
    });
    for_each_index(out.dv.shape, [&](Index b, Index g, Index j, Index c) {
      store(out.dv, out.dv.at(b, g, j, c), dv[v++]);
    });
  }

 private:
  template <class Visit>
  void for_each_row(const Visit& visit) const {
    for (Index b = 0; b < s_.batch; ++b)
      for (Index h = 0; h < s_.query_heads; ++h)
        for (Index i = 0; i < s_.rows; ++i) visit(b, h, i);
  }
  double element(const TensorView& t, Index b, Index h, Index i, Index d) const {
    return m_.operands(load(t, t.at(b, h, i, d)));
  }
  // The scores of the keys that the row sees, from the first key on.
  std::vector<double> scores(Index b, Index h, Index i) const {
    const Index end = p_.causal ? std::min(s_.keys, i + p_.offset_of(b) + 1 - m_.early) : s_.keys;
    const Index g = m_.k_of_head_modulo ? h % s_.kv_heads : h / s_.group();
    std::vector<double> s;
    for (Index j = 0; j < end; ++j) {
      double dot = 0;
      const TensorView& keys = m_.exchanges_keys_and_values ? p_.v : p_.k;
      const Index from = std::clamp<Index>(j + m_.key_rows, 0, s_.keys - 1);
      for (Index d = 0; d < s_.dim; ++d)
        dot += (m_.lane_times ? m_.lane_times(d) : 1) * element(p_.q, b, h, i, d) *
               element(keys, m_.k_of_batch_zero ? 0 : b, g, from, exchanged(m_.lanes, d));
      const auto scale = static_cast<double>(p_.scale), cap = static_cast<double>(p_.softcap);
      const double t = m_.scale_times * scale * dot;
      const Index row = i - m_.mask_rows, key = j - m_.mask_keys;
      double bias = 0;
      if (p_.bias && row >= 0 && row < s_.rows && key >= 0 && key < s_.keys)
        bias = m_.bias_times * load(p_.bias, p_.bias.at(b, h, row, key));
      s.push_back(m_.capped        ? m_.capped(t, bias, cap, scale)
                  : p_.softcap > 0 ? cap * std::tanh(t / cap) + bias
                                   : t + bias);
    }
    return s;
  }

  const Attention& p_;
  const AttentionShape& s_;
  Mistake m_;
};

struct Made {
  const char* cause;
  Mistake mistake;
  std::vector<std::string> lines;
};

using ChangeO = std::function<void(const TensorView& o)>;

Diagnosis diagnosis_of(const Mistake& mistake, const std::string& line,
                       const ChangeO& change = {}) {
  const Case c = parse_case(line);
  const Inputs in(c);
  const Outputs out(c, true, Surroundings::bands);
  PlainKernel(in.problem, mistake).forward(out.view());
  if (change) change(out.view().o);
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  const Verdict v = judge_by_ladder(in.problem, out.view(), 64, options);
  EXPECT_EQ(v.outcome, Outcome::fail) << line << ": " << v.contract << ": " << v.reason;
  return diagnose(in.problem, out.view(), nullptr, v, options);
}

// Gives every element of O the value f(b, h, i, c) of the right O, read by the argument of f.
using ReadO = std::function<double(Index b, Index h, Index i, Index c)>;
ChangeO element_by_element(
    const std::function<double(const ReadO&, Index b, Index h, Index i, Index c)>& f) {
  return [=](const TensorView& o) {
    std::map<std::array<Index, 4>, double> before;
    for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) {
      before[{b, h, i, c}] = load(o, o.at(b, h, i, c));
    });
    const ReadO read = [&](Index b, Index h, Index i, Index c) { return before.at({b, h, i, c}); };
    for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) {
      store(o, o.at(b, h, i, c), f(read, b, h, i, c));
    });
  };
}

TEST(Mistakes, WhatStandsInPlaceOfOIsNamed) {
  struct Wrong {
    const char* cause;
    const char* words;
    ChangeO change;
  };
  constexpr Index batch = 2, heads = 4, rows = 7, columns = 16;
  const auto change = [](const auto& f) { return element_by_element(f); };
  const Wrong all[] = {
      {"output-factor", "O is -1 times what it should be",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) { return -o(b, h, i, c); })},
      {"output-factor", "right but for a factor of their own, from 3 to 9",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return static_cast<double>(i + 3) * o(b, h, i, c);
       })},
      {"output-factor", "O of the wrong rows is 0",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return h == 2 && i % 3 == 0 ? 0 : o(b, h, i, c);
       })},
      {"output-factor", "O is 1.01 times what it should be",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return 1.01 * o(b, h, i, c);
       })},
      {"output-columns-zero", "O of column 12 and on is 0",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return c < 12 ? o(b, h, i, c) : 0;
       })},
      {"output-halves-exchanged", "the halves of the columns of O are exchanged",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return o(b, h, i, (c + columns / 2) % columns);
       })},
      {"output-columns-misplaced", "column 9 of O holds column 8",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return o(b, h, i, c == 9 ? 8 : c);
       })},
      {"output-columns-misplaced", "columns 3 and 4 of O hold columns 4 and 3",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return o(b, h, i, exchanged({3, 4}, c));
       })},
      {"output-columns-factor", "O is 1.01 times what it should be in columns 8 to 15",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return (c < 8 ? 1 : 1.01) * o(b, h, i, c);
       })},
      {"output-rows-misplaced", "O[b=1, h=2, row=3] is that of O[b=0, h=1, row=5]",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return b == 1 && h == 2 && i == 3 ? o(0, 1, 5, c) : o(b, h, i, c);
       })},
      {"output-columns-zero", "O is 0 in columns 2 and 7",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return c == 2 || c == 7 ? 0 : o(b, h, i, c);
       })},
      {"heads-exchanged", "pairs of heads have each other's O",
       change(
           [](const ReadO& o, Index b, Index h, Index i, Index c) { return o(b, h ^ 1, i, c); })},
      {"batches-reversed", "batch elements have O in reverse order",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return o(batch - 1 - b, h, i, c);
       })},
      {"rows-reversed", "rows have O in reverse order",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         return o(b, h, rows - 1 - i, c);
       })},
      {"heads-inside-rows", "as [row][head]",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         const Index place = h * rows + i;
         return o(b, place % heads, place / heads, c);
       })},
      {"rows-inside-heads", "as [head][row]",
       change([](const ReadO& o, Index b, Index h, Index i, Index c) {
         const Index place = i * heads + h;
         return o(b, place / rows, place % rows, c);
       })},
  };
  for (const Wrong& wrong : all)
    for (const std::string dtype : {"f32", "f16", "bf16"}) {
      const Diagnosis d =
          diagnosis_of({}, "attention b=2 h=4/2 l=7x50 d=16 dtype=" + dtype, wrong.change);
      EXPECT_EQ(rank_of(d, wrong.cause), 1) << wrong.cause << " in " << dtype;
      EXPECT_THAT(sentence_on(d), testing::HasSubstr(wrong.words)) << dtype;
    }
}

using ChangeGradients = std::function<void(const GradientOutputs&)>;

Diagnosis diagnosis_of_gradients(const Mistake& mistake, const std::string& line,
                                 const ChangeGradients& change = {}) {
  const Case c = parse_case(line);
  const Inputs in(c);
  const Outputs forward(c, true, Surroundings::bands);
  PlainKernel(in.problem, {}).forward(forward.view());
  const AttentionBackwardInput input{forward.o.view(), forward.lse.view(), in.d_o.view()};
  const GradientOutputs out(c, in);
  PlainKernel(in.problem, mistake).backward(input, out.view());
  if (change) change(out);
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  const Verdict v = judge_backward_by_ladder(in.problem, input, out.view(), options);
  EXPECT_EQ(v.outcome, Outcome::fail) << line;
  return diagnose_backward(in.problem, input, out.view(), nullptr, v, options);
}

const std::string small = " b=1 h=4/2 l=20x50 d=16 dtype=";
// Sums of few terms show an exponential that is off by a few millionths.
const std::string thin = " b=1 h=2 l=40x65 d=1 dtype=";

TEST(Mistakes, OfForwardKernelsAreNamed) {
  const std::vector<Made> all = {
      {"zeros-behind-keys", {.zeros_behind = 14}, {"f32", "f16", "bf16"}},
      {"zeros-behind-keys", {.zeros_behind = 78}, {"f32", "f16", "bf16"}},
      {"causal-early", {.early = 1}, {"f32 causal offset=end", "f16 causal offset=end"}},
      {"log2-e-rounded", {.exponent = 1.4427 / 1.4426950408889634}, {"f32 thin"}},
      {"log2-e-rounded", {.exponent = 1.4453125 / 1.4426950408889634}, {"f32", "f16"}},
      {"tf32-products", {.operands = tf32}, {"f32", "f32 causal offset=end"}},
      {"bf16-products", {.operands = rounds_to(Dtype::bf16)}, {"f32", "f32 causal offset=end"}},
      {"maximum-before-scale",
       {.maximum_before_scale = true},
       {"f32 scale=-0.25 scores=huge", "bf16 causal offset=end scale=-0.25 scores=huge"}},
      {"weights-in-bf16", {.weights = rounds_to(Dtype::bf16)}, {"f32"}},
      {"weights-in-f8e4m3", {.weights = rounds_to(Dtype::f8e4m3)}, {"f32", "f16", "bf16"}},
  };
  for (const auto& [cause, mistake, lines] : all)
    for (const std::string& rest : lines) {
      const std::string line =
          "attention" + (rest.ends_with("thin") ? thin + rest.substr(0, 3) : small + rest);
      const Diagnosis d = diagnosis_of(mistake, line);
      EXPECT_EQ(rank_of(d, cause), 1) << cause << " on " << line << ": " << sentence_on(d);
    }
}

// These are tried where no other one fits.
TEST(Mistakes, RarerOnesAreNamedWithTheirKey) {
  struct Rare {
    const char* cause;
    const char* words;
    Mistake mistake;
    const char* fields;
  };
  const Rare all[] = {
      {"key-left-out", "key 17 is left out", {.key = 17, .times = 0}, ""},
      {"key-twice", "key 30 is counted twice", {.key = 30, .times = 2}, ""},
      {"k-head-modulo", "reads K of kv head h mod Hkv", {.k_of_head_modulo = true}, ""},
      {"v-head-modulo", "reads V of kv head h mod Hkv", {.v_of_head_modulo = true}, ""},
      {"k-batch-zero", "reads K of the first", {.k_of_batch_zero = true}, ""},
      {"v-batch-zero", "reads V of the first", {.v_of_batch_zero = true}, ""},
      {"bias-twice", "is added twice", {.bias_times = 2}, "bias=normal"},
      {"key-left-out", "key 17 is left out", {.key = 17, .times = 0}, "bias=normal"},
      {"mask-late", "read one key too far to the left", {.mask_keys = 1}, "bias=normal"},
      {"mask-early", "read one key too far to the right", {.mask_keys = -1}, "bias=normal"},
      {"mask-of-row-before", "those of the row before", {.mask_rows = 1}, "bias=normal"},
      {"mask-of-next-row", "those of the next row", {.mask_rows = -1}, "bias=normal"},
      {"keys-misweighted",
       "weights of keys 16 to 31 are multiplied by 1.5",
       {.key_times = [](Index j) { return j / 16 == 1 ? 1.5 : 1; }},
       ""},
      {"keys-misweighted",
       "keys 32 to 47 are left out",
       {.key_times = [](Index j) { return j / 16 == 2 ? 0.0 : 1; }},
       ""},
      {"keys-misweighted",
       "weights of every key 3 modulo 8 are multiplied by 1.2",
       {.key_times = [](Index j) { return j % 8 == 3 ? 1.2 : 1; }},
       ""},
      {"keys-misweighted",
       "weights of keys from 37 on are multiplied by 0.5",
       {.key_times = [](Index j) { return j >= 37 ? 0.5 : 1; }},
       ""},
      {"values-misweighted",
       "V of keys 16 to 31 is left out of P V",
       {.value_times = [](Index j) { return j / 16 == 1 ? 0.0 : 1; }},
       ""},
      {"values-misweighted",
       "V of key 20 is multiplied by 3",
       {.value_times = [](Index j) { return j == 20 ? 3.0 : 1; }},
       ""},
      {"rows-of-v-exchanged",
       "rows 5 and 30 of V, or of K, are exchanged",
       {.rows_of_v = {5, 30}},
       ""},
      {"softcap-before-scale",
       "before the scale",
       {.capped = [](double t, double bias, double cap,
                     double scale) { return scale * cap * std::tanh(t / scale / cap) + bias; }},
       "softcap=3"},
      {"softcap-undivided",
       "not divided by the softcap",
       {.capped = [](double t, double bias, double cap,
                     double) { return cap * std::tanh(t) + bias; }},
       "softcap=3"},
      {"softcap-unmultiplied",
       "not multiplied by the softcap",
       {.capped = [](double t, double bias, double cap,
                     double) { return std::tanh(t / cap) + bias; }},
       "softcap=3"},
      {"softcap-in-base-two",
       "log2 e is multiplied into",
       {.capped = [](double t, double bias, double cap,
                     double) { return cap * ln2 * std::tanh(t / ln2 / cap) + bias; }},
       "softcap=3"},
      {"softcap-clamps",
       "cut off at the softcap",
       {.capped = [](double t, double bias, double cap,
                     double) { return std::clamp(t, -cap, cap) + bias; }},
       "softcap=1"},
      {"softcap-after-bias",
       "after what is added",
       {.capped = [](double t, double bias, double cap,
                     double) { return cap * std::tanh((t + bias) / cap); }},
       "softcap=3 bias=normal"},
      {"lse-without-maximum",
       "LSE lacks the largest score",
       {.lse = [](double, double sum, double) { return std::log(sum); }},
       ""},
      {"lse-is-maximum",
       "LSE is the largest score",
       {.lse = [](double top, double, double) { return top; }},
       ""},
      {"lse-is-sum",
       "LSE is the sum of the weights",
       {.lse = [](double, double sum, double) { return sum; }},
       ""},
      {"lse-without-logarithm",
       "not its logarithm",
       {.lse = [](double top, double sum, double) { return top + sum; }},
       ""},
      {"lse-maximum-unscaled",
       "lacks the scale",
       {.lse = [](double top, double sum, double scale) { return top / scale + std::log(sum); }},
       ""},
      {"lse-in-two-bases",
       "a natural logarithm to the largest score in base 2",
       {.lse = [](double top, double sum, double) { return top / ln2 + std::log(sum); }},
       ""},
      {"lse-in-two-bases",
       "a logarithm to base 2 to the largest score",
       {.lse = [](double top, double sum, double) { return top + std::log2(sum); }},
       ""},
      {"lse-negated",
       "LSE has the wrong sign",
       {.lse = [](double top, double sum, double) { return -top - std::log(sum); }},
       ""},
      {"scale-factor", "multiplied by 0.3 times the scale", {.scale_times = 0.3}, ""},
      {"scale-factor", "multiplied by -1 times the scale", {.scale_times = -1}, ""},
      {"k-row-before", "that of the key before", {.key_rows = -1}, ""},
      {"k-next-row", "that of the next one", {.key_rows = 1}, ""},
      {"keys-and-values-exchanged",
       "K is read for V, and V for K",
       {.exchanges_keys_and_values = true},
       ""},
      {"lanes-left-out",
       "columns of Q and K from 10 on are left out",
       {.lane_times = [](Index d) { return d < 10 ? 1.0 : 0; }},
       ""},
      {"lane-left-out",
       "column 7 of Q and K is left out",
       {.lane_times = [](Index d) { return d == 7 ? 0.0 : 1; }},
       ""},
      {"lane-twice",
       "column 2 of Q and K counts twice",
       {.lane_times = [](Index d) { return d == 2 ? 2.0 : 1; }},
       ""},
      {"lane-negated",
       "column 4 of Q or K has the wrong sign",
       {.lane_times = [](Index d) { return d == 4 ? -1.0 : 1; }},
       ""},
      {"lanes-exchanged", "columns 4 and 11 of Q, or of K, are exchanged", {.lanes = {4, 11}}, ""},
  };
  for (const Rare& rare : all)
    for (const std::string dtype : {"f32", "f16", "bf16"}) {
      const std::string line = "attention b=2 h=4/2 l=7x50 d=16 dtype=" + dtype + " " + rare.fields;
      const Diagnosis d = diagnosis_of(rare.mistake, line);
      EXPECT_EQ(rank_of(d, rare.cause), 1) << rare.cause << " on " << line;
      EXPECT_THAT(sentence_on(d), testing::HasSubstr(rare.words)) << line;
    }
}

// A fault that some of the rows have alone is named with these, and with the ones that were spared.
TEST(Mistakes, InSomeRowsAloneAreNamedWithThese) {
  struct Local {
    const char* cause;
    const char* words;
    Mistake mistake;
    std::vector<std::string> dtypes = {"f32", "f16", "bf16"};
  };
  const Local all[] = {
      {"causal-early",
       "one key early, in rows 4 and on alone",
       {.early = 1, .where = [](Index, Index, Index i) { return i >= 4; }}},
      {"key-left-out",
       "key 20 is left out, in head 2 alone",
       {.key = 20, .times = 0, .where = [](Index, Index h, Index) { return h == 2; }}},
      {"first-key-dropped",
       "the first key is dropped, in batch element 1 alone",
       {.key = 0, .times = 0, .where = [](Index b, Index, Index) { return b == 1; }}},
      {"log2-e-rounded",
       "log2 e is rounded to 2 places behind the point, in odd heads alone",
       {.exponent = 1.44 / 1.4426950408889634,
        .where = [](Index, Index h, Index) { return h % 2 == 1; }},
       {"f32"}},
  };
  for (const Local& local : all)
    for (const std::string& dtype : local.dtypes) {
      const std::string line = "attention b=2 h=4/2 l=7x50 d=16 causal offset=end dtype=" + dtype;
      const Diagnosis d = diagnosis_of(local.mistake, line);
      EXPECT_EQ(rank_of(d, local.cause), 1) << local.cause << " in " << dtype;
      EXPECT_THAT(sentence_on(d), testing::HasSubstr(local.words)) << dtype;
    }
}

TEST(Mistakes, OfGradientsAreNamed) {
  const std::vector<Made> all = {
      {"gradient-tails-dropped", {.tile = 32}, {"f32", "f16"}},
      {"gradient-causal-early", {.early = 1}, {"f32 causal offset=end", "f16 causal offset=end"}},
      {"gradient-log2-e-rounded", {.exponent = 1.4427 / 1.4426950408889634}, {"f32 thin"}},
      {"gradient-log2-e-rounded",
       {.exponent = 1.443 / 1.4426950408889634},
       {"f32", "f32 scores=heavy-tail"}},
      {"gradient-tf32-products", {.operands = tf32}, {"f32", "f32 causal offset=end"}},
      {"gradient-weights-in-f8e4m3", {.weights = rounds_to(Dtype::f8e4m3)}, {"f32", "f16", "bf16"}},
      {"delta-omitted",
       {.lacks_delta = [](Index i, Index) { return i >= 8 && i < 16; }},
       {"f32", "f16", "bf16"}},
      {"delta-omitted",
       {.lacks_delta = [](Index i, Index j) { return i < 16 && j >= 16 && j < 32; }},
       {"f32", "f16", "bf16"}},
      {"gradient-key-left-out", {.dq_lacks_key = 11}, {"f32", "f16", "bf16"}},
      {"delta-of-row-before", {.delta_rows = 1}, {"f32", "f16", "bf16"}},
      {"gradient-heads-miscounted", {.dk_lacks_head = 0}, {"f32", "f16", "bf16"}},
      {"gradient-row-left-out", {.dk_lacks_row = 13}, {"f32", "f16 causal offset=end"}},
  };
  for (const auto& [cause, mistake, lines] : all)
    for (const std::string& rest : lines) {
      const std::string line =
          "backward" + (rest.ends_with("thin") ? thin + rest.substr(0, 3) : small + rest);
      const Diagnosis d = diagnosis_of_gradients(mistake, line);
      EXPECT_EQ(rank_of(d, cause), 1) << cause << " on " << line << ": " << sentence_on(d);
    }
}

// Sets every element to f(its value, row, column).
void change_elements(const Tensor& t, const std::function<double(double, Index, Index)>& f) {
  const TensorView& v = t.view();
  for_each_index(v.shape, [&](Index b, Index h, Index i, Index d) {
    const Index at = v.at(b, h, i, d);
    store(v, at, f(load(v, at), i, d));
  });
}

TEST(Mistakes, WhatStandsInPlaceOfGradientsIsNamed) {
  struct Wrong {
    const char* cause;
    const char* words;
    ChangeGradients change;
  };
  const auto times = [](double factor) {
    return [=](double x, Index, Index) { return factor * x; };
  };
  const Wrong all[] = {
      {"gradient-factor", "dK is -1 times what it should be",
       [&](const GradientOutputs& out) { change_elements(out.dk, times(-1)); }},
      {"gradient-factor", "dQ is 2 times what it should be, dV is 0.5 times what it should be",
       [&](const GradientOutputs& out) {
         change_elements(out.dq, times(2));
         change_elements(out.dv, times(0.5));
       }},
      {"gradient-factor", "dQ is 1.01 times what it should be",
       [&](const GradientOutputs& out) { change_elements(out.dq, times(1.01)); }},
      {"gradient-factor", "dV is 0",
       [&](const GradientOutputs& out) { change_elements(out.dv, times(0)); }},
      {"gradient-rows-zero", "dV of key 41 and on is 0",
       [&](const GradientOutputs& out) {
         change_elements(out.dv, [](double x, Index j, Index) { return j < 41 ? x : 0; });
       }},
      {"gradient-rows-stale", "the wrong rows of dQ hold the one before",
       [&](const GradientOutputs& out) {
         const TensorView& v = out.dq.view();
         for (Index d = 0; d < v.shape[3]; ++d)
           store(v, v.at(0, 1, 12, d), load(v, v.at(0, 1, 11, d)));
       }},
      {"gradient-columns-misplaced", "column 6 of dV holds column 5",
       [&](const GradientOutputs& out) {
         const TensorView& v = out.dv.view();
         for_each_index(v.shape, [&](Index b, Index h, Index j, Index d) {
           if (d == 6) store(v, v.at(b, h, j, d), load(v, v.at(b, h, j, 5)));
         });
       }},
      {"gradient-rows-misplaced", "key 40 of dK holds key 3",
       [&](const GradientOutputs& out) {
         const TensorView& k = out.dk.view();
         for_each_index(k.shape, [&](Index b, Index h, Index j, Index d) {
           if (j == 40) store(k, k.at(b, h, j, d), load(k, k.at(b, h, 3, d)));
         });
       }},
      {"key-gradients-exchanged", "dK and dV are exchanged",
       [&](const GradientOutputs& out) {
         const TensorView &k = out.dk.view(), &v = out.dv.view();
         for_each_index(k.shape, [&](Index b, Index h, Index j, Index d) {
           const double x = load(k, k.at(b, h, j, d));
           store(k, k.at(b, h, j, d), load(v, v.at(b, h, j, d)));
           store(v, v.at(b, h, j, d), x);
         });
       }},
  };
  for (const Wrong& wrong : all)
    for (const std::string dtype : {"f32", "f16", "bf16"}) {
      const Diagnosis d = diagnosis_of_gradients({}, "backward" + small + dtype, wrong.change);
      EXPECT_EQ(rank_of(d, wrong.cause), 1) << wrong.cause << " in " << dtype;
      EXPECT_THAT(sentence_on(d), testing::HasSubstr(wrong.words)) << dtype;
    }
}

// The diagonal is one key early in dQ, and the other gradients are right.
TEST(Mistakes, OfOneGradientAloneAreNamed) {
  const std::string line = "backward" + small + "f32 causal offset=end";
  const ChangeGradients restore = [&](const GradientOutputs& out) {
    const Case c = parse_case(line);
    const Inputs in(c);
    const Outputs forward(c, true, Surroundings::bands);
    const PlainKernel right(in.problem, {});
    right.forward(forward.view());
    const GradientOutputs of_right(c, in);
    right.backward({forward.o.view(), forward.lse.view(), in.d_o.view()}, of_right.view());
    for (const auto& [to, from] : {std::pair{&out.dk, &of_right.dk}, {&out.dv, &of_right.dv}})
      for_each_index(to->view().shape, [&](Index b, Index h, Index j, Index d) {
        store(to->view(), to->view().at(b, h, j, d),
              load(from->view(), from->view().at(b, h, j, d)));
      });
  };
  const Diagnosis d = diagnosis_of_gradients({.early = 1}, line, restore);
  EXPECT_EQ(rank_of(d, "gradient-causal-early"), 1);
  EXPECT_THAT(sentence_on(d), testing::HasSubstr("one key early, in dQ alone"));
}

// A is M x K, W is K x N, C is M x N; all are row-major.
using Numbers = std::vector<double>;

Diagnosis diagnosis_of_product(const std::string& line,
                               const std::function<void(Numbers& a, Numbers& w)>& before,
                               const std::function<void(Numbers& c)>& after,
                               const std::function<Numbers(LowBitView w)>& read = decode_weights) {
  const Case k = parse_case(line);
  const ProductInputs in(k);
  const Product& p = in.problem;
  Numbers a = decode_activations(p), w = read(p.w), c(usize(p.m * p.n), 0.0);
  if (before) before(a, w);
  for (Index m = 0; m < p.m; ++m)
    for (Index t = 0; t < p.k; ++t)
      for (Index n = 0; n < p.n; ++n)
        c[usize(m * p.n + n)] += a[usize(m * p.k + t)] * w[usize(t * p.n + n)];
  if (after) after(c);
  const ProductOutput out(k, Surroundings::bands);
  const TensorView& v = out.c.view();
  for_each_index(v.shape, [&](Index, Index, Index m, Index n) {
    store(v, v.at(0, 0, m, n), c[usize(m * p.n + n)]);
  });
  JudgeOptions options;
  options.evidence = EvidenceRule::fail;
  const Verdict verdict = judge_product_by_ladder(p, v, options);
  EXPECT_EQ(verdict.outcome, Outcome::fail) << line;
  return diagnose_product(p, v, nullptr, verdict, options);
}

TEST(Mistakes, OfProductsAreNamed) {
  constexpr Index rows = 20, depth = 128, columns = 40;
  struct Wrong {
    const char* cause;
    const char* words;
    std::function<void(Numbers&, Numbers&)> before;
    std::function<void(Numbers&)> after;
  };
  const auto of_a = [](const std::function<double(double, Index k)>& f) {
    return [=](Numbers& a, Numbers&) {
      for (std::size_t e = 0; e < a.size(); ++e) a[e] = f(a[e], static_cast<Index>(e) % depth);
    };
  };
  const auto times = [](double factor) {
    return [=](Numbers& c) {
      for (double& x : c) x *= factor;
    };
  };
  const Wrong all[] = {
      {"product-factor", "C is -1 times what it should be", {}, times(-1)},
      {"product-factor", "C is 1.25 times what it should be", {}, times(1.25)},
      {"term-counted",
       "term 77 is left out",
       of_a([](double x, Index k) { return k == 77 ? 0 : x; }),
       {}},
      {"term-counted",
       "term 5 is counted twice",
       of_a([](double x, Index k) { return k == 5 ? 2 * x : x; }),
       {}},
      {"last-terms-dropped",
       "the last 16 terms of each sum are dropped",
       of_a([](double x, Index k) { return k < depth - 16 ? x : 0; }),
       {}},
      {"activations-in-bf16",
       "A is rounded to bf16",
       of_a([](double x, Index) { return round_to(Dtype::bf16, x); }),
       {}},
      {"activations-in-bf16",
       "A is cast to bf16 by truncation",
       of_a([](double x, Index) {
         return static_cast<double>(std::bit_cast<float>(
             std::bit_cast<std::uint32_t>(static_cast<float>(x)) & 0xFFFF0000u));
       }),
       {}},
      {"activations-in-half",
       "A is rounded to f16",
       of_a([](double x, Index) { return round_to(Dtype::f16, x); }),
       {}},
      {"activations-in-tf32",
       "A is truncated to TF32",
       of_a([](double x, Index) { return tf32(x); }),
       {}},
      {"columns-shifted",
       "every column holds the next one",
       {},
       [](Numbers& c) {
         for (Index m = 0; m < rows; ++m) {
           const auto row = c.begin() + m * columns;
           std::rotate(row, row + 1, row + columns);
         }
       }},
      {"columns-shifted",
       "every column holds the one before",
       {},
       [](Numbers& c) {
         for (Index m = 0; m < rows; ++m) {
           const auto row = c.begin() + m * columns;
           std::rotate(row, row + columns - 1, row + columns);
         }
       }},
      {"product-misplaced",
       "columns 7 and 30 of C hold columns 30 and 7",
       {},
       [](Numbers& c) {
         for (Index m = 0; m < rows; ++m)
           std::swap(c[usize(m * columns + 7)], c[usize(m * columns + 30)]);
       }},
      {"product-misplaced",
       "row 12 of C holds row 11",
       {},
       [](Numbers& c) {
         std::copy_n(c.begin() + 11 * columns, columns, c.begin() + 12 * columns);
       }},
      {"last-term-dropped",
       "the last term of each sum is dropped, in row 5 alone",
       [](Numbers& a, Numbers&) { a[usize(6 * depth - 1)] = 0; },
       {}},
  };
  for (const Wrong& wrong : all) {
    const Diagnosis d = diagnosis_of_product("product m=20 n=40 k=128 dtype=f32 w=int8:32",
                                             wrong.before, wrong.after);
    EXPECT_EQ(rank_of(d, wrong.cause), 1) << wrong.words;
    EXPECT_THAT(sentence_on(d), testing::HasSubstr(wrong.words));
  }
}

// There is no key, or no row sees one, from which anything could be read.
TEST(Mistakes, OfRowsWithoutKeysReadNothing) {
  for (const char* line :
       {"attention b=1 h=2 l=5x0 d=8", "attention b=2 h=2 l=5x9 d=8 lengths=0,9",
        "attention b=1 h=2 l=5x9 d=8 bias=minus-infinity", "attention b=1 h=1 l=5 d=1"}) {
    const Diagnosis d = diagnosis_of({}, line, [](const TensorView& o) {
      for_each_index(o.shape, [&](Index b, Index h, Index i, Index c) {
        store(o, o.at(b, h, i, c), 0.5 + static_cast<double>(c));
      });
    });
    EXPECT_TRUE(d.was_asked()) << line;
  }
}

TEST(Mistakes, OfReadingIntegersAreNamed) {
  const Diagnosis ignored =
      diagnosis_of_product("product m=20 n=40 k=128 dtype=f32 w=int8:32", {}, {}, [](LowBitView w) {
        const std::vector<std::byte> zeros(usize(w.groups() * w.n));
        w.extra = zeros.data();
        return decode_weights(w);
      });
  EXPECT_EQ(rank_of(ignored, "zero-point-ignored"), 1) << sentence_on(ignored);
  const Diagnosis clamped =
      diagnosis_of_product("product m=20 n=40 k=128 dtype=f32 w=int8:32", {}, {}, [](LowBitView w) {
        std::vector<std::byte> codes(w.codes, w.codes + w.k * w.n);
        for (std::byte& code : codes)
          if (code == std::byte{0x80}) code = std::byte{0x81};
        w.codes = codes.data();
        return decode_weights(w);
      });
  EXPECT_EQ(rank_of(clamped, "least-code-clamped"), 1) << sentence_on(clamped);
}

}  // namespace
}  // namespace assay
