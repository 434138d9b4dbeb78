// Groups of eight elements, the unit of all memory traffic. An octet is one byte of a bit mask, one
// 16-byte access in half precision and two in float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../kernels.h"

namespace zscgan::cuda {

constexpr int octet_size = 8;
constexpr unsigned whole_octet = 0xff;

// Octets that a thread loads before it waits for the first: enough bytes in flight to hide the
// latency of memory at the occupancy of these kernels.
template <class Element, int operands>
constexpr int octets_in_flight = 64 / (octet_size * static_cast<int>(sizeof(Element)) * operands);

__host__ __device__ __forceinline__ int clamp_to_octet(int64_t index) {
    return index < 0 ? 0 : index > octet_size ? octet_size : static_cast<int>(index);
}

// The bits j of an octet with begin <= j < end, for 0 <= begin, end <= 8.
__device__ __forceinline__ unsigned octet_bits(int begin, int end) {
    return ((1u << end) - 1) & ~((1u << begin) - 1);
}

// Eight elements as they lie in memory: kept unconverted, so that several loads are in flight
// before the first of them is waited for.
template <class Element>
struct Octet {
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
struct Octet<float> {
    using Bits = uint32_t;
    static constexpr int words = 8;
    uint32_t word[words];

    __device__ __forceinline__ void set(int index, Bits bits) { word[index] = bits; }
    __device__ __forceinline__ Bits get(int index) const { return word[index]; }
    __device__ __forceinline__ void clear(int index) { word[index] = 0; }
};

// The octet at `tensor[first]`, a multiple of 16 bytes.
template <class Element>
__device__ __forceinline__ Octet<Element> load_wide(const Element* tensor, int64_t first) {
    const auto* source = reinterpret_cast<const uint4*>(tensor + first);
    Octet<Element> octet;
#pragma unroll
    for (int i = 0; i < Octet<Element>::words; i += 4) {
        const uint4 loaded = source[i / 4];
        octet.word[i] = loaded.x;
        octet.word[i + 1] = loaded.y;
        octet.word[i + 2] = loaded.z;
        octet.word[i + 3] = loaded.w;
    }
    return octet;
}

// The elements in `valid` one by one, zeros in place of the others.
template <class Element>
__device__ __forceinline__ Octet<Element> load_narrow(const Element* tensor, int64_t first,
                                                      unsigned valid) {
    using Bits = typename Octet<Element>::Bits;
    const auto* source = reinterpret_cast<const Bits*>(tensor);
    Octet<Element> octet;
#pragma unroll
    for (int j = 0; j < octet_size; ++j) {
        octet.set(j, valid >> j & 1 ? source[first + j] : Bits{0});
    }
    return octet;
}

// The compiler splits a plain assignment of 16 bytes where it merges branches; `__stwb` stays
// whole.
template <class Element>
__device__ __forceinline__ void store_wide(Element* tensor, int64_t first,
                                           const Octet<Element>& octet) {
    auto* target = reinterpret_cast<uint4*>(tensor + first);
#pragma unroll
    for (int i = 0; i < Octet<Element>::words; i += 4) {
        __stwb(target + i / 4,
               make_uint4(octet.word[i], octet.word[i + 1], octet.word[i + 2], octet.word[i + 3]));
    }
}

template <class Element>
__device__ __forceinline__ void store_narrow(Element* tensor, int64_t first, unsigned valid,
                                             const Octet<Element>& octet) {
    auto* target = reinterpret_cast<typename Octet<Element>::Bits*>(tensor);
#pragma unroll
    for (int j = 0; j < octet_size; ++j) {
        if (valid >> j & 1) target[first + j] = octet.get(j);
    }
}

__device__ __forceinline__ void unpack(const Octet<float>& octet, float (&values)[octet_size]) {
#pragma unroll
    for (int j = 0; j < octet_size; ++j) memcpy(&values[j], &octet.word[j], sizeof(float));
}

__device__ __forceinline__ void unpack(const Octet<__half>& octet, float (&values)[octet_size]) {
#pragma unroll
    for (int i = 0; i < octet_size / 2; ++i) {
        __half2 pair;
        memcpy(&pair, &octet.word[i], sizeof(pair));
        const float2 converted = __half22float2(pair);
        values[2 * i] = converted.x;
        values[2 * i + 1] = converted.y;
    }
}

__device__ __forceinline__ void unpack(const Octet<__nv_bfloat16>& octet,
                                       float (&values)[octet_size]) {
#pragma unroll
    for (int i = 0; i < octet_size / 2; ++i) {
        const uint32_t low = octet.word[i] << 16;
        const uint32_t high = octet.word[i] & 0xffff0000u;
        memcpy(&values[2 * i], &low, sizeof(float));
        memcpy(&values[2 * i + 1], &high, sizeof(float));
    }
}

__device__ __forceinline__ void pack(const float (&values)[octet_size], Octet<float>& octet) {
#pragma unroll
    for (int j = 0; j < octet_size; ++j) memcpy(&octet.word[j], &values[j], sizeof(float));
}

__device__ __forceinline__ void pack(const float (&values)[octet_size], Octet<__half>& octet) {
#pragma unroll
    for (int i = 0; i < octet_size / 2; ++i) {
        const __half2 pair = __floats2half2_rn(values[2 * i], values[2 * i + 1]);
        memcpy(&octet.word[i], &pair, sizeof(pair));
    }
}

__device__ __forceinline__ void pack(const float (&values)[octet_size],
                                     Octet<__nv_bfloat16>& octet) {
#pragma unroll
    for (int i = 0; i < octet_size / 2; ++i) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
        memcpy(&octet.word[i], &pair, sizeof(pair));
    }
}

// What an operation knows of an octet beside its elements, such as a byte of a mask. One that knows
// anything has
//   using OctetState;
//   OctetState octet_state(int64_t octet) const;   // octet i starts at element 8 * i
// and its functions of an element take the state and the element's place in the octet too.
struct NoOctetState {};

template <class Operation, class = void>
struct OctetStateOf {
    using Type = NoOctetState;
    static __device__ __forceinline__ Type of(const Operation&, int64_t, bool) { return {}; }
};
template <class Operation>
struct OctetStateOf<Operation, std::void_t<typename Operation::OctetState>> {
    using Type = typename Operation::OctetState;
    static __device__ __forceinline__ Type of(const Operation& operation, int64_t octet,
                                              bool exists) {
        return exists ? operation.octet_state(octet) : Type{};
    }
};
template <class Operation>
constexpr bool has_octet_state =
    !std::is_same_v<typename OctetStateOf<Operation>::Type, NoOctetState>;

}  // namespace zscgan::cuda
