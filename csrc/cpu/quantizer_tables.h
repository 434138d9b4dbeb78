// Quantization parameters as kernels read them: one channel's in registers, or a table of channels.
#pragma once

#include "rows.h"

namespace zscgan::cpu::ZSCGAN_ISA {

// The parameters of all channels, zero points rounded to integers; widened to whole periods where
// inner == 1.
template <class V>
class QuantizerTable {
public:
    using Real = typename V::Real;

    // stride: from the scale and zero point of a channel to the next ones, 0 where all share one.
    QuantizerTable(const Shape3& shape, const void* scale, const void* zero_point,
                   int64_t stride = 1)
        : period_(shape.inner == 1 ? channel_period(shape.channels) : shape.channels),
          values_(3 * padded()) {
        const Real* scales = static_cast<const Real*>(scale);
        const Real* zero_points = static_cast<const Real*>(zero_point);
        for (int64_t i = 0, c = 0; i < period_; ++i, c = c + 1 == shape.channels ? 0 : c + 1) {
            values_[i] = scales[c * stride];
            values_[padded() + i] = Real(1) / scales[c * stride];
            values_[2 * padded() + i] = round_to_even(zero_points[c * stride]);
        }
    }

    void clamp_zero_points(const QuantRange& range) {
        const Bounds<Real> bounds{static_cast<Real>(range.quant_min),
                                  static_cast<Real>(range.quant_max)};
        for (int64_t i = 2 * padded(); i < 2 * padded() + period_; ++i) {
            values_[i] = clamp(values_[i], bounds);
        }
    }

    int64_t period() const { return period_; }

    // One channel's parameters in every lane.
    Quantizer<V> channel(int64_t c) {
        return {V::broadcast(values_[c]), V::broadcast(values_[padded() + c]),
                V::broadcast(values_[2 * padded() + c])};
    }

    // The parameters of n neighbouring channels, from place i of the period.
    Quantizer<V> lanes(int64_t i, int n) {
        const Real* values = values_.data();
        return {V::load(values + i, n), V::load(values + padded() + i, n),
                V::load(values + 2 * padded() + i, n)};
    }

private:
    int64_t padded() const { return period_ + V::lanes; }

    int64_t period_;
    Scratch<Real> values_;
};

// The same with a bias for each channel.
template <class V>
class BiasedQuantizerTable : public QuantizerTable<V> {
public:
    using Real = typename V::Real;

    BiasedQuantizerTable(const Shape3& shape, const void* scale, const void* zero_point,
                         int64_t stride, const void* bias)
        : QuantizerTable<V>(shape, scale, zero_point, stride), biases_(this->period()) {
        for (int64_t i = 0; i < this->period(); ++i) {
            biases_[i] = static_cast<const Real*>(bias)[i % shape.channels];
        }
    }

    BiasedQuantizer<V> channel(int64_t c) {
        return {QuantizerTable<V>::channel(c), V::broadcast(biases_[c])};
    }

    BiasedQuantizer<V> lanes(int64_t i, int n) {
        return {QuantizerTable<V>::lanes(i, n), V::load(biases_.data() + i, n)};
    }

private:
    Scratch<Real> biases_;
};

template <class V>
Bounds<V> broadcast_bounds(const QuantRange& range) {
    using Real = typename V::Real;
    return {V::broadcast(static_cast<Real>(range.quant_min)),
            V::broadcast(static_cast<Real>(range.quant_max))};
}

// Calls segment(position, n, parameters) over [begin, end); parameters(i, n) gives the Quantizer of
// n lanes from place i of the segment.
template <class Table, class Segment>
void for_quantized_segments(const Shape3& shape, Table& table, int64_t begin, int64_t end,
                            Segment segment) {
    if (shape.inner != 1) {
        for_rows(shape, begin, end, [&](int64_t position, int64_t n, int64_t c) {
            const auto quantizer = table.channel(c);
            segment(position, n, [&](int64_t, int) { return quantizer; });
        });
        return;
    }
    for (int64_t position = begin; position < end; position += table.period()) {
        segment(position, smaller(table.period(), end - position),
                [&](int64_t i, int n) { return table.lanes(i, n); });
    }
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
