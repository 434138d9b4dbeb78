// Batch-norm statistics: mean and variance of each channel, and their gradient.
#include "data_types.h"
#include "kernel_set.h"
#include "statistics.h"

namespace zscgan::cpu::ZSCGAN_ISA {
namespace {

// Does nothing with x: for the statistics alone.
template <class V>
struct Onlooker {
    struct Parameters {};
    Parameters channel(int64_t) const { return {}; }
    Parameters lanes(int64_t, int) const { return {}; }
    void visit(int64_t, int, V, Parameters) const {}
};

// y = a + b * x for each channel.
template <class V, class T>
struct Affine {
    using Real = typename V::Real;
    struct Parameters {
        V a, b;
    };
    const Real* a;
    const Real* b;
    Output<T> y;

    Parameters channel(int64_t c) const { return {V::broadcast(a[c]), V::broadcast(b[c])}; }
    Parameters lanes(int64_t i, int n) const { return {V::load(a + i, n), V::load(b + i, n)}; }
    void visit(int64_t position, int n, V x, const Parameters& parameters) const {
        y.template write<V>(position, parameters.a + parameters.b * x, n);
    }
};

}  // namespace

void batch_norm_statistics(DataType type, Extent extent, const void* x, const void* shift,
                           void* mean, void* variance, int threads) {
    with_types(type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        reduce_statistics<V, T>(extent, x, shift, mean, variance, Onlooker<V>{}, threads);
    });
}

void batch_norm_statistics_backward(DataType type, Extent extent, const void* x, const void* mean,
                                    const void* grad_mean, const void* grad_variance, void* grad_x,
                                    int threads) {
    if (extent.numel() == 0) return;
    with_types(type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        StatisticsGradient<V> gradient(extent, mean, grad_mean, grad_variance);
        const Affine<V, T> affine{gradient.a.data(), gradient.b.data(),
                                  Output<T>(grad_x, extent.numel())};
        visit_in_parallel<V>(extent, static_cast<const T*>(x), affine, threads);
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA
