// What every launch shares: the choice of element type, tables of tensors, checked launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "../kernels.h"

namespace zscgan::cuda {

constexpr int block_threads = 256;
constexpr int warp_threads = 32;
constexpr int block_warps = block_threads / warp_threads;

// Kernel parameters of 4 KB take the short way to the device.
constexpr int parameter_bytes = 4096;

constexpr int64_t divide_up(int64_t dividend, int64_t divisor) {
    return (dividend + divisor - 1) / divisor;
}

constexpr int64_t bounded(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

// Division of 0 <= n < 2^63 by a fixed divisor >= 1 through a multiplication. With
// 2^(bits - 1) < divisor <= 2^bits, multiplier = ceil(2^(63 + bits) / divisor) is exact (Granlund
// and Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994).
class Divider {
public:
    Divider() = default;
    explicit Divider(int64_t divisor) : divisor_(divisor) {
        if (divisor == 1) return;
        int bits = 0;
        while ((uint64_t{1} << bits) < static_cast<uint64_t>(divisor)) ++bits;
        const auto power = static_cast<unsigned __int128>(1) << (63 + bits);
        multiplier_ = static_cast<uint64_t>((power + divisor - 1) / divisor);
        shift_ = bits - 1;
    }
    __host__ __device__ __forceinline__ int64_t divisor() const { return divisor_; }
    __device__ __forceinline__ int64_t quotient(int64_t dividend) const {
        if (divisor_ == 1) return dividend;
        return static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(dividend), multiplier_) >>
                                    shift_);
    }

private:
    int64_t divisor_ = 1;
    uint64_t multiplier_ = 0;
    int shift_ = 0;
};

// Whether vectors that start at multiples of eight elements lie on 16-byte boundaries.
inline bool is_wide(std::initializer_list<const void*> operands) {
    for (const void* operand : operands) {
        if (reinterpret_cast<uintptr_t>(operand) % 16 != 0) return false;
    }
    return true;
}

// Tensors that one launch works on, each with a consecutive range of blocks. A table travels as a
// kernel parameter, so that no copy to the device is needed.
template <class Task, int size>
struct Table {
    static constexpr int capacity = size;
    Task tasks[size];
    int first_block[size + 1];
    int count;

    __device__ __forceinline__ int index_of_block(int block) const {
        int first = 0;
        int last = count;
        while (last - first > 1) {
            const int middle = (first + last) / 2;
            if (first_block[middle] <= block) {
                first = middle;
            } else {
                last = middle;
            }
        }
        return first;
    }
};

template <class Task>
constexpr int table_capacity = (parameter_bytes - 16) / (sizeof(Task) + sizeof(int));

inline const char* error_text(cudaError_t error) {
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();
    return cudaGetErrorString(error);
}

template <class Parameters>
const char* launch(void (*kernel)(Parameters), int64_t blocks, const Parameters& parameters,
                   void* stream) {
    if (blocks == 0) return nullptr;
    if (blocks > INT32_MAX) return "the tensor needs more blocks than a CUDA grid has";
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(block_threads);
    config.stream = static_cast<cudaStream_t>(stream);
    return error_text(cudaLaunchKernelEx(&config, kernel, parameters));
}

// Gathers tasks into tables and launches each table when it is full; `flush` launches the rest.
template <class Task, int size>
class TableLauncher {
public:
    using Kernel = void (*)(Table<Task, size>);
    TableLauncher(Kernel kernel, void* stream) : kernel_(kernel), stream_(stream) {}

    const char* add(const Task& task, int64_t blocks) {
        const bool full = table_.count == size || blocks_ + blocks > INT32_MAX;
        if (const char* error = full ? flush() : nullptr) return error;
        table_.tasks[table_.count] = task;
        table_.first_block[table_.count++] = static_cast<int>(blocks_);
        blocks_ += blocks;
        return nullptr;
    }

    const char* flush() {
        const char* error = launch(kernel_, blocks_, table_, stream_);
        table_.count = 0;
        blocks_ = 0;
        return error;
    }

private:
    Kernel kernel_;
    void* stream_;
    Table<Task, size> table_ = {};
    int64_t blocks_ = 0;
};

// Calls function(Element{}) with the element type of `type`.
template <class Function>
const char* dispatch(DataType type, const Function& function) {
    switch (type) {
        case DataType::float32:
            return function(float{});
        case DataType::float16:
            return function(__half{});
        case DataType::bfloat16:
            return function(__nv_bfloat16{});
        default:
            return "float64 is supported on the CPU only";
    }
}

}  // namespace zscgan::cuda
