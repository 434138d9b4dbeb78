// Operations that map every element by the parameters of its channel, one pass over memory.
//
// An operation has
//   using Element;                                          // float, __half or __nv_bfloat16
//   using Parameters;                                       // of one channel
//   const Element* source; Element* target;
//   Parameters parameters(int64_t channel) const;
//   float apply(float x, const Parameters&, bool& flag) const;
//   void store_flags(int64_t octet, unsigned flags) const;  // bit j: the flag of element j
#pragma once

#include "launch.cuh"
#include "octet.cuh"

namespace zscgan::cuda {

// Octets that a thread loads before it waits for the first: two in half precision too, since more
// of them do not fit into the registers beside the parameters of eight channels.
constexpr int map_batch = 2;

// How a tensor is cut into octets: octet i starts at element 8 * i - skew. The first and the last
// may reach beyond the tensor, the others are whole.
struct Octets {
    int64_t numel;
    int64_t count;
    int skew;
    bool wide;

    __device__ __forceinline__ int64_t first(int64_t octet) const {
        return octet * octet_size - skew;
    }
    __device__ __forceinline__ bool is_wide(int64_t octet) const {
        return wide && first(octet) >= 0 && first(octet) <= numel - octet_size;
    }
    __device__ __forceinline__ unsigned valid(int64_t octet) const {
        return octet_bits(clamp_to_octet(-first(octet)), clamp_to_octet(numel - first(octet)));
    }
};

// Equally misaligned operands get a skew that puts their octets on 16-byte boundaries. With a mask
// octets must be bytes of the mask: then only aligned operands are accessed in 16 bytes.
inline Octets cut_octets(int64_t numel, int64_t element_bytes, const void* source,
                         const void* target, bool masked) {
    const auto offset = reinterpret_cast<uintptr_t>(source) % 16;
    const bool wide = offset == reinterpret_cast<uintptr_t>(target) % 16 &&
                      offset % element_bytes == 0 && (offset == 0 || !masked);
    const int skew = wide ? static_cast<int>(offset / element_bytes) : 0;
    return {numel, divide_up(numel + skew, octet_size), skew, wide};
}

template <class Operation>
__device__ __forceinline__ Octet<typename Operation::Element> load_source(
    const Operation& operation, const Octets& octets, int64_t octet) {
    if (octets.is_wide(octet)) return load_wide(operation.source, octets.first(octet));
    return load_narrow(operation.source, octets.first(octet), octets.valid(octet));
}

template <class Operation>
__device__ __forceinline__ void store_target(const Operation& operation, const Octets& octets,
                                             int64_t octet, const float (&values)[octet_size],
                                             unsigned flags) {
    Octet<typename Operation::Element> packed;
    pack(values, packed);
    if (octets.is_wide(octet)) {
        store_wide(operation.target, octets.first(octet), packed);
        operation.store_flags(octet, flags);
    } else if (const unsigned valid = octets.valid(octet)) {
        store_narrow(operation.target, octets.first(octet), valid, packed);
        operation.store_flags(octet, flags & valid);
    }
}

// One octet for each thread until the device is busy, then up to 16.
inline int64_t octets_per_thread(const Octets& octets) {
    constexpr int64_t busy_threads = int64_t{1} << 18;
    return bounded(octets.count / busy_threads, 1, 16);
}

}  // namespace zscgan::cuda
