// Values per channel as kernels read them, and passes over a tensor that need them.
#pragma once

#include "memory.h"
#include "rows.h"

namespace zscgan::cpu::ZSCGAN_ISA {

// One value per channel, repeated over a period where inner == 1.
template <class V>
class ChannelTable {
public:
    using Real = typename V::Real;

    explicit ChannelTable(const Shape3& shape)
        : channels(shape.channels),
          period(shape.inner == 1 ? channel_period(shape.channels) : shape.channels),
          values_(period + V::lanes) {}

    ChannelTable(const Shape3& shape, const void* values) : ChannelTable(shape) {
        for (int64_t c = 0; c < channels; ++c) set(c, static_cast<const Real*>(values)[c]);
    }

    void set(int64_t channel, Real value) {
        for (int64_t i = channel; i < period; i += channels) values_[i] = value;
    }
    const Real* data() { return values_.data(); }
    Real value(int64_t c) { return values_[c]; }

    const int64_t channels, period;

private:
    Scratch<Real> values_;
};

// Shows a visitor every vector of `source`. The visitor offers
//   Parameters channel(c)      of one channel, in every lane
//   Parameters lanes(i, n)     of n neighbouring channels, from place i of a period
//   void visit(position, n, V value, const Parameters&)
template <class V, class T, class Visitor>
void visit_vectors(const Shape3& shape, const T* source, Visitor visitor, int64_t begin,
                   int64_t end) {
    if (shape.inner != 1) {
        for_rows(shape, begin, end, [&](int64_t position, int64_t count, int64_t c) {
            const auto parameters = visitor.channel(c);
            for_lanes<V>(count, [&](int64_t i, int n) {
                visitor.visit(position + i, n, read<V>(source + position + i, n), parameters);
            });
        });
        return;
    }
    const int64_t period = channel_period(shape.channels);
    for (int64_t position = begin; position < end; position += period) {
        for_lanes<V>(smaller(period, end - position), [&](int64_t i, int n) {
            visitor.visit(position + i, n, read<V>(source + position + i, n), visitor.lanes(i, n));
        });
    }
}

// The same on many threads; each has a copy of the visitor.
template <class V, class T, class Visitor>
void visit_in_parallel(const Shape3& shape, const T* source, const Visitor& visitor, int threads) {
    const int64_t numel = shape.numel();
    if (numel == 0) return;
    const int64_t chunk = elementwise_chunk(shape);
    parallel_for(ceil_divide(numel, chunk), threads, [&](int64_t task) {
        const int64_t begin = task * chunk;
        visit_vectors<V>(shape, source, visitor, begin, smaller(numel, begin + chunk));
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
