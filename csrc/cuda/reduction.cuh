// What reductions by channel share: two or three partial results, and their merge in a fixed order
// by the last block to finish.
//
// An operation derives from SumReduction or gives its own `start`, `combine`, `Sums` and
// `Accumulator`:
//   using Element;              // float, __half or __nv_bfloat16
//   using Parameters;           // of one channel
//   const Element* source;
//   static constexpr bool reads_second;   // const Element* second_source
//   static constexpr bool writes_target;  // Element* target
//   Parameters parameters(int64_t channel) const;
//   float visit(float x, float second, const Parameters&, Accumulator&) const;  // the target
//   void finish(int64_t channel, const Sums&) const;
// One whose float32 sums may overflow where its result does not derives from WideSums too and gives
//   static void visit_wide(float x, const Parameters&, Sums&);
// which sums the same in float64.
#pragma once

#include <cmath>
#include <type_traits>

#include "launch.cuh"
#include "vector8.cuh"

namespace zscgan::cuda {

// A block of a split channel has at least this many vectors for each thread.
constexpr int fewest_vectors_per_thread = 2;

template <class Operation>
constexpr int reduction_operands = Operation::reads_second || Operation::writes_target ? 2 : 1;

template <class Operation>
constexpr int reduction_batch =
    vectors_in_flight<typename Operation::Element, reduction_operands<Operation>>;

// A tensor's partial results fill at most this many blocks, so that their merge stays short.
constexpr int64_t most_row_blocks = 4096;
constexpr int64_t most_column_blocks = 2048;

template <class Real>
struct alignas(2 * sizeof(Real)) PairOf {
    Real first;
    Real second;
};

template <class Real>
struct TripleOf {
    Real first;
    Real second;
    Real third;
};

using Pair = PairOf<double>;
using Triple = TripleOf<double>;

template <class Operation>
using SumsOf = typename Operation::Sums;

// What one thread gathers over one vector, before it goes on in float64.
template <class Operation>
using AccumulatorOf = typename Operation::Accumulator;

// The elements of a vector of memory that a thread visits. `wide`: all eight may be read.
struct VectorPart {
    int64_t first;
    unsigned valid;
    bool wide;
};

template <class Element>
__device__ __forceinline__ Vector8<Element> load_vector(const Element* tensor,
                                                        const VectorPart& part) {
    return part.wide ? load_wide(tensor, part.first) : load_narrow(tensor, part.first, part.valid);
}

template <class Element>
__device__ __forceinline__ void store_vector(Element* tensor, const VectorPart& part,
                                             const float (&values)[vector_size]) {
    Vector8<Element> vector;
    pack(values, vector);
    if (part.wide && part.valid == whole_vector) {
        store_wide(tensor, part.first, vector);
    } else {
        store_narrow(tensor, part.first, part.valid, vector);
    }
}

template <template <class> class Values>
struct SumReductionOf {
    using Sums = Values<double>;
    using Accumulator = Values<float>;

    static __device__ __forceinline__ Accumulator start() { return {}; }
    template <class Real>
    static __device__ __forceinline__ PairOf<Real> combine(const PairOf<Real>& a,
                                                           const PairOf<Real>& b) {
        return {a.first + b.first, a.second + b.second};
    }
    template <class Real>
    static __device__ __forceinline__ TripleOf<Real> combine(const TripleOf<Real>& a,
                                                             const TripleOf<Real>& b) {
        return {a.first + b.first, a.second + b.second, a.third + b.third};
    }
};
using SumReduction = SumReductionOf<PairOf>;

struct WideSums {};
template <class Operation>
constexpr bool has_wide_sums = std::is_base_of_v<WideSums, Operation>;

__device__ __forceinline__ bool is_finite(const PairOf<float>& values) {
    return fabsf(values.first) < INFINITY && fabsf(values.second) < INFINITY;
}

__device__ __forceinline__ Pair widen(const PairOf<float>& values) {
    return {values.first, values.second};
}
__device__ __forceinline__ Triple widen(const TripleOf<float>& values) {
    return {values.first, values.second, values.third};
}

// Partials written by other blocks are read past the first-level cache, which may hold older ones.
__device__ __forceinline__ Pair read_partial(const Pair* partial) {
    const double2 loaded = __ldcg(reinterpret_cast<const double2*>(partial));
    return {loaded.x, loaded.y};
}
__device__ __forceinline__ Triple read_partial(const Triple* partial) {
    return {__ldcg(&partial->first), __ldcg(&partial->second), __ldcg(&partial->third)};
}

template <class Operation, class Partition>
__device__ __forceinline__ SumsOf<Operation>* partials_of(const Partition& partition) {
    return static_cast<SumsOf<Operation>*>(partition.partials);
}

// The values of the lane that lies `distance` higher in the warp.
__device__ __forceinline__ Pair shuffle_down(const Pair& values, int distance) {
    return {__shfl_down_sync(0xffffffffu, values.first, distance),
            __shfl_down_sync(0xffffffffu, values.second, distance)};
}
__device__ __forceinline__ Triple shuffle_down(const Triple& values, int distance) {
    return {__shfl_down_sync(0xffffffffu, values.first, distance),
            __shfl_down_sync(0xffffffffu, values.second, distance),
            __shfl_down_sync(0xffffffffu, values.third, distance)};
}

// Combines partials[begin], partials[begin + step], ... below `end` with `sums`, in this order. One
// block merges what all others left: it waits for several loads at a time, not for each.
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> combine_partials(SumsOf<Operation> sums,
                                                              const SumsOf<Operation>* partials,
                                                              int64_t begin, int64_t end,
                                                              int64_t step) {
    constexpr int batch = 4;
#pragma unroll 1
    for (int64_t index = begin; index < end; index += batch * step) {
        SumsOf<Operation> loaded[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const int64_t place = index + i * step;
            loaded[i] = place < end ? read_partial(partials + place) : widen(Operation::start());
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) sums = Operation::combine(sums, loaded[i]);
    }
    return sums;
}

// The result is that of lane 0.
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> combine_warp(SumsOf<Operation> sums) {
#pragma unroll
    for (int distance = warp_threads / 2; distance > 0; distance /= 2) {
        sums = Operation::combine(sums, shuffle_down(sums, distance));
    }
    return sums;
}

// The result is that of thread 0.
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> combine_block(SumsOf<Operation> sums) {
    __shared__ SumsOf<Operation> warps[block_warps];
    sums = combine_warp<Operation>(sums);
    __syncthreads();  // a former call's reads are over
    if (threadIdx.x % warp_threads == 0) warps[threadIdx.x / warp_threads] = sums;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int i = 1; i < block_warps; ++i) sums = Operation::combine(sums, warps[i]);
    }
    return sums;
}

// Thread (helper * channels + c) brings a share of channel c; the result is that of helper 0.
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> combine_helpers(SumsOf<Operation> sums, int channels,
                                                             int helpers) {
    __shared__ SumsOf<Operation> shares[block_threads];
    __syncthreads();  // a former call's reads are over
    shares[threadIdx.x] = sums;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < channels) {
        for (int i = 1; i < helpers; ++i) {
            sums = Operation::combine(sums, shares[i * channels + threadIdx.x]);
        }
    }
    return sums;
}

// Called by every thread after it stored its partials: true in all threads of the block that comes
// last of `blocks`, which then sees the partials of all. The counter is zero again afterwards.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(counter, blocks - 1) == blocks - 1;
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// A workspace begins with its counters; partials follow.
constexpr int64_t all_counters = 8192;
constexpr int64_t counter_bytes = all_counters * static_cast<int64_t>(sizeof(unsigned));

// Nothing where there is nothing to merge.
inline int64_t workspace_bytes(int64_t partial_bytes) {
    return partial_bytes == 0 ? 0 : counter_bytes + partial_bytes;
}

// Cuts the workspace of a launch into counters and partials.
class WorkspaceCutter {
public:
    explicit WorkspaceCutter(const Launch& target)
        : stream_(static_cast<cudaStream_t>(target.stream)),
          counters_(static_cast<unsigned*>(target.workspace)),
          partials_(static_cast<char*>(target.workspace) + counter_bytes) {}

    // Needed once, before the first launch that counts: every launch leaves its counters zero.
    // Zeroing belongs to the call and not to the memory, so that the workspace of a CUDA graph is
    // the graph's own.
    const char* zero_counters() {
        if (zeroed_) return nullptr;
        zeroed_ = true;
        return error_text(cudaMemsetAsync(counters_, 0, counter_bytes, stream_));
    }
    bool has_counters(int64_t count) const { return used_counters_ + count <= all_counters; }
    unsigned* take_counters(int64_t count) {
        used_counters_ += count;
        return counters_ + used_counters_ - count;
    }
    void* take_partials(int64_t bytes) {
        used_bytes_ += bytes;
        return partials_ + used_bytes_ - bytes;
    }
    void reset_counters() { used_counters_ = 0; }

private:
    cudaStream_t stream_;
    unsigned* counters_;
    char* partials_;
    int64_t used_counters_ = 0;
    int64_t used_bytes_ = 0;
    bool zeroed_ = false;
};

}  // namespace zscgan::cuda
