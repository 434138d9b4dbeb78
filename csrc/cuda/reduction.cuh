// What reductions by channel share: two or three partial results, and their merge in a fixed order
// by the last block to finish.
//
// An operation derives from SumReduction or gives its own `start`, `combine`, `Sums` and
// `Accumulator`:
//   using Element;              // float, __half or __nv_bfloat16
//   using Parameters;           // of one channel
//   const Element* source;
//   static constexpr bool has_gradient;  // reads `gradient` and writes `target` beside `source`
//   Parameters parameters(int64_t channel) const;
//   float visit(float x, float grad, const Parameters&, Accumulator&) const;  // returns the target
//   void finish(int64_t channel, const Sums&) const;
#pragma once

#include "launch.cuh"
#include "octet.cuh"

namespace zscgan::cuda {

// A block of a split channel has at least this many octets for each thread.
constexpr int fewest_octets_per_thread = 2;

template <class Operation>
constexpr int reduction_batch = octets_in_flight < typename Operation::Element,
              Operation::has_gradient ? 2 : 1 > ;

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

// What one thread gathers over one octet, before it goes on in float64.
template <class Operation>
using AccumulatorOf = typename Operation::Accumulator;

// The elements of an octet of memory that a thread visits. `wide`: all eight may be read.
struct OctetPart {
    int64_t first;
    unsigned valid;
    bool wide;
};

template <class Element>
__device__ __forceinline__ Octet<Element> load_octet(const Element* tensor, const OctetPart& part) {
    return part.wide ? load_wide(tensor, part.first) : load_narrow(tensor, part.first, part.valid);
}

template <class Element>
__device__ __forceinline__ void store_octet(Element* tensor, const OctetPart& part,
                                            const float (&values)[octet_size]) {
    Octet<Element> octet;
    pack(values, octet);
    if (part.wide && part.valid == whole_octet) {
        store_wide(tensor, part.first, octet);
    } else {
        store_narrow(tensor, part.first, part.valid, octet);
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

// Cuts the workspace of a launch into counters, zeroed by the caller once, and partials.
class WorkspaceCutter {
public:
    explicit WorkspaceCutter(void* workspace)
        : counters_(static_cast<unsigned*>(workspace)),
          partials_(static_cast<char*>(workspace) + workspace_zeroed_bytes) {}

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
    static constexpr int64_t all_counters = workspace_zeroed_bytes / sizeof(unsigned);
    unsigned* counters_;
    char* partials_;
    int64_t used_counters_ = 0;
    int64_t used_bytes_ = 0;
};

}  // namespace zscgan::cuda
