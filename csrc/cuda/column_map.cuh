// Maps where inner == 1: the channel is the fastest index. The vectors of a thread are a multiple
// of the channels apart, so that the parameters of its eight channels are read once.
#pragma once

#include <numeric>

#include "map.cuh"

namespace zscgan::cuda {

struct ColumnMap {
    Vectors vectors;
    int64_t channels;
    int64_t stride;  // vectors from one of a thread to its next

    int64_t blocks() const { return divide_up(stride, block_threads); }
};

template <class Operation>
struct ColumnMapTask {
    Operation operation;
    ColumnMap map;
};

template <class Operation>
__device__ __forceinline__ void read_parameters(
    const Operation& operation, const ColumnMap& map, int64_t vector,
    typename Operation::Parameters (&parameters)[vector_size]) {
    const int64_t first = map.vectors.first(vector);
    int64_t channel = (first < 0 ? first + vector_size * map.channels : first) % map.channels;
#pragma unroll
    for (int j = 0; j < vector_size; ++j) {
        parameters[j] = operation.parameters(channel);
        channel = channel + 1 == map.channels ? 0 : channel + 1;
    }
}

// Of the registers, the parameters of eight channels and the vectors of all sources need most.
template <class Operation>
constexpr int resident_column_blocks = source_count<Operation> > 1                   ? 2
                                       : sizeof(typename Operation::Parameters) > 12 ? 3
                                                                                     : 4;

template <class Operation, int capacity>
__global__ __launch_bounds__(block_threads, resident_column_blocks<Operation>) void map_columns(
    const __grid_constant__ Table<ColumnMapTask<Operation>, capacity> table) {
    constexpr int batch = map_batch<Operation>;
    const int index = table.index_of_block(blockIdx.x);
    const Operation& operation = table.tasks[index].operation;
    const ColumnMap& map = table.tasks[index].map;
    const int64_t block = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int64_t begin = block * block_threads + threadIdx.x;
    if (begin >= map.stride || begin >= map.vectors.count) return;
    typename Operation::Parameters parameters[vector_size];
    read_parameters(operation, map, begin, parameters);
#pragma unroll 1
    for (int64_t vector = begin; vector < map.vectors.count; vector += batch * map.stride) {
        LoadedVectors<Operation> loaded[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            loaded[i].load(operation, map.vectors, vector + i * map.stride);
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            MappedVectors<Operation> mapped(loaded[i]);
#pragma unroll
            for (int j = 0; j < vector_size; ++j) mapped.apply(operation, parameters[j], j);
            mapped.store(operation, map.vectors, vector + i * map.stride);
        }
    }
}

inline ColumnMap plan_column_map(const Shape3& shape, const Vectors& vectors) {
    const int64_t channels = shape.channels;
    const int64_t period = channels / std::gcd(channels, int64_t{vector_size});
    const int64_t threads = divide_up(vectors.count, vectors_per_thread(vectors));
    return {vectors, channels, divide_up(threads, period) * period};
}

}  // namespace zscgan::cuda
