#include "harness/candidates/python_process.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include "harness/candidates/declared_arithmetic.h"
#include "harness/python_start.h"

namespace assay {
namespace {

constexpr int server_socket = 3;
constexpr std::size_t longest_line = 1 << 16;

Index elements_of(const assay_tensor& t) {
  Index elements = 1;
  for (int axis = 0; axis < t.rank; ++axis) elements *= t.shape[axis];
  return elements;
}
std::size_t bytes_of(const assay_tensor& t) { return usize(elements_of(t) * t.dtype.bits / 8); }

// Copies the elements of a tensor to row-major bytes, or back.
template <bool back>
void pack(const assay_tensor& t, std::vector<char>& bytes) {
  const Index width = t.dtype.bits / 8;
  Extents e{1, 1, 1, 1}, s{};
  for (int axis = 0; axis < t.rank; ++axis) {
    e[usize(axis + 4 - t.rank)] = t.shape[axis];
    s[usize(axis + 4 - t.rank)] = t.strides[axis];
  }
  char* packed = bytes.data();
  for_each_index(e, [&](Index a, Index b, Index c, Index d) {
    char* element =
        static_cast<char*>(t.data) + (t.offset + a * s[0] + b * s[1] + c * s[2] + d * s[3]) * width;
    if constexpr (back) std::memcpy(element, packed, usize(width));
    else std::memcpy(packed, element, usize(width));
    packed += width;
  });
}

}  // namespace

PythonProcess::PythonProcess(std::string where) : where_(std::move(where)) {
  try {
    start();
  } catch (const Ended&) {
    throw std::invalid_argument(
        fmt::format("python:{}: its process {} while it was loaded", where_, how_it_ended()));
  }
}

void PythonProcess::start() {
  Channel ends = make_socket_pair("a socket for a Python function");
  const Descriptor nothing_to_read = open_nothing("an input for a Python function");
  ProcessStart server = python_start({"-m", "assay._serve", where_});
  server.descriptors = {{nothing_to_read.number(), STDIN_FILENO},
                        {STDERR_FILENO, STDOUT_FILENO},
                        {ends.in.number(), server_socket}};
  process_.emplace(server);
  socket_ = std::move(ends.out);
  ends.in.close();
  const std::string said = receive_line();
  if (said != "kernel") {
    process_.reset();
    throw std::invalid_argument(said.starts_with("refused ") ? said.substr(8)
                                                             : "the process said " + said);
  }
  const std::string lse = receive_line();
  features_.clear();
  std::istringstream words(receive_line());
  for (std::string word; words >> word;) features_.push_back(word);
  read_arithmetic();
  read_conventions();
  read_remarks();
  if (lse != "lse unknown") lse_ = lse == "lse yes";
  else if (!asked_lse_) learn_lse();
}

void PythonProcess::read_arithmetic() {
  const bool multiplies = std::ranges::find(features_, "product") != features_.end();
  for (int count = receive_count(); count > 0; --count) {
    const std::string line = receive_line();
    const std::string name = line.substr(0, line.find(' '));
    const std::optional<Dtype> dtype = value_named<Dtype>(name);
    if (!dtype) throw std::invalid_argument("the process declared an arithmetic of " + name);
    const std::string text = line.substr(name.size() + 1);
    contracts_.insert_or_assign(*dtype, multiplies
                                            ? Arithmetic(declared_product_contract(text, *dtype))
                                            : Arithmetic(declared_contract(text, *dtype)));
  }
}

void PythonProcess::read_conventions() {
  const std::string line = receive_line();
  const std::string text = line.substr(std::min(line.find(' '), line.size() - 1) + 1);
  if (text.empty()) return;
  try {
    conventions_ = Conventions::parse(text);
  } catch (const ConventionError& e) {
    throw std::invalid_argument(fmt::format("conventions: {}", e.what()));
  }
}

void PythonProcess::read_remarks() {
  remarks_.clear();
  for (int count = receive_count(); count > 0; --count) remarks_.push_back(receive_line());
}

// A function that ends its process here will do so in a case too, where it is a finding.
void PythonProcess::learn_lse() {
  asked_lse_ = true;
  try {
    send("probe\n");
    lse_ = receive_line() != "lse no";
  } catch (const Ended&) {
    process_.reset();
  }
}

void PythonProcess::send(const void* data, std::size_t bytes) {
  for (const auto* at = static_cast<const char*>(data); bytes > 0;) {
    const ssize_t n = ::send(socket_.number(), at, bytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Ended();
    at += n;
    bytes -= usize(n);
  }
}

void PythonProcess::receive(void* data, std::size_t bytes) {
  for (auto* at = static_cast<char*>(data); bytes > 0;) {
    const ssize_t n = recv(socket_.number(), at, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Ended();
    at += n;
    bytes -= usize(n);
  }
}

std::string PythonProcess::receive_line() {
  std::string line;
  for (char c = 0; line.size() < longest_line; line += c) {
    receive(&c, 1);
    if (c == '\n') return line;
  }
  throw CandidateError("the function's process said a line of more than 65,536 characters");
}

// The number of a line "WORD NUMBER".
int PythonProcess::receive_count() {
  std::istringstream words(receive_line());
  std::string word;
  int count = 0;
  words >> word >> count;
  return count;
}

std::string PythonProcess::how_it_ended() {
  const std::string how = assay::how_it_ended(process_->wait());
  process_.reset();
  socket_.close();
  return how;
}

void PythonProcess::run(const NamedCall& call) {
  try {
    if (!process_) start();
    transfer(call);
  } catch (const Ended&) {
    if (!process_) throw CandidateError("the function's process does not start again");
    throw CandidateError(
        fmt::format("the function's process {} in {}", how_it_ended(), call.operation));
  } catch (const std::invalid_argument& e) {
    throw CandidateError(e.what());
  }
}

void PythonProcess::transfer(const NamedCall& call) {
  std::string header = fmt::format("call {} {} {}\n{}\n", call.operation, call.inputs.size(),
                                   call.outputs.size(), call.line);
  for (const auto* list : {&call.inputs, &call.outputs})
    for (const auto& [name, t] : *list)
      header += fmt::format("{} {} {} {} {}\n", name, t.dtype.code, t.dtype.bits, bytes_of(t),
                            fmt::join(t.shape, t.shape + t.rank, " "));
  send(header);
  std::vector<char> bytes;
  for (const NamedTensor& input : call.inputs) {
    bytes.resize(bytes_of(input.tensor));
    pack<false>(input.tensor, bytes);
    send(bytes.data(), bytes.size());
  }
  const std::string answer = receive_line();
  if (answer.starts_with("declined ")) throw CandidateDeclined(answer.substr(9));
  if (answer.starts_with("finding ")) throw CandidateError(answer.substr(8));
  if (answer.starts_with("lost ")) {
    process_->kill();
    how_it_ended();
    throw CandidateError(answer.substr(5));
  }
  if (answer != "done")
    throw CandidateError("the function's process answered " + answer.substr(0, 200));
  for (const NamedTensor& output : call.outputs) {
    bytes.resize(bytes_of(output.tensor));
    receive(bytes.data(), bytes.size());
    pack<true>(output.tensor, bytes);
  }
}

}  // namespace assay
