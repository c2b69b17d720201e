// Inside harness/faults/: low-bit products with planted bugs: every branch below is one bug.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/faults/planted_faults.h"
#include "kernels/simd/convert.h"
#include "kernels/product/product_stages.h"

namespace assay {

struct FaultyProductStages : kernels::NoProductStages {
  static constexpr bool observes = true;
  Fault fault{};
  TensorView c;

  Index depth_blocks(const kernels::PackedWeights& w) const {
    return fault == "depth-tail-dropped"_fault ? w.k() / 8 : w.blocks();
  }
  Index stored_rows(Index rows) const {
    return fault == "row-beyond-the-last-stored"_fault ? rows + rows % 2 : rows;
  }
  Index stored_columns(Index columns) const {
    return fault == "last-columns-not-written"_fault && columns < kernels::PackedWeights::panel
               ? columns / 8 * 8
               : columns;
  }
  float padding() const {
    return fault == "padding-of-rows-not-zeroed"_fault ? std::numeric_limits<float>::quiet_NaN()
                                                       : 0;
  }
  float tensor_scale(float declared) const {
    return fault == "tensor-scale-dropped"_fault ? 1 : declared;
  }

  float weight(const kernels::PackedWeights& w, Index k, Index n) const {
    const float x = w.value(k, n);
    const LowBitTraits& t = traits(w.format());
    const bool is_fp4 = !t.integer && t.bits == 4;
    const Index in_panel = n % 32;
    switch (fault) {
      case "weight-nibbles-swapped"_fault:
        return t.bits == 4 && (k ^ 1) < w.k() ? w.value(k ^ 1, n) : x;
      case "half-read-as-quarter"_fault: return is_fp4 && std::fabs(x) == 0.5f ? x / 2 : x;
      case "half-read-as-zero"_fault: return is_fp4 && std::fabs(x) == 0.5f ? 0 : x;
      case "offset-code-read-as-float"_fault: {
        if (!is_fp4) return x;
        constexpr float values[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
        const int code = std::clamp(static_cast<int>(std::nearbyint(2 * x)) + 8, 0, 15);
        return code >= 8 ? -values[code - 8] : values[code];
      }
      case "kept-positions-mirrored"_fault:
        return w.format() == LowBit::fp4_sparse ? w.value(k / 4 * 4 + 3 - k % 4, n) : x;
      case "nan-weight-as-number"_fault:
        if (!std::isnan(x)) return x;
        return w.format() == LowBit::f8e4m3 ? 480 : std::numeric_limits<float>::infinity();
      case "zero-point-off-by-one"_fault: return t.integer ? x - 1 : x;
      case "zero-point-wraps"_fault:
        return w.format() == LowBit::int4 && w.zero(k / w.group(), n) == 0 ? x - 16 : x;
      case "integer-saturates"_fault:
        return w.format() == LowBit::int8 ? std::clamp(x, -128.0f, 127.0f) : x;
      case "columns-repeated"_fault:
        return in_panel >= 8 && n - in_panel + in_panel % 8 < w.n()
                   ? w.value(k, n - in_panel + in_panel % 8)
                   : x;
      default: return x;
    }
  }

  float scale(const kernels::PackedWeights& w, Index t, Index n, Index rows) const {
    const float s = w.scale(t, n);
    switch (fault) {
      case "scale-group-of-tail"_fault:
        return t > 0 && t + 1 == w.groups() && w.k() % w.group() != 0 ? w.scale(t - 1, n) : s;
      case "scale-group-by-tile"_fault: {
        const Index k = t * w.group(), tile = k / 32 * 32;
        return w.scale(tile / w.group() + (k - tile) / w.group(), n);
      }
      case "scales-transposed-for-one-row"_fault: {
        const Index flat = n * w.groups() + t;
        return rows == 1 ? w.scale(flat / w.n(), flat % w.n()) : s;
      }
      case "scale-of-last-odd-column"_fault:
        return n > 0 && n + 1 == w.n() && w.n() % 2 == 1 ? w.scale(t, n - 1) : s;
      case "scale-dropped"_fault: return 1;
      case "scale-applied-twice"_fault: return s * s;
      case "scale-in-bf16"_fault: return kernels::from_bf16(kernels::to_bf16(s));
      case "nan-scale-as-number"_fault: return std::isnan(s) ? 0 : s;
      case "smallest-scale-flushed"_fault: {
        const Dtype dtype = traits(w.format()).scale;
        return w.has_scales() && s <= (dtype == Dtype::e8m0  ? 0x1p-127f
                                       : dtype == Dtype::f16 ? 0x1p-24f
                                                             : 0x1p-9f)
                   ? 0
                   : s;
      }
      default: return s;
    }
  }

  float initial(Index /*row*/, Index /*column*/, Index rows) const {
    return fault == "totals-not-reset"_fault && rows >= 4 ? left_over() : 0;
  }
  float after_group(float total) const {
    if (fault == "totals-not-reset"_fault) left_over() = total;
    return fault == "totals-in-half-precision"_fault ? kernels::from_f16(kernels::to_f16(total))
                                                     : total;
  }
  float output(float value, Index row, Index column) const {
    switch (fault) {
      case "upper-half-of-tile-zero"_fault: return row % 64 >= 32 ? 0 : value;
      case "added-to-the-output"_fault:
        return value + static_cast<float>(load(c, c.at(0, 0, row, column)));
      default: return value;
    }
  }

 private:
  // What the accumulator of this thread still holds when a tile begins.
  static float& left_over() {
    static thread_local float x = 0;
    return x;
  }
};

}  // namespace assay
