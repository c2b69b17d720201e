// Low-bit products through the C interface.
#include <assay/assay.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace {

class CProduct : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(assay_context_create(nullptr, &context_), ASSAY_SUCCESS);
    // The weights are 1, -2 and 0.5 in column 0, 3 in column 1, and 0 elsewhere. The scales are 1
    // and 2.
    codes_[0] = 0xC2, codes_[1] = 0x01, codes_[16] = 0x05;
    assay_low_bit_init(&matrix_, ASSAY_MXFP4, 32, 2);
    matrix_.codes = codes_;
    matrix_.scales = scales_;
  }
  void TearDown() override { assay_context_destroy(context_); }

  assay_context context_ = nullptr;
  unsigned char codes_[32] = {}, scales_[2] = {127, 128};
  assay_low_bit matrix_{};
};

TEST_F(CProduct, MultipliesReadsBackAndEnds) {
  assay_weights w = nullptr;
  ASSERT_EQ(assay_weights_create(&matrix_, &w), ASSAY_SUCCESS) << assay_last_error();
  std::vector<float> a(64, 0), c(4, -1);
  a[0] = 10, a[1] = 1, a[2] = 4, a[32] = 1;
  assay_tensor ta, tc;
  assay_tensor_init(&ta, a.data(), ASSAY_FLOAT, 32, 1, 1, 2, 32);
  assay_tensor_init(&tc, c.data(), ASSAY_FLOAT, 32, 1, 1, 2, 2);
  ASSERT_EQ(assay_product(context_, &ta, w, &tc), ASSAY_SUCCESS) << assay_last_error();
  EXPECT_EQ(c, (std::vector<float>{10 - 2 + 2, 60, 1, 6}));

  unsigned char codes[32], scales[2];
  float tensor_scale = 0;
  ASSERT_EQ(assay_weights_read(w, codes, scales, nullptr, &tensor_scale), ASSAY_SUCCESS)
      << assay_last_error();
  EXPECT_EQ(std::memcmp(codes, codes_, 32), 0);
  EXPECT_EQ(std::memcmp(scales, scales_, 2), 0);
  EXPECT_EQ(tensor_scale, 1);

  // A low-bit A has the same bytes, whose two columns are the rows of A.
  ASSERT_EQ(assay_product_low_bit(context_, &matrix_, w, &tc), ASSAY_SUCCESS) << assay_last_error();
  EXPECT_EQ(c, (std::vector<float>{1 + 4 + 0.25f, 6, 6, 36}));

  ASSERT_EQ(assay_weights_destroy(w), ASSAY_SUCCESS);
  EXPECT_EQ(assay_product(context_, &ta, w, &tc), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(), "Invalid arguments: weights is no weights, or was destroyed");
  EXPECT_EQ(assay_weights_destroy(w), ASSAY_INVALID_ARGUMENTS);
}

TEST_F(CProduct, QuantizesAndTellsSizes) {
  int64_t codes = 0, scales = 0, extra = -1;
  assay_low_bit m;
  assay_low_bit_init(&m, ASSAY_INT4, 100, 3);
  m.group_size = 32;
  ASSERT_EQ(assay_low_bit_size(&m, &codes, &scales, &extra), ASSAY_SUCCESS) << assay_last_error();
  EXPECT_EQ(codes, 4 * 13 * 3);
  EXPECT_EQ(scales, 2 * 4 * 3);
  EXPECT_EQ(extra, 4 * 3);

  std::vector<float> w(300);
  for (std::size_t e = 0; e < w.size(); ++e) w[e] = static_cast<float>(e / 3 % 16);
  assay_tensor tw;
  assay_tensor_init(&tw, w.data(), ASSAY_FLOAT, 32, 1, 1, 100, 3);
  assay_weights packed = nullptr;
  EXPECT_EQ(assay_weights_quantize(&tw, ASSAY_INT4, 32, 0, &packed), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(),
               "Invalid arguments: k = 100 is not whole groups of 32, and pad_k is off");
  EXPECT_EQ(packed, nullptr);
  // The last, shorter group holds 15 too: 0 to 15 need no rounding, with scale 1 and zero point 0.
  for (std::size_t n = 0; n < 3; ++n) w[297 + n] = 15;
  ASSERT_EQ(assay_weights_quantize(&tw, ASSAY_INT4, 32, 1, &packed), ASSAY_SUCCESS)
      << assay_last_error();
  std::vector<float> a(100, 1), c(3);
  assay_tensor ta, tc;
  assay_tensor_init(&ta, a.data(), ASSAY_FLOAT, 32, 1, 1, 1, 100);
  assay_tensor_init(&tc, c.data(), ASSAY_FLOAT, 32, 1, 1, 1, 3);
  ASSERT_EQ(assay_product(context_, &ta, packed, &tc), ASSAY_SUCCESS) << assay_last_error();
  for (std::size_t n = 0; n < 3; ++n) {
    float sum = 0;
    for (std::size_t k = 0; k < 100; ++k) sum += w[3 * k + n];
    EXPECT_EQ(c[n], sum);
  }
  assay_weights_destroy(packed);
}

TEST_F(CProduct, BadInputIsRefusedByNameAndWritesNothing) {
  assay_weights w = nullptr;
  auto refused = [&](const auto& change) {
    assay_low_bit m = matrix_;
    change(m);
    EXPECT_NE(assay_weights_create(&m, &w), ASSAY_SUCCESS);
    EXPECT_EQ(w, nullptr);
    return std::string(assay_last_error());
  };
  EXPECT_EQ(refused([](assay_low_bit& m) { m.format = 8; }),
            "Invalid arguments: matrix.format = 8 is outside [0, 7]");
  EXPECT_EQ(refused([](assay_low_bit& m) { m.format = -1; }),
            "Invalid arguments: matrix.format = -1 is outside [0, 7]");
  EXPECT_EQ(refused([](assay_low_bit& m) { m.version = ASSAY_VERSION + 1; }),
            "Invalid arguments: matrix.version = 3 is not between 1 and 2");
  EXPECT_EQ(refused([](assay_low_bit& m) { m.struct_size = 12; }),
            "Invalid arguments: matrix.struct_size = 12 is not a multiple of 8 from 8 to 64, the "
            "size that this library knows");
  EXPECT_EQ(refused([](assay_low_bit& m) { m.k = -1; }),
            "Invalid arguments: k = -1 is outside [1, 1099511627776]");
  EXPECT_EQ(refused([](assay_low_bit& m) { m.group_size = 24; }),
            "Invalid arguments: group = 24: groups of mxfp4 have 32");
  EXPECT_EQ(refused([](assay_low_bit& m) { m.codes = nullptr; }),
            "Invalid arguments: codes is null");
  EXPECT_EQ(refused([](assay_low_bit& m) { m.tensor_scale = 3; }),
            "Invalid arguments: tensor_scale = 3: mxfp4 has none, so it must be 1");
  EXPECT_EQ(assay_weights_create(nullptr, &w), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(), "Invalid arguments: matrix is null");
  EXPECT_EQ(assay_weights_create(&matrix_, nullptr), ASSAY_INVALID_ARGUMENTS);

  ASSERT_EQ(assay_weights_create(&matrix_, &w), ASSAY_SUCCESS);
  std::vector<float> a(64, 1), c(4, -7);
  assay_tensor ta, tc;
  assay_tensor_init(&ta, a.data(), ASSAY_FLOAT, 32, 1, 1, 2, 31);
  assay_tensor_init(&tc, c.data(), ASSAY_FLOAT, 32, 1, 1, 2, 2);
  EXPECT_EQ(assay_product(context_, &ta, w, &tc), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(),
               "Invalid arguments: a has shape [1, 1, 2, 31], not [1, 1, 2, 32]");
  EXPECT_EQ(assay_product(nullptr, &ta, w, &tc), ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_product(context_, nullptr, w, &tc), ASSAY_INVALID_ARGUMENTS);
  EXPECT_EQ(assay_product(context_, &ta, nullptr, &tc), ASSAY_INVALID_ARGUMENTS);
  EXPECT_STREQ(assay_last_error(), "Invalid arguments: weights is null");
  EXPECT_EQ(assay_product(context_, &ta, reinterpret_cast<assay_weights>(context_), &tc),
            ASSAY_INVALID_ARGUMENTS);
  assay_tensor_init(&ta, a.data(), ASSAY_FLOAT, 64, 1, 1, 2, 32);
  EXPECT_EQ(assay_product(context_, &ta, w, &tc), ASSAY_UNSUPPORTED);
  EXPECT_EQ(c, std::vector<float>(4, -7));
  assay_weights_destroy(w);
}

}  // namespace
