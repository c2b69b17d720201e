#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <vector>

#include "bench/blocks.h"
#include "bench/peers.h"
#include "bench/row_softmax.h"

namespace assay::bench {

namespace {

// oneDNN has no thread count of its own: it uses the OpenMP default of the thread that calls it.
// The symbol is looked up at run time, because it has to belong to the OpenMP runtime with which
// oneDNN was linked, whatever runtime this program uses.
void one_library_thread() {
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
  static const auto set =
      reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set == nullptr)
    throw std::runtime_error(
        "oneDNN's OpenMP runtime is not to be found: its threads cannot be limited");
  set(1);
#elif DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_SEQ
#error "this oneDNN is neither sequential nor on OpenMP: its threads cannot be limited"
#endif
}

using Memory = dnnl::memory;
using Tag = Memory::format_tag;

// What one row block executes. The blocks of a causal problem have different numbers of keys, so
// each has its own.
struct BlockPrimitives {
  dnnl::matmul scores, output;
  dnnl::softmax_forward softmax;
  // Each worker has its own set, because the pointer of a memory object is set before each
  // execution.
  struct Memories {
    Memory q, k, s, v, o, scores_pad, output_pad, softmax_pad;
  };
  std::vector<Memories> memories;
};

class OnednnAttention final : public AttentionPeer {
 public:
  OnednnAttention(const PlainAttention& problem, int threads)
      : p_(problem),
        threads_(threads),
        block_rows_(std::min<Index>(
            problem.rows, problem.causal ? std::clamp<Index>(problem.rows / 8, 64, 128) : 192)),
        engine_(dnnl::engine::kind::cpu, 0),
        scores_(usize(threads), std::vector<float>(usize(block_rows_ * problem.keys))),
        stats_(usize(threads), std::vector<RowStats>(usize(block_rows_))) {
    one_library_thread();
    for (int t = 0; t < threads; ++t) streams_.emplace_back(engine_);
    for (Index b = 0; b < block_count(p_, block_rows_); ++b) {
      const Index end = std::min(p_.rows, (b + 1) * block_rows_);
      blocks_.push_back(make_block(end - b * block_rows_, p_.keys_before(end)));
    }
  }

  void run(const float* q, const float* k, const float* v, float* o, float* lse) override {
    for_each_block(p_, block_rows_, threads_, [&](Index worker, const RowBlock& b) {
      one_library_thread();
      const auto w = usize(worker);
      BlockPrimitives& block = blocks_[usize(b.index)];
      BlockPrimitives::Memories& m = block.memories[w];
      const dnnl::stream& stream = streams_[w];
      float* const s = scores_[w].data();
      const Index row0 = b.head * p_.rows + b.begin, key0 = b.head * p_.keys;
      set(m.q, q + row0 * p_.dim);
      set(m.k, k + key0 * p_.dim);
      set(m.v, v + key0 * p_.value_dim);
      set(m.s, s);
      set(m.o, o + row0 * p_.value_dim);

      block.scores.execute(stream, {{DNNL_ARG_SRC, m.q},
                                    {DNNL_ARG_WEIGHTS, m.k},
                                    {DNNL_ARG_DST, m.s},
                                    {DNNL_ARG_SCRATCHPAD, m.scores_pad}});
      for (Index i = 0; i < b.end - b.begin; ++i) {
        float* const row = s + i * b.keys;
        const Index visible = p_.keys_before(b.begin + i + 1);
        stats_[w][usize(i)] = row_stats(row, visible);
        std::fill(row + visible, row + b.keys, -std::numeric_limits<float>::infinity());
      }
      block.softmax.execute(
          stream, {{DNNL_ARG_SRC, m.s}, {DNNL_ARG_DST, m.s}, {DNNL_ARG_SCRATCHPAD, m.softmax_pad}});
      for (Index i = 0; i < b.end - b.begin; ++i) {
        const RowStats& t = stats_[w][usize(i)];
        lse[row0 + i] = t.max - std::log(row_max(s + i * b.keys + t.chunk, t.length));
      }
      block.output.execute(stream, {{DNNL_ARG_SRC, m.s},
                                    {DNNL_ARG_WEIGHTS, m.v},
                                    {DNNL_ARG_DST, m.o},
                                    {DNNL_ARG_SCRATCHPAD, m.output_pad}});
    });
  }

 private:
  // The softmax primitive does not return its normaliser. The largest weight is the reciprocal of
  // it, and lies in the chunk that held the largest score. So LSE = max - log(largest weight) costs
  // one pass over the scores.
  struct RowStats {
    float max = -std::numeric_limits<float>::infinity();
    Index chunk = 0, length = 1;
  };
  static RowStats row_stats(const float* row, Index n) {
    constexpr Index chunk = 256;
    RowStats best{row_max(row, std::min(chunk, n)), 0, std::min(chunk, n)};
    for (Index j = chunk; j < n; j += chunk)
      if (const float m = row_max(row + j, std::min(chunk, n - j)); m > best.max)
        best = {m, j, std::min(chunk, n - j)};
    return best;
  }

  static void set(Memory& memory, const float* data) {
    memory.set_data_handle(const_cast<float*>(data));
  }

  BlockPrimitives make_block(Index rows, Index keys) {
    const auto f32 = Memory::data_type::f32;
    const Memory::desc q({rows, p_.dim}, f32, Tag::ab), k({p_.dim, keys}, f32, Tag::ba),
        s({rows, keys}, f32, Tag::ab);
    const Memory::desc v({keys, p_.value_dim}, f32, Tag::ab), o({rows, p_.value_dim}, f32, Tag::ab);
    dnnl::primitive_attr attr, scaled;
    // The library's own scratchpad belongs to a thread, but here several threads execute the same
    // primitive.
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    scaled.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    scaled.set_output_scales(0, {p_.scale});
    const dnnl::matmul::primitive_desc scores(dnnl::matmul::desc(q, k, s), scaled, engine_);
    const dnnl::matmul::primitive_desc output(dnnl::matmul::desc(s, v, o), attr, engine_);
    const dnnl::softmax_forward::primitive_desc softmax(
        dnnl::softmax_forward::desc(dnnl::prop_kind::forward_inference, s, 1), attr, engine_);
    BlockPrimitives block{
        dnnl::matmul(scores), dnnl::matmul(output), dnnl::softmax_forward(softmax), {}};
    auto view = [&](const Memory::desc& d) { return Memory(d, engine_, nullptr); };
    for (int t = 0; t < threads_; ++t)
      block.memories.push_back(
          {view(q), view(k), view(s), view(v), view(o), Memory(scores.scratchpad_desc(), engine_),
           Memory(output.scratchpad_desc(), engine_), Memory(softmax.scratchpad_desc(), engine_)});
    return block;
  }

  PlainAttention p_;
  int threads_;
  Index block_rows_;
  dnnl::engine engine_;
  std::vector<dnnl::stream> streams_;
  std::vector<BlockPrimitives> blocks_;
  std::vector<std::vector<float>> scores_;
  std::vector<std::vector<RowStats>> stats_;
};

}  // namespace

std::unique_ptr<AttentionPeer> make_onednn_attention(const PlainAttention& problem, int threads) {
  return std::make_unique<OnednnAttention>(problem, threads);
}

}  // namespace assay::bench
