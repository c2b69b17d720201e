// Everything that uses a device, over a mock, and problems for it. device_test.cc and
// device_policy_test.cc use this.
#pragma once

#include <assay/assay.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "harness/judging/outputs.h"
#include "kernels/c_interface/c_context.h"
#include "kernels/device/device_backend.h"
#include "testing/scripted_device.h"

namespace assay {

using namespace kernels;

inline constexpr NativeCode undefined_codes[] = {-9999, 123456};

// Holds one object of each class that uses a device, over a mock.
class World {
 public:
  explicit World(const NativeTable& table, DevicePolicy policy = {false, false, {}},
                 DispatchSettings settings = plain_settings())
      : script(table) {
    device = std::make_shared<testing::NiceMock<MockDevice>>();
    script.attach(*device);
    session = std::make_shared<DeviceSession>(device);
    backend = std::make_shared<DeviceBackend>(session, std::move(policy));
    context = add_context(std::make_shared<Context>(backend, std::move(settings), 1));
  }
  ~World() { assay_context_destroy(context); }
  World(const World&) = delete;

  static DispatchSettings plain_settings() {
    DispatchSettings s;
    s.min_query_length = 0;
    s.fall_back_on_failure = false;
    return s;
  }
  Dispatcher& dispatcher() { return context_of(context)->dispatcher; }

  Script script;
  std::shared_ptr<testing::NiceMock<MockDevice>> device;
  std::shared_ptr<DeviceSession> session;
  std::shared_ptr<DeviceBackend> backend;
  assay_context context = nullptr;
};

inline std::string bytes_of_tensors(const std::vector<const Tensor*>& tensors) {
  std::string all;
  for (const Tensor* t : tensors)
    all.append(reinterpret_cast<const char*>(t->bytes()), t->size_in_bytes());
  return all;
}

struct AttentionFixture {
  explicit AttentionFixture(const char* line) : c(parse_case(line)), in(c), out(c) {}
  Case c;
  Inputs in;
  Outputs out;
};

// A problem that needs every buffer that a kernel can have.
inline AttentionFixture& everything() {
  static AttentionFixture f(
      "attention b=2 h=4/2 l=3x5 d=4/6 causal offset=end bool=random bias=normal alibi sink=0.5 "
      "docs=2 lengths=5,4 layout=q:bshd,v:padded seed=3");
  return f;
}

struct ProductFixture {
  Case c = parse_case("product m=3 n=20 k=40 dtype=f32 w=nvfp4 layout=padded seed=3");
  ProductInputs in{c};
  ProductOutput out{c};
};
inline ProductFixture& small_product() {
  static ProductFixture f;
  return f;
}

}  // namespace assay
