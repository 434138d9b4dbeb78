// Walking a tensor [outer, channels, inner] in memory order, and reducing it per channel.
//
// Elementwise kernels see segments: runs of elements whose parameters are either one channel's
// (inner > 1) or a table in step with the elements (inner == 1). Reductions are cut into tasks by
// sizes only and merged in a fixed order, so their bits do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "parallel.h"
#include "simd.h"

namespace zscgan::cpu::ZSCGAN_ISA {

// Scratch memory that aligns with full vectors and needs no constructor calls.
template <class T>
struct Scratch {
    explicit Scratch(int64_t count) : values(new T[static_cast<size_t>(count)]) {}
    T* data() { return values.get(); }
    T& operator[](int64_t i) { return values[static_cast<size_t>(i)]; }
    std::unique_ptr<T[]> values;
};

// A run of whole rows of channels for inner == 1: enough elements to fill vectors, and whole ones
// unless the rows are long.
inline int64_t channel_period(int64_t channels) {
    constexpr int64_t fewest = 256, whole = 16, long_row = 4096;
    int64_t rows = ceil_divide(fewest, channels);
    if (channels < long_row) {
        while (rows * channels % whole != 0) ++rows;
    }
    return rows * channels;
}

// Calls body(position, n) for runs of at most V::lanes elements that cover [0, count).
template <class V, class Body>
inline void for_lanes(int64_t count, Body body) {
    int64_t i = 0;
    for (; i + V::lanes <= count; i += V::lanes) body(i, V::lanes);
    if (i < count) body(i, static_cast<int>(count - i));
}

// Calls segment(position, n, channel) for the runs of one channel inside [begin, end).
template <class Segment>
inline void for_rows(const Shape3& shape, int64_t begin, int64_t end, Segment segment) {
    const int64_t row = begin / shape.inner;
    int64_t channel = row % shape.channels;
    int64_t stop = (row + 1) * shape.inner;
    for (int64_t position = begin; position < end; stop += shape.inner) {
        const int64_t limit = stop < end ? stop : end;
        segment(position, limit - position, channel);
        position = limit;
        channel = channel + 1 == shape.channels ? 0 : channel + 1;
    }
}

// The elements of one elementwise task: whole bytes of a bit mask, and whole periods if inner == 1.
inline int64_t elementwise_chunk(const Shape3& shape) {
    if (shape.inner != 1) return task_elements;
    const int64_t unit = 8 * channel_period(shape.channels);
    return unit * ceil_divide(task_elements, unit);
}

// Two sums (or a minimum and a maximum) of one channel.
struct Pair {
    static constexpr int size = 2;
    double first;
    double second;

    double operator[](int i) const { return i == 0 ? first : second; }
    friend Pair operator+(const Pair& a, const Pair& b) {
        return {a.first + b.first, a.second + b.second};
    }
};

struct Triple {
    static constexpr int size = 3;
    double first;
    double second;
    double third;

    double operator[](int i) const { return i == 0 ? first : i == 1 ? second : third; }
    friend Triple operator+(const Triple& a, const Triple& b) {
        return {a.first + b.first, a.second + b.second, a.third + b.third};
    }
};

template <class Values>
struct AdditionOf {
    static Values identity() { return {}; }
    static Values merge(const Values& a, const Values& b) { return a + b; }
};
using Addition = AdditionOf<Pair>;

// How a reduction is cut. Each task covers some outer indices x some channels x a piece of a row.
struct RowPlan {
    int64_t outer_group, channel_group, piece;  // sizes of a task
    int64_t outer_tasks, channel_tasks, piece_tasks;

    explicit RowPlan(const Shape3& e) {
        constexpr int64_t target = 2 * task_elements;
        piece = e.inner < target ? e.inner : target;
        piece_tasks = ceil_divide(e.inner, piece);
        const int64_t rows = target / piece;
        channel_group = rows < e.channels ? rows : e.channels;
        channel_tasks = ceil_divide(e.channels, channel_group);
        const int64_t images = rows / channel_group;
        outer_group = images < e.outer ? images : e.outer;
        outer_tasks = ceil_divide(e.outer, outer_group);
    }
    int64_t slots() const { return outer_tasks * piece_tasks; }
    int64_t tasks() const { return slots() * channel_tasks; }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A task of a reduction with inner > 1: fills partials[slot][channel] with what
// row(position, n, channel) gives, in memory order.
template <class Merge, class Values, class Row>
void reduce_rows_task(const Shape3& e, const RowPlan& plan, int64_t task, Values* partials,
                      Row row) {
    const int64_t slot = task / plan.channel_tasks;
    const int64_t first_channel = task % plan.channel_tasks * plan.channel_group;
    const int64_t last_channel = smaller(e.channels, first_channel + plan.channel_group);
    const int64_t offset = slot % plan.piece_tasks * plan.piece;
    const int64_t length = smaller(plan.piece, e.inner - offset);
    const int64_t first_outer = slot / plan.piece_tasks * plan.outer_group;
    const int64_t last_outer = smaller(e.outer, first_outer + plan.outer_group);
    Values* totals = partials + slot * e.channels;
    for (int64_t c = first_channel; c < last_channel; ++c) totals[c] = Merge::identity();
    for (int64_t o = first_outer; o < last_outer; ++o) {
        for (int64_t c = first_channel; c < last_channel; ++c) {
            const int64_t position = (o * e.channels + c) * e.inner + offset;
            totals[c] = Merge::merge(totals[c], row(position, length, c));
        }
    }
}

// How a reduction with inner == 1 is cut: rows of channels.
struct ColumnPlan {
    int64_t period;  // elements whose channels repeat, a whole number of rows
    int64_t chunk;   // elements of a task, a whole number of periods
    int64_t numel;

    explicit ColumnPlan(const Shape3& e) : period(channel_period(e.channels)), numel(e.numel()) {
        const int64_t target = 2 * task_elements;
        const int64_t wanted = 64 * e.channels > target ? 64 * e.channels : target;
        chunk = period * ceil_divide(wanted, period);
    }
    int64_t tasks() const { return ceil_divide(numel, chunk); }
};

// Merges partials[slot][channel] in the order of slots and hands finish(channel, total) the
// results.
template <class Merge, class Values, class Finish>
void merge_partials(const Values* partials, int64_t slots, int64_t channels, Finish finish) {
    Scratch<Values> totals(channels);
    for (int64_t c = 0; c < channels; ++c) totals[c] = Merge::identity();
    for (int64_t slot = 0; slot < slots; ++slot) {
        for (int64_t c = 0; c < channels; ++c) {
            totals[c] = Merge::merge(totals[c], partials[slot * channels + c]);
        }
    }
    for (int64_t c = 0; c < channels; ++c) finish(c, totals[c]);
}

// A per-channel reduction of one tensor: which tasks it has and where their results go.
struct Reduction {
    Shape3 shape;
    bool by_rows;
    RowPlan rows;
    ColumnPlan columns;

    explicit Reduction(const Shape3& e) : shape(e), by_rows(e.inner != 1), rows(e), columns(e) {}
    int64_t slots() const { return by_rows ? rows.slots() : columns.tasks(); }
    int64_t tasks() const { return by_rows ? rows.tasks() : columns.tasks(); }
    int64_t partials() const { return slots() * shape.channels; }
    int64_t periods() const { return by_rows ? 0 : columns.period; }
};

// Runs of neighbouring elements, one period below the other. A kernel takes several at a time, so
// that its accumulators stay in registers from one to the next.
struct Band {
    int64_t position;  // of the first element
    int64_t width;     // elements of a run
    int64_t rows;      // runs
    int64_t period;    // from a run to the next

    int64_t at(int64_t row, int64_t i) const { return position + row * period + i; }
    int64_t next() const { return rows * period; }
};

// Calls body(band) for the bands that cover [begin, end).
template <class Body>
void for_bands(int64_t begin, int64_t end, int64_t period, Body body) {
    constexpr int64_t most_rows = 8;
    while (begin < end) {
        const int64_t rows = smaller(most_rows, (end - begin) / period);
        if (rows == 0) return body(Band{begin, end - begin, 1, period});
        body(Band{begin, period, rows, period});
        begin += rows * period;
    }
}

// A task of a reduction with inner == 1: fills partials[task][channel].
template <class Merge, class Real, class Values, class Kernel, size_t... index>
void reduce_columns_task(const Shape3& e, const ColumnPlan& plan, int64_t task, Values* partials,
                         Kernel& kernel, std::index_sequence<index...>) {
    const int64_t period = plan.period;
    Scratch<Real> running(Values::size * period);
    Real* const rows[] = {running.data() + index * period...};
    (std::fill_n(rows[index], period, static_cast<Real>(Merge::identity()[index])), ...);
    const int64_t begin = task * plan.chunk;
    const int64_t end = smaller(plan.numel, begin + plan.chunk);
    for_bands(begin, end, period, [&](const Band& band) { kernel.columns(band, rows[index]...); });
    Values* totals = partials + task * e.channels;
    for (int64_t c = 0; c < e.channels; ++c) totals[c] = Merge::identity();
    for (int64_t i = 0; i < period; i += e.channels) {
        for (int64_t c = 0; c < e.channels; ++c) {
            totals[c] = Merge::merge(totals[c], Values{rows[index][i + c]...});
        }
    }
}

// Runs one task. With Values a Pair (or a Triple) `kernel` offers
//   Values row(position, n, channel)                       n elements of one channel
//   void columns(Band, Real* first, Real* second)          adds a band to rows of accumulators
template <class Merge, class Real, class Values, class Kernel>
void reduce_task(const Reduction& r, int64_t task, Values* partials, Kernel& kernel) {
    if (r.by_rows) {
        reduce_rows_task<Merge>(
            r.shape, r.rows, task, partials,
            [&](int64_t p, int64_t n, int64_t c) { return kernel.row(p, n, c); });
    } else {
        reduce_columns_task<Merge, Real>(r.shape, r.columns, task, partials, kernel,
                                         std::make_index_sequence<Values::size>());
    }
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
