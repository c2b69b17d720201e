// Divides the rows of the unfused peers into blocks, and hands the blocks out to threads, each of
// which owns a workspace.
#pragma once

#include <algorithm>
#include <atomic>

#include "bench/peers.h"
#include "problem/parallel.h"

namespace assay::bench {

struct RowBlock {
  Index head, index;  // index: of the block within its head
  Index begin, end;   // rows
  Index keys;         // how many keys at least one of its rows sees
};

inline Index block_count(const PlainAttention& p, Index block_rows) {
  return (p.rows + block_rows - 1) / block_rows;
}

// Calls body(worker, block) for every block of every head, on `threads` workers numbered from 0.
template <class Body>
void for_each_block(const PlainAttention& p, Index block_rows, int threads, const Body& body) {
  const Index per_head = block_count(p, block_rows), blocks = p.heads * per_head;
  std::atomic<Index> next{0};
  parallel_for(threads, threads, [&](Index worker) {
    for (Index n; (n = next.fetch_add(1)) < blocks;) {
      // The last rows come first: under a causal mask they take the most time, and the blocks that
      // take less even out the end.
      const Index index = per_head - 1 - n % per_head, begin = index * block_rows,
                  end = std::min(p.rows, begin + block_rows);
      body(worker, RowBlock{n / per_head, index, begin, end, p.keys_before(end)});
    }
  });
}

}  // namespace assay::bench
