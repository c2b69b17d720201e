// What differs between the operands of the products of attention: the register blocks, and the
// state of the processor. The file is compiled once for each SIMD target.
#include <algorithm>

#include "kernels/attention/attention_plan.h"
#include "kernels/simd/amx.h"
#include "kernels/simd/register_block-inl.h"

#if defined(ASSAY_KERNELS_OPERANDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_OPERANDS_INL_H_
#undef ASSAY_KERNELS_OPERANDS_INL_H_
#else
#define ASSAY_KERNELS_OPERANDS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// The registers that must be configured while products are computed.
template <Operands>
struct RegistersOf {};
#if ASSAY_AMX
template <>
struct RegistersOf<Operands::amx> : amx::Configured {};
#endif

// Calls body(block, first row) for the register blocks of [0, rows); block.size() is the number of
// rows. AMX has blocks of up to 32.
template <Operands operands, class Body>
HWY_INLINE void for_blocks(Index rows, const Body& body) {
  if constexpr (operands == Operands::amx) {
    struct Block {
      Index rows;
      Index size() const { return rows; }
    };
    constexpr Index most = 2 * amx::tile_rows;
    for (Index r = 0; r < rows; r += most) body(Block{std::min(most, rows - r)}, r);
  } else {
    for_row_blocks(rows, body);
  }
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
