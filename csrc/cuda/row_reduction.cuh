// Reductions by channel where inner > 1: a row is `inner` consecutive elements of one channel. A
// long channel is split over blocks, a short one belongs to one warp.
#pragma once

#include "reduction.cuh"

namespace zscgan::cuda {

struct RowPartition {
    int64_t numel;
    int64_t channels;
    int64_t inner;
    int64_t octets;  // of a channel, those shared with a neighbour included
    int64_t octets_per_block;
    Divider octets_per_row;
    unsigned* counters;  // [channels]
    Pair* partials;      // [channels, splits]
    int splits;
    bool warp_per_channel;
    bool wide;

    int64_t blocks() const {
        return warp_per_channel ? divide_up(channels, block_warps) : channels * splits;
    }
    int64_t counter_count() const { return splits > 1 ? channels : 0; }
    int64_t partial_count() const { return splits > 1 ? channels * splits : 0; }
};

template <class Operation>
struct RowReductionTask {
    Operation operation;
    RowPartition partition;
};

// Depends on sizes alone, so that the same values give the same bits wherever they lie.
inline RowPartition plan_row_reduction(const Extent& extent) {
    constexpr int64_t octets_of_warp = 8 * warp_threads;
    constexpr int64_t fewest_octets_of_block = fewest_octets_per_thread * block_threads;
    const bool whole = extent.inner % octet_size == 0;
    const int64_t octets_per_row =
        bounded((extent.inner + (whole ? 0 : 2 * (octet_size - 1))) / octet_size, 1, INT64_MAX);
    RowPartition partition = {};
    partition.numel = extent.numel();
    partition.channels = extent.channels;
    partition.inner = extent.inner;
    partition.octets = partition.numel == 0 ? 0 : extent.outer * octets_per_row;
    partition.octets_per_row = Divider(octets_per_row);
    partition.warp_per_channel = partition.octets <= octets_of_warp;
    const int64_t splits = bounded(partition.octets / fewest_octets_of_block, 1,
                                   bounded(most_row_blocks / extent.channels, 1, most_row_blocks));
    partition.octets_per_block = bounded(divide_up(partition.octets, splits), 1, INT64_MAX);
    const int64_t used = divide_up(partition.octets, partition.octets_per_block);
    partition.splits = partition.warp_per_channel ? 1 : static_cast<int>(used);
    return partition;
}

// The elements of a channel in one octet of memory.
struct RowOctet {
    int64_t first;
    unsigned valid;
    bool wide;
};

__device__ __forceinline__ RowOctet locate_octet(const RowPartition& partition, int64_t channel,
                                                 int64_t index, int64_t end) {
    const int64_t row = partition.octets_per_row.quotient(index);
    const int64_t start = (row * partition.channels + channel) * partition.inner;
    const int64_t position = index - row * partition.octets_per_row.divisor();
    const int64_t first = (start / octet_size + position) * octet_size;
    const unsigned valid =
        index < end ? octet_bits(start - first, start + partition.inner - first) : 0;
    const bool readable = valid != 0 && first + octet_size <= partition.numel;
    return {first, valid, partition.wide && readable};
}

template <class Operation>
__device__ __forceinline__ Accumulator
visit_row_octet(const Operation& operation, const typename Operation::Parameters& parameters,
                const RowOctet& at, const Octet<typename Operation::Element>& source,
                const Octet<typename Operation::Element>& gradient) {
    float values[octet_size];
    float gradients[octet_size] = {};
    unpack(source, values);
    if constexpr (Operation::has_gradient) unpack(gradient, gradients);
    Accumulator sums = Operation::start();
#pragma unroll
    for (int j = 0; j < octet_size; ++j) {
        Accumulator next = sums;
        values[j] = operation.visit(values[j], gradients[j], parameters, next);
        if (at.valid >> j & 1) sums = next;
    }
    if constexpr (Operation::has_gradient) {
        Octet<typename Operation::Element> packed;
        pack(values, packed);
        store_octet(operation.target, at.first, at.valid, at.wide && at.valid == whole_octet,
                    packed);
    }
    return sums;
}

// The octets begin, begin + team, ... of a channel.
template <class Operation>
__device__ __forceinline__ Pair reduce_octets(const Operation& operation,
                                              const RowPartition& partition, int64_t channel,
                                              int64_t begin, int64_t end, int team) {
    const auto parameters = operation.parameters(channel);
    Accumulator total = Operation::start();
    constexpr int batch = reduction_batch<Operation>;
#pragma unroll 1
    for (int64_t index = begin; index < end; index += batch * team) {
        RowOctet at[batch];
        Octet<typename Operation::Element> source[batch], gradient[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            at[i] = locate_octet(partition, channel, index + i * team, end);
            source[i] = load_octet(operation.source, at[i].first, at[i].valid, at[i].wide);
            if constexpr (Operation::has_gradient) {
                gradient[i] = load_octet(operation.gradient, at[i].first, at[i].valid, at[i].wide);
            }
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            total = Operation::combine(
                total, visit_row_octet(operation, parameters, at[i], source[i], gradient[i]));
        }
    }
    return widen(total);
}

template <class Operation>
__device__ __forceinline__ void reduce_channel_of_warp(const Operation& operation,
                                                       const RowPartition& partition,
                                                       int64_t block) {
    const int64_t channel = block * block_warps + threadIdx.x / warp_threads;
    if (channel >= partition.channels) return;
    const Pair pair = combine_warp<Operation>(reduce_octets(
        operation, partition, channel, threadIdx.x % warp_threads, partition.octets, warp_threads));
    if (threadIdx.x % warp_threads == 0) operation.finish(channel, pair);
}

template <class Operation>
__device__ __forceinline__ void merge_splits(const Operation& operation,
                                             const RowPartition& partition, int64_t channel) {
    const Pair* partials = partition.partials + channel * partition.splits;
    Pair pair = widen(Operation::start());
    for (int split = threadIdx.x; split < partition.splits; split += block_threads) {
        pair = Operation::combine(pair, read_partial(partials + split));
    }
    pair = combine_block<Operation>(pair);
    if (threadIdx.x == 0) operation.finish(channel, pair);
}

template <class Operation, int capacity>
__global__ __launch_bounds__(block_threads, 3) void reduce_rows(
    const __grid_constant__ Table<RowReductionTask<Operation>, capacity> table) {
    const int index = table.index_of_block(blockIdx.x);
    const Operation& operation = table.tasks[index].operation;
    const RowPartition& partition = table.tasks[index].partition;
    const int64_t block = static_cast<int>(blockIdx.x) - table.first_block[index];
    if (partition.warp_per_channel) {
        reduce_channel_of_warp(operation, partition, block);
        return;
    }
    const int64_t split = block / partition.channels;
    const int64_t channel = block - split * partition.channels;
    const int64_t begin = split * partition.octets_per_block;
    const int64_t limit = begin + partition.octets_per_block;
    const int64_t end = limit < partition.octets ? limit : partition.octets;
    const Pair pair = combine_block<Operation>(
        reduce_octets(operation, partition, channel, begin + threadIdx.x, end, block_threads));
    if (partition.splits == 1) {
        if (threadIdx.x == 0) operation.finish(channel, pair);
        return;
    }
    if (threadIdx.x == 0) partition.partials[channel * partition.splits + split] = pair;
    if (is_last_block(partition.counters + channel, partition.splits)) {
        merge_splits(operation, partition, channel);
    }
}

}  // namespace zscgan::cuda
