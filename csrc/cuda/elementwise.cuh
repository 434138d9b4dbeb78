// Operations that map every element by the parameters of its channel, one pass over memory.
//
// An operation has
//   using Element;                                          // float, __half or __nv_bfloat16
//   using Parameters;                                       // of one channel
//   const Element* source; Element* target;
//   Parameters parameters(int64_t channel) const;
//   float apply(float x, const Parameters&, bool& flag) const;
//   void store_flags(int64_t octet, unsigned flags) const;  // bit j: the flag of element j
#pragma once

#include <numeric>

#include "launch.cuh"
#include "octet.cuh"

namespace zscgan::cuda {

// Octets that a thread loads before it waits for the first: two in half precision too, since more
// of them do not fit into the registers beside the parameters of eight channels.
constexpr int map_batch = 2;

// How a tensor is cut into octets: octet i starts at element 8 * i - skew.
struct Octets {
    int64_t numel;
    int64_t count;
    int skew;
    bool wide;

    __device__ __forceinline__ int64_t first(int64_t octet) const {
        return octet * octet_size - skew;
    }
    __device__ __forceinline__ unsigned valid(int64_t octet) const {
        return octet < count ? octet_bits(-first(octet), numel - first(octet)) : 0;
    }
};

// Equally misaligned operands get a skew that puts their octets on 16-byte boundaries. With a mask
// octets must be bytes of the mask: then only aligned operands are accessed in 16 bytes.
inline Octets cut_octets(int64_t numel, int64_t element_bytes, const void* source,
                         const void* target, bool masked) {
    const auto offset = reinterpret_cast<uintptr_t>(source) % 16;
    const bool wide = offset == reinterpret_cast<uintptr_t>(target) % 16 &&
                      offset % element_bytes == 0 && (offset == 0 || !masked);
    const int skew = wide ? static_cast<int>(offset / element_bytes) : 0;
    return {numel, divide_up(numel + skew, octet_size), skew, wide};
}

template <class Operation>
__device__ __forceinline__ Octet<typename Operation::Element> load_source(
    const Operation& operation, const Octets& octets, int64_t octet) {
    const unsigned valid = octets.valid(octet);
    return load_octet(operation.source, octets.first(octet), valid,
                      octets.wide && valid == whole_octet);
}

template <class Operation>
__device__ __forceinline__ void store_target(const Operation& operation, const Octets& octets,
                                             int64_t octet, const float (&values)[octet_size],
                                             unsigned flags) {
    const unsigned valid = octets.valid(octet);
    if (valid == 0) return;
    Octet<typename Operation::Element> packed;
    pack(values, packed);
    store_octet(operation.target, octets.first(octet), valid, octets.wide && valid == whole_octet,
                packed);
    operation.store_flags(octet, flags & valid);
}

// inner > 1: an octet lies in one row, or it crosses into the next.

struct RowMap {
    static constexpr int octets_per_block = 4 * block_threads;

    Octets octets;
    Divider inner;
    Divider channels;

    int64_t blocks() const { return divide_up(octets.count, octets_per_block); }
};

template <class Operation>
struct RowMapTask {
    Operation operation;
    RowMap map;
};

template <class Operation>
__device__ __forceinline__ unsigned map_crossing_octet(const Operation& operation,
                                                       const RowMap& map, unsigned valid,
                                                       int64_t channel, int64_t remaining,
                                                       float (&values)[octet_size]) {
    auto parameters = operation.parameters(channel);
    unsigned flags = 0;
#pragma unroll
    for (int j = 0; j < octet_size; ++j) {
        if (!(valid >> j & 1)) continue;
        if (remaining == 0) {
            channel = channel + 1 == map.channels.divisor() ? 0 : channel + 1;
            remaining = map.inner.divisor();
            parameters = operation.parameters(channel);
        }
        --remaining;
        bool flag = false;
        values[j] = operation.apply(values[j], parameters, flag);
        flags |= static_cast<unsigned>(flag) << j;
    }
    return flags;
}

template <class Operation>
__device__ __forceinline__ unsigned map_row_octet(const Operation& operation, const RowMap& map,
                                                  int64_t octet, float (&values)[octet_size]) {
    const int64_t first = map.octets.first(octet);
    const int64_t start = first < 0 ? 0 : first;
    const int64_t row = map.inner.quotient(start);
    const int64_t channel = row - map.channels.quotient(row) * map.channels.divisor();
    const int64_t remaining = (row + 1) * map.inner.divisor() - start;
    if (remaining < octet_size) {
        return map_crossing_octet(operation, map, map.octets.valid(octet), channel, remaining,
                                  values);
    }
    const auto parameters = operation.parameters(channel);
    unsigned flags = 0;
#pragma unroll
    for (int j = 0; j < octet_size; ++j) {
        bool flag = false;
        values[j] = operation.apply(values[j], parameters, flag);
        flags |= static_cast<unsigned>(flag) << j;
    }
    return flags;
}

template <class Operation, int capacity>
__global__ __launch_bounds__(block_threads, 4) void map_rows(
    const __grid_constant__ Table<RowMapTask<Operation>, capacity> table) {
    const int index = table.index_of_block(blockIdx.x);
    const Operation& operation = table.tasks[index].operation;
    const RowMap& map = table.tasks[index].map;
    const int64_t block = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int64_t begin = block * RowMap::octets_per_block + threadIdx.x;
#pragma unroll 1
    for (int step = 0; step < RowMap::octets_per_block; step += map_batch * block_threads) {
        Octet<typename Operation::Element> source[map_batch];
#pragma unroll
        for (int i = 0; i < map_batch; ++i) {
            source[i] = load_source(operation, map.octets, begin + step + i * block_threads);
        }
#pragma unroll
        for (int i = 0; i < map_batch; ++i) {
            const int64_t octet = begin + step + i * block_threads;
            if (octet >= map.octets.count) return;
            float values[octet_size];
            unpack(source[i], values);
            const unsigned flags = map_row_octet(operation, map, octet, values);
            store_target(operation, map.octets, octet, values, flags);
        }
    }
}

// inner == 1: the octets of a thread are a multiple of the channels apart, so that the parameters
// of its eight channels are read once.

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

template <class Operation, int capacity>
__global__ __launch_bounds__(block_threads, 4) void map_columns(
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
    for (int64_t next = begin; next < map.octets.count; next += map_batch * map.stride) {
        Octet<typename Operation::Element> source[map_batch];
#pragma unroll
        for (int i = 0; i < map_batch; ++i) {
            source[i] = load_source(operation, map.octets, next + i * map.stride);
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
            store_target(operation, map.octets, next + i * map.stride, values, flags);
        }
    }
}

inline RowMap plan_row_map(const Extent& extent, const Octets& octets) {
    return {octets, Divider(extent.inner), Divider(extent.channels)};
}

inline ColumnMap plan_column_map(const Extent& extent, const Octets& octets) {
    constexpr int64_t busy_threads = int64_t{1} << 18;
    const int64_t channels = extent.channels;
    const int64_t period = channels / std::gcd(channels, int64_t{octet_size});
    const int64_t octets_per_thread = bounded(octets.count / busy_threads, 1, 16);
    const int64_t threads = divide_up(octets.count, octets_per_thread);
    return {octets, channels, divide_up(threads, period) * period};
}

// Launches both kinds of map over any number of tensors.
template <class Operation, int row_capacity, int column_capacity>
class ElementwiseLauncher {
   public:
    explicit ElementwiseLauncher(void* stream)
        : rows_(map_rows<Operation, row_capacity>, stream),
          columns_(map_columns<Operation, column_capacity>, stream) {}

    const char* add(const Operation& operation, const Extent& extent, bool masked) {
        if (extent.numel() == 0) return nullptr;
        using Element = typename Operation::Element;
        const Octets octets =
            cut_octets(extent.numel(), sizeof(Element), operation.source, operation.target, masked);
        if (extent.inner == 1 || extent.channels == 1) {
            const ColumnMap map = plan_column_map(extent, octets);
            return columns_.add({operation, map}, map.blocks());
        }
        const RowMap map = plan_row_map(extent, octets);
        return rows_.add({operation, map}, map.blocks());
    }

    const char* flush() {
        const char* error = rows_.flush();
        return error ? error : columns_.flush();
    }

   private:
    TableLauncher<RowMapTask<Operation>, row_capacity> rows_;
    TableLauncher<ColumnMapTask<Operation>, column_capacity> columns_;
};

}  // namespace zscgan::cuda
