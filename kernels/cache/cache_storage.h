// How caches of every kind store their tokens, for the kernels that read them and for planted
// faults.
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstdint>
#include <vector>

#include "kernels/attention/attention_plan.h"
#include "kernels/cache/cache.h"

namespace assay::kernels {

// Stores a token of one head (row `row` of t, which is f32, f16 or bf16) as `columns` elements of
// `dtype`, and the E8M0 scales of their groups where the dtype has 8 or 4 bits. cache.h says how.
void encode_token(const TensorView& t, Index head, Index row, Dtype dtype, Index group,
                  std::byte* to, std::uint8_t* scales);

// Encoded rows of `columns` elements, stored in pages: [page][head][slot][row].
class TokenPlane {
 public:
  TokenPlane(Dtype dtype, Index heads, Index columns, Index group_size, Index page_size,
             Index pages);

  // Returns false if some element of the row has no code. The row is f32, f16 or bf16.
  bool can_hold(const TensorView& t, Index head, Index row) const;
  void encode_row(const TensorView& t, Index row, Index head, Index page, Index slot);
  // Copies the slots [begin, end) of one page to another page.
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

// A cache of any kind. A contiguous cache is one whose page is a whole sequence.
class PagedCache final : public Cache {
 public:
  explicit PagedCache(const CacheConfig& config);

  const CacheConfig& config() const override { return config_; }
  Index length(Index sequence) const override { return sequences_[usize(sequence)].length; }
  Index evicted(Index sequence) const override { return sequences_[usize(sequence)].evicted; }
  Status append(Index sequence, const TensorView& k, const TensorView& v) override;
  Status evict(Index sequence, Index position) override;
  Status fork(Index from, Index to) override;
  Status reset(Index sequence) override;

  // Returns where attention reads the tokens of a sequence. For a latent cache, `head` is 0, the
  // keys are the vectors and rotary parts of the tokens, and the values are the vectors. The result
  // is valid until the cache changes.
  StoredKeyValues stored(Index sequence, Index head) const;
  Index free_pages() const { return static_cast<Index>(free_.size()); }

 private:
  struct Sequence {
    Index length = 0, evicted = 0;
    std::vector<Index> pages;  // numbers of pages of the pool; -1 where the page was evicted
  };

  Status check_sequence(const char* name, Index sequence) const;
  Index take_page();
  void release(Index page);

  const CacheConfig config_;
  const Index page_size_;
  TokenPlane k_, v_;
  std::vector<Index> users_;  // of each page: how many sequences use it
  std::vector<Index> free_;
  std::vector<Sequence> sequences_;
};

// Validates the problem, completes it from the cache, and computes attention over the stored
// tokens. For a latent cache that is the absorbed problem.
Status attention_cached(const Attention& problem, const Cache& cache,
                        const UpProjection& projection, const AttentionOutput& out,
                        const Execution& how, AttendStored attend, const void* context);

}  // namespace assay::kernels
