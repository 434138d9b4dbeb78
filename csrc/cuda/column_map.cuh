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

// Of the registers, the parameters of eight channels and the octets of all sources need most.
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
    if (begin >= map.stride || begin >= map.octets.count) return;
    typename Operation::Parameters parameters[octet_size];
    read_parameters(operation, map, begin, parameters);
#pragma unroll 1
    for (int64_t octet = begin; octet < map.octets.count; octet += batch * map.stride) {
        LoadedOctets<Operation> loaded[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            loaded[i].load(operation, map.octets, octet + i * map.stride);
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            MappedOctets<Operation> mapped(operation, map.octets, octet + i * map.stride,
                                           loaded[i]);
#pragma unroll
            for (int j = 0; j < octet_size; ++j) mapped.apply(operation, parameters[j], j);
            mapped.store(operation, map.octets, octet + i * map.stride);
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
