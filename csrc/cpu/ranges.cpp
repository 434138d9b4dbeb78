// Observing ranges: minimum and maximum of each channel, their moving average and the quantizer.
#include <cmath>

#include "data_types.h"
#include "kernel_set.h"
#include "memory.h"
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

    // Several running extremes, so that one vector need not wait for the one before it.
    Pair row(int64_t position, int64_t count, int64_t) const {
        if (count < V::lanes) return short_row(position, count);
        constexpr int64_t chains = 4;
        V lows[chains], highs[chains];
        for (V& low : lows) low = V::broadcast(static_cast<Real>(HUGE_VAL));
        for (V& high : highs) high = V::broadcast(static_cast<Real>(-HUGE_VAL));
        const auto visit = [&](int64_t i, int64_t chain) {
            const V value = read<V>(x + position + i, V::lanes);
            lows[chain] = sticky_minimum(lows[chain], value);
            highs[chain] = sticky_maximum(highs[chain], value);
        };
        int64_t i = 0;
        for (; i + chains * V::lanes <= count; i += chains * V::lanes) {
            for (int64_t chain = 0; chain < chains; ++chain) visit(i + chain * V::lanes, chain);
        }
        for (; i + V::lanes <= count; i += V::lanes) visit(i, 0);
        visit(count - V::lanes, 1);  // the rest, and some elements once more
        for (int64_t chain = 1; chain < chains; ++chain) {
            lows[0] = sticky_minimum(lows[0], lows[chain]);
            highs[0] = sticky_maximum(highs[0], highs[chain]);
        }
        return merge_lanes(lows[0], highs[0]);
    }

    Pair short_row(int64_t position, int64_t count) const {
        Pair total = Extremes::identity();
        for (int64_t i = 0; i < count; ++i) {
            const double value = widen(x[position + i]);
            total = Extremes::merge(total, {value, value});
        }
        return total;
    }

    static Pair merge_lanes(V lowest, V highest) {
        Real low[V::lanes], high[V::lanes];
        lowest.store(low, V::lanes);
        highest.store(high, V::lanes);
        for (int width = V::lanes / 2; width > 0; width /= 2) {
            for (int i = 0; i < width; ++i) {
                low[i] = sticky_minimum(low[i], low[i + width]);
                high[i] = sticky_maximum(high[i], high[i + width]);
            }
        }
        return {low[0], high[0]};
    }

    void columns(const Band& band, Real* lows, Real* highs) const {
        for_lanes<V>(band.width, [&](int64_t i, int n) {
            V low = V::load(lows + i, n), high = V::load(highs + i, n);
            for (int64_t row = 0; row < band.rows; ++row) {
                const V value = read<V>(x, band, row, i, n);
                low = sticky_minimum(low, value);
                high = sticky_maximum(high, value);
            }
            low.store(lows + i, n);
            high.store(highs + i, n);
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

void update_min_max(const UpdateMinMaxArguments& arguments, int threads) {
    const Shape3& shape = arguments.shape;
    if (shape.numel() == 0) return;
    with_types(arguments.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        const Reduction reduction(shape);
        Scratch<Pair> partials(reduction.partials());
        Observation<V, T> kernel{static_cast<const T*>(arguments.x)};
        parallel_for(reduction.tasks(), threads, [&](int64_t task) {
            reduce_task<Extremes, typename V::Real>(reduction, task, partials.data(), kernel);
        });
        merge_partials<Extremes>(
            partials.data(), reduction.slots(), shape.channels,
            [&](int64_t c, Pair observed) { update(arguments.state, c, observed); });
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
