// Reductions by channel where inner == 1: the channel is the fastest index. Threads lie along the
// channels, so that loads coalesce, and walk down the rows.
//
// Rows are joined until they are a multiple of eight elements long. The columns of such a joined
// row are reduced one by one and folded to channels in the end.
#pragma once

#include <algorithm>
#include <numeric>

#include "reduction.cuh"

namespace zscgan::cuda {

// Columns that one block reduces: 128 bytes of a row in half precision.
constexpr int tile_vectors = 8;
constexpr int tile_columns = tile_vectors * vector_size;

struct ColumnPartition {
    int64_t numel;
    int64_t channels;
    int64_t vectors_per_row;  // of a joined row
    int64_t rows;             // joined rows
    int64_t rows_per_block;
    unsigned* counters;  // [tiles], or [1] where columns are folded
    void* partials;      // sums [splits, columns]
    int tiles;
    int splits;
    int folds;  // rows in a joined row
    bool wide;

    int64_t blocks() const { return int64_t{tiles} * splits; }
    __host__ __device__ __forceinline__ bool is_merged() const { return splits > 1 || folds > 1; }
    int64_t counter_count() const { return !is_merged() ? 0 : folds > 1 ? 1 : tiles; }
    int64_t partial_count() const {
        return is_merged() ? splits * vectors_per_row * vector_size : 0;
    }
};

template <class Operation>
struct ColumnReductionTask {
    Operation operation;
    ColumnPartition partition;
};

// Depends on sizes only, so that the same values give the same bits wherever they lie.
inline ColumnPartition plan_column_reduction(const Shape3& shape) {
    // Blocks for two on each multiprocessor: what they leave is merged by one.
    constexpr int64_t usual_splits = 256;
    // A thread's float32 sums of more rows than this would lose digits.
    constexpr int64_t most_rows_of_thread = 1024;
    ColumnPartition partition = {};
    partition.numel = shape.numel();
    partition.channels = shape.channels;
    partition.folds = vector_size / std::gcd(shape.channels, int64_t{vector_size});
    partition.vectors_per_row = shape.channels * partition.folds / vector_size;
    partition.rows = divide_up(partition.numel, partition.vectors_per_row * vector_size);
    partition.tiles = static_cast<int>(divide_up(partition.vectors_per_row, tile_vectors));
    const int64_t lanes = block_threads / bounded(partition.vectors_per_row, 1, tile_vectors);
    const int64_t most_splits =
        std::max(bounded(most_column_blocks / partition.tiles, 1, usual_splits),
                 divide_up(partition.rows, lanes * most_rows_of_thread));
    // Blocks of a tile count themselves, in a counter of the tile's own.
    const bool is_countable = partition.folds > 1 || partition.tiles <= all_counters;
    const int64_t splits =
        is_countable ? bounded(partition.rows / (lanes * fewest_vectors_per_thread), 1, most_splits)
                     : 1;
    partition.rows_per_block = bounded(divide_up(partition.rows, splits), 1, INT64_MAX);
    partition.splits =
        static_cast<int>(bounded(divide_up(partition.rows, partition.rows_per_block), 1, splits));
    return partition;
}

// A thread's eight columns and their running results.
template <class Operation>
struct Columns {
    typename Operation::Parameters parameters[vector_size];
    AccumulatorOf<Operation> sums[vector_size];

    __device__ __forceinline__ Columns(const Operation& operation, int64_t channels,
                                       int64_t vector) {
        int64_t channel = vector * vector_size % channels;
#pragma unroll
        for (int j = 0; j < vector_size; ++j) {
            parameters[j] = operation.parameters(channel);
            sums[j] = Operation::start();
            channel = channel + 1 == channels ? 0 : channel + 1;
        }
    }

    __device__ __forceinline__ void visit(const Operation& operation, const VectorPart& part,
                                          const Vector8<typename Operation::Element>& source,
                                          const Vector8<typename Operation::Element>& second) {
        float values[vector_size];
        float seconds[vector_size] = {};
        unpack(source, values);
        if constexpr (Operation::reads_second) unpack(second, seconds);
        if (part.valid == whole_vector) {
#pragma unroll
            for (int j = 0; j < vector_size; ++j) {
                values[j] = operation.visit(values[j], seconds[j], parameters[j], sums[j]);
            }
        } else {
#pragma unroll
            for (int j = 0; j < vector_size; ++j) {
                if (!(part.valid >> j & 1)) continue;
                values[j] = operation.visit(values[j], seconds[j], parameters[j], sums[j]);
            }
        }
        if constexpr (Operation::writes_target) store_vector(operation.target, part, values);
    }
};

// Rows begin, begin + lanes, ... of one vector of columns.
template <class Operation>
__device__ __forceinline__ void reduce_lane(const Operation& operation,
                                            const ColumnPartition& partition, int64_t vector,
                                            int64_t begin, int64_t end, int lanes,
                                            Columns<Operation>& columns) {
    constexpr int batch = reduction_batch<Operation>;
    const int64_t step = lanes * partition.vectors_per_row * vector_size;
    int64_t first = (begin * partition.vectors_per_row + vector) * vector_size;
#pragma unroll 1
    for (int64_t row = begin; row < end;) {
        VectorPart part[batch];
        Vector8<typename Operation::Element> source[batch], second[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i, row += lanes, first += step) {
            const int length = row < end ? clamp_to_vector(partition.numel - first) : 0;
            part[i] = {first, vector_bits(0, length), partition.wide && length == vector_size};
            source[i] = load_vector(operation.source, part[i]);
            if constexpr (Operation::reads_second) {
                second[i] = load_vector(operation.second_source, part[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            columns.visit(operation, part[i], source[i], second[i]);
        }
    }
}

// The sums of one column in float64, over rows begin, begin + lanes, ...
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> wide_sums(const Operation& operation,
                                                       const ColumnPartition& partition,
                                                       int64_t column, int64_t begin, int64_t end,
                                                       int lanes) {
    const auto parameters = operation.parameters(column % partition.channels);
    auto sums = widen(Operation::start());
    for (int64_t row = begin; row < end; row += lanes) {
        const int64_t place = row * partition.vectors_per_row * vector_size + column;
        if (place >= partition.numel) break;
        float values[vector_size];
        unpack(load_narrow(operation.source, place, 1), values);
        Operation::visit_wide(values[0], parameters, sums);
    }
    return sums;
}

// The rows that a block reduces.
struct RowRange {
    int64_t begin;
    int64_t end;
};

// The results of a block's columns from `first_column` on: thread c < columns gets column c of the
// tile.
template <class Operation>
__device__ __forceinline__ SumsOf<Operation> combine_lanes(const Operation& operation,
                                                           const ColumnPartition& partition,
                                                           const Columns<Operation>& columns,
                                                           int64_t first_column, RowRange rows,
                                                           int width, int lanes) {
    __shared__ AccumulatorOf<Operation> sums[vector_size][block_threads];
#pragma unroll
    for (int j = 0; j < vector_size; ++j) sums[j][threadIdx.x] = columns.sums[j];
    __syncthreads();
    const int count = width * vector_size;
    const int helpers = block_threads / count;
    const int column = threadIdx.x % count;
    auto total = widen(Operation::start());
    if (threadIdx.x / count < helpers) {
        for (int lane = threadIdx.x / count; lane < lanes; lane += helpers) {
            const auto& sum = sums[column % vector_size][lane * width + column / vector_size];
            auto wide = widen(sum);
            if constexpr (has_wide_sums<Operation>) {
                if (!is_finite(sum)) {
                    wide = wide_sums(operation, partition, first_column + column, rows.begin + lane,
                                     rows.end, lanes);
                }
            }
            total = Operation::combine(total, wide);
        }
    }
    return combine_helpers<Operation>(total, count, helpers);
}

// Folds and merges the partials of the channels begin <= c < end.
template <class Operation>
__device__ __forceinline__ void merge_columns(const Operation& operation,
                                              const ColumnPartition& partition, int64_t begin,
                                              int64_t end) {
    constexpr int helpers = block_threads / tile_columns;
    const int64_t columns = partition.vectors_per_row * vector_size;
    for (int64_t base = begin; base < end; base += tile_columns) {
        const int64_t channel = base + threadIdx.x % tile_columns;
        auto sums = widen(Operation::start());
        for (int64_t column = channel; channel < end && column < columns;
             column += partition.channels) {
            sums = combine_partials<Operation>(sums, partials_of<Operation>(partition),
                                               column + threadIdx.x / tile_columns * columns,
                                               partition.splits * columns, helpers * columns);
        }
        sums = combine_helpers<Operation>(sums, tile_columns, helpers);
        if (threadIdx.x < tile_columns && channel < end) operation.finish(channel, sums);
    }
}

template <class Operation, int capacity>
__global__ __launch_bounds__(block_threads, 2) void reduce_columns(
    const __grid_constant__ Table<ColumnReductionTask<Operation>, capacity> table) {
    const int index = table.index_of_block(blockIdx.x);
    const Operation& operation = table.tasks[index].operation;
    const ColumnPartition& partition = table.tasks[index].partition;
    const int block = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int split = block / partition.tiles;
    const int tile = block - split * partition.tiles;
    const int64_t rest = partition.vectors_per_row - int64_t{tile} * tile_vectors;
    const int width = rest < tile_vectors ? static_cast<int>(rest) : tile_vectors;
    const int lanes = block_threads / width;
    const int64_t vector = int64_t{tile} * tile_vectors + threadIdx.x % width;
    const int lane = threadIdx.x / width;
    const int64_t begin = split * partition.rows_per_block;
    const int64_t limit = begin + partition.rows_per_block;
    const int64_t end = limit < partition.rows ? limit : partition.rows;
    Columns<Operation> columns(operation, partition.channels, vector);
    reduce_lane(operation, partition, vector, begin + lane, lane < lanes ? end : 0, lanes, columns);
    const int64_t first_column = int64_t{tile} * tile_columns;
    const auto sums =
        combine_lanes(operation, partition, columns, first_column, {begin, end}, width, lanes);
    const int64_t column = first_column + threadIdx.x;
    const bool owner = threadIdx.x < width * vector_size;
    if (!partition.is_merged()) {
        if (owner) operation.finish(column, sums);
        return;
    }
    const int64_t row_columns = partition.vectors_per_row * vector_size;
    if (owner) partials_of<Operation>(partition)[split * row_columns + column] = sums;
    const bool folded = partition.folds > 1;
    unsigned* counter = partition.counters + (folded ? 0 : tile);
    if (!is_last_block(counter, folded ? partition.tiles * partition.splits : partition.splits)) {
        return;
    }
    const int64_t first = folded ? 0 : first_column;
    merge_columns(operation, partition, first,
                  folded ? partition.channels : first + width * vector_size);
}

}  // namespace zscgan::cuda
