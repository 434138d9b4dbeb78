// Launches maps over any number of tensors.
#pragma once

#include "column_map.cuh"
#include "row_map.cuh"

namespace zscgan::cuda {

template <class Operation>
Vectors cut_operands(const Operation& operation, int64_t numel, bool masked) {
    constexpr int64_t bytes = sizeof(typename Operation::Element);
    if constexpr (source_count<Operation> == 1) {
        return cut_vectors(numel, bytes, {operation.source, operation.target}, masked);
    } else {
        const void* second_target =
            operation.second_target ? operation.second_target : operation.target;
        const void* last_source = operation.more_sources[Operation::more_source_count - 1];
        return cut_vectors(numel, bytes,
                           {operation.source, operation.more_sources[0], last_source,
                            operation.target, second_target},
                           masked);
    }
}

template <class Operation, int row_capacity, int column_capacity>
class MapLauncher {
public:
    explicit MapLauncher(void* stream)
        : rows_(map_rows<Operation, row_capacity>, stream),
          columns_(map_columns<Operation, column_capacity>, stream) {}

    const char* add(const Operation& operation, const Shape3& shape, bool masked) {
        if (shape.numel() == 0) return nullptr;
        const Vectors vectors = cut_operands(operation, shape.numel(), masked);
        if (shape.inner == 1 || shape.channels == 1) {
            const ColumnMap map = plan_column_map(shape, vectors);
            return columns_.add({operation, map}, map.blocks());
        }
        const RowMap map = plan_row_map(shape, vectors, map_batch<Operation>);
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
