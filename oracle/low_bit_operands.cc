#include "oracle/low_bit_operands.h"

#include <algorithm>
#include <cmath>

#include "oracle/product.h"

namespace assay {
namespace {

// The layouts are those of problem/low_bit.h.

std::uint32_t word_at(const std::byte* data, Index at) {
  std::uint32_t word = 0;
  for (int b = 0; b < 4; ++b) word |= static_cast<std::uint32_t>(data[4 * at + b]) << (8 * b);
  return word;
}

std::uint32_t nibble_of_word(const std::byte* data, Index word, Index nibble) {
  return word_at(data, word) >> (4 * nibble) & 0xF;
}

double element_value(const LowBitTraits& t, std::uint32_t code) {
  if (!t.integer) return decode(t.element, code);
  return t.bits == 8 && code >= 128 ? static_cast<double>(code) - 256 : static_cast<double>(code);
}

double zero_point(const LowBitView& w, Index t, Index n) {
  const auto code = static_cast<std::uint32_t>(w.extra[t * w.n + n]);
  return traits(w.format).bits == 8 && code >= 128 ? static_cast<double>(code) - 256
                                                   : static_cast<double>(code);
}

// The decoded code minus the zero point, without any scale.
double code_value(const LowBitView& w, Index k, Index n) {
  const LowBitTraits& t = traits(w.format);
  std::uint32_t code = 0;
  switch (t.layout) {
    case CodeLayout::columns: {
      const Index column = (w.k * t.bits + 7) / 8 * n;
      if (t.bits == 8) code = static_cast<std::uint32_t>(w.codes[column + k]);
      else code = static_cast<std::uint32_t>(w.codes[column + k / 2]) >> (k % 2 == 0 ? 0 : 4) & 0xF;
      break;
    }
    case CodeLayout::words: code = nibble_of_word(w.codes, (k / 8) * w.n + n, k % 8); break;
    case CodeLayout::bytes: code = static_cast<std::uint32_t>(w.codes[k * w.n + n]); break;
    case CodeLayout::sparse: {
      const std::uint32_t kept = nibble_of_word(w.extra, (k / 32) * w.n + n, k / 4 % 8);
      for (Index which = 0; which < 2; ++which)
        if ((kept >> (2 * which) & 3) == static_cast<std::uint32_t>(k % 4))
          return element_value(t,
                               nibble_of_word(w.codes, (k / 16) * w.n + n, k / 4 % 4 * 2 + which));
      return 0;
    }
  }
  return element_value(t, code) - (t.integer ? zero_point(w, k / w.group, n) : 0);
}

double scale_value(const LowBitView& w, Index t, Index n) {
  if (w.group == 0) return 1;
  const LowBitTraits& format_of = traits(w.format);
  const Index at = format_of.layout == CodeLayout::columns ? n * w.groups() + t : t * w.n + n;
  std::uint32_t code = static_cast<std::uint32_t>(w.scales[at]);
  if (format_of.scale == Dtype::f16)
    code = static_cast<std::uint32_t>(w.scales[2 * at]) |
           static_cast<std::uint32_t>(w.scales[2 * at + 1]) << 8;
  return decode(format_of.scale, code);
}

}  // namespace

void ProductRow::read(const Product& p, Index m) {
  a.resize(usize(p.k));
  not_in_f32 = false;
  const double largest = format(Dtype::f32).max_finite;
  for (Index k = 0; k < p.k; ++k) {
    a[usize(k)] = p.a_low ? code_value(p.a_low, k, m) *
                                scale_value(p.a_low, p.a_low.group > 0 ? k / p.a_low.group : 0, m)
                          : load(p.a, p.a.at(0, 0, m, k));
    not_in_f32 |= std::isfinite(a[usize(k)]) && std::fabs(a[usize(k)]) > largest;
  }
  integers = to_integers(p.k, [&](Index k) { return a[usize(k)]; });
  finite = a;
  if (!integers.finite)
    std::ranges::replace_if(finite, [](double x) { return !std::isfinite(x); }, 0.0);
  const Index step = p.w.group > 0 ? p.w.group : p.k;
  quantum.assign(usize((p.k + step - 1) / step), no_bit);
  if (integers.finite)
    for (Index k = 0; k < p.k; ++k)
      quantum[usize(k / step)] = std::min(quantum[usize(k / step)], lowest_bit(a[usize(k)]));
}

ProductColumns::ProductColumns(const LowBitView& w, Index first_, Index count_)
    : first(first_),
      count(count_),
      step(w.group > 0 ? w.group : w.k),
      tensor_scale(static_cast<double>(w.tensor_scale)) {
  groups = (w.k + step - 1) / step;
  code.resize(usize(w.k * count));
  scale.resize(usize(groups * count));
  quantum.assign(scale.size(), no_bit);
  largest.assign(scale.size(), 0);
  for (Index k = 0; k < w.k; ++k)
    for (Index c = 0; c < count; ++c) {
      const double x = code[usize(k * count + c)] = code_value(w, k, first + c);
      double& most = largest[usize(k / step * count + c)];
      most = std::max(most, std::fabs(x));
    }
  for (Index t = 0; t < groups; ++t)
    for (Index c = 0; c < count; ++c) scale[usize(t * count + c)] = scale_value(w, t, first + c);
  finite_code = code;
  finite_scale = scale;
  for (auto* list : {&finite_code, &finite_scale})
    std::ranges::replace_if(*list, [](double x) { return !std::isfinite(x); }, 0.0);
  for (Index c = 0; c < count; ++c) {
    integers.push_back(to_integers(w.k, [&](Index k) { return weight(k, c); }));
    if (!integers.back().finite) continue;
    for (Index k = 0; k < w.k; ++k) {
      int& q = quantum[usize(k / step * count + c)];
      q = std::min(q, lowest_bit(code_at(k, c)));
    }
  }
}

std::vector<double> decode_weights(const LowBitView& w) {
  std::vector<double> values(usize(w.k * w.n));
  for (Index k = 0; k < w.k; ++k)
    for (Index n = 0; n < w.n; ++n)
      values[usize(k * w.n + n)] = code_value(w, k, n) *
                                   scale_value(w, w.group > 0 ? k / w.group : 0, n) *
                                   static_cast<double>(w.tensor_scale);
  return values;
}

std::vector<double> decode_activations(const Product& p) {
  std::vector<double> values;
  values.reserve(usize(p.m * p.k));
  ProductRow row;
  for (Index m = 0; m < p.m; ++m) {
    row.read(p, m);
    for (double x : row.a)
      values.push_back(p.a_low ? x * static_cast<double>(p.a_low.tensor_scale) : x);
  }
  return values;
}

}  // namespace assay
