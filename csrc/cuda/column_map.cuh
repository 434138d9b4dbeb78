// Maps where inner == 1: the channel is the fastest index. The octets of a thread are a multiple of
// the channels apart, so that the parameters of its eight channels are read once.
#pragma once

#include <numeric>

#include "map.cuh"

namespace zscgan::cuda {

struct ColumnMap {
    Octets octets;
    int64_t channels;
    int64_t stride;  // octets from one of a thread to its next

    int64_t blocks() const { return divide_up(stride, block_threads); }
};

template <class Operation>
struct ColumnMapTask {
    Operation operation;
    ColumnMap map;
};

template <class Operation>
__device__ __forceinline__ void read_parameters(
    const Operation& operation, const ColumnMap& map, int64_t octet,
    typename Operation::Parameters (&parameters)[octet_size]) {
    const int64_t first = map.octets.first(octet);
    int64_t channel = (first < 0 ? first + octet_size * map.channels : first) % map.channels;
#pragma unroll
    for (int j = 0; j < octet_size; ++j) {
        parameters[j] = operation.parameters(channel);
        channel = channel + 1 == map.channels ? 0 : channel + 1;
    }
}

// Blocks that share a multiprocessor leave registers for the parameters of eight channels.
template <class Operation>
constexpr int column_blocks = sizeof(typename Operation::Parameters) <= 12 ? 4 : 3;

template <class Operation, int capacity>
__global__ __launch_bounds__(block_threads, column_blocks<Operation>) void map_columns(
    const __grid_constant__ Table<ColumnMapTask<Operation>, capacity> table) {
    const int index = table.index_of_block(blockIdx.x);
    const Operation& operation = table.tasks[index].operation;
    const ColumnMap& map = table.tasks[index].map;
    const int64_t block = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int64_t begin = block * block_threads + threadIdx.x;
    if (begin >= map.stride || begin >= map.octets.count) return;
    typename Operation::Parameters parameters[octet_size];
    read_parameters(operation, map, begin, parameters);
#pragma unroll 1
    for (int64_t octet = begin; octet < map.octets.count; octet += map_batch * map.stride) {
        Octet<typename Operation::Element> source[map_batch];
#pragma unroll
        for (int i = 0; i < map_batch; ++i) {
            source[i] = load_source(operation, map.octets, octet + i * map.stride);
        }
#pragma unroll
        for (int i = 0; i < map_batch; ++i) {
            float values[octet_size];
            unpack(source[i], values);
            unsigned flags = 0;
#pragma unroll
            for (int j = 0; j < octet_size; ++j) {
                bool flag = false;
                values[j] = operation.apply(values[j], parameters[j], flag);
                flags |= static_cast<unsigned>(flag) << j;
            }
            store_target(operation, map.octets, octet + i * map.stride, values, flags);
        }
    }
}

inline ColumnMap plan_column_map(const Extent& extent, const Octets& octets) {
    const int64_t channels = extent.channels;
    const int64_t period = channels / std::gcd(channels, int64_t{octet_size});
    const int64_t threads = divide_up(octets.count, octets_per_thread(octets));
    return {octets, channels, divide_up(threads, period) * period};
}

}  // namespace zscgan::cuda
