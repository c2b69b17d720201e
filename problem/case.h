// A case is one line of text: problem, generator, seed and candidate options. The line determines
// the inputs, bit for bit, on any machine. Grammar and every field: case_help(), docs/cases.md.
#pragma once

#include <cstdint>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "problem/attention.h"
#include "problem/conventions.h"
#include "problem/families.h"
#include "problem/low_bit.h"

namespace assay {

struct MaskSpec {
  MaskPattern pattern = MaskPattern::none;
  // Along which of b, h, i and j the mask varies. The other axes broadcast (stride 0).
  std::array<bool, 4> varies{true, true, true, true};
  bool operator==(const MaskSpec&) const = default;
};

struct OffsetSpec {
  // The offset is `value` (fixed), Lk - Lq (end) or n[b] - Lq (lengths).
  enum class Kind : std::uint8_t { fixed, end, lengths } kind = Kind::fixed;
  Index value = 0;
  bool operator==(const OffsetSpec&) const = default;
};

// What is computed: O and LSE, the gradients as well, or a low-bit product.
enum class Operation : std::uint8_t { attention, backward, product };
template <>
inline constexpr auto table_of<Operation> = complete<Named<Operation>>({
    {Operation::attention, "attention"},
    {Operation::backward, "backward"},
    {Operation::product, "product"},
});

// What a scale of a cache of 8- and 4-bit floats is, and what shares it: a group of columns of one
// token and head (e8m0, f32), a token with all its heads, a head in a page, or the whole of K or V.
// The scales of pages and tensors are given: they are in memory before tokens are written.
enum class CacheScale : std::uint8_t { e8m0, f32, f32_token, f32_page, f32_tensor };
template <>
inline constexpr auto table_of<CacheScale> = complete<Named<CacheScale>>({
    {CacheScale::e8m0, "e8m0"},
    {CacheScale::f32, "f32"},
    {CacheScale::f32_token, "f32-token"},
    {CacheScale::f32_page, "f32-page"},
    {CacheScale::f32_tensor, "f32-tensor"},
});
constexpr bool is_given(CacheScale s) {
  return s == CacheScale::f32_page || s == CacheScale::f32_tensor;
}

// How K and V lie in the pages that a kernel gets: in a buffer each, or in one buffer, as
// [page][2][tokens][heads][D] or as [page][tokens][heads][2][D].
enum class PageOrder : std::uint8_t { apart, halves, rows };
template <>
inline constexpr auto table_of<PageOrder> = complete<Named<PageOrder>>({
    {PageOrder::apart, "apart"},
    {PageOrder::halves, "halves"},
    {PageOrder::rows, "rows"},
});

// Says that keys and values come out of a cache. The rows are those of the last tokens that were
// appended.
struct CacheSpec {
  enum class Kind : std::uint8_t { none, contiguous, paged, latent } kind = Kind::none;
  Index page = 16;              // tokens in a page; for paged and latent
  Index rank = 64, rotary = 8;  // only for latent
  std::optional<Dtype> dtype;   // of the storage; the dtype of Q if absent
  Index group = 0;              // elements that share a scale, 0: all of a token's; for f8 and f4
  CacheScale scale = CacheScale::e8m0;  // for f8 and f4
  PageOrder order = PageOrder::apart;   // only for paged
  // The rows of each call; the last number is repeated. Empty: one call.
  std::vector<Index> chunks;
  bool operator==(const CacheSpec&) const = default;
  explicit operator bool() const { return kind != Kind::none; }
};
template <>
inline constexpr auto table_of<CacheSpec::Kind> = complete<Named<CacheSpec::Kind>>({
    {CacheSpec::Kind::none, "none"},
    {CacheSpec::Kind::contiguous, "contiguous"},
    {CacheSpec::Kind::paged, "paged"},
    {CacheSpec::Kind::latent, "latent"},
});

// C [m, n] = A [m, k] W [k, n].
struct ProductSpec {
  Index m = 4, n = 32, k = 64;
  LowBit format = LowBit::mxfp4;
  std::optional<Index> group;      // the group of the format if absent
  std::optional<LowBit> a_format;  // the format of A if A is low-bit too
  Weights weights = Weights::quantized;
  ScaleFamily scales = ScaleFamily::unit;
  ZeroFamily zeros = ZeroFamily::random;

  Index group_size() const { return group.value_or(traits(format).group); }
  bool operator==(const ProductSpec&) const = default;
};

// One element that is overwritten after generation. `tensor` is q, k, v, m (the bias), g (dO) or a
// (A of a product, with the position 0:0:m:k).
struct Poke {
  char tensor = 'v';
  Extents position{};
  double value = 0;
  bool operator==(const Poke& other) const;
};

struct Case {
  Operation operation = Operation::attention;
  AttentionShape shape;
  Dtype dtype = Dtype::f32;    // of Q, K, V and the bias
  std::optional<Dtype> out;    // of O; `dtype` if absent
  std::optional<float> scale;  // default_scale(dim) if absent
  float softcap = 0;
  bool causal = false;
  OffsetSpec offset;
  Index window_left = -1, window_right = -1;
  MaskSpec keep, bias;
  bool finite_min_masks = false;
  std::vector<Index> lengths, starts;  // one per batch, or one for all
  // The lengths of the packed documents. The last document runs to the end.
  std::vector<Index> documents;
  bool alibi = false;
  std::optional<float> sink;  // logit of head 0; that of head h is sink + h / 4
  float dropout = 0;
  std::uint64_t dropout_seed = 0;
  Scores scores = Scores::normal;
  Values values = Values::normal;
  Values gradient = Values::normal;    // of dO
  std::optional<Values> lse_gradient;  // of dLSE; absent: the loss does not depend on LSE
  Hidden hidden = Hidden::generated;
  std::vector<Poke> pokes;
  std::uint64_t seed = 1;
  CacheSpec cache;
  Conventions conventions;  // those that the kernel is said to have
  // If the operation is a product, this counts instead of the attention fields. `values` is then
  // the family of A, q_layout is the layout of A, and o_layout is that of C.
  ProductSpec product;
  LayoutKind q_layout{}, k_layout{}, v_layout{}, o_layout{};
  std::optional<LayoutKind> d_o_layout;  // that of O if absent; only for gradients
  // Candidate options.
  Index threads = 1;
  std::string target;     // name of the SIMD target in Highway; empty: the best
  Index sample_rows = 0;  // number of rows of each head that are judged, drawn by the seed; 0: all

  Dtype out_dtype() const { return out.value_or(dtype); }
  Dtype cache_dtype() const { return cache.dtype.value_or(dtype); }
  bool operator==(const Case&) const = default;
};

// A malformed line or an impossible case. `column` counts from 1; it is 0 where no text is at
// fault.
class CaseError : public std::runtime_error {
 public:
  CaseError(std::size_t column, const std::string& message);
  std::size_t column;
};

// Parses a line and checks the case. Throws CaseError.
Case parse_case(std::string_view line);
// Sets the fields in `text`, which is written like the part of a line behind the operation. It does
// not check the case. Throws CaseError for text that is malformed.
void set_fields(Case& c, std::string_view text);
// The canonical line: fields are in a fixed order, and defaults are left out.
// parse_case(print_case(c)) == c.
std::string print_case(const Case& c);
// Throws CaseError naming the field, its value and the limit, if no such problem can exist.
void check_case(const Case& c);
// The fields and their meaning, one on each line.
std::string case_help();

// Whether the rows of a cached case may come in several calls. No row may then see a key that comes
// after it, and there may be no dropout, because dropout depends on the number of a row within its
// call.
bool can_chunk(const Case& c);

// The number of bytes that the inputs and outputs of the case need. check_case() has made sure that
// the sum does not overflow.
Index case_bytes(const Case& c);

}  // namespace assay
