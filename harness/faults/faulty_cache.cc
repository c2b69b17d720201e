// Faults of caches. They change the tokens that are appended, or what attention is told about where
// and how the tokens are stored. The cache itself is the production one, so a fault changes copies
// of its pages.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "harness/candidates/cached.h"
#include "harness/faults/faulty_stages.h"
#include "kernels/cache/cache_storage.h"
#include "kernels/simd/codec.h"

namespace assay {
namespace {

using kernels::Status, kernels::StoredColumns, kernels::StoredKeyValues, kernels::StoredRows;

// Takes the code that a right cache stores for a value, and returns the code that the buggy cache
// stores.
using Recode = std::uint8_t (*)(std::uint8_t code);
std::uint8_t offset_code(std::uint8_t code) {
  return static_cast<std::uint8_t>(
      std::clamp(std::lround(2 * kernels::decoded_values(Dtype::f4e2m1)[code]) + 8, 0l, 15l));
}
std::uint8_t uniform_code(std::uint8_t code) {
  const float x = kernels::decoded_values(Dtype::f8e4m3)[code];
  return std::isnan(x) ? code
                       : static_cast<std::uint8_t>(
                             std::clamp(std::lround(x * (127.0f / 448)) + 128, 0l, 255l));
}

std::uint8_t at_most_four(std::uint8_t code) {
  return (code & 7) == 7 ? static_cast<std::uint8_t>(code - 1) : code;
}  // 6 is the code beyond that of 4

class FaultyStorage {
 public:
  FaultyStorage(Fault fault, const Attention& problem, std::vector<StoredKeyValues> stored)
      : fault_(fault), problem_(problem), stored_(std::move(stored)) {
    for (const StoredKeyValues& s : stored_)
      for (const Index page : pages_of(s.keys)) last_page_ = std::max(last_page_, page);
    change_problem();
    for (std::size_t at = 0; at < stored_.size(); ++at) {
      move_heads_and_batches(at);
      for (StoredRows* rows : {&stored_[at].keys, &stored_[at].values}) change(*rows);
    }
  }
  const Attention& problem() const { return problem_; }
  const std::vector<StoredKeyValues>& stored() const { return stored_; }

 private:
  static std::span<const Index> pages_of(const StoredRows& r) {
    return {r.pages, usize(r.begin < r.end ? (r.end + r.page_size - 1) / r.page_size : 0)};
  }

  void change_problem() {
    const Index rows = problem_.shape.rows;
    if (fault_ == "positions-counted-after-append"_fault)
      for (Index& offset : problem_.offset) offset += rows;
    if (fault_ == "newest-token-not-seen"_fault)
      for (Index& n : problem_.key_lengths) --n;
    if (fault_ == "eviction-rounded-to-page"_fault)
      for (std::size_t b = 0; b < problem_.key_starts.size(); ++b) {
        const StoredRows& r = stored_[b * stored_.size() / problem_.key_starts.size()].keys;
        problem_.key_starts[b] = r.begin / r.page_size * r.page_size;
      }
    // The fault applies only where every sequence has the slot and no mask is read beyond its end.
    slot_exists_ = problem_.query_segment.empty() && !problem_.bias && !problem_.keep;
    for (const StoredKeyValues& s : stored_)
      slot_exists_ =
          slot_exists_ && s.keys.begin < s.keys.end && s.keys.end % s.keys.page_size != 0;
    if (fault_ == "slot-past-length-read"_fault && slot_exists_) {
      ++problem_.shape.keys;
      for (Index& n : problem_.key_lengths) ++n;
    }
  }

  // The buggy kernel reads the data of the first sequence or of the first head instead. That
  // sequence or head itself is not changed.
  void move_heads_and_batches(std::size_t at) {
    const auto heads = usize(problem_.shape.kv_heads);
    const auto from = fault_ == "batch-stride-missing"_fault  ? at % heads
                      : fault_ == "head-stride-missing"_fault ? at / heads * heads
                                                              : at;
    if (from == at) return;
    for (auto part : {&StoredKeyValues::keys, &StoredKeyValues::values}) {
      StoredRows& to = stored_[at].*part;
      const StoredRows& other = stored_[from].*part;
      std::vector<Index>& table = tables_.emplace_back(pages_of(to).begin(), pages_of(to).end());
      const auto others = pages_of(other);
      // A page that the other sequence has dropped cannot be read.
      for (std::size_t n = 0; n < table.size() && n < others.size(); ++n)
        if (table[n] >= 0 && others[n] >= 0) table[n] = others[n];
      to.columns.data = other.columns.data;
      to.columns.scales = other.columns.scales;
      to.pages = table.data();
    }
  }

  void change(StoredRows& r) {
    if (r.begin >= r.end) return;
    if (fault_ == "eviction-rounded-to-page"_fault) r.begin = r.begin / r.page_size * r.page_size;
    if (fault_ == "page-table-off-by-one"_fault || fault_ == "pages-taken-as-consecutive"_fault)
      change_table(r);
    if (fault_ == "rotary-part-dropped"_fault && r.more.count > 0)
      edit(r.more, r, [&](std::byte* row, std::uint8_t*, Index) {
        std::memset(row, 0, usize(r.more.row_bytes));
      });
    change_columns(r.columns, r);
    if (r.more.count > 0) change_columns(r.more, r);
    if (fault_ == "slot-past-length-read"_fault && slot_exists_) ++r.end;
  }

  void change_table(StoredRows& r) {
    std::vector<Index>& table = tables_.emplace_back(pages_of(r).begin(), pages_of(r).end());
    const auto first = usize(r.begin / r.page_size);
    for (std::size_t n = first; n < table.size(); ++n)
      table[n] = fault_ == "page-table-off-by-one"_fault
                     ? r.pages[std::min(n + 1, table.size() - 1)]
                     : (r.pages[first] + static_cast<Index>(n - first)) % (last_page_ + 1);
    r.pages = table.data();
  }

  void change_columns(StoredColumns& c, const StoredRows& r) {
    if (fault_ == "scale-of-neighbour-group"_fault && c.row_scales > 1)
      edit(c, r, [&](std::byte*, std::uint8_t* scales, Index) {
        std::copy(scales + 1, scales + c.row_scales, scales);
      });
    if (fault_ == "scale-of-first-token"_fault && c.row_scales > 0)
      edit(c, r, [&](std::byte*, std::uint8_t* scales, Index j) {
        std::copy_n(scales - r.place_of(j).slot * c.row_scales, c.row_scales, scales);
      });
    if (fault_ == "nibbles-swapped"_fault && c.dtype == Dtype::f4e2m1)
      edit_codes(c, r, [](std::uint8_t b) { return static_cast<std::uint8_t>(b << 4 | b >> 4); });
    if (fault_ == "offset-code-read-as-e2m1"_fault && c.dtype == Dtype::f4e2m1)
      edit_codes(c, r, [](std::uint8_t b) {
        return static_cast<std::uint8_t>(offset_code(b & 0xF) | offset_code(b >> 4) << 4);
      });
    if (fault_ == "f4-saturates-at-four"_fault && c.dtype == Dtype::f4e2m1)
      edit_codes(c, r, [](std::uint8_t b) {
        return static_cast<std::uint8_t>(at_most_four(b & 0xF) | at_most_four(b >> 4) << 4);
      });
    if (fault_ == "stored-beyond-f32"_fault && c.row_scales > 0) {
      const kernels::NarrowFormat f = kernels::narrow_format(c.dtype);
      edit(c, r, [&](std::byte* row, std::uint8_t* scales, Index) {
        for (Index at = 0; at < c.count; ++at) {
          std::byte& b = row[f.bits == 4 ? at / 2 : at];
          const int shift = f.bits == 4 ? static_cast<int>(at % 2 * 4) : 0;
          const std::uint32_t limit = kernels::max_code_under(f, scales[at / c.group] - 127);
          if (limit < f.max_code &&
              (std::to_integer<std::uint32_t>(b) >> shift & ((1u << (f.bits - 1)) - 1)) == limit)
            b = static_cast<std::byte>(std::to_integer<std::uint32_t>(b) + (1u << shift));
        }
      });
    }
    if (fault_ == "zero-group-divided"_fault && c.row_scales > 0) {
      const bool four_bits = c.dtype == Dtype::f4e2m1;
      const Index group = four_bits ? (c.group + 1) / 2 : c.group;
      const std::byte magnitude{four_bits ? std::uint8_t{0x77} : std::uint8_t{0x7F}};
      edit(c, r, [&](std::byte* row, std::uint8_t* scales, Index) {
        for (Index n = 0; n < c.row_scales; ++n)
          if (std::all_of(row + n * group, row + std::min((n + 1) * group, c.row_bytes),
                          [&](std::byte b) { return (b & magnitude) == std::byte{0}; }))
            scales[n] = 0xFF;
      });
    }
    if (fault_ == "uniform-code-read-as-e4m3"_fault && c.dtype == Dtype::f8e4m3)
      edit_codes(c, r, uniform_code);
    // The slot past the length holds a copy of the last token.
    if (fault_ == "slot-past-length-read"_fault && slot_exists_)
      edit(c, r, [&](std::byte* row, std::uint8_t* scales, Index j) {
        if (j < r.end - 1) return;
        std::copy_n(row, c.row_bytes, row + c.row_bytes);
        std::copy_n(scales, c.row_scales, scales + c.row_scales);
      });
  }

  void edit_codes(StoredColumns& c, const StoredRows& r, Recode recode) {
    edit(c, r, [&](std::byte* row, std::uint8_t*, Index) {
      for (Index n = 0; n < c.row_bytes; ++n)
        row[n] = static_cast<std::byte>(recode(static_cast<std::uint8_t>(row[n])));
    });
  }

  // Replaces the columns by a copy, and calls body(row, its scales, j) for the row of every token j
  // in it.
  template <class Body>
  void edit(StoredColumns& c, const StoredRows& r, const Body& body) {
    const Index last = *std::max_element(pages_of(r).begin(), pages_of(r).end());
    std::vector<std::byte>& data =
        data_.emplace_back(c.data, c.data + last * c.page_bytes + r.page_size * c.row_bytes);
    c.data = data.data();
    std::vector<std::uint8_t>& scales = scales_.emplace_back();
    if (c.scales) {
      scales.assign(c.scales, c.scales + last * c.page_scales + r.page_size * c.row_scales);
      c.scales = scales.data();
    }
    for (Index j = r.begin; j < r.end; ++j) {
      const auto [page, slot] = r.place_of(j);
      body(data.data() + page * c.page_bytes + slot * c.row_bytes,
           scales.data() + page * c.page_scales + slot * c.row_scales, j);
    }
  }

  const Fault fault_;
  Attention problem_;
  std::vector<StoredKeyValues> stored_;
  Index last_page_ = 0;
  bool slot_exists_ = false;
  // The memory that the changed descriptions point to.
  std::deque<std::vector<Index>> tables_;
  std::deque<std::vector<std::byte>> data_;
  std::deque<std::vector<std::uint8_t>> scales_;
};

Status attend_faulty(const Attention& problem, std::vector<StoredKeyValues> stored,
                     const AttentionOutput& out, const kernels::Execution& how, const void* fault) {
  const FaultyStorage storage(*static_cast<const Fault*>(fault), problem, std::move(stored));
  const FaultyStages stages(*static_cast<const Fault*>(fault), storage.problem());
  return kernels::run_stored(storage.problem(), storage.stored(), out, how.threads,
                             faulty_forward(how.target), &stages);
}

class FaultyCalls : public CacheCalls {
 public:
  explicit FaultyCalls(Fault fault) : fault_(fault) {}

  Status append(kernels::Cache& cache, Index sequence, const TensorView& k,
                const TensorView& v) override {
    if (fault_ != "tokens-by-head-first-stride"_fault &&
        fault_ != "written-past-the-new-length"_fault)
      return cache.append(sequence, k, v);
    auto& [before_k, before_v] = before_[sequence];
    const Tensor wrong_k = tokens(k, before_k), wrong_v = tokens(v, before_v);
    before_k = k;
    before_v = v;
    return cache.append(sequence, wrong_k.view(), wrong_v.view());
  }
  Status attend(const Attention& problem, const kernels::Cache& cache,
                const kernels::UpProjection& projection, const AttentionOutput& out,
                const kernels::Execution& how) override {
    return kernels::attention_cached(problem, cache, projection, out, how, attend_faulty, &fault_);
  }

 private:
  // What the buggy cache writes into the slots of these tokens.
  Tensor tokens(const TensorView& t, const TensorView& before) const {
    const Index heads = t.shape[1], count = t.shape[2], columns = t.shape[3];
    Tensor wrong(
        t.dtype, t.shape,
        {{heads * count * columns, count * columns, columns, 1}, 0, element_count(t.shape)});
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < count; ++i)
        for (Index c = 0; c < columns; ++c) {
          const Index to = wrong.view().at(0, h, i, c), token = i * heads + h;
          // The slots still hold the tokens of the append before, which may be fewer.
          if (fault_ == "written-past-the-new-length"_fault)
            store(wrong.view(), to, i < before.shape[2] ? load(before, before.at(0, h, i, c)) : 0);
          else store(wrong.view(), to, load(t, t.at(0, token / count, token % count, c)));
        }
    return wrong;
  }

  const Fault fault_;
  // The tokens of the last append, for each sequence.
  std::map<Index, std::pair<TensorView, TensorView>> before_;
};

}  // namespace

Status run_planted_cache(const PlantedFault& fault, const Case& c, const Inputs& inputs,
                         const AttentionOutput& out, const kernels::Execution& how) {
  return run_through_cache(c, inputs, out, how, FaultyCalls(fault.fault));
}

}  // namespace assay
