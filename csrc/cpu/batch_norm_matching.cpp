// Batch-norm statistics: mean and variance of each channel, and their gradient.
#include <limits>

#include "data_types.h"
#include "kernel_set.h"
#include "rows.h"

namespace zscgan::cpu::ZSCGAN_ISA {
namespace {

// One or more values per channel, repeated over a period where inner == 1.
template <class V>
class ChannelTable {
public:
    using Real = typename V::Real;

    explicit ChannelTable(const Extent& extent)
        : channels(extent.channels),
          period(extent.inner == 1 ? channel_period(extent.channels) : extent.channels),
          values_(period + V::lanes) {}

    void set(int64_t channel, Real value) {
        for (int64_t i = channel; i < period; i += channels) values_[i] = value;
    }
    V channel(int64_t c) { return V::broadcast(values_[c]); }
    V lanes(int64_t i, int n) { return V::load(values_.data() + i, n); }
    Real value(int64_t c) { return values_[c]; }

    const int64_t channels, period;

private:
    Scratch<Real> values_;
};

// Sums of x - shift and of its square.
template <class V, class T>
struct ShiftedSums {
    using Real = typename V::Real;
    const T* x;
    ChannelTable<V>& shift;

    // Short runs in float32, their sums in float64.
    Pair row(int64_t position, int64_t count, int64_t channel) {
        constexpr int64_t run = 1024;
        const V offset = shift.channel(channel);
        Pair total{0, 0};
        for (int64_t start = 0; start < count; start += run) {
            total = Addition::merge(
                total, run_sums(position + start, smaller(run, count - start), offset));
        }
        return total;
    }

    Pair run_sums(int64_t position, int64_t count, V offset) {
        V sum = V::broadcast(0), squares = V::broadcast(0);
        const int64_t whole = count - count % V::lanes;
        for (int64_t i = 0; i < whole; i += V::lanes) {
            const V shifted = V::load(x + position + i, V::lanes) - offset;
            sum = sum + shifted;
            squares = squares + shifted * shifted;
        }
        Pair total{sum.sum(), squares.sum()};
        for (int64_t i = whole; i < count; ++i) {
            const double shifted = static_cast<double>(widen(x[position + i])) - first_lane(offset);
            total = Addition::merge(total, {shifted, shifted * shifted});
        }
        return total;
    }

    static double first_lane(V vector) {
        Real values[V::lanes];
        vector.store(values, V::lanes);
        return values[0];
    }

    void columns(int64_t position, int64_t count, Real* sums, Real* squares) {
        for_lanes<V>(count, [&](int64_t i, int n) {
            const V shifted = V::load(x + position + i, n) - shift.lanes(i, n);
            (V::load(sums + i, n) + shifted).store(sums + i, n);
            (V::load(squares + i, n) + shifted * shifted).store(squares + i, n);
        });
    }
};

// y = a + b * x for each channel.
template <class V, class T>
void affine(const Extent& extent, ChannelTable<V>& a, ChannelTable<V>& b, const T* x, T* y,
            int64_t begin, int64_t end) {
    if (extent.inner != 1) {
        for_rows(extent, begin, end, [&](int64_t position, int64_t count, int64_t c) {
            const V constant = a.channel(c), slope = b.channel(c);
            for_lanes<V>(count, [&](int64_t i, int n) {
                (constant + slope * V::load(x + position + i, n)).store(y + position + i, n);
            });
        });
        return;
    }
    for (int64_t position = begin; position < end; position += a.period) {
        for_lanes<V>(smaller(a.period, end - position), [&](int64_t i, int n) {
            const V value = V::load(x + position + i, n);
            (a.lanes(i, n) + b.lanes(i, n) * value).store(y + position + i, n);
        });
    }
}

}  // namespace

void batch_norm_statistics(DataType type, Extent extent, const void* x, const void* shift,
                           void* mean, void* variance, int threads) {
    with_types(type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        using Real = typename V::Real;
        if (extent.numel() == 0) {
            for (int64_t c = 0; c < extent.channels; ++c) {
                static_cast<Real*>(mean)[c] = std::numeric_limits<Real>::quiet_NaN();
                static_cast<Real*>(variance)[c] = std::numeric_limits<Real>::quiet_NaN();
            }
            return;
        }
        ChannelTable<V> shifts(extent);
        for (int64_t c = 0; c < extent.channels; ++c) {
            shifts.set(c, static_cast<const Real*>(shift)[c]);
        }
        const Reduction reduction(extent);
        Scratch<Pair> partials(reduction.partials());
        ShiftedSums<V, T> kernel{static_cast<const T*>(x), shifts};
        parallel_for(reduction.tasks(), threads, [&](int64_t task) {
            reduce_task<Addition, Real>(reduction, task, partials.data(), kernel);
        });
        const double count = static_cast<double>(extent.outer * extent.inner);
        merge_partials<Addition>(
            partials.data(), reduction.slots(), extent.channels, [&](int64_t c, Pair total) {
                const double offset = total.first / count;
                const double spread = total.second / count - offset * offset;
                static_cast<Real*>(mean)[c] = static_cast<Real>(shifts.value(c) + offset);
                static_cast<Real*>(variance)[c] = static_cast<Real>(maximum(0.0, spread));
            });
    });
}

void batch_norm_statistics_backward(DataType type, Extent extent, const void* x, const void* mean,
                                    const void* grad_mean, const void* grad_variance, void* grad_x,
                                    int threads) {
    if (extent.numel() == 0) return;
    with_types(type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        using Real = typename V::Real;
        const double count = static_cast<double>(extent.outer * extent.inner);
        ChannelTable<V> a(extent), b(extent);
        for (int64_t c = 0; c < extent.channels; ++c) {
            const double slope = 2 * static_cast<const Real*>(grad_variance)[c] / count;
            const double constant = static_cast<const Real*>(grad_mean)[c] / count -
                                    slope * static_cast<const Real*>(mean)[c];
            a.set(c, static_cast<Real>(constant));
            b.set(c, static_cast<Real>(slope));
        }
        const int64_t numel = extent.numel();
        const int64_t chunk = elementwise_chunk(extent);
        parallel_for(ceil_divide(numel, chunk), threads, [&](int64_t task) {
            const int64_t begin = task * chunk;
            affine(extent, a, b, static_cast<const T*>(x), static_cast<T*>(grad_x), begin,
                   smaller(numel, begin + chunk));
        });
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
