#include "problem/tensor.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "problem/generate.h"

namespace assay {
namespace {

constexpr Index heads_in_pack = 7;
const std::vector<Extents> shapes = {
    {1, 1, 1, 1}, {2, 3, 4, 5}, {3, 1, 5, 8}, {1, 2, 1, 3}, {2, 2, 7, 1}};
const std::vector<Extents> empty_shapes = {{0, 2, 3, 4}, {2, 2, 0, 4}, {0, 1, 0, 1}};

bool is_broadcast(LayoutKind kind) {
  return kind == LayoutKind::shared_head || kind == LayoutKind::shared_batch;
}

template <class Body>
void for_each_position(const Extents& s, const Body& body) {
  for (Index b = 0; b < s[0]; ++b)
    for (Index h = 0; h < s[1]; ++h)
      for (Index i = 0; i < s[2]; ++i)
        for (Index d = 0; d < s[3]; ++d) body(b, h, i, d);
}

// The place of an element, computed without strides.
Index expected_position(LayoutKind kind, const Extents& s, Index b, Index h, Index i, Index d) {
  const auto [B, H, L, D] = s;
  switch (kind) {
    case LayoutKind::bhsd: return ((b * H + h) * L + i) * D + d;
    case LayoutKind::bshd: return ((b * L + i) * H + h) * D + d;
    case LayoutKind::packed: return ((b * L + i) * heads_in_pack + h) * D + d;
    case LayoutKind::shared_head: return (b * L + i) * D + d;
    case LayoutKind::shared_batch: return (h * L + i) * D + d;
    case LayoutKind::reversed: return ((b * H + h) * L + (L - 1 - i)) * D + d;
    default: return -1;  // for padded and strided, only distinct places inside are checked
  }
}

TEST(Layout, PositionsAreInsideDistinctAndWhereTheyShouldBe) {
  for (const LayoutKind kind : values_of<LayoutKind>)
    for (const Extents& s : shapes) {
      SCOPED_TRACE(name_of(kind));
      const Layout layout = make_layout(kind, s, heads_in_pack);
      TensorView view{nullptr, Dtype::f32, s, layout.stride, layout.origin};
      std::set<Index> used;
      for_each_position(s, [&](Index b, Index h, Index i, Index d) {
        const Index at = view.at(b, h, i, d), expected = expected_position(kind, s, b, h, i, d);
        EXPECT_TRUE(at >= 0 && at < layout.elements) << at << " of " << layout.elements;
        EXPECT_TRUE(expected < 0 || at == expected) << at << ", not " << expected;
        used.insert(at);
      });
      const Index distinct = element_count(s) / (kind == LayoutKind::shared_head    ? s[1]
                                                 : kind == LayoutKind::shared_batch ? s[0]
                                                                                    : 1);
      EXPECT_EQ(static_cast<Index>(used.size()), distinct);
    }
}

TEST(Layout, KindsThatClaimGapsHaveThem) {
  const Extents s{2, 3, 4, 5};
  for (LayoutKind kind : {LayoutKind::packed, LayoutKind::padded, LayoutKind::strided}) {
    const Layout layout = make_layout(kind, s, heads_in_pack);
    EXPECT_GT(layout.elements, element_count(s)) << name_of(kind);
  }
  EXPECT_EQ(make_layout(LayoutKind::strided, s, heads_in_pack).stride[3], 2);
  EXPECT_LT(make_layout(LayoutKind::reversed, s, heads_in_pack).stride[2], 0);
  EXPECT_NE(make_layout(LayoutKind::padded, s, heads_in_pack).origin, 0);
}

TEST(Layout, EmptyShapesHaveValidStorage) {
  for (const LayoutKind kind : values_of<LayoutKind>)
    for (const Extents& s : empty_shapes) {
      const Layout layout = make_layout(kind, s, heads_in_pack);
      EXPECT_GE(layout.elements, 0) << name_of(kind);
      EXPECT_GE(layout.origin, 0) << name_of(kind);
      EXPECT_TRUE(Tensor(Dtype::f16, s, layout).guards_intact());
    }
}

TEST(Tensor, LoadsWhatWasStoredThroughEveryLayoutAndDtype) {
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8e4m3, Dtype::f8e5m2,
                      Dtype::f4e2m1, Dtype::e8m0})
    for (const LayoutKind kind : values_of<LayoutKind>)
      for (const Extents& s : shapes) {
        SCOPED_TRACE(::testing::Message() << format(dtype).name << " " << name_of(kind) << " "
                                          << element_count(s) << " elements");
        const Tensor tensor(dtype, s, make_layout(kind, s, heads_in_pack));
        const TensorView& t = tensor.view();
        // Neighbours along every axis differ, and every value is exact in every format.
        auto value = [&](Index b, Index h, Index i, Index d) {
          if (kind == LayoutKind::shared_head) h = 0;
          if (kind == LayoutKind::shared_batch) b = 0;
          const Index n = (b * 5 + h * 3 + i * 2 + d) % 7;
          return dtype == Dtype::e8m0 ? std::array{0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0}[usize(n)]
                                      : std::array{0.5, -1.0, 1.5, -2.0, 3.0, -4.0, 6.0}[usize(n)];
        };
        for_each_position(s, [&](Index b, Index h, Index i, Index d) {
          store(t, t.at(b, h, i, d), value(b, h, i, d));
        });
        for_each_position(s, [&](Index b, Index h, Index i, Index d) {
          EXPECT_EQ(load(t, t.at(b, h, i, d)), value(b, h, i, d))
              << b << " " << h << " " << i << " " << d;
        });
        EXPECT_TRUE(tensor.guards_intact());
      }
}

TEST(Tensor, ElementsOfEveryNonBroadcastLayoutAreIndependent) {
  const Extents s{2, 3, 4, 5};
  for (const LayoutKind kind : values_of<LayoutKind>) {
    if (is_broadcast(kind)) continue;
    const Tensor tensor(Dtype::f32, s, make_layout(kind, s, heads_in_pack));
    const TensorView& t = tensor.view();
    double next = 1;
    for_each_position(
        s, [&](Index b, Index h, Index i, Index d) { store(t, t.at(b, h, i, d), next++); });
    next = 1;
    for_each_position(s, [&](Index b, Index h, Index i, Index d) {
      EXPECT_EQ(load(t, t.at(b, h, i, d)), next++) << name_of(kind);
    });
  }
}

TEST(Tensor, StorageIsZeroAlignedAndSized) {
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::f8e4m3, Dtype::f4e2m1}) {
    const Tensor tensor(dtype, {1, 1, 3, 5}, {{15, 15, 5, 1}, 0, 15});
    EXPECT_EQ(tensor.size_in_bytes(), usize((15 * format(dtype).bits + 7) / 8))
        << format(dtype).name;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.bytes()) % 64, 0u);
    for (std::size_t i = 0; i < tensor.size_in_bytes(); ++i)
      EXPECT_EQ(tensor.bytes()[i], std::byte{0});
    EXPECT_EQ(tensor.view().data, tensor.bytes());
  }
}

// The bytes are little-endian, with the low nibble first, because other programs write these
// formats.
TEST(Tensor, BytesInMemory) {
  auto bytes_after = [](Dtype dtype, std::vector<double> values) {
    const Index n = static_cast<Index>(values.size());
    const Tensor tensor(dtype, {1, 1, 1, n}, {{n, n, n, 1}, 0, n});
    for (Index d = 0; d < n; ++d) store(tensor.view(), d, values[usize(d)]);
    std::vector<int> bytes;
    for (std::size_t i = 0; i < tensor.size_in_bytes(); ++i)
      bytes.push_back(static_cast<int>(tensor.bytes()[i]));
    return bytes;
  };
  EXPECT_EQ(bytes_after(Dtype::f64, {1.0}), (std::vector{0, 0, 0, 0, 0, 0, 0xF0, 0x3F}));
  EXPECT_EQ(bytes_after(Dtype::f32, {-2.0, 0x1p-149}), (std::vector{0, 0, 0, 0xC0, 1, 0, 0, 0}));
  EXPECT_EQ(bytes_after(Dtype::f16, {1.0, 65504.0}), (std::vector{0x00, 0x3C, 0xFF, 0x7B}));
  EXPECT_EQ(bytes_after(Dtype::bf16, {1.0, 3.140625}), (std::vector{0x80, 0x3F, 0x49, 0x40}));
  EXPECT_EQ(bytes_after(Dtype::f8e4m3, {1.0, 448.0}), (std::vector{0x38, 0x7E}));
  EXPECT_EQ(bytes_after(Dtype::f4e2m1, {0.5, 1.0, -6.0, 2.0, 3.0}),
            (std::vector{0x21, 0x4F, 0x05}));
}

TEST(Tensor, NibblesWithOddOriginStepAndReversal) {
  // The nibbles 0 to 7 hold the codes 1 to 8: 0.5, 1, 1.5, 2, 3, 4, 6, -0.
  std::array<std::uint8_t, 4> bytes{0x21, 0x43, 0x65, 0x87};
  const TensorView odd{bytes.data(), Dtype::f4e2m1, {1, 1, 2, 3}, {6, 6, 3, 1}, 1};
  const std::array expected{1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
  for (Index i = 0; i < 2; ++i)
    for (Index d = 0; d < 3; ++d)
      EXPECT_EQ(load(odd, odd.at(0, 0, i, d)), expected[usize(3 * i + d)]);
  const TensorView backwards{bytes.data(), Dtype::f4e2m1, {1, 1, 1, 3}, {0, 0, 0, -2}, 5};
  EXPECT_EQ(load(backwards, backwards.at(0, 0, 0, 0)), 4.0);
  EXPECT_EQ(load(backwards, backwards.at(0, 0, 0, 1)), 2.0);
  EXPECT_EQ(load(backwards, backwards.at(0, 0, 0, 2)), 1.0);

  // A store changes its own nibble and no other.
  store(odd, odd.at(0, 0, 0, 0), -6.0);
  EXPECT_EQ(bytes, (std::array<std::uint8_t, 4>{0xF1, 0x43, 0x65, 0x87}));
  store(odd, odd.at(0, 0, 0, 1), 0.0);
  EXPECT_EQ(bytes, (std::array<std::uint8_t, 4>{0xF1, 0x40, 0x65, 0x87}));
  store(odd, odd.at(0, 0, 1, 2), -0.5);
  EXPECT_EQ(bytes, (std::array<std::uint8_t, 4>{0xF1, 0x40, 0x65, 0x89}));
}

TEST(Tensor, GuardsSeeOneByteOnEitherSide) {
  for (Index elements : {Index{1}, Index{15}, Index{16}, Index{1000}}) {
    Tensor tensor(Dtype::f4e2m1, {1, 1, 1, elements}, {{0, 0, 0, 1}, 0, elements});
    const auto size = static_cast<std::ptrdiff_t>(tensor.size_in_bytes());
    constexpr auto guard = static_cast<std::ptrdiff_t>(Tensor::guard_bytes);
    for (std::ptrdiff_t at :
         {-guard, -guard / 2, std::ptrdiff_t{-1}, size, size + guard / 2, size + guard - 1}) {
      tensor.bytes()[at] ^= std::byte{1};
      EXPECT_FALSE(tensor.guards_intact()) << at;
      tensor.bytes()[at] ^= std::byte{1};
      EXPECT_TRUE(tensor.guards_intact()) << at;
    }
    std::memset(tensor.bytes(), 0xFF, tensor.size_in_bytes());
    EXPECT_TRUE(tensor.guards_intact());
  }
}

TEST(Tensor, MovesKeepTheView) {
  Tensor first(Dtype::f32, {1, 1, 1, 2}, {{2, 2, 2, 1}, 0, 2});
  store(first.view(), 1, 5.0);
  const Tensor second = std::move(first);
  EXPECT_EQ(second.view().data, second.bytes());
  EXPECT_EQ(load(second.view(), 1), 5.0);
  EXPECT_TRUE(second.guards_intact());
  EXPECT_TRUE(Tensor().guards_intact());
  EXPECT_FALSE(Tensor().view());
}

}  // namespace
}  // namespace assay
