// Groups of eight elements, the unit of all memory traffic. A vector is one byte of a bit mask, one
// 16-byte access in half precision and two in float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../kernels.h"

namespace zscgan::cuda {

constexpr int vector_size = 8;
constexpr unsigned whole_vector = 0xff;

// Vectors that a thread loads before it waits for the first: enough bytes in flight to hide the
// latency of memory at the occupancy of these kernels.
template <class Element, int operands>
constexpr int vectors_in_flight = 64 / (vector_size * static_cast<int>(sizeof(Element)) * operands);

__host__ __device__ __forceinline__ int clamp_to_vector(int64_t index) {
    return index < 0 ? 0 : index > vector_size ? vector_size : static_cast<int>(index);
}

// The bits j of a vector with begin <= j < end, for 0 <= begin, end <= 8.
__device__ __forceinline__ unsigned vector_bits(int begin, int end) {
    return ((1u << end) - 1) & ~((1u << begin) - 1);
}

// Eight elements as they lie in memory: kept unconverted, so that several loads are in flight
// before the first of them is waited for.
template <class Element>
struct Vector8 {
    using Bits = uint16_t;
    static constexpr int words = 4;
    uint32_t word[words];

    __device__ __forceinline__ void set(int index, Bits bits) {
        const uint32_t shifted = static_cast<uint32_t>(bits) << (index % 2 * 16);
        word[index / 2] = index % 2 == 0 ? shifted : word[index / 2] | shifted;
    }
    __device__ __forceinline__ Bits get(int index) const {
        return static_cast<Bits>(word[index / 2] >> (index % 2 * 16));
    }
    __device__ __forceinline__ void clear(int index) {
        word[index / 2] &= index % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
    }
};

template <>
struct Vector8<float> {
    using Bits = uint32_t;
    static constexpr int words = 8;
    uint32_t word[words];

    __device__ __forceinline__ void set(int index, Bits bits) { word[index] = bits; }
    __device__ __forceinline__ Bits get(int index) const { return word[index]; }
    __device__ __forceinline__ void clear(int index) { word[index] = 0; }
};

// The vector at `tensor[first]`, a multiple of 16 bytes.
template <class Element>
__device__ __forceinline__ Vector8<Element> load_wide(const Element* tensor, int64_t first) {
    const auto* source = reinterpret_cast<const uint4*>(tensor + first);
    Vector8<Element> vector;
#pragma unroll
    for (int i = 0; i < Vector8<Element>::words; i += 4) {
        const uint4 loaded = source[i / 4];
        vector.word[i] = loaded.x;
        vector.word[i + 1] = loaded.y;
        vector.word[i + 2] = loaded.z;
        vector.word[i + 3] = loaded.w;
    }
    return vector;
}

// The elements in `valid` one by one, zeros in place of the others.
template <class Element>
__device__ __forceinline__ Vector8<Element> load_narrow(const Element* tensor, int64_t first,
                                                        unsigned valid) {
    using Bits = typename Vector8<Element>::Bits;
    const auto* source = reinterpret_cast<const Bits*>(tensor);
    Vector8<Element> vector;
#pragma unroll
    for (int j = 0; j < vector_size; ++j) {
        vector.set(j, valid >> j & 1 ? source[first + j] : Bits{0});
    }
    return vector;
}

// The compiler splits a plain assignment of 16 bytes where it merges branches; `__stwb` stays
// whole.
template <class Element>
__device__ __forceinline__ void store_wide(Element* tensor, int64_t first,
                                           const Vector8<Element>& vector) {
    auto* target = reinterpret_cast<uint4*>(tensor + first);
#pragma unroll
    for (int i = 0; i < Vector8<Element>::words; i += 4) {
        __stwb(target + i / 4, make_uint4(vector.word[i], vector.word[i + 1], vector.word[i + 2],
                                          vector.word[i + 3]));
    }
}

template <class Element>
__device__ __forceinline__ void store_narrow(Element* tensor, int64_t first, unsigned valid,
                                             const Vector8<Element>& vector) {
    auto* target = reinterpret_cast<typename Vector8<Element>::Bits*>(tensor);
#pragma unroll
    for (int j = 0; j < vector_size; ++j) {
        if (valid >> j & 1) target[first + j] = vector.get(j);
    }
}

__device__ __forceinline__ void unpack(const Vector8<float>& vector, float (&values)[vector_size]) {
#pragma unroll
    for (int j = 0; j < vector_size; ++j) memcpy(&values[j], &vector.word[j], sizeof(float));
}

__device__ __forceinline__ void unpack(const Vector8<__half>& vector,
                                       float (&values)[vector_size]) {
#pragma unroll
    for (int i = 0; i < vector_size / 2; ++i) {
        __half2 pair;
        memcpy(&pair, &vector.word[i], sizeof(pair));
        const float2 converted = __half22float2(pair);
        values[2 * i] = converted.x;
        values[2 * i + 1] = converted.y;
    }
}

__device__ __forceinline__ void unpack(const Vector8<__nv_bfloat16>& vector,
                                       float (&values)[vector_size]) {
#pragma unroll
    for (int i = 0; i < vector_size / 2; ++i) {
        const uint32_t low = vector.word[i] << 16;
        const uint32_t high = vector.word[i] & 0xffff0000u;
        memcpy(&values[2 * i], &low, sizeof(float));
        memcpy(&values[2 * i + 1], &high, sizeof(float));
    }
}

__device__ __forceinline__ void pack(const float (&values)[vector_size], Vector8<float>& vector) {
#pragma unroll
    for (int j = 0; j < vector_size; ++j) memcpy(&vector.word[j], &values[j], sizeof(float));
}

__device__ __forceinline__ void pack(const float (&values)[vector_size], Vector8<__half>& vector) {
#pragma unroll
    for (int i = 0; i < vector_size / 2; ++i) {
        const __half2 pair = __floats2half2_rn(values[2 * i], values[2 * i + 1]);
        memcpy(&vector.word[i], &pair, sizeof(pair));
    }
}

__device__ __forceinline__ void pack(const float (&values)[vector_size],
                                     Vector8<__nv_bfloat16>& vector) {
#pragma unroll
    for (int i = 0; i < vector_size / 2; ++i) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
        memcpy(&vector.word[i], &pair, sizeof(pair));
    }
}

}  // namespace zscgan::cuda
