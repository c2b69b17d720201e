// A small decoder-only transformer that runs on the kernels or, in fp64, on the oracle: the
// integration test of attention, caches and low-bit products, and the example of how they fit
// together.
//
//   x = embedding[token]
//   for every layer: x += attention(norm(x)) Wo;  x += silu(norm(x) Wup) Wdown
//   logits = norm(x) Wout
//
// Attention is causal and grouped (GQA), and positions enter by ALiBi, so only the six products of
// a layer have weights. The weights of the inner layers are low-bit. They are quantized from fp32
// master weights, and gradients pass through the rounding unchanged.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cache/cache.h"
#include "kernels/product/product.h"
#include "oracle/verdict.h"

namespace assay {

struct TransformerConfig {
  Index vocabulary = 32, layers = 4, width = 32, query_heads = 4, kv_heads = 2, head_dim = 8,
        hidden = 64;
  std::optional<LowBit> format = LowBit::mxfp4;  // of the layers' weights; absent: fp32
  // Whether the first and the last layer stay fp32, as the embedding and the last product always
  // do.
  bool skip_first_and_last = true;
  bool is_low_bit(Index layer) const {
    return format && !(skip_first_and_last && (layer == 0 || layer == layers - 1));
  }
};

// W [in, out], row-major.
template <class Real>
struct Linear {
  Index in = 0, out = 0;
  std::vector<Real> weights, gradient;
  std::optional<LowBit> format;
  // Only for low-bit weights: their values after rounding, and the bytes that the kernels read.
  // Both are made on the first use after a change.
  std::vector<Real> rounded;
  kernels::LowBitBytes bytes;
  std::shared_ptr<const kernels::PackedWeights> packed;
  bool stale = true;
};

// The operations with which a transformer is computed.
template <class Real>
class ModelArithmetic {
 public:
  virtual ~ModelArithmetic() = default;
  // Computes y [rows, out] = x [rows, in] W.
  virtual void linear(Linear<Real>& layer, const std::vector<Real>& x, Index rows,
                      std::vector<Real>& y) = 0;
  // `problem` has its Q, K and V, [B, H, L, D].
  virtual void attention(const Attention& problem, const AttentionOutput& out) = 0;
  virtual void attention_backward(const Attention& problem, const AttentionBackwardInput& in,
                                  const AttentionGradients& out) = 0;
};

// Computes with the production kernels. If one fails, its status and message are thrown as
// std::runtime_error.
class KernelArithmetic : public ModelArithmetic<float> {
 public:
  explicit KernelArithmetic(int threads = 1) : threads_(threads) {}
  void linear(Linear<float>& layer, const std::vector<float>& x, Index rows,
              std::vector<float>& y) override;
  void attention(const Attention& problem, const AttentionOutput& out) override;
  void attention_backward(const Attention& problem, const AttentionBackwardInput& in,
                          const AttentionGradients& out) override;

 private:
  int threads_;
};

// Computes with the same kernels, and judges every low-bit product and every attention by its
// bound, on the data that flow through the model.
class JudgedArithmetic : public KernelArithmetic {
 public:
  void linear(Linear<float>& layer, const std::vector<float>& x, Index rows,
              std::vector<float>& y) override;
  void attention(const Attention& problem, const AttentionOutput& out) override;
  void attention_backward(const Attention& problem, const AttentionBackwardInput& in,
                          const AttentionGradients& out) override;

  Index products = 0, attentions = 0, backwards = 0;  // numbers of judged calls
  std::int64_t elements = 0;
  double worst = 0;  // largest error / bound
  std::vector<std::string> failures;

 private:
  void add(const Verdict& v);
};

// Computes with the oracle's fp64 attention, and with products in fp64 over the exact values of the
// codes.
class OracleArithmetic : public ModelArithmetic<double> {
 public:
  void linear(Linear<double>& layer, const std::vector<double>& x, Index rows,
              std::vector<double>& y) override;
  void attention(const Attention& problem, const AttentionOutput& out) override;
  void attention_backward(const Attention& problem, const AttentionBackwardInput& in,
                          const AttentionGradients& out) override;
};

struct TokenBatch {
  Index sequences = 1, length = 0;
  std::vector<Index> tokens;   // [sequences, length]
  std::vector<Index> targets;  // the same shape; -1: no target
  // The start of each sequence. The tokens before it are padding, which no row sees. Empty: all
  // start at 0.
  std::vector<Index> starts;
};
// Makes tokens that follow one another by a rule (t -> 5 t + 3 mod vocabulary) from beginnings that
// the seed determines. Sequences are padded on the left, and the targets are the next tokens.
TokenBatch rule_batch(const TransformerConfig& config, Index sequences, Index length,
                      std::uint64_t seed);

// It is called for every stage in order, with the name ("layer 2 attention") and the values [rows,
// columns].
template <class Real>
using StageObserver =
    std::function<void(const std::string& stage, const std::vector<Real>& values, Index rows)>;

// Finds the first stage in which a row that `watched` accepts holds NaN or infinity.
template <class Real>
class FirstNotFinite {
 public:
  explicit FirstNotFinite(std::function<bool(Index row)> watched) : watched_(std::move(watched)) {}
  void operator()(const std::string& stage, const std::vector<Real>& values, Index rows);
  std::string stage;  // empty: everything is finite
  Index row = -1, column = -1;

 private:
  std::function<bool(Index)> watched_;
};

template <class Real>
class Transformer {
 public:
  // Draws normal weights from the seed. The numbers are the same in either precision.
  Transformer(const TransformerConfig& config, std::uint64_t seed);
  explicit Transformer(const Transformer<float>& other)
    requires(!std::is_same_v<Real, float>);

  const TransformerConfig& config() const { return config_; }

  // Computes the logits, [sequences * length, vocabulary].
  std::vector<Real> logits(const TokenBatch& batch, ModelArithmetic<Real>& arithmetic);
  // Computes the mean cross-entropy over the targets that are given and, with `gradients`, the
  // gradients of every parameter.
  double loss(const TokenBatch& batch, ModelArithmetic<Real>& arithmetic, bool gradients);
  // Takes one step of plain gradient descent.
  void step(Real rate);

  // All parameters: the embedding, then the products of each layer, then the last product.
  std::vector<Linear<Real>*> parameters();
  StageObserver<Real> observe;

 private:
  template <class>
  friend class Transformer;
  friend class Decoder;
  struct Layer {
    Linear<Real> query, key, value, output, up, down;
  };
  // The numbers that the forward pass of a layer keeps for its gradients.
  struct Trace {
    std::vector<Real> x, normed, q, k, v, o, lse, middle, normed_middle, up, activated;
  };
  Attention attention_problem(const TokenBatch& batch) const;
  void tell(const std::string& stage, const std::vector<Real>& values, Index rows) const {
    if (observe) observe(stage, values, rows);
  }
  void forward(const TokenBatch& batch, ModelArithmetic<Real>& arithmetic);
  void backward(const TokenBatch& batch, ModelArithmetic<Real>& arithmetic,
                std::vector<Real> d_logits);

  TransformerConfig config_;
  Linear<Real> embedding_, last_;
  std::vector<Layer> layers_;
  std::vector<Trace> trace_;
  std::vector<Real> final_, final_normed_, logits_;
};

// Decodes one sequence with caches. Tokens come in any chunks, and each chunk gives the logits of
// its last token.
class Decoder {
 public:
  Decoder(Transformer<float>& model, Index capacity, Dtype cache_dtype, int threads = 1);
  std::vector<float> append(const std::vector<Index>& tokens);

 private:
  Transformer<float>& model_;
  KernelArithmetic arithmetic_;
  int threads_;
  std::vector<std::unique_ptr<kernels::Cache>> caches_;
};

}  // namespace assay
