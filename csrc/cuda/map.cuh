// Operations that map every element by the parameters of its channel, one pass over memory.
//
// An operation has
//   using Element;                                          // float, __half or __nv_bfloat16
//   using Parameters;                                       // of one channel
//   const Element* source; Element* target;
//   Parameters parameters(int64_t channel) const;
//   float apply(float x, const Parameters&, bool& flag) const;
//   void store_flags(int64_t octet, unsigned flags) const;  // bit j: the flag of element j
//
// One that reads several tensors and may write two has, in place of the last two,
//   static constexpr int more_source_count;
//   const Element* more_sources[more_source_count];
//   Element* second_target;                                 // or null
//   void apply(float (&elements)[1 + more_source_count], const Parameters&) const;
// where `elements` holds the sources before, and the two targets after the call. Operations with an
// OctetState (octet.cuh) are launched as masked ones.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "octet.cuh"

namespace zscgan::cuda {

template <class Operation, class = void>
constexpr int source_count = 1;
template <class Operation>
constexpr int source_count<Operation, std::void_t<decltype(Operation::more_source_count)>> =
    1 + Operation::more_source_count;

// Octets that a thread loads before it waits for the first: two in half precision too, since more
// of them do not fit into the registers beside the parameters of eight channels.
template <class Operation>
constexpr int map_batch = source_count<Operation> == 1 ? 2 : 1;

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
inline Octets cut_octets(int64_t numel, int64_t element_bytes,
                         std::initializer_list<const void*> operands, bool masked) {
    const auto offset = reinterpret_cast<uintptr_t>(*operands.begin()) % 16;
    bool wide = offset % element_bytes == 0 && (offset == 0 || !masked);
    for (const void* operand : operands) {
        wide = wide && reinterpret_cast<uintptr_t>(operand) % 16 == offset;
    }
    const int skew = wide ? static_cast<int>(offset / element_bytes) : 0;
    return {numel, divide_up(numel + skew, octet_size), skew, wide};
}

template <class Element>
__device__ __forceinline__ Octet<Element> load_octet(const Element* source, const Octets& octets,
                                                     int64_t octet) {
    if (octets.is_wide(octet)) return load_wide(source, octets.first(octet));
    return load_narrow(source, octets.first(octet), octets.valid(octet));
}

template <class Element>
__device__ __forceinline__ void store_octet(Element* target, const Octets& octets, int64_t octet,
                                            const float (&values)[octet_size]) {
    Octet<Element> packed;
    pack(values, packed);
    if (octets.is_wide(octet)) {
        store_wide(target, octets.first(octet), packed);
    } else {
        store_narrow(target, octets.first(octet), octets.valid(octet), packed);
    }
}

// One octet of every source, as it lies in memory.
template <class Operation>
struct LoadedOctets {
    static constexpr int count = source_count<Operation>;
    Octet<typename Operation::Element> sources[count];

    __device__ __forceinline__ void load(const Operation& operation, const Octets& octets,
                                         int64_t octet) {
        sources[0] = load_octet(operation.source, octets, octet);
        if constexpr (count > 1) {
#pragma unroll
            for (int k = 1; k < count; ++k) {
                sources[k] = load_octet(operation.more_sources[k - 1], octets, octet);
            }
        }
    }
};

// The elements of one octet of every source, which `apply` replaces by those of the targets.
template <class Operation>
struct MappedOctets {
    static constexpr int count = source_count<Operation>;
    float values[count][octet_size];
    unsigned flags = 0;
    typename OctetStateOf<Operation>::Type state;

    __device__ __forceinline__ MappedOctets(const Operation& operation, const Octets& octets,
                                            int64_t octet, const LoadedOctets<Operation>& loaded)
        : state(OctetStateOf<Operation>::of(operation, octet, octet < octets.count)) {
#pragma unroll
        for (int k = 0; k < count; ++k) unpack(loaded.sources[k], values[k]);
    }

    __device__ __forceinline__ void apply(const Operation& operation,
                                          const typename Operation::Parameters& parameters, int j) {
        if constexpr (count == 1) {
            bool flag = false;
            if constexpr (has_octet_state<Operation>) {
                values[0][j] = operation.apply(values[0][j], parameters, flag, state, j);
            } else {
                values[0][j] = operation.apply(values[0][j], parameters, flag);
            }
            flags |= static_cast<unsigned>(flag) << j;
        } else {
            float elements[count];
#pragma unroll
            for (int k = 0; k < count; ++k) elements[k] = values[k][j];
            if constexpr (has_octet_state<Operation>) {
                operation.apply(elements, parameters, state, j);
            } else {
                operation.apply(elements, parameters);
            }
#pragma unroll
            for (int k = 0; k < count; ++k) values[k][j] = elements[k];
        }
    }

    __device__ __forceinline__ void store(const Operation& operation, const Octets& octets,
                                          int64_t octet) const {
        const unsigned valid = octets.is_wide(octet) ? whole_octet : octets.valid(octet);
        if (valid == 0) return;
        store_octet(operation.target, octets, octet, values[0]);
        if constexpr (count == 1) {
            operation.store_flags(octet, flags & valid);
        } else {
            if (operation.second_target) {
                store_octet(operation.second_target, octets, octet, values[1]);
            }
        }
    }
};

// One octet for each thread until the device is busy, then up to 16.
inline int64_t octets_per_thread(const Octets& octets) {
    constexpr int64_t busy_threads = int64_t{1} << 18;
    return bounded(octets.count / busy_threads, 1, 16);
}

}  // namespace zscgan::cuda
