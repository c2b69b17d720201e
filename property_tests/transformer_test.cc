// The small transformer: kernels and oracle compute the same model and train it alike, and NaN
// stays where it belongs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "testing/transformer.h"

namespace assay {
namespace {

constexpr std::uint64_t seed = 11;

// Tests the formulas of every gradient in fp64, without quantization, which is not differentiable.
TEST(SmallTransformer, GradientsAgreeWithDifferences) {
  TransformerConfig config;
  config.layers = 2;
  config.format.reset();
  Transformer<double> model(config, seed);
  OracleArithmetic oracle;
  const TokenBatch batch = rule_batch(config, 2, 9, seed);
  model.loss(batch, oracle, true);
  const std::vector<Linear<double>*> parameters = model.parameters();
  int compared = 0;
  for (std::size_t p = 0; p < parameters.size(); ++p)
    for (std::size_t e = 3 * p; e < parameters[p]->weights.size();
         e += parameters[p]->weights.size() / 3) {
      double& w = parameters[p]->weights[e];
      const double kept = w, step = 1e-4, gradient = parameters[p]->gradient[e];
      auto at = [&](double x) {
        w = kept + x * step;
        const double loss = model.loss(batch, oracle, false);
        w = kept;
        return loss;
      };
      // With five points the error is of the order of step^4.
      const double difference = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step);
      EXPECT_NEAR(gradient, difference, 1e-9 + 1e-7 * std::fabs(difference))
          << "parameter " << p << " element " << e;
      ++compared;
    }
  EXPECT_GT(compared, 40);
}

class LowBitFormats : public testing::TestWithParam<LowBit> {};

// Every product and attention call inside a training loop stays within its bound. The loss falls.
// For the same weights, the oracle's model has the same loss and gradients up to fp32.
TEST_P(LowBitFormats, TrainsWithinItsBoundsAndMatchesTheOracle) {
  TransformerConfig config;
  config.format = GetParam();
  Transformer<float> model(config, seed);
  JudgedArithmetic kernels;
  OracleArithmetic oracle;
  std::vector<double> losses;
  for (int step = 0; step < 12; ++step) {
    const TokenBatch batch = rule_batch(config, 3, 17, seed + static_cast<std::uint64_t>(step));
    Transformer<double> reference(model);
    losses.push_back(model.loss(batch, kernels, true));
    const double exact = reference.loss(batch, oracle, true);
    EXPECT_NEAR(losses.back(), exact, 1e-5 * exact);
    const auto mine = model.parameters();
    const auto theirs = reference.parameters();
    for (std::size_t p = 0; p < mine.size(); ++p) {
      double largest = 0, difference = 0;
      for (std::size_t e = 0; e < mine[p]->gradient.size(); ++e) {
        largest = std::max(largest, std::fabs(theirs[p]->gradient[e]));
        const double off =
            std::fabs(static_cast<double>(mine[p]->gradient[e]) - theirs[p]->gradient[e]);
        difference = off <= difference ? difference : off;  // NaN stays
      }
      EXPECT_TRUE(difference <= 1e-4 * largest)
          << "parameter " << p << " step " << step << ": " << difference << " of " << largest;
    }
    model.step(0.5f);
  }
  EXPECT_LT(losses.back(), 0.6 * losses.front());
  EXPECT_THAT(kernels.failures, testing::IsEmpty());
  // There are four layers, of which the inner two are low-bit, and twelve steps.
  EXPECT_EQ(kernels.products, 12 * 2 * 6);
  EXPECT_EQ(kernels.attentions, 12 * 4);
  EXPECT_EQ(kernels.backwards, 12 * 4);
  EXPECT_GT(kernels.elements, 200000);
  EXPECT_LE(kernels.worst, 1);
}
INSTANTIATE_TEST_SUITE_P(All, LowBitFormats,
                         testing::Values(LowBit::mxfp4, LowBit::nvfp4, LowBit::fp4,
                                         LowBit::fp4_sparse, LowBit::f8e4m3, LowBit::f8e5m2,
                                         LowBit::int8, LowBit::int4),
                         [](const auto& format) {
                           std::string name(traits(format.param).name);
                           std::erase(name, '-');
                           return name;
                         });

// The first and the last layer can be skipped, and the result depends on which one is skipped.
TEST(SmallTransformer, FirstAndLastLayerCanBeSkipped) {
  TransformerConfig config;
  EXPECT_FALSE(config.is_low_bit(0));
  EXPECT_TRUE(config.is_low_bit(1));
  EXPECT_FALSE(config.is_low_bit(config.layers - 1));
  const TokenBatch batch = rule_batch(config, 2, 13, seed);
  KernelArithmetic kernels;
  const double skipping = Transformer<float>(config, seed).loss(batch, kernels, false);
  config.skip_first_and_last = false;
  EXPECT_TRUE(config.is_low_bit(0) && config.is_low_bit(config.layers - 1));
  const double all = Transformer<float>(config, seed).loss(batch, kernels, false);
  config.format.reset();
  const double none = Transformer<float>(config, seed).loss(batch, kernels, false);
  EXPECT_NE(skipping, all);
  EXPECT_NE(skipping, none);
}

// No token sees the padding: NaN there reaches neither the loss nor a gradient. If the embedding of
// a real token is NaN, it is found in the stage and row where it enters.
TEST(SmallTransformer, NanStaysInPaddingAndIsNamedWhereItEnters) {
  TransformerConfig config;
  TokenBatch batch = rule_batch(config, 3, 12, seed);
  ASSERT_EQ(batch.starts[1], 4);
  // Padding gets a token of its own.
  config.vocabulary += 1;
  for (std::size_t r = 12; r < 16; ++r) batch.tokens[r] = config.vocabulary - 1;
  KernelArithmetic kernels;
  Transformer<float> clean(config, seed), poisoned(config, seed);
  Linear<float>& embedding = *poisoned.parameters()[0];
  std::fill_n(embedding.weights.end() - config.width, config.width,
              std::numeric_limits<float>::quiet_NaN());
  FirstNotFinite<float> outside([](Index row) { return row < 12 || row >= 16; });
  poisoned.observe = std::ref(outside);
  const double with_nan = poisoned.loss(batch, kernels, true);
  EXPECT_EQ(outside.stage, "");
  EXPECT_EQ(with_nan, clean.loss(batch, kernels, true));
  // The NaN reaches no gradient either, also not the gradient of the padding token's own embedding.
  const auto with = poisoned.parameters(), without = clean.parameters();
  for (std::size_t p = 0; p < with.size(); ++p)
    EXPECT_EQ(with[p]->gradient, without[p]->gradient) << "parameter " << p;
  poisoned.observe = nullptr;

  batch.tokens[30] = config.vocabulary - 1;  // sequence 2, position 6: other tokens see this one
  FirstNotFinite<float> first([](Index row) { return row < 12 || row >= 16; });
  poisoned.observe = std::ref(first);
  EXPECT_TRUE(std::isnan(poisoned.loss(batch, kernels, false)));
  EXPECT_EQ(first.stage, "embedding");
  EXPECT_EQ(first.row, 30);
  // The NaN appears from its own position on, and in no other sequence.
  FirstNotFinite<float> elsewhere([](Index row) { return row < 12 || (row >= 16 && row < 30); });
  poisoned.observe = std::ref(elsewhere);
  poisoned.loss(batch, kernels, false);
  EXPECT_EQ(elsewhere.stage, "");
}

// Prefill in one call, in chunks, and token by token through caches gives the same bits as the
// whole sequence without a cache.
TEST(SmallTransformer, DecodesThroughCachesAsItPrefills) {
  for (LowBit format : {LowBit::mxfp4, LowBit::nvfp4, LowBit::int4}) {
    TransformerConfig config;
    config.format = format;
    Transformer<float> model(config, seed);
    KernelArithmetic kernels;
    TokenBatch batch = rule_batch(config, 1, 40, seed);
    const std::vector<float> all = model.logits(batch, kernels);
    Decoder whole(model, 40, Dtype::f32), chunked(model, 40, Dtype::f32),
        single(model, 40, Dtype::f32);
    const auto token = [&](Index first, Index count) {
      return std::vector<Index>(batch.tokens.begin() + first, batch.tokens.begin() + first + count);
    };
    const auto expected = [&](Index position) {
      return std::vector<float>(all.begin() + position * config.vocabulary,
                                all.begin() + (position + 1) * config.vocabulary);
    };
    EXPECT_EQ(whole.append(token(0, 40)), expected(39));
    EXPECT_EQ(chunked.append(token(0, 17)), expected(16));
    EXPECT_EQ(chunked.append(token(17, 5)), expected(21));
    for (Index i = 22; i < 40; ++i) EXPECT_EQ(chunked.append(token(i, 1)), expected(i)) << i;
    for (Index i = 0; i < 40; ++i) EXPECT_EQ(single.append(token(i, 1)), expected(i)) << i;
    EXPECT_THROW(single.append(token(0, 1)), std::runtime_error);  // the capacity is reached
    EXPECT_THROW(single.append({}), std::invalid_argument);
  }
}

// A trained model follows its rule, and an untrained one does not know it. Perplexity is exp(loss):
// for uniform logits it is the size of the vocabulary.
TEST(SmallTransformer, LearnsTheRuleInFourBits) {
  TransformerConfig config;
  Transformer<float> model(config, seed);
  KernelArithmetic kernels;
  const double before = model.loss(rule_batch(config, 4, 16, 999), kernels, false);
  for (int step = 0; step < 60; ++step) {
    model.loss(rule_batch(config, 4, 16, static_cast<std::uint64_t>(step)), kernels, true);
    model.step(0.5f);
  }
  const TokenBatch fresh = rule_batch(config, 4, 16, 1234567);
  const double after = model.loss(fresh, kernels, false);
  EXPECT_GT(std::exp(before), 0.5 * static_cast<double>(config.vocabulary));
  EXPECT_LT(std::exp(after), 1.5);
}

}  // namespace
}  // namespace assay
