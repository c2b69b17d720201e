// Fuzz target: any bytes as low-bit weights. They are refused with a sentence, or they are packed,
// unpacked to the same bytes, and multiplied with the meaning that each code and scale has by
// itself.
#include <cmath>
#include <vector>

#include "fuzz/require.h"
#include "harness/cases/draw_case.h"
#include "kernels/product/packed_weights.h"
#include "oracle/product.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace assay;
  Choices in({data, size});
  LowBitView w;
  w.format = in.any<LowBit>();
  w.k = in.between(1, 80);
  w.n = in.between(1, 70);
  w.group = traits(w.format).group_free ? 8 * in.between(0, 11) : traits(w.format).group;
  if (in.below(16) == 0) w.group = in.between(-3, 40);  // nearly valid
  if (w.format == LowBit::nvfp4) w.tensor_scale = in.of({1.0f, 0.5f, 0.0f, 3e-39f});
  // The pointers can be set when the number of bytes is known.
  const std::byte anywhere{};
  w.codes = w.scales = w.extra = &anywhere;
  if (!kernels::validate_low_bit_shape(w).ok()) return -1;
  require(w.group >= 0, "a negative group size is valid");
  const LowBitSizes sizes = sizes_of(w.format, w.k, w.n, w.group);
  std::vector<std::byte> bytes[3] = {std::vector<std::byte>(usize(sizes.codes)),
                                     std::vector<std::byte>(usize(sizes.scales)),
                                     std::vector<std::byte>(usize(sizes.extra))};
  // The bytes of the input are repeated; from here on they are data.
  std::size_t at = 16;
  for (auto& part : bytes)
    for (std::byte& b : part)
      b = size > 16 ? static_cast<std::byte>(data[16 + at++ % (size - 16)]) : std::byte{};
  w.codes = bytes[0].data();
  w.scales = bytes[1].empty() ? nullptr : bytes[1].data();
  w.extra = bytes[2].empty() ? nullptr : bytes[2].data();
  std::shared_ptr<const kernels::PackedWeights> packed;
  const kernels::Status status = kernels::PackedWeights::pack(w, packed);
  if (!status.ok()) {
    require(!status.detail.empty() && !packed, "a refusal without a word, or with a result");
    return 0;
  }
  const std::vector<double> meant = decode_weights(w);
  for (Index k = 0; k < w.k; ++k)
    for (Index n = 0; n < w.n; ++n) {
      const double expected = meant[usize(k * w.n + n)];
      const double scale =
          packed->has_scales() ? static_cast<double>(packed->scale(k / packed->group(), n)) : 1;
      const double got = static_cast<double>(packed->value(k, n)) * scale *
                         static_cast<double>(packed->tensor_scale());
      require(got == expected || (std::isnan(got) && std::isnan(expected)),
              "a packed weight does not mean what its bytes do");
    }
  std::vector<std::byte> again[3] = {bytes[0], bytes[1], bytes[2]};
  for (auto& part : again) std::fill(part.begin(), part.end(), std::byte{0x5A});
  require(packed->unpack(again[0].data(), again[1].data(), again[2].data()).ok(),
          "unpacking failed");
  LowBitView back = w;
  back.codes = again[0].data();
  back.scales = again[1].data();
  back.extra = again[2].data();
  std::shared_ptr<const kernels::PackedWeights> repacked;
  require(kernels::PackedWeights::pack(back, repacked).ok(), "what was unpacked is refused");
  for (Index k = 0; k < w.k; ++k)
    for (Index n = 0; n < w.n; ++n)
      require(repacked->code(k, n) == packed->code(k, n),
              "a code changed on its way through packing");
  return 0;
}
