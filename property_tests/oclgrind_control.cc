// Runs the OpenCL kernels with one mistake planted in their source, which oclgrind must find.
// `oclgrind_control list` names the mistakes, and `oclgrind_control NAME` runs one; run_oclgrind.sh
// reads oclgrind's log.
#include <fmt/format.h>

#include <cctype>
#include <regex>
#include <string>
#include <vector>

#include "harness/judging/outputs.h"
#include "kernels/device/device_backend.h"
#include "kernels/device/opencl_device.h"
#include "kernels/device/sources.h"
#include "kernels/dispatch/dispatch.h"

namespace assay {
namespace {

using namespace kernels;

constexpr std::string_view barrier = "barrier(CLK_LOCAL_MEM_FENCE);";

struct Mistake {
  std::string name;
  std::string_view from, to;
  int occurrence = 0;  // which occurrence of `from`
  bool product = false;
};

std::vector<Mistake> mistakes() {
  std::vector<Mistake> list = {
      {"attention-tail-of-keys-read", "j < p->keys && d < p->dim ?", "d < p->dim ?"},
      {"attention-tail-of-rows-read", "r < p->rows && d < p->dim ?", "d < p->dim ?"},
      {"attention-tail-of-rows-written", "if (i >= p->rows) return;", ""},
      {"product-tail-of-columns-written", "if (m < p->rows && n < p->columns) store_as",
       "if (m < p->rows) store_as", 0, true},
      {"product-tail-of-depth-read", "m0 + r < p->rows && k0 + k < end ?", "k0 + k < end ?", 0,
       true}};
  for (const bool product : {false, true}) {
    const std::string_view text = product ? product_source : attention_source;
    int n = 0;
    for (std::size_t at = 0; (at = text.find(barrier, at)) != std::string_view::npos;
         at += barrier.size(), ++n)
      list.push_back({fmt::format("{}-without-barrier-{}", product ? "product" : "attention", n),
                      barrier, "", n, product});
  }
  return list;
}

// Finds the text whatever whitespace, which a formatter chooses, stands where it has a space.
std::regex pattern_of(std::string_view text) {
  std::string pattern;
  for (const char c : text)
    if (c == ' ') pattern += "\\s+";
    else if (std::isalnum(static_cast<unsigned char>(c)) || c == '_') pattern += c;
    else pattern += std::string("\\") + c;
  return std::regex(pattern);
}

class Mistaken : public OpenclDevice {
 public:
  explicit Mistaken(const Mistake* m) : OpenclDevice("oclgrind"), mistake_(m) {}
  NativeCode compile(const KernelSource& source, KernelHandle& kernel) override {
    if (!mistake_) return OpenclDevice::compile(source, kernel);
    std::string text(source.text);
    const std::regex wanted = pattern_of(mistake_->from);
    std::sregex_iterator found(text.begin(), text.end(), wanted), none;
    for (int n = 0; n < mistake_->occurrence && found != none; ++n) ++found;
    if (found == none) throw std::runtime_error("the text to change is not there");
    const auto at = static_cast<std::size_t>(found->position());
    text.replace(at, static_cast<std::size_t>(found->length()), mistake_->to);
    KernelSource changed = source;
    changed.text = text;
    return OpenclDevice::compile(changed, kernel);
  }

 private:
  const Mistake* mistake_;
};

// The problem has two tiles of keys, two slices of D and of Dv, and tails everywhere.
Status run_attention(const std::shared_ptr<DeviceSession>& session) {
  const Case c = parse_case("attention b=1 h=1 l=3x70 d=36/34");
  const Inputs in(c);
  const Outputs out(c);
  DispatchSettings settings;
  settings.min_query_length = 0;
  settings.fall_back_on_failure = false;
  Dispatcher dispatcher(std::make_shared<DeviceBackend>(session), settings);
  return dispatcher.sdpa(in.problem, out.view());
}

Status run_product(DeviceSession& session) {
  const Case c = parse_case("product m=3 n=18 k=70 w=mxfp4");
  const ProductInputs in(c);
  const ProductOutput out(c);
  return device_product(session, in.problem.a, in.problem.w, out.c.view());
}

int run(const std::string& name) {
  const std::vector<Mistake> list = mistakes();
  if (name == "list") {
    for (const Mistake& m : list) fmt::print("{}\n", m.name);
    return 0;
  }
  const Mistake* chosen = nullptr;
  for (const Mistake& m : list)
    if (m.name == name) chosen = &m;
  if (!chosen && name != "none") {
    fmt::print(stderr, "oclgrind_control: no mistake is called '{}'\n", name);
    return 2;
  }
  const auto session = std::make_shared<DeviceSession>(std::make_shared<Mistaken>(chosen));
  Status status;
  if (!chosen || !chosen->product) status = run_attention(session);
  if (status.ok() && (!chosen || chosen->product)) status = run_product(*session);
  if (!status.ok()) fmt::print(stderr, "oclgrind_control: {}\n", status.detail);
  return status.ok() ? 0 : 3;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: oclgrind_control list | none | NAME\n");
    return 2;
  }
  return assay::run(argv[1]);
}
