// Observing ranges: minimum and maximum of each channel, their moving average and the quantizer.
#include <cmath>

#include "data_types.h"
#include "kernel_set.h"
#include "rows.h"

namespace zscgan::cpu::ZSCGAN_ISA {
namespace {

// Once NaN, always NaN, as in torch.aminmax.
template <class Value>
ZSCGAN_INLINE Value sticky_minimum(Value running, Value x) {
    return select(running >= running, minimum(running, x), running);
}
template <class Value>
ZSCGAN_INLINE Value sticky_maximum(Value running, Value x) {
    return select(running >= running, maximum(running, x), running);
}

struct Extremes {
    static Pair identity() { return {HUGE_VAL, -HUGE_VAL}; }
    static Pair merge(Pair a, Pair b) {
        return {sticky_minimum(a.first, b.first), sticky_maximum(a.second, b.second)};
    }
};

template <class V, class T>
struct Observation {
    using Real = typename V::Real;
    const T* x;

    Pair row(int64_t position, int64_t count, int64_t) const {
        Real low[V::lanes], high[V::lanes];
        V lowest = V::broadcast(static_cast<Real>(HUGE_VAL));
        V highest = V::broadcast(static_cast<Real>(-HUGE_VAL));
        const int64_t whole = count - count % V::lanes;
        for (int64_t i = 0; i < whole; i += V::lanes) {
            const V value = V::load(x + position + i, V::lanes);
            lowest = sticky_minimum(lowest, value);
            highest = sticky_maximum(highest, value);
        }
        lowest.store(low, V::lanes);
        highest.store(high, V::lanes);
        Pair total = Extremes::identity();
        for (int i = 0; i < V::lanes; ++i) total = Extremes::merge(total, {low[i], high[i]});
        for (int64_t i = whole; i < count; ++i) {
            const double value = widen(x[position + i]);
            total = Extremes::merge(total, {value, value});
        }
        return total;
    }

    void columns(int64_t position, int64_t count, Real* lows, Real* highs) const {
        for_lanes<V>(count, [&](int64_t i, int n) {
            const V value = V::load(x + position + i, n);
            sticky_minimum(V::load(lows + i, n), value).store(lows + i, n);
            sticky_maximum(V::load(highs + i, n), value).store(highs + i, n);
        });
    }
};

void update(const ObserverState& state, int64_t c, Pair observed) {
    const float constant = static_cast<float>(state.averaging_constant);
    float& low = state.running_min[c];
    float& high = state.running_max[c];
    const bool first = low > high;
    low = moving_average(low, static_cast<float>(observed.first), constant, first);
    high = moving_average(high, static_cast<float>(observed.second), constant, first);
    const ScaleAndZeroPoint quantizer =
        range_to_quantizer(low, high, static_cast<float>(state.range.quant_min),
                           static_cast<float>(state.range.quant_max), state.symmetric);
    state.scale[c] = quantizer.scale;
    state.zero_point[c] = quantizer.zero_point;
}

}  // namespace

void observe(DataType type, Extent extent, const void* x, const ObserverState& state, int threads) {
    if (extent.numel() == 0) return;
    with_types(type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        const Reduction reduction(extent);
        Scratch<Pair> partials(reduction.partials());
        Observation<V, T> kernel{static_cast<const T*>(x)};
        parallel_for(reduction.tasks(), threads, [&](int64_t task) {
            reduce_task<Extremes, typename V::Real>(reduction, task, partials.data(), kernel);
        });
        merge_partials<Extremes>(partials.data(), reduction.slots(), extent.channels,
                                 [&](int64_t c, Pair observed) { update(state, c, observed); });
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
