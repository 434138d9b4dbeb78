// Plans and launches reductions by channel over any number of tensors.
#pragma once

#include "column_reduction.cuh"
#include "row_reduction.cuh"

namespace zscgan::cuda {

inline bool is_reduced_by_columns(const Extent& extent) {
    return extent.inner == 1 && extent.channels > 1;
}

// A tensor of one channel is one row.
inline Extent row_extent(const Extent& extent) {
    return extent.channels == 1 ? Extent{1, 1, extent.numel()} : extent;
}

template <class Sums = Pair>
int64_t partial_bytes(const Extent& extent) {
    if (extent.channels == 0) return 0;
    const int64_t count = is_reduced_by_columns(extent)
                              ? plan_column_reduction(extent).partial_count()
                              : plan_row_reduction(row_extent(extent)).partial_count();
    return count * static_cast<int64_t>(sizeof(Sums));
}

template <class Operation, int row_capacity, int column_capacity>
class ReductionLauncher {
public:
    explicit ReductionLauncher(const Launch& target)
        : workspace_(target),
          rows_(reduce_rows<Operation, row_capacity>, target.stream),
          columns_(reduce_columns<Operation, column_capacity>, target.stream) {}

    const char* add(const Operation& operation, const Extent& extent) {
        if (extent.channels == 0) return nullptr;
        if (is_reduced_by_columns(extent)) {
            return add_partition(columns_, operation, plan_column_reduction(extent));
        }
        return add_partition(rows_, operation, plan_row_reduction(row_extent(extent)));
    }

    const char* flush() {
        workspace_.reset_counters();
        const char* error = rows_.flush();
        return error ? error : columns_.flush();
    }

private:
    template <class Tasks, class Partition>
    const char* add_partition(Tasks& tasks, const Operation& operation, Partition partition) {
        if (partition.counter_count() > 0) {
            if (const char* error = workspace_.zero_counters()) return error;
        }
        if (!workspace_.has_counters(partition.counter_count())) {
            if (const char* error = flush()) return error;
        }
        partition.wide = operation.is_wide();
        partition.counters = workspace_.take_counters(partition.counter_count());
        partition.partials =
            workspace_.take_partials(partition.partial_count() * sizeof(SumsOf<Operation>));
        return tasks.add({operation, partition}, partition.blocks());
    }

    WorkspaceCutter workspace_;
    TableLauncher<RowReductionTask<Operation>, row_capacity> rows_;
    TableLauncher<ColumnReductionTask<Operation>, column_capacity> columns_;
};

}  // namespace zscgan::cuda
