// Launches maps over any number of tensors.
#pragma once

#include "column_map.cuh"
#include "row_map.cuh"

namespace zscgan::cuda {

template <class Operation, int row_capacity, int column_capacity>
class MapLauncher {
public:
    explicit MapLauncher(void* stream)
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
