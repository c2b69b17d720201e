#include "kernels/device/host_device.h"
#include "kernels/device/opencl_device.h"

namespace assay::kernels {

std::shared_ptr<Device> make_device(const std::string& name) {
  if (name == "host") return std::make_shared<HostDevice>();
  if (name == "opencl") return std::make_shared<OpenclDevice>();
  if (name.starts_with("opencl:")) return std::make_shared<OpenclDevice>(name.substr(7));
  return nullptr;
}

std::vector<std::string> device_names() { return {"host", "opencl", "opencl:TEXT"}; }

}  // namespace assay::kernels
