// Reductions by channel where inner > 1: a row is `inner` consecutive elements of one channel. A
// long channel is split over blocks, a short one belongs to one warp.
#pragma once

#include "reduction.cuh"

namespace zscgan::cuda {

struct RowPartition {
    int64_t numel;
    int64_t channels;
    int64_t inner;
    int64_t vectors;  // of a channel, those shared with a neighbour included
    int64_t vectors_per_block;
    Divider vectors_per_row;
    unsigned* counters;  // [channels]
    void* partials;      // sums [channels, splits]
    int splits;
    bool warp_per_channel;
    bool whole_rows;  // every vector lies in one row
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

// Depends on sizes only, so that the same values give the same bits wherever they lie.
inline RowPartition plan_row_reduction(const Shape3& shape) {
    constexpr int64_t vectors_of_warp = 8 * warp_threads;
    constexpr int64_t fewest_vectors_of_block = fewest_vectors_per_thread * block_threads;
    const bool whole_rows = shape.inner % vector_size == 0;
    const int64_t vectors_per_row = bounded(
        (shape.inner + (whole_rows ? 0 : 2 * (vector_size - 1))) / vector_size, 1, INT64_MAX);
    RowPartition partition = {};
    partition.numel = shape.numel();
    partition.channels = shape.channels;
    partition.inner = shape.inner;
    partition.whole_rows = whole_rows;
    partition.vectors = partition.numel == 0 ? 0 : shape.outer * vectors_per_row;
    partition.vectors_per_row = Divider(vectors_per_row);
    partition.warp_per_channel = partition.vectors <= vectors_of_warp;
    const int64_t splits = bounded(partition.vectors / fewest_vectors_of_block, 1,
                                   bounded(most_row_blocks / shape.channels, 1, most_row_blocks));
    partition.vectors_per_block = bounded(divide_up(partition.vectors, splits), 1, INT64_MAX);
    const int64_t used = divide_up(partition.vectors, partition.vectors_per_block);
    partition.splits = partition.warp_per_channel ? 1 : static_cast<int>(used);
    return partition;
}

// Walks over the vectors of a channel in steps of a team of threads.
class RowWalker {
public:
    __device__ __forceinline__ RowWalker(const RowPartition& partition, int64_t channel,
                                         int64_t index, int team)
        : partition_(partition) {
        const Divider& per_row = partition.vectors_per_row;
        const int64_t row = per_row.quotient(index);
        const int64_t step_rows = per_row.quotient(team);
        position_ = index - row * per_row.divisor();
        start_ = row * partition.channels * partition.inner + channel * partition.inner;
        step_position_ = team - step_rows * per_row.divisor();
        step_start_ = step_rows * partition.channels * partition.inner;
    }
    __device__ __forceinline__ void advance() {
        position_ += step_position_;
        start_ += step_start_;
        if (position_ >= partition_.vectors_per_row.divisor()) {
            position_ -= partition_.vectors_per_row.divisor();
            start_ += partition_.channels * partition_.inner;
        }
    }
    __device__ __forceinline__ VectorPart vector() const {
        if (partition_.whole_rows) {
            return {start_ + position_ * vector_size, whole_vector, partition_.wide};
        }
        const int64_t first = (start_ / vector_size + position_) * vector_size;
        const int skipped = position_ == 0 ? static_cast<int>(start_ % vector_size) : 0;
        const int end = clamp_to_vector(start_ + partition_.inner - first);
        return {first, vector_bits(skipped, end),
                partition_.wide && first + vector_size <= partition_.numel};
    }

private:
    const RowPartition& partition_;
    int64_t start_;     // element at which the row starts
    int64_t position_;  // vector within the row
    int64_t step_start_;
    int64_t step_position_;
};

template <class Operation>
__device__ __forceinline__ AccumulatorOf<Operation> visit_row_vector(
    const Operation& operation, const typename Operation::Parameters& parameters,
    const VectorPart& part, const Vector8<typename Operation::Element>& source,
    const Vector8<typename Operation::Element>& second) {
    float values[vector_size];
    float seconds[vector_size] = {};
    unpack(source, values);
    if constexpr (Operation::reads_second) unpack(second, seconds);
    auto sums = Operation::start();
    if (part.valid == whole_vector) {
#pragma unroll
        for (int j = 0; j < vector_size; ++j) {
            values[j] = operation.visit(values[j], seconds[j], parameters, sums);
        }
    } else {
#pragma unroll
        for (int j = 0; j < vector_size; ++j) {
            if (!(part.valid >> j & 1)) continue;
            values[j] = operation.visit(values[j], seconds[j], parameters, sums);
        }
    }
    if constexpr (Operation::writes_target) store_vector(operation.target, part, values);
    return sums;
}

// The sums of the vectors begin, begin + team, ... of a channel in float64.
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> wide_sums(
    const Operation& operation, const RowPartition& partition,
    const typename Operation::Parameters& parameters, RowWalker walker, int64_t begin, int64_t end,
    int team) {
    auto sums = widen(Operation::start());
#pragma unroll 1
    for (int64_t index = begin; index < end; index += team, walker.advance()) {
        const VectorPart part = walker.vector();
        float values[vector_size];
        unpack(load_vector(operation.source, part), values);
#pragma unroll
        for (int j = 0; j < vector_size; ++j) {
            if (part.valid >> j & 1) Operation::visit_wide(values[j], parameters, sums);
        }
    }
    return sums;
}

// The vectors begin, begin + team, ... of a channel.
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> reduce_vectors(const Operation& operation,
                                                            const RowPartition& partition,
                                                            int64_t channel, int64_t begin,
                                                            int64_t end, int team) {
    constexpr int batch = reduction_batch<Operation>;
    const auto parameters = operation.parameters(channel);
    RowWalker walker(partition, channel, begin, team);
    auto total = Operation::start();
#pragma unroll 1
    for (int64_t index = begin; index < end;) {
        VectorPart part[batch];
        Vector8<typename Operation::Element> source[batch], second[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i, index += team, walker.advance()) {
            part[i] = index < end ? walker.vector() : VectorPart{0, 0, false};
            source[i] = load_vector(operation.source, part[i]);
            if constexpr (Operation::reads_second) {
                second[i] = load_vector(operation.second_source, part[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            total = Operation::combine(
                total, visit_row_vector(operation, parameters, part[i], source[i], second[i]));
        }
    }
    if constexpr (has_wide_sums<Operation>) {
        if (!is_finite(total)) {
            return wide_sums(operation, partition, parameters,
                             RowWalker(partition, channel, begin, team), begin, end, team);
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
    const auto sums = combine_warp<Operation>(reduce_vectors(operation, partition, channel,
                                                             threadIdx.x % warp_threads,
                                                             partition.vectors, warp_threads));
    if (threadIdx.x % warp_threads == 0) operation.finish(channel, sums);
}

template <class Operation>
__device__ __forceinline__ void merge_splits(const Operation& operation,
                                             const RowPartition& partition, int64_t channel) {
    auto sums = combine_partials<Operation>(
        widen(Operation::start()), partials_of<Operation>(partition) + channel * partition.splits,
        threadIdx.x, partition.splits, block_threads);
    sums = combine_block<Operation>(sums);
    if (threadIdx.x == 0) operation.finish(channel, sums);
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
    const int64_t begin = split * partition.vectors_per_block;
    const int64_t limit = begin + partition.vectors_per_block;
    const int64_t end = limit < partition.vectors ? limit : partition.vectors;
    const auto sums = combine_block<Operation>(
        reduce_vectors(operation, partition, channel, begin + threadIdx.x, end, block_threads));
    if (partition.splits == 1) {
        if (threadIdx.x == 0) operation.finish(channel, sums);
        return;
    }
    if (threadIdx.x == 0) {
        partials_of<Operation>(partition)[channel * partition.splits + split] = sums;
    }
    if (is_last_block(partition.counters + channel, partition.splits)) {
        merge_splits(operation, partition, channel);
    }
}

}  // namespace zscgan::cuda
