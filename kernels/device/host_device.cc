#include "kernels/device/host_device.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "kernels/attention/attention.h"
#include "kernels/device/kernel_parameters.h"
#include "kernels/product/product.h"
#include "kernels/simd/targets.h"

namespace assay::kernels {
namespace {

using Arguments = std::span<std::span<std::byte>>;

template <class T>
const T* data_of(std::span<std::byte> bytes) {
  return bytes.empty() ? nullptr : reinterpret_cast<const T*>(bytes.data());
}

template <class T>
std::vector<T> list_of(std::span<std::byte> bytes) {
  return {data_of<T>(bytes), data_of<T>(bytes) + bytes.size() / sizeof(T)};
}

TensorView contiguous(std::span<std::byte> bytes, Dtype dtype, const Extents& e) {
  return {bytes.empty() ? nullptr : bytes.data(),
          dtype,
          e,
          {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1},
          0};
}

Execution execution_of(const auto& told) {
  return {static_cast<int>(told.threads), Target::of_bit(told.simd_target)};
}

Status run_attention(Arguments a) {
  const auto& p = *data_of<AttentionParameters>(a[parameters]);
  Attention problem;
  AttentionShape& s = problem.shape;
  s = {p.batch, p.query_heads, p.kv_heads, p.rows, p.keys, p.dim, p.value_dim};
  const auto input = static_cast<Dtype>(p.input_dtype);
  problem.q = contiguous(a[query], input, s.q_extents());
  problem.k = contiguous(a[key], input, s.k_extents());
  problem.v = contiguous(a[value], input, s.v_extents());
  problem.scale = p.scale;
  problem.softcap = p.softcap;
  problem.causal = p.causal != 0;
  problem.window_left = p.window_left;
  problem.window_right = p.window_right;
  problem.finite_min_masks = p.finite_min_masks != 0;
  if (!a[bias].empty())
    problem.bias = {a[bias].data(),
                    static_cast<Dtype>(p.bias_dtype),
                    s.pair_extents(),
                    {p.bias_batch, p.bias_head, p.bias_row, p.bias_key},
                    0};
  if (!a[keep].empty())
    problem.keep = {data_of<std::uint8_t>(a[keep]),
                    {p.keep_batch, p.keep_head, p.keep_row, p.keep_key}};
  const auto* of_batch = data_of<std::int64_t>(a[limits]);
  for (Index b = 0; b < s.batch; ++b) {
    problem.offset.push_back(of_batch[3 * b]);
    problem.key_starts.push_back(of_batch[3 * b + 1]);
    problem.key_lengths.push_back(of_batch[3 * b + 2]);
  }
  problem.alibi_slopes = list_of<float>(a[slopes]);
  problem.sink = list_of<float>(a[sinks]);
  problem.query_segment = list_of<std::int32_t>(a[query_segment]);
  problem.key_segment = list_of<std::int32_t>(a[key_segment]);
  AttentionOutput out{contiguous(a[output], static_cast<Dtype>(p.output_dtype), s.o_extents()),
                      contiguous(a[lse], Dtype::f32, s.lse_extents())};
  return attention_forward(problem, out, execution_of(p));
}

Status run_product(Arguments a) {
  const auto& p = *data_of<ProductParameters>(a[product_parameters]);
  const LowBitView w{
      static_cast<LowBit>(p.format), p.depth, p.columns,     p.group, a[product_codes].data(),
      a[product_scales].data(),      nullptr, p.tensor_scale};
  std::shared_ptr<const PackedWeights> packed;
  if (Status status = PackedWeights::pack(w, packed); !status.ok()) return status;
  return product(
      contiguous(a[product_a], static_cast<Dtype>(p.input_dtype), {1, 1, p.rows, p.depth}), *packed,
      contiguous(a[product_c], static_cast<Dtype>(p.output_dtype), {1, 1, p.rows, p.columns}),
      execution_of(p));
}

struct Entry {
  std::string_view name;
  std::size_t arguments;
  Status (*run)(Arguments);
};
constexpr Entry entries[] = {{"attention_forward", attention_arguments, run_attention},
                             {"low_bit_product", product_arguments, run_product}};

// Elsewhere a code of the device becomes a status. Here it is the other way round: the kernel was
// called directly, and its status becomes a code of this device.
NativeCode code_of(StatusCode status) {
  switch (status) {
    case StatusCode::success: return 0;
    case StatusCode::invalid_arguments: return EINVAL;
    case StatusCode::memory_allocation_failed: return ENOMEM;
    case StatusCode::unsupported: return ENOTSUP;
    default: return EIO;
  }
}

}  // namespace

NativeCode HostDevice::refuse(NativeCode code, std::string why) {
  detail_ = std::move(why);
  return code;
}

HostDevice::Memory* HostDevice::find(BufferHandle buffer) {
  const auto found = buffers_.find(buffer);
  return found == buffers_.end() ? nullptr : &found->second;
}

NativeCode HostDevice::open() {
  open_ = true;
  return 0;
}

NativeCode HostDevice::close() {
  if (!open_) return refuse(EINVAL, "it is not open");
  open_ = false;
  buffers_.clear();
  kernels_.clear();
  return 0;
}

NativeCode HostDevice::query(DeviceLimits& to) {
  to.name = "host, " + Target().name();
  to.memory = to.largest_buffer = usize(sysconf(_SC_PHYS_PAGES)) * usize(sysconf(_SC_PAGESIZE));
  // the kernels choose their tiles themselves
  to.local_memory = to.largest_group = usize(-1);
  to.has_subnormals = true;
  return 0;
}

NativeCode HostDevice::allocate(std::size_t bytes, BufferHandle& buffer) {
  try {
    const BufferHandle handle{next_};
    buffers_.emplace(handle, Memory(bytes));
    ++next_;
    buffer = handle;
    return 0;
    // std::bad_alloc, or std::length_error if no memory is so large
  } catch (const std::exception&) {
    return refuse(ENOMEM, fmt::format("{} bytes", bytes));
  }
}

NativeCode HostDevice::free(BufferHandle buffer) {
  return buffers_.erase(buffer) == 1 ? 0 : refuse(EINVAL, "no such buffer");
}

NativeCode HostDevice::upload(BufferHandle to, std::span<const std::byte> from) {
  Memory* memory = find(to);
  if (!memory || from.size() > memory->size())
    return refuse(EINVAL, "no such buffer, or a smaller one");
  std::memcpy(memory->data(), from.data(), from.size());
  return 0;
}

NativeCode HostDevice::download(std::span<std::byte> to, BufferHandle from) {
  const Memory* memory = find(from);
  if (!memory || to.size() > memory->size())
    return refuse(EINVAL, "no such buffer, or a smaller one");
  std::memcpy(to.data(), memory->data(), to.size());
  return 0;
}

NativeCode HostDevice::compile(const KernelSource& source, KernelHandle& kernel) {
  for (std::size_t e = 0; e < std::size(entries); ++e)
    if (entries[e].name == source.entry) {
      const KernelHandle handle{next_};
      kernels_.emplace(handle, e);
      ++next_;
      kernel = handle;
      return 0;
    }
  return refuse(ENOENT, fmt::format("there is no kernel '{}'", source.entry));
}

NativeCode HostDevice::release(KernelHandle kernel) {
  return kernels_.erase(kernel) == 1 ? 0 : refuse(EINVAL, "no such kernel");
}

NativeCode HostDevice::launch(KernelHandle kernel, const Grid&,
                              std::span<const BufferHandle> arguments) {
  const auto found = kernels_.find(kernel);
  if (found == kernels_.end()) return refuse(EINVAL, "no such kernel");
  const Entry& entry = entries[found->second];
  if (arguments.size() != entry.arguments)
    return refuse(EINVAL, fmt::format("{} arguments for {}, which takes {}", arguments.size(),
                                      entry.name, entry.arguments));
  std::vector<std::span<std::byte>> memory;
  for (BufferHandle handle : arguments) {
    Memory* of = handle == BufferHandle::none ? nullptr : find(handle);
    if (handle != BufferHandle::none && !of) return refuse(EINVAL, "no such buffer");
    memory.push_back(of ? std::span(*of) : std::span<std::byte>());
  }
  const Status status = entry.run(memory);
  return status.ok() ? 0 : refuse(code_of(status.code), status.detail);
}

NativeCode HostDevice::synchronize() { return 0; }

}  // namespace assay::kernels
