// Inside oracle/: a problem as a faulty kernel would compute it, and what it would then do to the
// outputs. docs/evidence.md, 5.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "oracle/key_values.h"
#include "oracle/stored_tokens.h"
#include "oracle/visibility.h"

namespace assay {

struct RowPlace {
  Index b = 0, h = 0, row = 0;
  auto operator<=>(const RowPlace&) const = default;
};

// How a faulty kernel sums a row over tiles of keys: one step differs from the right one.
struct TiledSoftmax {
  Index tile = 64;  // tiles begin at multiples of it
  Index split = 0;  // keys of a split, which has sums of its own; 0: there are no splits
  double first_max = -std::numeric_limits<double>::infinity();
  // How the next maximum follows: it is the larger one of the running one and that of the tile, the
  // first one is kept, it is that of the tile alone, that of the tile is scaled again, or it is
  // that of the scores before the scale, which a negative scale makes the least one.
  enum class Maximum : std::uint8_t {
    running,
    first,
    of_tile,
    scaled_again,
    before_scale
  } maximum = {};
  bool rescales_sum = true, rescales_values = true;
  bool corrections_in_half = false;
  double (*cast)(double) = nullptr;  // of weights, before P V
  bool drops_a_lane = false;         // the last key of each tile is not in the row sum
  bool counts_padding = false;  // one key of the last, shorter tile, with score 0, in the row sum
  // The score of masked keys, and of keys behind the last one, in the tiles that rows of a tile
  // load.
  double fill = -std::numeric_limits<double>::infinity();
  bool fills_zeros = false;      // keys outside the interval of a row are not loaded: their V is 0
  bool clamps = false;           // e^x for x <= 0 gives at most 1, whatever x is
  bool zero_sum_is_nan = false;  // a row that sees a key and whose sum is 0 is 0 / 0
  // Whether the outputs of a row are predicted if its exponentials or sums leave the range of
  // binary32. If not, only "wrong" is predicted for it, because kernels differ in what they give.
  bool tells_beyond_range = true;
  double exponent = 1;  // every argument of exp is multiplied by it
  // The same steps in the merge of splits.
  bool merge_rescales_sum = true, merge_rescales_values = true, merge_keeps_first_max = false;
  bool merge_reads_sum_for_max = false;

  // Whether the masked keys that are loaded with a row matter.
  bool loads_masked_keys() const {
    return fill > -std::numeric_limits<double>::infinity() || maximum == Maximum::of_tile;
  }
};

// The keys of a row from key0 on.
struct SoftmaxRow {
  Index key0 = 0, all_keys = 0;
  Index padding = 0;               // keys without values, with the score of masked ones
  std::span<const double> scores;  // -inf where masked
  const char* kept = nullptr;      // null: no dropout
  double sink = -std::numeric_limits<double>::infinity();
  double scale = 1;
};
// What a hypothesis predicts for a row: nothing, the outputs, or only that these are wrong.
enum class Foreseen : std::uint8_t { nothing, outputs, wrong };
// Computes O and LSE of a row; `values` are those of the keys from key0 on.
Foreseen sum_in_tiles(const TiledSoftmax& how, const SoftmaxRow& row,
                      const Eigen::Ref<const RowMajor, 0, Eigen::OuterStride<>>& values,
                      Eigen::Ref<Eigen::RowVectorXd> o, double& lse);

struct Alteration {
  Alteration(const ProjectedAttention& p, const AttentionOutput& o,
             const StoredTokens* cache = nullptr)
      : problem(p), out(o), stored(cache) {}
  Alteration(const Alteration&) = delete;
  Alteration& operator=(const Alteration&) = delete;

  ProjectedAttention problem;
  AttentionOutput out;                     // the tensors from which outputs are read
  const StoredTokens* stored;              // null: nothing is known of a cache
  bool unwritten = false;                  // some element of O was not written
  std::vector<RowPlace> failing;           // the wrong rows among the rows that are compared
  std::function<Index(Index h)> key_head;  // the kv head that a head reads; empty: its own
  // The row whose outputs a row gets; no value: its outputs are NaN. An empty function: every row
  // gets its own outputs.
  std::function<std::optional<RowPlace>(const RowPlace&)> source;
  std::optional<TiledSoftmax> softmax;
  // Changes the exact outputs of a row; `masked`: it sees no key.
  std::function<void(const RowPlace&, bool masked, Eigen::Ref<Eigen::RowVectorXd> o, double& lse)>
      change;
  bool of_o = true, of_lse = true;  // which outputs are altered; the other ones are right
  std::function<bool(const RowPlace&)>
      tells;  // whether the outputs of a row are predicted; empty: those of all rows
  // The storage of altered tensors and masks.
  std::deque<Tensor> tensors;
  std::vector<std::uint8_t> keep;
};

// A known fault. `alter` makes the altered problem, and returns whether the fault is possible.
// `parameter` is one of `parameters`, and replaces the {} in the words.
struct Hypothesis {
  std::string_view name;
  std::string_view words;
  bool (*alter)(Alteration& a, Index parameter);
  std::span<const Index> parameters = {};
};

// The hypotheses about O and LSE. Of those with the same outputs the first one is named.
std::span<const Hypothesis> mask_hypotheses();
std::span<const Hypothesis> sum_hypotheses();
std::span<const Hypothesis> cache_hypotheses();
// These are rarer, and are tried where none of those above fits.
std::span<const Hypothesis> input_hypotheses();

// Products of numbers in fewer bits than f32 has. Q, K and V are rounded when they are read, and
// LSE shows exactly how. The roundings of weights depend on the running maximum, so only their size
// is known: that of weights in `weight_dtype`.
struct CoarseProducts {
  std::string_view name;
  std::string_view words;
  double (*rounded)(double);
  Dtype weight_dtype;
};
std::span<const CoarseProducts> coarse_products();
// Rounds the elements of Q, K and V. False: they are not in f32, or have too many elements.
bool round_inputs(Alteration& a, double (*rounded)(double));
// Rounds towards zero to the bits that TF32 has: the format of f32 with ten bits behind the point.
double truncated_to_tf32(double x);
// The same for bf16.
double truncated_to_bf16(double x);

// Masks that are written out, and copies of tensors, have no more elements than this.
inline constexpr Index most_altered_elements = Index{1} << 21;
// Row i of batch b sees the keys interval(problem, b, i, those that it should see), as far as masks
// of elements allow. False: there are too many pairs.
bool see(Alteration& a,
         const std::function<KeyInterval(const Attention&, Index b, Index i, KeyInterval own)>&
             interval);
// Replaces `t`, which is a tensor of a.problem, by a contiguous one in f64 with the elements at(b,
// h, i, j). False: it has too many elements.
bool replace(Alteration& a, TensorView& t, const Extents& shape,
             const std::function<double(Index b, Index h, Index i, Index j)>& at);

// Replaces the additive mask by one with the elements at(b, h, i, j), which may be read from the
// one before. What its dtype has for -inf is -inf.
bool replace_bias(Alteration& a,
                  const std::function<double(Index b, Index h, Index i, Index j)>& at);
// Adds bias(j) to the scores of key j.
bool add_to_scores(Alteration& a, const std::function<double(Index j)>& bias);

}  // namespace assay
