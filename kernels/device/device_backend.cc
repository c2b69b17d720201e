#include "kernels/device/device_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <new>
#include <tuple>

#include "kernels/device/kernel_parameters.h"
#include "kernels/device/sources.h"
#include "kernels/staging.h"
#include "kernels/product/packed_weights.h"
#include "kernels/product/product_plan.h"
#include "kernels/simd/scratch.h"

namespace assay::kernels {
namespace {

std::string dtype_constant(Dtype d) { return fmt::to_string(static_cast<int>(d)); }
static_assert(static_cast<int>(Dtype::f32) == 1 && static_cast<int>(Dtype::f16) == 2 &&
                  static_cast<int>(Dtype::bf16) == 3,
              "elements.cl.h has these numbers");

template <class T>
std::span<const std::byte> bytes_of_list(const std::vector<T>& list) {
  return std::as_bytes(std::span(list));
}

KernelSource attention_kernel(Dtype input, Dtype output, Index value_dim, Index tile_rows) {
  // two columns of O in each work-item for each 32 columns
  const Index values = value_dim <= 64 ? 4 : value_dim <= 256 ? 16 : 64;
  return {"attention.cl",
          attention_source,
          "attention_forward",
          {{"INPUT", dtype_constant(input)},
           {"OUTPUT", dtype_constant(output)},
           {"ROWS", fmt::to_string(tile_rows)},
           {"VALUES", fmt::to_string(values)}}};
}

// Whether a smaller part of the work would ask for less of what was refused, which is memory of the
// tensors. Opening, compiling and similar calls would ask for as much as before.
bool is_of_tensors(const Status& status) {
  for (std::string_view call : {"allocate", "upload", "launch", "synchronize"})
    if (status.origin.starts_with(call)) return true;
  return false;
}

// A part of a problem: the batch elements [batch, batch + batches) and the key/value heads
// [head, head + heads).
struct Part {
  Index batch, batches, head, heads;
};

template <class T>
std::vector<T> part_of(const std::vector<T>& list, Index first, Index count) {
  return list.empty() ? list : std::vector<T>(list.begin() + first, list.begin() + first + count);
}

Attention part_of(const Attention& p, const Part& part) {
  const AttentionShape& s = p.shape;
  const Index query_head = part.head * s.group(), query_heads = part.heads * s.group();
  Attention sub = p;
  sub.shape.batch = part.batches;
  sub.shape.query_heads = query_heads;
  sub.shape.kv_heads = part.heads;
  const auto narrow = [&](TensorView& t, Index h, Index heads) {
    if (!t) return;
    t.origin = t.at(part.batch, h, 0, 0);
    t.shape[0] = part.batches;
    t.shape[1] = heads;
  };
  narrow(sub.q, query_head, query_heads);
  narrow(sub.k, part.head, part.heads);
  narrow(sub.v, part.head, part.heads);
  narrow(sub.bias, query_head, query_heads);
  if (sub.keep) sub.keep.data += part.batch * sub.keep.stride[0] + query_head * sub.keep.stride[1];
  for_each_list([&](const auto& field) {
    const auto of_batches = [&](Index each) {
      return part_of(p.*field.list, part.batch * each, part.batches * each);
    };
    sub.*field.list = field.along == Along::query_heads
                          ? part_of(p.*field.list, query_head, query_heads)
                          : of_batches(extent_of(field.along, s).inner);
  });
  return sub;
}

// A mask or bias [B, Hq, Lq, Lk] as it is stored: a dimension that broadcasts has one element, and
// the strides are those of the copy.
struct Compact {
  Extents shape, stride;
};
Compact compact(const Extents& shape, const Extents& stride) {
  Compact c{shape, {}};
  for (std::size_t k = 0; k < 4; ++k)
    if (stride[k] == 0) c.shape[k] = std::min<Index>(shape[k], 1);
  Index step = 1;
  for (std::size_t k = 4; k-- > 0; step *= c.shape[k]) c.stride[k] = stride[k] == 0 ? 0 : step;
  return c;
}

}  // namespace

class DeviceKernel : public CompiledAttention {
 public:
  using Shared = DeviceBackend::Shared;
  explicit DeviceKernel(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  Status run(const Attention& problem, const AttentionOutput& out,
             const Execution& how) const override {
    const AttentionShape& s = problem.shape;
    if (s.batch == 0 || s.rows == 0) return {};
    try {
      DeviceLimits limits;
      if (Status status = shared_->session->limits(limits); !status.ok()) return status;
      TensorView o = out.o, lse = out.lse;
      o.shape = s.o_extents();
      lse.shape = s.lse_extents();
      Staging staging;
      staging.row_bytes = s.value_dim * bytes_of(o.dtype);
      const std::size_t o_bytes = contiguous_bytes(o.shape, bytes_of(o.dtype));
      staging.o.resize(o_bytes);
      if (lse) staging.lse.resize(contiguous_bytes(lse.shape, 4));
      if (Status status =
              run_part(problem, o.dtype, {0, s.batch, 0, s.kv_heads}, staging, limits, how);
          !status.ok())
        return status;
      scatter(staging.o, o);
      if (lse) scatter(staging.lse, lse);
      return {};
    } catch (const std::bad_alloc&) {
      return out_of_memory("copies of tensors for a device");
    }
  }

 private:
  // These are whole outputs; a part of the problem is contiguous in them.
  struct Staging {
    std::vector<std::byte> o, lse;
    Index row_bytes = 0;
  };

  Status run_part(const Attention& whole, Dtype output, const Part& part, Staging& staging,
                  const DeviceLimits& limits, const Execution& how) const {
    const Index preferred = shared_->tile_rows;
    Index rows = preferred;
    Status status =
        run_once(part_of(whole, part), whole.shape, output, part, rows, staging, limits, how);
    const DevicePolicy& policy = shared_->policy;
    while (status.code == StatusCode::memory_allocation_failed &&
           status.origin.starts_with("launch") && policy.halve_tile && rows > 1) {
      rows /= 2;
      shared_->warn(
          fmt::format("{}; {} rows a work-group instead of {}", status.detail, rows, 2 * rows));
      ++shared_->halved_tiles;
      status =
          run_once(part_of(whole, part), whole.shape, output, part, rows, staging, limits, how);
    }
    // the smaller number of rows helped, so it is kept
    if (status.ok() && rows != preferred) shared_->tile_rows = rows;
    const bool by_batch = part.batches > 1;
    if (status.code != StatusCode::memory_allocation_failed || !is_of_tensors(status) ||
        !policy.split || (!by_batch && part.heads == 1))
      return status;
    Part first = part, second = part;
    if (by_batch) {
      first.batches = part.batches / 2;
      second.batch += first.batches;
      second.batches -= first.batches;
    } else {
      first.heads = part.heads / 2;
      second.head += first.heads;
      second.heads -= first.heads;
    }
    shared_->warn(
        fmt::format("{}; half of the {} at a time", status.detail, by_batch ? "batch" : "heads"));
    ++shared_->splits;
    status = run_part(whole, output, first, staging, limits, how);
    return status.ok() ? run_part(whole, output, second, staging, limits, how) : status;
  }

  Status run_once(const Attention& p, const AttentionShape& whole, Dtype output_dtype,
                  const Part& part, Index rows, Staging& staging,
                  const DeviceLimits& limits_of_device, const Execution& how) const {
    const AttentionShape& s = p.shape;
    const Extents pairs = s.pair_extents();
    AttentionParameters told{};
    told.batch = s.batch;
    told.query_heads = s.query_heads;
    told.kv_heads = s.kv_heads;
    told.rows = s.rows;
    told.keys = s.keys;
    told.dim = s.dim;
    told.value_dim = s.value_dim;
    told.causal = p.causal;
    constexpr Index widest = 4 * largest_extent;  // such a window hides nothing
    told.window_left = std::min(p.window_left, widest);
    told.window_right = std::min(p.window_right, widest);
    told.finite_min_masks = p.finite_min_masks;
    told.input_dtype = static_cast<Index>(p.q.dtype);
    told.output_dtype = static_cast<Index>(output_dtype);
    told.bias_dtype = static_cast<Index>(p.bias.dtype);
    told.threads = how.threads;
    told.simd_target = how.target.bit();
    told.scale = p.scale;
    told.softcap = p.softcap;
    told.inverse_softcap = p.softcap > 0 ? 1 / p.softcap : 0;

    const Compact bias_layout = compact(pairs, p.bias.stride),
                  keep_layout = compact(pairs, p.keep.stride);
    if (p.bias)
      std::tie(told.bias_batch, told.bias_head, told.bias_row, told.bias_key) =
          std::tuple_cat(bias_layout.stride);
    if (p.keep)
      std::tie(told.keep_batch, told.keep_head, told.keep_row, told.keep_key) =
          std::tuple_cat(keep_layout.stride);

    struct Wanted {
      std::string_view name;
      Extents shape;
      Index bytes;
    };
    const Wanted large[] = {
        {"query", s.q_extents(), bytes_of(p.q.dtype)},
        {"key", s.k_extents(), bytes_of(p.q.dtype)},
        {"value", s.v_extents(), bytes_of(p.q.dtype)},
        {"bias", p.bias ? bias_layout.shape : Extents{}, bytes_of(p.bias.dtype)},
        {"mask", p.keep ? keep_layout.shape : Extents{}, 1},
        {"output", s.o_extents(), bytes_of(output_dtype)}};
    for (const Wanted& w : large)
      if (const std::size_t bytes = contiguous_bytes(w.shape, w.bytes);
          bytes > limits_of_device.largest_buffer)
        return exceeds_buffer(shared_->session->name(), w.name, bytes,
                              limits_of_device.largest_buffer);

    std::vector<Index> of_batch;
    for (Index b = 0; b < s.batch; ++b) {
      const auto at = usize(b);
      of_batch.push_back(p.offset_of(b));
      of_batch.push_back(p.key_starts.empty() ? 0 : p.key_starts[at]);
      of_batch.push_back(p.key_lengths.empty() ? s.keys : p.key_lengths[at]);
    }
    std::array<std::vector<std::byte>, 5> copies;
    const auto packed = [&](const TensorView& t, const Extents& shape,
                            std::vector<std::byte>& storage) {
      return gather(t.data, shape, t.stride, t.origin, bytes_of(t.dtype), storage);
    };
    Job job;
    job.source = attention_kernel(p.q.dtype, output_dtype, s.value_dim, rows);
    job.inputs = {
        {"query", packed(p.q, large[0].shape, copies[0])},
        {"key", packed(p.k, large[1].shape, copies[1])},
        {"value", packed(p.v, large[2].shape, copies[2])},
        {"bias",
         p.bias ? packed(p.bias, bias_layout.shape, copies[3]) : std::span<const std::byte>()},
        {"mask", p.keep ? gather(p.keep.data, keep_layout.shape, p.keep.stride, 0, 1, copies[4])
                        : std::span<const std::byte>()},
        {"limits", bytes_of_list(of_batch)},
        {"slopes", bytes_of_list(p.alibi_slopes)},
        {"sink", bytes_of_list(p.sink)},
        {"query segments", bytes_of_list(p.query_segment)},
        {"key segments", bytes_of_list(p.key_segment)},
        {"parameters", std::as_bytes(std::span(&told, 1))}};
    const Index first_row = (part.batch * whole.query_heads + part.head * whole.group()) * s.rows,
                count = s.batch * s.query_heads * s.rows;
    const auto rows_of = [&](std::vector<std::byte>& bytes, Index of_row) {
      return bytes.empty()
                 ? std::span<std::byte>()
                 : std::span(bytes).subspan(usize(first_row * of_row), usize(count * of_row));
    };
    job.outputs = {{"output", rows_of(staging.o, staging.row_bytes)},
                   {"lse", rows_of(staging.lse, 4)}};
    const auto blocks = usize((s.rows + rows - 1) / rows), items = usize(rows * device_lanes);
    job.grid = {{blocks * items, usize(s.query_heads), usize(s.batch)}, {items, 1, 1}};
    return shared_->session->run(job);
  }

  const std::shared_ptr<Shared> shared_;
};

void DeviceBackend::Shared::warn(const std::string& text) const {
  if (policy.warn) policy.warn(text);
  else std::fprintf(stderr, "assay: %s\n", text.c_str());
}

DeviceBackend::DeviceBackend(std::shared_ptr<DeviceSession> session, DevicePolicy policy)
    : shared_(std::make_shared<Shared>()) {
  shared_->session = std::move(session);
  shared_->policy = std::move(policy);
  shared_->tile_rows = device_tile_rows;
}

bool DeviceBackend::supports_dtype(Dtype inputs, Dtype output) const {
  return is_kernel_dtype(inputs) && is_kernel_dtype(output);
}

std::string_view DeviceBackend::unsupported_feature(const Attention& problem) const {
  if (problem.dropout > 0) return "dropout";
  // The kernels multiply by the inverse of the softcap.
  if (problem.softcap > 0 && (problem.softcap < 0x1p-100f || problem.softcap > 0x1p100f))
    return "a softcap outside [2^-100, 2^100]";
  return {};
}

Status DeviceBackend::choose_tiles(KernelKey& key) const {
  DeviceLimits limits;
  if (Status status = shared_->session->limits(limits); !status.ok()) return status;
  while (shared_->tile_rows > 1 && usize(shared_->tile_rows * device_lanes) > limits.largest_group)
    shared_->tile_rows = shared_->tile_rows / 2;
  key.target = limits.name;
  key.tile_rows = shared_->tile_rows;
  key.tile_keys = device_tile_keys;
  key.split_keys = 0;
  return {};
}

Status DeviceBackend::reopen() const {
  shared_->tile_rows = device_tile_rows;
  return shared_->session->reopen();
}

Status DeviceBackend::compile(const KernelKey& key,
                              std::shared_ptr<const CompiledAttention>& kernel) const {
  Status status = shared_->session->compile(
      attention_kernel(key.dtype, key.out_dtype, key.value_dim, key.tile_rows));
  if (status.ok()) kernel = std::make_shared<DeviceKernel>(shared_);
  return status;
}

bool device_product_supports(LowBit format) {
  return format == LowBit::mxfp4 || format == LowBit::nvfp4 || format == LowBit::fp4;
}

Status device_product(DeviceSession& session, const TensorView& a, const LowBitView& w,
                      const TensorView& c, const Execution& how) {
  if (Status status = validate_low_bit(w); !status.ok()) return status;
  if (!device_product_supports(w.format))
    return {StatusCode::unsupported,
            fmt::format("w is {}; products on a device take mxfp4, nvfp4 and fp4",
                        traits(w.format).name)};
  const Index m = a.shape[2];
  if (Status status = check_product({&a, nullptr, c, m}, w.k, w.n); !status.ok()) return status;
  if (m == 0) return {};
  try {
    DeviceLimits limits;
    if (Status status = session.limits(limits); !status.ok()) return status;
    const std::size_t a_bytes = contiguous_bytes(a.shape, bytes_of(a.dtype)),
                      c_bytes = contiguous_bytes(c.shape, bytes_of(c.dtype));
    const LowBitSizes sizes = sizes_of(w.format, w.k, w.n, w.group);
    for (auto [name, bytes] : {std::pair{"a", a_bytes},
                               {"codes", usize(sizes.codes)},
                               {"scales", usize(sizes.scales)},
                               {"c", c_bytes}})
      if (bytes > limits.largest_buffer)
        return exceeds_buffer(session.name(), name, bytes, limits.largest_buffer);
    ProductParameters told{m,
                           w.n,
                           w.k,
                           w.group,
                           static_cast<Index>(a.dtype),
                           static_cast<Index>(c.dtype),
                           static_cast<Index>(w.format),
                           how.threads,
                           how.target.bit(),
                           w.tensor_scale,
                           0};
    std::vector<std::byte> copy, staging(c_bytes);
    Job job;
    const char* scale = w.format == LowBit::mxfp4 ? "0" : w.format == LowBit::nvfp4 ? "1" : "2";
    job.source = {"product.cl",
                  product_source,
                  "low_bit_product",
                  {{"INPUT", dtype_constant(a.dtype)},
                   {"OUTPUT", dtype_constant(c.dtype)},
                   {"WORDS", w.format == LowBit::fp4 ? "1" : "0"},
                   {"SCALE", scale}}};
    job.inputs = {{"a", gather(a, copy)},
                  {"codes", {w.codes, usize(sizes.codes)}},
                  {"scales", {w.scales, usize(sizes.scales)}},
                  {"parameters", std::as_bytes(std::span(&told, 1))}};
    job.outputs = {{"c", staging}};
    constexpr std::size_t tile = 16;
    const auto whole_tiles = [](Index n) { return (usize(n) + tile - 1) / tile * tile; };
    job.grid = {{whole_tiles(w.n), whole_tiles(m), 1}, {tile, tile, 1}};
    if (Status status = session.run(job); !status.ok()) return status;
    scatter(staging, c);
    return {};
  } catch (const std::bad_alloc&) {
    return out_of_memory("copies of matrices for a device");
  }
}

}  // namespace assay::kernels
