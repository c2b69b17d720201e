#include "testing/transformer.h"

#include <Random123/philox.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "harness/candidates/contracts.h"
#include "kernels/attention/attention.h"
#include "kernels/simd/targets.h"
#include "oracle/backward.h"
#include "oracle/backward_verdict.h"
#include "oracle/product.h"
#include "oracle/reference.h"
#include "problem/random.h"

namespace assay {
namespace {

void expect(const kernels::Status& status) {
  if (!status.ok())
    throw std::runtime_error(
        fmt::format("{}: {}", kernels::message_of(status.code), status.detail));
}

template <class Real>
constexpr Dtype dtype_of = sizeof(Real) == 4 ? Dtype::f32 : Dtype::f64;

// A contiguous view [1, 1, rows, columns], or [B, H, L, D] of rows [B * L, H * D].
template <class Real>
TensorView matrix(const std::vector<Real>& x, Index rows, Index columns) {
  return {
      const_cast<Real*>(x.data()), dtype_of<Real>, {1, 1, rows, columns}, {0, 0, columns, 1}, 0};
}
template <class Real>
TensorView heads_of(const std::vector<Real>& x, Index batch, Index heads, Index length) {
  const Index width = static_cast<Index>(x.size()) / std::max<Index>(batch * length, 1),
              dim = width / heads;
  return {const_cast<Real*>(x.data()),
          dtype_of<Real>,
          {batch, heads, length, dim},
          {length * width, dim, width, 1},
          0};
}

template <class Real>
void multiply(const std::vector<Real>& x, const std::vector<Real>& w, Index rows, Index in,
              Index out, std::vector<Real>& y) {
  y.assign(usize(rows * out), 0);
  for (Index r = 0; r < rows; ++r)
    for (Index i = 0; i < in; ++i) {
      const Real a = x[usize(r * in + i)];
      for (Index o = 0; o < out; ++o) y[usize(r * out + o)] += a * w[usize(i * out + o)];
    }
}

// Whether no gradient reaches a row. Such a row passes no gradient on, whatever its activations
// hold. Without this test, 0 * NaN of padding would be NaN.
template <class Real>
bool is_zero_row(const std::vector<Real>& d, std::size_t first, Index columns) {
  return std::all_of(d.begin() + static_cast<std::ptrdiff_t>(first),
                     d.begin() + static_cast<std::ptrdiff_t>(first) + columns,
                     [](Real x) { return x == 0; });
}

// Computes dx = dy W^T with the rounded weights, and dW += x^T dy, which passes through the
// rounding unchanged.
template <class Real>
void multiply_backward(Linear<Real>& layer, const std::vector<Real>& x, const std::vector<Real>& dy,
                       Index rows, std::vector<Real>& dx) {
  const std::vector<Real>& w = layer.format ? layer.rounded : layer.weights;
  dx.assign(usize(rows * layer.in), 0);
  for (Index r = 0; r < rows; ++r) {
    if (is_zero_row(dy, usize(r * layer.out), layer.out)) continue;
    for (Index i = 0; i < layer.in; ++i) {
      const Real a = x[usize(r * layer.in + i)];
      Real sum = 0;
      for (Index o = 0; o < layer.out; ++o) {
        const Real d = dy[usize(r * layer.out + o)];
        sum += d * w[usize(i * layer.out + o)];
        layer.gradient[usize(i * layer.out + o)] += a * d;
      }
      dx[usize(r * layer.in + i)] = sum;
    }
  }
}

constexpr double epsilon = 1e-5;

// The root mean square normalisation of every row, and its gradient, which is added to dx.
template <class Real>
std::vector<Real> norm(const std::vector<Real>& x, Index width) {
  std::vector<Real> y(x.size());
  for (std::size_t row = 0; row < x.size(); row += usize(width)) {
    Real squares = 0;
    for (Index c = 0; c < width; ++c) squares += x[row + usize(c)] * x[row + usize(c)];
    const Real inverse =
        1 / std::sqrt(squares / static_cast<Real>(width) + static_cast<Real>(epsilon));
    for (Index c = 0; c < width; ++c) y[row + usize(c)] = x[row + usize(c)] * inverse;
  }
  return y;
}
template <class Real>
void add_norm_backward(const std::vector<Real>& x, const std::vector<Real>& dy, Index width,
                       std::vector<Real>& dx) {
  for (std::size_t row = 0; row < x.size(); row += usize(width)) {
    if (is_zero_row(dy, row, width)) continue;
    Real squares = 0, dot = 0;
    for (Index c = 0; c < width; ++c) {
      const auto e = row + usize(c);
      squares += x[e] * x[e];
      dot += x[e] * dy[e];
    }
    const Real mean = squares / static_cast<Real>(width) + static_cast<Real>(epsilon),
               inverse = 1 / std::sqrt(mean);
    for (Index c = 0; c < width; ++c) {
      const auto e = row + usize(c);
      dx[e] += inverse * (dy[e] - x[e] * dot / (mean * static_cast<Real>(width)));
    }
  }
}

template <class Real>
void add(std::vector<Real>& x, const std::vector<Real>& y) {
  for (std::size_t e = 0; e < x.size(); ++e) x[e] += y[e];
}

// The function x / (1 + e^-x), and its slope.
template <class Real>
Real silu(Real x) {
  return x / (1 + std::exp(-x));
}
template <class Real>
Real silu_slope(Real x) {
  const Real s = 1 / (1 + std::exp(-x));
  return s * (1 + x * (1 - s));
}

double normal(std::uint64_t seed, Index parameter, Index element) {
  const auto words = r123::Philox4x32()(
      {{static_cast<std::uint32_t>(element), static_cast<std::uint32_t>(parameter), 0, 77}},
      {{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}});
  return normal_from(words);
}

Index first_token(std::uint64_t seed, Index sequence, Index below) {
  return static_cast<Index>(r123::Philox4x32()({{static_cast<std::uint32_t>(sequence), 0, 0, 78}},
                                               {{static_cast<std::uint32_t>(seed), 0}})[0] %
                            static_cast<std::uint64_t>(below));
}

}  // namespace

// ---- Arithmetic ----

void KernelArithmetic::linear(Linear<float>& layer, const std::vector<float>& x, Index rows,
                              std::vector<float>& y) {
  if (!layer.format) return multiply(x, layer.weights, rows, layer.in, layer.out, y);
  if (layer.stale) {
    expect(kernels::quantize_weights(matrix(layer.weights, layer.in, layer.out), *layer.format, {},
                                     layer.bytes));
    expect(kernels::PackedWeights::pack(layer.bytes.view(), layer.packed));
    layer.rounded.resize(layer.weights.size());
    for (Index k = 0; k < layer.in; ++k)
      for (Index n = 0; n < layer.out; ++n)
        layer.rounded[usize(k * layer.out + n)] =
            layer.packed->value(k, n) * layer.packed->scale(k / layer.packed->group(), n) *
            layer.packed->tensor_scale();
    layer.stale = false;
  }
  y.resize(usize(rows * layer.out));
  expect(kernels::product(matrix(x, rows, layer.in), *layer.packed, matrix(y, rows, layer.out),
                          threads_));
}

void KernelArithmetic::attention(const Attention& problem, const AttentionOutput& out) {
  expect(kernels::attention_forward(problem, out, threads_));
}

void KernelArithmetic::attention_backward(const Attention& problem,
                                          const AttentionBackwardInput& in,
                                          const AttentionGradients& out) {
  expect(kernels::attention_backward(problem, in, out, threads_));
}

void JudgedArithmetic::add(const Verdict& v) {
  if (v.outcome != Outcome::pass && v.outcome != Outcome::suspect) failures.push_back(v.reason);
  elements += v.compared();
  for (const auto& [output, compared] : v.outputs) worst = std::max(worst, v.worst_ratio(output));
}

void JudgedArithmetic::linear(Linear<float>& layer, const std::vector<float>& x, Index rows,
                              std::vector<float>& y) {
  KernelArithmetic::linear(layer, x, rows, y);
  if (!layer.format) return;
  ++products;
  Product p;
  p.m = rows;
  p.n = layer.out;
  p.k = layer.in;
  p.a = matrix(x, rows, layer.in);
  p.w = layer.bytes.view();
  JudgeOptions options;
  options.power = false;
  add(judge_product(p, matrix(y, rows, layer.out), host_product_contract(p, kernels::Target()),
                    options));
}

void JudgedArithmetic::attention(const Attention& problem, const AttentionOutput& out) {
  KernelArithmetic::attention(problem, out);
  ++attentions;
  JudgeOptions options;
  options.power = false;
  add(judge(problem, out, host_forward_contract(problem, problem.k.dtype, kernels::Target()),
            options));
}

void JudgedArithmetic::attention_backward(const Attention& problem,
                                          const AttentionBackwardInput& in,
                                          const AttentionGradients& out) {
  KernelArithmetic::attention_backward(problem, in, out);
  ++backwards;
  JudgeOptions options;
  options.power = false;
  add(judge_backward(problem, in, out,
                     host_backward_contract(problem, in.d_o.dtype, kernels::Target()), options));
}

void OracleArithmetic::linear(Linear<double>& layer, const std::vector<double>& x, Index rows,
                              std::vector<double>& y) {
  if (!layer.format) return multiply(x, layer.weights, rows, layer.in, layer.out, y);
  if (layer.stale) {
    const LowBitMatrix w =
        quantize(*layer.format, layer.in, layer.out, traits(*layer.format).group,
                 [&](Index k, Index n) { return layer.weights[usize(k * layer.out + n)]; });
    layer.rounded = decode_weights(w.view());
    layer.stale = false;
  }
  multiply(x, layer.rounded, rows, layer.in, layer.out, y);
}

void OracleArithmetic::attention(const Attention& p, const AttentionOutput& out) {
  const Reference reference(p, Contract{});
  std::vector<Index> rows(usize(p.shape.rows));
  std::iota(rows.begin(), rows.end(), 0);
  for (Index b = 0; b < p.shape.batch; ++b)
    for (Index h = 0; h < p.shape.query_heads; ++h) {
      const Block block = reference.evaluate(*reference.load_head(b, h / p.shape.group()), h, rows);
      for (Index i = 0; i < p.shape.rows; ++i) {
        const BlockRow& row = block.row(i);
        store(out.lse, out.lse.at(b, h, i, 0),
              row.fully_masked ? -std::numeric_limits<double>::infinity() : row.lse.value);
        for (Index d = 0; d < p.shape.value_dim; ++d)
          store(out.o, out.o.at(b, h, i, d), row.fully_masked ? 0 : block.element(i, d).value);
      }
    }
}

void OracleArithmetic::attention_backward(const Attention& p, const AttentionBackwardInput& in,
                                          const AttentionGradients& out) {
  const BackwardReference reference(p, in, out, Contract{});
  std::vector<Index> rows(usize(p.shape.rows));
  std::iota(rows.begin(), rows.end(), 0);
  SharedGradients shared = reference.no_shared_gradients();
  auto copy = [](const Gradient& from, const TensorView& to, Index b, Index h) {
    for (Index r = 0; r < from.rows; ++r)
      for (Index c = 0; c < from.columns; ++c)
        store(to, to.at(b, h, r, c),
              from.touched[usize(r)] ? from.value[usize(r * from.columns + c)] : 0);
  };
  for (Index b = 0; b < p.shape.batch; ++b)
    for (Index g = 0; g < p.shape.kv_heads; ++g) {
      const GroupGradients all = reference.evaluate(b, g, rows, shared);
      for (Index member = 0; member < p.shape.group(); ++member)
        copy(all.dq[usize(member)], out.dq, b, g * p.shape.group() + member);
      copy(all.dk, out.dk, b, g);
      copy(all.dv, out.dv, b, g);
    }
}

// ---- The model ----

TokenBatch rule_batch(const TransformerConfig& config, Index sequences, Index length,
                      std::uint64_t seed) {
  TokenBatch batch;
  batch.sequences = sequences;
  batch.length = length;
  for (Index b = 0; b < sequences; ++b) {
    batch.starts.push_back(b % 3 == 1 ? length / 3 : 0);
    Index token = first_token(seed, b, config.vocabulary);
    for (Index i = 0; i < length; ++i) {
      const bool padding = i < batch.starts.back();
      batch.tokens.push_back(padding ? 0 : token);
      if (!padding) token = (5 * token + 3) % config.vocabulary;
      batch.targets.push_back(padding ? -1 : token);
    }
  }
  return batch;
}

template <class Real>
void FirstNotFinite<Real>::operator()(const std::string& name, const std::vector<Real>& values,
                                      Index rows) {
  if (!stage.empty() || rows == 0) return;
  const Index columns = static_cast<Index>(values.size()) / rows;
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; watched_(r) && c < columns; ++c)
      if (!std::isfinite(values[usize(r * columns + c)])) {
        stage = name;
        row = r;
        column = c;
        return;
      }
}

template <class Real>
Transformer<Real>::Transformer(const TransformerConfig& config, std::uint64_t seed)
    : config_(config) {
  const TransformerConfig& c = config_;
  layers_.resize(usize(c.layers));
  trace_.resize(layers_.size());
  auto shape = [](Linear<Real>& l, Index in, Index out, std::optional<LowBit> format) {
    l.in = in;
    l.out = out;
    l.format = format;
  };
  shape(embedding_, c.vocabulary, c.width, {});
  for (Index n = 0; n < c.layers; ++n) {
    Layer& l = layers_[usize(n)];
    const std::optional<LowBit> format = c.is_low_bit(n) ? c.format : std::nullopt;
    shape(l.query, c.width, c.query_heads * c.head_dim, format);
    shape(l.key, c.width, c.kv_heads * c.head_dim, format);
    shape(l.value, c.width, c.kv_heads * c.head_dim, format);
    shape(l.output, c.query_heads * c.head_dim, c.width, format);
    shape(l.up, c.width, c.hidden, format);
    shape(l.down, c.hidden, c.width, format);
  }
  shape(last_, c.width, c.vocabulary, {});
  Index number = 0;
  for (Linear<Real>* l : parameters()) {
    l->weights.resize(usize(l->in * l->out));
    l->gradient.assign(l->weights.size(), 0);
    const double gain = l == &embedding_ ? 1 : 1 / std::sqrt(static_cast<double>(l->in));
    for (std::size_t e = 0; e < l->weights.size(); ++e)
      l->weights[e] = static_cast<Real>(
          round_to(Dtype::f32, gain * normal(seed, number, static_cast<Index>(e))));
    ++number;
  }
}

template <class Real>
Transformer<Real>::Transformer(const Transformer<float>& other)
  requires(!std::is_same_v<Real, float>)
    : Transformer(other.config_, 0) {
  std::vector<Linear<Real>*> mine = parameters();
  std::vector<Linear<float>*> theirs = const_cast<Transformer<float>&>(other).parameters();
  for (std::size_t p = 0; p < mine.size(); ++p)
    mine[p]->weights.assign(theirs[p]->weights.begin(), theirs[p]->weights.end());
}

template <class Real>
std::vector<Linear<Real>*> Transformer<Real>::parameters() {
  std::vector<Linear<Real>*> all = {&embedding_};
  for (Layer& l : layers_)
    all.insert(all.end(), {&l.query, &l.key, &l.value, &l.output, &l.up, &l.down});
  all.push_back(&last_);
  return all;
}

template <class Real>
Attention Transformer<Real>::attention_problem(const TokenBatch& batch) const {
  Attention a;
  a.shape = {batch.sequences, config_.query_heads, config_.kv_heads, batch.length,
             batch.length,    config_.head_dim,    config_.head_dim};
  a.scale = default_scale(config_.head_dim);
  a.causal = true;
  a.key_starts = batch.starts;
  a.alibi_slopes = default_alibi_slopes(config_.query_heads);
  return a;
}

template <class Real>
void Transformer<Real>::forward(const TokenBatch& batch, ModelArithmetic<Real>& arithmetic) {
  const TransformerConfig& c = config_;
  const Index rows = batch.sequences * batch.length;
  std::vector<Real> x(usize(rows * c.width));
  for (Index r = 0; r < rows; ++r)
    std::copy_n(embedding_.weights.begin() + batch.tokens[usize(r)] * c.width, c.width,
                x.begin() + r * c.width);
  tell("embedding", x, rows);
  for (Index n = 0; n < c.layers; ++n) {
    Layer& l = layers_[usize(n)];
    Trace& t = trace_[usize(n)];
    const std::string name = fmt::format("layer {} ", n);
    t.x = x;
    t.normed = norm(x, c.width);
    tell(name + "norm", t.normed, rows);
    arithmetic.linear(l.query, t.normed, rows, t.q);
    tell(name + "query", t.q, rows);
    arithmetic.linear(l.key, t.normed, rows, t.k);
    tell(name + "key", t.k, rows);
    arithmetic.linear(l.value, t.normed, rows, t.v);
    tell(name + "value", t.v, rows);
    Attention a = attention_problem(batch);
    a.q = heads_of(t.q, batch.sequences, c.query_heads, batch.length);
    a.k = heads_of(t.k, batch.sequences, c.kv_heads, batch.length);
    a.v = heads_of(t.v, batch.sequences, c.kv_heads, batch.length);
    t.o.resize(t.q.size());
    t.lse.resize(usize(rows * c.query_heads));
    arithmetic.attention(a, {heads_of(t.o, batch.sequences, c.query_heads, batch.length),
                             heads_of(t.lse, batch.sequences, c.query_heads, batch.length)});
    tell(name + "attention", t.o, rows);
    std::vector<Real> y;
    arithmetic.linear(l.output, t.o, rows, y);
    add(x, y);
    tell(name + "attention output", x, rows);
    t.middle = x;
    t.normed_middle = norm(x, c.width);
    arithmetic.linear(l.up, t.normed_middle, rows, t.up);
    t.activated.resize(t.up.size());
    for (std::size_t e = 0; e < t.up.size(); ++e) t.activated[e] = silu(t.up[e]);
    tell(name + "activation", t.activated, rows);
    arithmetic.linear(l.down, t.activated, rows, y);
    add(x, y);
    tell(name + "output", x, rows);
  }
  final_ = x;
  final_normed_ = norm(x, c.width);
  arithmetic.linear(last_, final_normed_, rows, logits_);
  tell("logits", logits_, rows);
}

template <class Real>
std::vector<Real> Transformer<Real>::logits(const TokenBatch& batch,
                                            ModelArithmetic<Real>& arithmetic) {
  forward(batch, arithmetic);
  return logits_;
}

template <class Real>
double Transformer<Real>::loss(const TokenBatch& batch, ModelArithmetic<Real>& arithmetic,
                               bool gradients) {
  forward(batch, arithmetic);
  const Index v = config_.vocabulary;
  const auto wanted = static_cast<double>(
      std::count_if(batch.targets.begin(), batch.targets.end(), [](Index t) { return t >= 0; }));
  std::vector<Real> d_logits(logits_.size(), 0);
  double total = 0;
  for (std::size_t r = 0; r < batch.targets.size(); ++r) {
    if (batch.targets[r] < 0) continue;
    const Real* row = logits_.data() + r * usize(v);
    // NaN does not satisfy this comparison, so it is taken over. A maximum would hide it.
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (Index n = 0; n < v; ++n)
      largest = row[n] <= largest ? largest : static_cast<double>(row[n]);
    for (Index n = 0; n < v; ++n) sum += std::exp(static_cast<double>(row[n]) - largest);
    total += std::log(sum) + largest - static_cast<double>(row[batch.targets[r]]);
    for (Index n = 0; n < v; ++n)
      d_logits[r * usize(v) + usize(n)] =
          static_cast<Real>((std::exp(static_cast<double>(row[n]) - largest) / sum -
                             (n == batch.targets[r] ? 1 : 0)) /
                            wanted);
  }
  if (gradients) backward(batch, arithmetic, std::move(d_logits));
  return total / wanted;
}

template <class Real>
void Transformer<Real>::backward(const TokenBatch& batch, ModelArithmetic<Real>& arithmetic,
                                 std::vector<Real> d_logits) {
  const TransformerConfig& c = config_;
  const Index rows = batch.sequences * batch.length;
  for (Linear<Real>* l : parameters()) l->gradient.assign(l->weights.size(), 0);
  std::vector<Real> dx(final_.size(), 0), d;
  multiply_backward(last_, final_normed_, d_logits, rows, d);
  add_norm_backward(final_, d, c.width, dx);
  for (Index n = c.layers - 1; n >= 0; --n) {
    Layer& l = layers_[usize(n)];
    const Trace& t = trace_[usize(n)];
    multiply_backward(l.down, t.activated, dx, rows, d);
    for (std::size_t e = 0; e < d.size(); ++e) d[e] = d[e] == 0 ? 0 : d[e] * silu_slope(t.up[e]);
    std::vector<Real> d_normed;
    multiply_backward(l.up, t.normed_middle, d, rows, d_normed);
    add_norm_backward(t.middle, d_normed, c.width, dx);

    std::vector<Real> d_o, dq(t.q.size()), dk(t.k.size()), dv(t.v.size());
    multiply_backward(l.output, t.o, dx, rows, d_o);
    Attention a = attention_problem(batch);
    const auto view = [&](const std::vector<Real>& values, Index heads) {
      return heads_of(values, batch.sequences, heads, batch.length);
    };
    a.q = view(t.q, c.query_heads);
    a.k = view(t.k, c.kv_heads);
    a.v = view(t.v, c.kv_heads);
    AttentionGradients out;
    out.dq = view(dq, c.query_heads);
    out.dk = view(dk, c.kv_heads);
    out.dv = view(dv, c.kv_heads);
    arithmetic.attention_backward(
        a, {view(t.o, c.query_heads), view(t.lse, c.query_heads), view(d_o, c.query_heads)}, out);
    std::vector<Real> total(t.normed.size(), 0);
    for (auto [layer, gradient] : {std::pair{&l.query, &dq}, {&l.key, &dk}, {&l.value, &dv}}) {
      multiply_backward(*layer, t.normed, *gradient, rows, d);
      add(total, d);
    }
    add_norm_backward(t.x, total, c.width, dx);
  }
  for (Index r = 0; r < rows; ++r)
    for (Index w = 0; w < c.width; ++w)
      embedding_.gradient[usize(batch.tokens[usize(r)] * c.width + w)] +=
          dx[usize(r * c.width + w)];
}

template <class Real>
void Transformer<Real>::step(Real rate) {
  for (Linear<Real>* l : parameters()) {
    for (std::size_t e = 0; e < l->weights.size(); ++e) l->weights[e] -= rate * l->gradient[e];
    l->stale = true;
  }
}

template class FirstNotFinite<float>;
template class FirstNotFinite<double>;
template class Transformer<float>;
template class Transformer<double>;

// ---- Decoding ----

Decoder::Decoder(Transformer<float>& model, Index capacity, Dtype cache_dtype, int threads)
    : model_(model), arithmetic_(threads), threads_(threads) {
  const TransformerConfig& c = model.config();
  kernels::CacheConfig cache;
  cache.kind = kernels::CacheKind::paged;
  cache.kv_heads = c.kv_heads;
  cache.dim = cache.value_dim = c.head_dim;
  cache.capacity = capacity;
  cache.dtype = cache_dtype;
  caches_.resize(usize(c.layers));
  for (auto& layer : caches_) expect(kernels::Cache::create(cache, layer));
}

std::vector<float> Decoder::append(const std::vector<Index>& tokens) {
  const TransformerConfig& c = model_.config();
  const Index rows = std::ssize(tokens);
  if (rows == 0) throw std::invalid_argument("tokens: a decoder is given at least one");
  TokenBatch batch;
  batch.length = rows;
  batch.tokens = tokens;
  std::vector<float> x(usize(rows * c.width));
  for (Index r = 0; r < rows; ++r)
    std::copy_n(model_.embedding_.weights.begin() + tokens[usize(r)] * c.width, c.width,
                x.begin() + r * c.width);
  std::vector<float> q, k, v, y, lse(usize(rows * c.query_heads));
  for (Index n = 0; n < c.layers; ++n) {
    auto& l = model_.layers_[usize(n)];
    kernels::Cache& cache = *caches_[usize(n)];
    const std::vector<float> normed = norm(x, c.width);
    arithmetic_.linear(l.query, normed, rows, q);
    arithmetic_.linear(l.key, normed, rows, k);
    arithmetic_.linear(l.value, normed, rows, v);
    expect(cache.append(0, heads_of(k, 1, c.kv_heads, rows), heads_of(v, 1, c.kv_heads, rows)));
    Attention a = model_.attention_problem(batch);
    a.shape.keys = 0;
    a.q = heads_of(q, 1, c.query_heads, rows);
    std::vector<float> o(q.size());
    expect(kernels::attention_cached(
        a, cache, {}, {heads_of(o, 1, c.query_heads, rows), heads_of(lse, 1, c.query_heads, rows)},
        threads_));
    arithmetic_.linear(l.output, o, rows, y);
    add(x, y);
    std::vector<float> up;
    arithmetic_.linear(l.up, norm(x, c.width), rows, up);
    for (float& e : up) e = silu(e);
    arithmetic_.linear(l.down, up, rows, y);
    add(x, y);
  }
  const std::vector<float> tail(x.end() - c.width, x.end());
  std::vector<float> logits;
  arithmetic_.linear(model_.last_, norm(tail, c.width), 1, logits);
  return logits;
}

}  // namespace assay
