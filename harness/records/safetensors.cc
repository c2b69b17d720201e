#include "harness/records/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "harness/files.h"
#include "harness/results/schema.h"

namespace assay {
namespace {

using Json = nlohmann::json;

// The limit of the format's own reader.
constexpr std::size_t largest_header = std::size_t{100} << 20;
constexpr std::pair<const char*, int> widths[] = {
    {"BOOL", 8}, {"U8", 8},   {"I8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
    {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},    {"U32", 32},
    {"F32", 32}, {"I64", 64}, {"U64", 64}, {"F64", 64}};

int bits_of(const std::string& dtype) {
  for (const auto& [name, bits] : widths)
    if (dtype == name) return bits;
  return 0;
}

std::size_t offset_of(const Json& j, const std::string& name, const char* what) {
  if (!j.is_number_unsigned())
    throw FileError(fmt::format("tensor {}: {} is no whole number of bytes", shown(name), what));
  return j.get<std::size_t>();
}

// Builds the header, with one look-up for each name. (The library's own parser with a callback goes
// through all names before, for each name.)
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  Json header;

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t& value) override { return put(std::move(value)); }
  bool key(string_t& name) override {
    const auto [at, fresh] = open_.back()->get_ref<Json::object_t&>().emplace(name, nullptr);
    if (!fresh) throw FileError(fmt::format("the header names {} twice", shown(name)));
    member_ = &at->second;
    return true;
  }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&, const Json::exception& e) override {
    throw FileError(fmt::format("the header is no JSON: {}", shown(e.what())));
  }

 private:
  // Puts a value where the text has come to: into the member that was named last, or at the end of
  // the array.
  Json& place(Json value) {
    if (open_.empty()) return header = std::move(value);
    if (open_.back()->is_array()) return open_.back()->emplace_back(std::move(value));
    return *member_ = std::move(value);
  }
  bool put(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json container) {
    constexpr std::size_t deepest = 3;  // the extents, in a tensor, in the header
    if (open_.size() == deepest) throw FileError("the header nests deeper than tensors do");
    open_.push_back(&place(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::vector<Json*> open_;  // the objects and arrays that are not complete
  Json* member_ = nullptr;
};

Json parse_header(const char* begin, const char* end) {
  if (std::find(begin, end, '\0') != end) throw FileError("the header holds a NUL");
  HeaderReader reader;
  Json::sax_parse(begin, end, &reader);
  if (!reader.header.is_object()) throw FileError("the header is no JSON object");
  return std::move(reader.header);
}

StoredTensor parse_tensor(const std::string& name, const Json& j, std::span<const std::byte> data) {
  const auto field = [&](const char* key) -> const Json& {
    if (!j.is_object() || !j.contains(key))
      throw FileError(fmt::format("tensor {}: {} is missing", shown(name), key));
    return j[key];
  };
  StoredTensor t;
  if (!field("dtype").is_string())
    throw FileError(fmt::format("tensor {}: dtype is no text", shown(name)));
  t.dtype = j["dtype"].get<std::string>();
  const int bits = bits_of(t.dtype);
  if (bits == 0)
    throw FileError(fmt::format("tensor {}: dtype {} is not known", shown(name), shown(t.dtype)));
  if (!field("shape").is_array() || j["shape"].size() > 8)
    throw FileError(fmt::format("tensor {}: shape is no list of at most 8 extents", shown(name)));
  Index elements = 1;
  bool overflow = false;
  for (const Json& n : j["shape"]) {
    if (!n.is_number_unsigned() || n.get<std::uint64_t>() > INT64_MAX)
      throw FileError(fmt::format("tensor {}: an extent is no whole number", shown(name)));
    t.shape.push_back(n.get<Index>());
    overflow =
        __builtin_mul_overflow(elements, std::max<Index>(t.shape.back(), 1), &elements) || overflow;
  }
  if (overflow || elements > INT64_MAX / 64)
    throw FileError(
        fmt::format("tensor {}: its extents do not multiply within 64 bits", shown(name)));
  if (std::ranges::count(t.shape, 0) > 0) elements = 0;
  const Json& offsets = field("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2)
    throw FileError(fmt::format("tensor {}: data_offsets is no pair", shown(name)));
  const std::size_t begin = offset_of(offsets[0], name, "its begin"),
                    end = offset_of(offsets[1], name, "its end");
  if (begin > end || end > data.size())
    throw FileError(fmt::format(
        "tensor {}: bytes [{}, {}) are not within the {} that the file has{}", shown(name), begin,
        end, data.size(), end > data.size() ? "; is it truncated?" : ""));
  const auto wanted = usize(elements * bits / 8);
  if (end - begin != wanted)
    throw FileError(fmt::format("tensor {}: {} [{}] takes {} bytes, its data_offsets hold {}",
                                shown(name), t.dtype, fmt::join(t.shape, ", "), wanted,
                                end - begin));
  t.bytes = data.subspan(begin, wanted);
  return t;
}

}  // namespace

std::string shown(const std::string& text) {
  std::string found;
  for (const char c : text.substr(0, 200))
    found += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c;
  return found + (text.size() > 200 ? "..." : "");
}

Safetensors parse_safetensors(std::span<const std::byte> file) {
  if (file.size() < 8)
    throw FileError(fmt::format("{} bytes are too few for a safetensors file", file.size()));
  std::uint64_t length = 0;
  for (std::size_t k = 8; k-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(file[k]);
  if (length > largest_header)
    throw FileError(
        fmt::format("a header of {} bytes is above the limit of {}: no safetensors file", length,
                    largest_header));
  if (length > file.size() - 8)
    throw FileError(
        fmt::format("the header has {} bytes, the file {}: is it truncated?", length, file.size()));
  const auto* text = reinterpret_cast<const char*>(file.data()) + 8;
  if (length == 0 || text[0] != '{')
    throw FileError("the header does not begin with {: no safetensors file");
  const Json header = parse_header(text, text + length);
  const std::span<const std::byte> data = file.subspan(8 + usize(length));
  Safetensors found;
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") {
      found.tensors[name] = parse_tensor(name, value, data);
      continue;
    }
    if (!value.is_object()) throw FileError("__metadata__ is no object");
    for (const auto& [key, entry] : value.items()) {
      if (!entry.is_string())
        throw FileError(fmt::format("__metadata__: {} is no text; its values must be", shown(key)));
      found.metadata[key] = entry.get<std::string>();
    }
  }
  std::vector<std::pair<const std::byte*, const std::string*>> order;
  for (const auto& [name, t] : found.tensors)
    if (!t.bytes.empty()) order.emplace_back(t.bytes.data(), &name);
  std::ranges::sort(order);
  const std::byte* expected = data.data();
  const std::string* before = nullptr;
  for (const auto& [begin, name] : order) {
    if (begin < expected)
      throw FileError(fmt::format("tensors {} and {} overlap", shown(*before), shown(*name)));
    if (begin > expected)
      throw FileError(fmt::format("{} bytes before tensor {} belong to no tensor", begin - expected,
                                  shown(*name)));
    expected = begin + found.tensors[*name].bytes.size();
    before = name;
  }
  if (expected != data.data() + data.size())
    throw FileError(
        fmt::format("the last {} bytes belong to no tensor", data.data() + data.size() - expected));
  return found;
}

MappedFile::MappedFile(const std::string& path) {
  const auto fail = [&] { throw FileError(fmt::format("{}: {}", path, std::strerror(errno))); };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail();
  struct stat facts{};
  if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    const bool regular = S_ISREG(facts.st_mode);
    close(file);
    if (!regular) throw FileError(fmt::format("{}: is no regular file", path));
    fail();
  }
  if (facts.st_size > 0) {
    void* at = mmap(nullptr, usize(facts.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (at == MAP_FAILED) fail();
    bytes_ = {static_cast<const std::byte*>(at), usize(facts.st_size)};
  } else {
    close(file);
  }
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void write_safetensors(const std::string& path, std::vector<TensorToStore> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::ranges::sort(tensors, {},
                    [](const TensorToStore& t) { return std::pair(-bits_of(t.dtype), t.name); });
  Json header = {{"__metadata__", metadata}};
  std::size_t at = 0;
  for (const TensorToStore& t : tensors) {
    header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {at, at + t.bytes}}};
    at += t.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  NewFile file(path);
  std::array<std::uint8_t, 8> length;
  for (std::size_t k = 0; k < 8; ++k) length[k] = static_cast<std::uint8_t>(text.size() >> (8 * k));
  file.write(length.data(), length.size());
  file.write(text.data(), text.size());
  for (const TensorToStore& t : tensors) {
    std::size_t written = 0;
    t.write([&](const void* data, std::size_t bytes) {
      file.write(data, bytes);
      written += bytes;
    });
    if (written != t.bytes)
      throw std::logic_error(
          fmt::format("tensor {} wrote {} bytes of {}", t.name, written, t.bytes));
  }
  file.commit();
}

}  // namespace assay
