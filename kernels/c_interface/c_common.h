// Inside kernels/: what the functions of the C interface share. No exception passes guarded().
#pragma once

#include <assay/assay.h>

#include <cstdint>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "kernels/c_interface/c_context.h"
#include "problem/low_bit.h"

namespace assay::kernels {

// The exception that ends a function of the C interface with a status.
struct Refused {
  Status status;
};
[[noreturn]] void refuse(std::string detail, StatusCode code = StatusCode::invalid_arguments);

// Sets the last error of the thread and returns the code.
assay_status conclude(StatusCode code, std::string_view detail) noexcept;

// Runs the body of a function of the C interface. An exception of the body becomes a status.
template <class Body>
assay_status guarded(const Body& body) noexcept {
  try {
    const Status status = body();
    return conclude(status.code, status.detail);
  } catch (const Refused& r) {
    return conclude(r.status.code, r.status.detail);
  } catch (const std::bad_alloc&) {
    return conclude(StatusCode::memory_allocation_failed, "");
  } catch (const std::exception& e) {
    return conclude(StatusCode::execution_failed, e.what());
  } catch (...) {
    return conclude(StatusCode::unknown, "something was thrown that is no std::exception");
  }
}

// Reads the caller's struct. Fields that an older, shorter struct lacks keep their defaults. Fields
// come in groups of 8 bytes.
template <class Struct>
Struct read_struct(const Struct* given, const char* name, Struct defaults) {
  if (!given) refuse(std::string(name) + " is null");
  if (given->version < 1 || given->version > ASSAY_VERSION)
    refuse(std::string(name) + ".version = " + std::to_string(given->version) +
           " is not between 1 and " + std::to_string(ASSAY_VERSION));
  if (given->struct_size < 8 || given->struct_size > sizeof(Struct) || given->struct_size % 8 != 0)
    refuse(std::string(name) + ".struct_size = " + std::to_string(given->struct_size) +
           " is not a multiple of 8 from 8 to " + std::to_string(sizeof(Struct)) +
           ", the size that this library knows");
  std::memcpy(&defaults, given, given->struct_size);
  return defaults;
}

// Objects behind handles. A handle is a number that is no address and is never given out again. So
// a stale or foreign handle is found out, and is never followed.
template <class Object, class Handle>
class Handles {
 public:
  // The name of this kind of handle, and the status for a number that is no such handle.
  explicit Handles(std::string name, StatusCode wrong = StatusCode::invalid_arguments)
      : name_(std::move(name)), wrong_(wrong) {}

  Handle add(std::shared_ptr<Object> object) {
    static_assert(sizeof(Handle) == 8, "handles need 64 bits");
    static std::atomic<std::uintptr_t> next{1};
    const std::uintptr_t id = tag | next++;
    const std::lock_guard lock(mutex_);
    objects_.emplace(id, std::move(object));
    return reinterpret_cast<Handle>(id);
  }
  // Throws for a handle that is null or belongs to no object.
  std::shared_ptr<Object> get(Handle handle) const {
    if (!handle) refuse(name_ + " is null", wrong_);
    const std::shared_lock lock(mutex_);
    const auto found = objects_.find(reinterpret_cast<std::uintptr_t>(handle));
    if (found == objects_.end()) refuse(name_ + " is no " + name_ + ", or was destroyed", wrong_);
    return found->second;
  }
  // Removes a handle. The object lives until every caller that has found it is done with it.
  Status destroy(Handle handle) {
    // This may be the last owner. It ends after the lock is released, because closing a device
    // takes time.
    const std::shared_ptr<Object> last = get(handle);
    const std::lock_guard lock(mutex_);
    objects_.erase(reinterpret_cast<std::uintptr_t>(handle));
    return {};
  }

 private:
  // The tag differs from type to type, and no address of this machine has such upper bits.
  static constexpr std::uintptr_t tag =
      (std::uintptr_t{0xA55A} << 48) ^ (std::uintptr_t{sizeof(Object)} << 40);
  const std::string name_;
  const StatusCode wrong_;
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::uintptr_t, std::shared_ptr<Object>> objects_;
};

Dtype dtype_of(const assay_dtype& given, const char* name);
// Reads the caller's tensor. Its rank is not checked.
assay_tensor tensor_of(const assay_tensor* given, const char* name);
// Returns a view with the tensor's own shape; the view is absent if `given` is null.
TensorView view_of(const assay_tensor* given, const char* name);
// Refuses a view that is present and has another shape.
void expect_shape(const TensorView& t, const char* name, const Extents& shape);

// Reads the number of a format, and a matrix in a format.
LowBit low_bit_format(std::int32_t format, const char* name);
LowBitView low_bit_view(const assay_low_bit* given, const char* name);

// Reads the problem. If `with_keys` is false, K and V are in a cache, and shape.kv_heads, keys and
// value_dim stay 0. Lists with one entry for each batch element have `lists` entries, or B if
// `lists` is negative.
Attention problem_of(const assay_attention* given, bool with_keys = true, Index lists = -1);
AttentionOutput output_of(const Attention& problem, const assay_tensor* o, const assay_tensor* lse);

}  // namespace assay::kernels
