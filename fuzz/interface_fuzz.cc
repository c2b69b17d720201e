// Fuzz target: the C interface with hostile arguments. Every field may hold anything, but an
// argument never claims memory that is not there. A call is refused with a status and a sentence
// and writes nothing, or it succeeds.
#include <assay/assay.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <limits>
#include <vector>

#include "fuzz/require.h"
#include "harness/cases/draw_case.h"

namespace {

using assay::Choices;

void require(bool holds, const char* what) {
  assay::require(holds, std::string(what) + " (" + assay_last_error() + ")");
}

constexpr std::size_t buffer_bytes = 1 << 16;

class Arguments {
 public:
  explicit Arguments(Choices& in) : in_(in) {}

  std::int64_t number() {
    constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min(),
                           most = std::numeric_limits<std::int64_t>::max();
    return in_.below(6) > 0
               ? in_.between(-1, 9)
               : in_.of({least, most, most / 2, std::int64_t{1} << 31, (std::int64_t{1} << 32) + 1,
                         std::int64_t{1} << 62, std::int64_t{-2}});
  }
  float real() {
    return in_.of({0.0f, 1.0f, 0.25f, -1.0f, 1e30f, std::numeric_limits<float>::infinity(),
                   std::numeric_limits<float>::quiet_NaN(), 0.999f});
  }

  // Makes a tensor of about this shape; sometimes null.
  const assay_tensor* tensor(std::array<std::int64_t, 4> shape, std::uint8_t code = ASSAY_FLOAT,
                             std::uint8_t bits = 32) {
    if (in_.below(24) == 0) return nullptr;
    assay_tensor& t = tensors_.emplace_back();
    assay_tensor_init(&t, nullptr, code, bits, shape[0], shape[1], shape[2], shape[3]);
    for (int changes = in_.below(4) == 0 ? 2 : 0; changes > 0; --changes) {
      const auto axis = static_cast<std::size_t>(in_.below(4));
      switch (in_.below(10)) {
        case 0: t.shape[axis] = number(); break;
        case 1: t.strides[axis] = number(); break;
        case 2: t.offset = number(); break;
        case 3: t.rank = static_cast<std::int32_t>(in_.between(-1, 6)); break;
        case 4: t.dtype.code = static_cast<std::uint8_t>(in_.below(20)); break;
        case 5:
          t.dtype.bits = in_.of({std::uint8_t{0}, std::uint8_t{8}, std::uint8_t{16},
                                 std::uint8_t{32}, std::uint8_t{64}, std::uint8_t{255}});
          break;
        case 6: t.dtype.lanes = static_cast<std::uint16_t>(in_.below(3)); break;
        case 7: t.version = static_cast<std::uint32_t>(in_.below(4)); break;
        case 8: t.struct_size = static_cast<std::uint32_t>(in_.below(200)); break;
        default: t.device_type = static_cast<std::int32_t>(in_.below(3)); break;
      }
    }
    std::vector<std::byte>& memory = memory_.emplace_back(buffer_bytes);
    for (std::size_t at = 0; at < buffer_bytes; ++at)
      memory[at] = static_cast<std::byte>(at * 37 % 61);
    if (reaches_inside(t)) t.data = memory.data();
    return &t;
  }
  template <class T>
  const T* list(std::int64_t& count, std::int64_t wanted, T (Arguments::*element)()) {
    count = in_.below(6) == 0 ? number() : wanted;
    if (in_.below(12) == 0 || count < 0 || count > 64) return nullptr;
    std::vector<std::byte>& memory =
        memory_.emplace_back(static_cast<std::size_t>(count) * sizeof(T) + 1);
    for (std::int64_t n = 0; n < count; ++n) {
      const T value = (this->*element)();
      std::memcpy(memory.data() + static_cast<std::size_t>(n) * sizeof(T), &value, sizeof(T));
    }
    return reinterpret_cast<const T*>(memory.data());
  }
  std::int32_t segment() { return static_cast<std::int32_t>(in_.between(-2, 5)); }

  // Everything that a call must not change when it fails.
  std::vector<std::vector<std::byte>> snapshot() const { return {memory_.begin(), memory_.end()}; }

 private:
  // Whether each element lies in a buffer, if the fields of the struct are believed.
  static bool reaches_inside(const assay_tensor& t) {
    __int128 low = t.offset, high = t.offset;
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (t.shape[axis] <= 0) continue;
      const __int128 far = static_cast<__int128>(t.shape[axis] - 1) * t.strides[axis];
      (far < 0 ? low : high) += far;
    }
    return low >= 0 &&
           (high + 1) * std::max<int>(t.dtype.bits, 8) / 8 <= static_cast<__int128>(buffer_bytes);
  }

  Choices& in_;
  std::deque<assay_tensor> tensors_;
  std::deque<std::vector<std::byte>> memory_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static const assay_context context = [] {
    assay_context made = nullptr;
    assay_context_options options;
    assay_context_options_init(&options);
    options.threads = 1;
    options.min_query_length = 2;
    options.report = [](void*, std::int32_t, const char*) {};
    require(assay_context_create(&options, &made) == ASSAY_SUCCESS, "a plain context is refused");
    return made;
  }();
  Choices in({data, size});
  Arguments make(in);
  const std::int64_t b = in.between(0, 2), g = in.between(1, 2), h = g * in.between(1, 3),
                     rows = in.between(0, 5), keys = in.between(0, 6), d = in.between(1, 5),
                     e = in.between(1, 5);
  const bool half = in.flag();
  const std::uint8_t code = half && in.flag() ? ASSAY_BFLOAT : ASSAY_FLOAT, bits = half ? 16 : 32;
  assay_attention p;
  assay_attention_init(&p);
  p.q = make.tensor({b, h, rows, d}, code, bits);
  p.k = make.tensor({b, g, keys, d}, code, bits);
  p.v = make.tensor({b, g, keys, e}, code, bits);
  if (in.flag())
    p.flags = static_cast<std::uint32_t>(in.below(16)), p.scale = make.real(),
    p.softcap = make.real(), p.dropout = make.real();
  if (in.flag()) p.window_left = make.number(), p.window_right = make.number();
  if (in.flag()) p.keep = make.tensor({b, h, rows, keys}, ASSAY_BOOL, 8);
  if (in.flag()) p.bias = make.tensor({b, h, rows, keys}, code, bits);
  if (in.flag()) p.offset = make.list(p.offset_count, b, &Arguments::number);
  if (in.flag()) p.key_lengths = make.list(p.key_length_count, b, &Arguments::number);
  if (in.flag()) p.key_starts = make.list(p.key_start_count, b, &Arguments::number);
  if (in.flag()) p.alibi_slopes = make.list(p.alibi_slope_count, h, &Arguments::real);
  if (in.flag()) p.sink = make.list(p.sink_count, h, &Arguments::real);
  if (in.flag()) p.query_segment = make.list(p.query_segment_count, b * rows, &Arguments::segment);
  if (in.flag()) p.key_segment = make.list(p.key_segment_count, b * keys, &Arguments::segment);
  const assay_tensor* o = make.tensor({b, h, rows, e}, code, bits);
  const assay_tensor* lse = make.tensor({b, h, rows, 1});
  std::int64_t cu_count = 0;
  const std::int64_t* cu_rows = make.list(cu_count, 3, &Arguments::number);
  if (cu_count < 1) cu_rows = nullptr;  // no sequences have one entry, too
  const std::int64_t sequences = cu_rows ? cu_count - 1 : 0;
  const auto before = make.snapshot();
  const assay_context at = in.below(20) == 0 ? nullptr : context;
  assay_status status = ASSAY_SUCCESS;
  switch (in.below(5)) {
    case 0:
      status = assay_sdpa(at, &p, o, lse, static_cast<std::int32_t>(in.between(-1, 3)),
                          in.of({static_cast<const char*>(nullptr), "host", "mps", ""}));
      break;
    case 1: {
      const float scale = make.real();
      status = assay_single_head_attention(at, p.q, p.k, p.v, o, in.flag() ? &scale : nullptr,
                                           static_cast<std::int32_t>(in.below(3)));
      break;
    }
    case 2:
      status = assay_attention_varlen(at, &p, cu_rows, cu_rows, cu_rows ? sequences : 0,
                                      static_cast<std::int32_t>(in.below(2)), o, lse);
      break;
    case 3: {
      assay_gradients gradients;
      assay_gradients_init(&gradients);
      const assay_tensor* d_o = make.tensor({b, h, rows, e}, code, bits);
      gradients.dq = make.tensor({b, h, rows, d}, code, bits);
      gradients.dk = make.tensor({b, g, keys, d}, code, bits);
      gradients.dv = make.tensor({b, g, keys, e}, code, bits);
      if (p.bias) gradients.d_bias = make.tensor({b, h, rows, keys});
      if (p.sink) gradients.d_sink = make.tensor({1, h, 1, 1});
      if (in.below(4) == 0) gradients.d_lse = make.tensor({b, h, rows, 1});
      const auto whole = make.snapshot();
      status = assay_attention_backward(at, &p, o, lse, d_o, &gradients);
      if (status != ASSAY_SUCCESS)
        require(make.snapshot() == whole, "a backward call that failed has written");
      break;
    }
    default: status = assay_attention_forward(at, &p, o, lse); break;
  }
  require(status >= 0 && (status <= ASSAY_INVALID_CACHE_STATE || status == ASSAY_UNKNOWN),
          "a status that there is not");
  require((status == ASSAY_SUCCESS) == (assay_last_error()[0] == '\0'),
          "a failure without a sentence, or a sentence without a failure");
  if (status != ASSAY_SUCCESS) {
    auto after = make.snapshot();
    after.resize(before.size());
    require(after == before, "a call that failed has written");
  }
  return 0;
}
