// C = A W, where W is in one of the formats of four bits. A work-group owns 16 x 16 elements of C;
// A and the decoded codes of W pass through local memory, SLICE of k at a time. Every group of W is
// summed on its own, with k ascending from 0, as one FMA chain. Group sums times their scales are
// added up in the same way, and the tensor scale comes last. That is the order of the host's
// kernel, so the bits are the same.
//
// The constants are INPUT, OUTPUT; WORDS, which says whether codes are words of eight k or columns;
// and SCALE, which is 0 for E8M0, 1 for E4M3, 2 for f16.

#define TILE 16
#define SLICE 32

typedef struct {
  ASSAY_PRODUCT_PARAMETERS(WHOLE, REAL)
} Parameters;

constant float e2m1[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

inline float decode_e2m1(uint code) { return code & 8 ? -e2m1[code & 7] : e2m1[code & 7]; }

inline float weight_at(global const uchar* codes, global const Parameters* p, long k, long n) {
#if WORDS
  // The words are little-endian: two nibbles in each byte, the low one first.
  const uint byte = codes[4 * (k / 8 * p->columns + n) + k % 8 / 2];
#else
  const uint byte = codes[n * ((p->depth + 1) / 2) + k / 2];
#endif
  return decode_e2m1(k % 2 ? byte >> 4 : byte & 15);
}

inline float scale_at(global const uchar* scales, global const Parameters* p, long t, long n) {
#if WORDS
  const long at = t * p->columns + n;
#else
  const long at = n * ((p->depth + p->group - 1) / p->group) + t;
#endif
#if SCALE == 0
  const uint code = scales[at];
  return code == 255 ? NAN : as_float(code ? code << 23 : 0x400000u);
#elif SCALE == 1
  const uint code = scales[at] & 0x7F, exponent = code >> 3, fraction = code & 7;
  if (code == 0x7F) return NAN;
  return exponent ? ldexp((float)(8 + fraction), (int)exponent - 10) : ldexp((float)fraction, -9);
#else
  return vload_half(at, (global const half*)scales);
#endif
}

kernel __attribute__((reqd_work_group_size(TILE, TILE, 1))) void low_bit_product(
    global const void* a, global const uchar* codes, global const uchar* scales,
    global const Parameters* p, global void* c) {
  local float rows[TILE][SLICE + 1];
  local float weights[SLICE][TILE + 1];
  const int x = get_local_id(0), y = get_local_id(1), item = y * TILE + x;
  const long n0 = get_group_id(0) * TILE, m0 = get_group_id(1) * TILE, n = n0 + x, m = m0 + y;
  const long groups = (p->depth + p->group - 1) / p->group;
  float total = 0;
  for (long t = 0; t < groups; ++t) {
    const long end = min((t + 1) * p->group, p->depth);
    float sum = 0;
    for (long k0 = t * p->group; k0 < end; k0 += SLICE) {
      barrier(CLK_LOCAL_MEM_FENCE);
      for (int e = item; e < TILE * SLICE; e += TILE * TILE) {
        const int r = e / SLICE, k = e % SLICE;
        rows[r][k] = m0 + r < p->rows && k0 + k < end
                         ? load_as(a, (m0 + r) * p->depth + k0 + k, INPUT)
                         : 0.0f;
      }
      for (int e = item; e < SLICE * TILE; e += TILE * TILE) {
        const int k = e / TILE, column = e % TILE;
        weights[k][column] = n0 + column < p->columns && k0 + k < end
                                 ? weight_at(codes, p, k0 + k, n0 + column)
                                 : 0.0f;
      }
      barrier(CLK_LOCAL_MEM_FENCE);
      const int depth = (int)min((long)SLICE, end - k0);
      for (int k = 0; k < depth; ++k) sum = fma(rows[y][k], weights[k][x], sum);
    }
    if (n < p->columns) total = fma(sum, scale_at(scales, p, t, n), total);
  }
  if (m < p->rows && n < p->columns)
    store_as(c, m * p->columns + n, OUTPUT, total * p->tensor_scale);
}
