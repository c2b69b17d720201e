// Tiled attention forward with online softmax. A work-group owns ROWS query rows of one head, with
// LANES work-items for each row. K and V pass through local memory, SLICE columns of a tile of KEYS
// keys at a time.
//
// device_contract() declares the order of every sum: q.k is one FMA chain over d. P V is one FMA
// chain over the keys of a tile, on top of the rescaled accumulator. The row sum is summed by
// halves within a tile, and then tile by tile. Tiles begin at key 0, so the bits of a row depend
// neither on ROWS nor on what else is in the call. A masked key has no weight at all: what it holds
// is never multiplied.
//
// The constants are INPUT, OUTPUT, ROWS, and VALUES, the number of columns of O that a work-item
// keeps (at least two for each SLICE of Dv).

#define LANES 16
#define KEYS 64
#define SLICE 32

typedef struct {
  ASSAY_ATTENTION_PARAMETERS(WHOLE, REAL)
} Parameters;

// e^x for x <= 0 or NaN. Below -87, where results leave the normal range, it is 0 on every device.
inline float weight_of(float x) { return x < -87.0f ? 0.0f : exp(x); }

// Returns the sum of everything that is added to a score; -inf masks the key.
inline float bias_of(global const Parameters* p, global const void* bias, global const uchar* keep,
                     global const float* slopes, global const int* query_segment,
                     global const int* key_segment, long b, long h, long i, long j, long offset) {
  float sum = slopes ? slopes[h] * (float)(j - (i + offset)) : 0.0f;
  if (bias) {
    const float x =
        load_as(bias, b * p->bias_batch + h * p->bias_head + i * p->bias_row + j * p->bias_key,
                (int)p->bias_dtype);
    const float lowest = p->bias_dtype == 1   ? -FLT_MAX
                         : p->bias_dtype == 2 ? -65504.0f
                                              : -0x1.fep127f;
    if (x == -INFINITY || (p->finite_min_masks && x == lowest)) return -INFINITY;
    sum += x;
  }
  if (keep && !keep[b * p->keep_batch + h * p->keep_head + i * p->keep_row + j * p->keep_key])
    return -INFINITY;
  if (query_segment && query_segment[b * p->rows + i] != key_segment[b * p->keys + j])
    return -INFINITY;
  return sum;
}

kernel __attribute__((reqd_work_group_size(ROWS * LANES, 1, 1))) void attention_forward(
    global const void* query, global const void* key, global const void* value,
    global const void* bias, global const uchar* keep,
    global const long* limits /* of each batch: offset, first key, end of keys */,
    global const float* slopes, global const float* sinks, global const int* query_segment,
    global const int* key_segment, global const Parameters* p, global void* output,
    global float* lse) {
  local float queries[ROWS][SLICE + 1];
  local float staged[KEYS][SLICE + 1];  // a slice of K, then one of V
  local float weights[ROWS][KEYS + 1];
  local float reduced[ROWS][LANES + 1];

  const int item = get_local_id(0), row = item / LANES, lane = item % LANES;
  const long b = get_group_id(2), h = get_group_id(1), g = h / (p->query_heads / p->kv_heads);
  const long row0 = get_group_id(0) * ROWS, row_end = min(row0 + ROWS, p->rows), i = row0 + row;
  const long offset = limits[3 * b], keys_begin = limits[3 * b + 1], keys_end = limits[3 * b + 2];

  // The keys that this row may see, and the keys that any row of the group may see.
  long begin = keys_begin, end = i < p->rows ? keys_end : keys_begin, first = keys_begin,
       last = keys_end;
  if (p->causal) {
    end = min(end, i + offset + 1);
    last = min(last, row_end + offset);
  }
  if (p->window_left >= 0) {
    begin = max(begin, i + offset - p->window_left);
    first = max(first, row0 + offset - p->window_left);
  }
  if (p->window_right >= 0) {
    end = min(end, i + offset + p->window_right + 1);
    last = min(last, row_end + offset + p->window_right);
  }

  // A sink is treated as a key that was seen before all others and has no value.
  float m = sinks ? sinks[h] : -INFINITY, l = m == -INFINITY ? 0.0f : 1.0f, o[VALUES];
  for (int c = 0; c < VALUES; ++c) o[c] = 0;
  int seen = 0;

  for (long tile = first / KEYS * KEYS; tile < last; tile += KEYS) {
    float score[KEYS / LANES];
    for (int n = 0; n < KEYS / LANES; ++n) score[n] = 0;
    for (long d0 = 0; d0 < p->dim; d0 += SLICE) {
      barrier(CLK_LOCAL_MEM_FENCE);
      for (int e = item; e < ROWS * SLICE; e += ROWS * LANES) {
        const long r = row0 + e / SLICE, d = d0 + e % SLICE;
        queries[e / SLICE][e % SLICE] =
            r < p->rows && d < p->dim
                ? load_as(query, ((b * p->query_heads + h) * p->rows + r) * p->dim + d, INPUT)
                : 0.0f;
      }
      for (int e = item; e < KEYS * SLICE; e += ROWS * LANES) {
        const long j = tile + e / SLICE, d = d0 + e % SLICE;
        staged[e / SLICE][e % SLICE] =
            j < p->keys && d < p->dim
                ? load_as(key, ((b * p->kv_heads + g) * p->keys + j) * p->dim + d, INPUT)
                : 0.0f;
      }
      barrier(CLK_LOCAL_MEM_FENCE);
      const int depth = (int)min((long)SLICE, p->dim - d0);
      for (int d = 0; d < depth; ++d)
        for (int n = 0; n < KEYS / LANES; ++n)
          score[n] = fma(queries[row][d], staged[lane + n * LANES][d], score[n]);
    }

    float highest = -INFINITY;
    int visible = 0;  // bit n: whether key n is visible
    for (int n = 0; n < KEYS / LANES; ++n) {
      const long j = tile + lane + n * LANES;
      if (j < begin || j >= end) continue;
      const float added =
          bias_of(p, bias, keep, slopes, query_segment, key_segment, b, h, i, j, offset);
      if (added == -INFINITY) continue;
      float s = score[n] * p->scale;
      if (p->softcap > 0) s = p->softcap * tanh(s * p->inverse_softcap);
      s += added;
      score[n] = s;
      visible |= 1 << n;
      highest = fmax(highest, s);  // fmax ignores NaN, whose weight is NaN later
    }
    seen |= visible;

    reduced[row][lane] = highest;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = LANES / 2; step > 0; step /= 2) {
      if (lane < step) reduced[row][lane] = fmax(reduced[row][lane], reduced[row][lane + step]);
      barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float m_new = fmax(m, reduced[row][0]);
    // While every score is -inf, any finite reference gives weights of 0, where -inf - -inf would
    // give NaN.
    const float reference = m_new == -INFINITY ? 0.0f : m_new;
    const float correction = weight_of(m - reference);
    float sum = 0;
    for (int n = 0; n < KEYS / LANES; ++n) {
      const bool sees = (visible >> n) & 1;
      const float w = sees ? weight_of(score[n] - reference) : -1.0f;  // below 0 means masked
      weights[row][lane + n * LANES] = w;
      if (sees) sum += w;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    reduced[row][lane] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = LANES / 2; step > 0; step /= 2) {
      if (lane < step) reduced[row][lane] += reduced[row][lane + step];
      barrier(CLK_LOCAL_MEM_FENCE);
    }
    l = fma(l, correction, reduced[row][0]);
    m = m_new;
    for (int c = 0; c < VALUES; ++c) o[c] *= correction;

    for (int slice = 0; slice < VALUES / 2; ++slice) {
      const long c0 = slice * SLICE;
      if (c0 >= p->value_dim) break;
      barrier(CLK_LOCAL_MEM_FENCE);
      for (int e = item; e < KEYS * SLICE; e += ROWS * LANES) {
        const long j = tile + e / SLICE, c = c0 + e % SLICE;
        staged[e / SLICE][e % SLICE] =
            j < p->keys && c < p->value_dim
                ? load_as(value, ((b * p->kv_heads + g) * p->keys + j) * p->value_dim + c, INPUT)
                : 0.0f;
      }
      barrier(CLK_LOCAL_MEM_FENCE);
      for (int j = 0; j < KEYS; ++j) {
        const float w = weights[row][j];
        if (w < 0) continue;
        o[2 * slice] = fma(w, staged[j][lane], o[2 * slice]);
        o[2 * slice + 1] = fma(w, staged[j][lane + LANES], o[2 * slice + 1]);
      }
    }
  }

  // The row sum was read before the barriers of V.
  reduced[row][lane] = seen ? 1.0f : 0.0f;
  barrier(CLK_LOCAL_MEM_FENCE);
  if (i >= p->rows) return;
  bool row_seen = false;
  for (int n = 0; n < LANES; ++n) row_seen = row_seen || reduced[row][n] > 0;
  const long at = (b * p->query_heads + h) * p->rows + i;
  for (int n = 0; n < VALUES; ++n) {
    const long c = n / 2 * SLICE + n % 2 * LANES + lane;
    // Where every visible score is -inf, the result is 0 / 0. A row whose every key is masked is 0.
    if (c < p->value_dim)
      store_as(output, at * p->value_dim + c, OUTPUT, row_seen ? o[n] / l : 0.0f);
  }
  if (lse && lane == 0) lse[at] = m + log(l);
}
