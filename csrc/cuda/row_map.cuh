// Maps where inner > 1: a row is `inner` consecutive elements of one channel. A vector lies in one
// row, or it crosses into the next.
#pragma once

#include "map.cuh"

namespace zscgan::cuda {

struct RowMap {
    Vectors vectors;
    Divider inner;
    Divider channels;
    int step_channels;  // channels and elements from a vector of a thread to its next
    int step_elements;
    int vectors_per_block;

    int64_t blocks() const { return divide_up(vectors.count, vectors_per_block); }
};

template <class Operation>
struct RowMapTask {
    Operation operation;
    RowMap map;
};

// Where a vector starts: a channel, and the elements of its row before the vector. Elements before
// the tensor count as the last channels.
struct RowPosition {
    int64_t channel;
    int64_t element;

    __device__ __forceinline__ RowPosition(const RowMap& map, int64_t vector) {
        const int64_t first = map.vectors.first(vector);
        const int64_t channels = map.channels.divisor();
        const int64_t start =
            first < 0 ? first + vector_size * channels * map.inner.divisor() : first;
        const int64_t row = map.inner.quotient(start);
        channel = row - map.channels.quotient(row) * channels;
        element = start - row * map.inner.divisor();
    }
    __device__ __forceinline__ void advance(const RowMap& map) {
        channel += map.step_channels;
        element += map.step_elements;
        if (element >= map.inner.divisor()) {
            element -= map.inner.divisor();
            ++channel;
        }
        if (channel >= map.channels.divisor()) channel -= map.channels.divisor();
    }
};

template <class Operation>
__device__ __forceinline__ void map_crossing_vector(const Operation& operation, const RowMap& map,
                                                    unsigned valid, RowPosition at,
                                                    MappedVectors<Operation>& mapped) {
    auto parameters = operation.parameters(at.channel);
#pragma unroll
    for (int j = 0; j < vector_size; ++j, ++at.element) {
        if (at.element == map.inner.divisor()) {
            at.element = 0;
            at.channel = at.channel + 1 == map.channels.divisor() ? 0 : at.channel + 1;
            parameters = operation.parameters(at.channel);
        }
        if (valid >> j & 1) mapped.apply(operation, parameters, j);
    }
}

template <class Operation, int capacity>
__global__ __launch_bounds__(block_threads, 3) void map_rows(
    const __grid_constant__ Table<RowMapTask<Operation>, capacity> table) {
    constexpr int batch = map_batch<Operation>;
    const int index = table.index_of_block(blockIdx.x);
    const Operation& operation = table.tasks[index].operation;
    const RowMap& map = table.tasks[index].map;
    const int64_t block = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int64_t limit = (block + 1) * map.vectors_per_block;
    const int64_t end = limit < map.vectors.count ? limit : map.vectors.count;
    int64_t vector = block * map.vectors_per_block + threadIdx.x;
    RowPosition at(map, vector);
    int64_t known_channel = at.channel;
    auto parameters = operation.parameters(known_channel);
#pragma unroll 1
    while (vector < end) {
        LoadedVectors<Operation> loaded[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            loaded[i].load(operation, map.vectors, vector + i * block_threads);
        }
#pragma unroll
        for (int i = 0; i < batch && vector < end; ++i, vector += block_threads) {
            MappedVectors<Operation> mapped(loaded[i]);
            if (at.channel != known_channel) {
                known_channel = at.channel;
                parameters = operation.parameters(known_channel);
            }
            const bool crossing = at.element + vector_size > map.inner.divisor();
            if (crossing) {
                map_crossing_vector(operation, map, map.vectors.valid(vector), at, mapped);
            } else {
#pragma unroll
                for (int j = 0; j < vector_size; ++j) mapped.apply(operation, parameters, j);
            }
            mapped.store(operation, map.vectors, vector);
            at.advance(map);
        }
    }
}

inline RowMap plan_row_map(const Shape3& shape, const Vectors& vectors, int batch) {
    constexpr int64_t step = block_threads * vector_size;
    RowMap map = {};
    map.vectors = vectors;
    map.inner = Divider(shape.inner);
    map.channels = Divider(shape.channels);
    map.step_channels = static_cast<int>(step / shape.inner % shape.channels);
    map.step_elements = static_cast<int>(step % shape.inner);
    const int64_t batches = divide_up(vectors_per_thread(vectors), batch);
    map.vectors_per_block = static_cast<int>(batches * batch * block_threads);
    return map;
}

}  // namespace zscgan::cuda
