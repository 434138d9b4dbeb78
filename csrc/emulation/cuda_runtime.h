// What the kernels take from CUDA, for a host compiler: with this folder before CUDA's own headers
// the sources in csrc/cuda compile unchanged, and machine.h runs them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

// ---- language -----------------------------------------------------------------------------------

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Stores of a block are taken out of memory while another block runs: see machine.h.
#define __shared__ static

// Ten times the compute capability of the device that is played.
#define __CUDA_ARCH_LIST__ 900

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
    float x, y;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx;
extern uint3 blockIdx;

// ---- intrinsics ---------------------------------------------------------------------------------

namespace zscgan::emulation {

void block_barrier();
void fence();
uint64_t shuffle(unsigned mask, uint64_t bits, int source_lane);
int lane();
unsigned increment(unsigned* counter, unsigned last);

}  // namespace zscgan::emulation

inline void __syncthreads() { zscgan::emulation::block_barrier(); }
inline void __threadfence() { zscgan::emulation::fence(); }

template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned distance) {
    static_assert(sizeof(Value) <= sizeof(uint64_t));
    const int own = zscgan::emulation::lane();
    const int source =
        own + static_cast<int>(distance) < 32 ? own + static_cast<int>(distance) : own;
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(value));
    bits = zscgan::emulation::shuffle(mask, bits, source);
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline unsigned atomicInc(unsigned* counter, unsigned last) {
    return zscgan::emulation::increment(counter, last);
}

template <class Value>
Value __ldcg(const Value* address) {
    return *address;
}
template <class Value>
void __stwb(Value* address, Value value) {
    *address = value;
}

inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// ---- runtime ------------------------------------------------------------------------------------

enum cudaError_t : int {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr : int {
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
};
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
    dim3 gridDim;
    dim3 blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    void* attrs;
    unsigned numAttrs;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);

namespace zscgan::emulation {

using Invoke = void (*)(const void* kernel, const void* parameters);
cudaError_t launch(const cudaLaunchConfig_t& config, Invoke invoke, const void* kernel,
                   const void* parameters, size_t parameter_bytes);

}  // namespace zscgan::emulation

template <class Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters),
                               const Parameters& parameters) {
    const auto invoke = [](const void* address, const void* values) {
        (*static_cast<void (*const*)(Parameters)>(address))(
            *static_cast<const Parameters*>(values));
    };
    return zscgan::emulation::launch(*config, invoke, &kernel, &parameters, sizeof(Parameters));
}
