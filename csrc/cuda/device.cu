// Whether a device is there that this build has code for.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "../kernels.h"

namespace zscgan::cuda {
namespace {

// Ten times the compute capability of every architecture this file is compiled for.
constexpr int architectures[] = {__CUDA_ARCH_LIST__};

// Machine code runs on later devices of the same major version; PTX of the newest architecture on
// every later device.
bool has_code_for(int capability) {
    const int newest = *std::max_element(std::begin(architectures), std::end(architectures));
    return capability >= newest ||
           std::any_of(std::begin(architectures), std::end(architectures), [=](int architecture) {
               return architecture / 100 == capability / 100 && architecture <= capability;
           });
}

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string capability_text(int capability) {
    return std::to_string(capability / 100) + "." + std::to_string(capability / 10 % 10);
}

int device_capability(int device) {
    int major = 0;
    int minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return major * 100 + minor * 10;
}

std::string architecture_problem(int devices) {
    std::string found;
    for (int device = 0; device < devices; ++device) {
        const int capability = device_capability(device);
        if (has_code_for(capability)) return "";
        found += (found.empty() ? "" : ", ") + capability_text(capability);
    }
    std::string built;
    for (const int architecture : architectures) {
        built += (built.empty() ? "" : ", ") + capability_text(architecture);
    }
    return "no device has a supported compute capability: built for " + built + ", found " + found;
}

std::string find_problem() {
    int driver = 0;
    int runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return "no NVIDIA driver is installed";
    if (driver / 1000 < runtime / 1000) {
        return "needs a driver for CUDA " + std::to_string(runtime / 1000) +
               " or newer, found one for CUDA " + version_text(driver);
    }
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return cudaGetErrorString(error);
    }
    return devices == 0 ? "no CUDA device is visible" : architecture_problem(devices);
}

}  // namespace

const char* unavailable_reason() {
    static const std::string problem = find_problem();
    return problem.empty() ? nullptr : problem.c_str();
}

int current_device() {
    int device = 0;
    cudaGetDevice(&device);
    return device;
}

}  // namespace zscgan::cuda
