// How caches of every kind keep their tokens: for the kernels that read them, and for those who plant faults there.
#pragma once

#include <hwy/aligned_allocator.h>

#include <vector>

#include "kernels/attention_plan.h"
#include "kernels/cache.h"

namespace assay::kernels {

// Rows of `columns` elements, encoded, in pages: [page][head][slot][row].
class TokenPlane {
 public:
  TokenPlane(Dtype dtype, Index heads, Index columns, Index group_size, Index page_size, Index pages);

  // False if some element of the row, which is f32, f16 or bf16, has no code.
  bool can_hold(const TensorView& t, Index head, Index row) const;
  void encode_row(const TensorView& t, Index row, Index head, Index page, Index slot);
  // Slots [begin, end) of a page.
  void copy_slots(Index from, Index to, Index begin, Index end);
  StoredColumns stored(Index head) const;
  Index heads() const { return heads_; }
  Index columns() const { return columns_; }

 private:
  Dtype dtype_;
  Index heads_, columns_, group_, row_bytes_, row_scales_, page_size_;
  hwy::AlignedFreeUniquePtr<std::byte[]> data_;
  hwy::AlignedFreeUniquePtr<std::uint8_t[]> scales_;
};

// Every kind: a contiguous cache is one whose page is a whole sequence.
class PagedCache final : public Cache {
 public:
  explicit PagedCache(const CacheConfig& config);

  const CacheConfig& config() const override { return config_; }
  Index length(Index sequence) const override { return sequences_[static_cast<std::size_t>(sequence)].length; }
  Index evicted(Index sequence) const override { return sequences_[static_cast<std::size_t>(sequence)].evicted; }
  Status append(Index sequence, const TensorView& k, const TensorView& v) override;
  Status evict(Index sequence, Index position) override;
  Status fork(Index from, Index to) override;
  Status reset(Index sequence) override;

  // Where attention reads the tokens of a sequence. Of a latent cache, whose head is 0: keys are a token's vector and its rotary part, values
  // its vector. Valid until the cache changes.
  StoredKeyValues stored(Index sequence, Index head) const;
  Index free_pages() const { return static_cast<Index>(free_.size()); }

 private:
  struct Sequence {
    Index length = 0, evicted = 0;
    std::vector<Index> pages;  // of the pool; -1 where the page was evicted
  };

  Status check_sequence(const char* name, Index sequence) const;
  Index take_page();
  void release(Index page);

  const CacheConfig config_;
  const Index page_size_;
  TokenPlane k_, v_;
  std::vector<Index> users_;  // of each page
  std::vector<Index> free_;
  std::vector<Sequence> sequences_;
};

// Validates, completes the problem from the cache, and attends over what is stored. Of a latent cache that is the absorbed problem.
Status attention_cached(const Attention& problem, const Cache& cache, const UpProjection& projection, const AttentionOutput& out, const Execution& how,
                        AttendStored attend, const void* context);

}  // namespace assay::kernels
