#include "judge/tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace assay::judging {
namespace {

struct DtypeName {
  std::uint8_t code, bits;
  const char *name, *stored;
};
constexpr DtypeName dtype_names[] = {
    {ASSAY_FLOAT, 64, "f64", "F64"},
    {ASSAY_FLOAT, 32, "f32", "F32"},
    {ASSAY_FLOAT, 16, "f16", "F16"},
    {ASSAY_BFLOAT, 16, "bf16", "BF16"},
    {ASSAY_FLOAT8_E4M3FN, 8, "f8e4m3", "F8_E4M3"},
    {ASSAY_FLOAT8_E5M2, 8, "f8e5m2", "F8_E5M2"},
    {ASSAY_FLOAT8_E8M0FNU, 8, "e8m0", "F8_E8M0"},
    {ASSAY_BOOL, 8, "bool", "BOOL"},
    {ASSAY_UINT, 8, "u8", "U8"},
    {ASSAY_INT, 8, "i8", "I8"},
    {ASSAY_INT, 32, "i32", "I32"},
    {ASSAY_INT, 64, "i64", "I64"},
};

const DtypeName* dtype_named(const assay_dtype& d) {
  for (const DtypeName& row : dtype_names)
    if (row.code == d.code && row.bits == d.bits && d.lanes == 1) return &row;
  return nullptr;
}

constexpr Index largest = Index{1} << 40;  // of an extent, a stride or an offset

void check(const std::string& name, const assay_tensor& t) {
  const std::string what = "tensor " + name;
  check_struct(t, what.c_str());
  if (!dtype_named(t.dtype))
    throw Refused(
        fmt::format("{} has a dtype of code {}, {} bits and {} lanes, which no tensor of "
                    "a case or record has",
                    what, t.dtype.code, t.dtype.bits, t.dtype.lanes));
  if (t.device_type != ASSAY_CPU)
    throw Refused(
        fmt::format("{} lies on a device of type {}; the judge reads memory of the "
                    "processor ({})",
                    what, t.device_type, +ASSAY_CPU));
  if (t.rank < 1 || t.rank > 4)
    throw Refused(fmt::format("{} has rank {}, not 1 to 4", what, t.rank));
  Index elements = 1;
  bool overflow = false;
  for (int axis = 0; axis < t.rank; ++axis) {
    if (t.shape[axis] < 0 || t.shape[axis] > largest)
      throw Refused(fmt::format("{} has an extent of {}, outside [0, 2^40]", what, t.shape[axis]));
    if (t.strides[axis] < -largest || t.strides[axis] > largest)
      throw Refused(
          fmt::format("{} has a stride of {}, outside [-2^40, 2^40]", what, t.strides[axis]));
    overflow = __builtin_mul_overflow(elements, t.shape[axis], &elements) || overflow;
  }
  if (overflow || elements > largest)
    throw Refused(fmt::format("{} has more than 2^40 elements", what));
  if (t.offset < -largest || t.offset > largest)
    throw Refused(fmt::format("{} has an offset of {}, outside [-2^40, 2^40]", what, t.offset));
  if (elements > 0 && !t.data) throw Refused(what + " has elements and no data");
}

// Calls visit(bytes of a row, number of elements, stride in elements) for every row of the last
// axis.
template <class Visit>
void for_each_row(const assay_tensor& t, const Visit& visit) {
  std::array<Index, 4> e{1, 1, 1, 1}, s{};
  for (int axis = 0; axis < t.rank; ++axis) {
    e[usize(axis + 4 - t.rank)] = t.shape[axis];
    s[usize(axis + 4 - t.rank)] = t.strides[axis];
  }
  const Index width = width_of(t);
  if (e[3] == 0) return;
  for (Index a = 0; a < e[0]; ++a)
    for (Index b = 0; b < e[1]; ++b)
      for (Index c = 0; c < e[2]; ++c)
        visit(static_cast<std::byte*>(t.data) + (t.offset + a * s[0] + b * s[1] + c * s[2]) * width,
              e[3], s[3]);
}

bool is_contiguous(const assay_tensor& t) {
  Index step = 1;
  for (int axis = t.rank; axis-- > 0;) {
    if (t.shape[axis] != 1 && t.strides[axis] != step) return false;
    step *= t.shape[axis];
  }
  return true;
}

Index elements_of(const assay_tensor& t) {
  Index elements = 1;
  for (int axis = 0; axis < t.rank; ++axis) elements *= t.shape[axis];
  return elements;
}

}  // namespace

Index width_of(const assay_tensor& t) { return t.dtype.bits / 8; }

std::vector<Index> shape_of(const assay_tensor& t) { return {t.shape, t.shape + t.rank}; }

std::string described(const assay_tensor& t) {
  const DtypeName* dtype = dtype_named(t.dtype);
  return fmt::format("{} [{}]", dtype ? dtype->name : "?", fmt::join(shape_of(t), ", "));
}

std::vector<NamedTensor> named_tensors(const assay_named_tensor* tensors, std::int64_t count) {
  if (count < 0 || count > 1000) throw Refused(fmt::format("count is {}, not 0 to 1000", count));
  std::vector<NamedTensor> found;
  for (std::int64_t k = 0; k < count; ++k) {
    needed(tensors, "tensors");
    const std::string name = needed(tensors[k].name, "the name of a tensor");
    if (name.empty() || name.size() > 100)
      throw Refused(
          fmt::format("the name of tensor {} has {} characters, not 1 to 100", k, name.size()));
    check(shown(name), tensors[k].tensor);
    if (std::ranges::find(found, name, &NamedTensor::name) != found.end())
      throw Refused(fmt::format("tensor {} stands twice", shown(name)));
    found.push_back({name, tensors[k].tensor});
  }
  return found;
}

std::vector<std::byte> contiguous_bytes(const assay_tensor& t) {
  const auto width = usize(width_of(t));
  std::vector<std::byte> bytes(usize(elements_of(t)) * width);
  std::byte* to = bytes.data();
  for_each_row(t, [&](const std::byte* row, Index n, Index stride) {
    for (Index k = 0; k < n; ++k, to += width)
      std::memcpy(to, row + k * stride * static_cast<Index>(width), width);
  });
  return bytes;
}

void copy_elements(const assay_tensor& from, const assay_tensor& to) {
  const std::vector<std::byte> bytes = contiguous_bytes(from);
  const auto width = usize(width_of(to));
  const std::byte* next = bytes.data();
  for_each_row(to, [&](std::byte* row, Index n, Index stride) {
    for (Index k = 0; k < n; ++k, next += width)
      std::memcpy(row + k * stride * static_cast<Index>(width), next, width);
  });
}

Safetensors stored(const std::vector<NamedTensor>& tensors,
                   std::deque<std::vector<std::byte>>& copies) {
  Safetensors contents;
  for (const auto& [name, t] : tensors) {
    StoredTensor& s = contents.tensors[name];
    s.dtype = dtype_named(t.dtype)->stored;
    s.shape = shape_of(t);
    const auto size = usize(elements_of(t) * width_of(t));
    if (is_contiguous(t) && t.data) {
      s.bytes = {static_cast<const std::byte*>(t.data) + t.offset * width_of(t), size};
    } else {
      copies.push_back(contiguous_bytes(t));
      s.bytes = copies.back();
    }
  }
  return contents;
}

}  // namespace assay::judging
