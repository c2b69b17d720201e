#include "kernels/dispatch/single_head.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <exception>
#include <new>

namespace assay::kernels {
namespace {

constexpr const char* prefix = "Metal SDPA Backend Error: ";

struct Named {
  const char* name;
  const Array& array;
  Index extent(std::size_t k) const { return array.shape[k]; }
  std::string shape_of(std::size_t k) const {
    return fmt::format("{}.shape[{}] = {}", name, k, array.shape[k]);
  }
};

Status refuse(std::string_view sentence, const std::string& what,
              StatusCode code = StatusCode::invalid_arguments) {
  return {code, fmt::format("{}{} [{}]", prefix, sentence, what)};
}

std::string dtype_name(Dtype d) {
  return static_cast<int>(d) < count_of<Dtype> ? std::string(format(d).name)
                                               : fmt::format("dtype {}", static_cast<int>(d));
}

Status check(const Named& q, const Named& k, const Named& v, const Named& o,
             const SingleHeadOptions& options) {
  const std::size_t rank = q.array.shape.size();
  for (const Named* t : {&k, &v})
    if (t->array.shape.size() != rank)
      return refuse("Query, key, and value tensors must have the same number of dimensions",
                    fmt::format("query has {}, {} has {}", rank, t->name, t->array.shape.size()));
  if (rank != 2 && rank != 4)
    return refuse(
        "Unsupported tensor dimensions. Expected 2D (seq_len, head_dim) or 4D (batch, seq_len, "
        "num_heads, head_dim)",
        fmt::format("query has {} dimensions", rank));
  if (rank == 4)
    for (const Named* t : {&q, &k, &v})
      if (t->extent(2) > 1)
        return refuse(
            "Multi-head attention not yet supported by Metal Flash Attention (num_heads > 1)",
            t->shape_of(2), StatusCode::unsupported);
  if (!is_kernel_dtype(q.array.dtype))
    return refuse(
        "Unsupported dtype for Metal Flash Attention. Supported: float16, float32, bfloat16",
        "query is " + dtype_name(q.array.dtype), StatusCode::unsupported);
  const std::size_t length = rank == 2 ? 0 : 1, dim = rank - 1;
  for (const Named* t : {&q, &k, &v})
    if (t->extent(length) > single_head_max_length)
      return refuse("Sequence length too large (max 65535)", t->shape_of(length));
  for (const Named* t : {&q, &k, &v})
    if (t->extent(dim) > single_head_max_dim)
      return refuse("Head dimension too large (max 1024)", t->shape_of(dim));
  if (rank == 4)
    for (const Named* t : {&q, &k, &v})
      if (t->extent(0) > single_head_max_batch)
        return refuse("Batch size too large (max 1024)", t->shape_of(0));

  // The following checks are those that the older interface did not make.
  constexpr const char* invalid = "Invalid arguments";
  for (const Named* t : {&q, &k, &v, &o}) {
    if (t->array.shape.size() != rank)
      return refuse(invalid, fmt::format("{} has {} dimensions, not {}", t->name,
                                         t->array.shape.size(), rank));
    if (t->array.stride.size() != rank)
      return refuse(
          invalid, fmt::format("{} has {} strides, not {}", t->name, t->array.stride.size(), rank));
    for (std::size_t axis = 0; axis < rank; ++axis)
      if (t->extent(axis) < 1) return refuse(invalid, t->shape_of(axis) + ", below 1");
    if (!t->array.data) return refuse(invalid, fmt::format("{} is null", t->name));
  }
  for (const Named* t : {&k, &v})
    if (t->array.dtype != q.array.dtype)
      return refuse(invalid, fmt::format("{} is {}, query is {}", t->name,
                                         dtype_name(t->array.dtype), dtype_name(q.array.dtype)));
  if (!is_kernel_dtype(o.array.dtype))
    return refuse(invalid, fmt::format("{} is {}, not float16, float32 or bfloat16", o.name,
                                       dtype_name(o.array.dtype)));
  const auto must_equal = [&](const Named& t, const Named& as, std::size_t axis) -> Status {
    if (t.extent(axis) == as.extent(axis)) return {};
    return refuse(invalid, fmt::format("{}, but {}", t.shape_of(axis), as.shape_of(axis)));
  };
  for (std::size_t axis = 0; axis < rank; ++axis) {
    if (Status status = must_equal(o, q, axis); !status.ok()) return status;
    if (axis != length) {
      for (const Named* t : {&k, &v})
        if (Status status = must_equal(*t, q, axis); !status.ok()) return status;
    } else if (Status status = must_equal(v, k, axis); !status.ok()) {
      return status;
    }
  }
  if (options.scale && !std::isfinite(*options.scale))
    return refuse(invalid, fmt::format("scale = {} is not finite", *options.scale));
  return {};
}

// Views [B, S, H, D] as [B, H, S, D].
TensorView view_of(const Array& a) {
  const std::size_t rank = a.shape.size();
  if (rank == 2)
    return {a.data,
            a.dtype,
            {1, 1, a.shape[0], a.shape[1]},
            {0, 0, a.stride[0], a.stride[1]},
            a.origin};
  return {a.data,
          a.dtype,
          {a.shape[0], a.shape[2], a.shape[1], a.shape[3]},
          {a.stride[0], a.stride[2], a.stride[1], a.stride[3]},
          a.origin};
}

// Chooses the sentence for a failure behind the dispatcher. The status and its details follow the
// sentence.
Status explain(const Status& status) {
  const auto begins = [&](std::string_view text) { return status.origin.starts_with(text); };
  std::string sentence = forward_failure_message(static_cast<int>(status.code));
  if (begins("open") || begins("query"))
    sentence = status.code == StatusCode::device_not_supported
                   ? "Metal is not available on this device"
                   : "Failed to create Metal Flash Attention context";
  for (std::string_view buffer : {"query", "key", "value", "output"})
    if (status.origin == fmt::format("allocate {}", buffer))
      sentence = fmt::format("Failed to create {} buffer", buffer);
  return {status.code,
          fmt::format("{}{} [{}, {}: {}]", prefix, sentence, static_cast<int>(status.code),
                      message_of(status.code), status.detail),
          status.origin};
}

}  // namespace

std::string forward_failure_message(int code) {
  std::string_view why;
  switch (code) {
    case 1: why = "Invalid arguments - check tensor shapes and parameters"; break;
    case 2: why = "Memory allocation failed"; break;
    case 3: why = "Metal device not supported"; break;
    case 4: why = "Metal kernel compilation failed"; break;
    case 5: why = "Kernel execution failed"; break;
    default: why = "Unknown error";
  }
  return fmt::format("Metal Flash Attention forward pass failed with code {} ({})", code, why);
}

Status single_head_attention(Dispatcher& dispatcher, const Array& q, const Array& k, const Array& v,
                             const Array& o, const SingleHeadOptions& options) {
  Status status;
  try {
    status = check({"query", q}, {"key", k}, {"value", v}, {"output", o}, options);
    if (!status.ok()) return status;
    Attention p;
    p.q = view_of(q);
    p.k = view_of(k);
    p.v = view_of(v);
    p.shape = {p.q.shape[0], 1, 1, p.q.shape[2], p.k.shape[2], p.q.shape[3], p.v.shape[3]};
    p.scale = options.scale ? *options.scale : default_scale(p.shape.dim);
    p.causal = options.causal;
    status =
        dispatcher.sdpa(p, {view_of(o), {}}, {Implementation::automatic, "host", options.threads});
    return status.ok() ? status : explain(status);
  } catch (const std::bad_alloc&) {  // at most a text failed to allocate; the status code stays
    if (status.ok()) status.code = StatusCode::memory_allocation_failed;
  } catch (const std::exception& e) {
    return {StatusCode::execution_failed, std::string(prefix) + e.what()};
  } catch (...) {
    return {StatusCode::unknown, "Metal SDPA Backend: Unknown error occurred"};
  }
  return status;
}

}  // namespace assay::kernels
