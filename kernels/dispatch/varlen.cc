#include "kernels/dispatch/varlen.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <new>

#include "kernels/attention/attention.h"
#include "kernels/simd/scratch.h"
#include "kernels/staging.h"
#include "kernels/validate.h"
#include "problem/parallel.h"

namespace assay::kernels {
namespace {

std::string wrong_lengths(const char* name, std::span<const Index> cu, Index total) {
  if (cu.empty())
    return fmt::format("{} is empty; it holds one entry more than there are sequences", name);
  if (cu[0] != 0) return fmt::format("{}[0] = {} is not 0", name, cu[0]);
  for (std::size_t n = 1; n < cu.size(); ++n)
    if (cu[n] < cu[n - 1])
      return fmt::format("{}[{}] = {} is below {}[{}] = {}", name, n, cu[n], name, n - 1,
                         cu[n - 1]);
  if (cu.back() > total)
    return fmt::format("{}[{}] = {} is beyond the {} packed positions", name, cu.size() - 1,
                       cu.back(), total);
  return {};
}

}  // namespace

Status attention_varlen(const Attention& packed, std::span<const Index> cu_rows,
                        std::span<const Index> cu_keys, Anchor anchor, const AttentionOutput& out,
                        const Execution& how) {
  const auto refuse = [](std::string detail) {
    return Status{StatusCode::invalid_arguments, std::move(detail)};
  };
  if (!packed.key_lengths.empty() || !packed.key_starts.empty() || !packed.query_segment.empty() ||
      !packed.key_segment.empty())
    return {StatusCode::unsupported,
            "key lengths, key starts and documents do not go with cumulative lengths"};
  if (packed.shape.batch != 1)
    return refuse(fmt::format("batch = {} of packed sequences is not 1", packed.shape.batch));
  Attention whole = packed;
  whole.offset.clear();
  if (Status status = validate_attention(whole, out); !status.ok()) return status;
  if (std::string wrong = wrong_lengths("cu_rows", cu_rows, packed.shape.rows); !wrong.empty())
    return refuse(std::move(wrong));
  if (std::string wrong = wrong_lengths("cu_keys", cu_keys, packed.shape.keys); !wrong.empty())
    return refuse(std::move(wrong));
  if (cu_rows.size() != cu_keys.size())
    return refuse(
        fmt::format("cu_rows has {} entries, cu_keys {}", cu_rows.size(), cu_keys.size()));
  const std::size_t sequences = cu_rows.size() - 1;
  if (!packed.offset.empty() && packed.offset.size() != sequences)
    return refuse(fmt::format("offset has {} entries, not {}", packed.offset.size(), sequences));

  // If sequences are computed one after the other, one may lack memory when others have already
  // written. So the rows are staged, and are copied to the outputs when nothing can fail any more.
  AttentionOutput staged = out;
  std::vector<std::byte> o_bytes, lse_bytes;
  TensorView o_rows = out.o, lse_rows = out.lse;
  const bool stages = sequences > 1;
  if (stages) {
    const AttentionShape& s = packed.shape;
    const Index rows = cu_rows.back();
    o_rows.shape = {1, s.query_heads, rows, s.value_dim};
    lse_rows.shape = {1, s.query_heads, rows, 1};
    try {
      if (o_rows) staged.o = contiguous_copy(o_rows, o_bytes);
      if (lse_rows) staged.lse = contiguous_copy(lse_rows, lse_bytes);
    } catch (const std::bad_alloc&) {
      return out_of_memory("a copy of {} rows of o", rows);
    }
  }
  const auto run = [&](std::size_t n, int threads_of_one) {
    const Index row0 = cu_rows[n], key0 = cu_keys[n];
    Attention p = whole;
    p.shape.rows = cu_rows[n + 1] - row0;
    p.shape.keys = cu_keys[n + 1] - key0;
    p.offset = {!packed.offset.empty()           ? packed.offset[n]
                : anchor == Anchor::bottom_right ? p.shape.keys - p.shape.rows
                                                 : 0};
    p.dropout_seed = packed.dropout_seed + n;
    p.q.origin = packed.q.at(0, 0, row0, 0);
    p.k.origin = packed.k.at(0, 0, key0, 0);
    p.v.origin = packed.v.at(0, 0, key0, 0);
    if (p.bias) p.bias.origin = packed.bias.at(0, 0, row0, key0);
    if (p.keep) p.keep.data += row0 * p.keep.stride[2] + key0 * p.keep.stride[3];
    AttentionOutput part = staged;
    part.o.origin = staged.o.at(0, 0, row0, 0);
    if (part.lse) part.lse.origin = staged.lse.at(0, 0, row0, 0);
    return attention_forward(p, part, {threads_of_one, how.target});
  };

  Status first_failure;
  std::mutex mutex;
  const auto note = [&](const Status& status) {
    if (status.ok()) return;
    const std::lock_guard lock(mutex);
    if (first_failure.ok()) first_failure = status;
  };
  try {
    const int workers = how.threads > 0 ? how.threads : hardware_threads();
    // Many sequences run side by side; a few run one after the other, each on all threads.
    if (sequences >= 2 * usize(workers)) {
      parallel_for(static_cast<Index>(sequences), workers,
                   [&](Index n) { note(run(usize(n), 1)); });
    } else {
      for (std::size_t n = 0; n < sequences && first_failure.ok(); ++n) note(run(n, workers));
    }
  } catch (const std::bad_alloc&) {
    return out_of_memory("a sequence's problem");
  }
  if (stages && first_failure.ok()) {
    scatter(o_bytes, o_rows);
    if (lse_rows) scatter(lse_bytes, lse_rows);
  }
  return first_failure;
}

}  // namespace assay::kernels
