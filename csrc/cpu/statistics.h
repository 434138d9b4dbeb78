// Mean and variance of each channel from shifted sums, and the coefficients of their gradient.
#pragma once

#include <cmath>
#include <limits>

#include "channel_table.h"

namespace zscgan::cpu::ZSCGAN_ISA {

// Sums of x - mean_hint and of its square. The visitor (see channel_table.h) is shown x on the way.
template <class V, class T, class Visitor>
struct ShiftedSums {
    using Real = typename V::Real;
    const T* x;
    const Real* mean_hint;
    Visitor visitor;

    // Short runs in float32, their sums in float64.
    Pair row(int64_t position, int64_t count, int64_t channel) const {
        constexpr int64_t run = 1024;
        Pair total{0, 0};
        for (int64_t start = 0; start < count; start += run) {
            total = Addition::merge(
                total, run_sums(position + start, smaller(run, count - start), channel));
        }
        return total;
    }

    Pair run_sums(int64_t position, int64_t count, int64_t channel) const {
        Visitor local = visitor;
        const auto parameters = local.channel(channel);
        const V offset = V::broadcast(mean_hint[channel]);
        V sum = V::broadcast(0), squares = V::broadcast(0);
        const int64_t whole = count - count % V::lanes;
        for (int64_t i = 0; i < whole; i += V::lanes) {
            const V value = read<V>(x + position + i, V::lanes);
            local.visit(position + i, V::lanes, value, parameters);
            const V shifted = value - offset;
            sum = sum + shifted;
            squares = squares + shifted * shifted;
        }
        Pair total{sum.sum(), squares.sum()};
        if (!is_finite(total)) total = wide_sums(position, whole, 1, mean_hint[channel], {0, 0});
        if (const int rest = static_cast<int>(count - whole)) {
            const V value = V::load(x + position + whole, rest);
            local.visit(position + whole, rest, value, parameters);
        }
        return wide_sums(position + whole, count - whole, 1, mean_hint[channel], total);
    }

    static bool is_finite(const Pair& sums) {
        return std::isfinite(sums.first) && std::isfinite(sums.second);
    }

    // Adds elements in float64. A float32 sum of squares overflows from |x - mean_hint| of 1e18 on,
    // where the variance still is a float32 number.
    Pair wide_sums(int64_t position, int64_t count, int64_t stride, Real hint, Pair total) const {
        for (int64_t i = 0; i < count; ++i) {
            const double value = static_cast<double>(widen(x[position + i * stride]));
            const double shifted = value - hint;
            total = Addition::merge(total, {shifted, shifted * shifted});
        }
        return total;
    }

    // Sums again, in float64, the channels of a task by columns whose float32 sums overflowed.
    void widen_columns(const Reduction& reduction, int64_t task, Pair* partials) const {
        const int64_t channels = reduction.shape.channels;
        const int64_t begin = task * reduction.columns.chunk;
        const int64_t end = smaller(reduction.columns.numel, begin + reduction.columns.chunk);
        for (int64_t c = 0; c < channels; ++c) {
            Pair& sums = partials[task * channels + c];
            if (is_finite(sums)) continue;
            sums = wide_sums(begin + c, (end - begin) / channels, channels, mean_hint[c], {0, 0});
        }
    }

    void columns(const Band& band, Real* sums, Real* squares) const {
        Visitor local = visitor;
        for_lanes<V>(band.width, [&](int64_t i, int n) {
            const auto parameters = local.lanes(i, n);
            const V offset = V::load(mean_hint + i, n);
            V sum = V::load(sums + i, n), square = V::load(squares + i, n);
            for (int64_t row = 0; row < band.rows; ++row) {
                const V value = read<V>(x, band, row, i, n);
                local.visit(band.at(row, i), n, value, parameters);
                const V shifted = value - offset;
                sum = sum + shifted;
                square = square + shifted * shifted;
            }
            sum.store(sums + i, n);
            square.store(squares + i, n);
        });
    }
};

// Mean and biased variance; NaN where there is no element.
template <class V, class T, class Arguments, class Visitor>
void reduce_statistics(const Arguments& arguments, const Visitor& visitor, int threads) {
    using Real = typename V::Real;
    const Shape3& shape = arguments.shape;
    Real* means = static_cast<Real*>(arguments.mean);
    Real* variances = static_cast<Real*>(arguments.variance);
    if (shape.numel() == 0) {
        for (int64_t c = 0; c < shape.channels; ++c) {
            means[c] = variances[c] = std::numeric_limits<Real>::quiet_NaN();
        }
        return;
    }
    ChannelTable<V> mean_hints(shape, arguments.mean_hint);
    const Reduction reduction(shape);
    Scratch<Pair> partials(reduction.partials());
    const ShiftedSums<V, T, Visitor> kernel{static_cast<const T*>(arguments.x), mean_hints.data(),
                                            visitor};
    parallel_for(reduction.tasks(), threads, [&](int64_t task) {
        reduce_task<Addition, Real>(reduction, task, partials.data(), kernel);
        if (!reduction.by_rows) kernel.widen_columns(reduction, task, partials.data());
    });
    const double count = static_cast<double>(shape.outer * shape.inner);
    merge_partials<Addition>(partials.data(), reduction.slots(), shape.channels,
                             [&](int64_t c, Pair total) {
                                 const double offset = total.first / count;
                                 const double variance = total.second / count - offset * offset;
                                 means[c] = static_cast<Real>(mean_hints.value(c) + offset);
                                 variances[c] = static_cast<Real>(maximum(0.0, variance));
                             });
}

// The gradient of the statistics by x is a + b * x.
template <class V>
struct StatisticsGradient {
    using Real = typename V::Real;
    ChannelTable<V> a, b;

    template <class Arguments>
    explicit StatisticsGradient(const Arguments& arguments)
        : a(arguments.shape), b(arguments.shape) {
        const Shape3& shape = arguments.shape;
        const double count = static_cast<double>(shape.outer * shape.inner);
        for (int64_t c = 0; c < shape.channels; ++c) {
            const double slope = 2 * static_cast<const Real*>(arguments.grad_variance)[c] / count;
            const double constant = static_cast<const Real*>(arguments.grad_mean)[c] / count -
                                    slope * static_cast<const Real*>(arguments.mean)[c];
            a.set(c, static_cast<Real>(constant));
            b.set(c, static_cast<Real>(slope));
        }
    }
};

}  // namespace zscgan::cpu::ZSCGAN_ISA
