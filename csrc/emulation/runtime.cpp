// The runtime: devices that remember who used them, streams, and launches within CUDA's limits.
#include <cstdint>
#include <cstring>
#include <mutex>

#include "machine.h"

// A stream belongs to a device; the null stream to whichever is current.
struct CUstream_st {
    int device;
};

namespace zscgan::emulation {

namespace {

constexpr int runtime_version = 13000;
constexpr int compute_capability = 90;
// As of compute capability 7.0 and CUDA 12.1; the kernels keep to the older 4 KB.
constexpr size_t most_parameter_bytes = 32764;

std::mutex mutex;
uint64_t uses[device_count] = {};
thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local const char* hang = nullptr;

cudaError_t failed(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

}  // namespace

void use_device() {
    const std::lock_guard<std::mutex> lock(mutex);
    ++uses[current];
}

std::vector<uint64_t> device_uses() {
    const std::lock_guard<std::mutex> lock(mutex);
    return {uses, uses + device_count};
}

// Lives as long as the process, as torch's streams do.
cudaStream_t make_stream(int device) { return new CUstream_st{device}; }

cudaError_t launch(const cudaLaunchConfig_t& config, Invoke invoke, const void* kernel,
                   const void* parameters, size_t parameter_bytes) {
    if (config.stream && config.stream->device != current) {
        return failed(cudaErrorInvalidResourceHandle);
    }
    const dim3 &blocks = config.gridDim, &threads = config.blockDim;
    if (blocks.x == 0 || blocks.x > INT32_MAX || blocks.y != 1 || blocks.z != 1 || threads.x == 0 ||
        threads.x > most_threads || threads.y != 1 || threads.z != 1) {
        return failed(cudaErrorInvalidConfiguration);
    }
    if (parameter_bytes > most_parameter_bytes || config.numAttrs != 0) {
        return failed(cudaErrorInvalidValue);
    }
    use_device();
    hang = run_grid(blocks.x, threads.x, invoke, kernel, parameters);
    return hang ? failed(cudaErrorLaunchFailure) : cudaSuccess;
}

}  // namespace zscgan::emulation

using namespace zscgan::emulation;

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle:
            return "invalid resource handle";
        case cudaErrorLaunchFailure:
            return hang ? hang : "unspecified launch failure";
    }
    return "unknown error";
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = runtime_version;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = runtime_version;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = device_count;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? compute_capability / 10
                                                            : compute_capability % 10;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}

// Since CUDA 12 this starts the device where nothing has used it.
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count) return failed(cudaErrorInvalidDevice);
    current = device;
    use_device();
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
    if (stream && stream->device != current) return failed(cudaErrorInvalidResourceHandle);
    use_device();
    std::memset(memory, value, bytes);
    return cudaSuccess;
}
