// Batch norm with stored statistics, a residual and an activation; the statistics of its input on
// the way, and the gradient of all of them.
#include "data_types.h"
#include "kernel_set.h"
#include "statistics.h"

namespace zscgan::cpu::ZSCGAN_ISA {
namespace {

// Writes y where it is shown x.
template <class V, class T, bool has_residual>
struct Normalization {
    using Real = typename V::Real;
    struct Parameters {
        V multiplier, offset;
    };
    const Real* multiplier;
    const Real* offset;
    ActivationBounds<V> bounds;
    const T* residual;
    Output<T> y;

    Parameters channel(int64_t c) const {
        return {V::broadcast(multiplier[c]), V::broadcast(offset[c])};
    }
    Parameters lanes(int64_t i, int n) const {
        return {V::load(multiplier + i, n), V::load(offset + i, n)};
    }
    void visit(int64_t position, int n, V x, const Parameters& parameters) const {
        V value = normalize(x, parameters.multiplier, parameters.offset);
        if constexpr (has_residual) value = value + read<V>(residual + position, n);
        y.template write<V>(position, activate(value, bounds), n);
    }
};

template <class V, class T, bool has_residual>
void forward(const FrozenBatchNormArguments& norm, int threads) {
    ChannelTable<V> multiplier(norm.shape, norm.multiplier), offset(norm.shape, norm.offset);
    const Normalization<V, T, has_residual> normalization{
        multiplier.data(), offset.data(), broadcast_bounds<V>(norm.activation),
        static_cast<const T*>(norm.residual), Output<T>(norm.y, norm.shape.numel())};
    if (norm.mean) {
        reduce_statistics<V, T>(norm, normalization, threads);
    } else {
        visit_in_parallel<V>(norm.shape, static_cast<const T*>(norm.x), normalization, threads);
    }
}

// Writes grad_x, and grad_residual unless it is null, where it is shown the gradient of y.
template <class V, class T, bool masked_by_y, bool has_statistics>
struct NormalizationGradient {
    using Real = typename V::Real;
    struct Parameters {
        V multiplier, offset, a, b;
    };
    const Real *multiplier, *offset, *a, *b;
    ActivationBounds<V> bounds;
    const T *x, *y;
    Output<T> grad_x;
    Output<T> grad_residual;  // may have no memory

    Parameters channel(int64_t c) const {
        return collect([c](const Real* values) { return V::broadcast(values[c]); });
    }
    Parameters lanes(int64_t i, int n) const {
        return collect([i, n](const Real* values) { return V::load(values + i, n); });
    }
    template <class Read>
    Parameters collect(Read read) const {
        const V zero = V::broadcast(0);
        return {read(multiplier), masked_by_y ? zero : read(offset),
                has_statistics ? read(a) : zero, has_statistics ? read(b) : zero};
    }

    void visit(int64_t position, int n, V grad, const Parameters& parameters) const {
        const V zero = V::broadcast(0);
        V value = zero, activated = zero;
        if constexpr (has_statistics || !masked_by_y) value = read<V>(x + position, n);
        if constexpr (masked_by_y) activated = read<V>(y + position, n);
        if constexpr (!masked_by_y)
            activated = normalize(value, parameters.multiplier, parameters.offset);
        const V masked = mask_gradient(grad, activated, bounds, zero);
        V gradient = masked * parameters.multiplier;
        if constexpr (has_statistics) gradient = gradient + (parameters.a + parameters.b * value);
        grad_x.template write<V>(position, gradient, n);
        if (grad_residual) grad_residual.template write<V>(position, masked, n);
    }
};

template <class V, class T, bool masked_by_y, bool has_statistics>
void backward(const FrozenBatchNormBackwardArguments& norm, StatisticsGradient<V>* statistics,
              int threads) {
    ChannelTable<V> multiplier(norm.shape, norm.multiplier), offset(norm.shape, norm.offset);
    const NormalizationGradient<V, T, masked_by_y, has_statistics> gradient{
        multiplier.data(),
        offset.data(),
        statistics ? statistics->a.data() : nullptr,
        statistics ? statistics->b.data() : nullptr,
        broadcast_bounds<V>(norm.activation),
        static_cast<const T*>(norm.x),
        static_cast<const T*>(norm.y),
        Output<T>(norm.grad_x, norm.shape.numel()),
        Output<T>(norm.grad_residual, norm.shape.numel())};
    visit_in_parallel<V>(norm.shape, static_cast<const T*>(norm.grad), gradient, threads);
}

}  // namespace

void frozen_batch_norm(const FrozenBatchNormArguments& norm, int threads) {
    with_types(norm.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        const auto kernel = norm.residual ? &forward<V, T, true> : &forward<V, T, false>;
        kernel(norm, threads);
    });
}

void frozen_batch_norm_backward(const FrozenBatchNormBackwardArguments& norm, int threads) {
    if (norm.shape.numel() == 0) return;
    with_types(norm.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        if (!norm.mean) {
            const auto kernel =
                norm.y ? &backward<V, T, true, false> : &backward<V, T, false, false>;
            return kernel(norm, nullptr, threads);
        }
        StatisticsGradient<V> statistics(norm);
        const auto kernel = norm.y ? &backward<V, T, true, true> : &backward<V, T, false, true>;
        kernel(norm, &statistics, threads);
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
