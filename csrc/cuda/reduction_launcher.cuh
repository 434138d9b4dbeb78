// Plans and launches reductions by channel over any number of tensors.
#pragma once

#include "column_reduction.cuh"
#include "row_reduction.cuh"

namespace zscgan::cuda {

inline bool is_reduced_by_columns(const Shape3& shape) {
    return shape.inner == 1 && shape.channels > 1;
}

// A tensor of one channel is one row.
inline Shape3 row_shape(const Shape3& shape) {
    return shape.channels == 1 ? Shape3{1, 1, shape.numel()} : shape;
}

template <class Sums = Pair>
int64_t partial_bytes(const Shape3& shape) {
    if (shape.channels == 0) return 0;
    const int64_t count = is_reduced_by_columns(shape)
                              ? plan_column_reduction(shape).partial_count()
                              : plan_row_reduction(row_shape(shape)).partial_count();
    return count * static_cast<int64_t>(sizeof(Sums));
}

template <class Operation, int row_capacity, int column_capacity>
class ReductionLauncher {
public:
    explicit ReductionLauncher(const Launch& target)
        : workspace_(target),
          rows_(reduce_rows<Operation, row_capacity>, target.stream),
          columns_(reduce_columns<Operation, column_capacity>, target.stream) {}

    const char* add(const Operation& operation, const Shape3& shape) {
        if (shape.channels == 0) return nullptr;
        if (is_reduced_by_columns(shape)) {
            return add_partition(columns_, operation, plan_column_reduction(shape));
        }
        return add_partition(rows_, operation, plan_row_reduction(row_shape(shape)));
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
