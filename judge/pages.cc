#include "judge/pages.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <sstream>

namespace assay::judging {
namespace {

const assay_tensor* find(const std::vector<NamedTensor>& tensors, const char* name) {
  const auto at = std::ranges::find(tensors, name, &NamedTensor::name);
  return at == tensors.end() ? nullptr : &at->tensor;
}

const assay_tensor& need(const std::vector<NamedTensor>& tensors, const char* name, int rank) {
  const assay_tensor* t = find(tensors, name);
  if (!t) throw Refused(fmt::format("tensor {} is missing; decode needs it", name));
  if (t->rank != rank)
    throw Refused(
        fmt::format("tensor {} is {}; decode wants {} extents", name, described(*t), rank));
  return *t;
}

std::vector<Index> integers(const char* name, const assay_tensor& t) {
  if (t.dtype.code != ASSAY_INT || (t.dtype.bits != 32 && t.dtype.bits != 64))
    throw Refused(fmt::format("tensor {} is {}, not i32 or i64", name, described(t)));
  const std::vector<std::byte> bytes = contiguous_bytes(t);
  const auto width = usize(width_of(t));
  std::vector<Index> list;
  for (std::size_t at = 0; at < bytes.size(); at += width) {
    std::int32_t narrow = 0;
    std::int64_t value = 0;
    if (width == 4) std::memcpy(&narrow, bytes.data() + at, 4), value = narrow;
    else std::memcpy(&value, bytes.data() + at, 8);
    list.push_back(value);
  }
  return list;
}

bool says(const std::string& line, const std::string& field) {
  std::istringstream words(line);
  for (std::string word; words >> word;)
    if (word.substr(0, word.find('=')) == field) return true;
  return false;
}

// What is asked of the pages: sequences, their tokens and where they lie.
struct Table {
  Index batch = 0, each = 0, keys = 0;
  std::vector<Index> pages, lengths, starts;
  bool positions_first = false;  // pages are [pages, size, Hkv, columns]
};

// Gathers [B, Hkv, Lk, columns], or [B, Lk, Hkv, columns] where positions come first.
NamedTensor gather(const char* name, const char* paged, const std::vector<NamedTensor>& tensors,
                   const Table& table, std::deque<std::vector<std::byte>>& storage) {
  const assay_tensor& t = need(tensors, paged, 4);
  const int head_axis = table.positions_first ? 2 : 1, slot_axis = 3 - head_axis;
  const Index heads = t.shape[head_axis], size = t.shape[slot_axis], columns = t.shape[3],
              width = width_of(t);
  if (size < 1)
    throw Refused(fmt::format("tensor {} is {}: a page without slots", paged, described(t)));
  if (table.keys > table.each * size)
    throw Refused(fmt::format("lengths reach {}, and {} pages of {} slots hold {} tokens",
                              table.keys, table.each, size, table.each * size));
  std::vector<std::byte>& bytes =
      storage.emplace_back(usize(table.batch * heads * table.keys * columns * width));
  assay_tensor made;
  assay_tensor_init(&made, bytes.data(), t.dtype.code, t.dtype.bits, table.batch,
                    table.positions_first ? table.keys : heads,
                    table.positions_first ? heads : table.keys, columns);
  const auto* from = static_cast<const std::byte*>(t.data);
  for (Index b = 0; b < table.batch; ++b)
    for (Index j = table.starts[usize(b)]; j < table.lengths[usize(b)]; ++j) {
      const Index page = table.pages[usize(b * table.each + j / size)];
      if (page < 0 || page >= t.shape[0])
        throw Refused(fmt::format(
            "block_table[{}, {}] is {}, and token {} of the sequence lies there; {} has {} pages",
            b, j / size, page, j, paged, t.shape[0]));
      for (Index g = 0; g < heads; ++g) {
        const std::byte* row = from + (t.offset + page * t.strides[0] + g * t.strides[head_axis] +
                                       j % size * t.strides[slot_axis]) *
                                          width;
        std::byte* to = bytes.data() + (b * made.strides[0] + g * made.strides[head_axis] +
                                        j * made.strides[slot_axis]) *
                                           width;
        for (Index d = 0; d < columns; ++d)
          std::memcpy(to + d * width, row + d * t.strides[3] * width, usize(width));
      }
    }
  return {name, made};
}

Table table_of(const std::string& line, const std::vector<NamedTensor>& tensors) {
  const assay_tensor& blocks = need(tensors, "block_table", 2);
  Table table;
  table.batch = blocks.shape[0];
  table.each = blocks.shape[1];
  table.pages = integers("block_table", blocks);
  table.lengths = integers("lengths", need(tensors, "lengths", 1));
  table.starts.assign(usize(table.batch), 0);
  if (const assay_tensor* starts = find(tensors, "starts"))
    table.starts = integers("starts", *starts);
  for (const auto& [name, list] : {std::pair{"lengths", &table.lengths}, {"starts", &table.starts}})
    if (std::ssize(*list) != table.batch)
      throw Refused(fmt::format("tensor {} has {} entries, and block_table has {} sequences", name,
                                list->size(), table.batch));
  for (Index b = 0; b < table.batch; ++b) {
    const Index length = table.lengths[usize(b)], start = table.starts[usize(b)];
    if (length < 0 || start < 0 || length > Index{1} << 31)
      throw Refused(fmt::format("sequence {} has {} tokens from {} on", b, length, start));
    table.keys = std::max(table.keys, length);
  }
  std::istringstream words(line);
  for (std::string word; words >> word;) table.positions_first |= word == "layout=bshd";
  return table;
}

}  // namespace

void gather_pages(std::string& line, std::vector<NamedTensor>& tensors,
                  std::deque<std::vector<std::byte>>& storage) {
  const Table table = table_of(line, tensors);
  const assay_tensor& q = need(tensors, "q", 4);
  if (q.shape[0] != table.batch)
    throw Refused(
        fmt::format("tensor q is {}, and block_table has {} sequences", described(q), table.batch));
  const Index rows = q.shape[table.positions_first ? 1 : 2];
  std::vector<NamedTensor> made = {gather("k", "k_pages", tensors, table, storage),
                                   gather("v", "v_pages", tensors, table, storage)};
  if (!says(line, "offset") && !find(tensors, "offset")) {
    std::vector<std::byte>& bytes = storage.emplace_back(usize(table.batch) * sizeof(Index));
    for (Index b = 0; b < table.batch; ++b) {
      const Index offset = table.lengths[usize(b)] - rows;
      std::memcpy(bytes.data() + usize(b) * sizeof offset, &offset, sizeof offset);
    }
    assay_tensor offsets;
    assay_tensor_init(&offsets, bytes.data(), ASSAY_INT, 64, table.batch, 1, 1, 1);
    offsets.rank = 1;
    offsets.strides[0] = 1;
    made.push_back({"offset", offsets});
  }
  std::erase_if(tensors, [](const NamedTensor& t) {
    return t.name == "k_pages" || t.name == "v_pages" || t.name == "block_table";
  });
  tensors.insert(tensors.end(), made.begin(), made.end());
  line.replace(line.find("decode"), 6, "attention");
}

}  // namespace assay::judging
