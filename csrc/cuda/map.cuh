// Operations that map every element by the parameters of its channel, one pass over memory.
//
// An operation has
//   using Element;                                          // float, __half or __nv_bfloat16
//   using Parameters;                                       // of one channel
//   const Element* source; Element* target;
//   Parameters parameters(int64_t channel) const;
//   float apply(float x, const Parameters&, bool& flag) const;
//   void store_flags(int64_t vector, unsigned flags) const;  // bit j: the flag of element j
//
// One that reads several tensors and may write two has, in place of the last two,
//   static constexpr int more_source_count;
//   const Element* more_sources[more_source_count];
//   Element* second_target;                                 // or null
//   void apply(float (&elements)[1 + more_source_count], const Parameters&) const;
// where `elements` holds the sources before, and the two targets after the call.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "vector8.cuh"

namespace zscgan::cuda {

template <class Operation, class = void>
constexpr int source_count = 1;
template <class Operation>
constexpr int source_count<Operation, std::void_t<decltype(Operation::more_source_count)>> =
    1 + Operation::more_source_count;

// Vectors that a thread loads before it waits for the first: two in half precision too, since more
// of them do not fit into the registers beside the parameters of eight channels.
template <class Operation>
constexpr int map_batch = source_count<Operation> == 1 ? 2 : 1;

// How a tensor is cut into vectors: vector i starts at element 8 * i - skew. The first and the last
// may reach beyond the tensor, the others are whole.
struct Vectors {
    int64_t numel;
    int64_t count;
    int skew;
    bool wide;

    __device__ __forceinline__ int64_t first(int64_t vector) const {
        return vector * vector_size - skew;
    }
    __device__ __forceinline__ bool is_wide(int64_t vector) const {
        return wide && first(vector) >= 0 && first(vector) <= numel - vector_size;
    }
    __device__ __forceinline__ unsigned valid(int64_t vector) const {
        return vector_bits(clamp_to_vector(-first(vector)), clamp_to_vector(numel - first(vector)));
    }
};

// Equally misaligned operands get a skew that puts their vectors on 16-byte boundaries. With a mask
// vectors must be bytes of the mask: then only aligned operands are accessed in 16 bytes.
inline Vectors cut_vectors(int64_t numel, int64_t element_bytes,
                           std::initializer_list<const void*> operands, bool masked) {
    const auto offset = reinterpret_cast<uintptr_t>(*operands.begin()) % 16;
    bool wide = offset % element_bytes == 0 && (offset == 0 || !masked);
    for (const void* operand : operands) {
        wide = wide && reinterpret_cast<uintptr_t>(operand) % 16 == offset;
    }
    const int skew = wide ? static_cast<int>(offset / element_bytes) : 0;
    return {numel, divide_up(numel + skew, vector_size), skew, wide};
}

template <class Element>
__device__ __forceinline__ Vector8<Element> load_vector(const Element* source,
                                                        const Vectors& vectors, int64_t vector) {
    if (vectors.is_wide(vector)) return load_wide(source, vectors.first(vector));
    return load_narrow(source, vectors.first(vector), vectors.valid(vector));
}

template <class Element>
__device__ __forceinline__ void store_vector(Element* target, const Vectors& vectors,
                                             int64_t vector, const float (&values)[vector_size]) {
    Vector8<Element> packed;
    pack(values, packed);
    if (vectors.is_wide(vector)) {
        store_wide(target, vectors.first(vector), packed);
    } else {
        store_narrow(target, vectors.first(vector), vectors.valid(vector), packed);
    }
}

// One vector of every source, as it lies in memory.
template <class Operation>
struct LoadedVectors {
    static constexpr int count = source_count<Operation>;
    Vector8<typename Operation::Element> sources[count];

    __device__ __forceinline__ void load(const Operation& operation, const Vectors& vectors,
                                         int64_t vector) {
        sources[0] = load_vector(operation.source, vectors, vector);
        if constexpr (count > 1) {
#pragma unroll
            for (int k = 1; k < count; ++k) {
                sources[k] = load_vector(operation.more_sources[k - 1], vectors, vector);
            }
        }
    }
};

// The elements of one vector of every source, which `apply` replaces by those of the targets.
template <class Operation>
struct MappedVectors {
    static constexpr int count = source_count<Operation>;
    float values[count][vector_size];
    unsigned flags = 0;

    __device__ __forceinline__ explicit MappedVectors(const LoadedVectors<Operation>& loaded) {
#pragma unroll
        for (int k = 0; k < count; ++k) unpack(loaded.sources[k], values[k]);
    }

    __device__ __forceinline__ void apply(const Operation& operation,
                                          const typename Operation::Parameters& parameters, int j) {
        if constexpr (count == 1) {
            bool flag = false;
            values[0][j] = operation.apply(values[0][j], parameters, flag);
            flags |= static_cast<unsigned>(flag) << j;
        } else {
            float elements[count];
#pragma unroll
            for (int k = 0; k < count; ++k) elements[k] = values[k][j];
            operation.apply(elements, parameters);
#pragma unroll
            for (int k = 0; k < count; ++k) values[k][j] = elements[k];
        }
    }

    __device__ __forceinline__ void store(const Operation& operation, const Vectors& vectors,
                                          int64_t vector) const {
        const unsigned valid = vectors.is_wide(vector) ? whole_vector : vectors.valid(vector);
        if (valid == 0) return;
        store_vector(operation.target, vectors, vector, values[0]);
        if constexpr (count == 1) {
            operation.store_flags(vector, flags & valid);
        } else {
            if (operation.second_target) {
                store_vector(operation.second_target, vectors, vector, values[1]);
            }
        }
    }
};

// One vector for each thread until the device is busy, then up to 16.
inline int64_t vectors_per_thread(const Vectors& vectors) {
    constexpr int64_t busy_threads = int64_t{1} << 18;
    return bounded(vectors.count / busy_threads, 1, 16);
}

}  // namespace zscgan::cuda
